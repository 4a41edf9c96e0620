"""Average precision by object keypoint similarity (OKS), for films that carry one detection each.

https://cocodataset.org/#keypoints-eval: joint i is forgiven within k_i = 2 sigma_i of the root of the object's area.
The area of a film is here the square of its reference length (``fedbone.model.metrics``); COCO takes the outlined area
of a person, which is smaller than that square. Compare these figures with each other, not with COCO's tables.
"""

from __future__ import annotations

import numpy as np

from fedbone.imaging.coco import COCO_JOINTS

FEWEST_JOINTS = 4  # films with fewer labelled joints take no part: one joint would decide alone
FLAT_SIGMA = 0.025  # COCO's sigma of the eyes, for every joint: what a landmark on bone should be held to
THRESHOLDS = np.linspace(0.50, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
_SIGMAS = (0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
           0.089, 0.089)  # fmt: skip
COCO_SIGMAS = dict(zip(COCO_JOINTS, _SIGMAS, strict=True))  # how far people who label photographs disagree


def coco_sigmas(joints: tuple[str, ...]) -> np.ndarray | None:
    """(K,) sigmas by name of joint; None where COCO has none for one of them."""
    return np.array([COCO_SIGMAS[joint] for joint in joints]) if COCO_SIGMAS.keys() >= set(joints) else None


def similarity(share: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """(N,) OKS in [0, 1] of films with errors ``share`` (N, K) of the reference length, NaN where not labelled.

    NaN for films with fewer than FEWEST_JOINTS labelled joints.
    """
    labelled = np.isfinite(share)
    likeness = np.exp(-(np.where(labelled, share, 0.0) ** 2) / (2 * (2 * sigmas) ** 2))
    counts = labelled.sum(axis=1)
    enough = counts >= FEWEST_JOINTS
    return np.divide((likeness * labelled).sum(axis=1), counts, out=np.full(len(share), np.nan), where=enough)


def average_precision(oks: np.ndarray, scores: np.ndarray) -> float | None:
    """AP of films with ``oks`` (N,), NaN = takes no part, ranked by ``scores`` (N,): mean over THRESHOLDS.

    101-point interpolation; equal scores keep the order of the films. None without films or without scores.
    """
    oks, scores = oks[np.isfinite(oks)], scores[np.isfinite(oks)]
    if not len(oks) or not np.isfinite(scores).all():
        return None
    hits = oks[np.argsort(-scores, kind="stable")] >= THRESHOLDS[:, None]
    found, rank = hits.cumsum(axis=1), np.arange(1, len(oks) + 1)
    precision = np.maximum.accumulate((found / rank)[:, ::-1], axis=1)[:, ::-1]
    precision = np.pad(precision, ((0, 0), (0, 1)))  # a recall that is never reached has precision 0
    first = [np.searchsorted(row / len(oks), RECALLS) for row in found]  # the shortest list with that recall
    return float(np.take_along_axis(precision, np.array(first), axis=1).mean())
