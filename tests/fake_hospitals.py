"""Hospitals that train nothing, at once, and fail in the ways that hospitals do."""

from __future__ import annotations

import os
import signal
import time
import zlib

import numpy as np

from fedbone.federation.hospital import Hospital, RoundTask, Update
from fedbone.federation.rounds import initial_vector
from tests.helpers import JOINTS, dot_hospital, tiny_profile

PROFILE = tiny_profile(rounds=4)
START = initial_vector(PROFILE, len(JOINTS), 0)
# the head comes last: a row of 8 weights for each joint, then a bias for each
HEAD_ROWS = [[*range(len(START) - 27 + 8 * j, len(START) - 27 + 8 * j + 8), len(START) - 3 + j] for j in range(3)]


class OddError(Exception):
    """It can be pickled, but not read again: its constructor takes two arguments."""

    def __init__(self, what: str, how: str) -> None:
        super().__init__(f"{what} {how}")


class FakeHospital:
    """Its update is a draw from [name, round], and depends on how often it took part: that count is what stays here.

    faults: by round, what goes wrong.
    """

    def __init__(self, name: str, labelled: tuple[int, ...] = (0, 1, 2), faults: dict[int, str] | None = None) -> None:
        own = Hospital(dot_hospital(name, labelled, zlib.crc32(name.encode()), 2), PROFILE)
        self.name, self.labelled, self.joints, self.films_digest = name, own.labelled, own.joints, own.films_digest
        self.faults, self.visits = faults or {}, 0

    def state(self) -> dict[str, np.ndarray]:
        return {"visits": np.array([self.visits])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.visits = int(state["visits"][0]) if state else 0

    def released_loss(self, update: Update) -> float | None:
        return update.report["losses"][-1]

    def delta(self, round_index: int, visits: int) -> np.ndarray:
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), round_index, visits])
        delta = rng.normal(0, 1e-2, len(START)).astype(np.float32)
        for joint, rows in enumerate(HEAD_ROWS):
            if not self.labelled[joint]:
                delta[rows] = 0
        return delta

    def local_update(self, global_vector: np.ndarray, task: RoundTask) -> Update:
        self.visits += 1
        delta, fault = self.delta(task.round, self.visits), self.faults.get(task.round)
        if fault == "raise":
            raise OSError("its disk is full")
        if fault == "odd":
            raise OddError("its disk", "is odd")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            time.sleep(1000)
        if fault == "nan":
            delta[5] = np.nan
        if fault == "short":
            delta = delta[:-1]
        if fault == "float64":
            delta = delta.astype(np.float64)
        if fault == "huge":
            delta[5] = 1e30
        labelled = ~self.labelled if fault == "other joints" else self.labelled
        return Update(delta, labelled, {"losses": [float(task.round), float(self.visits)]})


def three(**faults: dict[int, str]) -> list[FakeHospital]:
    """a labels joint 0, b joint 1, c joints 0 and 2."""
    labelled = {"a": (0,), "b": (1,), "c": (0, 2)}
    return [FakeHospital(name, joints, faults.get(name)) for name, joints in labelled.items()]
