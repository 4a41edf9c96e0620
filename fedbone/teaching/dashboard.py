"""The pictures of a federation after some round, each made once as shapes and painted live or in a static figure.

A joint's accuracy is the share of its test labels found, PCK@0.05 in [0, 1]; errors are mean radial errors in pixels
of the films as the model sees them. ``fedbone.teaching.widgets`` puts the pictures together.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.colors import to_hex

from fedbone.federation.history import ABSENT, FAILED, LATE, NOT_ASKED, REFUSED, TOOK_PART
from fedbone.imaging.coco import COCO_JOINTS
from fedbone.teaching.shapes import FAINT, GROUND, INK, PALE, Box, Disc, Line, Shape, Words

STATUSES = {  # of a hospital in a round: sign and colour (Okabe and Ito); the word itself is always printed too
    TOOK_PART: ("✓", "#009E73"),
    NOT_ASKED: ("–", FAINT),
    ABSENT: ("!", "#E69F00"),
    LATE: ("!", "#E69F00"),
    FAILED: ("✕", "#D55E00"),
    REFUSED: ("✕", "#D55E00"),
}

# a person seen from the front, as on a film: the patient's left is on the right. The left half, pixels from the middle
_HALF = {"eye": (22, 44), "ear": (48, 56), "shoulder": (60, 124), "elbow": (92, 194)}
_HALF |= {"wrist": (112, 276), "hip": (32, 250), "knee": (42, 337), "ankle": (46, 415)}
_SIDES = {"right": -1, "left": 1}
PLACES = {f"{side}_{part}": (sign * x, y) for side, sign in _SIDES.items() for part, (x, y) in _HALF.items()}
PLACES["nose"] = (0, 66)
_CHAIN = "ankle-knee knee-hip hip-shoulder shoulder-elbow elbow-wrist eye-ear ear-shoulder nose-eye".split()
_ACROSS = ("hip", "shoulder", "eye")
EDGES = [  # the 19 of COCO's person category, https://cocodataset.org/#format-data
    *(tuple(n if n == "nose" else f"{side}_{n}" for n in pair.split("-")) for pair in _CHAIN for side in _SIDES),
    *((f"left_{part}", f"right_{part}") for part in _ACROSS),
]
SKELETON_PX, LEGEND_PX, CURVE_PX, MINI_PX, CARD_WIDE_PX = (400, 440), (360, 76), (360, 204), (64, 108), 320


@dataclass(frozen=True)
class Card:
    """One hospital after a round. joints: those it labels; facts: (word, value) pairs; status None: no report yet."""

    name: str
    colour: str
    joints: frozenset[str]
    status: str | None
    reason: str
    facts: tuple[tuple[str, str], ...]

    @property
    def standing(self) -> str:
        """Sign, status and reason of the latest round in one line."""
        if self.status is None:
            return "waiting"
        return f"{STATUSES[self.status][0]} {self.status}" + (f": {self.reason}" if self.reason else "")

    @property
    def edge(self) -> str:
        """Colour of the card's band."""
        return PALE if self.status is None else STATUSES[self.status][1]


@dataclass(frozen=True)
class State:
    """All that is shown after a round. accuracy: PCK in [0, 1] of measured joints; errors: (rounds done, px)."""

    rounds: int
    headline: str
    cards: tuple[Card, ...]
    joints: tuple[str, ...]
    accuracy: dict[str, float]
    errors: tuple[tuple[int, float], ...]

    @property
    def labelled(self) -> frozenset[str]:
        """Joints that some hospital labels."""
        return frozenset().union(*(card.joints for card in self.cards))


def shortened(text: str, longest: int) -> str:
    """``text`` in one line of at most ``longest`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def accuracy_colour(accuracy: float) -> str:
    """Colour of a share in [0, 1] on viridis, which keeps its order for the colour-blind and in grey."""
    return to_hex(colormaps["viridis"](float(accuracy)))  # it takes a whole number for a row of its table


def _bones(joints: Sequence[str], fills: dict[str, str], middle: float, scale: float, width: float) -> list[Shape]:
    """COCO's edges between ``joints``, each half in the colour of its end."""
    at = {name: (middle + scale * PLACES[name][0], scale * PLACES[name][1]) for name in joints if name in PLACES}
    shapes: list[Shape] = []
    for ends in EDGES:
        if all(name in at for name in ends):
            half = tuple(sum(values) / 2 for values in zip(*(at[name] for name in ends), strict=True))
            shapes += [Line((at[name], half), fills[name], width) for name in ends]
    return shapes


def mini(own: frozenset[str], colour: str, joints: Sequence[str]) -> list[Shape]:
    """The joints that a hospital labels, filled, among all ``joints`` of the federation, on MINI_PX."""
    scale, middle = MINI_PX[1] / SKELETON_PX[1], MINI_PX[0] / 2
    shapes = _bones(joints, dict.fromkeys(joints, PALE), middle, scale, 1.5)
    for name in (n for n in joints if n in PLACES):
        fill, edge = (colour, INK) if name in own else (GROUND, PALE)
        shapes.append(Disc(middle + scale * PLACES[name][0], scale * PLACES[name][1], 3.2, fill, edge))
    return shapes


def skeleton(state: State) -> tuple[list[Shape], tuple[float, float]]:
    """(shapes, size): each joint coloured by its accuracy, with name and percent; joints beyond COCO's stand below."""
    marks = {name: _mark(state, name) for name in state.joints}
    wide, high = SKELETON_PX
    shapes: list[Shape] = []
    if any(name in PLACES for name in state.joints):
        shapes += [Words(8, 16, "patient's right", 11, colour=FAINT)]
        shapes += [Words(wide - 8, 16, "patient's left", 11, "end", FAINT)]
    else:
        high = 8
    bones = {name: fill if fill != GROUND else PALE for name, (fill, _, _) in marks.items()}
    shapes += _bones(state.joints, bones, wide / 2, 1, 5)
    others = [name for name in state.joints if name not in PLACES]
    for name, (fill, edge, text) in marks.items():
        x, y = PLACES.get(name, (0, 0))
        words = f"{name.split('_')[-1]} {text}"
        if name in others:
            column, row = others.index(name) % 2, others.index(name) // 2
            x, y = column * wide / 2 - wide / 2 + 16, high + 16 + 22 * row
            shapes.append(Words(wide / 2 + x + 12, y + 4, f"{shortened(name, 18)} {text}"))
        elif abs(x) < 30 and y < 100:  # eyes and nose: no room beside them
            shapes.append(Words(wide / 2 + 1.6 * x, y + (20 if x == 0 else -12), words, 11, "middle"))
        else:
            away = 12 if x > 0 else -12
            shapes.append(Words(wide / 2 + x + away, y + 4, words, 12, "start" if x > 0 else "end"))
        shapes.append(Disc(wide / 2 + x, y, 7, fill, edge))
    return shapes, (wide, high + 22 * -(-len(others) // 2))


def _mark(state: State, joint: str) -> tuple[str, str, str]:
    """(fill, edge, text) of a joint."""
    if joint in state.accuracy:
        return accuracy_colour(state.accuracy[joint]), INK, f"{100 * state.accuracy[joint]:.0f} %"
    return (PALE, FAINT, "–") if joint in state.labelled else (GROUND, FAINT, "✕")


def legend() -> list[Shape]:
    """What the skeleton's colours mean, on 360 x 76."""
    shapes: list[Shape] = [Words(8, 14, "share of test labels found, PCK@0.05", 12, bold=True)]
    for number in range(5):
        shapes.append(Disc(16 + 70 * number, 32, 7, accuracy_colour(number / 4), INK))
        shapes.append(Words(28 + 70 * number, 36, f"{25 * number} %"))
    shapes += [Disc(16, 58, 7, PALE, FAINT), Words(28, 62, "– not measured yet")]
    return [*shapes, Disc(186, 58, 7, GROUND, FAINT), Words(198, 62, "✕ nobody labels it")]


def curve(state: State) -> list[Shape]:
    """Mean radial error over the rounds, on CURVE_PX; the first and the last value are printed."""
    wide, left, bottom, top = CURVE_PX[0], 44, 176, 34
    shapes: list[Shape] = [Words(8, 14, "mean radial error on test films, px", 12, bold=True)]
    shapes += [Line(((left, top), (left, bottom), (wide - 24, bottom)), FAINT, 1)]
    ticks = {1: left, state.rounds: wide - 24} if state.rounds > 1 else {1: left}
    shapes += [Words(x, bottom + 18, f"{number}", 11, "middle") for number, x in ticks.items()]
    shapes += [Words((left + wide - 24) / 2, bottom + 18, "rounds done", 11, "middle", FAINT)]
    if not state.errors:
        return [*shapes, Words((left + wide) / 2, (top + bottom) / 2, "not measured yet", 12, "middle", FAINT)]
    most = max(value for _, value in state.errors) or 1.0
    step = (wide - 24 - left) / max(1, state.rounds - 1)
    points = tuple((left + step * (n - 1), bottom - (bottom - top) * value / most) for n, value in state.errors)
    shapes += [Words(left - 6, bottom + 4, "0", 11, "end"), Words(left - 6, top + 4, f"{most:.3g}", 11, "end")]
    shapes += [Line(points, INK, 2), *(Disc(x, y, 3, INK, INK) for x, y in points)]
    (x, y), value = points[-1], state.errors[-1][1]
    anchor = "end" if x > wide - 60 else "start"
    return [*shapes, Words(x, y - 8, f"{value:.3g} px", 12, anchor, bold=True)]


def joint_words(joints: frozenset[str]) -> str:
    """Joints in few words: a pair of COCO's joints becomes one plural, such as hips."""
    words: list[str] = []
    for part in dict.fromkeys(name.split("_")[-1] for name in COCO_JOINTS):
        pair = {f"left_{part}", f"right_{part}"}
        found = [name for name in COCO_JOINTS if name in joints and name.split("_")[-1] == part]
        words += [f"{part}s"] if pair <= joints else [name.replace("_", " ") for name in found]
    return ", ".join([*words, *sorted(joints - set(COCO_JOINTS))]) or "none"


def card_shapes(card: Card, joints: Sequence[str]) -> tuple[list[Shape], tuple[float, float]]:
    """(shapes, size) of a hospital's card for the static figure; on a page the same words stand in HTML."""
    shapes: list[Shape] = []
    y = 18.0
    for text in textwrap.wrap(card.name, 34, max_lines=2, placeholder=" …"):
        shapes.append(Words(14, y, text, 13, bold=True))
        y += 17
    for text in textwrap.wrap(card.standing, 42, max_lines=3, placeholder=" …"):
        shapes.append(Words(14, y, text))
        y += 16
    y, top = y + 4, y
    for word, value in card.facts:
        for text in textwrap.wrap(f"{word}: {value}", 34, max_lines=3, placeholder=" …"):
            shapes.append(Words(88, y, text, 11))
            y += 15
    shapes += [_moved(shape, 14, top - 8) for shape in mini(card.joints, card.colour, joints)]
    high = max(y, top + MINI_PX[1])
    return [Box(0, 0, 5, high, card.edge), *shapes], (CARD_WIDE_PX, high)


def _moved(shape: Shape, right: float, down: float) -> Shape:
    if isinstance(shape, Line):
        return shape._replace(points=tuple((x + right, y + down) for x, y in shape.points))
    return shape._replace(x=shape.x + right, y=shape.y + down)


def accuracy_words(state: State) -> str:
    """The skeleton in words: each measured joint with its percent, the worst first, then what is not measured."""
    told = [f"{_spoken(joint)} {100 * value:.0f} %" for joint, value in sorted(state.accuracy.items(), key=_accuracy)]
    unmeasured = [_spoken(joint) for joint in state.joints if joint in state.labelled - set(state.accuracy)]
    nobody = [_spoken(joint) for joint in state.joints if joint not in state.labelled | set(state.accuracy)]
    parts = [f"Share of test labels found (PCK@0.05), worst first: {', '.join(told)}." if told else ""]
    parts.append(f"Not measured yet: {', '.join(unmeasured)}." if unmeasured else "")
    parts.append(f"Labelled by nobody: {', '.join(nobody)}." if nobody else "")
    return " ".join(filter(None, parts))


def error_words(state: State) -> str:
    """The curve in words: its first and its last value."""
    if not state.errors:
        return "Mean radial error: not measured yet."
    (first, from_px), (last, to_px) = state.errors[0], state.errors[-1]
    if first == last:
        return f"Mean radial error after round {last}: {to_px:.3g} px."
    return f"Mean radial error: {from_px:.3g} px after round {first}, {to_px:.3g} px after round {last}."


def card_words(card: Card) -> str:
    """A hospital's card in words."""
    facts = "; ".join(f"{word} {value}" if word != "films" else f"{value} films" for word, value in card.facts)
    return f"{card.name}: {card.status or 'waiting'}{f' ({card.reason})' if card.reason else ''}; {facts}."


def _spoken(joint: str) -> str:
    return joint.replace("_", " ")


def _accuracy(item: tuple[str, float]) -> float:
    return item[1]
