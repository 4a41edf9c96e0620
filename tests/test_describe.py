"""Kits from what hospitals say of themselves: no film is on the administrator's machine."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from fedbone.__main__ import main
from fedbone.config import SAMPLE
from fedbone.encryption.paillier_keys import insecure_test_key
from fedbone.engines.flare import kits as module
from fedbone.engines.flare.describe import read_described
from fedbone.engines.flare.hospital_side import HospitalSide
from fedbone.engines.flare.kit import Kit, load_parties
from fedbone.engines.flare.kits import OFFICERS
from fedbone.errors import UserError
from tests.in_process import plan_for, sample_kits

ALL = ("hospital_a", "hospital_b", "hospital_c")
JOINTS = ["hip", "knee"]


def deploy(*words: object) -> int:
    return main(["deploy", *map(str, words)])


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """Made of three entries, each written at its hospital."""
    folder = tmp_path_factory.mktemp("administrator")
    files = [folder / f"{name}.json" for name in ALL]
    for name, file in zip(ALL, files, strict=True):
        assert deploy("describe", "--data", SAMPLE / name, "--name", name, "--out", file) == 0
    words = [word for file in files for word in ("--directory", file)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "generate", insecure_test_key)
        assert deploy("init", *words, "--out", folder / "my kits") == 0
    return folder / "my kits"


def test_the_kits_say_the_same_as_those_made_of_the_films(kits, tmp_path):
    ours, theirs = (load_parties(folder)[0].directory() for folder in (kits, sample_kits(tmp_path / "kits")))
    for directory in (ours, theirs):
        for entry in directory.values():
            entry.pop("signing_key")
    assert ours == theirs


def test_an_entry_holds_nothing_but_labels_and_joints(kits):
    entry = json.loads((kits.parent / "hospital_a.json").read_bytes())["hospitals"]["hospital_a"]
    assert entry.keys() == {"labels", "joints"}


def test_a_hospital_names_its_films_and_then_trains(kits, tmp_path, capsys):
    folder = shutil.copytree(kits, tmp_path / "kits")
    kit, plan = Kit.load(folder / "hospital_a"), plan_for(folder, "first")
    assert kit.data is None
    for refused in (lambda: HospitalSide(kit, plan), kit.privacy_budget):
        with pytest.raises(UserError, match="deploy films"):
            refused()
    sign = ["consent", kit.folder, "--key", folder / OFFICERS / "hospital_a.key"]
    assert deploy(*sign) == 2
    assert "deploy films" in capsys.readouterr().err
    assert deploy("films", kit.folder, "--data", SAMPLE / "hospital_a") == 0
    assert deploy(*sign) == 0
    named = Kit.load(kit.folder)
    assert named.data == SAMPLE / "hospital_a"
    side = HospitalSide(named, plan)
    patients = side.hospital.data.train.patients
    assert named.privacy_budget() == {"patients": len(set(patients)), "dp_delta": 1e-5, "epsilon_limit": 8.0}
    assert np.array_equal(side.hospital.labelled, plan.labelled["hospital_a"])


def test_films_that_label_something_else_are_refused(kits, tmp_path):
    folder = shutil.copytree(kits, tmp_path / "kits")
    assert deploy("films", folder / "hospital_a", "--data", SAMPLE / "hospital_b") == 2
    assert deploy("films", folder / "server", "--data", SAMPLE / "hospital_b") == 2
    assert Kit.load(folder / "hospital_a").data is None


def test_a_name_that_no_hospital_can_have_is_refused_before_films_are_read(tmp_path):
    assert deploy("describe", "--data", tmp_path, "--name", "St. Mary", "--out", tmp_path / "entry.json") == 2
    assert not (tmp_path / "entry.json").exists()


GOOD = {"hospitals": {"north": {"labels": ["hip"], "joints": JOINTS}}}
BROKEN = {
    "lists no hospitals": {"hospitals": {}},
    "listed twice": GOOD,
    "not those of the others": {"hospitals": {"south": {"labels": ["hip"], "joints": ["hip"]}}},
    "no lists": {"hospitals": {"south": {"labels": "hip", "joints": JOINTS}}},
    "has no lists": {"hospitals": {"south": ["hip"]}},
    "do not go together": {"hospitals": {"south": {"labels": ["toe"], "joints": JOINTS}}},
}


@pytest.mark.parametrize(("problem", "content"), BROKEN.items(), ids=BROKEN)
def test_entries_that_do_not_fit_are_refused(tmp_path, problem, content):
    first, second = tmp_path / "north.json", tmp_path / "another.json"
    first.write_text(json.dumps(GOOD))
    second.write_text(json.dumps(content))
    assert list(read_described([first])) == ["north"]
    with pytest.raises(UserError, match=problem) as error:
        read_described([first, second])
    assert error.value.where == str(second)


def test_options_that_choose_folders_do_not_go_with_entries(tmp_path, capsys):
    entry = tmp_path / "north.json"
    entry.write_text(json.dumps(GOOD))
    assert deploy("init", "--directory", entry, "--names", "a", "--out", tmp_path / "kits") == 2
    assert "Leave them out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        deploy("init", "--directory", entry, "--data", SAMPLE, "--out", tmp_path / "kits")
