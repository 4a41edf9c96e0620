"""A slider from noise to epsilon to a film to its error; the same pictures side by side for where no widget is shown.

Display the ``NoiseSlider`` in one cell and ``show(slider.figure(), alt=slider.alt(), photo=True)`` in the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedbone.teaching.page_slider import PageSlider
from fedbone.teaching.plots import draw_film, joint_colour, show
from fedbone.teaching.privacy_figures import window

COLUMNS = 3  # of the static figure


@dataclass(frozen=True)
class Setting:
    """One standard deviation of noise and what came of it.

    sigma: on each weight, each round; epsilon: with a clip at the updates' own norm, may be infinite; error_px: mean
    over the test films; found (K, 2): where the model puts the joints of the film that is shown, in array pixels.
    """

    sigma: float
    epsilon: float
    error_px: float
    found: np.ndarray

    @property
    def words(self) -> str:
        """The three numbers in words."""
        return f"sigma {self.sigma:g}: epsilon {number(self.epsilon)}, error {self.error_px:.1f} px"


def number(value: float) -> str:
    """A large or small number as a reader says it; infinity is 'infinite'."""
    if math.isinf(value):
        return "infinite"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


class NoiseSlider(PageSlider):
    """One film under each noise setting. image (S, S), labelled (K, 3): joints with visibility 0 are not drawn.

    Raises UserError without settings.
    """

    def __init__(
        self, image: np.ndarray, labelled: np.ndarray, joints: Sequence[str], settings: Sequence[Setting]
    ) -> None:
        self._image, self._labelled, self._joints = image, labelled, tuple(joints)
        self._settings = tuple(sorted(settings, key=lambda setting: setting.sigma))
        super().__init__("sigma", [f"{setting.sigma:g}" for setting in self._settings], self._draw)

    def figure(self) -> Figure:
        """All settings in rows of three, for ``plots.show``."""
        rows = math.ceil(len(self._settings) / COLUMNS)
        figure = plt.figure(figsize=(3.2 * COLUMNS, 3.7 * rows), layout="constrained")
        for place, setting in enumerate(self._settings, 1):
            axes = figure.add_subplot(rows, COLUMNS, place)
            self._film(axes, setting)
            axes.set_title(setting.words.replace(": ", "\n"), fontsize=9)
        return figure

    def alt(self) -> str:
        """What ``figure`` shows in words, with its numbers."""
        told = "; ".join(setting.words for setting in self._settings)
        return f"One test film under each noise setting, labels as rings and found joints as crosses. {told}"

    def _draw(self, index: int) -> str:
        setting = self._settings[index]
        figure = plt.figure(figsize=(9, 3.6))
        grid = figure.add_gridspec(2, 2, width_ratios=[1, 1.3], hspace=0.12, wspace=0.25)
        self._film(figure.add_subplot(grid[:, 0]), setting)
        upper = figure.add_subplot(grid[0, 1])
        lower = figure.add_subplot(grid[1, 1], sharex=upper)
        sigmas, epsilons, errors = zip(*((s.sigma, s.epsilon, s.error_px) for s in self._settings), strict=True)
        window(upper, lower, sigmas, {"clip at the updates' norm": epsilons}, errors)
        for axes, value in ((upper, setting.epsilon), (lower, setting.error_px)):
            axes.plot(setting.sigma, value, "*", color="black", markersize=13)
        upper.tick_params(labelbottom=False)
        upper.set_title(setting.words, fontsize=10)
        return show(figure, setting.words, photo=True).data

    def _film(self, axes: Axes, setting: Setting) -> None:
        draw_film(axes, self._image, self._labelled, self._joints, size=6)
        axes.autoscale(False)  # a joint found outside the film must not shrink it
        for name, label, found in zip(self._joints, self._labelled, setting.found, strict=True):
            if label[2] > 0:
                axes.plot(*zip(label[:2], found[:2], strict=True), color="#C8FFC8", lw=0.8)
                axes.plot(*found[:2], "x", color=joint_colour(name), markersize=6, markeredgewidth=1.8)
