"""Measures notebooks/tables/schedules.csv: settings of the federation and of pooled training, on validation films.

    .venv/bin/python -m notebooks.tables.make_schedules [SEED ...]      (about 15 minutes a seed on two free cores)

The validation films are of patients whose films are in no test set: what is chosen here was not chosen by the films
that notebook 05 reports on. Every row has the same number of film presentations.
"""

from __future__ import annotations

from dataclasses import replace

from fedbone.config import Profile, get_profile
from fedbone.federation.arms import Arm, run_arms
from fedbone.federation.evaluation import evaluate
from fedbone.federation.strategies import FedAdam, FedAvgM, Strategy
from fedbone.imaging.dataset import HospitalData
from fedbone.imaging.hospitals import GENERATOR_VERSION, training_hospitals
from fedbone.imaging.sites import VALIDATION_FROM
from notebooks.tables.table import fill, seeds

COLUMNS = ["settings", "seed", "training", "pck_0_05", "pck_0_02", "mre_px", "generator"]
POOLED = "pooled"


def settings(profile: Profile) -> dict[str, Arm]:
    """By description; those that begin with pooled train in one place."""
    cooled = {rounds: replace(profile, rounds=rounds, local_epochs=30 / rounds) for rounds in (30, 60, 120, 240)}
    decayed = {factor: replace(profile, cooldown=0.0, round_decay=factor**0.25) for factor in (0.90, 0.97)}
    longer = replace(profile, cooldown=0.6)
    return {
        **{f"{rounds} rounds, cooldown 0.3": Arm(changed) for rounds, changed in cooled.items()},
        **{f"120 rounds, x {factor} an epoch": Arm(changed) for factor, changed in decayed.items()},
        "120 rounds, cooldown 0.6": Arm(longer),
        "120 rounds, cooldown 0.3, momentum 0": Arm(profile, Strategy(server=FedAvgM(0.0))),
        "120 rounds, cooldown 0.3, momentum 0.8": Arm(profile, Strategy(server=FedAvgM(0.8))),
        "120 rounds, cooldown 0.3, rate 0.002": Arm(replace(profile, learning_rate=0.002)),
        **{f"FedProx, mu {mu}": Arm(profile, Strategy(proximal_mu=mu)) for mu in (0.01, 0.1)},
        **{f"FedAdam, rate {rate}": Arm(profile, Strategy(server=FedAdam(rate))) for rate in (1e-3, 3e-3, 1e-2)},
        f"{POOLED}, cooldown 0.3": Arm(profile),
        f"{POOLED}, cooldown 0.6": Arm(longer),
        f"{POOLED}, rate 0.002": Arm(replace(profile, learning_rate=0.002)),
        **{name: Arm(replace(profile, batch=4)) for name in ("120 rounds, batch 4", f"{POOLED}, batch 4")},
        **{f"{POOLED}, x {factor} an epoch": Arm(changed) for factor, changed in decayed.items()},
    }


def validation_hospitals(size_px: int) -> list[HospitalData]:
    """The workbook's hospitals with validation films in the place of test films."""
    return training_hospitals(size_px, n_test=60, test_from=VALIDATION_FROM)


def measure(name: str, seed: int) -> list[dict]:
    """The row of one setting and seed."""
    profile = get_profile("cpu")
    hospitals, arm = validation_hospitals(profile.size_px), settings(profile)[name]
    training = POOLED if name.startswith(POOLED) else "federated"
    found = evaluate(run_arms({training: arm}, hospitals, seed)[training].predictions, hospitals)
    scores = [round(found[score], 4) for score in ("pck_0_05", "pck_0_02", "mre_px")]
    return [dict(zip(COLUMNS, [name, seed, training, *scores, GENERATOR_VERSION], strict=True))]


if __name__ == "__main__":
    fill("schedules.csv", COLUMNS, [(name, seed) for seed in seeds() for name in settings(get_profile("cpu"))], measure)
