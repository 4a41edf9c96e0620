import re

import matplotlib.pyplot as plt
import numpy as np

from fedbone.teaching.plots import LEFT, RIGHT, curves, films, grouped_bars, joint_colour, show


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


def test_line_art_is_png():
    lines = curves({"federated": [{"r": 1, "e": 2.0}]}, "r", "e", "round", "error")
    assert "data:image/png" in show(lines, "curve").data
    bars = grouped_bars(["hip"], {"federated": [1.0], "pooled": [np.nan]}, "PCK")
    assert "data:image/png" in show(bars, "bars").data
