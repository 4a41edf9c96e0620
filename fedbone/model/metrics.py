"""How far predictions are from the labels: PCK, mean radial error, and their uncertainty over patients.

PCK: Yang and Ramanan, TPAMI 2013. The reference length of a film is the longer side of the box of its labelled
joints, but at least 3/8 of the film's longer side: with one or two joints the box alone collapses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedbone.imaging.dataset import FILM_SHARE, FilmSet

RESAMPLES = 1000


def reference_px(keypoints: np.ndarray, size_px: int) -> np.ndarray:
    """(N,) reference length in array pixels of films with ``keypoints`` (N, K, 3); size_px is their longer side."""
    labelled = keypoints[..., 2:] > 0
    low = np.where(labelled, keypoints[..., :2], np.inf).min(axis=1)
    high = np.where(labelled, keypoints[..., :2], -np.inf).max(axis=1)
    return np.maximum((high - low).max(axis=1), FILM_SHARE * size_px)


@dataclass(frozen=True)
class Errors:
    """Radial errors of N films: px, mm and share = px / reference (N, K); NaN without a label (mm: without spacing)."""

    px: np.ndarray
    mm: np.ndarray
    share: np.ndarray
    patients: tuple[str, ...]


def radial_errors(predicted: np.ndarray, films: FilmSet, labels: np.ndarray | None = None) -> Errors:
    """Errors of ``predicted`` (N, K, 2) array pixels against ``labels`` (default: the hospital's own).

    The reference length always comes from the hospital's own labels, so that a film has one yardstick.
    """
    labels = films.keypoints if labels is None else labels
    off = np.where(labels[..., 2:] > 0, predicted - labels[..., :2], np.nan).astype(np.float64)
    px = np.hypot(off[..., 0], off[..., 1])
    scaled = off * films.spacing_mm[:, None, :]
    share = px / reference_px(films.keypoints, films.images.shape[-1])[:, None]
    return Errors(px, np.hypot(scaled[..., 0], scaled[..., 1]), share, films.patients)


def join(parts: list[Errors]) -> Errors:
    """The errors of several hospitals as one table; equal pseudonyms of different hospitals stay different patients."""
    patients = tuple(f"{i}/{p}" for i, part in enumerate(parts) for p in part.patients)
    return Errors(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("px", "mm", "share")), patients
    )


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


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


def bootstrap(
    patients: Sequence[str], table: np.ndarray, average: Callable[[np.ndarray, np.ndarray], np.ndarray], seed: int = 0
) -> list[float] | None:
    """95 % percentile interval of ``average`` of ``table`` (N, K), NaN = no label, over resampled patients.

    ``average`` is ``macro`` or ``over_cells``. None without labels or with one patient. Efron, Ann. Stat. 1979.
    """
    known = np.isfinite(table)
    if not known.any():
        return None
    names, film_patient = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    weights = draws[:, film_patient].astype(np.float64)  # (R, N): how often each film is drawn
    values = average(weights @ np.where(known, table, 0.0), weights @ known)
    return [float(v) for v in np.nanpercentile(values, [2.5, 97.5])]


def summarise(errors: Errors, joints: tuple[str, ...], seed: int = 0) -> dict:
    """PCK at 0.05 and 0.02 (macro over joints), its micro figure, errors in px and mm, intervals, and per joint."""
    found = np.where(np.isfinite(errors.share), errors.share <= 0.05, np.nan)
    hits, counts = pck(errors.share, 0.05)
    per_joint = {
        joint: {"pck_0_05": float(hits[k] / counts[k]), "mre_px": _mean(errors.px[:, k]), "n": int(counts[k])}
        for k, joint in enumerate(joints)
        if counts[k]
    }
    return {
        "pck_0_05": float(macro(hits, counts)),
        "pck_0_05_micro": float(hits.sum() / counts.sum()),
        "pck_0_02": float(macro(*pck(errors.share, 0.02))),
        "mre_px": _mean(errors.px),
        "mre_mm": _mean(errors.mm),
        "interval_95": {
            "pck_0_05": bootstrap(errors.patients, found, macro, seed),
            "mre_px": bootstrap(errors.patients, errors.px, over_cells, seed),
            "mre_mm": bootstrap(errors.patients, errors.mm, over_cells, seed),
        },
        "per_joint": per_joint,
    }
