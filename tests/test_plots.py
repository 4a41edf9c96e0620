import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from fedbone.model.hrnet import PRESETS
from fedbone.teaching.plots import (
    LEFT,
    RIGHT,
    as_table,
    bland_altman,
    curves,
    draw_film,
    films,
    forest,
    grouped_bars,
    intervals,
    joint_colour,
    matrix,
    network,
    seeds,
    show,
)


def test_every_picture_carries_its_alternative_text_and_is_closed():
    figure = films([np.zeros((8, 8), np.uint8)], [np.ones((2, 3))], ("left_hip", "right_hip"), ["a"])
    page = show(figure, 'a "film" with <two> hips', photo=True).data
    assert re.search(r'alt="a &quot;film&quot; with &lt;two&gt; hips"', page)
    assert "data:image/jpeg;base64," in page
    assert not plt.get_fignums()


def test_sides_keep_their_colours():
    assert (joint_colour("left_knee"), joint_colour("right_knee")) == (LEFT, RIGHT)


def test_unlabelled_joints_are_not_drawn():
    figure = films([np.zeros((8, 8), np.uint8)], [np.array([[1, 1, 0], [2, 2, 1]])], ("left_hip", "right_hip"), ["a"])
    assert len(figure.axes[0].lines) == 1
    plt.close(figure)


@pytest.mark.parametrize("size", [7, 4])
def test_markers_and_their_lines_shrink_together(size):
    _, axes = plt.subplots()
    draw_film(axes, np.zeros((8, 8), np.uint8), np.array([[1.0, 2.0]]), ("left_hip",), size=size)
    assert (axes.lines[0].get_markersize(), axes.lines[0].get_markeredgewidth()) == (size, 1.6 * size / 7)
    plt.close("all")


def test_line_art_is_png():
    lines = curves({"federated": [{"r": 1, "e": 2.0}]}, "r", "e", "round", "error")
    assert "data:image/png" in show(lines, "curve").data
    bars = grouped_bars(["hip"], {"federated": [1.0], "pooled": [np.nan]}, "PCK")
    assert "data:image/png" in show(bars, "bars").data


def test_line_art_keeps_its_colours_in_a_palette():
    figure, axes = plt.subplots()
    axes.add_patch(plt.Rectangle((0, 0), 1, 1, color="#D55E00"))
    data = re.search(r'base64,([^"]+)"', show(figure, "an orange square").data).group(1)
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.mode == "P"
    assert picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2)) == pytest.approx(
        (0xD5, 0x5E, 0x00), abs=4
    )


@pytest.mark.parametrize(("preset", "exchanges"), [("w8n", (1, 1, 1)), ("w32", (1, 4, 3))])
def test_the_network_is_drawn_to_scale(preset, exchanges):
    axes = network(PRESETS[preset], 128).axes[0]
    sides = [patch.get_width() for patch in axes.patches if isinstance(patch, plt.Rectangle)]
    assert sorted(set(sides)) == [1 / 8, 1 / 4, 1 / 2, 1]
    # stages 1 to 4, before and after their exchange, and the heatmaps: the last exchange feeds the finest branch only
    assert [sides.count(side) for side in (1, 1 / 2, 1 / 4, 1 / 8)] == [8, 5, 3, 1]
    words = [text.get_text() for text in axes.texts]
    counts = [word.split("\n")[1].split()[0] for word in words if word.startswith("stage")][1:]
    assert counts == [str(number) for number in exchanges]
    assert {"1/4 of the film\n32 x 32 px", "1/32 of the film\n4 x 4 px"} <= set(words)
    plt.close("all")


def test_each_seed_is_a_point_and_each_group_has_its_mean():
    _, axes = plt.subplots()
    seeds(axes, [{"loss": "a", "x": "1"}, {"loss": "a", "x": "3"}, {"loss": "b", "x": "5"}], "loss", "x", "x")
    points = [line.get_xdata() for line in axes.lines[::2]]
    assert [list(xs) for xs in points] == [[1, 3], [5]]
    assert [line.get_xdata()[0] for line in axes.lines[1::2]] == [2, 5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    plt.close("all")


def test_bland_altman_draws_second_minus_first_over_the_mean():
    _, axes = plt.subplots()
    bland_altman(axes, np.array([1.0, 2.0]), np.array([3.0, 2.0]), {"bias": 1.0, "limits": [-1.0, 3.0]}, "deg")
    assert axes.lines[0].get_xydata().tolist() == [[2, 2], [2, 0]]
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [1, -1, 3]
    plt.close("all")


def test_intervals_stand_in_the_given_order_and_may_be_missing():
    _, axes = plt.subplots()
    intervals(axes, ["worst", "best"], [0.5, 1.0], [[0.2, 0.8], None], "PCK")
    bar, worst, best = axes.lines
    assert bar.get_xydata().tolist() == [[0.2, 0], [0.8, 0]]
    assert [point.get_xydata().tolist() for point in (worst, best)] == [[[0.5, 0]], [[1.0, 1]]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["worst", "best"]
    assert axes.get_ylim() == (1.5, -0.5)  # the first on top
    plt.close("all")


def test_a_matrix_has_a_readable_text_in_every_cell():
    _, axes = plt.subplots()
    matrix(axes, ["a", "b"], ["x", "y"], np.array([[1.0, 0.0], [0.2, 0.9]]), [["ax", "ay"], ["bx", "by"]])
    cells = {text.get_text(): (text.get_position(), text.get_color()) for text in axes.texts}
    assert cells["ay"] == ((1, 0), "white")
    assert cells["bx"] == ((0, 1), "white")
    assert cells["ax"][1] == cells["by"][1] == "black"
    assert axes.images[0].get_clim() == (0, 1)
    plt.close("all")


def test_a_forest_marks_each_difference_by_where_its_interval_lies():
    _, axes = plt.subplots()
    rows = [("joined", -0.2, -0.3, -0.1), ("pooled", 0.2, 0.1, 0.3), ("joined", 0.1, -0.1, 0.2)]
    forest(axes, rows, "px")
    points = {round(line.get_xdata()[0], 6): line for line in axes.lines if len(line.get_xdata()) == 1}
    assert [points[x].get_marker() for x in (-0.2, 0.2, 0.1)] == ["o", "s", "D"]
    assert [points[x].get_markerfacecolor() == "white" for x in (-0.2, 0.2, 0.1)] == [False, False, True]
    bars = [list(line.get_xdata()) for line in axes.lines if line.get_lw() == 1.6]
    assert bars == [[-0.3, -0.1], [-0.1, 0.2], [0.1, 0.3]]
    heights = [round(float(points[x].get_ydata()[0]), 6) for x in (-0.2, 0.1, 0.2)]
    assert heights == [-0.11, 0.11, 1]  # two of one name share a row
    assert [label.get_text() for label in axes.get_yticklabels()] == ["joined", "pooled"]
    assert axes.get_ylim() == (1.5, -0.5)
    plt.close("all")


def test_a_table_is_markdown_with_a_row_a_line():
    table = as_table(["name", "count"], [["hips", 3], ("knees", 4)])
    assert table.data.splitlines() == ["| name | count |", "| --- | --- |", "| hips | 3 |", "| knees | 4 |"]
