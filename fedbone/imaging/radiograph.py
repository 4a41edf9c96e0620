"""A radiograph of a posed patient: Beer-Lambert along the rays of a point source, then what tube and detector add.

Simple physics: one effective photon energy a film, quantum noise, detector blur, an anti-scatter grid's cut-off, lead
blades and a lead letter. Left out: beam hardening, scatter, implants, the structure of trabecular bone.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fedbone.imaging.bone_paths import ball_path, bone_paths
from fedbone.imaging.projection import Projection
from fedbone.imaging.skeleton import PosedSkeleton
from fedbone.imaging.tissue import flesh_path_m

# Mass attenuation in cm2/g of ICRU-44 soft tissue and cortical bone: Hubbell and Seltzer, NISTIR 5632, 1995
_KEV = np.array([30.0, 40.0, 50.0, 60.0, 80.0])
_SOFT_CM2_G = np.array([0.3790, 0.2688, 0.2264, 0.2048, 0.1823])
_CORTICAL_CM2_G = np.array([1.331, 0.6655, 0.4242, 0.3148, 0.2229])
_SOFT_G_CM3, _CORTICAL_G_CM3 = 1.06, 1.92
_SPONGY_BONE_SHARE = 0.26  # of its volume is bone, the rest marrow
_KEV_PER_KVP = 0.55  # mean energy behind a patient, as a share of the tube voltage
_LEAD_OD = 4.0  # natural log attenuation at which lead saturates the detector
_BLADE_OD = 12.0
BALL_RADIUS_M = 0.001


@dataclass(frozen=True)
class Beam:
    """What a hospital's tube, grid and detector do.

    kvp: tube voltage; photons_per_mm2: mean count at the detector without a patient; blur_mm: detector blur (sigma);
    grid_focus_m: distance for which the grid's lamellae are tilted, None without a grid; grid_ratio: their height over
    their gap; latitude: how much of the large-scale brightness the processing removes.
    """

    kvp: float
    photons_per_mm2: float
    blur_mm: float
    grid_focus_m: float | None
    grid_ratio: float
    latitude: float

    def attenuation(self) -> tuple[float, float, float]:
        """1/m of soft tissue, and what spongy and cortical bone have more than soft tissue in their place."""
        kev = self.kvp * _KEV_PER_KVP
        soft, cortical = (
            float(np.exp(np.interp(np.log(kev), np.log(_KEV), np.log(table)))) * density * 100
            for table, density in ((_SOFT_CM2_G, _SOFT_G_CM3), (_CORTICAL_CM2_G, _CORTICAL_G_CM3))
        )
        return soft, (cortical - soft) * _SPONGY_BONE_SHARE, cortical - soft


@dataclass(frozen=True)
class Furniture:
    """What lies on a film beside the patient.

    letter: lead R or L; at: its place as fractions of width and height; ring: drawn round it; blades_m: how far the
    collimator's blades reach in at left, top, right and bottom of the detector; balls (B, 3): lead balls there.
    """

    letter: str = "R"
    at: tuple[float, float] = (0.03, 0.05)
    ring: bool = False
    blades_m: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    balls: np.ndarray | tuple = ()


def expose(
    posed: PosedSkeleton, projection: Projection, beam: Beam, furniture: Furniture, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float]]:
    """The film (rows, cols) float32 as log attenuation, bone bright, and the window (low, high) a console chooses."""
    cortical, spongy = bone_paths(posed, projection)
    pixel_mm = float(projection.pitch[0]) * 1000
    spongy *= 1 + _mottle(spongy.shape, 0.7 / pixel_mm, 0.06, rng)  # stands in for trabeculae, has no structure
    soft, spongy_excess, cortical_excess = beam.attenuation()
    optical = soft * flesh_path_m(posed, projection, rng)
    optical += posed.patient.mineral * (spongy_excess * spongy + cortical_excess * cortical)
    body = (optical > 0.25).astype(np.float32)
    open_field = _open_field(projection, furniture.blades_m)
    optical += _LEAD_OD * _letter(projection, furniture)
    if len(furniture.balls):
        optical += _LEAD_OD * np.minimum(ball_path(furniture.balls, BALL_RADIUS_M, projection) / BALL_RADIUS_M, 1)
    optical += _grid_loss(projection, beam) + _BLADE_OD * (1 - open_field)
    signal = cv2.GaussianBlur(np.exp(-optical), (0, 0), max(beam.blur_mm / pixel_mm, 0.3))
    photons = np.float32(beam.photons_per_mm2 * float(projection.pitch.prod()) * 1e6)
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    counts = np.maximum(signal * photons + np.sqrt(signal * photons) * noise, 1)
    return _process(-np.log(counts / photons), body * (open_field > 0.9), beam, projection)


def _process(
    film: np.ndarray, body: np.ndarray, beam: Beam, projection: Projection
) -> tuple[np.ndarray, tuple[float, float]]:
    """Evens out large-scale brightness over the ``body`` (rows, cols), and chooses the window from it."""
    mean = float((film * body).sum() / max(float(body.sum()), 1.0))  # far from the body there is nothing to average
    around = (_blur_mm(film * body, projection, 50.0) + 0.02 * mean) / (_blur_mm(body, projection, 50.0) + 0.02)
    air = np.clip(1 - film / 0.25, 0, 1)  # beside the body the detector is flooded: black, without a halo
    film = film - np.float32(beam.latitude) * (around + 2 * mean * air)
    low, high = np.percentile(film[body > 0], [1.0, 99.8]) if body.any() else (0.0, 1.0)
    low, high = low - 0.06 * (high - low), max(high, low + 0.1)  # lungs stay grey
    # the detector saturates where nothing is in the way, and has no more steps far above the densest bone
    film = np.clip(film, np.float32(low - 0.1 * (high - low)), np.float32(high + 0.6 * (high - low)))
    return film, (float(low), float(high))


def _grid_loss(projection: Projection, beam: Beam) -> np.ndarray:
    """(1, cols) float32 log attenuation by lamellae that do not point at the source.

    A focused grid used off its distance loses ratio x offset x |1/focus - 1/distance| of the light. Source: Hendee and
    Ritenour, Medical Imaging Physics, 4th edition, chapter 15.
    """
    if beam.grid_focus_m is None:
        return np.zeros((1, projection.cols), np.float32)
    x = projection.left + (np.arange(projection.cols) + 0.5) * projection.pitch[0] - projection.source[0]
    lost = beam.grid_ratio * np.abs(x) * abs(1 / beam.grid_focus_m - 1 / projection.detector_m)
    return -np.log1p(-np.minimum(lost, 0.9)).astype(np.float32)[None]


def _open_field(projection: Projection, blades_m: tuple[float, float, float, float]) -> np.ndarray:
    """(rows, cols) float32: 1 where the beam passes the collimator, 0 behind its blades, with a 1 mm penumbra."""
    left, top, right, bottom = blades_m
    x = (np.arange(projection.cols) + 0.5) * projection.pitch[0]
    y = (np.arange(projection.rows) + 0.5) * projection.pitch[1]
    width, height = projection.cols * projection.pitch[0], projection.rows * projection.pitch[1]

    def passes(at: np.ndarray, low: float, high: float, size: float) -> np.ndarray:
        ramp = [np.clip((d + 0.0005) / 0.001, 0, 1) for d, edge in ((at - low, low), (size - high - at, high)) if edge]
        return np.prod(ramp, axis=0) if ramp else np.ones_like(at)

    return (passes(y, top, bottom, height)[:, None] * passes(x, left, right, width)).astype(np.float32)


def _letter(projection: Projection, furniture: Furniture) -> np.ndarray:
    """(rows, cols) float32: a lead letter, 10 mm tall on the detector."""
    large = np.zeros((240, 240), np.uint8)
    cv2.putText(large, furniture.letter, (60, 180), cv2.FONT_HERSHEY_SIMPLEX, 5.0, 255, 22, cv2.LINE_AA)
    if furniture.ring:
        cv2.circle(large, (120, 120), 108, 255, 12, cv2.LINE_AA)
    width, height = (int(v) for v in np.maximum(np.round(0.024 / projection.pitch), 4))
    film = np.zeros((projection.rows, projection.cols), np.float32)
    top, left = int(furniture.at[1] * projection.rows), int(furniture.at[0] * projection.cols)
    small = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    film[top : top + height, left : left + width] = small[: projection.rows - top, : projection.cols - left]
    return film


def _mottle(shape: tuple[int, int], sigma_px: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise (rows, cols) of standard deviation ``strength``; finer than a pixel it averages out."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    strength *= min(1.0, sigma_px)
    if sigma_px < 0.3:  # as good as no blur
        return noise * np.float32(strength)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma_px)
    return smooth * np.float32(strength / max(float(smooth.std()), 1e-6))


def _blur_mm(image: np.ndarray, projection: Projection, sigma_mm: float) -> np.ndarray:
    """A wide Gaussian blur, done on a small copy."""
    cols, rows = projection.cols, projection.rows
    small = cv2.resize(image, (max(cols // 8, 16), max(rows // 8, 16)), interpolation=cv2.INTER_AREA)
    sigma = sigma_mm / 1000 / (float(projection.pitch[0]) * cols / small.shape[1])
    small = cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (cols, rows), interpolation=cv2.INTER_LINEAR)


def to_grey(film: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """(rows, cols) uint8, bone bright, of a film inside its window."""
    low, high = limits
    return (np.clip((film - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)
