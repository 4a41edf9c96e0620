"""A run's name belongs to one plan: at the server's door, in a job that came in all the same, and for who waits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from nvflare.apis.signal import Signal

from fedbone.custody.audit_log import read_log
from fedbone.engines.flare.admission import FIRST_POLICY, HospitalValidator, ServerValidator, read_policy
from fedbone.engines.flare.controller import Rounds
from fedbone.engines.flare.kit import Kit, load_parties
from fedbone.engines.flare.plan import job_files
from fedbone.engines.flare.run_commands import wait_for_end
from fedbone.engines.flare.run_folder import CANCELLED, FINISHED, RunFolder, keep_plan, read_status
from fedbone.errors import UserError
from fedbone.files import write_json
from tests.kits import make_kits
from tests.test_plan import make

ANOTHER = "there is a run of this name with another plan"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Kit:
    """A server with the finished run "first", whose process works in its kit."""
    kit = load_parties(make_kits(tmp_path / "kits"))[0]
    with RunFolder(kit, make(), kit.audit()).opened() as folder:
        folder.finish("ab" * 32, {})
    monkeypatch.chdir(kit.folder)
    return kit


def validate(folder, kind=ServerValidator, **changes) -> str:
    for name, content in job_files(make(**changes)).items():
        path = folder / "job" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return kind().validate(str(folder / "job" / "app"))[0]


@pytest.fixture
def north(tmp_path, monkeypatch) -> Kit:
    """A hospital, whose process works in its kit."""
    kit = load_parties(make_kits(tmp_path / "kits"))[1]
    monkeypatch.chdir(kit.folder)
    return kit


def test_a_new_hospital_takes_part_in_what_the_rest_of_fedbone_allows(north, tmp_path):
    assert read_policy(north) == FIRST_POLICY
    assert validate(tmp_path, HospitalValidator) == ""


@pytest.mark.parametrize(("rule", "reason"), [
    ({"min_hospitals": 3}, "a round of 2, where it wants at least 3 hospitals"),
    ({"sums": ["masks", "paillier"]}, "sums 'none', where it allows masks, paillier"),
    ({"sums": []}, "sums 'none', where it allows nothing"),
    ({"patient_privacy": True}, r"no noise for its patients (DP-SGD), which it demands"),
])  # fmt: skip
def test_what_a_hospital_s_staff_do_not_allow_is_refused_there_and_noted(north, tmp_path, rule, reason):
    write_json(north.own / "policy.json", {**FIRST_POLICY, **rule})
    assert f"run first: this hospital takes no part: {reason}. Submit" in validate(tmp_path, HospitalValidator)
    (entry,) = [e for e in read_log(north.own / "audit.jsonl") if e["event"] == "refusal"]
    assert (entry["run"], entry["outcome"]) == ("first", "refused")
    assert reason in entry["detail"]


@pytest.mark.parametrize("text", [
    None, "{}", "[]", '{"min_hospitals": 0, "sums": [], "patient_privacy": false}',
    '{"min_hospitals": true, "sums": [], "patient_privacy": false}',
    '{"min_hospitals": 2, "sums": ["clear"], "patient_privacy": false}',
    '{"min_hospitals": 2, "sums": [[]], "patient_privacy": false}',
    '{"min_hospitals": 2, "sums": [], "patient_privacy": false, "else": 1}',
])  # fmt: skip
def test_a_hospital_without_a_policy_that_can_be_read_takes_part_in_nothing(north, tmp_path, text):
    path = north.own / "policy.json"
    path.unlink() if text is None else path.write_text(text)
    assert "policy.json: " in validate(tmp_path, HospitalValidator)


def test_another_plan_under_a_known_name_is_refused_at_the_door(server, tmp_path):
    assert f"run first: {ANOTHER}. Choose another name" in validate(tmp_path, seed=8)
    assert validate(tmp_path, seed=8, run="second") == ""
    assert validate(tmp_path) == ""  # the same once more changes nothing


def test_a_cancelled_run_is_not_let_in_again(server, tmp_path):
    (server.run_folder("first") / CANCELLED).touch()
    assert "run first: it was cancelled" in validate(tmp_path)


def test_what_is_no_plan_at_all_is_refused_as_everywhere(server, tmp_path):
    validate(tmp_path)
    (tmp_path / "job/app/config/config_fed_server.json").write_text("{}")
    assert ServerValidator().validate(str(tmp_path / "job/app"))[0].startswith("fedbone refuses the job")


def test_a_job_with_another_plan_ends_with_its_reason_and_leaves_the_old_run_as_it_is(server, monkeypatch):
    monkeypatch.setattr(Rounds, "log_error", lambda *_: None)
    workspace = SimpleNamespace(get_root_dir=lambda: str(server.folder))
    context = SimpleNamespace(get_prop=lambda _: workspace)
    with pytest.raises(UserError, match=ANOTHER):
        Rounds(make(seed=8).to_json()).control_flow(Signal(), context)
    last = read_log(server.own / "audit.jsonl")[-1]
    assert (last["event"], last["outcome"], last["run"]) == ("stop", "failed", "first")
    assert ANOTHER in last["detail"]
    assert read_status(server.run_folder("first"))["state"] == "finished"


def test_waiting_takes_only_the_end_of_the_same_plan(server, capsys):
    assert wait_for_end(server, make()) == 0
    assert "ab" * 32 in capsys.readouterr().out
    with pytest.raises(UserError, match=ANOTHER):
        wait_for_end(server, make(seed=8))


def test_waiting_ends_when_the_run_is_cancelled(server):
    folder = server.run_folder("second")
    folder.mkdir(parents=True)
    keep_plan(folder, make(run="second"))
    (folder / CANCELLED).touch()
    with pytest.raises(UserError, match="it was cancelled"):
        wait_for_end(server, make(run="second"))
    assert not (folder / FINISHED).exists()
