"""Figures of the workbook: one palette, alt text on every picture, JPEG where films are shown."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fedbone.model.overlay import LEFT, MIDDLE, RIGHT, joint_colour  # noqa: F401 (notebooks take the colours here)

if TYPE_CHECKING:  # chapters without a network need no torch
    from fedbone.model.hrnet import HRNetConfig

ARM_COLOURS = {"federated": "#009E73", "pooled": "#000000", "local-only": "#D55E00"}
HOSPITAL_COLOURS = ("#0072B2", "#E69F00", "#CC79A7")
JPEG_QUALITY = 82
COLOURS = 128  # of line art, shades of smoothed edges included


def show(figure: Figure, alt: str, *, photo: bool = False) -> HTML:
    """``figure`` as an image with alternative text, on a white ground so that it reads in dark mode too.

    photo: films compress four times better as JPEG; line art becomes PNG with a palette, a third of the size. The
    figure is closed.
    """
    buffer, drawn = io.BytesIO(), io.BytesIO()
    kind = "jpeg" if photo else "png"
    figure.savefig(drawn, format="png", dpi=80, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    picture = Image.open(drawn).convert("RGB")
    if photo:
        picture.save(buffer, kind, quality=JPEG_QUALITY, optimize=True)
    else:
        # the default, median cut, gives small areas such as a legend's dots the colours of others
        few = picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(buffer, kind, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return HTML(f'<img alt="{html.escape(alt)}" style="max-width:100%" src="data:image/{kind};base64,{data}">')


def as_table(columns: Sequence[object], rows: Sequence[Sequence[object]]) -> Markdown:
    """``rows`` under the names ``columns``, as a table that a screen reader can walk through."""
    lines = [columns, ["---"] * len(columns), *rows]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


def draw_film(
    axes: Axes,
    image: np.ndarray,
    keypoints: np.ndarray,
    joints: Sequence[str],
    marker: str = "o",
    title: str = "",
    size: float = 7,
) -> None:
    """One film (H, W) with its labelled joints (K, 3); (K, 2) draws all of them. ``size`` of a marker in points."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else None)
    for name, point in zip(joints, keypoints, strict=True):
        if len(point) == 2 or point[2] > 0:
            hollow = {"markerfacecolor": "none"} if marker == "o" else {}
            line = {"markersize": size, "markeredgewidth": 1.6 * size / 7}
            axes.plot(*point[:2], marker, color=joint_colour(name), **line, **hollow)
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def films(
    images: Sequence[np.ndarray], keypoints: Sequence[np.ndarray], joints: Sequence[str], titles: Sequence[str]
) -> Figure:
    """A row of films with their joints; left joints orange, right joints blue."""
    figure, row = plt.subplots(1, len(images), figsize=(2.6 * len(images), 3.0), squeeze=False)
    for axes, image, points, title in zip(row[0], images, keypoints, titles, strict=True):
        draw_film(axes, image, points, joints, title=title)
    return figure


def curves(lines: dict[str, list[dict]], x: str, y: str, x_label: str, y_label: str) -> Figure:
    """Learning curves: one line per entry of ``lines``, each a list of rows with the keys ``x`` and ``y``."""
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for index, (name, rows) in enumerate(lines.items()):
        colour = ARM_COLOURS.get(name, HOSPITAL_COLOURS[index % len(HOSPITAL_COLOURS)])
        axes.plot([row[x] for row in rows], [row[y] for row in rows], marker=".", color=colour, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def grouped_bars(groups: Sequence[str], values: dict[str, Sequence[float]], y_label: str) -> Figure:
    """Bars of each series of ``values`` side by side over ``groups``; NaN leaves a gap."""
    figure, axes = plt.subplots(figsize=(max(5, 0.62 * len(groups)), 3.2))
    width = 0.8 / len(values)
    for index, (name, heights) in enumerate(values.items()):
        colour = ARM_COLOURS.get(name, HOSPITAL_COLOURS[index % len(HOSPITAL_COLOURS)])
        axes.bar(
            np.arange(len(groups)) + (index - (len(values) - 1) / 2) * width, heights, width, color=colour, label=name
        )
    axes.set_xticks(range(len(groups)), groups, rotation=45, ha="right")
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(frameon=False, ncols=len(values), loc="upper center", bbox_to_anchor=(0.5, 1.18))
    return figure


EXCHANGED = "#DDE8F0"
_ROWS, _STEP = (0.0, -1.35, -2.35, -3.1), 1.45  # the branches' heights, the columns' distance; the finest side is 1
_WAYS = {  # by the sign of (target - source): colour, and what happens on the way
    0: ("#777777", "same resolution"),
    1: ("#D55E00", "to a coarser branch: 3 x 3 convolutions of stride 2"),
    -1: ("#009E73", "to a finer branch: 1 x 1 convolution, enlarged"),
}


def network(config: HRNetConfig, size_px: int) -> Figure:
    """HRNet's branches as boxes with sides to scale, and its exchanges, for a film of ``size_px`` pixels.

    A white box is what the branch's residual blocks give, a shaded one what the exchange after them gives.
    Of several exchanges in a stage one is drawn, the last one with the outputs that it builds.
    """
    columns = [1, 2, 2, 3, 3, 4, config.outputs]  # branches: stage 1, then before and after each stage's exchange
    figure = plt.figure(figsize=(11.4, 5.2))
    axes = figure.add_axes((0, 0, 1, 1), aspect="equal", xlim=(-1.95, 7 * _STEP + 0.55), ylim=(-4.3, 1.2))
    axes.axis("off")
    first = config.layer1_planes * (4 if config.layer1_bottleneck else 1)
    for column, branches in enumerate(columns):
        for branch in range(branches):
            channels = config.width * 2**branch if column else first
            opens = [min(branch, columns[column - 1] - 1)]  # a stage begins: the coarsest branch also opens a new one
            for source in [] if not column else opens if column % 2 else range(columns[column - 1]):
                _path(axes, column, source, branch)
            _box(axes, column, branch, f"{channels} ch", EXCHANGED if column and column % 2 == 0 else "white")
    _path(axes, 7, 0, 0)
    _box(axes, 7, 0, f"{config.joints}\nheatmaps", "white")
    for branch, y in enumerate(_ROWS):
        side = size_px // (4 * 2**branch)
        axes.text(-0.65, y, f"1/{4 * 2**branch} of the film\n{side} x {side} px", ha="right", va="center", fontsize=11)
    titles = ["stem, layer 1", *(f"{n} exchange{'s' if n > 1 else ''}" for n in config.modules)]
    for stage, (column, title) in enumerate(zip((0, 1.5, 3.5, 5.5), titles, strict=True), start=1):
        axes.text(column * _STEP, 0.62, f"stage {stage}\n{title}", ha="center", va="bottom", fontsize=11)
    keys = [plt.Line2D([], [], color=colour, lw=2, label=label) for colour, label in _WAYS.values()]
    boxes = {"white": "after the branch's own residual blocks", EXCHANGED: "the sum of all that arrives"}
    keys += [plt.Rectangle((0, 0), 1, 1, facecolor=fill, edgecolor="black", label=text) for fill, text in boxes.items()]
    axes.legend(handles=keys, loc="lower center", ncols=2, frameon=False, fontsize=11, borderaxespad=0)
    return figure


def _box(axes: Axes, column: int, branch: int, text: str, colour: str) -> None:
    side, x, y = 1 / 2**branch, column * _STEP, _ROWS[branch]
    axes.add_patch(plt.Rectangle((x - side / 2, y - side / 2), side, side, facecolor=colour, edgecolor="black"))
    inside = branch == 0
    axes.text(x, y if inside else y - side / 2 - 0.05, text, ha="center", va="center" if inside else "top", fontsize=11)


def _path(axes: Axes, column: int, source: int, target: int) -> None:
    """An arrow from the previous column's branch ``source`` to this column's branch ``target``."""
    begin = ((column - 1) * _STEP + 0.5 / 2**source, _ROWS[source])
    end = (column * _STEP - 0.5 / 2**target, _ROWS[target])
    colour, _ = _WAYS[int(np.sign(target - source))]
    style = {"arrowstyle": "->", "color": colour, "lw": 1.4, "shrinkA": 2, "shrinkB": 2}
    axes.annotate("", end, begin, arrowprops=style)


def seeds(axes: Axes, table: list[dict], group: str, value: str, x_label: str) -> None:
    """One line for each value of column ``group``: a point for each row (a seed) of ``table``, a bar at their mean."""
    names = list(dict.fromkeys(row[group] for row in table))
    for y, name in enumerate(names):
        found = [float(row[value]) for row in table if row[group] == name]
        colour = HOSPITAL_COLOURS[0]
        axes.plot(found, [y] * len(found), "o", color=colour, markerfacecolor="none", markersize=7)
        axes.plot([np.mean(found)] * 2, [y - 0.28, y + 0.28], color=colour, lw=2)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=x_label, ylim=(len(names) - 0.5, -0.5))
    axes.grid(alpha=0.3, axis="x")


def bland_altman(axes: Axes, first: np.ndarray, second: np.ndarray, agreement: dict, unit: str) -> None:
    """Differences ``second - first`` (N,) over the means, with the bias and the limits of ``clinical.agreement``."""
    axes.plot((first + second) / 2, second - first, ".", color=HOSPITAL_COLOURS[0], alpha=0.6)
    for value, style in ((agreement["bias"], "-"), *((limit, "--") for limit in agreement["limits"] or ())):
        axes.axhline(value, color="black", ls=style, lw=1.2)
        axes.annotate(f"{value:+.1f}", (1, value), xycoords=("axes fraction", "data"), va="bottom", ha="right")
    axes.set(xlabel=f"mean of both, {unit}", ylabel=f"predicted - labelled, {unit}")
    axes.grid(alpha=0.3)


def intervals(
    axes: Axes, names: Sequence[str], values: Sequence[float], ends: Sequence[Sequence[float] | None], x_label: str
) -> None:
    """One row per name, the first on top: a point at its value and a bar over its interval (none where it is None)."""
    for y, (value, interval) in enumerate(zip(values, ends, strict=True)):
        if interval is not None:
            axes.plot(interval, [y, y], color=HOSPITAL_COLOURS[0], lw=2, alpha=0.6, solid_capstyle="butt")
        axes.plot(value, y, "o", color=HOSPITAL_COLOURS[0], markersize=5)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=x_label, ylim=(len(names) - 0.5, -0.5))
    axes.grid(alpha=0.3, axis="x")


GAIN, LOSS, UNCLEAR = ("#0072B2", "o"), ("#D55E00", "s"), ("#777777", "D")  # colour and marker


def forest(axes: Axes, rows: Sequence[tuple[str, float, float, float]], x_label: str) -> None:
    """Differences (name, value, low, high) with their intervals; those of one name share a row, the first on top.

    A filled blue circle where the whole interval is below zero, an orange square where it is above, a hollow grey
    diamond where it holds zero.
    """
    names = list(dict.fromkeys(name for name, *_ in rows))
    for y, name in enumerate(names):
        own = [row[1:] for row in rows if row[0] == name]
        for index, (value, low, high) in enumerate(own):
            colour, marker = GAIN if high < 0 else LOSS if low > 0 else UNCLEAR
            height = y + 0.22 * (index - (len(own) - 1) / 2)
            axes.plot([low, high], [height] * 2, color=colour, lw=1.6)
            fill = "white" if marker == UNCLEAR[1] else colour
            axes.plot(value, height, marker, color=colour, markerfacecolor=fill, markersize=5.5)
    axes.axvline(0, color="black", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=x_label, ylim=(len(names) - 0.5, -0.5))
    axes.grid(alpha=0.3, axis="x")


def matrix(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], values: np.ndarray, texts: Sequence[Sequence[str]]
) -> None:
    """A table (rows, columns) of ``values`` from 0 (dark) to 1 (bright), each cell with its text."""
    axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")  # cells as wide as their texts
    for y, line in enumerate(texts):
        for x, text in enumerate(line):
            colour = "black" if values[y, x] > 0.5 else "white"
            axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
