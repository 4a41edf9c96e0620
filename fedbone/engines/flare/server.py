"""The server's rounds, whatever carries the messages: ``run(ask)`` with FLARE's, or a test's, way of asking."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from fedbone.custody.vault import Context, architecture_of
from fedbone.engines.flare.hidden_server import HiddenServer
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.messages import SERVER, TrainTask, final_model, read_update, train_task
from fedbone.engines.flare.plan import Plan, require_enough
from fedbone.engines.flare.run_folder import RunFolder
from fedbone.errors import UserError
from fedbone.federation.aggregation import Aggregation, Server
from fedbone.federation.rounds import initial_vector
from fedbone.model.hrnet import build_for
from fedbone.privacy.dp import GaussianNoise
from fedbone.vectors import layout_of, sha256

AskHospitals = Callable[..., dict[str, str]]


def rounds_of(kit: Kit, plan: Plan, folder: RunFolder) -> OpenServer | HiddenServer:
    """The server's part of ``plan``: with sums that hide the updates it never holds a model."""
    return OpenServer(kit, plan, folder) if plan.sums == "none" else HiddenServer(kit, plan, folder)


def noise_of(plan: Plan) -> GaussianNoise | None:
    """Central differential privacy, if the plan has it."""
    if plan.noise is None:
        return None
    weights = [1 / len(plan.hospitals)] * len(plan.hospitals)
    return GaussianNoise.from_multiplier(plan.noise["noise_multiplier"], plan.noise["clip_norm"], weights)


class OpenServer:
    """The server that sees each update: it adds them, makes the next model and seals it in its vault."""

    def __init__(self, kit: Kit, plan: Plan, folder: RunFolder) -> None:
        self.plan, self.folder, self._vault = plan, folder, kit.vault()
        layout = layout_of(build_for(plan.profile, len(plan.joints)))
        self._architecture = architecture_of(layout)
        self.server = Server(layout, plan.labelled, plan.strategy, noise_of(plan))

    def run(self, ask: AskHospitals) -> np.ndarray:
        """All rounds that are not finished; the last model (P,). Raises UserError when too few took part."""
        index, vector, state = self._resume()
        self.folder.go_on(index)
        self.folder.tell("running")
        self.folder.audit.append("start", run=self.plan.run, round=index + 1, model=sha256(vector))
        while index + 1 < self.plan.profile.rounds:
            index += 1
            vector = self._round(ask, index, vector, state)
        hospitals = list(self.plan.hospitals)
        message = final_model(self.plan.run, index, vector)
        outcome = ask("finish", index, message, sha256(vector), hospitals, len(hospitals), lambda name, _: None)
        self.folder.finish(sha256(vector), outcome)
        return vector

    def _resume(self) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
        """(last finished round, its model, the server optimiser's state); -1 and a new model at the beginning."""
        index, model = self.folder.finished()
        if index < 0:
            return -1, initial_vector(self.plan.profile, len(self.plan.joints), self.plan.seed), {}
        path = self.folder.path(index)
        arrays, about = self._vault.open(path, self._context(index))
        vector = arrays.pop("vector")
        if sha256(vector) != model or about["plan"] != self.plan.to_json():
            problem = "it is not the model that the audit log says was released"
            raise UserError(path, problem, "Find out who can write to this folder; restore a backup of both")
        return index, vector, arrays

    def _context(self, index: int) -> Context:
        return Context(SERVER, self.plan.run, index, self._architecture)

    def _round(self, ask: AskHospitals, index: int, vector: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
        began, names = time.monotonic(), list(self.plan.hospitals)
        sums = Aggregation(self.server, len(names))

        def accept(name: str, message: bytes) -> None:
            sums.add(name, read_update(name, message, self.server.layout.size, len(self.plan.joints)))

        task = TrainTask(self.plan.run, index, self.plan.seed, self.plan.proximal_mu, *self.folder.audit.head())
        message, sent = train_task(task, vector), sha256(vector)
        outcome = ask("train", index, message, sent, names, self.plan.min_hospitals, accept)
        require_enough(self.plan, index, sums.took_part, self.plan.min_hospitals, outcome)
        vector, _ = sums.step(vector, state)
        model, took_part = sha256(vector), sorted(sums.took_part)
        self.folder.audit.append(
            "aggregation", run=self.plan.run, round=index, model=model, hospitals=",".join(took_part)
        )
        about = {"plan": self.plan.to_json()}
        self._vault.seal(self.folder.path(index), {"vector": vector, **state}, about, self._context(index))
        self.folder.release(index, model)
        self.folder.tell_round(index, outcome, model, time.monotonic() - began)
        return vector
