"""The watchdog's decisions, with a stand-in for FLARE's session: what is lost begins again, and nothing else does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedbone.engines.flare import watchdog as module
from fedbone.engines.flare.jobs import live_job
from fedbone.engines.flare.kit import load_parties
from fedbone.engines.flare.run_folder import CANCELLED, FINISHED, keep_plan
from fedbone.engines.flare.watchdog import (
    ABORT_PAUSE_S,
    LONGEST_PAUSE_S,
    LOOKS_WITHOUT_PROCESS,
    PATIENCE_S,
    Watchdog,
    unfinished,
)
from fedbone.errors import UserError
from tests.kits import make_kits
from tests.test_plan import make

NAMES = ("north", "south", "west")


class Session:
    """jobs: rows (id, name, status); running: ids with a process; there: registered hospitals."""

    def __init__(self, jobs=(), running=(), there=NAMES) -> None:
        self.jobs, self.running, self.there = list(jobs), set(running), there
        self.aborted = []

    def abort_job(self, job_id):
        self.aborted.append(job_id)
        return "told"

    def list_jobs(self, name_prefix):
        rows = [dict(zip(("job_id", "job_name", "status"), job, strict=True)) for job in self.jobs]
        return [row for row in rows if row["job_name"].startswith(name_prefix)]

    def get_system_info(self):
        jobs = [SimpleNamespace(job_id=job) for job in self.running]
        return SimpleNamespace(job_info=jobs, client_info=[SimpleNamespace(name=name) for name in self.there])


@pytest.fixture
def dog(tmp_path, monkeypatch):
    """(watchdog of a server with the one run "first", what it submitted, the clock)"""
    server = load_parties(make_kits(tmp_path / "kits", NAMES))[0]
    plan = make(hospitals=NAMES, labels=dict.fromkeys(NAMES, ("hip",)))
    folder = server.run_folder("first")
    folder.mkdir(parents=True)
    keep_plan(folder, plan)
    submitted, clock = [], SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "submit", lambda to, plan: submitted.append(plan.run) or f"job{len(submitted)}")
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return Watchdog(server), submitted, clock


def test_a_run_without_a_job_gets_one(dog):
    watchdog, submitted, _ = dog
    watchdog.look(Session([("a", "first", "FINISHED:EXECUTION_EXCEPTION")]))
    assert submitted == ["first"]


@pytest.mark.parametrize("status", ["SUBMITTED", "DISPATCHED", "RUNNING"])
def test_a_run_with_a_live_job_is_left_alone(dog, status):
    watchdog, submitted, clock = dog
    for _ in range(100):
        watchdog.look(Session([("a", "first", status)], running=["a"]))
        clock.now += 0.5
    assert not submitted


def test_another_run_whose_name_begins_alike_is_another_run(dog):
    watchdog, submitted, _ = dog
    watchdog.look(Session([("a", "first-2", "RUNNING")], running=["a"]))
    assert submitted == ["first"]
    assert live_job(Session([("a", "first-2", "RUNNING")], running=["a"]), "first") is None


def test_a_job_that_only_claims_to_run_counts_as_lost(dog):
    watchdog, submitted, _ = dog
    for look in range(LOOKS_WITHOUT_PROCESS):
        assert not submitted, look
        watchdog.look(Session([("a", "first", "RUNNING")]))
    assert submitted == ["first"]


def test_it_waits_for_all_hospitals_and_then_goes_on_with_enough(dog):
    watchdog, submitted, clock = dog
    watchdog.look(Session(there=NAMES[:2]))
    clock.now += PATIENCE_S - 1
    watchdog.look(Session(there=NAMES[:2]))
    assert not submitted
    clock.now += 2
    watchdog.look(Session(there=NAMES[:2]))
    assert submitted == ["first"]


def test_with_too_few_hospitals_it_waits_for_ever(dog):
    watchdog, submitted, clock = dog
    for _ in range(100):
        watchdog.look(Session(there=NAMES[:1]))
        clock.now += 60
    assert not submitted
    watchdog.look(Session())
    assert submitted == ["first"]


def test_what_fails_again_and_again_is_tried_with_growing_pauses(dog):
    watchdog, submitted, clock = dog
    for _ in range(3600):
        watchdog.look(Session())
        clock.now += 1
    assert 50 < len(submitted) < 80  # once a minute in the end


def test_a_finished_run_is_left_alone(dog):
    watchdog, submitted, _ = dog
    (watchdog._kit.run_folder("first") / FINISHED).touch()
    watchdog.look(Session())
    assert not submitted
    assert unfinished(watchdog._kit) == []


def test_a_damaged_plan_keeps_no_other_run_down(dog, capsys):
    watchdog, _, _ = dog
    damaged = watchdog._kit.run_folder("damaged")
    damaged.mkdir()
    for content in (b"{", b"\xff"):
        (damaged / "plan.json").write_bytes(content)
        assert [plan.run for plan in unfinished(watchdog._kit)] == ["first"]
        assert str(damaged) in capsys.readouterr().out


def test_a_damaged_plan_is_told_once(dog, capsys):
    watchdog, submitted, _ = dog
    damaged = watchdog._kit.run_folder("damaged")
    damaged.mkdir()
    (damaged / "plan.json").write_bytes(b"\xff")
    for _ in range(3):
        watchdog.look(Session([("a", "first", "RUNNING")], running=["a"]))
    assert capsys.readouterr().out.count(str(damaged / "plan.json: it is damaged")) == 1
    assert not submitted


def test_the_live_job_of_a_cancelled_run_is_ended_and_nothing_brings_it_back(dog):
    watchdog, submitted, clock = dog
    (watchdog._kit.run_folder("first") / CANCELLED).touch()
    session = Session([("a", "first", "RUNNING"), ("b", "first-2", "RUNNING")], running=["a", "b"])
    for _ in range(3):
        watchdog.look(session)
    assert session.aborted == ["a"]  # once: it takes its time
    clock.now += ABORT_PAUSE_S
    watchdog.look(session)
    assert session.aborted == ["a", "a"]
    session.jobs = []
    for _ in range(100):
        clock.now += LONGEST_PAUSE_S
        watchdog.look(session)
    assert (len(session.aborted), submitted) == (2, [])


def test_a_watchdog_that_was_killed_left_nothing_behind_that_another_needs(dog):
    watchdog, submitted, _ = dog
    watchdog.look(Session([("a", "first", "RUNNING")]))
    another = Watchdog(watchdog._kit)
    for _ in range(LOOKS_WITHOUT_PROCESS):
        another.look(Session([("a", "first", "RUNNING")]))
    assert submitted == ["first"]


def test_two_watchdogs_do_not_watch_at_once(dog, monkeypatch):
    watchdog, _, _ = dog

    def stop(*_):
        with pytest.raises(UserError, match="at work already"):
            Watchdog(watchdog._kit).watch()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "session", stop)
    with pytest.raises(KeyboardInterrupt):
        watchdog.watch()
