"""Figures of notebook 08: numbers side by side in one plaintext, and what each way of hiding an update costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fedbone.teaching.plots import HOSPITAL_COLOURS

COUNTER, HEADROOM, SUM = "#666666", "#EEEEEE", "#009E73"


def lanes(axes: Axes, rows: Mapping[str, Sequence[int]], bits: int, width: int) -> None:
    """Plaintexts as bits: a row each, lanes of ``width`` bits, of which the lower ``bits`` are a hospital's own.

    rows: by name the lanes' numbers, the contributor counter first; the last row is the sum. In each lane the number
    stands above its bits, the headroom is grey, and a bit that is set is dark.
    """
    for line, (name, numbers) in enumerate(rows.items()):
        last = line == len(rows) - 1
        y = -1.6 * line - (0.4 if last else 0)
        axes.text(-0.8, y + 0.4, name, ha="right", va="center", fontsize=9)
        for lane, number in enumerate(numbers):
            left = lane * (width + 1)
            colour = COUNTER if lane == 0 else SUM if last else HOSPITAL_COLOURS[line % len(HOSPITAL_COLOURS)]
            for bit in range(width):
                face = colour if number >> bit & 1 else HEADROOM if bit >= bits else "white"
                place = (left + width - 1 - bit, y)
                axes.add_patch(Rectangle(place, 1, 0.8, facecolor=face, edgecolor="#999999", lw=0.5))
            axes.text(left + width / 2, y + 0.95, str(number), ha="center", fontsize=8)
    names = ["counter", *(f"weight {lane}" for lane in range(1, len(numbers)))]
    for lane, name in enumerate(names):
        axes.text(lane * (width + 1) + width / 2, 1.6, name, ha="center", fontsize=9, color="#444444")
    axes.set(xlim=(-6, len(numbers) * (width + 1)), ylim=(y - 0.3, 2.2))
    axes.set_axis_off()


def costs(axes: Axes, rows: Sequence[tuple[str, float, float, bool]]) -> None:
    """CPU seconds over bytes, both logarithmic: (name, times the bytes of float32, CPU-s a million weights, exact)."""
    for name, size, seconds, exact in rows:
        axes.plot(size, seconds, "o" if exact else "s", color=SUM if exact else HOSPITAL_COLOURS[1], ms=9)
        side = "left" if size < 30 else "right"  # the name stays inside
        axes.annotate(name, (size, seconds), (9 if side == "left" else -9, 0), textcoords="offset points",
                      ha=side, va="center", fontsize=9)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="bytes sent, in float32 models", ylabel="CPU seconds a million weights")
    axes.plot([], [], "o", color=SUM, label="the sum is exact")
    axes.plot([], [], "s", color=HOSPITAL_COLOURS[1], label="the sum is approximate")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
