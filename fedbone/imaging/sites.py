"""What each of the three hospitals images, how its machine does it, and one film of it before it becomes grey levels.

A: pelvis and hips. B: knees and lower legs. C: scoliosis spines with head and arms. A film depends only on
(hospital, seed, index, shape), never on what was rendered before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fedbone.imaging.bones import GROUPS
from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.radiograph import Beam, View, expose
from fedbone.imaging.skeleton import Patient, PosedSkeleton, load_skeleton
from fedbone.imaging.spine import STRAIGHT, SpineCurve


@dataclass(frozen=True)
class Site:
    """One hospital: joints it labels (COCO indices), film shape and field, beam, and the joints a film is centred on.

    film: (rows, cols) pixels of its detector; field_m: range of the longer side; centre: COCO indices; lift_m: mean
    and spread of how far above them the film's centre lies; kind: what its pixel spacing refers to.
    """

    labels: tuple[int, ...]
    film: tuple[int, int]
    field_m: tuple[float, float]
    centre: tuple[int, ...]
    lift_m: tuple[float, float]
    beam: Beam
    kind: str


SITES = {
    "hospital_a": Site(
        (11, 12), (520, 640), (0.36, 0.46), (11, 12), (0.03, 0.015),
        Beam(20.0, 27.0, 75.0, 2500.0, 0.15, 0.10, 0.35), "calibrated",
    ),
    "hospital_b": Site(
        (13, 14, 15, 16), (640, 480), (0.55, 0.68), (13, 14, 15, 16), (0.02, 0.02),
        Beam(24.0, 26.0, 100.0, 1200.0, 0.25, 0.05, 0.3), "detector",
    ),
    "hospital_c": Site(
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12), (600, 540), (0.88, 1.0), (0, 11, 12), (0.14, 0.015),
        Beam(19.0, 22.0, 60.0, 500.0, 0.35, 0.18, 0.5), "calibrated",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Exposure:
    """A film before it becomes grey levels: log attenuation (rows, cols), window, joints (17, 3) in film pixels."""

    film: np.ndarray
    limits: tuple[float, float]
    truth: np.ndarray
    pitch_mm: np.ndarray
    patient_number: int
    cobb_deg: float | None


def patient_number(index: int) -> int:
    """The patient of film ``index``: every fourth film shows the patient of the film before it, as in real archives."""
    return index - 1 if index % 4 == 3 else index


def pseudonym(hospital: str, seed: int, number: int) -> str:
    """A name for a patient that says nothing about the person."""
    return hashlib.sha256(f"{hospital}/{seed}/{number}".encode()).hexdigest()[:12]


def stream(hospital: str, seed: int, *numbers: int) -> np.random.Generator:
    """The random numbers of one thing at one hospital: the same numbers whatever was drawn before."""
    return np.random.default_rng([seed, list(SITES).index(hospital), *numbers])


def draw_patient(rng: np.random.Generator) -> Patient:
    """A patient: limb groups vary together (body height) and each on its own."""
    scale = np.clip(rng.normal(1, 0.05) * rng.normal(1, 0.03, len(GROUPS)), 0.82, 1.18)
    mineral, flesh = np.clip(rng.normal(1, 0.13), 0.6, 1.4), np.clip(rng.normal(1, 0.12), 0.75, 1.4)
    return Patient(tuple(float(s) for s in scale), float(mineral), float(flesh))


def draw_pose(hospital: str, rng: np.random.Generator) -> dict[str, float]:
    """Joint angles in radians for a film of this hospital."""
    angles = {"axial_rotation": rng.normal(0, 0.03)}
    raised = rng.random() < 0.65  # on spine films arms are held up or away from the trunk; elsewhere out of the beam
    arms = {"hospital_a": 1.3, "hospital_b": 0.9, "hospital_c": 2.5 if raised else 0.65}[hospital] + rng.normal(0, 0.12)
    for side in "lr":
        angles[f"hip_flexion_{side}"] = rng.normal(0.02, 0.06)
        angles[f"hip_adduction_{side}"] = rng.normal(-0.06, 0.05)
        angles[f"hip_rotation_{side}"] = rng.normal(0.05, 0.1)
        angles[f"knee_angle_{side}"] = abs(rng.normal(0, 0.08))
        angles[f"ankle_angle_{side}"] = rng.normal(-0.3, 0.08)  # toes down, as the foot rests
        angles[f"shoulder_elv_{side}"] = arms + rng.normal(0, 0.06)
        angles[f"elv_angle_{side}"] = rng.normal(0, 0.15)
        angles[f"elbow_flexion_{side}"] = abs(rng.normal(1.1, 0.4))
    return angles


def draw_curve(rng: np.random.Generator) -> SpineCurve:
    """A scoliosis: one main curve of 12 to 55 degrees and a smaller one that brings the trunk back over the pelvis."""
    side = 1 if rng.random() < 0.25 else -1  # thoracic curves mostly bend to the right
    cobb = side * rng.uniform(12, 55)
    centre, half = rng.uniform(0.5, 0.68), rng.uniform(0.26, 0.33)
    second = (rng.uniform(0.15, 0.25), rng.uniform(0.2, 0.26), -cobb * rng.uniform(0.2, 0.7))
    return SpineCurve(((centre, half, cobb), second), twist=rng.uniform(4, 9))


def render(hospital: str, seed: int, index: int, shape: tuple[int, int], film_shape: tuple[int, int]) -> Exposure:
    """Film ``index`` of a hospital with ``shape`` (rows, cols) pixels; its joints stay in pixels of ``film_shape``."""
    site, number = SITES[hospital], patient_number(index)
    body = stream(hospital, seed, number, 0)
    patient, curve = draw_patient(body), draw_curve(body) if hospital == "hospital_c" else STRAIGHT
    rng = stream(hospital, seed, index, 1)
    posed = load_skeleton().pose(patient, draw_pose(hospital, rng), curve)
    view = _aim(site, posed, rng, shape)
    film, limits = expose(posed, view, site.beam, rng)
    at_film = View(view.left, view.top, view.width, view.height, *film_shape)
    truth = np.zeros((len(COCO_JOINTS), 3), np.float32)
    truth[:, :2] = at_film.to_pixels(posed.joints_mm / 1000)
    margin = 6  # pixels: a joint on the very edge cannot be told, and must not leave a smaller copy of the film
    inside = ((truth[:, :2] >= margin) & (truth[:, :2] <= np.array(film_shape[::-1]) - 1 - margin)).all(axis=1)
    truth[:, 2] = 2 * inside
    truth[~inside] = 0
    return Exposure(film, limits, truth, at_film.pitch * 1000, number, posed.cobb_deg if curve.bumps else None)


def _aim(site: Site, posed: PosedSkeleton, rng: np.random.Generator, shape: tuple[int, int]) -> View:
    field = rng.uniform(*site.field_m)
    rows, cols = site.film
    width, height = field * cols / max(rows, cols), field * rows / max(rows, cols)
    centre = posed.joints_mm[list(site.centre)].mean(axis=0) / 1000
    x = centre[0] + rng.normal(0, 0.012)
    z = centre[2] + rng.normal(*site.lift_m)
    return View(x - width / 2, z + height / 2, width, height, *shape)


def own_labels(hospital: str, truth: np.ndarray) -> np.ndarray:
    """The truth (17, 3) with only the joints that this hospital labels."""
    labels = np.zeros_like(truth)
    kept = list(SITES[hospital].labels)
    labels[kept] = truth[kept]
    return labels
