"""Soft tissue around a posed skeleton: how many metres of it each ray crosses."""

from __future__ import annotations

import cv2
import numpy as np

from fedbone.imaging.projection import Projection
from fedbone.imaging.skeleton import PosedSkeleton

# COCO joints at both ends of the left limb, and the limb's radius in metres at its start, one third and end
_LIMBS = (
    (5, 7, (0.054, 0.046, 0.040)),
    (7, 9, (0.040, 0.042, 0.027)),
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


_GRID_COLS = 160  # flesh is smooth: a coarse grid is enough
_TRUNK_BACK_M = 0.02  # how far the middle of the trunk lies behind the hip joints


def flesh_path_m(posed: PosedSkeleton, projection: Projection, rng: np.random.Generator) -> np.ndarray:
    """(rows, cols) float32 metres of soft tissue along the ray: limbs, trunk without the air of the lungs, head."""
    x, z = projection.plane_grid(min(projection.cols, _GRID_COLS))
    across = float(np.abs(posed.facing[0, 1]))  # 0 in an AP view, 1 in a lateral one
    path = _trunk(posed, projection, x, z)
    sides = [np.zeros_like(path), np.zeros_like(path)]
    for side, starts, ends, radii in _limbs(posed):
        sides[side] = np.maximum(sides[side], _limb(starts, ends, radii, projection, x, z))
    # seen from the side two limbs lie one behind the other; seen from the front, what overlaps is one body
    limbs = np.maximum(*sides) + np.float32(across**2) * np.minimum(*sides)
    path = np.maximum(np.maximum(path, limbs), _head(posed, projection, x, z))
    pixel_m = float(x[0, 1] - x[0, 0])
    path = cv2.GaussianBlur(path.astype(np.float32), (0, 0), max(0.005 / pixel_m, 0.4))
    for size_m, strength in ((0.020, 0.015), (0.006, 0.02)):  # fat, muscle and bowel
        noise = cv2.GaussianBlur(rng.standard_normal(path.shape, dtype=np.float32), (0, 0), max(size_m / pixel_m, 0.5))
        path *= 1 + noise * np.float32(strength / max(float(noise.std()), 1e-6))
    return cv2.resize(path, (projection.cols, projection.rows), interpolation=cv2.INTER_LINEAR)


def _limbs(posed: PosedSkeleton) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Both sides' limbs, feet and hands: side (0 left), start and end (3,), three radii; metres."""
    joints, flesh = posed.joints_mm / 1000, posed.patient.flesh
    leg, arm = posed.patient.scale[4] * flesh, posed.patient.scale[2] * flesh
    found = []
    for start, end, radii in _LIMBS:
        for side in (0, 1):
            grown = np.array(radii) * (leg if start >= 11 else arm)
            found.append((side, joints[start + side], joints[end + side], grown))
    names = [bone.name for bone in posed.bones]
    for bone, joint, radii in _ENDS:
        for side, name in enumerate((bone, bone.replace("l_", "r_").replace("_l", "_r"))):
            end = posed.world(names.index(name), np.zeros((1, 3)))[0]
            found.append((side, joints[joint + side], end, np.array(radii) * (leg if joint >= 11 else arm)))
    return found


def _limb(
    start: np.ndarray, end: np.ndarray, radii: np.ndarray, projection: Projection, x: np.ndarray, z: np.ndarray
) -> np.ndarray:
    """Chord through a round limb whose radius follows ``radii`` at its start, one third and end."""
    (a, b), scale = projection.on_plane(np.stack([start, end]))
    run = b - a
    along = ((x - a[0]) * run[0] + (z - a[1]) * run[1]) / max(float(run @ run), 1e-9)
    at = np.clip(along, 0, 1)
    gap = (x - a[0] - at * run[0]) ** 2 + (z - a[1] - at * run[1]) ** 2
    radius = np.interp(at, [0, 1 / 3, 1], radii) * scale.mean()
    return 2 * np.sqrt(np.maximum(radius * radius - gap, 0)) / scale.mean()


def _ellipse(half_x: np.ndarray, half_y: np.ndarray, facing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half width and largest chord of an ellipse with half axes across and along the patient, turned by ``facing``."""
    half = np.sqrt((half_x * facing[0, 0]) ** 2 + (half_y * facing[0, 1]) ** 2)
    return half, 2 * half_x * half_y / np.maximum(half, 1e-6)


def _trunk(posed: PosedSkeleton, projection: Projection, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    hips, shoulders = posed.joints_mm[11:13].mean(axis=0) / 1000, posed.vertebrae_mm[0] / 1000
    height = (z - hips[2]) / (shoulders[2] - hips[2])
    size, flesh, facing = posed.patient.scale[0], posed.patient.flesh, posed.facing
    wide = np.interp(height, _TRUNK[:, 0], _TRUNK[:, 1]) * size * (0.5 + 0.5 * flesh)
    deep = np.interp(height, _TRUNK[:, 0], _TRUNK[:, 2], left=0, right=0) * size * flesh / 2
    half, chord = _ellipse(wide, deep, facing)
    shift = posed.curve.shift_slope(z)[0]
    middle = hips[0] + shift * facing[0, 0] + _TRUNK_BACK_M * facing[0, 1]
    thick = chord * np.sqrt(np.clip(1 - ((x - middle) / np.maximum(half, 1e-6)) ** 2, 0, 1))
    lung_half, lung_chord = _ellipse(np.float64(0.058 * size), np.float64(0.055 * size), facing)
    for side in (-1, 1):  # lungs: long ellipses from the apex to the dome of the diaphragm
        centre = middle + side * 0.075 * size * facing[0, 0]
        lung = 1 - ((x - centre) / lung_half) ** 2 - ((height - 0.79) / 0.24) ** 2
        thick = thick - np.where(height > 0.5, lung_chord * np.sqrt(np.maximum(lung, 0)), 0)
    return np.maximum(thick, 0).astype(np.float32)


def _head(posed: PosedSkeleton, projection: Projection, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    joints, size = posed.joints_mm[:5] / 1000, posed.patient.scale[1]
    ears = joints[3:5].mean(axis=0)
    (centre,), (scale,) = projection.on_plane((ears + (joints[0] - ears) * 0.1)[None])
    half, chord = (v * size for v in _ellipse(np.float64(0.078), np.float64(0.095), posed.facing))
    oval = 1 - ((x - centre[0]) / (half * scale)) ** 2 - ((z - centre[1] - 0.02 * size) / (0.115 * size * scale)) ** 2
    return (chord * np.sqrt(np.maximum(oval, 0))).astype(np.float32)
