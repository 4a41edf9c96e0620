"""Figures of notebook 07: films found again, in strips and grids, against their controls; membership on log axes.

Display the ``PictureSlider`` in one cell and ``show(slider.figure(), alt=slider.alt(), photo=True)`` in the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedbone.privacy.membership import Roc, largest_tpr
from fedbone.teaching.page_slider import PageSlider
from fedbone.teaching.plots import HOSPITAL_COLOURS, show

LINES = ("#000000", "#D55E00", "#CC79A7", "#E69F00", "#009E73", "#0072B2")
LEAST_RATE = 1e-3  # of false alarms on the logarithmic axis: fewer strangers than that say nothing
CONTROL_STYLES = ("-", "--", ":", "-.")


def _film(axes: Axes, picture: np.ndarray, title: str) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def strip(pictures: Sequence[tuple[str, np.ndarray]], side: float = 1.55) -> Figure:
    """Films (title, (H, W) in [0, 1]) in one row, each ``side`` inches wide."""
    figure, row = plt.subplots(1, len(pictures), figsize=(side * len(pictures), side * 1.25), squeeze=False)
    for axes, (title, picture) in zip(row[0], pictures, strict=True):
        _film(axes, picture, title)
    return figure


def grid(rows: Mapping[str, Sequence[np.ndarray]], side: float = 1.1) -> Figure:
    """Films under each other: one column for each name of ``rows``, one line for each film."""
    lines = len(next(iter(rows.values())))
    figure, axes = plt.subplots(lines, len(rows), figsize=(side * len(rows), side * lines), squeeze=False)
    for column, (name, pictures) in enumerate(rows.items()):
        for line, picture in enumerate(pictures):
            _film(axes[line, column], picture, name if line == 0 else "")
    figure.subplots_adjust(wspace=0.06, hspace=0.04)
    return figure


def against_controls(axes: Axes, found: Mapping[str, Sequence[float]], bars: Mapping[str, float]) -> None:
    """SSIM of each defence's pictures, one point a film, the first on top; a vertical line for each control."""
    for y, values in enumerate(found.values()):
        axes.plot(values, [y] * len(values), "o", color=HOSPITAL_COLOURS[0], markerfacecolor="none", markersize=7)
    for (name, value), style in zip(bars.items(), CONTROL_STYLES, strict=False):
        axes.axvline(value, color="#D55E00", ls=style, lw=1.3, label=f"{name} {value:.2f}")
    axes.set_yticks(range(len(found)), list(found))
    axes.set(xlabel="SSIM with the patient's film (1: the same)", ylim=(len(found) - 0.5, -0.5), xlim=(-0.1, 1.03))
    axes.grid(alpha=0.3, axis="x")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(bars))


def log_roc(axes: Axes, curves: Mapping[str, Roc], limits: Mapping[str, float], dp_delta: float) -> None:
    """Right over false alarms on logarithmic axes, and dashed the most that epsilon allows to the curves in ``limits``.

    limits: name of a curve -> its epsilon.
    """
    rates = np.geomspace(LEAST_RATE, 1, 200)
    for (name, curve), colour in zip(curves.items(), LINES, strict=False):
        axes.plot(rates, [max(curve.tpr_at(rate), 1e-9) for rate in rates], color=colour, label=name)
        if name in limits:
            most = [largest_tpr(rate, limits[name], dp_delta) for rate in rates]
            axes.plot(rates, most, color=colour, ls="--", lw=1)
    if limits:
        axes.plot([], [], color="#777777", ls="--", lw=1, label="most that its epsilon allows")
    axes.plot(rates, rates, color="#777777", ls=":", lw=1, label="guessing")
    ends = (LEAST_RATE, 1.1)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.set(xlabel="false alarms among strangers", ylabel="members found")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


@dataclass(frozen=True)
class Attempt:
    """One noise setting and what the attacker saw through it.

    noise_multiplier: of one gradient's length; epsilon: of that one release; picture (S, S); likeness: SSIM.
    """

    noise_multiplier: float
    epsilon: float
    picture: np.ndarray
    likeness: float

    @property
    def words(self) -> str:
        """The three numbers in words."""
        told = "infinite" if np.isinf(self.epsilon) else f"{self.epsilon:,.0f}"
        return f"noise {self.noise_multiplier:.3g}: epsilon {told}, SSIM {self.likeness:.2f}"


class PictureSlider(PageSlider):
    """What an attacker gets from one film's gradient as the noise grows; ``film`` (S, S) stands beside it.

    Raises UserError without attempts.
    """

    def __init__(self, film: np.ndarray, attempts: Sequence[Attempt]) -> None:
        self._film = film
        self._attempts = tuple(sorted(attempts, key=lambda attempt: attempt.noise_multiplier))
        super().__init__("noise", [f"{attempt.noise_multiplier:.3g}" for attempt in self._attempts], self._draw)

    def figure(self) -> Figure:
        """All attempts in a row behind the film, for ``plots.show``."""
        shown = [(a.words.replace(": ", "\n").replace(", ", "\n"), a.picture) for a in self._attempts]
        return strip([("the film", self._film), *shown])

    def alt(self) -> str:
        """What ``figure`` shows in words, with its numbers."""
        return f"A film, and what is found from its gradient. {'; '.join(a.words for a in self._attempts)}"

    def _draw(self, index: int) -> str:
        attempt = self._attempts[index]
        pair = strip([("the film", self._film), (attempt.words.replace(": ", "\n"), attempt.picture)], side=3.0)
        return show(pair, attempt.words, photo=True).data
