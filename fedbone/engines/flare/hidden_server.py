"""The server's rounds when nobody may see a single update: it adds what it cannot read, and holds no model.

A round is four questions: train (the answer is a signed mask key), upload, open, seal. The hospitals keep the model
under a key of their own; what they seal after each round lies on the server's disk for whoever comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fedbone.encryption.paillier import CipherWorkers
from fedbone.encryption.roster import read_offer
from fedbone.encryption.schemes import MaskedSum, PaillierSum
from fedbone.encryption.secure_sum import Attempt, Collector
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.messages import (
    TrainTask,
    hidden_task,
    read_bytes,
    read_opened,
    sum_task,
)
from fedbone.engines.flare.plan import Plan, require_enough
from fedbone.engines.flare.run_folder import RunFolder
from fedbone.errors import UserError
from fedbone.files import write_atomic
from fedbone.model.hrnet import build_for
from fedbone.vectors import layout_of


class HiddenServer:
    """The server of a run with sums: all keys that it has are public ones."""

    def __init__(self, kit: Kit, plan: Plan, folder: RunFolder) -> None:
        self.plan, self.folder = plan, folder
        self._directory, self._project = kit.signing_keys(), kit.project
        parameters, lanes = layout_of(build_for(plan.profile, len(plan.joints))).size, plan.lanes_of_sums()
        if plan.sums == "paillier":
            self._scheme = PaillierSum(lanes, parameters, CipherWorkers(kit.sum_key()))
        else:
            self._scheme = MaskedSum(lanes, parameters)

    def run(self, ask: Callable[..., dict[str, str]]) -> str:
        """All rounds that are not finished; sha256 of the last model. Raises UserError when too few took part."""
        index, model = self.folder.finished()
        self.folder.go_on(index)
        self.folder.tell("running")
        self.folder.audit.append("start", run=self.plan.run, round=index + 1, model=model)
        while index + 1 < self.plan.profile.rounds:
            index += 1
            model = self._round(ask, index, model)
        message = hidden_task(self._task(index), self._sealed(index))
        names = list(self.plan.hospitals)
        outcome = ask("finish", index, message, model, names, len(names), lambda name, _: None)
        self.folder.finish(model, outcome)
        return model

    def _task(self, index: int) -> TrainTask:
        return TrainTask(self.plan.run, index, self.plan.seed, self.plan.proximal_mu, *self.folder.audit.head())

    def _sealed(self, index: int) -> bytes:
        """What the hospitals sealed after round ``index``; nothing before the first."""
        return self.folder.path(index).read_bytes() if index >= 0 else b""

    def _round(self, ask: Callable[..., dict[str, str]], index: int, model: str) -> str:
        began, offers = time.monotonic(), {}
        message = hidden_task(self._task(index), self._sealed(index - 1))
        names, need = list(self.plan.hospitals), self.plan.min_hospitals
        first = ask("train", index, message, model, names, need, lambda n, m: offers.update({n: read_bytes(n, m)}))
        roster = sorted(offers)
        require_enough(self.plan, index, roster, need, first)
        total, second = self._sum(ask, index, list(offers.values()), roster)
        model = self._opened(ask, index, total, roster)
        self._store(ask, index, model, roster)
        self.folder.release(index, model)
        self.folder.tell_round(index, first | second, model, time.monotonic() - began)
        return model

    def _sum(
        self, ask: Callable[..., dict[str, str]], index: int, offers: list[bytes], roster: list[str]
    ) -> tuple[bytes, dict[str, str]]:
        """(the total of the roster's uploads, what came of asking for them)."""
        model = read_offer(offers[0], self._directory)[1]["model"]  # the hospitals', who see that it is the same
        attempt = Attempt(f"{self._project}/{self.plan.run}", index, 0, model)
        collector = Collector(self._directory, self._scheme, attempt, offers)

        def accept(name: str, message: bytes) -> None:
            upload = read_bytes(name, message)
            if name != collector.add(upload):
                raise UserError(name, "it sent the upload of another hospital", "Find out how it came by it")

        message = sum_task(self.plan.run, index, offers)
        outcome = ask("upload", index, message, attempt.model, roster, len(roster), accept)
        there = [name for name in roster if name not in collector.missing]
        require_enough(self.plan, index, there, len(roster), outcome)
        self.folder.audit.append(
            "aggregation", run=self.plan.run, round=index, model=attempt.model, hospitals=",".join(roster)
        )
        return collector.total(), outcome

    def _opened(self, ask: Callable[..., dict[str, str]], index: int, total: bytes, roster: list[str]) -> str:
        """sha256 of the model that the hospitals came to; all of them to the same."""
        models: dict[str, str] = {}

        def accept(name: str, message: bytes) -> None:
            models[name] = read_opened(name, message)

        message = sum_task(self.plan.run, index, [total])
        outcome = ask("open", index, message, "", roster, len(roster), accept)
        require_enough(self.plan, index, list(models), self.plan.min_hospitals, outcome)
        if len(set(models.values())) > 1:
            found = ", ".join(f"{name} {model[:12]}" for name, model in sorted(models.items()))
            problem = f"round {index}: the hospitals came to different models: {found}"
            raise UserError(f"run {self.plan.run}", problem, "Give all the same version of fedbone, numpy and torch")
        return next(iter(models.values()))

    def _store(self, ask: Callable[..., dict[str, str]], index: int, model: str, roster: list[str]) -> None:
        """Keep what one of the hospitals sealed: the next one is asked when it does not answer."""
        for name in roster:
            sealed: list[bytes] = []
            message = sum_task(self.plan.run, index, [])
            ask("seal", index, message, model, [name], 1, lambda n, m, kept=sealed: kept.append(read_bytes(n, m)))
            if sealed:
                write_atomic(self.folder.path(index), sealed[0])
                return
        problem = f"round {index}: none of the hospitals sealed the new model"
        raise UserError(f"run {self.plan.run}", problem, "It is repeated with the same hospitals when they are back")
