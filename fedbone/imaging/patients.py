"""Who is filmed and how they stand: patients, poses and spine curves drawn from a hospital's mix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedbone.imaging.bones import GROUPS
from fedbone.imaging.skeleton import Patient
from fedbone.imaging.spine import SpineCurve
from fedbone.imaging.upper_limbs import ArmAngles


@dataclass(frozen=True)
class PatientMix:
    """Means of a hospital's patients relative to the model's adult: body height, bone mineral, soft tissue."""

    height: float
    mineral: float
    flesh: float


def draw_patient(mix: PatientMix, rng: np.random.Generator) -> Patient:
    """A patient: limb groups vary together (body height) and each on its own."""
    scale = np.clip(mix.height * rng.normal(1, 0.05) * rng.normal(1, 0.03, len(GROUPS)), 0.78, 1.18)
    mineral = np.clip(mix.mineral * rng.normal(1, 0.13), 0.55, 1.4)
    flesh = np.clip(mix.flesh * rng.normal(1, 0.12), 0.7, 1.4)
    return Patient(tuple(float(s) for s in scale), float(mineral), float(flesh))


def draw_legs(rng: np.random.Generator, spread: float = 1.0) -> dict[str, float]:
    """Angles of trunk and legs in radians for a patient who stands or lies straight, give or take ``spread``."""
    angles = {"axial_rotation": rng.normal(0, 0.03 * spread)}
    for side in "lr":
        angles[f"hip_flexion_{side}"] = rng.normal(0.02, 0.06 * spread)
        angles[f"hip_adduction_{side}"] = rng.normal(-0.06, 0.05 * spread)
        angles[f"hip_rotation_{side}"] = rng.normal(0.05, 0.1 * spread)
        angles[f"knee_angle_{side}"] = abs(rng.normal(0, 0.08 * spread))
        angles[f"ankle_angle_{side}"] = rng.normal(-0.3, 0.08 * spread)  # toes down, as the foot rests
    return angles


def draw_arms(spine_film: bool, view: str, rng: np.random.Generator) -> tuple[ArmAngles, ArmAngles]:
    """Left and right arm: folded on the chest; on spine films raised, held off the trunk, or (lateral) forward."""
    if not spine_film:
        means = ArmAngles(0.45, 0.9, -0.8, 1.9)
    elif view == "LATERAL":
        means = ArmAngles(1.45, 1.45, 0.0, 0.5)
    elif rng.random() < 0.65:
        means = ArmAngles(2.35, 0.25, 0.9, 0.9, 0.3)
    else:
        means = ArmAngles(0.6, 0.1, 0.0, 0.25, 0.4)
    common, spread = rng.normal(0, 0.12), 0.07
    return tuple(
        ArmAngles(
            means.elevation + common + rng.normal(0, spread),
            means.plane + rng.normal(0, 0.1),
            means.rotation + rng.normal(0, 0.15),
            means.elbow + rng.normal(0, 0.15),
            means.pronation + rng.normal(0, 0.2),
            rng.normal(0.1, 0.1),
        ).limited()
        for _ in range(2)
    )


def draw_curve(rng: np.random.Generator) -> SpineCurve:
    """A scoliosis: one main curve of 12 to 55 degrees and a smaller one that brings the trunk back over the pelvis.

    The angles are those of each curve alone; where the two overlap their slopes add, and the spine's Cobb angle
    (``PosedSkeleton.cobb_deg``) differs by some degrees.
    """
    side = 1 if rng.random() < 0.25 else -1  # thoracic curves mostly bend to the right
    cobb = side * rng.uniform(12, 55)
    centre, half = rng.uniform(0.5, 0.68), rng.uniform(0.26, 0.33)
    second = (rng.uniform(0.15, 0.25), rng.uniform(0.2, 0.26), -cobb * rng.uniform(0.2, 0.7))
    return SpineCurve(((centre, half, cobb), second), twist=rng.uniform(4, 9))
