import time

import numpy as np
import pytest

from fedbone.errors import UserError
from fedbone.teaching import checks, machine
from fedbone.teaching.checks import ClaimError, budget, claim, claim_cpu_seconds, grade, outcome_of, peak_memory_gb


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
        (lambda x: np.ones((5, 5)), False),
    ],
)
def test_grading(answer, solved, capsys):
    assert grade(answer, CASES, "square it") is solved
    assert ("solved: all" in capsys.readouterr().out) is solved


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
