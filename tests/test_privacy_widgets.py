import base64
import io
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from fedbone.teaching.page_slider import IN_TEXT
from fedbone.teaching.plots import show
from fedbone.teaching.privacy_widgets import NoiseSlider, Setting, number

JOINTS = ("left_hip", "right_hip", "nose")
LABELS = np.array([[10.0, 20, 2], [20.0, 20, 1], [0.0, 0, 0]])
SETTINGS = [
    Setting(0.05, 311.4, 14.13, LABELS[:, :2] + 4),
    Setting(0.0, math.inf, 0.82, LABELS[:, :2]),
    Setting(2.9, 0.98, 45.0, LABELS[:, :2] + 900),
]


def slider(settings=SETTINGS) -> NoiseSlider:
    return NoiseSlider(np.zeros((32, 32), np.uint8), LABELS, JOINTS, settings)


@pytest.mark.parametrize(
    ("value", "words"), [(math.inf, "infinite"), (33_000.4, "33,000"), (311.4, "311"), (35.62, "36"), (0.981, "0.98")]
)
def test_numbers_are_said_as_a_reader_says_them(value, words):
    assert number(value) == words


def test_the_figure_has_every_setting_by_its_noise_with_labels_and_found_joints():
    figure = slider().figure()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "sigma 0\nepsilon infinite, error 0.8 px",
        "sigma 0.05\nepsilon 311, error 14.1 px",
        "sigma 2.9\nepsilon 0.98, error 45.0 px",
    ]
    axes = figure.axes[1]
    rings = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "o"]
    crosses = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "x"]
    ways = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2]
    assert rings == [[10, 20], [20, 20]]  # the nose has no label
    assert crosses == [[14, 24], [24, 24]]
    assert ways == [[[10, 20], [14, 24]], [[20, 20], [24, 24]]]
    plt.close(figure)


def test_a_joint_found_outside_does_not_shrink_the_film():
    figure = slider().figure()
    assert {axes.get_xlim() for axes in figure.axes} == {(-0.5, 31.5)}
    plt.close(figure)


def test_alt_text_has_the_numbers_of_every_setting():
    told = slider().alt()
    assert "sigma 0: epsilon infinite, error 0.8 px; sigma 0.05: epsilon 311, error 14.1 px" in told
    page = show(slider().figure(), alt=told, photo=True).data
    assert "sigma 2.9: epsilon 0.98" in page


def test_the_slider_changes_the_picture_and_keeps_what_it_drew():
    some = slider()
    choice, page = some.widget.children
    assert [name for name, _ in choice.options] == ["0", "0.05", "2.9"]
    first = page.value
    choice.value = 1
    second = page.value
    assert 'alt="sigma 0.05: epsilon 311, error 14.1 px"' in second
    choice.value = 0
    assert page.value == first != second
    assert some.widget is some.widget
    assert not plt.get_fignums()
    data = base64.b64decode(re.search(r'base64,([^"]+)"', second).group(1))
    assert Image.open(io.BytesIO(data)).width > 500


def test_without_a_front_end_a_sentence_says_where_the_pictures_are():
    bundle = slider()._repr_mimebundle_()
    assert bundle["text/plain"] == IN_TEXT
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_a_slider_needs_a_setting():
    with pytest.raises(ValueError, match="no page"):
        slider([])
