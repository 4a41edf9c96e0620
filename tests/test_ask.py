"""Asking hospitals over FLARE: whose answer counts, and when the waiting ends. FLARE's part is played by a stand-in."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply

from fedbone.custody.audit_log import read_log
from fedbone.custody.identity import LoginKey, Registry, sign_update
from fedbone.engines.flare.ask import TOOK_PART, Ask, Stopped
from fedbone.engines.flare.kit import load_parties
from fedbone.engines.flare.wire import pack
from fedbone.errors import UserError
from tests.kits import make_kits
from tests.test_plan import make

NAMES = ("north", "south", "west")
MESSAGE = pack({}, {"delta": np.arange(4, dtype=np.float32)})


class Flare:
    """Hands each task out at once, in threads; ``answers``: by hospital, a result or a function that makes one."""

    def __init__(self, answers: dict) -> None:
        self.answers, self.errors, self.cancelled = answers, [], 0
        self.communicator = self

    def broadcast(self, task, fl_ctx, targets, min_responses):
        self.targets = targets
        for name in targets:
            threading.Thread(target=self._one, args=(task, name, fl_ctx), daemon=True).start()

    def _one(self, task, name, fl_ctx):
        client_task = SimpleNamespace(client=SimpleNamespace(name=name), task=task, result=None)
        task.before_task_sent_cb(client_task=client_task, fl_ctx=fl_ctx)
        answer = self.answers.get(name)
        client_task.result = answer() if callable(answer) else answer
        if client_task.result is not None:
            task.result_received_cb(client_task=client_task, fl_ctx=fl_ctx)

    def cancel_all_tasks(self, fl_ctx):
        self.cancelled += 1

    def log_error(self, fl_ctx, text):
        self.errors.append(text)

    log_warning = log_error


@pytest.fixture(scope="module")
def parties(tmp_path_factory):
    server, *hospitals = load_parties(make_kits(tmp_path_factory.mktemp("made") / "kits", NAMES))
    return server, {kit.name: kit for kit in hospitals}


@pytest.fixture
def ask(parties, tmp_path):
    server, _ = parties

    def one(answers: dict, **changes: object):
        flare = Flare(answers)
        labels = dict.fromkeys(NAMES, ("hip",))
        plan = replace(make(), **{"hospitals": NAMES, "labels": labels, "grace_s": 0.2, "deadline_s": 3.0, **changes})
        engine = SimpleNamespace(_retrieve_clients_data=lambda job: {}, client_manager=None)
        fl_ctx = SimpleNamespace(get_engine=lambda: engine, get_job_id=lambda: "job")
        abort = SimpleNamespace(triggered=False)
        return flare, Ask(flare, plan, server.identity_check(), server.audit(), fl_ctx, abort), abort

    return one


def signed(parties, name: str, message: bytes = MESSAGE, key: LoginKey | None = None, **changes: object) -> Shareable:
    server, hospitals = parties
    claims = {"run": "first", "round": 0, "sha256": hashlib.sha256(message).hexdigest(), **changes}
    token = sign_update(key or hospitals[name].login_key(), server.project, **claims)
    return Shareable({"message": message, "token": token})


def go(one, accepted: dict | None = None, enough: int = 2) -> dict[str, str]:
    _, ask, _ = one
    kept = {} if accepted is None else accepted
    return ask("train", 0, b"question", "0" * 64, list(NAMES), enough, kept.__setitem__)


def test_all_answers_count_once_checked(ask, parties):
    kept: dict = {}
    one = ask({name: signed(parties, name) for name in NAMES})
    assert go(one, kept) == dict.fromkeys(NAMES, TOOK_PART)
    assert kept == dict.fromkeys(NAMES, MESSAGE)
    log = [entry for entry in read_log(parties[0].own / "audit.jsonl") if entry["event"] in ("pull", "push")]
    assert sorted((entry["event"], entry["site"]) for entry in log[-6:]) == [
        (event, name) for event in ("pull", "push") for name in NAMES
    ]
    assert one[0].cancelled == 1


REFUSALS = {
    "no token": (lambda p: Shareable({"message": MESSAGE}), "no token"),
    "another hospital's token": (lambda p: signed(p, "north"), "north"),
    "another run": (lambda p: signed(p, "south", run="second"), "run"),
    "another round": (lambda p: signed(p, "south", round=1), "round"),
    "edited after signing": (lambda p: signed(p, "south", sha256="0" * 64), "sha256"),
    "a key that nobody registered": (lambda p: signed(p, "south", key=LoginKey.create("south")), "not registered"),
    "no message": (lambda p: Shareable({"token": "x"}), "carries no message"),
    "a failure": (lambda p: make_reply(ReturnCode.EXECUTION_EXCEPTION), "it failed"),
}


@pytest.mark.parametrize(("answer", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_not_that_hospitals_update_of_this_round_is_refused(ask, parties, answer, words):
    kept: dict = {}
    one = ask({"north": signed(parties, "north"), "west": signed(parties, "west"), "south": answer(parties)})
    outcome = go(one, kept)
    assert outcome["south"].startswith("refused: ")
    assert words in outcome["south"]
    assert sorted(kept) == ["north", "west"]
    assert any("south" in line for line in one[0].errors)
    refusal = [entry for entry in read_log(parties[0].own / "audit.jsonl") if entry["event"] == "refusal"][-1]
    assert (refusal["site"], refusal["outcome"]) == ("south", "refused")


def test_a_refused_answer_does_not_count_for_the_quorum(ask, parties):
    def bad(name, message):
        raise UserError(name, "its update holds NaN or infinity", "Leave it out")

    _, ask_them, _ = ask({name: signed(parties, name) for name in NAMES}, grace_s=0.0)
    outcome = ask_them("train", 0, b"", "0" * 64, list(NAMES), 1, bad)
    assert set(outcome.values()) == {"refused: its update holds NaN or infinity"}


def test_grace_begins_when_enough_were_accepted(ask, parties):
    one = ask({"north": signed(parties, "north"), "south": signed(parties, "south")}, deadline_s=30.0)
    began = time.monotonic()
    outcome = go(one)
    assert time.monotonic() - began < 10
    assert outcome["west"] == "late: no answer within 0.2 s after enough others"


def test_without_enough_the_deadline_ends_it(ask, parties):
    outcome = go(ask({"north": signed(parties, "north")}, deadline_s=0.5))
    assert outcome == {
        "north": TOOK_PART,
        "south": "late: no answer within 0.5 s",
        "west": "late: no answer within 0.5 s",
    }


def test_an_answer_after_the_end_does_not_count(ask, parties):
    kept, late = {}, threading.Event()

    def slow():
        time.sleep(1.0)
        late.set()
        return signed(parties, "west")

    one = ask({"north": signed(parties, "north"), "south": signed(parties, "south"), "west": slow})
    go(one, kept)
    assert late.wait(5.0)
    time.sleep(0.3)
    assert sorted(kept) == ["north", "south"]


def test_a_revoked_hospital_is_not_even_asked(ask, parties):
    server, hospitals = parties
    registry, old = Registry(server.own / "registry.json"), hospitals["west"].login_key()
    registry.revoke(old.kid, "laptop lost")
    one = ask({name: signed(parties, name) for name in NAMES})
    assert go(one)["west"] == "not asked: its key is revoked"
    assert one[0].targets == ["north", "south"]
    new = LoginKey.create("west")
    registry.add(new.public_entry())
    answers = {name: signed(parties, name) for name in NAMES[:2]} | {"west": signed(parties, "west", key=new)}
    assert go(ask(answers))["west"] == TOOK_PART
    assert "revoked" in go(ask({**answers, "west": signed(parties, "west", key=old)}))["west"]


def test_a_job_that_is_stopped_stops_asking(ask, parties):
    _, ask_them, abort = ask({}, deadline_s=30.0)
    abort.triggered = True
    with pytest.raises(Stopped):
        ask_them("train", 0, b"", "0" * 64, list(NAMES), 2, lambda name, message: None)
