"""Two readings of one film: exchanged sides, and the scatter and offset of readers against known ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from fedbone.errors import UserError
from fedbone.imaging import readings
from fedbone.imaging.coco import write_annotations
from tests.dicom_cases import film, ramp, save

JOINTS = ("nose", "left_hip", "right_hip", "left_knee", "right_knee", "left_thumb")
POINTS = np.array([[50, 10, 2], [70, 60, 2], [30, 60, 2], [68, 110, 1], [33, 112, 2], [5, 5, 0]], float)
REFERENCE = 102.0  # nose to right knee


def points(shift: np.ndarray | float = 0.0) -> readings.Points:
    return readings.labelled(JOINTS, POINTS + np.array([1, 1, 0]) * shift)


def test_pairs_come_from_the_names() -> None:
    assert readings.side_pairs(points()) == [("left_hip", "right_hip"), ("left_knee", "right_knee")]
    one = readings.labelled(("left_heel", "chin", "right_toe"), np.full((3, 3), 2.0))
    assert readings.side_pairs(one) == []
    assert readings.exchange_sides(one).keys() == one.keys()


def test_reference_is_the_box_or_three_eighths_of_the_film() -> None:
    assert readings.reference_px(points(), 120, 90) == REFERENCE
    assert readings.reference_px(points(), 800, 90) == 300
    assert readings.reference_px({"nose": np.zeros(2)}, 90, 80) == 33.75


@given(st.integers(0, 2**32 - 1))
def test_exchanged_sides_are_seen_through_the_scatter_of_readers(seed: int) -> None:
    other = points(np.random.default_rng(seed).uniform(-5, 5, POINTS.shape))  # the narrowest pair is 35 px wide
    assert not readings.swapped(points(), other, REFERENCE)
    assert readings.swapped(points(), readings.exchange_sides(other), REFERENCE)


@given(st.integers(0, 2**32 - 1))
def test_superimposed_sides_are_not_judged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    flat = POINTS.copy()
    flat[[2, 4], :2] = flat[[1, 3], :2] + 3  # a lateral film
    first, second = (readings.labelled(JOINTS, flat + rng.uniform(-4, 4, flat.shape) * [1, 1, 0]) for _ in range(2))
    assert not readings.swapped(first, second, REFERENCE)
    assert not readings.swapped(first, readings.exchange_sides(second), REFERENCE)
    assert readings.side(first, 1, REFERENCE) == 0


def test_side_follows_the_sum_over_the_pairs() -> None:
    assert readings.side(points(), 1, REFERENCE) == 1
    assert readings.side(points(), -1, REFERENCE) == -1
    assert readings.side(readings.exchange_sides(points()), 1, REFERENCE) == -1
    assert readings.side(points(), 0, REFERENCE) == 0
    assert readings.side({"nose": np.zeros(2)}, 1, REFERENCE) == 0
    odd = points() | {"left_knee": points()["right_knee"], "right_knee": points()["left_knee"]}
    assert readings.odd_pairs(odd, 1, REFERENCE) == [("left_knee", "right_knee")]
    assert readings.odd_pairs(points(), 1, REFERENCE) == []
    assert readings.odd_pairs(readings.exchange_sides(points()), 1, REFERENCE) == []  # a matter for the whole film


@pytest.mark.parametrize(
    ("orientation", "view", "facing"),
    [
        (None, None, 1), (["L", "F"], "AP", 1), (["L", "F"], None, 1), (["LF", "F"], "LAO", 1), (["R", "F"], "AP", -1),
        (["A", "F"], None, 0), (["P", "F"], "AP", 0), (None, "PA", 1), (None, "LL", 0), (None, "RL", 0), ("", "", 1),
    ],
)  # fmt: skip
def test_facing_of(orientation: list[str] | None, view: str | None, facing: int) -> None:
    dataset = Dataset()
    if orientation is not None:
        dataset.PatientOrientation = orientation
    if view is not None:
        dataset.ViewPosition = view
    assert readings.facing_of(dataset) == facing


def test_spread_by_hand() -> None:
    found = readings.spread(np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -1.0]]))
    assert (found.films, found.mean, found.offset) == (3, 2.0, (1.0, 1.0))
    assert found.sd == pytest.approx(np.sqrt(7))  # 5, 0, 1 around 2: (9 + 4 + 1) / 2
    half = 1.96 * np.sqrt(np.array([3.0, 7.0]))  # x: 2, -1, -1; y: 3, -1, -2
    np.testing.assert_allclose([found.low, found.high], [1 - half, 1 + half])
    one = readings.spread(np.array([[3.0, 4.0]]))
    assert (one.films, one.mean, one.offset) == (1, 5.0, (3.0, 4.0))
    assert np.isnan([one.sd, *one.low, *one.high]).all()


def read_twice(place: Path, films: int = 400, swap: int = 7) -> None:
    """Films of 0.2 x 0.4 mm; the second reader is 2 px low with 3 px SD at the hips, and exchanges sides on some."""
    rng = np.random.default_rng(0)
    images, first, second = [], [], []
    for number in range(films):
        images.append({"file_name": f"{number}.dcm", "width": 90, "height": 120})
        again = POINTS.copy()
        again[1:3, :2] += rng.normal((0, 2), 3, (2, 2))
        again[5] = (7, 7, 2)  # only labelled by the second
        first.append(POINTS)
        if number % 50 == swap:
            again[[1, 2, 3, 4]] = again[[2, 1, 4, 3]]
        second.append(again)
        pitch = [0.2, 0.4] if number % 2 else None
        save(place / f"{number}.dcm", film(ramp(120, 90), PixelSpacing=pitch) if pitch else film(ramp(120, 90)))
    write_annotations(place / "annotations.json", JOINTS, images, first)
    write_annotations(place / "second_reader.json", JOINTS[::-1], images[::-1], [p[::-1] for p in second[::-1]])


def test_reader_spread_recovers_what_was_planted(tmp_path: Path) -> None:
    read_twice(tmp_path)
    found = readings.reader_spread(tmp_path)
    assert {joint for joint, _ in found} == set(JOINTS[:5])
    for joint in ("left_hip", "right_hip"):
        px, mm = found[joint, "px"], found[joint, "mm"]
        assert (px.films, mm.films) == (392, 192)  # 8 exchanged films are left out, half have no spacing
        assert px.offset == pytest.approx((0, 2), abs=0.6)
        assert mm.offset == pytest.approx((0, 0.4), abs=0.3)
        assert px.high[0] - px.low[0] == pytest.approx(2 * 1.96 * 3, rel=0.15)
        assert mm.high[0] - mm.low[0] == pytest.approx(2 * 1.96 * 3 * 0.4, rel=0.2)
        assert mm.high[1] - mm.low[1] == pytest.approx(2 * 1.96 * 3 * 0.2, rel=0.2)
        assert 3 < px.mean < 5.5
    assert found["nose", "px"].mean == found["nose", "px"].sd == 0


def test_reader_spread_goes_on_without_a_film_and_needs_both_files(tmp_path: Path) -> None:
    read_twice(tmp_path, films=4, swap=99)
    (tmp_path / "1.dcm").unlink()
    (tmp_path / "3.dcm").write_text("a text file")
    found = readings.reader_spread(tmp_path)
    assert found["nose", "px"].films == 4
    assert ("nose", "mm") not in found
    (tmp_path / "second_reader.json").unlink()
    with pytest.raises(UserError, match=r"second_reader\.json"):
        readings.reader_spread(tmp_path)
