"""The invertible frame of a film: where each pixel of the square array came from, and how many millimetres it spans.

Coordinates are x, y in pixel **index** units (the centre of a pixel is a whole number) of the array they travel with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPACING_KINDS = ("calibrated", "object", "detector", "unknown")


@dataclass(frozen=True, slots=True)
class Spacing:
    """Pixel pitch of a film in mm (row: centre to centre of adjacent rows, DICOM PS3.3 10.7.1.1) and what it refers to.

    kind: calibrated (PixelSpacingCalibrationType says how), object (corrected by the magnification factor),
    detector (at the detector, larger than the bone by the magnification), unknown (row_mm and col_mm are NaN).
    """

    row_mm: float
    col_mm: float
    kind: str


UNKNOWN_SPACING = Spacing(float("nan"), float("nan"), "unknown")


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps a film of (rows, cols) pixels to a (size_px, size_px) array: scaled with its aspect kept, then padded.

    pixel_aspect: height of a film's pixel over its width. The array's pixels are square, so that a bone keeps its form.
    """

    rows: int
    cols: int
    size_px: int
    spacing: Spacing = UNKNOWN_SPACING
    pixel_aspect: float = 1.0

    @property
    def inner(self) -> tuple[int, int]:
        """(rows, cols) of the film inside the array."""
        sides = (self.rows * self.pixel_aspect, self.cols)
        return tuple(max(1, round(side * self.size_px / max(sides))) for side in sides)

    @property
    def offset(self) -> tuple[int, int]:
        """(top, left) padding in pixels of the array."""
        rows, cols = self.inner
        return (self.size_px - rows) // 2, (self.size_px - cols) // 2

    def _scale_shift(self) -> tuple[np.ndarray, np.ndarray]:
        (rows, cols), (top, left) = self.inner, self.offset
        scale = np.array([cols / self.cols, rows / self.rows])
        # cv2.resize aligns pixel corners: centre x of the film lands at (x + 0.5) * scale - 0.5
        return scale, 0.5 * scale - 0.5 + np.array([left, top])

    def to_array(self, film_xy: np.ndarray) -> np.ndarray:
        """Film pixels (..., 2) to array pixels (..., 2)."""
        scale, shift = self._scale_shift()
        return np.asarray(film_xy, dtype=np.float64) * scale + shift

    def to_film(self, array_xy: np.ndarray) -> np.ndarray:
        """Array pixels (..., 2) back to film pixels (..., 2)."""
        scale, shift = self._scale_shift()
        return (np.asarray(array_xy, dtype=np.float64) - shift) / scale

    def array_spacing_mm(self) -> np.ndarray:
        """(x, y) millimetres per pixel of the array; NaN where the film's spacing is unknown."""
        scale, _ = self._scale_shift()
        return np.array([self.spacing.col_mm, self.spacing.row_mm]) / scale
