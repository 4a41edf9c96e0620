"""Readings that a clinician takes from joints, and how far predicted readings agree with labelled ones.

Joints: (..., K, 2 or 3) array pixels (square, rows downwards) with K names; of three columns the last one is a
visibility, and a joint with 0 is missing. A reading with a missing joint is NaN. Films are frontal with the patient's
left at the viewer's right; on any other film (seen from the side, or mirrored) the angles of the knee mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from fedbone.imaging.dataset import FilmSet
from fedbone.imaging.readings import SUPERIMPOSED
from fedbone.model.metrics import reference_px

FEWEST_PATIENTS = 3  # fewer have no spread from which limits could be told
LIMIT = 1.96  # standard deviations between the bias and a limit of agreement


def _at(keypoints: np.ndarray, joints: Sequence[str], name: str) -> np.ndarray:
    """(..., 2) x, y of the joint ``name``, NaN where it is missing."""
    if name not in joints:
        return np.full((*keypoints.shape[:-2], 2), np.nan)
    point = np.asarray(keypoints[..., list(joints).index(name), :], dtype=np.float64)
    return np.where(point[..., 2:] > 0, point[..., :2], np.nan) if point.shape[-1] > 2 else point


def hip_knee_ankle_deg(keypoints: np.ndarray, joints: Sequence[str], side: str) -> np.ndarray:
    """Hip-knee-ankle angle of the ``left`` or ``right`` leg as its deviation from 180 degrees: varus negative.

    Between the mechanical axes of femur (hip to knee centre) and tibia (knee to ankle centre); positive (valgus) where
    the ankle lies lateral of the femur's line. Sheehy et al., Osteoarthritis Cartilage 2011; 19: 58.
    """
    hip, knee, ankle = (_at(keypoints, joints, f"{side}_{joint}") for joint in ("hip", "knee", "ankle"))
    femur, tibia = knee - hip, ankle - knee
    turn = np.arctan2(femur[..., 0] * tibia[..., 1] - femur[..., 1] * tibia[..., 0], (femur * tibia).sum(axis=-1))
    lateral = {"left": -1, "right": 1}[side]  # rows run downwards: a turn to the viewer's right is negative
    return lateral * np.degrees(turn)


def leg_length_difference_mm(keypoints: np.ndarray, joints: Sequence[str], spacing_mm: np.ndarray) -> np.ndarray:
    """Straight distance from hip to ankle centre, left minus right; spacing_mm (..., 2): x and y per array pixel.

    NaN without spacing. It is the length in the film's plane: a bent knee shortens it, and with the spacing of the
    detector it is enlarged by the magnification. Sabharwal and Kumar, Clin Orthop Relat Res 2008; 466: 2910, compare
    the methods.
    """
    legs = (_at(keypoints, joints, f"{s}_ankle") - _at(keypoints, joints, f"{s}_hip") for s in ("left", "right"))
    left, right = (np.linalg.norm(leg * spacing_mm, axis=-1) for leg in legs)
    return left - right


def shoulder_tilt_deg(keypoints: np.ndarray, joints: Sequence[str]) -> np.ndarray:
    """Angle of the line through both shoulder joints against the film's rows, positive where the left is higher.

    The sign is that of the clavicle angle in scoliosis (Ono et al., Spine 2012; 37 (24)), the line is not: it joins
    joint centres. A detector that was turned against the floor adds its own angle. The same on mirrored films.
    """
    left, right = (_at(keypoints, joints, f"{side}_shoulder") for side in ("left", "right"))
    return np.degrees(np.arctan2(right[..., 1] - left[..., 1], np.abs(left[..., 0] - right[..., 0])))


def clinical_readings(keypoints: np.ndarray, joints: Sequence[str], spacing_mm: np.ndarray) -> dict[str, np.ndarray]:
    """All readings of films with ``keypoints`` (..., K, 2 or 3) by name; the name ends in the unit."""
    return {
        "hip_knee_ankle_left_deg": hip_knee_ankle_deg(keypoints, joints, "left"),
        "hip_knee_ankle_right_deg": hip_knee_ankle_deg(keypoints, joints, "right"),
        "leg_length_difference_mm": leg_length_difference_mm(keypoints, joints, spacing_mm),
        "shoulder_tilt_deg": shoulder_tilt_deg(keypoints, joints),
    }


def _seen_from_the_side(films: FilmSet, joints: Sequence[str]) -> np.ndarray:
    """(N,) films on which the labelled shoulders lie on each other: the line through them has no direction."""
    left, right = (_at(films.keypoints, joints, f"{side}_shoulder") for side in ("left", "right"))
    apart = np.linalg.norm(left - right, axis=-1)
    return apart < SUPERIMPOSED * reference_px(films.keypoints, films.images.shape[-1])


def agreement(difference: np.ndarray, patients: Sequence[str]) -> dict | None:
    """Bias and 95 % limits of agreement of ``difference`` (N,), predicted minus labelled, NaN = no reading.

    Bland and Altman, Lancet 1986; films of one patient count as repeated readings of a changing quantity, whose
    variance is that between patients plus that within (the same, J Biopharm Stat 2007; 17: 571). The intervals are the
    approximate ones of 1986 with n = patients (``_interval``). None without a reading; fewer than FEWEST_PATIENTS
    patients have a bias alone.
    """
    known = np.isfinite(difference)
    if not known.any():
        return None
    difference = difference[known]
    names, patient = np.unique(np.asarray(patients, dtype=object)[known].astype(str), return_inverse=True)
    bias = float(difference.mean())
    result = {"bias": bias, "sd": None, "limits": None, "interval_95": None}
    if len(names) >= FEWEST_PATIENTS:
        sd = float(np.sqrt(_variance(difference, patient)))
        low, high = bias - LIMIT * sd, bias + LIMIT * sd
        edges = {"bias": (bias, 1.0), "lower_limit": (low, 3.0), "upper_limit": (high, 3.0)}
        intervals = {name: _interval(value, sd, factor, len(names)) for name, (value, factor) in edges.items()}
        result |= {"sd": sd, "limits": [low, high], "interval_95": intervals}
    return {**result, "n_films": len(difference), "n_patients": len(names)}


def _variance(difference: np.ndarray, patient: np.ndarray) -> float:
    """Variance of one film's difference: within plus between patients, by one-way analysis of variance.

    With one film a patient it is the ordinary variance (n - 1).
    """
    counts = np.bincount(patient)
    n, films = len(counts), len(difference)
    means = np.bincount(patient, difference) / counts
    within = ((difference - means[patient]) ** 2).sum() / max(films - n, 1)
    between = (counts * (means - difference.mean()) ** 2).sum() / (n - 1)
    films_a_patient = (films - (counts**2).sum() / films) / (n - 1)
    return within + max(0.0, between - within) / films_a_patient


def _interval(value: float, sd: float, factor: float, n: int) -> list[float]:
    """``value`` +- t sqrt(factor sd^2 / n): factor 1 for a mean, 3 for a limit of agreement (Bland and Altman 1986).

    Approximate: below 76 patients the outer end of a limit's interval lies too near (Carkeet and Goh, Stat Methods Med
    Res 2018; 27: 1559).
    """
    half = _t_quantile(n - 1) * sd * np.sqrt(factor / n)
    return [float(value - half), float(value + half)]


def _t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t: Abramowitz and Stegun 26.7.5, within 1 % from two degrees of freedom on."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def agreements(predicted: np.ndarray, films: FilmSet, joints: tuple[str, ...]) -> dict[str, dict | None]:
    """How predicted (N, K, 2 or 3) readings agree with those of the labels, by reading; None where no film has it.

    A shoulder tilt is read on films that show the shoulders apart. spacing_kinds: what the millimetres of a reading
    refer to, empty for angles.
    """
    labelled = clinical_readings(films.keypoints, joints, films.spacing_mm)
    labelled["shoulder_tilt_deg"][_seen_from_the_side(films, joints)] = np.nan
    found = clinical_readings(predicted[..., :2], joints, films.spacing_mm)
    result: dict[str, dict | None] = {}
    for name, values in labelled.items():
        entry, unit = agreement(found[name] - values, films.patients), name.rsplit("_", 1)[1]
        kinds = {kind for kind, value in zip(films.spacing_kind, values, strict=True) if np.isfinite(value)}
        result[name] = entry and {"unit": unit, "spacing_kinds": sorted(kinds) if unit == "mm" else [], **entry}
    return result
