"""Figures of notebook 09: who took part in which round, and what the server's audit log says of the time between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from IPython.display import Markdown
from matplotlib.axes import Axes

from fedbone.teaching.plots import HOSPITAL_COLOURS, as_table

SIGNS = {"took part": "●", "not asked": "–", "refused": "✕"}  # by the beginning of an outcome; late ones have a dot
LATE = "·"
EVENT, RELEASED = "#D55E00", "#BBBBBB"


def rounds(history: Sequence[Mapping], hospitals: Sequence[str], length: int) -> Markdown:
    """A table of ``length`` rounds, one row per hospital: a sign for each round of ``history`` that is finished.

    history: rows of a run's ``status.json``, each with ``round`` and ``hospitals`` (name -> outcome).
    """
    by_round = {row["round"]: row["hospitals"] for row in history}
    told = [[name, *(_sign(by_round[i][name]) if i in by_round else "" for i in range(length))] for name in hospitals]
    return as_table(["round", *range(length)], told)


def _sign(outcome: str) -> str:
    return next((sign for begins, sign in SIGNS.items() if outcome.startswith(begins)), LATE)


def timeline(
    axes: Axes, entries: Sequence[Mapping], hospitals: Sequence[str], marks: Mapping[str, tuple[str, float]]
) -> None:
    """A run in seconds since its first question: bars from pull to push, grey lines where a round was released.

    entries: of the server's audit log, of one run. marks: by text, the hospital and the time (s since 1970) of what was
    done to it. An update that was refused, or never came, has no bar.
    """
    asked, began = {}, min(_seconds(entry) for entry in entries if entry["event"] == "pull")
    for entry in entries:
        at, row = _seconds(entry) - began, entry.get("site")
        if entry["event"] == "release":
            axes.axvline(at, color=RELEASED, lw=0.8, zorder=0)
        elif entry["event"] == "pull":
            asked[row] = at
        elif entry["event"] == "push" and row in asked:
            line = hospitals.index(row)
            axes.barh(line, max(at - asked[row], 0.05), left=asked[row], height=0.5, color=HOSPITAL_COLOURS[line % 3])
    for text, (name, moment) in marks.items():
        line = hospitals.index(name)
        axes.plot(moment - began, line, "X", color=EVENT, ms=11, mec="white", zorder=3)
        axes.annotate(text, (moment - began, line), (0, 12), textcoords="offset points", ha="center", va="bottom",
                      fontsize=9, color=EVENT)  # fmt: skip
    axes.set_yticks(range(len(hospitals)), hospitals)
    axes.set(ylim=(len(hospitals) - 0.4, -0.8), xlabel="seconds since the first question of the run")
    axes.plot([], [], color=RELEASED, lw=0.8, label="a round is released")
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.22))


def _seconds(entry: Mapping) -> float:
    return datetime.fromisoformat(entry["time"]).timestamp()
