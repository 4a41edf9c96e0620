"""How many metres of cortical and of spongy bone each ray of a point source crosses: splats of bone surface samples.

A solid's path is summed over its surface by the divergence theorem along each ray. Long bones have a cortex of their
own thickness around the marrow; other bones a thin shell, which is long, and bright, where it is seen edge-on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from fedbone.imaging.bones import GROUPS, RIBS
from fedbone.imaging.meshes import Samples, sample_surface, sphere_samples
from fedbone.imaging.projection import Projection
from fedbone.imaging.skeleton import PosedSkeleton, load_skeleton

_SHELL_M = 0.0011  # cortex of bones that are not long
_SPACING = 1.25  # of a pixel, largest side of a sample's triangle: above 1.6, also on a large near bone, dots show
_SKULL_SHELL = 1.7  # the vault is thicker than that but hollow: no solid path for skull and jaw


@lru_cache(maxsize=2048)
def _samples(bone: int, marrow: bool, spacing_m: float) -> Samples:
    chosen = load_skeleton().bones[bone]
    return sample_surface(chosen.marrow if marrow else chosen.vertices, chosen.faces, spacing_m)


def bone_paths(posed: PosedSkeleton, projection: Projection) -> tuple[np.ndarray, np.ndarray]:
    """(cortical, spongy), each (rows, cols) float32 in metres along the ray to each pixel."""
    finest = projection.pitch.min() / projection.magnification * _SPACING
    spacing_m = 2.0 ** (np.floor(np.log2(finest) * 2) / 2)  # few steps, so that the cache serves
    where: list[np.ndarray] = []
    cortical: list[np.ndarray] = []
    spongy: list[np.ndarray] = []
    bends = 0.05 if posed.curve.bumps else 0.0  # the middle of the rib cage shifts more than its corners
    for index, bone in enumerate(posed.bones):
        if not projection.shows(posed.world(index, bone.corners), bends):
            continue
        xy, solid, area = _shadow(posed, index, _samples(index, False, spacing_m), projection)
        where.append(xy)
        if bone.marrow is not None:
            xy, inner, _ = _shadow(posed, index, _samples(index, True, spacing_m), projection)
            where.append(xy)
            cortical += [solid, -inner]
            spongy += [np.zeros_like(solid), inner]
        else:
            hollow = GROUPS[bone.group] == "head"
            cortical.append(area * np.float32(_SHELL_M * (_SKULL_SHELL if hollow else 1)))
            spongy.append(np.zeros_like(solid) if hollow else solid)
    maps = splat(np.concatenate(where, axis=1), [np.concatenate(cortical), np.concatenate(spongy)], projection)
    return tuple(np.maximum(cv2.GaussianBlur(m, (0, 0), 0.6), 0) for m in maps)


def ball_path(centres: np.ndarray, radius_m: float, projection: Projection) -> np.ndarray:
    """(rows, cols) float32 metres through balls at ``centres`` (B, 3): the same sum as for bones."""
    sphere, forward = sphere_samples(radius_m), np.array([0.0, 1.0, 0.0])
    parts = [ray_weights(sphere, Place(np.eye(3), at, 1.0), forward, at, projection) for at in centres]
    return splat(np.concatenate([p[0] for p in parts], axis=1), [np.concatenate([p[1] for p in parts])], projection)[0]


@dataclass(frozen=True)
class Place:
    """Where a solid stands in the beam: turn (3, 3) and origin (3,) take its own frame, times size, to the beam's."""

    turn: np.ndarray
    origin: np.ndarray
    size: float


def _shadow(
    posed: PosedSkeleton, index: int, samples: Samples, projection: Projection
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    turn, origin, size = posed.facing @ posed.turn[index], posed.facing @ posed.place[index], posed.size[index]
    if posed.bones[index].follows == RIBS and posed.curve.bumps:
        bent = (posed.world(index, samples.point.T) - origin) @ turn / size
        samples = replace(samples, point=np.ascontiguousarray(bent.T, dtype=np.float32))
    middle, axis = posed.bones[index].axis
    middle, axis = origin + turn @ (middle * size), turn @ axis
    central = (middle - projection.source) / np.linalg.norm(middle - projection.source)
    along = float(central @ axis)
    plane = central - along * axis if abs(along) < 0.8 else central  # through the bone's long axis, facing the source
    return ray_weights(samples, Place(turn, origin, float(size)), plane, middle, projection)


def ray_weights(
    samples: Samples, place: Place, plane: np.ndarray, on_plane: np.ndarray, projection: Projection
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixel (2, P), metres of solid per pixel (P,) and surface per pixel area (P,) of a solid's samples.

    Depth along a ray counts from the plane with normal ``plane`` (3,) through ``on_plane`` (3,): any plane gives the
    same sum, one inside the bone the least sampling noise. A pixel's ray at distance r with angle t to the central ray
    has a cross-section of pixel area x (depth / detector_m)^2 x cos t, so sums over surface are divided by that.
    All of it happens in the solid's own frame, where only the source has to be moved.
    """
    source = place.turn.T @ (projection.source - place.origin) / place.size
    rx, ry, rz = (samples.point[i] - np.float32(source[i]) for i in range(3))
    length = np.sqrt(rx * rx + ry * ry + rz * rz)
    right, depth, up = (row[0] * rx + row[1] * ry + row[2] * rz for row in place.turn.astype(np.float32))
    k = np.float32(projection.detector_m) / depth
    corner = (projection.source[[0, 2]] - [projection.left, projection.top]) / projection.pitch
    x = right * k * np.float32(1 / projection.pitch[0]) + np.float32(corner[0] - 0.5)
    y = up * k * np.float32(-1 / projection.pitch[1]) + np.float32(-corner[1] - 0.5)
    shrink = 1 / length
    bx, by, bz = rx * shrink, ry * shrink, rz * shrink
    normal = (place.turn.T @ plane).astype(np.float32)
    start = np.float32((on_plane - projection.source) @ plane / place.size) / (
        bx * normal[0] + by * normal[1] + bz * normal[2]
    )
    start += np.float32(source[0]) * bx + np.float32(source[1]) * by + np.float32(source[2]) * bz
    xx, yy, zz, yz, xz, xy = samples.flux
    nx, ny, nz = samples.normal
    solid = bx * (xx * bx + 2 * xy * by + 2 * xz * bz) + by * (yy * by + 2 * yz * bz) + zz * bz * bz
    solid -= start * (nx * bx + ny * by + nz * bz)
    per_pixel = k * k * length / depth * np.float32(1 / projection.pitch.prod())
    return np.stack([x, y]), solid * per_pixel * np.float32(place.size), samples.area * per_pixel


def splat(xy: np.ndarray, weights: list[np.ndarray], projection: Projection) -> list[np.ndarray]:
    """Bilinear splat of samples at pixels xy (2, P): one (rows, cols) float32 map for each array of weights (P,)."""
    rows, cols = projection.rows, projection.cols
    x, y = xy
    edge = np.float32(1e-3)  # closer to the border, x + 1 may round up to the next pixel
    inside = np.flatnonzero((x > -1) & (x < cols - edge) & (y > -1) & (y < rows - edge))
    x, y, weights = x[inside] + 1, y[inside] + 1, [w[inside] for w in weights]  # a border of one pixel on each side
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, low = x - column.astype(np.float32), y - row.astype(np.float32)
    stride = cols + 2
    index = row * stride + column
    maps = [np.zeros((rows + 2) * stride) for _ in weights]
    for total, weight in zip(maps, weights, strict=True):
        below = weight * low
        above = weight - below
        for step, part in ((0, above), (stride, below)):
            to_right = part * right
            total += np.bincount(index + step, part - to_right, len(total))
            total += np.bincount(index + (step + 1), to_right, len(total))
    return [m.reshape(rows + 2, stride)[1:-1, 1:-1].astype(np.float32) for m in maps]
