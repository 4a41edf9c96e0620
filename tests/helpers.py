"""Small films for tests: bright dots on noise, one dot a joint."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from fedbone.config import Profile, get_profile
from fedbone.imaging.dataset import FilmSet, HospitalData

JOINTS = ("hip", "knee", "ankle")


def tiny_profile(**changes: object) -> Profile:
    plain = {"size_px": 32, "batch": 4, "rounds": 2, "local_epochs": 1, "cooldown": 0.0}
    return get_profile("cpu", **{**plain, **changes})


def dot_films(count: int, labelled: tuple[int, ...] = (0, 1, 2), seed: int = 0, side: int = 32) -> FilmSet:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 40, (count, side, side)).astype(np.uint8)
    truth = np.full((count, len(JOINTS), 3), 2, np.float32)
    truth[..., :2] = rng.uniform(6, side - 7, truth[..., :2].shape)
    for image, points in zip(images, truth, strict=True):
        for radius, (x, y, _) in enumerate(points, start=1):
            cv2.circle(image, (round(float(x)), round(float(y))), radius, 255, -1)
    keypoints = truth.copy()
    keypoints[:, [j for j in range(len(JOINTS)) if j not in labelled]] = 0
    patients = tuple(f"p{seed}-{i}" for i in range(count))
    return FilmSet(images, keypoints, np.full((count, 2), 0.5, np.float32), patients, truth)


def dot_hospital(name: str, labelled: tuple[int, ...] = (0, 1, 2), seed: int = 0, count: int = 8) -> HospitalData:
    films = (dot_films(count, labelled, seed), dot_films(4, labelled, seed + 1000))
    return HospitalData(name, JOINTS, *films, tuple(JOINTS[joint] for joint in labelled))


def all_ended(pids: Iterable[int], within_s: float = 20.0) -> bool:
    """Whether all these processes end in time; one that only waits to be collected has ended."""
    deadline = time.monotonic() + within_s
    while (left := any(map(_runs, pids))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
