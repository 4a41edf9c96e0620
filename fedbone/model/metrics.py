"""How far predictions are from the labels: PCK, radial error, success detection rate, and their uncertainty.

PCK: Yang and Ramanan, TPAMI 2013. The reference length of a film is the longer side of the box of its labelled
joints, but at least 3/8 of the film's longer side: with one or two joints the box alone collapses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedbone.imaging.dataset import FILM_SHARE, FilmSet
from fedbone.model.oks import FLAT_SIGMA, average_precision, coco_sigmas, similarity

RESAMPLES = 1000
DETECTED_MM = (2, 4, 10)  # the success detection rate's limits
Average = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (hits or sums, counts) (..., K) to (...)


def reference_px(keypoints: np.ndarray, size_px: int) -> np.ndarray:
    """(N,) reference length in array pixels of films with ``keypoints`` (N, K, 3); size_px is their longer side."""
    labelled = keypoints[..., 2:] > 0
    low = np.where(labelled, keypoints[..., :2], np.inf).min(axis=1)
    high = np.where(labelled, keypoints[..., :2], -np.inf).max(axis=1)
    return np.maximum((high - low).max(axis=1), FILM_SHARE * size_px)


@dataclass(frozen=True)
class Errors:
    """Errors of N films.

    px, mm and share = px / reference (N, K): radial, NaN without a label (mm: without spacing); patients, kinds: whose
    film, and what its millimetres refer to; scores (N,): mean confidence over the joints, NaN where none was predicted.
    """

    px: np.ndarray
    mm: np.ndarray
    share: np.ndarray
    patients: tuple[str, ...]
    kinds: tuple[str, ...]
    scores: np.ndarray


def radial_errors(predicted: np.ndarray, films: FilmSet, labels: np.ndarray | None = None) -> Errors:
    """Errors of ``predicted`` (N, K, 2 or 3: x, y, confidence) array pixels; ``labels``: default the hospital's own.

    The reference length always comes from the hospital's own labels, so that a film has one yardstick.
    """
    labels = films.keypoints if labels is None else labels
    off = np.where(labels[..., 2:] > 0, predicted[..., :2] - labels[..., :2], np.nan).astype(np.float64)
    px = np.hypot(off[..., 0], off[..., 1])
    scaled = off * films.spacing_mm[:, None, :]
    share = px / reference_px(films.keypoints, films.images.shape[-1])[:, None]
    mm = np.hypot(scaled[..., 0], scaled[..., 1])
    scores = predicted[..., 2].mean(1, dtype=np.float64) if predicted.shape[-1] > 2 else np.full(len(films), np.nan)
    return Errors(px, mm, share, films.patients, films.spacing_kind, scores)


def join(parts: list[Errors]) -> Errors:
    """The errors of several hospitals as one table; equal pseudonyms of different hospitals stay different patients."""
    patients = tuple(f"{i}/{p}" for i, part in enumerate(parts) for p in part.patients)
    kinds = tuple(kind for part in parts for kind in part.kinds)
    px, mm, share, scores = (np.concatenate([getattr(p, n) for p in parts]) for n in ("px", "mm", "share", "scores"))
    return Errors(px, mm, share, patients, kinds, scores)


def macro(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over joints of hits / counts (..., K), leaving out joints without a single label."""
    rate = np.divide(hits, counts, out=np.full(np.shape(hits), np.nan), where=counts > 0)
    with np.errstate(invalid="ignore"):
        return np.nansum(rate, axis=-1) / np.isfinite(rate).sum(axis=-1)


def pck(share: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """(hits, labels) per joint, each (K,): a hit is an error of at most ``fraction`` of the reference length."""
    labelled = np.isfinite(share)
    return ((share <= fraction) & labelled).sum(0), labelled.sum(0)


def over_cells(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over all labelled cells of hits / counts (..., K)."""
    with np.errstate(invalid="ignore"):
        return hits.sum(-1) / counts.sum(-1)


@lru_cache(maxsize=8)
def _draws(patients: int, seed: int) -> np.ndarray:
    """(RESAMPLES, patients): how often each patient is drawn."""
    return np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), RESAMPLES)


def bootstrap(patients: Sequence[str], table: np.ndarray, average: Average, seed: int = 0) -> list[float] | None:
    """95 % percentile interval of ``average`` of ``table`` (N, K), NaN = no label, over resampled patients.

    ``average`` is ``macro`` or ``over_cells``. None without labels or with one patient. Efron, Ann. Stat. 1979.
    """
    known = np.isfinite(table)
    if not known.any():
        return None
    names, film_patient = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    weights = _draws(len(names), seed)[:, film_patient].astype(np.float64)  # (R, N): how often each film is drawn
    values = average(weights @ np.where(known, table, 0.0), weights @ known)
    return [float(v) for v in np.nanpercentile(values, [2.5, 97.5])]


def _within(errors: np.ndarray, limit: float) -> np.ndarray:
    """1 where an error is at most ``limit``, else 0; NaN stays."""
    return np.where(np.isfinite(errors), errors <= limit, np.nan)


def _tables(errors: Errors) -> dict[str, tuple[np.ndarray, Average]]:
    """Each figure's table (N, K) and how it is averaged: PCK over joints, the others over labels."""
    return {
        "pck_0_05": (_within(errors.share, 0.05), macro),
        "pck_0_05_micro": (_within(errors.share, 0.05), over_cells),
        "pck_0_02": (_within(errors.share, 0.02), macro),
        "mre_px": (errors.px, over_cells),
        "mre_mm": (errors.mm, over_cells),
        **{f"sdr_{limit}_mm": (_within(errors.mm, limit), over_cells) for limit in DETECTED_MM},
    }


def _average(table: np.ndarray, average: Average) -> float | None:
    """``average`` of what is known in ``table`` (N, K); None where nothing is."""
    known = np.isfinite(table)
    return float(average(np.where(known, table, 0.0).sum(0), known.sum(0))) if known.any() else None


def summarise(errors: Errors, joints: tuple[str, ...], seed: int = 0) -> dict:
    """PCK at 0.05 (macro over joints, and micro) and 0.02, errors in px and mm, sdr, AP, intervals, and per joint.

    sdr_2_mm: share of labels found within 2 mm; ap_coco and ap_0_025: see ``fedbone.model.oks``; mre_mm_by_kind: apart
    for each kind of spacing, since millimetres at the detector are larger than those of the bone. None where nothing
    is known. The joints come worst first.
    """
    tables = _tables(errors)
    sigmas = {"ap_coco": coco_sigmas(joints), "ap_0_025": np.full(len(joints), FLAT_SIGMA)}
    return {
        **{name: _average(*table) for name, table in tables.items()},
        "mre_mm_by_kind": _by_kind(errors),
        **{
            name: None if sigma is None else average_precision(similarity(errors.share, sigma), errors.scores)
            for name, sigma in sigmas.items()
        },
        "interval_95": {name: bootstrap(errors.patients, *table, seed) for name, table in tables.items()},
        "per_joint": worst_first(_per_joint(tables, joints)),
    }


def _by_kind(errors: Errors) -> dict[str, float]:
    kinds = np.array(errors.kinds)
    means = {str(kind): _average(errors.mm[kinds == kind], over_cells) for kind in np.unique(kinds)}
    return {kind: mean for kind, mean in means.items() if mean is not None}


def _per_joint(tables: dict[str, tuple[np.ndarray, Average]], joints: tuple[str, ...]) -> dict[str, dict]:
    counts = np.isfinite(tables["mre_px"][0]).sum(axis=0)
    columns = {name: table for name, (table, _) in tables.items() if name != "pck_0_05_micro"}  # one joint: the same
    return {
        joint: {**{name: _average(table[:, k], over_cells) for name, table in columns.items()}, "n": int(counts[k])}
        for k, joint in enumerate(joints)
        if counts[k]
    }


def worst_first(rows: dict[str, dict]) -> dict[str, dict]:
    """Joints or hospitals in order of their PCK@0.05, the lowest first; of equal ones the larger error first."""
    return dict(sorted(rows.items(), key=lambda row: (row[1]["pck_0_05"], -row[1]["mre_px"])))
