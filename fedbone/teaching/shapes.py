"""Shapes in CSS pixels (x to the right, y down), painted alike as SVG for a web page and with matplotlib."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.text import Text

INK, FAINT, PALE, GROUND = "#1A1A1A", "#595959", "#C4C4C4", "#FFFFFF"
PX_PER_INCH = 80  # the dots per inch that ``plots.show`` saves, so that a unit is one pixel there
POINTS_PER_PX = 72 / PX_PER_INCH
SANS = "DejaVu Sans, Verdana, sans-serif"  # matplotlib's own face first: the words take the same room in both


class Line(NamedTuple):
    points: tuple[tuple[float, float], ...]
    colour: str
    width: float


class Disc(NamedTuple):
    x: float
    y: float
    radius: float
    fill: str
    edge: str


class Box(NamedTuple):
    x: float
    y: float
    wide: float
    high: float
    fill: str


class Words(NamedTuple):
    x: float
    y: float  # of the base line
    text: str
    size: float = 12
    anchor: str = "start"
    colour: str = INK
    bold: bool = False


Shape = Line | Disc | Box | Words


def svg(shapes: Sequence[Shape], size: tuple[float, float], label: str = "") -> str:
    """The shapes as an SVG element of ``size`` (width, height), a picture named ``label``; without one, decoration."""
    role = f'role="img" aria-label="{html.escape(label)}"' if label else 'aria-hidden="true"'
    wide, high = size
    inside = "".join(map(_element, shapes))
    frame = f'width="{wide:g}" height="{high:g}" viewBox="0 0 {wide:g} {high:g}" font-family="{SANS}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {role} {frame}>{inside}</svg>'


def _element(shape: Shape) -> str:
    match shape:
        case Line(points, colour, width):
            places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            stroke = f'stroke="{colour}" stroke-width="{width:g}" stroke-linecap="round"'
            return f'<polyline points="{places}" fill="none" {stroke}/>'
        case Disc(x, y, radius, fill, edge):
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" stroke="{edge}"/>'
        case Box(x, y, wide, high, fill):
            return f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:g}" height="{high:g}" fill="{fill}"/>'
        case Words(x, y, text, size, anchor, colour, bold):
            weight = ' font-weight="bold"' if bold else ""
            place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}"{weight}'
            return f"<text {place}>{html.escape(text)}</text>"


def paint(axes: Axes, shapes: Sequence[Shape], size: tuple[float, float]) -> None:
    """The shapes on ``axes``, which should be ``size`` / PX_PER_INCH inches large."""
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    axes.axis("off")
    for order, shape in enumerate(shapes):  # later ones lie above, as in SVG
        axes.add_artist(_artist(shape)).set(zorder=order, clip_on=True)


def _artist(shape: Shape) -> Artist:
    match shape:
        case Line(points, colour, width):
            return Line2D(*zip(*points, strict=True), color=colour, lw=width * POINTS_PER_PX, solid_capstyle="round")
        case Disc(x, y, radius, fill, edge):
            return Circle((x, y), radius, facecolor=fill, edgecolor=edge, lw=POINTS_PER_PX)
        case Box(x, y, wide, high, fill):
            return Rectangle((x, y), wide, high, facecolor=fill, edgecolor="none")
        case Words(x, y, text, size, anchor, colour, bold):
            side = {"start": "left", "middle": "center", "end": "right"}[anchor]
            style = {"color": colour, "fontsize": size * POINTS_PER_PX, "fontweight": "bold" if bold else "normal"}
            # a dollar sign in a hospital's name is no formula
            return Text(x, y, text, ha=side, va="baseline", parse_math=False, **style)
