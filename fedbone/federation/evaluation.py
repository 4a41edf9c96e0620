"""What a model can do, for whom: every arm on every hospital's test films, with intervals over patients."""

from __future__ import annotations

import numpy as np

from fedbone.config import Profile
from fedbone.imaging.dataset import FilmSet, HospitalData
from fedbone.model.clinical import agreements
from fedbone.model.hrnet import HRNet
from fedbone.model.metrics import bootstrap, join, macro, over_cells, pck, radial_errors, summarise
from fedbone.model.training import predict

Predictions = dict[str, np.ndarray]  # hospital -> (N, K, 3): x, y in array pixels, confidence


def predict_all(model: HRNet, hospitals: list[HospitalData], profile: Profile) -> Predictions:
    """Predictions on the test films of each hospital."""
    return {h.name: predict(model, h.test.images, profile) for h in hospitals}


def evaluate(predictions: Predictions, hospitals: list[HospitalData]) -> dict:
    """Metrics over all test films of ``hospitals``, each with the labels its hospital gives, and the same per hospital.

    ``pck_0_05_unlabelled``: joints that are visible on a film but that its hospital does not label (null where the
    truth is not known, as on real films, or where there is no such joint). ``readings``: per hospital, how clinical
    readings of the predictions agree with those of its labels.
    """
    joints = hospitals[0].joints
    parts = [radial_errors(predictions[h.name], h.test) for h in hospitals]
    return {
        **summarise(join(parts), joints),
        "pck_0_05_unlabelled": _unlabelled(predictions, hospitals),
        "readings": {h.name: agreements(predictions[h.name], h.test, joints) for h in hospitals},
        "per_hospital": {h.name: summarise(part, joints) for h, part in zip(hospitals, parts, strict=True)},
    }


def _unlabelled(predictions: Predictions, hospitals: list[HospitalData]) -> float | None:
    shares = []
    for h in hospitals:
        if h.test.truth is None:
            return None
        hidden = h.test.truth.copy()
        hidden[:, h.labelled] = 0
        shares.append(radial_errors(predictions[h.name], h.test, hidden).share)
    hits, counts = pck(np.concatenate(shares), 0.05)
    return float(macro(hits, counts)) if counts.any() else None


def film_error_px(predicted: np.ndarray, films: FilmSet) -> np.ndarray:
    """(N,) mean radial error of each film over its labelled joints; NaN for a film without labels."""
    px = radial_errors(predicted, films).px
    counts = np.isfinite(px).sum(1)
    return np.divide(np.nansum(px, axis=1), counts, out=np.full(len(px), np.nan), where=counts > 0)


def paired_difference(first: np.ndarray, second: np.ndarray, films: FilmSet, seed: int = 0) -> dict:
    """Mean of film error(first) - film error(second) in px, with a 95 % interval over patients (None with one).

    Paired by film, so that easy and hard films cancel. Negative: ``first`` is better.
    """
    difference = film_error_px(first, films) - film_error_px(second, films)
    known = np.isfinite(difference)
    patients = np.asarray(films.patients, dtype=object)[known]
    interval = bootstrap(patients, difference[known, None], over_cells, seed)
    return {"mre_px": float(difference[known].mean()), "interval_95": interval}


def worst_joint(metrics: dict) -> tuple[str, float]:
    """(joint, PCK@0.05) of the joint that the model finds worst."""
    name, row = next(iter(metrics["per_joint"].items()))  # ``summarise`` puts it first
    return name, row["pck_0_05"]
