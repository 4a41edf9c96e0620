"""Measures notebooks/tables/privacy.csv: what patient-level privacy costs, beside what needs no patient at all.

    .venv/bin/python -m notebooks.tables.make_privacy [SEED ...]      (10 minutes on an H100, days without a GPU)

Each row: DP-SGD inside the three hospitals of simulated films, from a model of public films only (epsilon 0: that model
itself). epsilon: of one patient of one hospital with all of their films, added or removed, towards everybody who sees
the hospital's updates; delta 1e-5; Poisson sampling; epsilon inf clips, but adds nothing. gain_px: error of the epsilon
0 model of the same seed less this one's on the same film, with a 95 % interval over the test patients. The learning
rates were chosen by the error on other patients' films (VALIDATION_FROM) with seed 0: a hospital would have to pay for
that. Noise and sampling come from the seed, so that a row can be measured again: with real patients that is forbidden.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from fedbone.config import WEIGHTS, Profile, build_dir, get_profile
from fedbone.federation.evaluation import evaluate, paired_difference
from fedbone.federation.hospital import Hospital
from fedbone.federation.rounds import run_rounds
from fedbone.federation.strategies import FedAvgM, Strategy
from fedbone.imaging.dataset import HospitalData, pool
from fedbone.imaging.hospitals import GENERATOR_VERSION, public_films, training_hospitals
from fedbone.model.fit import fit
from fedbone.model.hrnet import build_for, load_model, save_model
from fedbone.model.training import predict
from fedbone.privacy.accounting import calibrate
from fedbone.privacy.dpsgd import PatientPrivacy, films_of_patients
from fedbone.privacy.ledger import Ledger
from fedbone.vectors import load_vector, sha256, to_vector
from notebooks.tables.table import fill, seeds

COLUMNS = ["arm", "seed", "part", "films", "patients", "epsilon", "noise_multiplier", "sampling_rate", "steps"]
COLUMNS += ["learning_rate", "pck_0_05", "mre_px", "mre_a_px", "mre_b_px", "mre_c_px", "gain_px", "low", "high"]
COLUMNS += ["vector_sha256", "generator"]
FILMS, TEST_FILMS, PUBLIC_FILMS = 2000, 200, 500  # of each hospital, and of each place of the archive
STEPS, DP_DELTA, CLIP_NORM = 40, 1e-5, 1.0
SAMPLED = 512 / 1500  # share of the patients in a step: 2,000 films show 1,500
RATES = {"head": 1.0, "all": 0.5}
EPSILONS = (math.inf, 8, 3, 1)
CONTROL = "public films only"
FEWER = (300, 100)  # films a hospital


def arms() -> dict[str, tuple[str, int, float]]:
    """By name: the part that is trained, films a hospital, epsilon."""
    found = {CONTROL: ("none", 0, 0.0)}
    for part in ("all", "head"):
        found |= {f"{part}, epsilon {epsilon:g}": (part, FILMS, epsilon) for epsilon in EPSILONS}
    for films in FEWER:
        found |= {f"all, epsilon {e:g}, {films} films": ("all", films, e) for e in (math.inf, 8, 1)}
    return found | {f"head, epsilon {e:g}, 100 films": ("head", 100, e) for e in EPSILONS}


def profile() -> Profile:
    """The CPU preset, on a GPU where there is one."""
    return get_profile("cpu", device="cuda" if torch.cuda.is_available() else "cpu")


def public_model(seed: int) -> np.ndarray:
    """(P,) float32: backbone and head from the archive's films alone; that of seed 0 is in data/sample/weights."""
    path = WEIGHTS / "public_cpu.safetensors" if seed == 0 else build_dir() / "public" / f"seed{seed}.safetensors"
    if not path.exists():
        chosen = get_profile("cpu", device=profile().device, rounds=30, local_epochs=1, batch=16)
        model = build_for(chosen, 17, seed)
        fit(model, pool(public_films(chosen.size_px, n=PUBLIC_FILMS)), chosen, seed)
        save_model(path, model, films="the public archive's")
    return to_vector(load_model(path)[0])


def trained(
    hospitals: list[HospitalData], part: str, epsilon: float, seed: int
) -> tuple[np.ndarray, list[PatientPrivacy]]:
    """(the global vector, how each hospital trained)."""
    chosen = get_profile("cpu", device=profile().device, rounds=STEPS)
    used = []
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.json", DP_DELTA)
        members = []
        for number, data in enumerate(hospitals):
            patients = len(films_of_patients(data.train))
            rng = np.random.default_rng([seed, number, 77])
            batch = round(SAMPLED * patients)
            rate = batch / patients
            noise = calibrate(epsilon=epsilon, sampling_rate=rate, rounds=STEPS, dp_delta=DP_DELTA)
            used.append(PatientPrivacy(CLIP_NORM, noise, patients, batch, 1, RATES[part], part, rng=rng))
            members.append(Hospital(data, chosen, privacy=(used[-1], ledger)))
        strategy = Strategy(server=FedAvgM(0.0))
        done = run_rounds(members, chosen, seed, strategy=strategy, start=public_model(seed))
    return done.vector, used


def measure(arm: str, seed: int) -> list[dict]:
    """The row of one arm."""
    torch.set_num_threads(1)
    part, films, epsilon = arms()[arm]
    chosen = profile()
    hospitals = training_hospitals(chosen.size_px, n_train=films or 1, n_test=TEST_FILMS)
    first = public_model(seed)
    vector, used = (first, []) if part == "none" else trained(hospitals, part, epsilon, seed)
    control, found = (predictions(v, hospitals, chosen) for v in (first, vector))
    scores = evaluate(found, hospitals)
    tests = pool([h.test for h in hospitals])
    gain = paired_difference(*(np.concatenate([p[h.name] for h in hospitals]) for p in (control, found)), tests)
    settings, gains = [""] * 5, [""] * 3
    if used:  # the three hospitals train alike
        one = used[0]
        settings = [one.patients, round(one.noise_multiplier, 4), round(one.sampling_rate, 4), STEPS, RATES[part]]
        gains = [round(value, 4) for value in (gain["mre_px"], *gain["interval_95"])]
    errors = [scores["per_hospital"][h.name]["mre_px"] for h in hospitals]
    figures = [scores["pck_0_05"], scores["mre_px"], *errors]
    row = [arm, seed, part, films, settings[0], f"{epsilon:g}", *settings[1:], *(round(v, 4) for v in figures), *gains]
    return [dict(zip(COLUMNS, [*row, sha256(vector)[:16], GENERATOR_VERSION], strict=True))]


def predictions(vector: np.ndarray, hospitals: list[HospitalData], chosen: Profile) -> dict[str, np.ndarray]:
    """On the test films of each hospital."""
    model = build_for(chosen, len(hospitals[0].joints))
    load_vector(model, vector)
    return {h.name: predict(model, h.test.images, chosen) for h in hospitals}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for seed in seeds():
        public_model(seed)  # before the processes start, which would each train it
    fill("privacy.csv", COLUMNS, [(arm, seed) for arm in arms() for seed in seeds()], measure)
