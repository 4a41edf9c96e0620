"""Soft tissue: thickness as measured on the body, the same cross-section from every side, air in the lungs."""

from __future__ import annotations

import numpy as np
import pytest

from fedbone.imaging.projection import Projection
from fedbone.imaging.skeleton import Patient, PosedSkeleton, load_skeleton
from fedbone.imaging.tissue import flesh_path_m
from fedbone.imaging.upper_limbs import ArmAngles

FAR_M = 40.0  # from here the rays are as good as parallel


@pytest.fixture(scope="module")
def posed() -> PosedSkeleton:
    raised = ArmAngles(elevation=3.0)
    return load_skeleton().pose(Patient(), {}, arms=(raised, raised))


def path(posed: PosedSkeleton, degrees: float = 0.0) -> tuple[np.ndarray, Projection]:
    """Metres of tissue on a film of 1 x 1 m around the middle of the trunk, 2.5 mm a pixel."""
    turned = posed.seen_from(degrees)
    centre = (turned.joints_mm[11:13].mean(axis=0) + turned.vertebrae_mm[0]) / 2000
    source = centre - [0, FAR_M, 0]
    projection = Projection(
        source, FAR_M + 0.1, FAR_M, centre[0] - 0.5, centre[2] + 0.5, np.full(2, 1 / 400), 400, 400
    )
    return flesh_path_m(turned, projection, np.random.default_rng(0)), projection


def row_at(projection: Projection, z: float) -> int:
    return round(float(projection.to_pixels(np.array([projection.source[0], projection.source[1] + FAR_M, z]))[1]))


def test_waist_is_as_thick_and_wide_as_an_adults(posed: PosedSkeleton) -> None:
    film, projection = path(posed)
    waist = film[row_at(projection, posed.joints_mm[11, 2] / 1000 + 0.15)]
    assert waist.max() == pytest.approx(0.20, abs=0.02)
    assert (waist > 0.01).sum() / 400 == pytest.approx(0.33, abs=0.04)


@pytest.mark.parametrize("height", [0.10, 0.15, 0.20])
def test_a_cross_section_is_as_large_from_every_side(posed: PosedSkeleton, height: float) -> None:
    areas = []
    for degrees in (0, 45, 90):
        film, projection = path(posed, degrees)
        row = row_at(projection, posed.joints_mm[11, 2] / 1000 + height)
        areas.append(film[row - 2 : row + 3].mean(axis=0).sum() / 400)
    assert areas[1:] == pytest.approx([areas[0]] * 2, rel=0.05)
    assert 0.03 < areas[0] < 0.07  # square metres


def test_lungs_hold_air_and_two_legs_from_the_side_lie_one_behind_the_other(posed: PosedSkeleton) -> None:
    film, projection = path(posed)
    chest = row_at(projection, posed.vertebrae_mm[6, 2] / 1000)
    middle = round(float(projection.to_pixels(posed.vertebrae_mm[6] / 1000)[0]))
    assert film[chest, middle + 30] < 0.75 * film[chest, middle]
    thigh = row_at(projection, posed.joints_mm[11, 2] / 1000 - 0.19)
    front, side = film[thigh].max(), path(posed, 90)[0][thigh].max()
    assert side == pytest.approx(2 * front, rel=0.15)


def test_a_heavier_patient_is_thicker() -> None:
    thin, heavy = (path(load_skeleton().pose(Patient(flesh=f), {}))[0].sum() for f in (0.8, 1.2))
    assert heavy > 1.3 * thin
