"""Hospitals come back into a running job, with a stand-in for FLARE's server engine."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from nvflare.apis.fl_constant import RunProcessKey
from nvflare.apis.job_def import JobMetaKey

from fedbone.engines.flare import rejoin as module
from fedbone.engines.flare.rejoin import Rejoin


class Client(SimpleNamespace):
    def to_dict(self):
        return {"name": self.name}


class Engine:
    def __init__(self, *tokens: str) -> None:
        clients = [Client(name=f"hospital_{token[0]}", token=token) for token in tokens]
        self.clients, self.started, self.deployed, self.ready = clients, [], [], True
        self.job = SimpleNamespace(job_id="job", meta={}, get_application=lambda name, ctx: b"app")
        participants = {client.token: client for client in clients}
        self.run_processes = {"job": {RunProcessKey.PARTICIPANTS: participants}}
        self.job_runner = SimpleNamespace(
            running_jobs={"job": self.job},
            lock=threading.Lock(),
            _pending_client_outcomes={},
            resolve_client_outcome=lambda job, name: None,
            fail_run=lambda job, code, ctx: "failed",
            _make_deploy_message=lambda job, data, name, ctx: "deploy",
        )

    def get_clients(self):
        return self.clients

    def new_context(self):
        import contextlib

        return contextlib.nullcontext(SimpleNamespace())

    def check_client_resources(self, job, wanted, ctx):
        return dict.fromkeys(wanted, (self.ready, "reserved"))

    def _send_admin_requests(self, requests, ctx, timeout_secs):
        self.deployed += list(requests)

    def start_client_job(self, job, sites, ctx):
        self.started += list(sites)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


def look(rejoin: Rejoin, engine: Engine) -> None:
    rejoin._look_after(engine, "job", engine.run_processes["job"])


def test_nothing_happens_while_all_are_there(clock):
    engine = Engine("a1", "b1")
    look(Rejoin(), engine)
    assert engine.started == []


def test_a_hospital_with_a_new_token_is_started_again(clock):
    engine = Engine("a1", "b1")
    engine.clients = [engine.clients[0], Client(name="hospital_b", token="b2")]
    look(Rejoin(), engine)
    assert (engine.started, engine.deployed) == (["hospital_b"], ["b2"])
    assert sorted(engine.run_processes["job"][RunProcessKey.PARTICIPANTS]) == ["a1", "b2"]
    assert [client["name"] for client in engine.job.meta[JobMetaKey.JOB_CLIENTS]] == ["hospital_a", "hospital_b"]


def test_one_that_was_not_there_at_the_beginning_comes_in(clock):
    engine = Engine("a1")
    engine.clients.append(Client(name="hospital_c", token="c1"))
    look(Rejoin(), engine)
    assert (engine.started, engine.deployed) == (["hospital_c"], ["c1"])


def test_a_failed_process_does_not_end_the_job_and_is_started_again(clock):
    engine, rejoin = Engine("a1", "b1"), Rejoin()
    rejoin._absorb_failures(engine.job_runner)
    assert engine.job_runner.fail_run("job", 101, None) == ""
    engine.job_runner.resolve_client_outcome("job", "hospital_b")
    look(rejoin, engine)
    assert engine.started == ["hospital_b"]


def test_one_that_ended_well_is_not_started_again(clock):
    engine, rejoin = Engine("a1", "b1"), Rejoin()
    rejoin._absorb_failures(engine.job_runner)
    engine.job_runner.resolve_client_outcome("job", "hospital_b")
    look(rejoin, engine)
    assert engine.started == []


def test_a_crash_loop_is_started_with_growing_pauses(clock):
    engine, rejoin = Engine("a1", "b1"), Rejoin()
    for _ in range(600):
        rejoin._lost.add(("job", "hospital_b"))
        look(rejoin, engine)
        clock.now += 1.0
    assert 10 < len(engine.started) < 16


def test_a_hospital_that_is_not_ready_is_asked_again(clock):
    engine, rejoin = Engine("a1", "b1"), Rejoin()
    rejoin._lost.add(("job", "hospital_b"))
    engine.ready = False
    look(rejoin, engine)
    assert engine.started == []
    engine.ready, clock.now = True, clock.now + 60
    look(rejoin, engine)
    assert engine.started == ["hospital_b"]


def test_a_finished_job_is_left_alone(clock):
    engine = Engine("a1")
    engine.clients.append(Client(name="hospital_c", token="c1"))
    engine.run_processes["job"][RunProcessKey.PROCESS_FINISHED] = True
    look(Rejoin(), engine)
    assert engine.started == []
