"""What was spent stays spent: over rounds, restarts, several processes and damaged files."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedbone.errors import UserError
from fedbone.privacy.accounting import NoisyRounds, composed_epsilon, epsilon
from fedbone.privacy.ledger import Ledger

D = 1e-5
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a new folder" / "ledger.json"


def test_nothing_is_spent_before_the_first_round(path):
    ledger = Ledger(path, D)
    assert (ledger.epsilon("a"), ledger.total()) == (0.0, 0.0)
    assert not path.exists()


def test_rounds_of_one_hospital_add_up(path):
    ledger = Ledger(path, D)
    for rounds in (1, 3, 6):
        ledger.spend("a", noise_multiplier=12.0, sampling_rate=1.0, rounds=rounds)
    assert ledger.epsilon("a") == pytest.approx(0.9815, abs=5e-5)


def test_rounds_of_different_kinds_add_up(path):
    """Full rounds by the closed form: 1/9 + 1/16 = (5/12)^2; sampled ones by composition."""
    ledger = Ledger(path, D)
    ledger.spend("a", 3.0, 1.0, 1)
    ledger.spend("a", 4.0, 1.0, 1)
    assert ledger.epsilon("a") == pytest.approx(epsilon(noise_multiplier=2.4, rounds=1, dp_delta=D))
    ledger.spend("b", 2.0, 0.01, 100)
    ledger.spend("b", 3.0, 0.02, 50)
    ledger.spend("b", 2.0, 0.01, 100)
    both = composed_epsilon([NoisyRounds(2.0, 0.01, 200), NoisyRounds(3.0, 0.02, 50)], D)
    assert ledger.epsilon("b") == pytest.approx(both)


def test_hospitals_with_disjoint_patients_cost_the_largest_not_the_sum(path):
    ledger = Ledger(path, D)
    ledger.spend("a", 4.0, 1.0, 5)
    ledger.spend("b", 8.0, 1.0, 5)
    assert ledger.total() == ledger.epsilon("a") > ledger.epsilon("b") > 0


def test_it_survives_a_restart(path):
    Ledger(path, D).spend("a", np.float32(2.0), np.float64(1.0), np.int64(4))
    again = Ledger(path, D)
    assert again.epsilon("a") == epsilon(noise_multiplier=2.0, rounds=4, dp_delta=D)
    again.spend("a", 2.0, 1.0, 4)
    assert Ledger(path, D).epsilon("a") == epsilon(noise_multiplier=2.0, rounds=8, dp_delta=D)
    assert Ledger(path, 1e-7).epsilon("a") > again.epsilon("a")


def test_it_is_on_the_disk_before_spend_returns(path, monkeypatch):
    """And where it cannot be written, nothing is spent and the caller hears of it."""
    ledger = Ledger(path, D)
    ledger.spend("a", 2.0, 1.0, 1)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("fedbone.privacy.ledger.write_json", full)
    with pytest.raises(OSError, match="No space"):
        ledger.spend("a", 2.0, 1.0, 1)
    assert path.read_bytes() == before


def test_what_would_pass_the_limit_is_refused_and_not_spent(path):
    ledger = Ledger(path, D, epsilon_limit=1.0)
    ledger.spend("a", 12.0, 1.0, 10)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"a would have spent an epsilon of 1\.03.*its limit is 1") as refused:
        ledger.spend("a", 12.0, 1.0, 1)
    assert "more noise" in refused.value.remedy
    assert path.read_bytes() == before
    ledger.spend("b", 12.0, 1.0, 10)  # the limit is each hospital's
    with pytest.raises(UserError, match="an epsilon of inf"):
        ledger.spend("c", 0.0, 1.0, 1)


def test_rounds_without_noise_cost_everything(path):
    ledger = Ledger(path, D)
    ledger.spend("a", 0.0, 1.0, 1)
    ledger.spend("a", 100.0, 1.0, 1)
    assert ledger.total() == math.inf


def test_rounds_that_make_no_sense_are_refused(path):
    for bad in ((-1.0, 1.0, 1), (1.0, 0.0, 1), (1.0, 1.0, 0)):
        with pytest.raises(ValueError, match="got"):
            Ledger(path, D).spend("a", *bad)
    assert not path.exists()


def damage_digit(text: str) -> str:
    return text.replace('"rounds": 5', '"rounds": 1')


DAMAGES = {
    "a smaller number": damage_digit,
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "other JSON": lambda text: "[]",
    "a hospital removed": lambda text: json.dumps({**json.loads(text), "spent": {}}),
    "no checksum": lambda text: json.dumps({"spent": {}}),
    "no text": lambda text: "\udcff\udcfe",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_refused_and_never_started_anew(path, damage):
    ledger = Ledger(path, D)
    ledger.spend("a", 2.0, 1.0, 5)
    damaged = DAMAGES[damage](path.read_text()).encode("utf-8", "surrogateescape")
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    for call in (lambda: ledger.spend("a", 2.0, 1.0, 1), lambda: ledger.epsilon("a"), ledger.total):
        with pytest.raises(UserError, match="ledger is damaged") as refused:
            call()
        assert str(path) in str(refused.value)
        assert "backup" in refused.value.remedy
    assert path.read_bytes() == damaged


SPENDER = """
import sys
from pathlib import Path
from fedbone.privacy.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), 1e-5)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(40):
    ledger.spend("a", 2.0, 1.0, 1)
"""


def test_two_processes_lose_no_spending(path):
    command = [sys.executable, "-c", SPENDER, str(path)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait() for process in processes] == [0, 0]
    for process in processes:
        process.stdin.close()
        process.stdout.close()
    assert Ledger(path, D).epsilon("a") == epsilon(noise_multiplier=2.0, rounds=80, dp_delta=D)


def test_a_ledger_that_is_gone_is_missed(path):
    ledger = Ledger(path, 1e-5)
    ledger.spend("a", 1.0, 1.0, 1)
    path.unlink()
    for ask in (lambda: ledger.epsilon("a"), ledger.total, lambda: ledger.spend("a", 1.0, 1.0, 1)):
        with pytest.raises(UserError, match="gone"):
            ask()
    assert not path.exists()


def test_a_lock_of_a_first_spending_that_broke_off_blocks_nobody(path):
    path.parent.mkdir()
    path.with_name(path.name + ".lock").touch()
    Ledger(path, 1e-5).spend("a", 1.0, 1.0, 1)
    assert Ledger(path, 1e-5).epsilon("a") > 0


def test_a_link_leads_to_one_ledger_not_to_two(path, tmp_path):
    link = tmp_path / "link.json"
    Ledger(path, 1e-5).spend("a", 2.0, 1.0, 1)
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("this system lets nobody make links")
    Ledger(link, 1e-5).spend("a", 2.0, 1.0, 3)
    assert link.is_symlink()
    assert Ledger(path, 1e-5).epsilon("a") == Ledger(link, 1e-5).epsilon("a") == epsilon(
        noise_multiplier=2.0, rounds=4, dp_delta=1e-5
    )
    path.unlink()
    with pytest.raises(UserError, match="gone"):
        Ledger(link, 1e-5).total()


def test_a_limit_may_be_met_and_not_passed(path):
    exact = epsilon(noise_multiplier=2.0, rounds=4, dp_delta=1e-5)
    Ledger(path, 1e-5, exact).spend("a", 2.0, 1.0, 4)
    Ledger(path, 1e-5, exact * (1 + 1e-9)).spend("b", 2.0, 1.0, 4)
    with pytest.raises(UserError, match="limit"):
        Ledger(path, 1e-5, exact * (1 - 1e-9)).spend("c", 2.0, 1.0, 4)
    with pytest.raises(UserError, match="limit"):
        Ledger(path, 1e-5, math.nan).spend("c", 2.0, 1.0, 4)


@pytest.mark.parametrize("noise", [(0.0, 2.0), (2.0, 0.0)])
def test_one_round_without_noise_costs_everything_whenever_it_was(path, noise):
    for noise_multiplier in noise:
        Ledger(path, 1e-5).spend("a", noise_multiplier, 1.0, 1)
    assert Ledger(path, 1e-5).epsilon("a") == math.inf


def test_numpys_numbers_are_numbers(path):
    ledger = Ledger(path, 1e-5, 100.0)
    ledger.spend("a", np.float32(1.5), np.float64(0.1), np.int64(100))
    assert ledger.epsilon("a") == epsilon(noise_multiplier=1.5, sampling_rate=0.1, rounds=100, dp_delta=1e-5)


def test_a_hospital_has_a_name(path):
    with pytest.raises(ValueError, match="name"):
        Ledger(path, 1e-5).spend(1, 1.0, 1.0, 1)
