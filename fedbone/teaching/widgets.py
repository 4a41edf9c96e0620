"""The live dashboard of a federation, and the same pictures as a static figure for where no widget is shown.

GitHub, nbviewer and a stored notebook show no widgets: display the ``Dashboard`` in one cell, and in the cell after the
run ``show(dashboard.figure(), alt=dashboard.alt())``.
"""

from __future__ import annotations

import html
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from matplotlib.figure import Figure

from fedbone.errors import UserError
from fedbone.federation.history import TOOK_PART
from fedbone.imaging.dataset import HospitalData
from fedbone.teaching.dashboard import (
    CARD_WIDE_PX,
    CURVE_PX,
    LEGEND_PX,
    MINI_PX,
    STATUSES,
    Card,
    State,
    accuracy_words,
    card_shapes,
    card_words,
    curve,
    error_words,
    joint_words,
    legend,
    mini,
    shortened,
    skeleton,
)
from fedbone.teaching.plots import HOSPITAL_COLOURS
from fedbone.teaching.shapes import FAINT, GROUND, INK, PX_PER_INCH, Shape, Words, paint, svg

REDRAW_S = 0.2  # the shortest time between two live pictures
LONGEST_NAME, LONGEST_REASON = 80, 120  # characters that a card shows
COLUMNS, GAP_PX = 3, 16  # of the static figure
IN_TEXT = "The live dashboard is shown while a notebook runs; the figure below is its last picture."
STYLE = f"""<style>
.fedbone-dashboard {{ background: {GROUND}; color: {INK}; padding: 12px; line-height: 1.4; white-space: normal;
  font-family: sans-serif; font-size: 13px; overflow-wrap: anywhere; color-scheme: light }}
.fedbone-dashboard .cards {{ display: grid; gap: 10px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 270px), 1fr)) }}
.fedbone-dashboard .card {{ border: 1px solid {FAINT}; border-left-width: 5px; padding: 8px }}
.fedbone-dashboard .inside {{ display: flex; gap: 10px }}
.fedbone-dashboard .inside svg {{ flex: none }}
.fedbone-dashboard .pictures {{ display: flex; flex-wrap: wrap; gap: 24px; margin-top: 12px }}
.fedbone-dashboard .pictures svg {{ display: block; max-width: 100%; height: auto }}
</style>"""


class Dashboard:
    """A federation as it runs: hospitals as cards, a skeleton that fills in, the error over the rounds.

    Keeps what is public of the hospitals (name, labelled joints, number of films), none of their films. Works without a
    front end. Raises UserError without hospitals or rounds.
    """

    def __init__(self, hospitals: list[HospitalData], rounds: int) -> None:
        if not hospitals or rounds < 1:
            problem = f"{len(hospitals)} hospitals and {rounds} rounds"
            raise UserError("dashboard", problem, "Give it at least one hospital and one round")
        self._rounds, self._joints = rounds, hospitals[0].joints
        self._hospitals = {
            h.name: (frozenset(n for n, own in zip(h.joints, h.labelled, strict=True) if own), len(h.train))
            for h in hospitals
        }
        self._rows: dict[int, dict] = {}
        self._widget = self._page = self._slider = None
        self._drawn_s = -math.inf

    def update(self, row: Mapping) -> None:
        """Take in one round; draws only if the widget is in use and the last picture is REDRAW_S old.

        row: {"round": 0-based, "hospitals": {name: {"status", "reason", "weight", "update_norm", "loss"}}, "per_joint":
        {joint: PCK in [0, 1] or None} or None, "mre_px"}; None: not measured, or not released. Rows may come in any
        order; a round that comes again replaces the first. Raises UserError for anything that this federation has not.
        """
        self._require_known(row)
        self._rows[row["round"]] = {**row, "hospitals": {name: dict(own) for name, own in row["hospitals"].items()}}
        if self._widget is not None and time.monotonic() - self._drawn_s >= REDRAW_S:
            self._draw_last()

    def close(self) -> None:
        """After the run: draw the last state, however lately the one before was drawn."""
        if self._widget is not None:
            self._draw_last()

    @property
    def widget(self):
        """The live picture over a slider that goes back through the rounds, as an ipywidgets container."""
        if self._widget is None:
            import ipywidgets

            layout = ipywidgets.Layout(width="auto", max_width="460px")  # 100 % and the margin would scroll sideways
            self._page = ipywidgets.HTML(layout=ipywidgets.Layout(width="auto"))
            self._slider = ipywidgets.IntSlider(0, 0, self._rounds, 1, description="after round", layout=layout)
            self._slider.observe(lambda _: self._draw(), "value")
            self._widget = ipywidgets.VBox([self._page, self._slider])
            self._draw_last()
        return self._widget

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        return {**self.widget._repr_mimebundle_(), "text/plain": IN_TEXT}

    def figure(self) -> Figure:
        """The last state as a static figure, for ``plots.show``."""
        return _figure(self._state(self._rounds))

    def alt(self) -> str:
        """What ``figure`` shows in words, with its numbers; joints come worst first."""
        return _alt(self._state(self._rounds))

    def _draw_last(self) -> None:
        last = max(self._rows, default=-1) + 1
        if self._slider.value != last:
            self._slider.value = last  # its observer draws
        else:
            self._draw()

    def _draw(self) -> None:
        self._page.value = _page(self._state(self._slider.value))
        self._drawn_s = time.monotonic()

    def _require_known(self, row: Mapping) -> None:
        if not 0 <= row["round"] < self._rounds:
            raise UserError("dashboard", f"round {row['round']} is not one of 0 to {self._rounds - 1}", "Count from 0")
        for name, own in row["hospitals"].items():
            if name not in self._hospitals:
                known = ", ".join(map(repr, self._hospitals))
                raise UserError("dashboard", f"{name!r} is not one of its hospitals", f"It was made for {known}")
            if own["status"] not in STATUSES:
                raise UserError(f"dashboard, {name}", f"unknown status {own['status']!r}", f"Use {', '.join(STATUSES)}")
        for joint, value in (row.get("per_joint") or {}).items():
            if joint not in self._joints or (_known(value) and not 0 <= value <= 1):
                problem = f"{joint!r} is no joint of its hospitals, or its accuracy {value!r} is not in [0, 1]"
                raise UserError("dashboard", problem, "Give each joint's PCK as a share, not in percent")

    def _state(self, after: int) -> State:
        """What is known when ``after`` rounds are done, or fewer where the run is not so far."""
        rows = [self._rows[index] for index in sorted(self._rows) if index < after]
        accuracy, measured = {}, 0
        for row in rows:
            found = {joint: value for joint, value in (row.get("per_joint") or {}).items() if _known(value)}
            accuracy |= found
            measured = row["round"] + 1 if found else measured
        errors = tuple((row["round"] + 1, row["mre_px"]) for row in rows if _known(row.get("mre_px")))
        names = enumerate(self._hospitals)
        cards = tuple(self._card(name, HOSPITAL_COLOURS[i % len(HOSPITAL_COLOURS)], rows) for i, name in names)
        return State(self._rounds, self._headline(rows, measured), cards, self._joints, accuracy, errors)

    def _headline(self, rows: list[dict], measured: int) -> str:
        if not rows:
            return f"Before round 1 of {self._rounds}"
        took_part = sum(own["status"] == TOOK_PART for own in rows[-1]["hospitals"].values())
        told = f"Round {rows[-1]['round'] + 1} of {self._rounds}"
        told += f": {took_part} of {len(self._hospitals)} hospitals took part"
        return f"{told}; accuracy measured after round {measured}" if measured else f"{told}; accuracy not measured yet"

    def _card(self, name: str, colour: str, rows: list[dict]) -> Card:
        joints, films = self._hospitals[name]
        own = rows[-1]["hospitals"].get(name) if rows else None
        facts = [("labels", f"{joint_words(joints)} ({len(joints)} of {len(self._joints)})"), ("films", f"{films:,}")]
        if own:
            hidden = "not released" if own["status"] == TOOK_PART else "–"
            facts.append(("weight in the mean", f"{own['weight']:.2f}"))
            for word, key in (("update norm", "update_norm"), ("loss", "loss")):
                facts.append((word, f"{own.get(key):.3g}" if _known(own.get(key)) else hidden))
        if rows:
            counts = Counter(row["hospitals"][name]["status"] for row in rows if name in row["hospitals"])
            missed = "".join(
                f", {counts[status]} {status}" for status in STATUSES if status != TOOK_PART and counts[status]
            )
            facts.append(("so far", f"took part in {counts[TOOK_PART]} of {len(rows)}{missed}"))
        status, reason = (own["status"], own.get("reason") or "") if own else (None, "")
        return Card(
            shortened(name, LONGEST_NAME), colour, joints, status, shortened(reason, LONGEST_REASON), tuple(facts)
        )


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _page(state: State) -> str:
    """The state as HTML that wraps in narrow windows, on a white ground so that it reads in dark mode too."""
    cards = "".join(_card_html(card, state.joints) for card in state.cards)
    drawn = svg(*skeleton(state), accuracy_words(state))
    rest = svg(curve(state), CURVE_PX, error_words(state)) + svg(legend(), LEGEND_PX)
    inside = f'<div class="cards">{cards}</div><div class="pictures">{drawn}<div>{rest}</div></div>'
    return f'{STYLE}<div class="fedbone-dashboard"><p><b>{state.headline}</b></p>{inside}</div>'


def _card_html(card: Card, joints: tuple[str, ...]) -> str:
    name, standing = html.escape(card.name), html.escape(card.standing)
    facts = "".join(f"<div>{html.escape(word)}: <b>{html.escape(value)}</b></div>" for word, value in card.facts)
    inside = f'<div class="inside">{_mini_svg(card.joints, card.colour, joints)}<div>{facts}</div></div>'
    return f'<div class="card" style="border-left-color: {card.edge}"><b>{name}</b><div>{standing}</div>{inside}</div>'


@lru_cache(maxsize=256)  # it never changes, and with many hospitals it is most of a page
def _mini_svg(own: frozenset[str], colour: str, joints: tuple[str, ...]) -> str:
    return svg(mini(own, colour, joints), MINI_PX)


def _figure(state: State) -> Figure:
    """Cards in rows of three, under them the skeleton, the curve and the legend; one unit of a shape is one pixel."""
    cards = [card_shapes(card, state.joints) for card in state.cards]
    rows = [cards[first : first + COLUMNS] for first in range(0, len(cards), COLUMNS)]
    heights = [max(size[1] for _, size in row) + GAP_PX for row in rows]
    drawn, size = skeleton(state)
    top = 40 + sum(heights)
    wide, high = GAP_PX + COLUMNS * (CARD_WIDE_PX + GAP_PX), top + max(size[1], CURVE_PX[1] + LEGEND_PX[1] + GAP_PX)
    figure = Figure(figsize=(wide / PX_PER_INCH, high / PX_PER_INCH), facecolor=GROUND)

    def place(shapes: Sequence[Shape], size: tuple[float, float], x: float, y: float) -> None:
        box = (x / wide, 1 - (y + size[1]) / high, size[0] / wide, size[1] / high)
        paint(figure.add_axes(box), shapes, size)

    place([Words(0, 20, state.headline, 15, bold=True)], (wide - 2 * GAP_PX, 32), GAP_PX, 0)
    for number, row in enumerate(rows):
        for column, card in enumerate(row):
            place(*card, GAP_PX + column * (CARD_WIDE_PX + GAP_PX), 40 + sum(heights[:number]))
    place(drawn, size, 60, top)
    place(curve(state), CURVE_PX, wide / 2 + 40, top)
    place(legend(), LEGEND_PX, wide / 2 + 40, top + CURVE_PX[1] + GAP_PX)
    return figure


def _alt(state: State) -> str:
    cards = " ".join(card_words(card) for card in state.cards)
    return f"Dashboard of a federation. {state.headline}. {cards} {accuracy_words(state)} {error_words(state)}"
