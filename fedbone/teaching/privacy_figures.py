"""Figures of notebook 06: an attacker's odds, what noise buys and costs, how many hospitals or patients it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from fedbone.teaching.plots import HOSPITAL_COLOURS

WITHOUT, WITH = "#0072B2", "#D55E00"  # the same two worlds, and attained against promised, in every figure
LINES = (*HOSPITAL_COLOURS, "#009E73", "#000000")
PROMISED = "#BBBBBB"
SHORT = 30  # last over first value of a logarithmic axis that needs more ticks than one a decade


def best_attack(mu: float, false_alarms: np.ndarray) -> np.ndarray:
    """The largest share of right alarms at each share of false ones, against a mechanism that is exactly mu-GDP.

    Dong, Roth and Su, Gaussian Differential Privacy, JRSS B 2022, section 2.2.
    """
    normal = NormalDist()
    inside = np.clip(false_alarms, 1e-15, 1 - 1e-15)
    return np.array([normal.cdf(normal.inv_cdf(rate) + mu) for rate in inside])


def bells(axes: Axes, mu: float, seen: float, title: str) -> float:
    """What is released without and with one unit, ``mu`` noise widths apart, and the odds (returned) at ``seen``."""
    x = np.linspace(-4, 4 + mu, 400)
    heights = {name: np.exp(-((x - at) ** 2) / 2) for name, at in (("without her", 0.0), ("with her", mu))}
    for (name, y), colour in zip(heights.items(), (WITHOUT, WITH), strict=True):
        axes.plot(x, y, color=colour, label=name)
        axes.fill_between(x, y, color=colour, alpha=0.12)
    odds = math.exp(mu * (seen - mu / 2))
    axes.axvline(seen, color="black", ls=":", lw=1.2)
    axes.set(title=title, xlabel="released number, in widths of the noise", yticks=[], ylim=(0, 1.5))
    axes.annotate(f"seen here: odds × {odds:.2g}", (seen, 1.06), ha="center", fontsize=9, backgroundcolor="white")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return odds


def attacks(axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], bounds: Sequence[float]) -> None:
    """Right over false alarms (FPR, TPR) of attacks, and dashed the limit e^epsilon FPR of each epsilon in ``bounds``.

    The limits are drawn without dp_delta, which a linear axis cannot show. The diagonal is blind guessing.
    """
    for (name, (false_alarms, found)), colour in zip(curves.items(), LINES, strict=False):
        axes.plot(false_alarms, found, color=colour, label=name)
    rates = np.linspace(0, 1, 500)
    for epsilon, colour in zip(bounds, LINES, strict=False):
        limit = np.minimum(math.exp(epsilon) * rates, 1 - math.exp(-epsilon) * (1 - rates))
        axes.plot(rates, limit, color=colour, ls="--", lw=1)
    axes.plot([0, 1], [0, 1], color="#777777", ls=":", lw=1)
    axes.set(xlabel="false alarms among absent patients", ylabel="right alarms among present ones", aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def window(
    upper: Axes, lower: Axes, sigmas: Sequence[float], epsilons: Mapping[str, Sequence[float]], errors: Sequence[float]
) -> None:
    """epsilon (upper) and error in px (lower) over sigma; sigma = 0 is left out, it has no place on the axis."""
    some = np.array(sigmas) > 0
    x = np.array(sigmas)[some]
    for (name, values), colour in zip(epsilons.items(), LINES, strict=False):
        upper.plot(x, np.array(values)[some], "o-", color=colour, label=name, markersize=4)
    lower.plot(x, np.array(errors)[some], "s-", color=WITH, markersize=4)
    upper.set(ylabel="epsilon", yscale="log", xscale="log")
    lower.set(xlabel="sigma, the noise on each weight in each round", ylabel="error, px", yscale="log", xscale="log")
    upper.legend(frameon=False, fontsize=9)
    for axes in (upper, lower):
        plain_log(axes, "y")
        axes.grid(alpha=0.3)
    plain_log(lower, "x")


def band(axes: Axes, low: float, high: float, words: str, *, upright: bool = False) -> None:
    """A grey band from ``low`` to ``high`` of the y axis (upright: the x axis) with its words: what was promised."""
    (axes.axvspan if upright else axes.axhspan)(low, high, color=PROMISED, alpha=0.45, lw=0)
    middle = math.sqrt(low * high)
    place = ((middle, 0.97), axes.get_xaxis_transform()) if upright else ((0.02, middle), axes.get_yaxis_transform())
    style = {"ha": "center", "va": "top"} if upright else {"ha": "left", "va": "center"}
    if words:
        ground = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}  # lines may cross the words
        axes.text(*place[0], words, transform=place[1], fontsize=9, bbox=ground, **style)


def over(axes: Axes, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> None:
    """One line each of ``lines`` (x, y) on two axes of which every step multiplies."""
    for (name, (x, y)), colour in zip(lines.items(), LINES, strict=False):
        axes.plot(x, y, "o-", color=colour, label=name, markersize=4)
    axes.set(xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
    for which in ("x", "y"):
        plain_log(axes, which)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)


def plain_log(axes: Axes, which: str) -> None:
    """Write a logarithmic axis as 1,000 rather than as a power, and 1e-05 where that would be long.

    Call it when all is drawn: an axis of little more than one decade gets ticks at 2 and 5 too.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < SHORT else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}" if value >= 1 else f"{value:g}")
    axis.set_minor_formatter(plt.NullFormatter())


def error_by_epsilon(axes: Axes, rows: Sequence[dict], control: Sequence[float]) -> None:
    """Error in px over epsilon, a line of means for each part and a point a seed; ``control``: its error by seed.

    rows: part, epsilon (float, may be infinite) and mre_px. The control, epsilon 0, is a dashed line with a band over
    its seeds.
    """
    epsilons = sorted({row["epsilon"] for row in rows})
    parts = dict.fromkeys(row["part"] for row in rows)
    for part, colour, shift in zip(parts, LINES, (-0.06, 0.06, 0, 0.12, -0.12), strict=False):
        means = []
        for place, epsilon in enumerate(epsilons):
            found = [row["mre_px"] for row in rows if (row["part"], row["epsilon"]) == (part, epsilon)]
            axes.plot([place + shift] * len(found), found, "o", color=colour, markerfacecolor="none", markersize=5)
            means.append((place + shift, np.mean(found) if found else math.nan))
        axes.plot(*zip(*means, strict=True), color=colour, label=f"trained: {part}")
    axes.axhline(np.mean(control), color="black", ls="--", lw=1.2, label="control, epsilon = 0")
    axes.axhspan(min(control), max(control), color="black", alpha=0.08, lw=0)
    axes.set_xticks(range(len(epsilons)), ["no noise" if math.isinf(e) else f"{e:g}" for e in epsilons])
    axes.set(xlabel="epsilon of a patient", ylabel="error on test films, px")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
