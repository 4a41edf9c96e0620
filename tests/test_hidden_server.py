"""Runs in which the server sees no update and holds no model: the same model as the loop's secure sums."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest

from fedbone.custody.at_rest import clear_weights
from fedbone.encryption.paillier_keys import insecure_test_key
from fedbone.engines.flare import hidden_hospital
from fedbone.engines.flare.kit import Kit, load_parties
from fedbone.engines.flare.messages import read_bytes, sum_task
from fedbone.engines.flare.run_commands import open_model
from fedbone.engines.flare.run_folder import last_release
from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital
from fedbone.federation.secure import SecureSums
from fedbone.imaging.folder import load_hospitals
from fedbone.vectors import sha256
from tests.in_process import Talk, draw, loop, plan_for, sample_kits


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hospital, "local_update", draw)
        patch.setattr("fedbone.engines.flare.hospital_side.load_hospitals", cache(load_hospitals))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return sample_kits(tmp_path_factory.mktemp("made") / "my kits")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "kits")


@pytest.fixture(scope="module")
def undisturbed(made):
    """(plan, the loop's model)"""
    plan = plan_for(made, "masked", sums="masks")
    return plan, loop(plan, secure=SecureSums(plan.lanes_of_sums())).vector


def test_it_is_the_model_of_the_loops_secure_sums(folder, undisturbed):
    plan, expected = undisturbed
    talk = Talk(folder, plan)
    assert talk.run() == sha256(expected)
    for kit in load_parties(folder)[1:]:
        _, index, vector = open_model(kit, "masked")
        assert index == 2
        assert np.array_equal(vector, expected)
    rounds = [task for task, index, _ in talk.asked if index == 1]
    assert rounds == ["train"] * 3 + ["upload"] * 3 + ["open"] * 3 + ["seal"]


def test_the_server_can_open_nothing(folder, undisturbed):
    plan, expected = undisturbed
    talk = Talk(folder, plan)
    talk.run()
    assert not clear_weights([folder], {"the model": expected})
    with pytest.raises(UserError, match="cannot open what hospitals sealed"):
        open_model(talk.server, "masked")
    assert not {path.name for path in talk.server.own.rglob("*.key")} & {"sum.key", "hospitals.key", "login.key"}


@pytest.mark.slow
def test_under_paillier_with_a_key_that_is_far_too_short(folder, undisturbed, monkeypatch):
    plan, _ = undisturbed
    monkeypatch.setattr(Kit, "sum_key", lambda kit: KEY if kit.role == "hospital" else KEY.public)
    short = plan_for(folder, "encrypted", sums="paillier")
    talk = Talk(folder, short)

    def stop_after_one(task, index, name):
        if index == 1:
            raise Killed

    talk.fault = stop_after_one
    with pytest.raises(Killed):
        talk.run()
    models = []
    loop(plan, secure=SecureSums(plan.lanes_of_sums()), on_round=lambda record, _: models.append(record.vector_sha256))
    assert last_release(talk.server, "encrypted") == (0, models[0])


KEY = insecure_test_key(512)


class Killed(BaseException):
    """As kill -9: nothing catches it."""


@pytest.mark.parametrize("task", ["train", "upload", "open", "seal", "finish"])
def test_after_a_kill_it_goes_on_to_the_same_bytes(folder, undisturbed, task):
    plan, expected = undisturbed

    def kill(asked, index, name):
        if asked == task and index >= 1 and name == ("hospital_a" if task == "seal" else "hospital_b"):
            raise Killed

    with pytest.raises(Killed):
        Talk(folder, plan, kill).run()
    assert Talk(folder, plan).run() == sha256(expected)


def test_a_hospital_that_is_lost_ends_the_round_and_repeats_it_when_it_is_back(folder, undisturbed):
    plan, expected = undisturbed

    def away(task, index, name):
        if (task, index, name) == ("upload", 1, "hospital_c"):
            raise OSError("killed")

    with pytest.raises(UserError, match=r"round 1: 2 of the 3 .*hospital_c refused: killed"):
        Talk(folder, plan, away).run()
    assert Talk(folder, plan).run() == sha256(expected)


def test_another_one_seals_when_the_first_is_lost(folder, undisturbed):
    plan, expected = undisturbed

    def away(task, index, name):
        if (task, index, name) == ("seal", 1, "hospital_a"):
            raise OSError("killed")

    talk = Talk(folder, plan, away)
    assert talk.run() == sha256(expected)
    assert [name for task, index, name in talk.asked if (task, index) == ("seal", 1)] == ["hospital_a", "hospital_b"]


def test_a_hospital_contributes_to_one_sum_a_round(folder, undisturbed):
    """A server that claims a drop-out would have two sums that differ by one update."""
    plan, _ = undisturbed

    def kill(task, index, name):
        if task == "open":
            raise Killed

    talk = Talk(folder, plan, kill)
    with pytest.raises(Killed):
        talk.run()
    notes = json.loads((talk.kits["hospital_a"].run_folder("masked") / hidden_hospital.UPLOADS).read_text())
    assert notes["0"]["roster"] == ["hospital_a", "hospital_b", "hospital_c"]
    notes["0"]["roster"] = ["hospital_a", "hospital_b", "hospital_d"]
    for name in plan.hospitals:
        path = talk.kits[name].run_folder("masked") / hidden_hospital.UPLOADS
        path.write_text(json.dumps(notes))
    with pytest.raises(UserError, match=r"round 0 was begun with hospital_a, hospital_b, hospital_d"):
        Talk(folder, plan).run()


def test_hospitals_that_come_to_different_models_stop_the_run(folder, undisturbed):
    plan, _ = undisturbed
    talk = Talk(folder, plan)
    real = Talk.__call__

    def one_differs(self, task, index, message, model, names, enough, accept):
        def lie(name, answer):
            if task == "open" and name == "hospital_b":
                at = answer.index(b'model\\": \\"') + len(b'model\\": \\"')
                answer = answer[:at] + (b"0" if answer[at : at + 1] != b"0" else b"1") + answer[at + 1 :]
            accept(name, answer)

        return real(self, task, index, message, model, names, enough, lie)

    talk.__class__ = type("Lying", (Talk,), {"__call__": one_differs})
    with pytest.raises(UserError, match="came to different models"):
        talk.run()


def test_another_hospitals_upload_is_refused(folder, undisturbed):
    plan, _ = undisturbed
    talk, seen = Talk(folder, plan), {}
    real = Talk.__call__

    def swapped(self, task, index, message, model, names, enough, accept):
        def swap(name, answer):
            if task == "upload":
                seen.setdefault("first", answer)
                read_bytes(name, answer)
            accept(name, seen["first"] if task == "upload" and name == "hospital_b" else answer)

        return real(self, task, index, message, model, names, enough, swap)

    talk.__class__ = type("Swapping", (Talk,), {"__call__": swapped})
    with pytest.raises(UserError, match=r"hospital_b refused: .*come already"):
        talk.run()


def test_questions_out_of_turn_are_not_answered(folder, undisturbed):
    plan, _ = undisturbed
    talk = Talk(folder, plan)
    side = talk._side("hospital_a")
    for task in ("upload", "open", "seal", "print"):
        with pytest.raises(UserError, match="which this hospital is not in"):
            side.answer(task, sum_task("masked", 0, []))
    with pytest.raises(UserError, match="in the job of 'masked'"):
        side.answer("open", sum_task("other", 0, []))
