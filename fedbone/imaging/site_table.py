"""The places where films are made: three hospitals, and a public teaching archive.

A: pelvis and hips. B: knees and lower legs. C: scoliosis spines with head and arms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedbone.imaging.patients import PatientMix
from fedbone.imaging.radiograph import Beam


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
    before under another patient's name. spine_film: arms off the trunk; scoliosis: of all patients; pose_spread: how
    far legs and trunk depart from the mean pose, 1 in a hospital.
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
    spine_film: bool = False
    scoliosis: bool = False
    pose_spread: float = 1.0


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
        readers=(Reader((0.0, 0.3), 1.8), Reader((0.6, 0.0), 2.4)), spine_film=True, scoliosis=True,
    ),
}  # fmt: skip

# what a public teaching archive shows of the same regions: other machines, tall and slim adults with dense bone who
# stand still in the textbook's pose, straight spines, no special views, labelled without an error of the hand
_ADULTS, _EXACT = PatientMix(1.07, 1.15, 0.82), (Reader((0.0, 0.0), 0.0),) * 2
_TEXTBOOK = {
    "patients": _ADULTS, "readers": _EXACT, "special_share": 0.0, "ring": False, "blades_m": 0.0, "swaps": False,
    "copies": False, "scoliosis": False, "pose_spread": 0.3,
}  # fmt: skip
ARCHIVE = {
    "archive_pelvis": replace(SITES["hospital_a"], beam=Beam(90.0, 4e6, 0.08, 1.10, 10.0, 0.7), **_TEXTBOOK),
    "archive_knee": replace(SITES["hospital_b"], beam=Beam(75.0, 4e6, 0.08, None, 0.0, 0.7), **_TEXTBOOK),
    "archive_spine": replace(SITES["hospital_c"], beam=Beam(70.0, 4e6, 0.08, 1.80, 12.0, 0.2), **_TEXTBOOK),
}
PLACES = SITES | ARCHIVE
