"""Each probe of the compliance check holds on a good deployment, and fails for the fault that it is there to find."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache, partial

import numpy as np
import pytest

from fedbone.__main__ import main
from fedbone.config import get_profile
from fedbone.custody.compliance import Evidence
from fedbone.custody.compliance_checks import CHECKS
from fedbone.custody.used_ids import UsedIds
from fedbone.engines.flare import check_command, disk_probes, probes, round_probes
from fedbone.engines.flare.consent_command import CONSENT
from fedbone.engines.flare.kit import load_parties
from fedbone.engines.flare.probes import probes_of
from fedbone.engines.flare.processes import environment, temporary_files
from fedbone.engines.flare.record_probes import LEDGER
from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital
from fedbone.imaging.folder import load_hospitals
from fedbone.privacy.ledger import Ledger
from tests.deployed import SIZE_PX, Deployment
from tests.in_process import Talk, draw, plan_for, sample_kits

OVER_TCP = (
    "tls_versions",
    "plain_text_refused",
    "server_certificate",
    "no_certificate_refused",
    "foreign_certificate_refused",
)
HUMAN = ("key_files_private", "images_never_sent", "privacy_budget")  # on a trial deployment without noise
ON_COPIES = ("login_forged_refused", "login_replayed_refused", "update_edited_refused", "revoked_key_refused")
PROVED = (
    "consent",
    "storage_sealed",
    "server_holds_no_private_key",
    "audit_chain",
    "audit_complete",
    "minimum_hospitals",
)


class Noted(Talk):
    """With the entries that FLARE's way of asking writes."""

    def __call__(self, task, index, message, model, names, enough, accept):
        audit, note = self.server.audit(), {"run": self.plan.run, "round": index, "detail": task}
        for name in names:
            audit.append("pull", model=model, site=name, **note)
        outcome = super().__call__(task, index, message, model, names, enough, accept)
        for name in names:
            audit.append("push", site=name, **note)
        return outcome


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hospital, "local_update", draw)
        patch.setattr("fedbone.engines.flare.hospital_side.load_hospitals", cache(load_hospitals))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, quick):
    """Kits with two finished runs of two rounds: one whose updates the server sees, one with masks."""
    folder = sample_kits(tmp_path_factory.mktemp("made") / "my kits")
    for run, changes in (("open", {}), ("masked", {"sums": "masks"})):
        plan = plan_for(folder, run, **changes)
        Noted(folder, plan).run()
    return folder


@pytest.fixture
def kits(made, tmp_path):
    return shutil.copytree(made, tmp_path / "other kits")


@pytest.fixture
def idle():
    """Starts an idle process that carries the marks of a party, its environment changed as asked."""
    started = []

    def start(kit, **changes):
        command = [sys.executable, "-c", "print(flush=True); import time; time.sleep(300)"]
        env = environment(kit, kit.role) | changes
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE))
        started[-1].stdout.readline()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def fails(folder, name: str) -> str:
    with pytest.raises(UserError) as error:
        probes_of(folder)[name]()
    return str(error.value)


def test_every_question_with_a_probe_is_asked(made):
    assert probes_of(made).keys() == {check.probe for check in CHECKS if check.probe}


@pytest.mark.parametrize("name", PROVED)
def test_it_holds_on_a_good_deployment(made, name):
    evidence = probes_of(made)[name]()
    assert isinstance(evidence, Evidence)
    assert not evidence.undecided


@pytest.mark.parametrize("name", HUMAN)
def test_what_a_program_cannot_decide_is_left_to_people(made, name):
    evidence = probes_of(made)[name]()
    assert evidence.text
    assert evidence.undecided


@pytest.mark.parametrize("name", OVER_TCP)
def test_a_server_that_is_down_has_refused_nobody(made, name):
    assert "no connection" in fails(made, name)


@pytest.mark.parametrize("name", ["storage_sealed", "audit_complete", "privacy_budget", "minimum_hospitals"])
def test_without_a_run_nothing_is_proved(tmp_path, name):
    assert "No run" in probes_of(sample_kits(tmp_path / "kits"))[name]().undecided


def test_the_deployment_is_not_touched(kits):
    before = {path: path.read_bytes() for path in sorted(kits.rglob("*")) if path.is_file()}
    for name in PROVED + ON_COPIES + HUMAN:
        probes_of(kits)[name]()
    after = {path: path.read_bytes() for path in sorted(kits.rglob("*")) if path.is_file()}
    assert after.keys() - before.keys() == set()
    assert [path for path in before if after.get(path) != before[path]] == []


# identity: what is tried on copies tells of a deployment that runs as it was made


def test_what_holds_on_copies_is_proved_when_all_parties_run(made, idle):
    first, *others = load_parties(made)
    for kit in others:
        idle(kit)
    for name in ON_COPIES:
        assert "Not running: server. " in probes_of(made)[name]().undecided
    idle(first)
    for name in ON_COPIES:
        evidence = probes_of(made)[name]()
        assert not evidence.undecided
        assert "this installation's code, on copies" in evidence.text


def edited(path, change) -> None:
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


def without_gate(resources) -> None:
    resources["components"] = [part for part in resources["components"] if part["id"] != "login_gate"]


@pytest.mark.parametrize("name", ON_COPIES)
def test_a_server_without_its_login_gate_is_found(kits, name):
    edited(kits / "server/local/resources.json", without_gate)
    assert "server/local/resources.json: it is not as fedbone writes it: components > login_gate is missing" in fails(
        kits, name
    )


POLICIES = {
    "hospital_b/local/resources.json": (
        lambda content: content.update(class_list_enforcement_mode="off"),
        'class_list_enforcement_mode is "off", not "enforce"',
    ),
    "server/local/authorization.json": (
        lambda content: content["permissions"]["lead"].update(byoc="any", more="any"),
        'permissions > lead > byoc is "any", not "none"; permissions > lead > more was added',
    ),
    "server/local/resources.json": (
        lambda content: content["components"].append(content["components"][0]),
        "components is [",
    ),
    "hospital_a/local/resources.json": (lambda content: content["components"].reverse(), "the order is another"),
}


@pytest.mark.parametrize("path", POLICIES)
def test_a_party_that_allows_more_than_it_was_given_is_found(kits, path):
    change, problem = POLICIES[path]
    edited(kits / path, change)
    assert f"{path}: it is not as fedbone writes it: {problem}" in fails(kits, "login_forged_refused")


# identity: the same probe against a server with a fault


def test_a_server_that_lets_everybody_in_is_found(made, monkeypatch):
    monkeypatch.setattr("fedbone.custody.identity.IdentityCheck._check", lambda *_: None)
    for name in ON_COPIES:
        assert "it was accepted" in fails(made, name)


def test_a_server_that_refuses_everybody_proves_nothing(made, monkeypatch):
    def refuse(*_):
        raise UserError("login", "no", "")

    monkeypatch.setattr("fedbone.custody.identity.IdentityCheck._check", refuse)
    for name in ON_COPIES:
        assert "a genuine message is refused too" in fails(made, name)


def test_a_server_that_forgets_used_tokens_is_found(made, monkeypatch):
    monkeypatch.setattr(UsedIds, "note", lambda *_: None)
    assert "it was accepted" in fails(made, "login_replayed_refused")


def test_a_server_that_forgets_revocations_is_found(made, monkeypatch):
    monkeypatch.setattr("fedbone.custody.registry.Registry.revoke", lambda *_: None)
    assert "it was accepted" in fails(made, "revoked_key_refused")


# the disk


def model_of(folder) -> np.ndarray:
    return next(iter(disk_probes.released_models(load_parties(folder)).values()))


def test_the_models_of_open_and_hidden_runs_are_looked_for(made):
    assert sorted(disk_probes.released_models(load_parties(made))) == ["model of run masked", "model of run open"]


@pytest.mark.parametrize("place", ["server/fedbone/debug.bin", "hospital_b/jobs/x.npy", "administrator/transfer/y"])
def test_a_model_in_clear_is_found(kits, place):
    path = kits / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"?" + model_of(kits).tobytes())
    assert path.name in fails(kits, "storage_sealed")


def test_a_model_in_clear_in_another_folder_is_found(kits, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "core.1234").write_bytes(model_of(kits).astype(np.float16).tobytes())
    with pytest.raises(UserError, match=r"core\.1234"):
        probes_of(kits, also=[tmp_path / "more"])["storage_sealed"]()


def test_a_model_in_clear_among_a_partys_temporary_files_is_found(kits, idle):
    server = load_parties(kits)[0]
    idle(server)
    assert probes_of(kits)["storage_sealed"]().details["temporary folders searched"] == 1
    (temporary_files(server) / "spill").write_bytes(model_of(kits).tobytes())
    assert "spill" in fails(kits, "storage_sealed")


def test_a_temporary_folder_of_everybody_is_left_to_people_or_named(kits, idle, tmp_path):
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o1777)
    idle(load_parties(kits)[1], TMPDIR=str(shared))
    assert "Not searched: 1 temporary folder" in probes_of(kits)["storage_sealed"]().undecided
    assert not probes_of(kits, also=[shared])["storage_sealed"]().undecided


def test_a_sealed_model_that_was_exchanged_is_found(kits):
    for path in (kits / "server/fedbone/runs/open").glob("round_0002.sealed"):
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert "changed" in fails(kits, "storage_sealed")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_for_others_is_found(kits, mode):
    (kits / "hospital_a/fedbone/login.key").chmod(mode)
    assert f"login.key can be used by others (mode {mode:o})" in fails(kits, "key_files_private")


def test_a_folder_in_which_others_could_exchange_a_key_is_found(kits):
    (kits / "hospital_a/fedbone").chmod(0o770)
    assert "can be written to by others" in fails(kits, "key_files_private")


def test_a_key_under_another_name_is_found(kits):
    shutil.copy(kits / "hospital_a/startup/client.key", kits / "hospital_a/backup.txt")
    (kits / "hospital_a/backup.txt").chmod(0o644)
    assert "backup.txt" in fails(kits, "key_files_private")


@pytest.mark.parametrize("key", ["login.key", "signing.key", "vault.key"])
def test_another_hospitals_key_is_found(kits, key):
    shutil.copy(kits / "hospital_a/fedbone" / key, kits / "hospital_b" / "other.key")
    assert "lies at" in fails(kits, "key_files_private")


def test_keys_off_line_leave_nothing_to_decide(kits):
    for name in disk_probes.OFF_LINE:
        shutil.rmtree(kits / name)
    assert not probes_of(kits)["key_files_private"]().undecided


@pytest.mark.parametrize("key", ["login.key", "signing.key", "sum.key", "hospitals.key"])
@pytest.mark.parametrize("form", ["file", "hex"])
def test_a_hospitals_key_at_the_server_is_found(kits, key, form):
    content = (kits / "hospital_c/fedbone" / key).read_bytes()
    if form == "hex":
        content = (disk_probes._secret_number(content) or content).hex().encode() if key != "sum.key" else content
    (kits / "server/jobs").mkdir(exist_ok=True)
    (kits / "server/jobs/notes.txt").write_bytes(b"for later: " + content + b"\n")
    assert "notes.txt: it holds a key of a hospital" in fails(kits, "server_holds_no_private_key")


# what was written down


def edit(path, change) -> None:
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def test_an_edited_line_is_found(kits):
    log = kits / "hospital_a/fedbone/audit.jsonl"
    edit(log, lambda lines: [lines[0], lines[1], lines[2].replace(b'"round":', b'"round":1'), *lines[3:]])
    assert "line 3" in fails(kits, "audit_chain")


def test_a_check_of_logs_that_finds_nothing_is_found(made, monkeypatch):
    real = probes.record_probes.verify_log
    log, public = made / "server/fedbone/audit.jsonl", load_parties(made)[0].audit_public()

    def lenient(*_):
        return real(log, public)

    monkeypatch.setattr(probes.record_probes, "verify_log", lenient)
    assert "verifies" in fails(made, "audit_chain")


@pytest.mark.parametrize("party", ["server", "hospital_b"])
def test_a_log_that_was_cut_off_is_found_by_the_others(kits, party):
    log = kits / party / "fedbone/audit.jsonl"
    edit(log, lambda lines: lines[: len(lines) // 2])
    assert "log" in fails(kits, "audit_complete")


def test_the_last_round_cut_off_at_the_server_is_found(kits):
    def cut(lines):
        last = max(i for i, line in enumerate(lines) if json.loads(line)["event"] == "release")
        return lines[:last]

    edit(kits / "server/fedbone/audit.jsonl", cut)
    assert "the end of a log is missing" in fails(kits, "audit_complete")


def test_consent_that_was_withdrawn_or_other_films_are_found(kits, tmp_path):
    key = kits / "officers/hospital_a.key"
    assert main(["deploy", "consent", str(kits / "hospital_a"), "--key", str(key), "--withdraw"]) == 0
    assert "withdrawn" in fails(kits, "consent")
    (kits / "hospital_a/fedbone" / CONSENT).unlink()
    assert CONSENT in fails(kits, "consent")


@pytest.mark.parametrize("spends", [0, 1000], ids=["nothing noted", "beyond the limit"])
def test_a_ledger_that_does_not_hold_is_found(kits, spends):
    server, hospital, *_ = load_parties(kits)
    plan = plan_for(kits, "private", patient={"noise_multiplier": 1.0, "clip_norm": 1.0, "batch": 4})
    for kit in (server, hospital):
        (kit.run_folder("private")).mkdir(parents=True)
        (kit.run_folder("private") / "plan.json").write_text(plan.to_json())
    hospital.audit().append("push", run="private", round=0)
    if spends:
        Ledger(hospital.own / LEDGER, 1e-5).spend(hospital.name, 1.0, 0.5, spends)
    text = fails(kits, "privacy_budget")
    assert ("noted nothing" in text, "the limit is 8" in text) == (not spends, bool(spends))


def test_the_servers_noise_is_told_as_epsilon(kits):
    plan = plan_for(kits, "noisy", noise={"noise_multiplier": 1.0, "clip_norm": 0.5})
    folder = load_parties(kits)[0].run_folder("noisy")
    for run in ("open", "masked"):
        shutil.rmtree(folder.with_name(run))
    folder.mkdir()
    (folder / "plan.json").write_text(plan.to_json())
    found = probes_of(kits)["privacy_budget"]()
    assert found.details["central: rounds planned"] == 3
    assert found.details["central: epsilon of a hospital"] == pytest.approx(9.3, abs=1.5)  # sqrt(3) at delta 1e-5
    assert "No limit is set" in found.undecided


# rounds and messages


def test_a_round_below_its_quorum_is_found(kits, monkeypatch):
    monkeypatch.setattr("fedbone.engines.flare.server.require_enough", lambda *_: None)
    assert "a trial round with 2 updates was released" in fails(kits, "minimum_hospitals")


def test_a_release_below_its_quorum_is_found(kits):
    server = load_parties(kits)[0]
    server.audit().append("aggregation", run="open", round=0, hospitals="hospital_a")
    assert "after 1 updates, and 2 were agreed" in fails(kits, "minimum_hospitals")


@pytest.mark.parametrize("fault", ["more arrays", "more bytes", "longer"])
def test_a_server_that_reads_more_than_an_update_is_found(made, monkeypatch, fault):
    if fault == "more arrays":
        monkeypatch.setattr(
            "fedbone.engines.flare.messages.only", lambda where, arrays, *names: [arrays[n] for n in names]
        )
    elif fault == "more bytes":
        monkeypatch.setattr("fedbone.engines.flare.messages.ROOM_BYTES", 1 << 40)
        monkeypatch.setattr("fedbone.federation.aggregation.require_sound", lambda *_: None)
    else:
        monkeypatch.setattr("fedbone.federation.aggregation.require_sound", lambda *_: None)
    if fault != "more arrays":
        monkeypatch.setattr(round_probes, "Aggregation", partial(_Taking))
    assert "was accepted" in fails(made, "images_never_sent")


class _Taking:
    def __init__(self, *_):
        self.add = lambda *_: None


# the command


def test_the_command_writes_the_report_and_fails_where_something_failed(made, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert main(["deploy", "check", str(made), "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: 5 failed, 20 needs a human, 6 proved; failed: transport-1")
    html = out.read_text()
    assert "Connection refused" in html
    assert "open" in html
    secrets = [path.read_bytes() for path in disk_probes.secret_files(made)]
    assert not [secret for secret in secrets if secret.hex() in html or secret.strip() in html.encode()]


def test_nothing_failed_is_said_by_the_exit_code(made, tmp_path, monkeypatch, capsys):
    names = (*PROVED, *ON_COPIES, *HUMAN)
    monkeypatch.setattr(check_command, "probes_of", lambda kits, **_: {n: probes_of(kits)[n] for n in names})
    assert main(["deploy", "check", str(made), "--out", str(tmp_path / "report.html")]) == 0
    assert "0 failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_running_deployment_passes_and_an_intruder_does_not_get_in(tmp_path):
    with Deployment(tmp_path, {}) as deployment:
        deployment.submit(deployment.plan("first", profile=get_profile("cpu", rounds=1, size_px=SIZE_PX)))
        deployment.wait_for_end("first")
        report = tmp_path / "report.html"
        done = deployment.command("check", deployment.kits, "--out", report, "--intrude", check=False)
        assert (done.returncode, "0 failed, 16 needs a human, 15 proved" in done.stdout) == (0, True), done.stdout
        assert "temporary folders searched: 4" in report.read_text()
        assert "So was one over the network" in report.read_text()
        assert all(deployment.look()["parties"][name]["registered"] for name in deployment.hospitals)
        deployment.require_valid_logs()
