"""The figures of notebook 09 show who took part and when, as the server's own records say."""

from __future__ import annotations

from datetime import UTC, datetime

import matplotlib.pyplot as plt
import pytest

from fedbone.teaching import deployment_figures

NAMES = ("hospital_a", "hospital_b")
BEGAN = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def entry(seconds: float, event: str, site: str | None = None) -> dict:
    time = datetime.fromtimestamp(BEGAN.timestamp() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"time": time, "event": event, **({"site": site} if site else {})}


def test_each_outcome_has_its_sign_and_rounds_to_come_are_empty():
    outcomes = ("took part", "late: no answer within 4 s", "refused: its key", "not asked: its key is revoked")
    history = [{"round": i, "hospitals": {"hospital_a": "took part", "hospital_b": o}} for i, o in enumerate(outcomes)]
    lines = deployment_figures.rounds(history, NAMES, 5).data.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["round", "0", "1", "2", "3", "4"]
    assert cells[2:] == [["hospital_a", "●", "●", "●", "●", ""], ["hospital_b", "●", "·", "✕", "–", ""]]


def test_before_the_first_round_there_are_empty_rows():
    lines = deployment_figures.rounds([], NAMES, 2).data.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*NAMES]


def test_bars_go_from_pull_to_push_and_nobody_has_one_for_a_missing_answer():
    entries = [entry(0, "start"), entry(1, "pull", "hospital_a"), entry(1, "pull", "hospital_b"),
               entry(3.5, "push", "hospital_a"), entry(7, "refusal", "hospital_b"), entry(8, "release")]  # fmt: skip
    _, axes = plt.subplots()
    deployment_figures.timeline(axes, entries, NAMES, {"killed": ("hospital_b", BEGAN.timestamp() + 2)})
    (bar,) = axes.patches
    assert (bar.get_x(), bar.get_width()) == pytest.approx((0.0, 2.5))
    assert bar.get_y() + bar.get_height() / 2 == pytest.approx(0)
    released, mark = axes.lines[:2]
    assert released.get_xdata()[0] == pytest.approx(7.0)
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == pytest.approx((1.0, 1))
    assert [text.get_text() for text in axes.texts] == ["killed"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*NAMES]
    assert axes.yaxis_inverted()


def test_a_hospital_that_was_asked_again_has_two_bars():
    rounds = [(0, "pull"), (1, "push"), (2, "pull"), (2.001, "push")]
    entries = [entry(at, event, "hospital_b") for at, event in rounds]
    _, axes = plt.subplots()
    deployment_figures.timeline(axes, entries, NAMES, {})
    assert [(bar.get_x(), round(bar.get_width(), 3)) for bar in axes.patches] == [(0, 1), (2, 0.05)]
