"""Central projection: magnification as in the textbook, pixels on the ray, a resized film that shows the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbone.imaging.projection import Projection

FILM = Projection(np.array([0.1, -1.0, 1.2]), 1.25, 1.0, -0.3, 1.6, np.array([0.001, 0.002]), 400, 800)
metres = st.floats(-0.15, 0.15)


@given(metres, metres, metres)
def test_a_pixel_lies_on_the_ray_through_its_point(x: float, y: float, z: float) -> None:
    point = np.array([x, y, 1.2 + z])
    column, row = FILM.to_pixels(point)
    on_detector = np.array([-0.3 + (column + 0.5) * 0.001, 0.25, 1.6 - (row + 0.5) * 0.002])
    ray, other = point - FILM.source, on_detector - FILM.source
    assert np.linalg.norm(np.cross(ray, other)) < 1e-9  # source, point and pixel are in one line


def test_near_things_are_larger() -> None:
    def length_px(y: float) -> float:
        ends = np.array([[0.0, y, 1.2], [0.1, y, 1.2]])
        return float(np.ptp(FILM.to_pixels(ends)[:, 0]))

    assert FILM.magnification == pytest.approx(1.25)
    assert length_px(0.0) == pytest.approx(125)  # 100 mm at 1 mm a pixel, 1.25 times
    assert length_px(0.25) == pytest.approx(100)  # on the detector itself
    assert length_px(-0.2) == pytest.approx(100 * 1.25 / 0.8)


def test_other_pixels_show_the_same_place() -> None:
    small, point = FILM.resized(100, 200), np.array([0.05, 0.02, 1.3])
    assert (FILM.to_pixels(point) + 0.5) / 4 == pytest.approx(small.to_pixels(point) + 0.5)
    assert small.pitch * [200, 100] == pytest.approx(FILM.pitch * [800, 400])


def test_what_reaches_the_film_is_shown() -> None:
    box = np.array([[x, 0.0, z] for x in (0.0, 0.1) for z in (1.2, 1.3)])
    assert FILM.shows(box, 0)
    assert not FILM.shows(box + np.array([1.5, 0, 0]), 0)
    assert not FILM.shows(box - [0, 0, 1.5], 0)
    assert FILM.shows(box + np.array([0.5, 0, 0]), 0.15)


def test_the_plane_of_the_joints_has_its_own_grid() -> None:
    x, z = FILM.plane_grid(80)
    assert x.shape == (1, 80)
    assert z.shape == (80, 1)
    points = np.stack([x[0], np.zeros(80), np.full(80, z[17, 0])], axis=1)
    column, row = FILM.to_pixels(points).T
    assert np.diff(column) == pytest.approx(np.full(79, 10), abs=1e-3)
    assert row == pytest.approx(np.full(80, 17.5 * 5 - 0.5), abs=1e-3)
    shadow, scale = FILM.on_plane(np.array([[0.05, 0.0, 1.3], [0.05, -0.5, 1.3]]))
    assert shadow[0] == pytest.approx([0.05, 1.3])
    assert scale == pytest.approx([1, 2])
    assert shadow[1] == pytest.approx(FILM.source[[0, 2]] + 2 * (np.array([0.05, 1.3]) - FILM.source[[0, 2]]))
