"""Figures of the workbook: one palette, alt text on every picture, JPEG where films are shown."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe palette; left is always orange, right always blue
LEFT, RIGHT, MIDDLE = "#E69F00", "#56B4E9", "#F0E442"
ARM_COLOURS = {"federated": "#009E73", "pooled": "#000000", "local-only": "#D55E00"}
HOSPITAL_COLOURS = ("#0072B2", "#E69F00", "#CC79A7")
JPEG_QUALITY = 82


def show(figure: Figure, alt: str, *, photo: bool = False) -> HTML:
    """``figure`` as an image with alternative text, on a white ground so that it reads in dark mode too.

    photo: films compress four times better as JPEG; line art stays PNG. The figure is closed.
    """
    buffer = io.BytesIO()
    kind = "jpeg" if photo else "png"
    options = {"pil_kwargs": {"quality": JPEG_QUALITY}} if photo else {}
    figure.savefig(buffer, format=kind, dpi=80, bbox_inches="tight", facecolor="white", **options)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return HTML(f'<img alt="{html.escape(alt)}" style="max-width:100%" src="data:image/{kind};base64,{data}">')


def joint_colour(name: str) -> str:
    """Left, right or middle colour of a joint by its name."""
    return LEFT if name.startswith("left") else RIGHT if name.startswith("right") else MIDDLE


def draw_film(
    axes: Axes, image: np.ndarray, keypoints: np.ndarray, joints: Sequence[str], marker: str = "o", title: str = ""
) -> None:
    """One film (H, W) with its labelled joints (K, 3); (K, 2) draws all of them."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else None)
    for name, point in zip(joints, keypoints, strict=True):
        if len(point) == 2 or point[2] > 0:
            hollow = {"markerfacecolor": "none"} if marker == "o" else {}
            axes.plot(*point[:2], marker, color=joint_colour(name), markersize=7, markeredgewidth=1.6, **hollow)
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
