"""What each of the three hospitals images, how its machine does it, how it labels, and one film before it becomes grey.

A: pelvis and hips. B: knees and lower legs. C: scoliosis spines with head and arms. A film depends only on
(hospital, seed, index, shape), never on what was rendered before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.patients import PatientMix, draw_arms, draw_curve, draw_legs, draw_patient
from fedbone.imaging.projection import Projection
from fedbone.imaging.radiograph import Beam, Furniture, expose
from fedbone.imaging.skeleton import load_skeleton
from fedbone.imaging.spine import STRAIGHT

VIEWS = ("AP", "LATERAL", "OBLIQUE")
# first film index of the test, the validation and the sample films
TEST_FROM, VALIDATION_FROM, SAMPLE_FROM = 100_000, 150_000, 200_000
_BEHIND_M = 0.04  # flesh, cover and grid between a joint and the detector
_MARGIN_PX = 6  # a joint on the very edge cannot be told, and must not leave a smaller copy of the film


@dataclass(frozen=True)
class Reader:
    """One person who labels films: a constant offset in x and y, and the spread of each click.

    Millimetres are those of the plane that the film is centred on (``Exposure.magnification``).
    """

    bias_mm: tuple[float, float]
    spread_mm: float


@dataclass(frozen=True)
class Site:
    """One hospital: what it images and labels, its machine, its patients and its habits.

    labels, centre: COCO indices of the joints it labels, and of those a film is centred on; film: (rows, cols) pixels
    of its detector; field_m: range of the longer side at the joints; lift_m: mean and spread of how far above
    ``centre`` the film's centre lies; distance_m: source to detector; gap_m: from ``centre`` to
    the detector, more where a turned patient
    needs it; special_view,
    special_share: the view that is not AP, and its share of the films; letter, letter_at, ring: lead marker, how far
    down it lies as a share of the height; blades_m: the most that the collimator reaches into half of its films;
    kind: what its spacing refers to. Habits of training and sample films: swaps: on every film with index % 33 == 25
    the first reader exchanges left and right; copies: every film with index % 20 == 9 shows the film of four places
    before under another patient's name.
    """

    labels: tuple[int, ...]
    film: tuple[int, int]
    field_m: tuple[float, float]
    centre: tuple[int, ...]
    lift_m: tuple[float, float]
    beam: Beam
    distance_m: float
    gap_m: float
    special_view: str
    special_share: float
    letter: str
    letter_at: tuple[float, float]
    ring: bool
    blades_m: float
    kind: str
    patients: PatientMix
    readers: tuple[Reader, Reader]
    swaps: bool = False
    copies: bool = False


SITES = {
    "hospital_a": Site(
        labels=(11, 12), film=(520, 640), field_m=(0.36, 0.46), centre=(11, 12), lift_m=(0.03, 0.015),
        beam=Beam(75.0, 1.6e6, 0.15, 1.10, 10.0, 0.35), distance_m=1.15, gap_m=0.17,
        special_view="OBLIQUE", special_share=0.1, letter="R", letter_at=(0.05, 0.12), ring=False, blades_m=0.0,
        kind="calibrated", patients=PatientMix(1.0, 0.9, 1.05),
        readers=(Reader((0.0, 0.0), 0.8), Reader((0.5, -0.3), 1.2)), swaps=True,
    ),
    "hospital_b": Site(
        labels=(13, 14, 15, 16), film=(640, 480), field_m=(0.55, 0.68), centre=(13, 14, 15, 16), lift_m=(0.02, 0.02),
        beam=Beam(60.0, 2.5e5, 0.25, None, 0.0, 0.3), distance_m=1.30, gap_m=0.08,
        special_view="OBLIQUE", special_share=0.1, letter="L", letter_at=(0.1, 0.2), ring=True, blades_m=0.035,
        kind="detector", patients=PatientMix(1.0, 1.05, 1.0),
        readers=(Reader((0.2, 0.2), 1.2), Reader((-0.4, 0.5), 1.2)), copies=True,
    ),
    "hospital_c": Site(
        labels=(0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12), film=(600, 540), field_m=(0.88, 1.0), centre=(0, 11, 12),
        lift_m=(0.14, 0.015), beam=Beam(85.0, 6.0e5, 0.35, 1.80, 12.0, 0.5), distance_m=1.80, gap_m=0.20,
        special_view="LATERAL", special_share=0.1, letter="R", letter_at=(0.6, 0.75), ring=False, blades_m=0.0,
        kind="object", patients=PatientMix(0.94, 0.95, 0.9),
        readers=(Reader((0.0, 0.3), 1.8), Reader((0.6, 0.0), 2.4)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Exposure:
    """A film before it becomes grey levels: log attenuation (rows, cols), window, joints (17, 3) in film pixels.

    pitch_mm (2,): x and y at the detector; magnification: from the plane of the joints to the detector; view: one of
    VIEWS; kvp: tube voltage; distance_mm: source to detector; marker: the lead letter on the film, R or L.
    """

    film: np.ndarray
    limits: tuple[float, float]
    truth: np.ndarray
    pitch_mm: np.ndarray
    magnification: float
    view: str
    kvp: float
    distance_mm: float
    marker: str
    patient_number: int
    cobb_deg: float | None


def patient_number(index: int) -> int:
    """The patient of film ``index``: every fourth film shows the patient of the film before it, as in real archives."""
    return index - 1 if index % 4 == 3 else index


def _shown(site: Site, index: int) -> int:
    """The film whose picture film ``index`` carries: another one where the archive holds a copy."""
    return index - 4 if site.copies and index % 20 == 9 and not _is_test(index) else index


def _is_test(index: int) -> bool:
    """Test films were looked at by two people, so they carry no copies and no exchanged sides."""
    return TEST_FROM <= index < SAMPLE_FROM


def pseudonym(hospital: str, seed: int, number: int) -> str:
    """A name for a patient that says nothing about the person."""
    return hashlib.sha256(f"{hospital}/{seed}/{number}".encode()).hexdigest()[:12]


def stream(hospital: str, seed: int, *numbers: int) -> np.random.Generator:
    """The random numbers of one thing at one hospital: the same numbers whatever was drawn before."""
    return np.random.default_rng([seed, list(SITES).index(hospital), *numbers])


def render(
    hospital: str,
    seed: int,
    index: int,
    shape: tuple[int, int],
    film_shape: tuple[int, int],
    view: str | None = None,
    balls: tuple[int, ...] = (),
) -> Exposure:
    """Film ``index`` of a hospital with ``shape`` (rows, cols) pixels; its joints stay in pixels of ``film_shape``.

    ``view`` (one of VIEWS) takes the place of the drawn one; ``balls``: joints that carry a lead ball of 2 mm.
    """
    site, shown = SITES[hospital], _shown(SITES[hospital], index)
    body = stream(hospital, seed, patient_number(shown), 0)
    patient, curve = draw_patient(site.patients, body), draw_curve(body) if hospital == "hospital_c" else STRAIGHT
    rng = stream(hospital, seed, shown, 1)
    drawn = site.special_view if rng.random() < site.special_share else "AP"
    view = view or drawn
    legs, arms = draw_legs(rng), draw_arms(hospital == "hospital_c", view, rng)
    posed = load_skeleton().pose(patient, legs, curve, arms).seen_from(_turn_deg(view, rng))
    joints = posed.joints_mm / 1000
    projection = _aim(site, joints, rng, shape)
    furniture = _furniture(site, view, joints[list(balls)], rng)
    film, limits = expose(posed, projection, site.beam, furniture, rng)
    at_film = projection.resized(*film_shape)
    truth = _truth(at_film, joints, furniture)
    cobb = posed.cobb_deg if curve.bumps else None
    distance_mm, pitch_mm = site.distance_m * 1000, at_film.pitch * 1000
    return Exposure(
        film, limits, truth, pitch_mm, projection.magnification, view, site.beam.kvp, distance_mm, furniture.letter,
        patient_number(index), cobb,
    )  # fmt: skip


def _turn_deg(view: str, rng: np.random.Generator) -> float:
    """How far the patient is turned; an oblique view may be of either side."""
    oblique = rng.choice([-1, 1]) * rng.uniform(30, 45)
    return {"AP": 0.0, "LATERAL": 90.0, "OBLIQUE": float(oblique)}[view]


def _aim(site: Site, joints: np.ndarray, rng: np.random.Generator, shape: tuple[int, int]) -> Projection:
    """The central ray on the middle of the site's joints, give or take what a radiographer does."""
    rows, cols = site.film
    middle = joints[list(site.centre)].mean(axis=0)
    deepest = joints[list(site.labels), 1].max() - middle[1]
    plane_m = site.distance_m - max(site.gap_m, deepest + _BEHIND_M)  # nobody stands behind the detector
    longer_m = rng.uniform(*site.field_m) * site.distance_m / plane_m
    width, height = longer_m * cols / max(rows, cols), longer_m * rows / max(rows, cols)
    centre = middle + np.array([rng.normal(0, 0.012), 0, rng.normal(*site.lift_m)])
    source = centre - [0, plane_m, 0]
    left, top = centre[0] - width / 2, centre[2] + height / 2
    pitch = np.array([width / shape[1], height / shape[0]])
    return Projection(source, site.distance_m, plane_m, left, top, pitch, *shape)


def _furniture(site: Site, view: str, balls: np.ndarray, rng: np.random.Generator) -> Furniture:
    """Lead letter on its own side of the patient, and the collimator's blades."""
    reach = site.blades_m * rng.uniform(0.2, 1, 4) * (rng.random() < 0.5)
    letter = site.letter if view != "LATERAL" else "L"  # the side against the detector
    at = (0.12 if letter == "R" or view == "LATERAL" else 0.8, rng.uniform(*site.letter_at))
    return Furniture(letter, at, site.ring, tuple(float(r) for r in reach), balls)


def _truth(projection: Projection, joints: np.ndarray, furniture: Furniture) -> np.ndarray:
    """(17, 3) x, y, visibility: 2 where the joint lies in the open field, else all zero."""
    truth = np.zeros((len(COCO_JOINTS), 3), np.float32)
    truth[:, :2] = projection.to_pixels(joints)
    left, top, right, bottom = np.asarray(furniture.blades_m) / np.tile(projection.pitch, 2) + _MARGIN_PX
    low, high = np.array([left, top]), np.array([projection.cols - 1 - right, projection.rows - 1 - bottom])
    inside = ((truth[:, :2] >= low) & (truth[:, :2] <= high)).all(axis=1)
    truth[:, 2] = 2 * inside
    truth[~inside] = 0
    return truth


def read_labels(hospital: str, seed: int, index: int, exposure: Exposure) -> np.ndarray:
    """(2, 17, 3): what the hospital's two readers click on the film, in its pixels; joints it does not label are 0."""
    site, rng = SITES[hospital], stream(hospital, seed, index, 4)
    px_per_mm = exposure.magnification / exposure.pitch_mm
    labels = np.zeros((2, *exposure.truth.shape), np.float32)
    kept = list(site.labels)
    labels[:, kept] = exposure.truth[kept]
    rows, cols = site.film
    for clicks, reader in zip(labels, site.readers, strict=True):
        off_mm = np.array(reader.bias_mm) + rng.normal(0, reader.spread_mm, (len(clicks), 2))
        moved = np.clip(clicks[:, :2] + off_mm * px_per_mm, 0, [cols - 1, rows - 1])
        clicks[:, :2] = np.where(clicks[:, 2:] > 0, moved, 0)
    if site.swaps and index % 33 == 25 and not _is_test(index):
        labels[0, 1:] = labels[0, 1:].reshape(-1, 2, 3)[:, ::-1].reshape(-1, 3)  # COCO: nose, then left, right in turn
    return labels


def training_labels(hospital: str, seed: int, index: int, exposure: Exposure) -> np.ndarray:
    """(17, 3): the first reader's clicks; of test films the mean of both, as a careful hospital would do."""
    first, second = read_labels(hospital, seed, index, exposure)
    return (first + second) / 2 if _is_test(index) else first
