"""Hospitals in processes: the same bytes, and one that hangs or dies harms nobody else."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest

from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.federation.processes import HospitalProcesses, _portable, at_work
from fedbone.federation.rounds import RoundRules, run_rounds
from fedbone.federation.strategies import Strategy
from tests.fake_hospitals import PROFILE, START, FakeHospital, OddError, three
from tests.helpers import all_ended, dot_hospital, tiny_profile

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")


def test_processes_give_the_bytes_of_a_single_one():
    """What stays in the hospitals (FedBN) included."""
    profile = tiny_profile(rounds=2, norm="batch")

    def run(processes):
        hospitals = [Hospital(dot_hospital(name, (0, 1, 2), seed), profile, True) for seed, name in enumerate("abc")]
        done = run_rounds(hospitals, profile, strategy=Strategy(local_norm=True), processes=processes)
        kept = [{name: array.tobytes() for name, array in h.state().items()} for h in hospitals]
        return done.vector.tobytes(), done.history, kept

    alone, together = run(1), run(2)
    assert alone == together
    assert all(alone[2])
    assert not multiprocessing.active_children()  # a notebook lives on, and its cores are for the next cell


def test_a_hospital_that_dies_hangs_or_fails_harms_nobody_else():
    faults = {"b": {0: "kill", 1: "odd"}, "c": {1: "hang"}}
    rules = RoundRules(min_hospitals=1, deadline_s=3.0)
    profile = replace(PROFILE, rounds=3)
    done = run_rounds([FakeHospital(n, faults=faults.get(n)) for n in "abc"], profile, rules=rules, processes=2)
    rows = [{name: (row.status, row.reason) for name, row in record.hospitals.items()} for record in done.history]
    well = ("took part", "")
    assert rows[0] == {"a": well, "b": ("failed", "its process ended (exit code -9)"), "c": well}
    failed = ("failed", "RuntimeError: OddError: its disk is odd")
    assert rows[1] == {"a": well, "b": failed, "c": ("late", "no answer within 3 s")}
    assert done.history[2].hospitals["c"].loss == 2.0  # of its visits the late one does not count
    assert rows[2] == dict.fromkeys("abc", well)


@pytest.mark.slow
def test_who_is_late_waits_or_was_not_there_is_said():
    """One process for two hospitals: it is killed while idle, which is nobody's fault, and then a hangs in round 1."""
    states = {"a": {}, "b": {}}
    with HospitalProcesses([FakeHospital("a", faults={1: "hang"}), FakeHospital("b")], 1, 2.0) as pool:
        (answer,) = pool.ask(["b"], START, RoundTask(0, 0), states)
        assert (answer.name, answer.status, answer.loss) == ("b", "took part", 1.0)
        os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        pool._workers[0].process.join()
        *well, late, behind = pool.ask(["b", "b", "a", "b"], START, RoundTask(1, 0), states)
    assert [(a.name, a.loss) for a in well] == [("b", 1.0)] * 2  # each from the state it was given, not the last one
    assert [(a.name, a.status) for a in (late, behind)] == [("a", "late"), ("b", "late")]
    assert [a.error.problem for a in (late, behind)] == [
        "no answer within 2 s",
        "no answer within 2 s: it was still waiting for a process",
    ]


class NotThere(FakeHospital):
    """In a worker there is no such class: as if it had been defined in a notebook's cell."""

    def __reduce__(self):
        return _only_here, (os.getpid(),)


def _only_here(pid: int):
    if os.getpid() != pid:
        raise AttributeError("Can't get attribute 'NotThere'")
    return NotThere("a")


def test_a_process_that_cannot_start_is_said_and_not_repeated(capfd):
    with (
        pytest.raises(UserError, match=r"exit code 1\) before it was ready.*__main__"),
        HospitalProcesses([NotThere("a")], 1) as pool,
    ):
        list(pool.ask(["a"], START, RoundTask(0, 0), {"a": {}}))
    assert "Can't get attribute 'NotThere'" in capfd.readouterr().err


def test_without_processes_there_is_no_deadline():
    with pytest.raises(ValueError, match="processes > 1"), at_work(three(), 1, 1.0):
        pass


ERRORS = {"two arguments": OddError("a", "b"), "plain": OSError("full"), "not picklable": RuntimeError(lambda: 0)}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_every_error_can_cross_processes(error):
    again = pickle.loads(pickle.dumps(_portable(error)))
    assert str(error).split(" at 0x")[0] in str(again)


def test_an_error_from_a_process_keeps_its_traceback():
    try:
        FakeHospital("a", faults={0: "raise"}).local_update(START, RoundTask(0, 0))
    except OSError as error:
        again = pickle.loads(pickle.dumps(_portable(error)))
    assert 'raise OSError("its disk is full")' in again.__notes__[0]


PARENT = """
    import multiprocessing
    from fedbone.federation.hospital import RoundTask
    from fedbone.federation.processes import HospitalProcesses
    from tests.fake_hospitals import START, FakeHospital
    if __name__ == "__main__":
        with HospitalProcesses([FakeHospital("a", faults={1: "hang"})], 1) as pool:
            for index in range(2):
                asked = pool.ask(["a"], START, RoundTask(index, 0), {"a": {}})
                print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                list(asked)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_processes_end_with_their_parent(stop, tmp_path):
    """Killed, or interrupted by Ctrl-C, while a hospital is at work."""
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ) as parent:
        assert not parent.stdout.readline().split()  # no process before the first question
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.2)
        parent.send_signal(stop)
        error = parent.stderr.read()
    assert len(workers) == 1
    assert error.count("KeyboardInterrupt") == (stop == signal.SIGINT)
    assert all_ended(workers)
