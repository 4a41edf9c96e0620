import math
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
import pytest

from fedbone.teaching.privacy_figures import (
    attacks,
    band,
    bells,
    best_attack,
    error_by_epsilon,
    over,
    plain_log,
    window,
)


@pytest.fixture
def axes():
    _, axes = plt.subplots()
    yield axes
    plt.close("all")


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
def test_the_best_attack_is_that_of_a_threshold_on_many_draws(mu):
    rng = np.random.default_rng(0)
    absent, present = rng.normal(0, 1, 200_000), rng.normal(mu, 1, 200_000)
    rates = np.array([0.01, 0.1, 0.5, 0.9])
    thresholds = np.quantile(absent, 1 - rates)
    expected = [(present > threshold).mean() for threshold in thresholds]
    assert best_attack(mu, rates) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
def test_the_best_attack_touches_the_limit_of_its_own_delta(epsilon):
    """TPR <= e^eps FPR + delta everywhere, with equality once; delta after Balle and Wang, ICML 2018, theorem 8."""
    rates, mu, cdf = np.geomspace(1e-9, 1, 20_000), 1.0, NormalDist().cdf
    delta = cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)
    room = math.exp(epsilon) * rates + delta - best_attack(mu, rates)
    assert room.min() > -1e-7
    assert room.min() == pytest.approx(0, abs=1e-5)


def test_best_attack_keeps_its_ends():
    assert best_attack(1.0, np.array([0.0, 1.0])) == pytest.approx([0, 1], abs=1e-6)


def test_the_odds_of_the_bells_are_the_ratio_of_the_drawn_heights(axes):
    odds = bells(axes, 1.5, 2.0, "epsilon 8")
    without, with_her = (line for line in axes.lines[:2])
    x = without.get_xdata()
    at = np.abs(x - 2.0).argmin()
    assert with_her.get_ydata()[at] / without.get_ydata()[at] == pytest.approx(math.exp(1.5 * (x[at] - 0.75)))
    assert odds == pytest.approx(math.exp(1.5 * 1.25))
    assert f"odds × {odds:.2g}" in axes.texts[0].get_text()
    assert x[with_her.get_ydata().argmax()] == pytest.approx(1.5, abs=0.02)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["without her", "with her"]


def test_attacks_stand_below_the_limit_of_their_colour(axes):
    rates = np.linspace(0, 1, 50)
    attacks(axes, {"epsilon 1": (rates, best_attack(0.268, rates))}, [1.0])
    attained, limit, diagonal = axes.lines
    assert attained.get_ydata().tolist() == best_attack(0.268, rates).tolist()
    x, y = limit.get_data()
    assert y[1] == pytest.approx(math.e * x[1])  # e^eps FPR at its left end, its mirror image at the right
    assert 1 - y[-2] == pytest.approx((1 - x[-2]) / math.e)
    assert (np.interp(rates, x, y) >= attained.get_ydata() - 1e-4).all()
    assert attained.get_color() == limit.get_color() != diagonal.get_color()
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]


def test_the_window_shows_what_it_was_given_and_leaves_out_no_noise():
    _, (upper, lower) = plt.subplots(2, 1)
    window(upper, lower, [0, 0.01, 1], {"clip 1": [math.inf, 3000.0, 2.0]}, [0.8, 0.9, 40.0])
    assert upper.lines[0].get_xydata().tolist() == [[0.01, 3000.0], [1, 2.0]]
    assert lower.lines[0].get_xydata().tolist() == [[0.01, 0.9], [1, 40.0]]
    assert {upper.get_xscale(), upper.get_yscale(), lower.get_xscale(), lower.get_yscale()} == {"log"}
    plt.close("all")


@pytest.mark.parametrize("upright", [False, True])
def test_a_band_covers_its_values_and_says_what_it_is(axes, upright):
    axes.set(xscale="log", yscale="log", xlim=(0.1, 10), ylim=(0.1, 10))
    band(axes, 0.5, 2, "promised", upright=upright)
    patch = axes.patches[0]
    low, size = (patch.get_x(), patch.get_width()) if upright else (patch.get_y(), patch.get_height())
    assert (low, low + size) == pytest.approx((0.5, 2))
    assert axes.texts[0].get_text() == "promised"
    assert axes.texts[0].get_position()[0 if upright else 1] == pytest.approx(1)  # the middle of a logarithmic axis


def test_lines_over_two_multiplying_axes(axes):
    over(axes, {"head": ([10, 1000], [1.0, 0.5]), "all": ([10], [2.0])}, "patients", "noise")
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[10, 1.0], [1000, 0.5]], [[10, 2.0]]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("patients", "noise")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["head", "all"]


def test_a_logarithmic_axis_has_plain_numbers(axes):
    axes.set(xscale="log", yscale="log")
    plain_log(axes, "x")
    plain_log(axes, "y")
    for axis in (axes.xaxis, axes.yaxis):
        write = axis.get_major_formatter()
        assert [write(v, 0) for v in (100_000, 1, 0.05, 1e-6)] == ["100,000", "1", "0.05", "1e-06"]


@pytest.mark.parametrize(
    ("values", "ticks"), [((1.0, 20.0), ["1", "2", "5", "10", "20"]), ((1, 1e4), ["1", "10", "100", "1,000", "10,000"])]
)
def test_a_short_logarithmic_axis_has_more_ticks(axes, values, ticks):
    over(axes, {"head": (values, values)}, "x", "y")
    axes.set_ylim(*values)
    write = axes.yaxis.get_major_formatter()
    assert [write(tick, 0) for tick in axes.get_yticks() if values[0] <= tick <= values[1]] == ticks


def test_no_two_ticks_of_a_very_short_logarithmic_axis_read_alike(axes):
    over(axes, {"head": ((1.4, 4.0), (1.4, 4.0))}, "x", "y")
    labels = [axes.yaxis.get_major_formatter()(tick, 0) for tick in axes.get_yticks() if 1.4 <= tick <= 4.0]
    assert len(set(labels)) == len(labels) >= 2


def test_errors_stand_at_their_epsilon_beside_the_control(axes):
    rows = [
        {"part": "head", "epsilon": math.inf, "mre_px": 1.0},
        {"part": "head", "epsilon": 1.0, "mre_px": 3.0},
        {"part": "head", "epsilon": 1.0, "mre_px": 5.0},
        {"part": "all", "epsilon": 1.0, "mre_px": 9.0},
    ]
    error_by_epsilon(axes, rows, [6.0, 8.0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "no noise"]
    named = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert named["trained: head"].get_ydata().tolist() == [4.0, 1.0]
    assert named["trained: all"].get_ydata()[0] == 9.0
    assert math.isnan(named["trained: all"].get_ydata()[1])  # not measured: no line is drawn to it
    assert named["control, epsilon = 0"].get_ydata()[0] == 7.0
    points = sorted(y for line in axes.lines if line.get_marker() == "o" for y in line.get_ydata())
    assert points == [1.0, 3.0, 5.0, 9.0]
    shade = axes.patches[0]
    assert (shade.get_y(), shade.get_height()) == (6.0, 2.0)
