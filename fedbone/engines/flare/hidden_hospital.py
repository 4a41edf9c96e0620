"""A hospital's part when nobody may see its update: it masks and encrypts it, opens the sum, and makes the next model.

The server holds nothing that it could read. Between rounds the model lies on its disk, sealed with a key that only the
hospitals have, and every hospital makes the server's step itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from fedbone.custody.vault import Context, Vault, architecture_of
from fedbone.encryption.paillier import CipherWorkers
from fedbone.encryption.roster import read_offer
from fedbone.encryption.schemes import MaskedSum, PaillierSum
from fedbone.encryption.secure_sum import Attempt, Contributor
from fedbone.engines.flare.messages import (
    SERVER,
    TrainTask,
    bytes_message,
    done,
    opened,
    read_hidden_task,
    read_sum_task,
)
from fedbone.errors import UserError
from fedbone.federation.aggregation import Aggregation, Server
from fedbone.federation.rounds import initial_vector
from fedbone.files import write_atomic, write_json
from fedbone.vectors import VectorLayout, sha256

if TYPE_CHECKING:
    from fedbone.engines.flare.hospital_side import HospitalSide

UPLOADS = "uploads.json"  # by round: to which sum this hospital has contributed, over restarts
PLACE = "hospitals"  # where a sealed model belongs: to all of them


class HiddenHospital:
    """The four questions of a round, and the last one of the run; ``side`` trains and keeps the audit log."""

    def __init__(self, side: HospitalSide, layout: VectorLayout) -> None:
        kit, plan = side.kit, side.plan
        lanes = plan.lanes_of_sums()
        if plan.sums == "paillier":
            scheme = PaillierSum(lanes, layout.size, CipherWorkers(kit.sum_key()))
        else:
            scheme = MaskedSum(lanes, layout.size)
        self._side, self._vault = side, Vault.from_key_file(kit.own / "hospitals.key")
        self._directory, self._architecture = kit.signing_keys(), architecture_of(layout)
        self._contributor = Contributor(kit.name, kit.signing_key(), self._directory, scheme)
        self._server = Server(layout, plan.labelled, plan.strategy, None)
        self._uploads = kit.run_folder(plan.run) / UPLOADS
        self._task: TrainTask | None = None  # of the round that this hospital is in
        self._vector: np.ndarray | None = None
        self._state: dict[str, np.ndarray] = {}
        self._delta: np.ndarray | None = None

    def answer(self, task: str, message: bytes) -> tuple[int, bytes]:
        """(the round, the answer's message). Raises UserError for a question out of turn."""
        if task == "train":
            return self._train(message)
        if task == "finish":
            return self._finish(message)
        index, parts = read_sum_task(message, self._side.plan.run)
        if self._task is None or index != self._task.round or task not in ("upload", "open", "seal"):
            problem = f"it asks for {task!r} of round {index}, which this hospital is not in"
            raise UserError(SERVER, problem, "The round is asked again when the run goes on")
        return index, {"upload": self._upload, "open": self._open, "seal": self._seal}[task](parts)

    def _train(self, message: bytes) -> tuple[int, bytes]:
        task, sealed = read_hidden_task(message)
        self._task, self._delta = None, None
        self._vector, self._state = self._opened_model(task, sealed, task.round - 1)
        self._delta = self._side.train(task, self._vector).delta
        self._task = task
        run = f"{self._side.kit.project}/{task.run}"
        return task.round, bytes_message(self._contributor.offer(Attempt(run, task.round, 0, sha256(self._vector))))

    def _upload(self, offers: list[bytes]) -> bytes:
        self._note_upload(sorted(read_offer(offer, self._directory)[0] for offer in offers))
        upload = self._contributor.upload(self._delta, offers)
        self._side.audit.append("push", run=self._task.run, round=self._task.round, detail="masked upload")
        return bytes_message(upload)

    def _note_upload(self, roster: list[str]) -> None:
        """Once a round this hospital is in a sum, before its part leaves: who held two sums would read what is missing.

        The same sum again, after an interruption, is no other one: the same hospitals and the same model.
        """
        notes = json.loads(self._uploads.read_bytes()) if self._uploads.exists() else {}
        this = {"model": sha256(self._vector), "roster": roster}
        before = notes.setdefault(str(self._task.round), this)
        if before != this:
            problem = f"round {self._task.round} was begun with {', '.join(before['roster'])}, now {', '.join(roster)}"
            raise UserError(SERVER, problem, "Wait until all of them are back: two sums would show one's update")
        write_json(self._uploads, notes)

    def _open(self, parts: list[bytes]) -> bytes:
        """Decrypt the total, and make the server's step on the mean."""
        mean = self._contributor.open(parts[0])
        roster = json.loads(self._uploads.read_bytes())[str(self._task.round)]["roster"]
        step = Aggregation(self._server, len(self._side.plan.hospitals))
        step.opened(mean, roster)
        self._vector, _ = step.step(self._vector, self._state)
        model = sha256(self._vector)
        self._side.audit.append("aggregation", run=self._task.run, round=self._task.round, model=model)
        return opened(model)

    def _seal(self, _: list[bytes]) -> bytes:
        path = self._uploads.with_name("next.sealed")
        arrays = {"vector": self._vector, **self._state}
        self._vault.seal(path, arrays, {"plan": self._side.plan.to_json()}, self._context(self._task.round))
        sealed = path.read_bytes()
        path.unlink()
        return bytes_message(sealed)

    def _finish(self, message: bytes) -> tuple[int, bytes]:
        task, sealed = read_hidden_task(message)
        vector, _ = self._opened_model(task, sealed, task.round)
        self._side.keep(task.round, vector)
        return task.round, done()

    def _opened_model(self, task: TrainTask, sealed: bytes, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(the model (P,) after round ``index``, the server optimiser's state); a new one before the first."""
        self._side.require_this_run(task.run)
        plan = self._side.plan
        if index < 0:
            return initial_vector(plan.profile, len(plan.joints), plan.seed), {}
        path = write_atomic(self._uploads.with_name("given.sealed"), sealed)
        arrays, about = self._vault.open(path, self._context(index))
        path.unlink()
        if about["plan"] != plan.to_json():
            raise UserError(SERVER, "it gives the model of another plan", "Stop the run, and find out why")
        return arrays.pop("vector"), arrays

    def _context(self, index: int) -> Context:
        return Context(PLACE, self._side.plan.run, index, self._architecture)
