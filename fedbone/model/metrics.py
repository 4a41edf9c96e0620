"""How far predictions are from the labels: PCK, mean radial error, and their uncertainty over patients.

PCK: Yang and Ramanan, TPAMI 2013. The reference length of a film is the longer side of the box of its labelled
joints, but at least 3/8 of the film's longer side: with one or two joints the box alone collapses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedbone.imaging.dataset import FilmSet

FILM_SHARE = 3 / 8
RESAMPLES = 1000


def reference_px(keypoints: np.ndarray, size_px: int) -> np.ndarray:
    """(N,) reference length in array pixels of films with ``keypoints`` (N, K, 3); size_px is their longer side."""
    labelled = keypoints[..., 2:] > 0
    low = np.where(labelled, keypoints[..., :2], np.inf).min(axis=1)
    high = np.where(labelled, keypoints[..., :2], -np.inf).max(axis=1)
    return np.maximum((high - low).max(axis=1), FILM_SHARE * size_px)


@dataclass(frozen=True)
class Errors:
    """Radial errors of N films: px and mm (N, K), NaN where there is no label (mm: no spacing); share = px / reference."""

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
    return Errors(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("px", "mm", "share")), patients)


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def macro(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over joints of hits / counts (..., K), leaving out joints without a single label."""
    rate = np.divide(hits, counts, out=np.full(np.shape(hits), np.nan), where=counts > 0)
    return np.nanmean(rate, axis=-1)


def pck(share: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """(hits, labels) per joint, each (K,): a hit is an error of at most ``fraction`` of the reference length."""
    labelled = np.isfinite(share)
    return ((share <= fraction) & labelled).sum(0), labelled.sum(0)


def bootstrap(errors: Errors, statistics: dict[str, np.ndarray | None], seed: int = 0) -> dict[str, list[float] | None]:
    """95 % percentile intervals over resampled patients (Efron 1979) of means of the tables in ``statistics``.

    Each table is (N, K) with NaN for "no label" and is averaged over its cells, except ``pck_0_05``, which is macro.
    """
    names, film_patient = np.unique(np.asarray(errors.patients, dtype=object).astype(str), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    weights = draws[:, film_patient].astype(np.float64)  # (R, N): how often each film is drawn
    result: dict[str, list[float] | None] = {}
    for name, table in statistics.items():
        known = np.isfinite(table)
        hits, counts = weights @ np.where(known, table, 0.0), weights @ known
        with np.errstate(invalid="ignore", divide="ignore"):
            values = macro(hits, counts) if name == "pck_0_05" else hits.sum(1) / counts.sum(1)
        values = values[np.isfinite(values)]
        result[name] = [float(v) for v in np.percentile(values, [2.5, 97.5])] if known.any() else None
    return result


def summarise(errors: Errors, joints: tuple[str, ...], seed: int = 0) -> dict:
    """PCK at 0.05 and 0.02 (macro over joints), its micro figure, errors in px and mm, intervals, and per joint."""
    tables = {"pck_0_05": np.where(np.isfinite(errors.share), errors.share <= 0.05, np.nan)}
    tables |= {"mre_px": errors.px, "mre_mm": errors.mm}
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
        "interval_95": bootstrap(errors, tables, seed),
        "per_joint": per_joint,
    }
