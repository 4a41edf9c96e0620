"""One film of a place of ``site_table`` before it becomes grey, and how the place labels it.

A film depends only on (place, seed, index, shape), never on what was rendered before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.patients import draw_arms, draw_curve, draw_legs, draw_patient
from fedbone.imaging.projection import Projection
from fedbone.imaging.radiograph import Furniture, expose
from fedbone.imaging.site_table import PLACES, Site
from fedbone.imaging.skeleton import load_skeleton
from fedbone.imaging.spine import STRAIGHT

VIEWS = ("AP", "LATERAL", "OBLIQUE")
# first film index of the test, the validation and the sample films
TEST_FROM, VALIDATION_FROM, SAMPLE_FROM = 100_000, 150_000, 200_000
_BEHIND_M = 0.04  # flesh, cover and grid between a joint and the detector
_MARGIN_PX = 6  # a joint on the very edge cannot be told, and must not leave a smaller copy of the film


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
    return np.random.default_rng([seed, list(PLACES).index(hospital), *numbers])


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
    site, shown = PLACES[hospital], _shown(PLACES[hospital], index)
    body = stream(hospital, seed, patient_number(shown), 0)
    patient, curve = draw_patient(site.patients, body), draw_curve(body) if site.scoliosis else STRAIGHT
    rng = stream(hospital, seed, shown, 1)
    drawn = site.special_view if rng.random() < site.special_share else "AP"
    view = view or drawn
    legs, arms = draw_legs(rng, site.pose_spread), draw_arms(site.spine_film, view, rng)
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
    site, rng = PLACES[hospital], stream(hospital, seed, index, 4)
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
