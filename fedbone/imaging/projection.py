"""How a point source throws the patient onto a flat detector, and where a point of the patient lies on the film.

Beam frame, metres: x to the right of the film, y away from the source along the central ray, z up. In an AP film the
patient faces the source, so x is the patient's left. Source: central projection, as in any C-arm or bucky geometry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Projection:
    """A source and a film of rows x cols pixels; lengths in metres.

    source (3,): focal spot; detector_m: from it to the detector; plane_m: from it to the plane of the joints, where
    ``magnification`` holds; left, top: x and z of the film's corner on the detector; pitch (2,): x and z per pixel.
    """

    source: np.ndarray
    detector_m: float
    plane_m: float
    left: float
    top: float
    pitch: np.ndarray
    rows: int
    cols: int

    @property
    def magnification(self) -> float:
        """Size on the detector over size in the plane of the joints."""
        return self.detector_m / self.plane_m

    def resized(self, rows: int, cols: int) -> Projection:
        """The same film with other pixels."""
        pitch = self.pitch * [self.cols / cols, self.rows / rows]
        return replace(self, pitch=pitch, rows=rows, cols=cols)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) to x, y in pixel index coordinates (..., 2)."""
        ray = points - self.source
        k = self.detector_m / ray[..., 1]
        across = self.source[0] + ray[..., 0] * k - self.left
        down = self.top - self.source[2] - ray[..., 2] * k
        return np.stack([across, down], axis=-1) / self.pitch - 0.5

    def shows(self, points: np.ndarray, more_m: float) -> bool:
        """Whether the shadow of the box around ``points`` (P, 3), ``more_m`` larger on all sides, meets the film."""
        xy = self.to_pixels(points)
        more = more_m * self.magnification / self.pitch
        sides = np.array([self.cols, self.rows])
        return bool((xy.max(axis=0) > -more).all() and (xy.min(axis=0) < sides + more).all())

    def on_plane(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shadows of points (P, 3) on the plane of the joints: x, z (P, 2), and how much larger things look there."""
        ray = points - self.source
        k = self.plane_m / ray[:, 1]
        return self.source[[0, 2]] + ray[:, [0, 2]] * k[:, None], k

    def plane_grid(self, cols: int) -> tuple[np.ndarray, np.ndarray]:
        """x (1, cols) and z (rows, 1) of a coarse grid over the film, on the plane of the joints."""
        rows = max(round(cols * self.rows * self.pitch[1] / (self.cols * self.pitch[0])), 1)
        x = self.left + (np.arange(cols) + 0.5) * self.cols / cols * self.pitch[0]
        z = self.top - (np.arange(rows) + 0.5) * self.rows / rows * self.pitch[1]
        shrink = 1 / self.magnification
        x, z = (self.source[axis] + (v - self.source[axis]) * shrink for axis, v in ((0, x), (2, z)))
        return x.astype(np.float32)[None, :], z.astype(np.float32)[:, None]
