"""Each planted mistake is caught, by the tests that the table names; the correct mechanism passes both."""

from itertools import count

import numpy as np
import pytest

from fedbone.teaching.sabotage import CORRECT, MISTAKES, verdict, verdicts

AUDIT, MOVE, BOTH = "audit", "sensitivity test", "audit and sensitivity test"
CATCHES = {
    "noise divided twice": (AUDIT, 3.0),
    "no clip": (BOTH, 13.0),
    "data-size weights": (BOTH, 1.25),
    "per-layer clip": (BOTH, 2.0),
    "fixed seed": (AUDIT, 40.0),
    "un-noised buffers": (AUDIT, 40.0),
    "dividing by who came": (MOVE, 0.7),
}


@pytest.fixture(autouse=True)
def _same_noise_each_time(monkeypatch):
    seeds = count()
    monkeypatch.setattr("fedbone.privacy.dp.secrets.randbits", lambda bits: next(seeds))


def test_the_correct_mechanism_passes_both_tests():
    found = verdict(CORRECT, 1.0)
    assert found.caught_by == "neither"
    assert 0.5 < found.audited <= 1.0
    assert found.moved == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_the_planted_mistake_is_caught(mistake):
    found = verdict(mistake, 1.0)
    caught_by, audited = CATCHES[mistake.name]
    assert found.caught_by == caught_by
    assert found.audited == pytest.approx(audited, rel=0.25)


def test_each_mistake_differs_from_the_correct_mechanism_in_one_step():
    for mistake in MISTAKES:
        steps = [getattr(mistake, step) is not getattr(CORRECT, step) for step in ("clip", "mean", "noise")]
        assert sum(steps) == 1
        assert mistake.sentence.endswith(".")


def test_the_table_has_a_row_for_each_and_the_correct_one_first():
    rows = verdicts(calls=200)
    assert [row.name for row in rows] == ["correct", *CATCHES]
    assert {row.claimed for row in rows} == {1.0}


def test_the_correct_mechanism_is_the_mean_with_noise():
    updates = [np.full(8, 0.1, np.float32), None, np.full(8, -10.0, np.float32)]
    clipped = -1 / np.sqrt(8)
    assert CORRECT.mechanism(0.0, 1.0)(updates) == pytest.approx(np.full(8, (0.1 + clipped) / 3), rel=1e-5)
    spread = np.std([CORRECT.mechanism(0.5, 1.0)(updates) for _ in range(2000)], axis=0)
    assert spread == pytest.approx(np.full(8, 0.5), rel=0.08)
