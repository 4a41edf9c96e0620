"""Soft tissue around a posed skeleton: how many metres of it each ray crosses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np

from fedbone.imaging.skeleton import PosedSkeleton

if TYPE_CHECKING:
    from fedbone.imaging.radiograph import View

# COCO joints at both ends of the left limb, and the limb's radius in metres at its start, one third and end
_LIMBS = (
    (5, 7, (0.058, 0.052, 0.043)),
    (7, 9, (0.043, 0.045, 0.028)),
    (11, 13, (0.094, 0.084, 0.060)),
    (13, 15, (0.058, 0.060, 0.036)),
)
# foot and hand: the bone at the far end, the joint, and three radii
_ENDS = (("l_bofoot", 15, (0.036, 0.042, 0.030)), ("3mc_l", 9, (0.028, 0.034, 0.030)))
# trunk from below the hips (0 = hip joints, 1 = T1): height, half width and depth in metres
_TRUNK = np.array([
    (-0.22, 0.060, 0.00), (-0.16, 0.130, 0.09), (-0.08, 0.162, 0.16), (0.00, 0.170, 0.19), (0.12, 0.172, 0.20),
    (0.28, 0.158, 0.20),
    (0.42, 0.148, 0.19), (0.60, 0.165, 0.20), (0.80, 0.170, 0.19), (0.92, 0.165, 0.16), (1.00, 0.120, 0.13),
    (1.06, 0.068, 0.12), (1.15, 0.060, 0.12), (1.40, 0.058, 0.11), (1.45, 0.055, 0.00),
])  # fmt: skip


def flesh_path_m(posed: PosedSkeleton, view: View, rng: np.random.Generator) -> np.ndarray:
    """(rows, cols) float32 metres of soft tissue along the beam: limbs, trunk without the air of the lungs, head."""
    cols = max(min(view.cols, 160), 1)
    rows = max(round(cols * view.rows / view.cols), 1)
    x = (view.left + (np.arange(cols, dtype=np.float32) + 0.5) * np.float32(view.width / cols))[None, :]
    z = (view.top - (np.arange(rows, dtype=np.float32) + 0.5) * np.float32(view.height / rows))[:, None]
    joints = posed.joints_mm / 1000
    _legs, _arms = posed.patient.scale[4] * posed.patient.flesh, posed.patient.scale[2] * posed.patient.flesh
    path = _trunk(posed, joints, x, z)
    for start, end, radii in _limbs(posed, joints):
        path = np.maximum(path, _limb(start, end, radii, x, z))
    path = np.maximum(path, _head(posed, joints, x, z))
    pixel = view.width / cols
    path = cv2.GaussianBlur(path.astype(np.float32), (0, 0), max(0.005 / pixel, 0.4))
    for size_m, strength in ((0.020, 0.015), (0.006, 0.02)):  # fat, muscle and bowel
        noise = cv2.GaussianBlur(rng.standard_normal((rows, cols), dtype=np.float32), (0, 0), max(size_m / pixel, 0.5))
        path *= 1 + noise * np.float32(strength / max(float(noise.std()), 1e-6))
    return cv2.resize(path, (view.cols, view.rows), interpolation=cv2.INTER_LINEAR)


def _limbs(posed: PosedSkeleton, joints: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Both sides' limbs, feet and hands: start, end (3,) and three radii in metres."""
    grow = {True: posed.patient.scale[4] * posed.patient.flesh, False: posed.patient.scale[2] * posed.patient.flesh}
    for start, end, radii in _LIMBS:
        for side in (0, 1):
            yield joints[start + side], joints[end + side], np.array(radii) * grow[start >= 11]
    names = [bone.name for bone in posed.bones]
    for bone, joint, radii in _ENDS:
        for side, name in enumerate((bone, bone.replace("l_", "r_").replace("_l", "_r"))):
            yield joints[joint + side], posed.place[names.index(name)], np.array(radii) * grow[joint >= 11]


def _limb(start: np.ndarray, end: np.ndarray, radii: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Chord through a round limb between two joints (metres), seen along y."""
    dx, dz = end[0] - start[0], end[2] - start[2]
    along = ((x - start[0]) * dx + (z - start[2]) * dz) / max(dx * dx + dz * dz, 1e-4)
    along = np.clip(along, 0, 1)
    radius = np.interp(along, (0, 1 / 3, 1), radii)
    gap = (x - start[0] - along * dx) ** 2 + (z - start[2] - along * dz) ** 2
    return 2 * np.sqrt(np.maximum(radius * radius - gap, 0))


def _trunk(posed: PosedSkeleton, joints: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    hips, shoulders = joints[11:13].mean(axis=0), posed.vertebrae_mm[0] / 1000
    height = (z - hips[2]) / (shoulders[2] - hips[2])
    size, flesh = posed.patient.scale[0], posed.patient.flesh
    half = np.interp(height, _TRUNK[:, 0], _TRUNK[:, 1]) * size * (0.5 + 0.5 * flesh)
    depth = np.interp(height, _TRUNK[:, 0], _TRUNK[:, 2], left=0, right=0) * size * flesh
    middle = hips[0] + posed.curve.shift_slope(z)[0]
    thick = depth * np.sqrt(np.clip(1 - ((x - middle) / half) ** 2, 0, 1))
    for side in (-1, 1):  # lungs: long ellipses from the apex to the dome of the diaphragm
        lung = 1 - ((x - middle - side * 0.075 * size) / (0.058 * size)) ** 2 - ((height - 0.79) / 0.24) ** 2
        thick = thick - np.where(height > 0.5, 0.11 * size * np.sqrt(np.maximum(lung, 0)), 0)
    return np.maximum(thick, 0)


def _head(posed: PosedSkeleton, joints: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    centre = joints[3:5].mean(axis=0) + (joints[0] - joints[3:5].mean(axis=0)) * 0.1
    size = posed.patient.scale[1]
    oval = 1 - ((x - centre[0]) / (0.078 * size)) ** 2 - ((z - centre[2] - 0.02 * size) / (0.115 * size)) ** 2
    return 0.19 * size * np.sqrt(np.maximum(oval, 0))
