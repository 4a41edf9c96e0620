"""The three hospitals: two readers, exchanged sides, copies, views, and lead balls through the whole chain."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pydicom
import pytest

from fedbone.imaging import sites
from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.dicom import read_film
from fedbone.imaging.film_files import film_bytes
from fedbone.imaging.projection import Projection
from fedbone.imaging.radiograph import Furniture
from fedbone.imaging.site_table import PLACES, SITES
from fedbone.imaging.sites import (
    SAMPLE_FROM,
    TEST_FROM,
    VIEWS,
    Exposure,
    _truth,
    read_labels,
    render,
    training_labels,
)

QUICK = {("hospital_a", "OBLIQUE"), ("hospital_b", "AP"), ("hospital_c", "LATERAL")}
BALL_VIEWS = [
    pytest.param(name, view, marks=() if (name, view) in QUICK else pytest.mark.slow)
    for name in SITES
    for view in VIEWS
]


def film(hospital: str, index: int, **options: object) -> Exposure:
    return render(hospital, 0, index, (64, 64), SITES[hospital].film, **options)


def pictures_with_and_without(tmp_path, hospital: str, view: str, balls: tuple[int, ...]) -> tuple[Exposure, list]:
    """One film with and one without balls, written as DICOM and read back at 1024 pixels.

    Clean dose, a wide window and a detector of 0.2 to 0.6 mm pixels, so that neither noise nor clipping nor coarse
    pixels hide a ball of 2 mm; all other steps are as on any film.
    """
    site, shape = SITES[hospital], tuple(3 * side for side in SITES[hospital].film)
    beam = dataclasses.replace(site.beam, photons_per_mm2=1e11)
    PLACES[hospital] = dataclasses.replace(site, beam=beam, blades_m=0.0)
    try:
        exposures = [render(hospital, 2, 6, shape, shape, view=view, balls=joints) for joints in (balls, ())]
    finally:
        PLACES[hospital] = site
    limits = min(e.film.min() for e in exposures), max(e.film.max() for e in exposures)
    films = []
    for number, exposure in enumerate(exposures):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(film_bytes(hospital, 2, 6, dataclasses.replace(exposure, limits=limits)))
        films.append(read_film(path, 1024))
    return exposures[0], films


@pytest.mark.parametrize("side", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize(("hospital", "view"), BALL_VIEWS)
def test_a_lead_ball_on_each_joint_is_found_at_its_label(tmp_path, hospital: str, view: str, side: int) -> None:
    """Its centroid lies within 0.1 mm of the label; one side at a time, as in a lateral view one ball hides another."""
    joints = tuple(range(1 + side, 17, 2))
    exposure, (with_balls, without) = pictures_with_and_without(tmp_path, hospital, view, joints)
    ball, frame = np.abs(with_balls.image.astype(float) - without.image), with_balls.frame
    mm = exposure.pitch_mm / exposure.magnification * exposure.film.shape[0] / frame.inner[0]  # a pixel at the joints
    y, x = np.mgrid[:1024, :1024]
    labels = {j: frame.to_array(exposure.truth[j, :2]) for j in joints if exposure.truth[j, 2]}
    for joint, label in labels.items():
        if any(np.linalg.norm((label - labels[j]) * mm) < 10 for j in labels if j != joint):
            continue  # one ball in the shadow of another
        distance_mm = np.hypot((x - label[0]) * mm[0], (y - label[1]) * mm[1])
        near = np.where(distance_mm < 4.5, ball, 0)
        assert near.max() > 8, COCO_JOINTS[joint]
        centre = np.array([(near * x).sum(), (near * y).sum()]) / near.sum()
        assert np.abs((centre - label) * mm).max() < 0.1, COCO_JOINTS[joint]
    assert labels


@pytest.mark.parametrize("hospital", SITES)
def test_readers_scatter_around_the_truth_by_their_spread(hospital: str) -> None:
    site, off_mm = SITES[hospital], [[], []]
    for index in range(TEST_FROM, TEST_FROM + 60):
        exposure = film(hospital, index)
        for reader, labels in enumerate(read_labels(hospital, 0, index, exposure)):
            seen = labels[:, 2] > 0
            px = labels[seen, :2] - exposure.truth[seen, :2]
            off_mm[reader].append(px * exposure.pitch_mm / exposure.magnification)
            assert set(np.flatnonzero(seen)) <= set(site.labels)
    for reader, offsets in zip(site.readers, off_mm, strict=True):
        offsets = np.concatenate(offsets)
        assert offsets.std(axis=0) == pytest.approx([reader.spread_mm] * 2, rel=0.2)
        assert offsets.mean(axis=0) == pytest.approx(reader.bias_mm, abs=4 * reader.spread_mm / len(offsets) ** 0.5)


def swapped(hospital: str, index: int) -> bool:
    """Whether the first reader's left joints lie where the true right ones are."""
    exposure = film(hospital, index)
    labels = read_labels(hospital, 0, index, exposure)[0]
    pairs = [(j, j + 1) for j in range(1, 17, 2) if labels[j, 2] and labels[j + 1, 2]]
    gap = [np.linalg.norm(labels[a, :2] - exposure.truth[a, :2]) for a, _ in pairs]
    other = [np.linalg.norm(labels[a, :2] - exposure.truth[b, :2]) for a, b in pairs]
    return bool(pairs) and sum(gap) > sum(other)


def test_hospital_a_exchanges_sides_on_three_films_in_a_hundred() -> None:
    assert [i for i in range(66) if swapped("hospital_a", i)] == [25, 58]
    assert [i for i in range(12) if swapped("hospital_a", SAMPLE_FROM + i)] == [5]  # one in the sample
    assert not any(swapped("hospital_a", TEST_FROM + i) for i in range(40))  # test films are checked
    assert not any(swapped("hospital_c", i) for i in (25, 58))
    second = read_labels("hospital_a", 0, 25, film("hospital_a", 25))[1]
    assert np.abs(second[11:13, :2] - film("hospital_a", 25).truth[11:13, :2]).max() < 12  # the other reader does not


def test_hospital_b_holds_copies_under_another_name() -> None:
    copy, original = film("hospital_b", 9), film("hospital_b", 5)
    assert (copy.film == original.film).all()
    assert copy.patient_number != original.patient_number
    labels = [read_labels("hospital_b", 0, i, film("hospital_b", i))[0] for i in (5, 9)]
    assert (labels[0] != labels[1]).any()  # read again
    assert (film("hospital_b", 10).film != film("hospital_b", 6).film).any()
    assert (film("hospital_a", 9).film != film("hospital_a", 5).film).any()
    tests = [film("hospital_b", TEST_FROM + i).film for i in range(20)]
    assert len({t.tobytes() for t in tests}) == 20
    assert (film("hospital_b", SAMPLE_FROM + 9).film == film("hospital_b", SAMPLE_FROM + 5).film).all()


def test_test_labels_are_the_mean_of_both_readers() -> None:
    for index, expected in ((3, 0), (TEST_FROM + 3, None)):
        exposure = film("hospital_c", index)
        both = read_labels("hospital_c", 0, index, exposure)
        wanted = both.mean(axis=0) if expected is None else both[expected]
        assert np.array_equal(training_labels("hospital_c", 0, index, exposure), wanted)


def test_views_and_their_shares() -> None:
    views = {name: [film(name, i).view for i in range(60)] for name in SITES}
    for name, site in SITES.items():
        assert set(views[name]) == {"AP", site.special_view}
        assert 0 < views[name].count(site.special_view) < 15
    assert film("hospital_b", 3, view="LATERAL").marker == "L"
    assert film("hospital_a", 3).marker == "R"


def test_a_film_of_the_whole_chain_names_its_view(tmp_path) -> None:
    exposure = render("hospital_c", 0, 2, SITES["hospital_c"].film, SITES["hospital_c"].film, view="LATERAL")
    dataset = pydicom.dcmread(io.BytesIO(film_bytes("hospital_c", 0, 2, exposure)))
    assert dataset.ViewPosition == "LL"
    assert dataset.ViewCodeSequence[0].CodeMeaning.lower() == "left lateral"
    assert dataset.DistanceSourceToDetector == pytest.approx(1800)
    assert pytest.approx(85) == dataset.KVP


def test_joints_behind_the_blades_are_not_labelled() -> None:
    joints = np.zeros((17, 3))
    joints[13] = [0.10, 0, 0]
    projection = Projection(np.array([0, -1.0, 0]), 1.1, 1.0, -0.22, 0.22, np.full(2, 0.001), 440, 440)
    for blade, seen in ((0.0, 2), (0.08, 2), (0.13, 0)):  # its shadow lies 0.11 m from the right border
        truth = _truth(projection, joints, Furniture(blades_m=(0.0, 0.0, blade, 0.0)))
        assert truth[13, 2] == seen
        assert seen or not truth[13].any()
    for index in range(30):
        x, y, seen = film("hospital_b", index).truth.T
        rows, cols = SITES["hospital_b"].film
        assert ((x >= 6) & (x <= cols - 7) & (y >= 6) & (y <= rows - 7))[seen > 0].all()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("hospital", SITES)
def test_no_labelled_joint_lies_behind_the_detector(hospital: str, view: str, monkeypatch) -> None:
    seen = []
    expose = sites.expose
    monkeypatch.setattr(sites, "expose", lambda posed, projection, *rest: seen.append((posed, projection)) or
                        expose(posed, projection, *rest))  # fmt: skip
    for index in range(6):
        render(hospital, 0, index, (32, 32), SITES[hospital].film, view=view)
    for posed, projection in seen:
        depth = posed.joints_mm[list(SITES[hospital].labels), 1] / 1000 - projection.source[1]
        assert depth.max() < projection.detector_m
        assert projection.magnification > 1
