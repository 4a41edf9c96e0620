"""What a hospital does, and does not do, for a server."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest

from fedbone.custody.audit_log import read_log
from fedbone.engines.flare.command import consent_terms
from fedbone.engines.flare.consent_command import CONSENT, dataset_sha256, grant
from fedbone.engines.flare.hospital_side import SEEN, HospitalSide
from fedbone.engines.flare.kit import load_parties
from fedbone.engines.flare.messages import TrainTask, final_model, read_update, train_task
from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital
from fedbone.federation.rounds import initial_vector
from fedbone.imaging.folder import load_hospitals
from fedbone.privacy.ledger import Ledger
from tests.in_process import draw, officer, plan_for, sample_kits


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedbone.engines.flare.hospital_side.load_hospitals", cache(load_hospitals))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return sample_kits(tmp_path_factory.mktemp("made") / "my kits")


@pytest.fixture
def kits(made, tmp_path):
    return shutil.copytree(made, tmp_path / "kits")


@pytest.fixture
def side(kits, monkeypatch):
    monkeypatch.setattr(Hospital, "local_update", draw)
    return HospitalSide(load_parties(kits)[1], plan_for(kits, "first"))


def question(side: HospitalSide, index: int = 0, run: str = "first", shift: float = 0.0) -> bytes:
    plan = side.plan
    vector = initial_vector(plan.profile, len(plan.joints), plan.seed) + np.float32(shift)
    return train_task(TrainTask(run, index, plan.seed, 0.0), vector)


def test_it_trains_and_notes_it(side):
    index, answer = side.answer("train", question(side))
    update = read_update("hospital_a", answer, side._parameters, len(side.plan.joints))
    assert (index, update.labelled_joints.sum()) == (0, 2)
    events = [entry["event"] for entry in read_log(side.kit.own / "audit.jsonl")]
    assert events == ["head", "pull", "push"]


def test_an_update_is_no_larger_than_its_numbers(side):
    _, answer = side.answer("train", question(side))
    assert len(answer) < 4 * side._parameters + 4096


@pytest.mark.parametrize("task", ["upload", "open", "seal", "print", ""])
def test_it_answers_only_the_questions_of_its_run(side, task):
    with pytest.raises(UserError, match="not part of this run"):
        side.answer(task, question(side))


def test_another_run_is_refused(side):
    with pytest.raises(UserError, match="run 'second' in the job of 'first'"):
        side.answer("train", question(side, run="second"))


@pytest.mark.parametrize("message", [b"", b"\x08" + b"\0" * 7 + b"{}", None, "text", b"\xff" * 100])
def test_nonsense_is_refused(side, message):
    with pytest.raises(UserError, match="cannot be read"):
        side.answer("train", message)


def test_a_model_of_another_size_is_refused(side):
    message = train_task(TrainTask("first", 0, 0, 0.0), np.zeros(5, np.float32))
    with pytest.raises(UserError, match=r"float32 \(5,\)"):
        side.answer("train", message)


def test_rounds_go_forward_only_also_after_a_restart(side, kits):
    side.answer("train", question(side, 0))
    side.answer("train", question(side, 0))  # the same again: an interruption
    side.answer("train", question(side, 3))
    again = HospitalSide(side.kit, side.plan)
    with pytest.raises(UserError, match=r"asks for round 2 .* after round 3 was begun"):
        again.answer("train", question(side, 2))
    with pytest.raises(UserError, match=r"asks for round 3 with model"):
        again.answer("train", question(side, 3, shift=0.5))
    assert json.loads((side.kit.run_folder("first") / SEEN).read_text())["round"] == 3
    again.answer("train", question(side, 4))


def test_no_training_without_the_officers_consent(side):
    (side.kit.own / CONSENT).unlink()
    with pytest.raises(UserError, match="consent"):
        side.answer("train", question(side))


def test_a_withdrawal_ends_the_use_before_the_next_round(side, kits):
    import argparse

    side.answer("train", question(side, 0))
    terms = argparse.ArgumentParser()
    consent_terms(terms)
    grant(side.kit, officer(kits, "hospital_a"), terms.parse_args(["--withdraw"]))
    with pytest.raises(UserError, match="withdrawn"):
        side.answer("train", question(side, 1))


def test_a_consent_is_for_these_films(made, tmp_path):
    films = shutil.copytree(load_parties(made)[1].data, tmp_path / "films")
    before = dataset_sha256(films)
    (films / "one more.txt").write_text("x")
    assert dataset_sha256(films) != before


def test_the_last_model_goes_into_its_vault(side):
    vector = initial_vector(side.plan.profile, len(side.plan.joints), 0)
    side.answer("finish", final_model("first", 2, vector))
    sealed = (side.kit.run_folder("first") / "model.sealed").read_bytes()
    assert vector[:64].tobytes() not in sealed


def test_dp_sgd_is_paid_from_the_hospitals_own_ledger(kits):
    plan = plan_for(kits, "private", patient={"clip_norm": 1.0, "noise_multiplier": 2.0, "batch": 2})
    side = HospitalSide(load_parties(kits)[1], plan)
    _, answer = side.answer("train", question(side, run="private"))
    budget = side.kit.privacy_budget()
    ledger = Ledger(side.kit.own / "privacy.json", budget["dp_delta"], budget["epsilon_limit"])
    assert 0 < ledger.epsilon("hospital_a") < budget["epsilon_limit"]
    assert b"losses" not in answer


def test_the_server_cannot_spend_more_than_the_ledger_allows(kits):
    plan = plan_for(kits, "greedy", patient={"clip_norm": 1.0, "noise_multiplier": 0.2, "batch": 2})
    side = HospitalSide(load_parties(kits)[1], plan)

    def ask_on():
        for index in range(50):
            side.answer("train", question(side, index, run="greedy"))

    with pytest.raises(UserError, match="epsilon"):
        ask_on()
