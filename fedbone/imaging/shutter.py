"""Display shutter: the parts of a film that its maker wants hidden (PS3.3 C.7.6.11)."""

from __future__ import annotations

import cv2
import numpy as np
from pydicom.dataset import Dataset

from fedbone.imaging.spacing import number, numbers


def visible(dataset: Dataset, rows: int, cols: int, pixel_aspect: float) -> np.ndarray | None:
    """(rows, cols) bool: inside every shutter shape; None without one, or where nothing of the film would be left.

    Edges, centres and vertices are row or column numbers that start at 1; pixels on an edge are shown.
    """
    shapes = dataset.get("ShutterShape") or ()
    shapes = [shapes] if isinstance(shapes, str) else list(shapes)
    shown = np.ones((rows, cols), bool)
    for shape in shapes:
        if shape in _SHAPES:
            shown &= _SHAPES[shape](dataset, *np.ogrid[1 : rows + 1, 1 : cols + 1], pixel_aspect)
    return None if shown.all() or not shown.any() else shown


def _rectangle(dataset: Dataset, row: np.ndarray, col: np.ndarray, pixel_aspect: float) -> np.ndarray:
    names = ("LeftVerticalEdge", "RightVerticalEdge", "UpperHorizontalEdge", "LowerHorizontalEdge")
    left, right, upper, lower = (number(dataset, f"Shutter{name}") for name in names)
    if None in (left, right, upper, lower):
        return np.True_
    return (col >= left) & (col <= right) & (row >= upper) & (row <= lower)


def _circle(dataset: Dataset, row: np.ndarray, col: np.ndarray, pixel_aspect: float) -> np.ndarray:
    centre, radius = numbers(dataset, "CenterOfCircularShutter"), number(dataset, "RadiusOfCircularShutter")
    if len(centre) != 2 or not radius:
        return np.True_
    # the radius counts pixels along a row, so that on pixels that are not square the circle is an ellipse of pixels
    return ((row - centre[0]) * pixel_aspect) ** 2 + (col - centre[1]) ** 2 <= radius**2


def _polygon(dataset: Dataset, row: np.ndarray, col: np.ndarray, pixel_aspect: float) -> np.ndarray:
    corners = numbers(dataset, "VerticesOfThePolygonalShutter")
    if len(corners) < 6 or len(corners) % 2:
        return np.True_
    inside = np.zeros((row.size, col.size), np.uint8)
    points = np.clip(np.array(corners).reshape(-1, 2)[:, ::-1] - 1, -(2**15), 2**15)
    cv2.fillPoly(inside, [np.rint(points).astype(np.int32)], 1)
    return inside.astype(bool)


_SHAPES = {"RECTANGULAR": _rectangle, "CIRCULAR": _circle, "POLYGONAL": _polygon}
