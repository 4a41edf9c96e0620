"""The figures of notebook 07 show the numbers that they were given, with and without a front end."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from fedbone.errors import UserError
from fedbone.privacy.membership import largest_tpr, roc
from fedbone.teaching import attack_figures
from fedbone.teaching.page_slider import IN_TEXT

FILM = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_strip_and_a_grid_hold_every_film_under_its_name():
    row = attack_figures.strip([("first", FILM), ("second", 1 - FILM)])
    assert [axes.get_title() for axes in row.axes] == ["first", "second"]
    np.testing.assert_array_equal(row.axes[1].images[0].get_array(), 1 - FILM)
    table = attack_figures.grid({"film": [FILM, FILM], "found": [1 - FILM, 0 * FILM]})
    assert [axes.get_title() for axes in table.axes] == ["film", "found", "", ""]
    np.testing.assert_array_equal(table.axes[3].images[0].get_array(), 0 * FILM)


def test_points_and_controls_stand_at_their_values():
    _, axes = plt.subplots()
    attack_figures.against_controls(axes, {"raw": [0.9, 0.8], "noise": [0.1]}, {"mean film": 0.4})
    raw, noise, control = axes.lines
    assert list(raw.get_xdata()) == [0.9, 0.8]
    assert list(noise.get_ydata()) == [1]
    assert list(control.get_xdata()) == [0.4, 0.4]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["raw", "noise"]


def test_the_roc_has_a_dashed_limit_where_there_is_an_epsilon():
    rng = np.random.default_rng(0)
    included = rng.random((4, 500)) < 0.5
    curve = roc(rng.normal(size=included.shape) + included, included)
    _, axes = plt.subplots()
    attack_figures.log_roc(axes, {"open": curve, "private": curve}, {"private": 1.0}, 1e-5)
    dashed = [line for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert len(dashed) == 1
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words == ["open", "private", "most that its epsilon allows", "guessing"]
    rates, most = dashed[0].get_xdata(), dashed[0].get_ydata()
    assert most[0] == pytest.approx(largest_tpr(rates[0], 1.0, 1e-5))
    assert axes.lines[0].get_ydata()[-1] == 1


def attempts() -> list[attack_figures.Attempt]:
    return [
        attack_figures.Attempt(0.6, 8.0, 0 * FILM, 0.01),
        attack_figures.Attempt(0.0, float("inf"), FILM, 0.99),
    ]


def test_the_slider_goes_from_no_noise_up_and_says_what_it_shows():
    slider = attack_figures.PictureSlider(FILM, attempts())
    assert "noise 0: epsilon infinite, SSIM 0.99; noise 0.6: epsilon 8, SSIM 0.01" in slider.alt()
    assert next(axes.get_title() for axes in slider.figure().axes) == "the film"
    choice, page = slider.widget.children
    before = page.value
    choice.value = 1
    assert "noise 0.6" in page.value
    assert "noise 0:" in before
    assert slider._repr_mimebundle_()["text/plain"] == IN_TEXT
    with pytest.raises(UserError, match="no page"):
        attack_figures.PictureSlider(FILM, [])
