"""Measures notebooks/tables/strategies.csv: what each choice of notebook 05 is worth, over several seeds.

    .venv/bin/python -m notebooks.tables.make_strategies [SEED ...]      (about 20 minutes a seed on two free cores)

Every row trains on the workbook's own hospitals with the same number of film presentations; only the named choice
differs. A seed changes the first weights, the order of films and the augmentation; the films stay the same, drawn by
the version of the film generator in the last column. The workbook's own settings and pooled training are in gains.csv.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedbone.config import Profile, get_profile
from fedbone.federation.arms import Arm, presentations, run_arms
from fedbone.federation.evaluation import evaluate, worst_joint
from fedbone.federation.strategies import CoordinateMedian, FedAdam, FedAvgM, Strategy
from fedbone.imaging.hospitals import GENERATOR_VERSION, training_hospitals
from fedbone.vectors import sha256
from notebooks.tables.table import fill, seeds

POOLED = "pooled"
SCORES = ["pck_0_05", "pck_0_02", "mre_px", "mre_mm", "sdr_10_mm"]
COLUMNS = ["arm", "seed", *SCORES, "worst_hospital_mre_px", "worst_joint", "worst_joint_pck_0_05", "presentations"]
COLUMNS += ["vector_sha256", "generator"]


@dataclass(frozen=True)
class TutorialServer:
    """The tutorial's line: the sum of share times model, divided by the number of hospitals once more."""

    hospitals: int = 3

    def step(self, global_vector: np.ndarray, mean: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
        """The next global vector (P,) float32: a third of what it should be."""
        return ((global_vector + mean) / self.hospitals).astype(np.float32)


def epochs(profile: Profile, local: int, **changes: float) -> Profile:
    """The same presentations in rounds of ``local`` whole epochs."""
    whole = round(profile.rounds * profile.local_epochs)
    return replace(profile, local_epochs=local, rounds=whole // local, **changes)


def arms(profile: Profile) -> dict[str, Arm]:
    """The workbook's settings with one choice undone or exchanged at a time, and the tutorial's."""
    plain = FedAvgM(0.0)
    tutorial = epochs(profile, 3, batch=16, round_decay=0.90, cooldown=0.0)
    return {
        "without joint rows": Arm(profile, Strategy(joint_rows=False)),
        "without server momentum": Arm(profile, Strategy(server=plain)),
        "1 local epoch": Arm(epochs(profile, 1)),
        "3 local epochs": Arm(epochs(profile, 3)),
        "10 local epochs": Arm(epochs(profile, 10)),
        "1 local epoch, x 0.90 a round": Arm(epochs(profile, 1, round_decay=0.90, cooldown=0.0)),
        "1 local epoch, constant rate": Arm(epochs(profile, 1, cooldown=0.0)),
        "batch 16": Arm(replace(profile, batch=16)),
        "batch 32": Arm(replace(profile, batch=32)),
        "batch 64": Arm(replace(profile, batch=64)),
        "rate 0.002": Arm(replace(profile, learning_rate=0.002)),
        f"{POOLED}, rate 0.002": Arm(replace(profile, learning_rate=0.002)),
        "FedProx": Arm(profile, Strategy(proximal_mu=PROXIMAL_MU)),
        "FedAdam": Arm(profile, Strategy(server=FedAdam(learning_rate=SERVER_RATE))),
        "FedBN": Arm(replace(profile, norm="batch"), Strategy(local_norm=True)),
        "coordinate median": Arm(profile, Strategy(combine=CoordinateMedian, joint_rows=False)),
        "tutorial": Arm(tutorial, Strategy(server=plain, joint_rows=False)),
        "tutorial, share and 1/n": Arm(tutorial, Strategy(server=TutorialServer(), joint_rows=False)),
    }


PROXIMAL_MU = 0.01  # not tuned
SERVER_RATE = 0.01  # the best of three on validation films, see make_schedules


def measure(name: str, seed: int) -> list[dict]:
    """The row of one arm and seed."""
    profile = get_profile("cpu")
    hospitals, arm = training_hospitals(profile.size_px), arms(profile)[name]
    training = POOLED if name.startswith(POOLED) else name
    done = run_arms({training: arm}, hospitals, seed)[training]
    metrics = evaluate(done.predictions, hospitals)
    joint, worst = worst_joint(metrics)
    hospital = max(there["mre_px"] for there in metrics["per_hospital"].values())
    values = [name, seed, *(round(metrics[score], 4) for score in SCORES), round(hospital, 4), joint, round(worst, 4)]
    values += [presentations(hospitals, arm.profile), sha256(done.vector)[:16], GENERATOR_VERSION]
    return [dict(zip(COLUMNS, values, strict=True))]


if __name__ == "__main__":
    fill("strategies.csv", COLUMNS, [(name, seed) for seed in seeds() for name in arms(get_profile("cpu"))], measure)
