"""Measures notebooks/tables/gains.csv: every model on every hospital's test films, and what each hospital gains.

    .venv/bin/python -m notebooks.tables.make_gains [SEED ...]      (about 10 minutes a seed on a free core)

The hospitals' own models, the federated and the pooled one have seen each film equally often; one more federated model
has seen each twice as often. minus_own_px: film by film, the model's error less that of the hospital's own model on
the same film, with a 95 % interval over patients; below zero, joining helped.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedbone.config import Profile, get_profile
from fedbone.federation.arms import Arm, ArmResult, run_arms
from fedbone.federation.evaluation import Predictions, ensemble, evaluate, paired_difference, worst_joint
from fedbone.federation.hospital import Hospital
from fedbone.imaging.dataset import HospitalData
from fedbone.imaging.hospitals import GENERATOR_VERSION, training_hospitals
from fedbone.model.training import predict
from fedbone.vectors import sha256
from notebooks.tables.table import fill, seeds

COLUMNS = ["model", "seed", "tested_at", "pck_0_05", "pck_0_02", "mre_px", "sdr_10_mm", "minus_own_px", "low", "high"]
COLUMNS += ["worst_joint", "worst_joint_pck_0_05", "vector_sha256", "generator"]
PERSONAL_EPOCHS = 2
EVERYWHERE = "all hospitals"


def trained(hospitals: list[HospitalData], profile: Profile, seed: int) -> dict[str, ArmResult]:
    """By name: one model a hospital, the federated ones and the pooled one."""
    twice = replace(profile, rounds=2 * profile.rounds)
    arms = dict.fromkeys([*(h.name for h in hospitals), "federated", "pooled"], Arm(profile))
    arms["federated, twice the presentations"] = Arm(twice)
    return {name: run_arms({name: arm}, hospitals, seed)[name] for name, arm in arms.items()}


def one_shot(results: dict[str, ArmResult], hospitals: list[HospitalData]) -> Predictions:
    """The hospitals' own models, trained once and combined without a single round: each joint by who labels it."""
    labelled = [h.labelled for h in hospitals]
    return {h.name: ensemble([results[o.name].predictions[h.name] for o in hospitals], labelled) for h in hospitals}


def personal(vector: np.ndarray, hospitals: list[HospitalData], profile: Profile, seed: int, head: bool) -> Predictions:
    """The federated model after each hospital has trained it on for itself."""
    found = {}
    for data in hospitals:
        hospital = Hospital(data, profile)
        own = hospital.personalised(vector, PERSONAL_EPOCHS, seed, head_only=head)
        found[data.name] = predict(hospital.model_for(own), data.test.images, profile)
    return found


def measure(_: str, seed: int) -> list[dict]:
    """All rows of one seed."""
    profile = get_profile("cpu")
    hospitals = training_hospitals(profile.size_px)
    results = trained(hospitals, profile, seed)
    models = {name: done.predictions for name, done in results.items()}
    models["own models together"] = one_shot(results, hospitals)
    vector = results["federated"].vector
    models["federated, own head"] = personal(vector, hospitals, profile, seed, head=True)
    models["federated, trained on"] = personal(vector, hospitals, profile, seed, head=False)
    prints = {name: sha256(done.vector)[:16] for name, done in results.items()}
    rows = [row for name, found in models.items() for row in scored(name, seed, found, models, hospitals)]
    return [{**row, "vector_sha256": prints.get(row["model"], "")} for row in rows]


def scored(
    name: str, seed: int, found: Predictions, models: dict[str, Predictions], hospitals: list[HospitalData]
) -> list[dict]:
    """The rows of one model: at each hospital, and over all films."""
    metrics, rows = evaluate(found, hospitals), []
    for h in hospitals:
        gain = paired_difference(found[h.name], models[h.name][h.name], h.test)
        difference = [gain["mre_px"], *gain["interval_95"]] if name != h.name else ["", "", ""]
        rows.append([h.name, metrics["per_hospital"][h.name], difference])
    rows.append([EVERYWHERE, metrics, ["", "", ""]])
    rows = [[name, seed, place, *_rounded(scores), *map(_round, gain), *_worst(scores)] for place, scores, gain in rows]
    return [dict(zip(COLUMNS, [*row, "", GENERATOR_VERSION], strict=True)) for row in rows]


def _worst(scores: dict) -> tuple[str, float]:
    joint, share = worst_joint(scores)
    return joint, _round(share)


def _rounded(scores: dict) -> list[float]:
    return [_round(scores[key]) for key in ("pck_0_05", "pck_0_02", "mre_px", "sdr_10_mm")]


def _round(value: float | str) -> float | str:
    return value if value == "" else round(float(value), 4)


if __name__ == "__main__":
    fill("gains.csv", COLUMNS, [("federated", seed) for seed in seeds()], measure)
