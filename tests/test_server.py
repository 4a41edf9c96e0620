"""The server's rounds with real hospitals, in one process: the same model as the loop, also after interruptions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fedbone.custody.audit_log import heads_noted, read_log, verify_log
from fedbone.custody.vault import Context
from fedbone.engines.flare.kit import load_parties
from fedbone.engines.flare.run_folder import FINISHED, RunFolder, last_release, read_plan, read_status
from fedbone.engines.flare.server import noise_of, rounds_of
from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital
from fedbone.imaging.folder import load_hospitals
from fedbone.vectors import sha256
from tests.in_process import Talk, draw, loop, plan_for, sample_kits


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return sample_kits(tmp_path_factory.mktemp("made") / "my kits")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "other kits")


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hospital, "local_update", draw)
        patch.setattr("fedbone.engines.flare.hospital_side.load_hospitals", cache(load_hospitals))
        yield


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory):
    """(plan, the loop's model)"""
    plan = plan_for(made, "first")
    return plan, loop(plan).vector


def server_events(talk: Talk, event: str) -> list[dict]:
    return [entry for entry in read_log(talk.server.own / "audit.jsonl") if entry["event"] == event]


def test_it_is_the_model_of_the_loop(folder, undisturbed):
    plan, expected = undisturbed
    talk = Talk(folder, plan)
    vector = talk.run()
    assert np.array_equal(vector, expected)
    assert [(e["round"], e["hospitals"]) for e in server_events(talk, "aggregation")] == [
        (index, "hospital_a,hospital_b,hospital_c") for index in range(3)
    ]
    assert server_events(talk, "release")[-1]["model"] == server_events(talk, "stop")[-1]["model"] == sha256(vector)
    status = read_status(talk.server.run_folder("first"))
    assert (status["state"], len(status["history"]), status["model"]) == ("finished", 3, sha256(vector))
    for kit in load_parties(folder)[1:]:
        index, model = last_release(kit, "first")
        assert (index, model) == (2, sha256(vector))
    for kit in load_parties(folder):
        verify_log(kit.own / "audit.jsonl", kit.audit_public())


@pytest.mark.parametrize("changes", [{"optimiser": "fedadam"}, {"proximal_mu": 0.1}], ids=["FedAdam", "FedProx"])
def test_other_strategies_too(folder, changes):
    plan = replace(plan_for(folder, "other"), **changes)
    assert np.array_equal(Talk(folder, plan).run(), loop(plan).vector)


def test_the_round_goes_on_without_a_hospital(folder, undisturbed):
    plan, _ = undisturbed

    def away(task, index, name):
        if (index, name) == (1, "hospital_c"):
            raise OSError("away")

    talk = Talk(folder, plan, away)
    vector = talk.run()
    same = loop(plan, available=lambda index, name: (index, name) != (1, "hospital_c"))
    assert np.array_equal(vector, same.vector)
    assert server_events(talk, "aggregation")[1]["hospitals"] == "hospital_a,hospital_b"


def test_too_few_end_the_job_and_name_who_is_missing(folder, undisturbed):
    plan, _ = undisturbed

    def away(task, index, name):
        if index == 1 and name != "hospital_a":
            raise OSError("away")

    talk = Talk(folder, plan, away)
    with pytest.raises(UserError, match=r"round 1: 1 of the 2 .*hospital_b refused: away; hospital_c refused: away"):
        talk.run()
    assert last_release(talk.server, "first")[0] == 0
    assert not (talk.server.run_folder("first") / FINISHED).exists()


class Killed(BaseException):
    """As kill -9: nothing catches it."""


@pytest.mark.parametrize(("task", "index"), [("train", 0), ("train", 1), ("train", 2), ("finish", 2)])
def test_after_a_kill_it_goes_on_to_the_same_bytes(folder, undisturbed, task, index):
    plan, expected = undisturbed

    def kill(asked, at, name):
        if (asked, at, name) == (task, index, "hospital_b"):
            raise Killed

    with pytest.raises(Killed):
        Talk(folder, plan, kill).run()
    again = Talk(folder, plan)
    assert np.array_equal(again.run(), expected)
    first_asked = again.asked[0][:2]
    assert first_asked == (("finish", 2) if task == "finish" else ("train", index))


@pytest.mark.parametrize("moment", ["seal", "release", "after"])
def test_a_kill_between_model_and_audit_entry_repeats_the_round(folder, undisturbed, monkeypatch, moment):
    plan, expected = undisturbed
    real = RunFolder.release

    def release(self, index, model):
        if index == 1 and moment == "release":
            raise Killed
        real(self, index, model)
        if index == 1 and moment == "after":
            raise Killed

    def seal(self, path, *rest):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "release", release)
        if moment == "seal":
            patch.setattr("fedbone.custody.vault.Vault.seal", seal)
        with pytest.raises(Killed):
            Talk(folder, plan).run()
    assert np.array_equal(Talk(folder, plan).run(), expected)


def test_an_older_model_that_was_put_back_is_refused(folder, undisturbed):
    plan, _ = undisturbed

    def kill(task, index, name):
        if index == 2:
            raise Killed

    with pytest.raises(Killed):
        Talk(folder, plan, kill).run()
    place = load_parties(folder)[0].run_folder("first")
    shutil.copy(place / "round_0000.sealed", place / "round_0001.sealed")
    with pytest.raises(UserError, match="it is of round 0, older than round 1"):
        Talk(folder, plan).run()


def test_another_model_of_the_same_round_is_refused(folder, undisturbed):
    plan, _ = undisturbed

    def kill(task, index, name):
        if index == 1:
            raise Killed

    with pytest.raises(Killed):
        Talk(folder, plan, kill).run()
    server = load_parties(folder)[0]
    rounds = rounds_of(server, plan, RunFolder(server, plan, server.audit()))
    path, about = server.run_folder("first") / "round_0000.sealed", {"plan": plan.to_json()}
    forged = {"vector": np.zeros(rounds.server.layout.size, np.float32)}
    server.vault().seal(path, forged, about, Context("server", "first", 0, rounds._architecture))
    with pytest.raises(UserError, match="not the model that the audit log says"):
        Talk(folder, plan).run()


def test_a_log_that_was_altered_stops_the_run(folder, undisturbed):
    plan, _ = undisturbed
    talk = Talk(folder, plan)
    talk.run()
    path = talk.server.own / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], lines[3].replace(b'"round":', b'"round": '), *lines[4:]]))
    with pytest.raises(UserError, match="audit"):
        Talk(folder, plan).run()


def test_a_log_that_was_cut_is_found_with_a_hospitals_log(folder, undisturbed):
    """Whoever can write to the server's disk can cut the log after an earlier signed head: that is a whole log."""
    plan, _ = undisturbed
    talk = Talk(folder, plan)
    talk.run()
    path, public = talk.server.own / "audit.jsonl", talk.server.audit_public()
    noted = heads_noted(talk.kits["hospital_b"].own / "audit.jsonl")
    assert len(noted) == 3
    verify_log(path, public, witnessed=noted)
    lines = path.read_bytes().splitlines(keepends=True)
    heads = [number for number, line in enumerate(lines) if b'"event":"head"' in line]
    path.write_bytes(b"".join(lines[: heads[1] + 1]))
    verify_log(path, public)
    with pytest.raises(UserError):
        verify_log(path, public, witnessed=noted)


def test_a_name_is_for_one_plan(folder, undisturbed):
    plan, _ = undisturbed
    Talk(folder, plan).run()
    with pytest.raises(UserError, match="another plan"):
        Talk(folder, replace(plan, seed=1)).run()
    assert read_plan(load_parties(folder)[0].run_folder("first")) == plan


def test_two_servers_do_not_write_one_run(folder, undisturbed):
    plan, _ = undisturbed
    server = load_parties(folder)[0]
    with (
        RunFolder(server, plan, server.audit()).opened(),
        pytest.raises(UserError, match="another process"),
        RunFolder(server, plan, server.audit()).opened(patience_s=0.3),
    ):
        pass


def test_only_the_last_two_rounds_stay(folder, undisturbed):
    plan, _ = undisturbed
    talk = Talk(folder, plan)
    talk.run()
    kept = sorted(path.name for path in talk.server.run_folder("first").glob("*.sealed"))
    assert kept == ["round_0001.sealed", "round_0002.sealed"]


def test_central_noise_is_that_of_all_hospitals(folder):
    plan = plan_for(folder, "noisy", noise={"noise_multiplier": 2.0, "clip_norm": 0.3})
    noise = noise_of(plan)
    assert (noise.sigma, noise.clip_norm) == (pytest.approx(2.0 * 0.3 / 3), 0.3)
    first = Talk(folder, plan).run()
    other = shutil.copytree(folder, folder.parent / "again")
    shutil.rmtree(other / "server" / "fedbone" / "runs")
    assert not np.array_equal(first, loop(plan).vector)


def test_the_servers_messages_carry_one_model_and_nothing_of_others(folder, undisturbed):
    plan, _ = undisturbed
    talk = Talk(folder, plan)
    vector = talk.run()
    assert max(map(len, talk.messages)) < vector.nbytes + 4096
