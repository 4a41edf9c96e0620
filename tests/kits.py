"""Kits for tests, in a second: small films that nobody reads, and a Paillier key that anybody could break."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedbone.encryption.paillier_keys import insecure_test_key
from fedbone.engines.flare import kits
from fedbone.imaging.dataset import FilmSet, HospitalData

JOINTS = ("left_knee", "right_knee", "left_ankle")


def films(name: str, labelled: int) -> HospitalData:
    """A hospital of four patients that labels the first ``labelled`` joints."""
    keypoints = np.zeros((4, len(JOINTS), 3), np.float32)
    keypoints[:, :labelled, 2] = 2
    spacing = np.ones((4, 2), np.float32)
    some = FilmSet(np.zeros((4, 8, 8), np.uint8), keypoints, spacing, tuple(f"{name}-{n}" for n in range(4)))
    return HospitalData(name, JOINTS, some, some.take(np.arange(0)))


def make_kits(out: Path, names: tuple[str, ...] = ("north", "south"), host: str = "localhost", port: int | None = None):
    """The kits of a new deployment in ``out``."""
    real, kits.generate = kits.generate, insecure_test_key
    try:
        hospitals = {name: (out.parent / "films" / name, films(name, 1 + n % 3)) for n, name in enumerate(names)}
        return kits.create_kits(out, hospitals, host, port)
    finally:
        kits.generate = real
