"""Joints drawn on a film: one palette, sizes that follow the film, and what a reader must know burnt in.

Coordinates are x, y in pixel index units of the picture that is drawn on. Text stands on dark plates, so that it reads
on bright and on dark films.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# Okabe and Ito's colour-blind-safe palette; left is always orange, right always blue
LEFT, RIGHT, MIDDLE = "#E69F00", "#56B4E9", "#F0E442"
WHITE, NOTICE = "#FFFFFF", "NOT FOR DIAGNOSIS"
FONT = cv2.FONT_HERSHEY_SIMPLEX
TEXT_SHARE, SMALLEST_TEXT_PX = 1 / 42, 7  # height of a capital over the shorter side of the film, and at least
NAMED_FROM_PX = 240  # the shorter side below which names and legend would hide the film
HOLLOW = 1.25  # radius of a hollow mark over that of a filled one, so that its middle stays open
SHIFT = 4  # OpenCV takes 1/16 of a pixel
PLATE_SHARE = 0.3  # of the film seen through a plate

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Mark:
    """One joint to draw: its name, place in the picture, and whether the network is sure of it."""

    name: str
    x: float
    y: float
    sure: bool


def joint_colour(name: str) -> str:
    """Left, right or middle colour of a joint by its name."""
    return LEFT if name.startswith("left") else RIGHT if name.startswith("right") else MIDDLE


def draw(film: np.ndarray, marks: Sequence[Mark], threshold: float) -> np.ndarray:
    """The film (H, W) uint8 as a colour picture (H, W, 3) uint8 BGR with joints, names, legend and notice.

    Sure joints are filled, the others hollow. Films with a side under NAMED_FROM_PX get marks and notice only.
    """
    picture = cv2.cvtColor(film, cv2.COLOR_GRAY2BGR)
    shorter = min(film.shape)
    text_px = max(SMALLEST_TEXT_PX, round(shorter * TEXT_SHARE))
    named = shorter >= NAMED_FROM_PX
    radius = max(1.5, 0.5 * text_px) if named else max(1.5, shorter / 40)
    taken = [_box(mark, radius) for mark in marks]
    for mark in sorted(marks, key=lambda mark: mark.sure):
        _circle(picture, (mark.x, mark.y), radius, joint_colour(mark.name), mark.sure)
    # after the joints: where they leave no corner free, the notice must be read all the same
    plate = _legend(picture, text_px, threshold, taken) if named else _notice(picture, taken)
    if named:
        _names(picture, marks, radius, text_px * 0.85, [*taken, plate])
    return picture


def _bgr(colour: str) -> tuple[int, int, int]:
    return tuple(bytes.fromhex(colour[1:])[::-1])


def _circle(picture: np.ndarray, xy: tuple[float, float], radius: float, colour: str, filled: bool) -> None:
    """A disc, or a ring with an open middle; a thin black rim sets both off from bright bone."""
    centre = tuple(round(value * 2**SHIFT) for value in xy)
    line, size = max(1, round(radius / 3)), radius if filled else HOLLOW * radius
    for shade, thickness in (("#000000", line + 2), (colour, cv2.FILLED if filled else line)):
        cv2.circle(picture, centre, round(size * 2**SHIFT), _bgr(shade), thickness, cv2.LINE_AA, SHIFT)


def _box(mark: Mark, radius: float) -> Box:
    reach = HOLLOW * radius
    return tuple(round(v) for v in (mark.x - reach, mark.y - reach, mark.x + reach, mark.y + reach))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _emptiest(places: Sequence[Box], taken: Sequence[Box]) -> Box:
    """The place that covers the fewest joints."""
    return min(places, key=lambda place: sum(_overlap(place, joint) for joint in taken))


def _text_size(text: str, height_px: float) -> tuple[float, int, int, int, int]:
    """(font scale, thickness, width, height above and below the base line) of text with capitals of ``height_px``."""
    scale = height_px / cv2.getTextSize("X", FONT, 1.0, 1)[0][1]
    thickness = max(1, round(height_px / 15))
    (width, height), below = cv2.getTextSize(text, FONT, scale, thickness)
    return scale, thickness, width, height, below


def _extent(text: str, height_px: float) -> tuple[int, int]:
    """(width, height) of the text in pixels, descenders included."""
    _, _, width, height, below = _text_size(text, height_px)
    return width, height + below


def _write(picture: np.ndarray, text: str, left: int, top: int, height_px: float, colour: str) -> None:
    scale, thickness, _, height, _ = _text_size(text, height_px)
    cv2.putText(picture, text, (left, top + height), FONT, scale, _bgr(colour), thickness, cv2.LINE_AA)


def _darken(picture: np.ndarray, box: Box) -> None:
    left, top, right, bottom = (max(0, value) for value in box)
    part = picture[top:bottom, left:right]
    part[:] = np.rint(part * PLATE_SHARE)


def _notice(picture: np.ndarray, taken: Sequence[Box]) -> Box:
    """The notice alone, along an edge of a small film, in two lines where one would be too small."""
    rows, cols = picture.shape[:2]
    lines = [NOTICE] if _extent(NOTICE, SMALLEST_TEXT_PX)[0] <= cols else NOTICE.replace("FOR ", "FOR\n").split("\n")
    widest = max(_extent(line, 100)[0] for line in lines)
    height_px = min(10.0, 96 * cols / widest)
    step = _extent(NOTICE, height_px)[1] + 1
    high = step * len(lines) + 1
    box = _emptiest([(0, top, cols, top + high) for top in (rows - high, 0)], taken)
    _darken(picture, box)
    for number, line in enumerate(lines):
        _write(picture, line, 1, box[1] + 1 + number * step, height_px, WHITE)
    return box


def _legend(picture: np.ndarray, text_px: int, threshold: float, taken: Sequence[Box]) -> Box:
    """Notice, colours and fill in the corner that hides the fewest joints; returns the plate."""
    rows, cols = picture.shape[:2]
    entries = [("left", "left", True), ("right", "right", True), ("middle", "middle", True)]
    entries += [("", f"confidence {threshold:.2f} or more", True), ("", f"below {threshold:.2f}: unsure", False)]
    step, pad = round(1.9 * text_px), text_px
    small = 0.85 * text_px
    widest = max(_extent(NOTICE, text_px)[0], *(_extent(text, small)[0] + 2 * text_px for _, text, _ in entries))
    wide, high = widest + 2 * pad, step * (len(entries) + 1) + pad
    corners = [(x, y, x + wide, y + high) for y in (rows - high, 0) for x in (0, cols - wide)]
    box = _emptiest(corners, taken)
    _darken(picture, box)
    left, top = box[0] + pad, box[1] + pad // 2
    _write(picture, NOTICE, left, top + step // 4, text_px, WHITE)
    for number, (name, text, sure) in enumerate(entries, start=1):
        middle = top + number * step + step / 2
        colour = joint_colour(name) if name else WHITE
        _circle(picture, (left + text_px / 2, middle), 0.45 * text_px, colour, sure)
        _write(picture, text, left + 2 * text_px, round(middle - _extent(text, small)[1] / 2), small, WHITE)
    return box


def _names(picture: np.ndarray, marks: Sequence[Mark], radius: float, height_px: float, taken: list[Box]) -> None:
    """Each joint's name beside it, or at the nearest free place with a line to it."""
    for mark in sorted(marks, key=lambda mark: (not mark.sure, mark.y)):
        wide, high = _extent(mark.name, height_px)
        size = (wide + 4, high + 4)
        box = _free_place(mark, size, radius, picture.shape, taken)
        taken.append(box)
        colour = joint_colour(mark.name)
        end = min(max(mark.x, box[0]), box[2]), (box[1] + box[3]) / 2
        away = np.hypot(end[0] - mark.x, end[1] - mark.y)
        if away > 2.5 * radius:
            start = [at + (to - at) * radius / away for at, to in zip((mark.x, mark.y), end, strict=True)]
            ends = [tuple(round(v) for v in point) for point in (start, end)]
            cv2.line(picture, *ends, _bgr(colour), max(1, round(height_px / 12)), cv2.LINE_AA)
        _darken(picture, box)
        _write(picture, mark.name, box[0] + 2, box[1] + 2, height_px, colour)


def _free_place(mark: Mark, size: tuple[int, int], radius: float, shape: tuple[int, ...], taken: Sequence[Box]) -> Box:
    """The place for a name nearest to its joint that is inside the picture and covers nothing; else right beside it."""
    (wide, high), (rows, cols) = size, shape[:2]
    gap = HOLLOW * radius + 3
    places = []
    for step in range(16):
        for down in {step, -step}:
            for far in (gap, gap + 3 * high):
                top = round(mark.y - high / 2 + down * 0.6 * high)
                for left in (round(mark.x + far), round(mark.x - far - wide)):
                    places.append((left, top, left + wide, top + high))
    inside = [box for box in places if box[0] >= 0 and box[1] >= 0 and box[2] <= cols and box[3] <= rows]
    inside.sort(key=lambda box: _distance(mark, box))
    free = (box for box in inside if not any(_overlap(box, other) for other in taken))
    return next(free, inside[0] if inside else places[0])


def _distance(mark: Mark, box: Box) -> float:
    """From a joint to the nearest point of a box."""
    x, y = min(max(mark.x, box[0]), box[2]), min(max(mark.y, box[1]), box[3])
    return float(np.hypot(x - mark.x, y - mark.y))
