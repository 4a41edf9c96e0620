"""A scoliotic spine as a smooth sideways curve: where it displaces and tilts a bone of the trunk.

Vertebrae are displaced, not jointed: the model's lumbar joints allow a few degrees and its thorax is one rigid body.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SpineCurve:
    """Sum of cosine-squared bumps along the spine.

    bumps: (centre, half length, Cobb angle of this bump alone in degrees, positive to the patient's left), both lengths
    as fractions of the way from L5 (0) to T1 (1). ``low_m`` and ``length_m`` are filled in by ``on`` for the patient at
    hand.
    twist: radians of axial rotation per metre of displacement (the vertebral bodies turn to the convex side).
    """

    bumps: tuple[tuple[float, float, float], ...] = ()
    twist: float = 0.0
    low_m: float = 0.0
    length_m: float = 1.0

    def on(self, vertebrae: np.ndarray) -> SpineCurve:
        """This curve laid along vertebra centres (N, 3) in metres, T1 first and L5 last."""
        low, high = vertebrae[-1, 2], vertebrae[0, 2]
        return replace(self, low_m=float(low), length_m=float(high - low))

    def shift_slope(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sideways shift in metres and its derivative along z at heights z (metres)."""
        z = np.asarray(z)
        shift, slope = np.zeros_like(z), np.zeros_like(z)
        for centre, half, cobb in self.bumps:
            half_m = half * self.length_m
            # steepest slope of height*cos^2(pi u/2) is pi*height/(2 half): it tilts by half the Cobb angle
            height = 2 * half_m * np.tan(np.radians(cobb) / 2) / np.pi
            phase = np.clip((z - self.low_m - centre * self.length_m) / half_m, -1, 1) * (np.pi / 2)
            shift = shift + height * np.cos(phase) ** 2
            slope = slope - height * np.sin(2 * phase) * (np.pi / 2 / half_m)
        return shift, slope

    def tilt(self, z: float) -> float:
        """Frontal tilt in radians at height z (metres)."""
        return float(np.arctan(self.shift_slope(z)[1]))

    def rigid(self, centre: np.ndarray, twist: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (3, 3) about ``centre`` (3,) and shift (3,) that a rigid bone at that point takes, metres."""
        shift, slope = self.shift_slope(centre[2])
        angle = np.arctan(slope)
        cos, sin = np.cos(angle), np.sin(angle)
        rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        if twist:
            turn = self.twist * float(shift)
            c, s = np.cos(turn), np.sin(turn)
            rotation = rotation @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        return rotation, np.array([float(shift), 0.0, 0.0])

    def bend(self, points: np.ndarray) -> np.ndarray:
        """Points (P, 3) of the rib cage, sheared sideways with the spine (metres)."""
        if not self.bumps:
            return points
        bent = points.copy()
        bent[:, 0] += self.shift_slope(points[:, 2])[0].astype(points.dtype)
        return bent


STRAIGHT = SpineCurve()
