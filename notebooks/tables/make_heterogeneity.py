"""Measures notebooks/tables/heterogeneity.csv: what differs between hospitals, one kind of difference at a time.

    .venv/bin/python -m notebooks.tables.make_heterogeneity [SEED ...]      (about 4 minutes a seed on two free cores)

The same 600 training films are dealt to three hospitals in three ways; test films are dealt as the training films are.
The fourth way, by anatomy, is the workbook's own: its rows are in gains.csv.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np

from fedbone.config import get_profile
from fedbone.federation.arms import Arm, run_arms
from fedbone.federation.evaluation import evaluate, worst_joint
from fedbone.imaging.dataset import FilmSet, HospitalData, pool
from fedbone.imaging.hospitals import GENERATOR_VERSION, training_hospitals
from notebooks.tables.table import fill, seeds

COLUMNS = ["hospitals", "seed", "training", "pck_0_05", "mre_px", "worst_hospital_mre_px", "worst_joint"]
COLUMNS += ["worst_joint_pck_0_05", "generator"]
EQUAL, UNEQUAL = (1 / 3, 1 / 3, 1 / 3), (0.6, 0.3, 0.1)


def scanner(films: FilmSet, place: int) -> FilmSet:
    """The films as another machine would give them: 0 unchanged, 1 darker and noisy, 2 brighter and blurred."""
    if place == 0:
        return films
    rng = np.random.default_rng([place, len(films)])
    images = films.images.astype(np.float32) / 255
    if place == 1:
        images = images**1.8 + rng.normal(0, 0.04, images.shape)
    else:
        images = np.stack([cv2.GaussianBlur(image, (0, 0), 1.0) for image in images]) ** 0.5
    return replace(films, images=(images.clip(0, 1) * 255).astype(np.uint8))


def dealt(hospitals: list[HospitalData], shares: tuple[float, ...], seed: int, scanners: bool) -> list[HospitalData]:
    """All patients shuffled and dealt to new hospitals by ``shares``: every kind of film everywhere."""
    parts = {}
    for name in ("train", "test"):
        films = pool([getattr(h, name) for h in hospitals])
        patients = np.asarray(films.patients, dtype=object)
        order = np.random.default_rng([seed, len(films)]).permutation(sorted(set(films.patients)))
        ends = np.round(np.cumsum([0, *shares]) * len(order)).astype(int)
        some = [films.take(np.isin(patients, order[a:b])) for a, b in pairwise(ends)]
        parts[name] = [scanner(part, place) for place, part in enumerate(some)] if scanners else some
    pairs = zip(parts["train"], parts["test"], strict=True)
    return [HospitalData(f"dealt_{n}", hospitals[0].joints, train, test) for n, (train, test) in enumerate(pairs)]


def collection(kind: str, seed: int, size_px: int) -> list[HospitalData]:
    """The hospitals of one row."""
    shares = UNEQUAL if kind == "other numbers of films" else EQUAL
    return dealt(training_hospitals(size_px), shares, seed, kind == "other scanners")


def measure(kind: str, seed: int) -> list[dict]:
    """The rows of one way of dealing."""
    profile, found = get_profile("cpu"), []
    hospitals = collection(kind, seed, profile.size_px)
    for training in KINDS[kind]:
        done = run_arms({training: Arm(profile)}, hospitals, seed)[training]
        metrics = evaluate(done.predictions, hospitals)
        joint, worst = worst_joint(metrics)
        hospital = max(there["mre_px"] for there in metrics["per_hospital"].values())
        figures = [round(v, 4) for v in (metrics["pck_0_05"], metrics["mre_px"], hospital)]
        found.append([kind, seed, training, *figures, joint, round(worst, 4), GENERATOR_VERSION])
    return [dict(zip(COLUMNS, row, strict=True)) for row in found]


KINDS = {  # pooled, films are the same whatever their number at each hospital
    "nothing": ("federated", "pooled"),
    "other numbers of films": ("federated",),
    "other scanners": ("federated", "pooled"),
}

if __name__ == "__main__":
    fill("heterogeneity.csv", COLUMNS, [(kind, seed) for seed in seeds() for kind in KINDS], measure)
