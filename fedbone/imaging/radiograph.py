"""Radiographs of a posed skeleton: path lengths by splatting surface samples, then Beer-Lambert, noise and blur.

Two bone maps are summed: the solid path (divergence theorem along the beam, metres of spongy bone) and the cortical
shell (surface seen edge-on is long, which gives the bright edges). The beam is parallel and runs along y.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from fedbone.imaging.bones import HEAD
from fedbone.imaging.meshes import Samples, sample_surface
from fedbone.imaging.skeleton import PosedSkeleton, load_skeleton
from fedbone.imaging.tissue import flesh_path_m

_SHELL_M = 0.0013  # thickness of cortical bone
_SPACING = 1.4  # of a pixel, largest side of a sample's triangle: above 1.6 a dot pattern shows
_SKULL_SHELL = 2.2  # the vault is thicker than a long bone's cortex but hollow: no solid path for skull and jaw


@dataclass(frozen=True)
class View:
    """The rectangle of the world that a film shows: left x, top z, width and height in metres; rows, cols in pixels."""

    left: float
    top: float
    width: float
    height: float
    rows: int
    cols: int

    @property
    def pitch(self) -> np.ndarray:
        """(x, z) metres per pixel."""
        return np.array([self.width / self.cols, self.height / self.rows])

    def shows(self, points: np.ndarray, more: float) -> bool:
        """Whether the box around world points (P, 3), ``more`` metres larger on all sides, reaches the rectangle."""
        x, z = points[:, 0], points[:, 2]
        across = x.max() > self.left - more and x.min() < self.left + self.width + more
        return bool(across and z.min() < self.top + more and z.max() > self.top - self.height - more)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) in metres to x, y in pixel index coordinates (..., 2)."""
        offset = np.stack([points[..., 0] - self.left, self.top - points[..., 2]], axis=-1)
        return offset / self.pitch - 0.5


@dataclass(frozen=True)
class Beam:
    """What a hospital's tube and detector do. Attenuation in 1/m for soft tissue, spongy and cortical bone.

    photons: mean count per 0.15 mm square of detector without a patient; blur_mm: detector blur (sigma);
    scatter: scattered part of the signal; latitude: how much of the large-scale brightness the processing removes.
    """

    soft: float
    spongy: float
    cortical: float
    photons: float
    blur_mm: float
    scatter: float
    latitude: float


@lru_cache(maxsize=1024)
def _samples(bone: int, spacing: float) -> Samples:
    return sample_surface(load_skeleton().bones[bone].vertices, load_skeleton().bones[bone].faces, spacing)


def bone_maps(posed: PosedSkeleton, view: View) -> tuple[np.ndarray, np.ndarray]:
    """(solid, shell), each (rows, cols) float32 in metres along the beam."""
    pitch = view.pitch
    spacing = 2.0 ** (np.floor(np.log2(pitch.min() * _SPACING) * 2) / 2)  # few steps, so that the cache serves
    across, down, solid, shell = [], [], [], []
    bends = 0.05 if posed.curve.bumps else 0.0  # the middle of the rib cage shifts more than its corners
    for index, bone in enumerate(posed.bones):
        size = posed.size[index]
        if not view.shows(posed.world(index, bone.corners), bends):
            continue
        sample = _samples(index, spacing)
        points = posed.world(index, sample.point)
        across.append((points[:, 0] - np.float32(view.left)) * np.float32(1 / pitch[0]) - np.float32(0.5))
        down.append((np.float32(view.top) - points[:, 2]) * np.float32(1 / pitch[1]) - np.float32(0.5))
        b = posed.turn[index][1]  # the beam in the bone's frame
        form = np.array([b[0] ** 2, b[1] ** 2, b[2] ** 2, 2 * b[1] * b[2], 2 * b[0] * b[2], 2 * b[0] * b[1]])
        hollow = bone.follows == HEAD
        weight = (form * (0 if hollow else size**3)).astype(np.float32)
        solid.append(np.einsum("pk,k->p", sample.flux, weight))
        shell.append(sample.area * np.float32(size**2 * _SHELL_M * (_SKULL_SHELL if hollow else 1)))
    maps = _splat(np.concatenate(across), np.concatenate(down), [np.concatenate(solid), np.concatenate(shell)], view)
    solid_map, shell_map = (cv2.GaussianBlur(m / np.float32(pitch.prod()), (0, 0), 0.6) for m in maps)
    return np.maximum(solid_map, 0), shell_map


def _splat(x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], view: View) -> list[np.ndarray]:
    """Bilinear splat of samples at pixel x, y (P,): one (rows, cols) float32 map for each array of weights (P,)."""
    inside = np.flatnonzero((x > -1) & (x < view.cols) & (y > -1) & (y < view.rows))
    x, y, weights = x[inside] + 1, y[inside] + 1, [w[inside] for w in weights]  # a border of one pixel on each side
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, low = x - column.astype(np.float32), y - row.astype(np.float32)
    stride = view.cols + 2
    index = row * stride + column
    maps = [np.zeros((view.rows + 2) * stride) for _ in weights]
    for total, weight in zip(maps, weights, strict=False):
        below = weight * low
        above = weight - below
        for step, part in ((0, above), (stride, below)):
            to_right = part * right
            total += np.bincount(index + step, part - to_right, len(total))
            total += np.bincount(index + (step + 1), to_right, len(total))
    return [m.reshape(view.rows + 2, stride)[1:-1, 1:-1].astype(np.float32) for m in maps]


def expose(
    posed: PosedSkeleton, view: View, beam: Beam, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float]]:
    """The film (rows, cols) float32 as log attenuation, bone bright, and the window (low, high) a console would choose.

    Beer-Lambert, scatter, detector blur, quantum noise, then the usual evening out of large-scale brightness.
    """
    solid, shell = bone_maps(posed, view)
    solid *= 1 + _texture(solid.shape, 0.0007 / view.pitch[0], 0.06, rng)  # trabeculae
    flesh = flesh_path_m(posed, view, rng)
    mineral = posed.patient.mineral
    optical = beam.soft * flesh + mineral * (beam.spongy * solid + beam.cortical * shell)
    optical += 3.0 * _marker(view)
    signal = np.exp(-optical)
    if beam.scatter:
        signal = (1 - beam.scatter) * signal + beam.scatter * _blur_mm(signal, view, 40.0)
    signal = cv2.GaussianBlur(signal, (0, 0), max(beam.blur_mm / 1000 / view.pitch[0], 0.3))
    photons = beam.photons * float(view.pitch.prod()) / 0.00015**2
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    counts = np.maximum(signal * photons + np.sqrt(signal * photons) * noise, 1)
    film = -np.log(counts / np.float32(photons))
    body = (optical > 0.25).astype(np.float32)
    mean = float((film * body).sum() / max(float(body.sum()), 1.0))  # far from the body there is nothing to average
    around = (_blur_mm(film * body, view, 50.0) + 0.02 * mean) / (_blur_mm(body, view, 50.0) + 0.02)
    film = film - np.float32(beam.latitude) * around
    low, high = np.percentile(film[body > 0], [1.0, 99.8])
    high = max(high, low + 0.1)
    film = np.maximum(film, np.float32(low - 0.1 * (high - low)))  # the detector saturates where nothing is in the way
    return film, (float(low), float(high))


def _marker(view: View) -> np.ndarray:
    """(rows, cols) float32: a 15 mm lead letter R in the upper corner at the patient's right, as on every AP film."""
    large = np.zeros((240, 240), np.uint8)
    cv2.putText(large, "R", (60, 180), cv2.FONT_HERSHEY_SIMPLEX, 5.0, 255, 22, cv2.LINE_AA)
    side = np.maximum(np.round(0.024 / view.pitch), 4).astype(int)
    letter = cv2.resize(large, (int(side[0]), int(side[1])), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    film = np.zeros((view.rows, view.cols), np.float32)
    top, left = int(0.05 * view.rows), int(0.03 * view.cols)
    film[top : top + side[1], left : left + side[0]] = letter
    return film


def _texture(shape: tuple[int, int], sigma_px: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise (rows, cols) of standard deviation ``strength``; finer than a pixel it averages out."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if sigma_px < 0.3:
        return noise * np.float32(strength * sigma_px)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma_px)
    return smooth * np.float32(strength / max(float(smooth.std()), 1e-6))


def _blur_mm(image: np.ndarray, view: View, sigma_mm: float) -> np.ndarray:
    """A wide Gaussian blur, done on a small copy."""
    small = cv2.resize(image, (max(view.cols // 8, 16), max(view.rows // 8, 16)), interpolation=cv2.INTER_AREA)
    sigma = sigma_mm / 1000 / (view.width / small.shape[1])
    small = cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (view.cols, view.rows), interpolation=cv2.INTER_LINEAR)


def to_grey(film: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """(rows, cols) uint8, bone bright, of a film inside its window."""
    low, high = limits
    return (np.clip((film - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)
