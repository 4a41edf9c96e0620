"""Submitting runs and taking models out, without processes."""

from __future__ import annotations

import argparse
import shutil

import numpy as np
import pytest

from fedbone.custody.audit_log import read_log, verify_log
from fedbone.engines.flare.cancel_command import run_cancel
from fedbone.engines.flare.consent_command import CONSENT, run_consent
from fedbone.engines.flare.kit import load_parties, read_json
from fedbone.engines.flare.kits import OFFICERS
from fedbone.engines.flare.plan import OPTIMISERS
from fedbone.engines.flare.run_commands import plan_of, protection, run_model
from fedbone.engines.flare.run_folder import keep_plan
from fedbone.engines.flare.run_options import OPTIMISERS as NAMES_OF_OPTIMISERS
from fedbone.engines.flare.run_options import cancel_options, consent_options, model_options, submit_options
from fedbone.engines.flare.status import in_words, look
from fedbone.engines.flare.watchdog import cancelled, unfinished
from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital
from fedbone.model.hrnet import load_model
from fedbone.privacy.accounting import epsilon
from fedbone.vectors import to_vector
from tests.in_process import Talk, draw, plan_for, sample_kits


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(kits of a deployment with a finished run "first", its model)"""
    folder = sample_kits(tmp_path_factory.mktemp("made") / "my kits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hospital, "local_update", draw)
        return folder, Talk(folder, plan_for(folder, "first")).run()


def plan(kits, *words: str):
    parser = argparse.ArgumentParser()
    submit_options(parser)
    return plan_of(parser.parse_args([str(kits), "--run", "x", *words]))


def test_the_defaults_make_a_plan(finished):
    made = plan(finished[0])
    assert (made.min_hospitals, made.sums, made.noise, made.optimiser) == (2, "none", None, "fedavgm")
    assert made.hospitals == ("hospital_a", "hospital_b", "hospital_c")
    assert [len(made.labels[name]) for name in made.hospitals] == [2, 4, 11]
    assert "sees each hospital's update" in protection(made)
    assert "No differential privacy" in protection(made)


def test_the_options_are_in_the_plan(finished):
    words = "--rounds 7 --size 64 --seed 5 --deadline 9 --grace 2 --min-hospitals 3 --optimiser fedadam"
    made = plan(finished[0], *words.split(), "--proximal-mu", "0.1")
    assert (made.profile.rounds, made.profile.size_px, made.seed) == (7, 64, 5)
    assert (made.deadline_s, made.grace_s, made.min_hospitals) == (9, 2, 3)
    assert (made.optimiser, made.proximal_mu) == ("fedadam", 0.1)
    assert tuple(OPTIMISERS) == NAMES_OF_OPTIMISERS


def test_protection_is_said_in_words(finished):
    hidden = plan(finished[0], "--sums", "paillier")
    assert hidden.min_hospitals == 3
    assert "holds no private key" in protection(hidden)
    assert "no single one" in protection(plan(finished[0], "--sums", "masks"))
    spent = epsilon(noise_multiplier=1.0, rounds=15, dp_delta=1e-5)
    noisy = plan(finished[0], "--central-noise", "1.0,0.5", "--rounds", "15")
    assert f"epsilon {spent:.2f} at delta 1e-05 for one hospital, 15 rounds" in protection(noisy)
    assert "its own ledger" in protection(plan(finished[0], "--patient-noise", "1.0,1.0"))


def test_what_makes_no_sense_together_is_refused(finished):
    with pytest.raises(UserError, match="cannot add noise to a sum"):
        plan(finished[0], "--sums", "paillier", "--central-noise", "1.0,0.5")
    with pytest.raises(UserError, match="at least 3"):
        plan(finished[0], "--sums", "masks", "--min-hospitals", "2")


@pytest.mark.parametrize("party", ["hospital_b", "server"])
def test_the_model_comes_out_of_a_vault(finished, tmp_path, party):
    folder, vector = finished
    parser = argparse.ArgumentParser()
    model_options(parser)
    out = tmp_path / "model.safetensors"
    assert run_model(parser.parse_args([str(folder / party), "--run", "first", "--out", str(out)])) == 0
    model, _ = load_model(out)
    assert np.array_equal(to_vector(model), vector)
    assert out.stat().st_mode & 0o777 == 0o600, "in clear, so for nobody else"
    kit = next(kit for kit in load_parties(folder) if kit.name == party)
    assert list(read_log(kit.own / "audit.jsonl"))[-1]["detail"] == "written in clear"


def test_there_is_no_model_of_a_run_that_is_not(finished, tmp_path):
    parser = argparse.ArgumentParser()
    model_options(parser)
    words = [str(finished[0] / "hospital_a"), "--run", "second", "--out", str(tmp_path / "m")]
    with pytest.raises(UserError, match="no run of this name"):
        run_model(parser.parse_args(words))


def test_status_without_processes_says_so(finished):
    told = look(finished[0])
    assert told["parties"]["server"] == {"processes": 0, "supervisor": False}
    assert told["parties"]["hospital_a"] == {"processes": 0, "supervisor": False, "key": True, "registered": None}
    assert (told["runs"]["first"]["state"], told["runs"]["first"]["finished_rounds"]) == ("finished", 3)
    words = in_words(told)
    assert "DOWN, 0 processes, the server does not answer" in words
    assert "run first: finished, 3 of 3 rounds finished" in words


def test_status_says_whose_login_key_is_revoked(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "kits")
    server, hospital = load_parties(folder)[:2]
    server.identity_check().registry.revoke(hospital.login_key().kid, "its computer was stolen")
    told = look(folder)
    assert [told["parties"][name]["key"] for name in ("hospital_a", "hospital_b")] == [False, True]
    assert sum("its login key is REVOKED" in line for line in in_words(told).splitlines()) == 1


def test_a_run_is_cancelled_once_and_status_says_so(finished, tmp_path, capsys):
    folder = shutil.copytree(finished[0], tmp_path / "kits")
    server = load_parties(folder)[0]
    other = server.run_folder("second")
    other.mkdir()
    keep_plan(other, plan(folder))
    parser = argparse.ArgumentParser()
    cancel_options(parser)
    for kits in (folder, folder / "server"):
        assert run_cancel(parser.parse_args([str(kits), "--run", "second"])) == 0
    assert "was cancelled before" in capsys.readouterr().out
    told = look(folder)["runs"]
    assert (told["second"]["state"], told["first"]["state"]) == ("cancelled", "finished")
    assert [unfinished(server), cancelled(server)] == [[], ["second"]]
    stops = [entry for entry in read_log(server.own / "audit.jsonl") if entry["outcome"] == "cancelled"]
    assert [(entry["event"], entry["run"]) for entry in stops] == [("stop", "second")]
    verify_log(server.own / "audit.jsonl", server.audit_public())


@pytest.mark.parametrize(
    ("kits", "run", "problem"),
    [("", "first", "it is finished"), ("", "third", "no run of this name"), ("hospital_a", "x", "kit of hospital_a")],
)
def test_what_cannot_be_cancelled_is_refused(finished, kits, run, problem):
    parser = argparse.ArgumentParser()
    cancel_options(parser)
    with pytest.raises(UserError, match=problem):
        run_cancel(parser.parse_args([str(finished[0] / kits), "--run", run]))


def consent(kit, *words: str) -> int:
    parser = argparse.ArgumentParser()
    consent_options(parser)
    return run_consent(parser.parse_args([str(kit.folder), *words]))


def test_an_officer_grants_and_withdraws_with_the_key_of_the_hospital(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "kits")
    kit = load_parties(folder)[1]
    key = folder / OFFICERS / "hospital_a.key"
    assert read_json(kit.own / CONSENT)["serial"] == 1
    consent(kit, "--key", str(key), "--legal-basis", "consent of each patient", "--runs", "a,b")
    assert (read_json(kit.own / CONSENT)["serial"], read_json(kit.own / CONSENT)["runs"]) == (2, ["a", "b"])
    consent(kit, "--key", str(key), "--withdraw")
    assert read_json(kit.own / CONSENT)["state"] == "withdrawn"
    with pytest.raises(UserError, match="not the key of hospital_a's officer"):
        consent(kit, "--key", str(folder / OFFICERS / "hospital_b.key"))
    with pytest.raises(UserError, match="no films"):
        consent(load_parties(folder)[0], "--key", str(key))
