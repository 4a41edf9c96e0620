"""Films with their errors: the labels beside what was found, in one picture. Coordinates are pixels of the array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fedbone.model.overlay import FONT, Mark, draw

TILE_PX = 224  # side of one film in the picture: below overlay's NAMED_FROM_PX, so that no name hides the film
STRIP_PX = 34  # above each pair, for its two lines
GAP_PX = 8
KEY = "left: labels (rings), right: found (hollow: unsure), a line to the label; orange: left, blue: right joint"
WHITE, LINE = (255, 255, 255), (200, 255, 200)


@dataclass(frozen=True)
class Case:
    """One film: image (S, S) uint8; labelled and predicted (K, 3), the last column visibility and confidence.

    threshold: the confidence from which a joint is sure; title: one line.
    """

    image: np.ndarray
    labelled: np.ndarray
    predicted: np.ndarray
    joints: Sequence[str]
    threshold: float
    title: str


def gallery(cases: Sequence[Case], columns: int = 2) -> np.ndarray:
    """All ``cases`` in rows of ``columns``, and a line that says how to read them: (H, W, 3) uint8 BGR."""
    pairs = [_pair(case) for case in cases]
    blank = np.zeros_like(pairs[0])
    pairs += [blank] * (-len(pairs) % columns)
    rows = [np.hstack(pairs[at : at + columns]) for at in range(0, len(pairs), columns)]
    key = np.zeros((STRIP_PX // 2 + GAP_PX, rows[0].shape[1], 3), np.uint8)
    _write(key, KEY, 15)
    return np.vstack([*rows, key])


def _pair(case: Case) -> np.ndarray:
    """Strip with two lines, below it the film with its labels and the film with what was found."""
    scale = TILE_PX / case.image.shape[0]
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    film = cv2.resize(case.image, (TILE_PX, TILE_PX), interpolation=way)
    seen = case.labelled[:, 2] > 0
    names = [name for name, labelled in zip(case.joints, seen, strict=True) if labelled]
    labels, found = ((points[seen, :2] + 0.5) * scale - 0.5 for points in (case.labelled, case.predicted))
    sure = case.predicted[seen, 2] >= case.threshold
    left = draw(film, _marks(names, labels, np.zeros(len(names), bool)), case.threshold)
    right = draw(film, _marks(names, found, sure), case.threshold)
    for start, end in zip(found.tolist(), labels.tolist(), strict=True):
        cv2.line(right, *(tuple(round(v) for v in point) for point in (start, end)), LINE, 1, cv2.LINE_AA)
    strip = np.zeros((STRIP_PX, 2 * TILE_PX, 3), np.uint8)
    _write(strip, case.title, 14)
    _write(strip, _worst(names, case.labelled[seen], case.predicted[seen]), 30)
    pair = np.vstack([strip, np.hstack([left, right])])
    return cv2.copyMakeBorder(pair, GAP_PX, 0, GAP_PX, 0, cv2.BORDER_CONSTANT)


def _marks(names: Sequence[str], places: np.ndarray, sure: np.ndarray) -> list[Mark]:
    return [Mark(name, *xy, s) for name, xy, s in zip(names, places.tolist(), sure.tolist(), strict=True)]


def _worst(names: Sequence[str], labelled: np.ndarray, predicted: np.ndarray) -> str:
    """The joint that is furthest off, in words."""
    px = np.linalg.norm(predicted[:, :2] - labelled[:, :2], axis=1)
    worst = int(px.argmax())
    return f"furthest off: {names[worst]} {px[worst]:.1f} px, confidence {predicted[worst, 2]:.2f}"


def _write(strip: np.ndarray, text: str, base: int) -> None:
    cv2.putText(strip, text, (4, base), FONT, 0.42, WHITE, 1, cv2.LINE_AA)
