import time

import gmpy2
import numpy as np
import pytest
import torch

from fedbone.errors import UserError
from fedbone.teaching import checks, machine
from fedbone.teaching.checks import (
    ClaimError,
    budget,
    claim,
    claim_cpu_seconds,
    grade,
    outcome_of,
    peak_memory_gb,
    predicted,
)


def test_a_false_claim_raises(capsys):
    claim("two is even", True)
    assert capsys.readouterr().out == "holds: two is even\n"
    with pytest.raises(ClaimError, match="three is even"):
        claim("three is even", False)


@pytest.mark.parametrize("variable", ["FEDBONE_ROUNDS", "FEDBONE_DATA"])
def test_claims_about_the_full_run_wait_for_it(monkeypatch, capsys, variable):
    monkeypatch.delenv("FEDBONE_ROUNDS", raising=False)
    with pytest.raises(ClaimError):
        claim("x", False, full_run=True)
    monkeypatch.setenv(variable, "4")
    claim("x", False, full_run=True)
    assert "not checked" in capsys.readouterr().out
    with pytest.raises(ClaimError):
        claim("x", False)


def test_a_limit_in_cpu_seconds_grows_with_the_time_of_a_training_step(monkeypatch, capsys):
    monkeypatch.setattr(machine, "slowness", lambda: 1.5)
    claim_cpu_seconds("training", 59, 60)
    assert capsys.readouterr().out == "holds: training: at most 60 CPU seconds\n"
    claim_cpu_seconds("training", 89, 60)
    assert "60 CPU seconds, times 1.5" in capsys.readouterr().out
    with pytest.raises(ClaimError, match=r"60 CPU seconds, times 1\.5"):
        claim_cpu_seconds("training", 91, 60)


CASES = [((2,), 4.0), ((np.array([1, 3]),), [1, 9])]


@pytest.mark.parametrize(
    ("answer", "solved"),
    [
        (lambda x: x * x, True),
        (lambda x: np.power(x, 2), True),
        (lambda x: None, False),
        (lambda x: ..., False),
        (lambda x: x + x, False),
        (lambda x: x[0], False),
        (lambda x: "four", False),
        (lambda x: "4" if np.ndim(x) == 0 else x * x, False),
        (lambda x: np.ones((5, 5)), False),
        (lambda x: {"4": x}, False),
    ],
)
def test_grading(answer, solved, capsys):
    assert grade(answer, CASES, "square it") is solved
    assert ("solved: all" in capsys.readouterr().out) is solved


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(4), 4),
        (4.0, 4),
        (4, 4.0),
        (np.array(4), 4),
        (gmpy2.mpz(10**40), 10**40),
        (0.1 + 0.2, 0.3),
        (1e-12, 0),
        (float("nan"), np.nan),
        ((1, 2), [1.0, 2.0]),
        ([1, np.float64(2)], np.array([1, 2])),
        (torch.tensor([1.0, 2.0]), [1, 2]),
        (frozenset({1, 2}), {1, 2}),
        ({np.int64(2), 1}, frozenset({1, 2})),
        ({}.keys(), set()),
        (np.bool_(True), True),
        (np.array(False), False),
        (np.str_("yes"), "yes"),
    ],
)
def test_a_right_value_counts_in_whatever_type_it_comes(value, expected):
    assert grade(lambda: value, [((), expected)], "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (80_740_356, 80_740_355),  # one off, and within a millionth of it
        (10**400, 1.0),
        (4.00001, 4),
        ([1, 2], {1, 2}),
        ({1, 2}, [1, 2]),
        ("True", True),
        (False, True),
        (np.array([True, True]), True),
        (b"yes", "yes"),
        (np.ones(3), np.ones((3, 1))),
        ([[1], [1, 2]], [1, 2]),
    ],
)
def test_a_wrong_value_does_not(value, expected):
    assert not grade(lambda: value, [((), expected)], "")


def test_the_first_case_that_fails_is_shown(capsys):
    def half(number, extra):
        return number // 2

    assert not grade(half, [((4, 0), 2), ((5, "no"), 2.5), ((7, 0), 3.5)], "5 / 2 is not whole")
    assert capsys.readouterr().out == (
        "not yet, case 2 of 3: half(5, 'no')\n  came     2\n  expected 2.5\nHint: 5 / 2 is not whole\n"
    )
    assert not grade(lambda x: x["a"], [(([1],), 2)], "an index")
    printed = capsys.readouterr().out
    assert printed.startswith("not yet, case 1 of 1: your function([1])\n  stopped with TypeError: list indices")
    assert printed.endswith("\nHint: an index\n")


class HalfWritten:
    def __repr__(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.zeros((4000, 3000)), "array([[0. 0. 0. ... 0. 0. 0.] [0. 0. 0. ... 0. 0. 0.]"),
        (np.float64(0.25), "  came     0.25\n"),
        (np.arange(3), "array([0 1 2])"),
        (list(range(1000)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...]"),
        ((1,), "(1,)"),
        ({"b", "a"}, "{'a', 'b'}"),
        (frozenset(), "set()"),
        (10**4000, "a whole number of 13288 bits"),
        ("x" * 5000, "xxx ... xxx"),
        (HalfWritten(), "a HalfWritten"),
    ],
)
def test_large_and_strange_answers_are_shown_in_short(value, shown, capsys):
    assert not grade(lambda: value, [((), -1)], "")
    printed = capsys.readouterr().out
    assert shown in printed
    assert len(printed) < 400


def test_an_answer_that_changes_its_arguments_spoils_no_later_case():
    shared, films = np.array([3.0, 1.0]), {"a": [2, 1]}

    def largest(array, lists):
        array.sort()
        lists["a"].sort()
        return array[-1] + lists["a"].pop()

    assert grade(largest, [((shared, films), 5), ((shared, films), 5)], "")
    assert list(shared) == [3, 1]
    assert films == {"a": [2, 1]}


@pytest.mark.parametrize(
    ("guess", "answer", "unit", "printed"),
    [
        ("b", "c", "", "you said b: it was c"),
        ("c", "c", "", "you said c: right"),
        (6, np.int64(6), "of 6", "you said 6 of 6, it was 6 of 6: right"),
        (0.5, 1.7e-5, "", "you said 0.5, it was 1.7e-05: far off: what did you not think of?"),
        (1.0, 1.96, "px", "you said 1 px, it was 1.96 px: near"),
        (5.0, 5.31, "px", "you said 5 px, it was 5.31 px: close"),
        (0, 0.0, "", "you said 0, it was 0: right"),
        (-1, 1, "px", "you said -1 px, it was 1 px: far off: what did you not think of?"),
    ],
)
def test_a_guess_is_scored(guess, answer, unit, printed, capsys):
    predicted(guess, answer, unit)
    assert capsys.readouterr().out == printed + "\n"


def test_the_budget_is_checked_and_the_peak_is_this_process(capsys, monkeypatch):
    for variable in ("FEDBONE_ROUNDS", "FEDBONE_DATA", "FEDBONE_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setitem(checks.CPU_BUDGETS_S, "00", 1e6)
    budget("00", time.perf_counter(), gigabytes=50)
    assert capsys.readouterr().out.count("holds") == 2
    block = bytearray(300_000_000)
    assert 0.3 < peak_memory_gb() < 50
    del block
    with pytest.raises(ClaimError, match=r"under 0\.001 GB"):
        budget("00", time.perf_counter(), gigabytes=0.001)
    monkeypatch.setattr(machine, "slowness", lambda: 1.5)
    monkeypatch.setattr(checks.psutil, "getloadavg", lambda: (0, 100.0, 0))
    budget("00", time.perf_counter(), gigabytes=50, others_cpu_s=2e6)
    assert "not checked, as other work" in capsys.readouterr().out
    monkeypatch.setattr(checks.psutil, "getloadavg", lambda: (0, 0.0, 0))
    with pytest.raises(ClaimError, match=r"at most 1e\+06 CPU seconds, times 1.5"):
        budget("00", time.perf_counter(), gigabytes=50, others_cpu_s=2e6)


def test_the_outcome_tells_a_refusal_and_lets_other_errors_through() -> None:
    def sound(number: int, least: int = 0) -> None:
        if number < least:
            raise UserError("the number", f"{number} is below {least}", "Give more")

    assert outcome_of(sound, 3) == "accepted"
    assert outcome_of(sound, 3, least=4) == "refused: 3 is below 4"
    with pytest.raises(TypeError):
        outcome_of(sound)
