"""Two readings of the same films: exchanged sides, and how far apart one joint lies in them (the human floor).

The second reader's labels lie beside the first's, in the same format, as second_reader.json.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from fedbone.imaging.coco import Record, read_annotations
from fedbone.imaging.dataset import FILM_SHARE
from fedbone.imaging.frame import UNKNOWN_SPACING, Spacing
from fedbone.imaging.spacing import read_spacing

SECOND_READER = "second_reader.json"
SUPERIMPOSED = 0.2  # of the reference length: nearer than that, left and right lie on each other as in a lateral view
Points = dict[str, np.ndarray]  # the labelled joints by name: (2,) x, y in film pixels


def labelled(joints: tuple[str, ...], keypoints: np.ndarray) -> Points:
    """The labelled joints among ``keypoints`` (K, 3) by name."""
    return {joint: row[:2].astype(np.float64) for joint, row in zip(joints, keypoints, strict=True) if row[2] > 0}


def side_pairs(points: Points) -> list[tuple[str, str]]:
    """(left_x, right_x) for every x of which both sides are labelled."""
    twins = [(name, "right_" + name.removeprefix("left_")) for name in points if name.startswith("left_")]
    return [(left, right) for left, right in twins if right in points]


def reference_px(points: Points, rows: int, cols: int) -> float:
    """The film's yardstick in pixels: longer side of the box of its joints, at least 3/8 of its longer side."""
    return max(float(np.ptp(list(points.values()), axis=0).max()), FILM_SHARE * max(rows, cols))


def exchange_sides(points: Points) -> Points:
    """The same labels with the names of every labelled left-right pair exchanged."""
    other = {name: twin for pair in side_pairs(points) for name, twin in (pair, pair[::-1])}
    return {other.get(name, name): xy for name, xy in points.items()}


def distances_px(first: Points, second: Points) -> np.ndarray:
    """Distances in film pixels between the joints that both readings label, in the order of ``first``."""
    return np.array([np.hypot(*(second[name] - first[name])) for name in first if name in second])


def swapped(first: Points, second: Points, reference: float) -> bool:
    """Whether left and right in ``second`` are exchanged against ``first``.

    They are where the exchange brings the pairs nearer by more than SUPERIMPOSED of ``reference`` on average, which
    the scatter of readers cannot do where left and right lie on each other.
    """
    pairs = {name for pair in side_pairs(first) if set(pair) <= second.keys() for name in pair}
    if not pairs:
        return False
    mine, theirs = ({name: points[name] for name in pairs} for points in (first, second))
    gain = distances_px(mine, theirs) - distances_px(mine, exchange_sides(theirs))
    return float(gain.mean()) > SUPERIMPOSED * reference


def facing_of(dataset: Dataset) -> int:
    """+1: columns run to the patient's left, as on AP films; -1: to the right, mirrored; 0: seen from the side.

    From PatientOrientation (PS3.3 C.7.6.1.1.1), else from ViewPosition (C.8.11.5).
    """
    columns = str((dataset.get("PatientOrientation") or [""])[0])[:1]
    frontal = columns in ("L", "R") or str(dataset.get("ViewPosition") or "AP") in ("AP", "PA")
    return (-1 if columns == "R" else 1) if frontal and columns not in ("A", "P") else 0


def side(points: Points, facing: int, reference: float) -> int:
    """+1: left joints lie to the patient's left, -1: to the right, 0: seen from the side, or on each other.

    By the sum over the pairs that do not lie on each other; facing: see ``facing_of``.
    """
    return int(np.sign(sum(_lead(points, pair, facing, reference) for pair in side_pairs(points))))


def odd_pairs(points: Points, facing: int, reference: float) -> list[tuple[str, str]]:
    """Pairs that lie the other way round than the film's pairs together."""
    whole = side(points, facing, reference)
    return [pair for pair in side_pairs(points) if whole * _lead(points, pair, facing, reference) < 0]


def _lead(points: Points, pair: tuple[str, str], facing: int, reference: float) -> float:
    """How far the left joint lies to the patient's left of the right one, 0 where they lie on each other."""
    lead = facing * float(points[pair[0]][0] - points[pair[1]][0])
    return lead if abs(lead) > SUPERIMPOSED * reference else 0.0


@dataclass(frozen=True)
class Spread:
    """Second reading minus first at one joint, in px or mm, over ``films`` films.

    mean, sd: of the distance between the readings. offset, low, high: (x, y) of the mean difference and of the 95 %
    limits of agreement around it; an offset is systematic, x to the right and y down. NaN where films are too few.
    """

    films: int
    mean: float
    sd: float
    offset: tuple[float, float]
    low: tuple[float, float]
    high: tuple[float, float]


def reader_spread(place: Path, labels: str = "annotations.json") -> dict[tuple[str, str], Spread]:
    """Spread by (joint, unit), unit px or mm, between ``labels`` and second_reader.json of one hospital's folder.

    Films on which the readers swap left and right are left out: a swap is a blunder, not scatter. Millimetres come
    from films whose pixel spacing is known. Raises UserError where one of the two files cannot be read.
    Limits: mean ± 1.96 SD of the differences (Bland and Altman, Lancet 1986).
    """
    place = Path(place)
    first, second = (read_annotations(place / name) for name in (labels, SECOND_READER))
    others = {record.file_name: labelled(second.joints, record.keypoints) for record in second.records}
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for record in first.records:
        mine, theirs = labelled(first.joints, record.keypoints), others.get(record.file_name, {})
        rows, cols, spacing = _size(place, record)
        if swapped(mine, theirs, reference_px(mine, rows, cols)):
            continue
        for joint in (name for name in mine if name in theirs):
            difference = theirs[joint] - mine[joint]
            found.setdefault((joint, "px"), []).append(difference)
            if spacing.kind != "unknown":
                found.setdefault((joint, "mm"), []).append(difference * (spacing.col_mm, spacing.row_mm))
    return {key: spread(np.array(differences)) for key, differences in found.items()}


def spread(differences: np.ndarray) -> Spread:
    """The spread of ``differences`` (N, 2) = x, y; standard deviations have N - 1 in the denominator."""
    distances, offset = np.hypot(*differences.T), differences.mean(axis=0)
    few = len(differences) < 2
    sd = float("nan") if few else float(distances.std(ddof=1))
    half = np.full(2, np.nan) if few else 1.96 * differences.std(axis=0, ddof=1)
    low, high = (tuple(float(value) for value in limit) for limit in (offset - half, offset + half))
    return Spread(len(differences), float(distances.mean()), sd, (float(offset[0]), float(offset[1])), low, high)


def _size(place: Path, record: Record) -> tuple[int, int, Spacing]:
    """Rows, columns and spacing from the film's header; the label file's size and no spacing where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(place / record.file_name, stop_before_pixels=True, force=True)
            return int(header.Rows), int(header.Columns), read_spacing(header)
    except Exception:  # a damaged file can fail in any way; quality.report names it
        return record.height or 0, record.width or 0, UNKNOWN_SPACING
