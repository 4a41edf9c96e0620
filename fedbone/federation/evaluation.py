"""What a model can do, for whom: every arm on every hospital's test films, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedbone.config import Profile
from fedbone.imaging.dataset import FilmSet, HospitalData
from fedbone.model.clinical import agreements
from fedbone.model.hrnet import HRNet
from fedbone.model.metrics import (
    Errors,
    bootstrap,
    join,
    macro,
    over_cells,
    pck,
    radial_errors,
    summarise,
    worst_first,
)
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


def joint_rows(errors: Errors, joints: Sequence[str], seed: int = 0) -> list[dict]:
    """One row per labelled joint, worst first: joint, n_labels, n_patients, pck_0_05, interval_95, mre_px, mre_mm.

    interval_95: of PCK@0.05 over the patients with a label of this joint, None with one; mre_mm: None without spacing.
    """
    hits = np.where(np.isfinite(errors.share), errors.share <= 0.05, np.nan)
    patients = np.asarray(errors.patients, dtype=object)
    rows = {}
    for k, joint in enumerate(joints):
        known = np.isfinite(errors.px[:, k])
        if known.any():
            mm = errors.mm[known, k]
            rows[joint] = {
                "joint": joint,
                "n_labels": int(known.sum()),
                "n_patients": len(set(patients[known])),
                "pck_0_05": float(hits[known, k].mean()),
                "interval_95": bootstrap(patients[known], hits[known, k : k + 1], over_cells, seed),
                "mre_px": float(errors.px[known, k].mean()),
                "mre_mm": float(np.nanmean(mm)) if np.isfinite(mm).any() else None,
            }
    return list(worst_first(rows).values())


def unseen_miss_share(n_patients: int) -> float:
    """The largest share of patients with a miss that ``n_patients`` patients without one leave possible, at 95 %.

    The bootstrap sees no spread where nothing was missed, and its interval has no width: this is what it hides. About
    3 / n. Hanley and Lippman-Hand, JAMA 1983; 249: 1743 (exact form: Clopper and Pearson, Biometrika 1934).
    """
    return 1 - 0.05 ** (1 / n_patients)


def cross_matrix(predictions: dict[str, Predictions], hospitals: list[HospitalData], seed: int = 0) -> list[dict]:
    """Every model at every hospital: rows trained_at, tested_at, pck_0_05, interval_95 (over patients), mre_px.

    predictions: by model, named after where it was trained. Each hospital's films count with the labels that it gives
    itself, so that a model is also asked for joints that it was never taught.
    """
    rows = []
    for trained_at, found in predictions.items():
        for h in hospitals:
            metrics = summarise(radial_errors(found[h.name], h.test), h.joints, seed)
            row = {"pck_0_05": metrics["pck_0_05"], "interval_95": metrics["interval_95"]["pck_0_05"]}
            rows.append({"trained_at": trained_at, "tested_at": h.name, **row, "mre_px": metrics["mre_px"]})
    return rows


def ensemble(predictions: Sequence[np.ndarray], labelled: Sequence[np.ndarray]) -> np.ndarray:
    """One prediction (N, K, 3) from those of M models: per joint the mean place, weighted by their confidences.

    labelled: (K,) bool per model; only models whose hospital labels a joint count for it, all of them for a joint that
    nobody labels. The confidence is the plain mean over the models that count. Raises ValueError when the numbers of
    models differ. One-shot federated learning: Guha, Talwalkar and Smith, arXiv 1902.11175.
    """
    if not predictions or len(predictions) != len(labelled):
        raise ValueError(f"{len(predictions)} predictions and {len(labelled)} labelled joints, expected one each")
    taught = np.stack(labelled)
    taught = (taught | ~taught.any(axis=0))[:, None]  # (M, 1, K)
    found = np.where(taught[..., None], np.stack(predictions).astype(np.float64), 0.0)
    total = found[..., 2].sum(axis=0)
    weights = np.where(total > 0, found[..., 2] / np.where(total > 0, total, 1.0), taught / taught.sum(axis=0))
    xy = (weights[..., None] * found[..., :2]).sum(axis=0)
    return np.concatenate([xy, (total / taught.sum(axis=0))[..., None]], axis=-1).astype(np.float32)


def fairness(metrics: dict) -> dict[str, dict]:
    """For ``hospital`` and for ``joint``: the worst one, its pck_0_05 and mre_px, and spread, the best PCK minus its.

    The worst group is what agnostic federated learning (Mohri et al., ICML 2019) asks to be good. PCK divides by a
    length of each film: between hospitals with different films a spread is not only the model's.
    """
    return {
        what: _worst_and_spread(metrics[rows]) for what, rows in (("hospital", "per_hospital"), ("joint", "per_joint"))
    }


def _worst_and_spread(rows: dict[str, dict]) -> dict:
    (worst, row), *_ = worst_first(rows).items()
    best = max(other["pck_0_05"] for other in rows.values())
    return {
        "worst": worst,
        "pck_0_05": row["pck_0_05"],
        "mre_px": row["mre_px"],
        "spread": best - row["pck_0_05"],
    }


def telling_films(predictions: Predictions, hospitals: list[HospitalData], worst: int = 6, ordinary: int = 3) -> list:
    """Rows hospital, film (index), mre_px, kind: the ``worst`` films by their mean error, then ``ordinary`` ones.

    The ordinary films stand at equal distances in the ranking of all others, so that nobody chose them.
    """
    rows = (
        {"hospital": h.name, "film": i, "mre_px": float(px)}
        for h in hospitals
        for i, px in enumerate(film_error_px(predictions[h.name], h.test))
        if np.isfinite(px)
    )
    ranked = sorted(rows, key=lambda row: -row["mre_px"])
    others = ranked[worst:]
    places = np.linspace(0, len(others) - 1, ordinary + 2)[1:-1].round().astype(int) if others else []
    return [
        *({**row, "kind": "worst"} for row in ranked[:worst]),
        *({**others[place], "kind": "ordinary"} for place in dict.fromkeys(places)),
    ]
