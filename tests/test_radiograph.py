"""Films: attenuation of the tables, noise of quanta, grid, blades, letter, and a smooth picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedbone.imaging.patients import draw_arms, draw_legs
from fedbone.imaging.projection import Projection
from fedbone.imaging.radiograph import Beam, Furniture, _grid_loss, _letter, _open_field, expose, to_grey
from fedbone.imaging.site_table import PLACES, SITES
from fedbone.imaging.sites import render
from fedbone.imaging.skeleton import Patient, PosedSkeleton, load_skeleton

BEAM = Beam(75.0, 1e6, 0.15, None, 0.0, 0.0)


@pytest.fixture(scope="module")
def scene() -> tuple[PosedSkeleton, Projection]:
    rng = np.random.default_rng(0)
    posed = load_skeleton().pose(Patient(), draw_legs(rng), arms=draw_arms(False, "AP", rng))
    centre = posed.joints_mm[11:13].mean(axis=0) / 1000
    source, pitch = centre - [0, 1.0, 0], np.array([0.5 / 200, 0.4 / 160])
    return posed, Projection(source, 1.17, 1.0, centre[0] - 0.25, centre[2] + 0.2, pitch, 160, 200)


def test_attenuation_lies_between_the_tabulated_energies() -> None:
    """At 72.7 kVp the mean energy is 40 keV, a node of the table: 0.2688 and 0.6655 cm2/g (NISTIR 5632)."""
    soft, spongy, cortical = Beam(40 / 0.55, 1, 0, None, 0, 0).attenuation()
    assert soft == pytest.approx(0.2688 * 1.06 * 100)
    assert cortical + soft == pytest.approx(0.6655 * 1.92 * 100)
    assert 0 < spongy < cortical
    harder = Beam(90, 1, 0, None, 0, 0).attenuation()
    assert harder[2] / harder[0] < cortical / soft  # bone stands out less at a higher voltage


def film_of(scene, beam: Beam = BEAM, furniture: Furniture | None = None, seed: int = 0) -> np.ndarray:
    return expose(*scene, beam, furniture or Furniture(at=(0.03, 0.8)), np.random.default_rng(seed))[0]


def test_quantum_noise_falls_with_the_root_of_the_dose(scene) -> None:
    bright = (slice(40, 120), slice(60, 140))

    def noise(photons: float) -> float:
        """Spread between two exposures that differ in nothing but the quanta."""
        beam = dataclasses.replace(BEAM, photons_per_mm2=photons, blur_mm=0.01)
        clean = film_of(scene, dataclasses.replace(beam, photons_per_mm2=1e12))[bright]
        return float((film_of(scene, beam)[bright] - clean).std())

    assert noise(1e6) / noise(16e6) == pytest.approx(4, rel=0.1)


def test_a_grid_off_its_focus_darkens_the_sides_alone(scene) -> None:
    projection = scene[1]
    loss = _grid_loss(projection, dataclasses.replace(BEAM, grid_focus_m=1.0, grid_ratio=10.0))[0]
    x = abs(projection.left + 0.5 * projection.pitch[0] - projection.source[0])
    assert loss[0] == pytest.approx(-np.log(1 - 10 * x * (1 / 1.0 - 1 / 1.17)), rel=1e-4)
    assert loss[100] < 0.01 * loss[0]
    assert not _grid_loss(projection, dataclasses.replace(BEAM, grid_focus_m=1.17, grid_ratio=10.0)).any()
    assert not _grid_loss(projection, BEAM).any()


def test_blades_stop_the_beam(scene) -> None:
    projection = scene[1]
    field = _open_field(projection, (0.05, 0.0, 0.025, 0.1))
    assert (field.shape, field.min(), field.max()) == ((160, 200), 0, 1)
    pitch = projection.pitch
    assert (field > 0.5).sum() * pitch.prod() == pytest.approx((0.5 - 0.075) * (0.4 - 0.1), rel=0.02)
    assert field[0, 100] == 1
    assert field[0, 0] == field[0, -1] == field[-1, 100] == 0
    closed = film_of(scene, furniture=Furniture(blades_m=(0.05, 0.0, 0.025, 0.1)))
    assert closed[80, 5] > closed[40:100, 60:140].max()  # unexposed is white
    assert (_open_field(projection, (0, 0, 0, 0)) == 1).all()


def test_the_letter_lies_where_it_was_put_and_reads_the_right_way(scene) -> None:
    projection = scene[1].resized(640, 800)
    letter = _letter(projection, Furniture("L", (0.5, 0.25)))
    y, x = np.nonzero(letter > 0.5)
    assert 0.5 * 800 <= x.min() < x.max() < 0.56 * 800
    assert 0.25 * 640 <= y.min() < y.max() < 0.33 * 640
    height = np.ptp(y)
    assert height * projection.pitch[1] == pytest.approx(0.012, abs=0.004)
    stroke, foot = letter[y.min() + height // 2], letter[y.max() - 2]
    assert np.flatnonzero(stroke > 0.5).max() < x.mean()  # the stem of an L stands on its left
    assert np.ptp(np.flatnonzero(foot > 0.5)) > 0.8 * np.ptp(x)
    assert (_letter(projection, Furniture("L", (0.5, 0.25), ring=True)) > 0.5).sum() > len(x) * 1.5
    _letter(projection, Furniture("R", (0.99, 0.99)))  # cut off at the border, no error


def test_to_grey_is_bone_bright_and_clips() -> None:
    film = np.array([[0.0, 1.0, 2.0, 3.0, 9.0]])
    assert to_grey(film, (1.0, 3.0)).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("hospital", SITES)
def test_films_use_the_grey_range(hospital: str) -> None:
    exposure = render(hospital, 5, 3, SITES[hospital].film, SITES[hospital].film)
    grey = to_grey(exposure.film, exposure.limits)
    assert np.isfinite(exposure.film).all()
    assert np.percentile(grey, 99.9) > 225
    assert len(np.unique(grey)) > 150


@pytest.mark.parametrize("hospital", SITES)
def test_bone_edges_are_smooth(hospital: str) -> None:
    """No ripple of the sampling: the finest scale holds noise of quanta only, no more than the counts explain."""
    site = dataclasses.replace(SITES[hospital], beam=dataclasses.replace(SITES[hospital].beam, photons_per_mm2=1e12))
    before = SITES[hospital]
    PLACES[hospital] = site
    try:
        exposure = render(hospital, 1, 2, site.film, site.film)
    finally:
        PLACES[hospital] = before
    grey = np.clip((exposure.film - exposure.limits[0]) / np.ptp(exposure.limits), 0, 1)
    checker = np.abs(grey[:-1, :-1] - grey[1:, :-1] - grey[:-1, 1:] + grey[1:, 1:])  # what alternates every pixel
    assert np.median(checker[grey[:-1, :-1] > 0.3]) < 0.01
