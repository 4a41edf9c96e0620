"""The figures of notebook 08 show the bits and the numbers that they were given."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from fedbone.teaching import encryption_figures
from fedbone.teaching.plots import HOSPITAL_COLOURS


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_lane_shows_its_number_in_binary_and_its_empty_headroom():
    _, axes = plt.subplots()
    encryption_figures.lanes(axes, {"a": [1, 10], "b": [1, 15], "sum": [2, 25]}, bits=4, width=5)
    faces = [to_hex(patch.get_facecolor(), keep_alpha=False).upper() for patch in axes.patches]
    assert len(faces) == 3 * 2 * 5
    set_, full = HOSPITAL_COLOURS[0], encryption_figures.SUM  # the lowest bit, on the right, comes first
    assert faces[5:10] == ["#FFFFFF", set_, "#FFFFFF", set_, encryption_figures.HEADROOM]
    assert faces[25:30] == [full, "#FFFFFF", "#FFFFFF", full, full]  # 25 is 11001: the headroom is used
    left = [patch.get_x() for patch in axes.patches[5:10]]
    assert left == sorted(left, reverse=True)
    words = [text.get_text() for text in axes.texts]
    assert [word for word in words if word.isdigit()] == ["1", "10", "1", "15", "2", "25"]
    assert words[-2:] == ["counter", "weight 1"]


def test_costs_stand_at_their_values_and_tell_exact_from_approximate():
    _, axes = plt.subplots()
    encryption_figures.costs(axes, [("packed", 1.1, 50.0, True), ("CKKS", 14.0, 1.0, False)])
    packed, ckks = axes.lines[:2]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in (packed, ckks)] == [(1.1, 50.0), (14.0, 1.0)]
    assert packed.get_marker() != ckks.get_marker()
    assert [text.get_text() for text in axes.texts] == ["packed", "CKKS"]
