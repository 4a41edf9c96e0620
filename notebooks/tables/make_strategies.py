"""Measures notebooks/tables/strategies.csv: what each choice of notebook 05 is worth, over several seeds.

    .venv/bin/python -m notebooks.tables.make_strategies [SEED ...]      (about 5 minutes a seed on two cores)

Every row trains on the workbook's own hospitals with the same number of film presentations; only the named choice
differs. A seed changes the first weights, the order of films and the augmentation; the films stay the same, drawn by
the version of the film generator in the last column.
"""

from __future__ import annotations

from dataclasses import replace

from fedbone.config import Profile, get_profile
from fedbone.federation.arms import run_arms
from fedbone.federation.evaluation import evaluate, worst_joint
from fedbone.imaging.hospitals import GENERATOR_VERSION, training_hospitals
from fedbone.vectors import sha256
from notebooks.tables.table import save, seeds

COLUMNS = ["arm", "seed", "pck_0_05", "worst_joint", "worst_joint_pck_0_05", "mre_px", "mre_mm", "vector_sha256"]
COLUMNS += ["generator"]


def variants(profile: Profile) -> dict[str, Profile]:
    """The arms of the table: the workbook's choice, one choice undone at a time, and the tutorial's settings."""
    third = profile.rounds // 3
    return {
        "federated": profile,
        "pooled": profile,
        "without joint rows": replace(profile, joint_rows=False),
        "without server momentum": replace(profile, server_momentum=0.0),
        "batch 16": replace(profile, batch=16),
        "3 local epochs": replace(profile, local_epochs=3, rounds=third, round_decay=profile.round_decay**3),
        "decay x 0.90 a round": replace(profile, round_decay=0.90),
        "tutorial": tutorial(profile),
    }


def tutorial(profile: Profile) -> Profile:
    """Plain FedAvg, batches of 16, 3 local epochs, and a rate that falls by 10 % a round (C13 to C15)."""
    return replace(
        profile,
        batch=16,
        local_epochs=3,
        rounds=profile.rounds // 3,
        round_decay=0.90,
        server_momentum=0.0,
        joint_rows=False,
    )


def measure(seeds: list[int]) -> list[dict]:
    """One row per arm and seed."""
    profile = get_profile("cpu")
    hospitals = training_hospitals(profile.size_px)
    rows = []
    for seed in seeds:
        for name, arm in run_arms(variants(profile), hospitals, seed).items():
            metrics = evaluate(arm.predictions, hospitals)
            joint, worst = worst_joint(metrics)
            figures = [round(v, 4) for v in (metrics["pck_0_05"], worst, metrics["mre_px"], metrics["mre_mm"])]
            values = [name, seed, figures[0], joint, *figures[1:], sha256(arm.vector)[:16], GENERATOR_VERSION]
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            print(*values, flush=True)
    return rows


if __name__ == "__main__":
    save("strategies.csv", COLUMNS, measure(seeds()))
