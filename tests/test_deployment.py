"""A deployment that nobody disturbs, or only by its keys: the same model, TLS, logins, jobs, what lies on the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedbone.config import REPOSITORY, get_profile
from fedbone.custody import tls_probe
from fedbone.custody.audit_log import read_log
from fedbone.custody.identity import LoginKey, Registry
from fedbone.engines.flare.admission import POLICY
from fedbone.engines.flare.jobs import ADMINISTRATOR, session, wait_for_start
from fedbone.engines.flare.kit import ADMIN, Kit, load_parties
from fedbone.engines.flare.plan import Plan, job_files
from fedbone.engines.flare.processes import die_with, environment, party_processes, temporary_files
from fedbone.engines.flare.supervisor import parts
from fedbone.errors import UserError
from fedbone.files import write_json
from tests.deployed import SIZE_PX, Deployment, said, undisturbed

pytestmark = pytest.mark.slow
ALL = ["hospital_a", "hospital_b", "hospital_c"]
LANES = {"range": 0.01, "bits": 8}  # few bits make few ciphertexts
SUMS = {"none": 3, "masks": 2, "paillier": 1}  # rounds


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("deployed"), {}) as made:
        yield made
    assert not any(party_processes(kit) for kit in load_parties(made.kits))


def plan_with(deployment: Deployment, sums: str) -> Plan:
    profile = get_profile("cpu", rounds=SUMS[sums], size_px=SIZE_PX)
    hidden = {} if sums == "none" else {"sums": sums, "lanes": LANES, "min_hospitals": 3, "deadline_s": 600.0}
    return deployment.plan(f"sums-{sums}", profile=profile, **hidden)


def finished(deployment: Deployment, plan: Plan) -> Plan:
    deployment.wait_for_end(plan.run)
    assert deployment.problems(plan) == []
    deployment.require_valid_logs()
    return plan


@pytest.fixture(scope="module")
def runs(deployment: Deployment) -> dict[str, Plan]:
    """One finished run of each kind."""
    plans = {sums: plan_with(deployment, sums) for sums in SUMS}
    for plan in plans.values():
        deployment.submit(plan)
        finished(deployment, plan)
    return plans


@pytest.mark.parametrize("sums", SUMS)
def test_the_model_is_that_of_the_same_run_in_this_process(deployment, runs, sums) -> None:
    plan = runs[sums]
    assert deployment.took_part(plan.run) == [ALL] * plan.profile.rounds
    assert deployment.problems(plan) == []  # among them: another sha256
    assert deployment.status(plan.run)["received"] == dict.fromkeys(ALL, "took part")


def test_masked_and_encrypted_sums_give_one_model_and_it_is_not_that_of_updates_in_the_open(runs) -> None:
    models = {sums: next(iter(undisturbed(plan, ((*ALL,),) * SUMS[sums]).values())) for sums, plan in runs.items()}
    assert np.array_equal(models["masks"], models["paillier"])
    assert not np.array_equal(models["masks"], models["none"])


def test_every_party_keeps_the_model_and_the_server_cannot_take_out_a_hidden_one(deployment, runs, tmp_path) -> None:
    for kit in deployment.hospitals.values():
        for plan in runs.values():
            assert [e["round"] for e in deployment.events(plan.run, "release", kit.name)] == [plan.profile.rounds - 1]
    deployment.command("model", deployment.kits / "hospital_a", "--run", "sums-paillier", "--out", tmp_path / "m")
    refused = deployment.command(
        "model", deployment.server.folder, "--run", "sums-masks", "--out", tmp_path / "n", check=False
    )
    assert refused.returncode == 2
    assert "the server cannot open what hospitals sealed" in refused.stderr


def test_status_is_well(deployment, runs) -> None:
    deployment.wait(lambda: not deployment.jobs_alive())
    told = deployment.command("status", deployment.kits).stdout  # and exit code 0
    for name in ALL:
        assert said(told.splitlines(), rf"^{name} +up, 1 processes|^{name} +up, 2 processes", "registered")
    for sums, rounds in SUMS.items():
        assert f"run sums-{sums}: finished, {rounds} of {rounds} rounds finished" in told
    assert not deployment.defunct()


def test_no_model_of_any_round_lies_in_clear_on_the_disk(deployment, runs) -> None:
    assert [finding for plan in runs.values() for finding in deployment.clear_weights(plan)] == []


def test_a_model_in_clear_on_the_disk_would_be_found(deployment, runs) -> None:
    model = undisturbed(runs["none"], ((*ALL,),) * 3)["round 1"]
    for folder in (deployment.server.folder / "jobs", temporary_files(deployment.server)):
        planted = folder / "planted.bin"
        planted.write_bytes(b"some bytes before" + model.tobytes())
        assert {finding.where for finding in deployment.clear_weights(runs["none"])} == {str(planted)}
        planted.unlink()


def test_the_server_speaks_tls_1_2_and_1_3_to_its_own_certificates_and_nothing_else(deployment) -> None:
    startup = deployment.hospitals["hospital_a"].folder / "startup"
    own = tls_probe.Credentials(*(startup / name for name in ("rootCA.pem", "client.crt", "client.key")))
    address = (deployment.server.host, deployment.server.port)
    found = tls_probe.tls_versions(address, own).details
    assert found.keys() == {"TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"}
    assert all(found[old].startswith("refused") for old in ("TLSv1", "TLSv1_1"))
    assert tls_probe.plain_text_refused(address)
    assert tls_probe.no_certificate_refused(address, own)
    assert tls_probe.foreign_certificate_refused(address, own)
    assert tls_probe.server_certificate_checked(address, own)


def with_code(files: dict[str, bytes]) -> None:
    files["app/custom/extra.py"] = b"print('hello')\n"


def with_flare_s_controller(files: dict[str, bytes]) -> None:
    config = json.loads(files["app/config/config_fed_server.json"])
    config["workflows"][0]["path"] = "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather"
    files["app/config/config_fed_server.json"] = json.dumps(config).encode()


def without_quorum(files: dict[str, bytes]) -> None:
    name = "app/config/config_fed_server.json"
    files[name] = files[name].replace(b'\\"min_hospitals\\": 2', b'\\"min_hospitals\\": 1')


@pytest.mark.parametrize("edit", [with_code, with_flare_s_controller, without_quorum])
def test_a_job_that_is_not_of_our_form_is_refused(deployment, tmp_path, edit: Callable) -> None:
    plan = deployment.plan(edit.__name__.replace("_", "-"))
    files = job_files(plan)
    edit(files)
    for name, content in files.items():
        path = tmp_path / plan.run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with session(ADMINISTRATOR, deployment.kits / ADMIN) as opened:
        job = opened.submit_job(str(tmp_path / plan.run))
        with pytest.raises(UserError, match="fedbone refuses the job: job: it is not the job of its plan"):
            wait_for_start(opened, job, plan.run)
    assert not deployment.server.run_folder(plan.run).exists()


def test_a_hospital_whose_staff_do_not_allow_a_run_takes_no_part_and_the_others_go_on(deployment) -> None:
    b = deployment.hospitals["hospital_b"]
    policy = b.own / POLICY
    allowed = policy.read_bytes()
    write_json(policy, {**json.loads(allowed), "sums": ["masks", "paillier"]})
    plan = deployment.plan("policy", profile=get_profile("cpu", rounds=2, size_px=SIZE_PX), deadline_s=20.0)
    deployment.submit(plan)
    finished(deployment, plan)
    policy.write_bytes(allowed)
    assert deployment.took_part(plan.run) == [["hospital_a", "hospital_c"]] * 2
    assert deployment.events(plan.run, "pull", b.name) == []
    assert "sums 'none', where it allows masks" in deployment.events(plan.run, "refusal", b.name)[0]["detail"]


def exchange(deployment: Deployment, name: str, key: LoginKey) -> None:
    new = key.save(deployment.folder / f"{key.kid}.key")
    new.replace(deployment.hospitals[name].own / "login.key")


def outcomes(deployment: Deployment, run: str, name: str) -> list[str]:
    return [row["hospitals"][name] for row in deployment.status(run).get("history", [])]


def test_a_revoked_key_is_shut_out_at_once_and_a_new_one_let_in_without_a_restart(deployment) -> None:
    deployment.plant({"slow_s": 0.7})
    plan = deployment.plan("revoked", profile=get_profile("cpu", rounds=15, size_px=SIZE_PX))
    registry = Registry(deployment.server.own / "registry.json")
    old = deployment.hospitals["hospital_c"].login_key()
    parent = deployment.processes("server", "parent")
    deployment.submit(plan)
    deployment.wait(lambda: outcomes(deployment, plan.run, "hospital_c"))
    registry.revoke(old.kid, "its computer was stolen")
    deployment.wait(lambda: "not asked: its key is revoked" in outcomes(deployment, plan.run, "hospital_c"))
    assert said(deployment.log("server"), r"round \d+: hospital_c not asked: its key is revoked")
    told = deployment.command("status", deployment.kits, check=False)
    assert told.returncode == 1
    assert said(told.stdout.splitlines(), "^hospital_c .*NOT registered, its login key is REVOKED")
    new = LoginKey.create("hospital_c")
    registry.add(new.public_entry())
    exchange(deployment, "hospital_c", new)
    finished(deployment, plan)
    assert outcomes(deployment, plan.run, "hospital_c")[-1] == "took part"
    for row in deployment.status(plan.run)["history"]:
        assert [row["hospitals"][name] for name in ("hospital_a", "hospital_b")] == ["took part"] * 2
    assert deployment.processes("server", "parent") == parent


def test_a_forged_login_is_refused_until_the_right_key_is_back(deployment) -> None:
    right = deployment.hospitals["hospital_b"].login_key()
    exchange(deployment, "hospital_b", LoginKey.create("hospital_b"))
    deployment.kill("hospital_b", "parent")
    reason = "its key '.*' is not registered"
    deployment.wait(lambda: said(deployment.log("server"), "login of hospital_b", reason))
    refusals = [e for e in deployment.events("", "refusal") if e.get("site") == "hospital_b"]
    assert said([refusals[0]["detail"]], reason)
    assert refusals[0]["outcome"] == "refused"
    deployment.wait(lambda: deployment.look()["parties"]["hospital_b"]["registered"] is False)
    told = deployment.command("status", deployment.kits, check=False)  # the administrator gets in all the time
    assert told.returncode == 1
    assert said(told.stdout.splitlines(), "^hospital_b .*NOT registered")
    before = len(deployment.events("", "login"))
    exchange(deployment, "hospital_b", right)
    deployment.wait(lambda: deployment.look()["parties"]["hospital_b"]["registered"])
    logins = deployment.events("", "login")[before:]
    assert {entry["site"] for entry in logins} == {"hospital_b"}
    deployment.require_valid_logs()


def may_run_python(account: list[str]) -> bool:
    """Whether another account may start Python, and this one another, as a supervisor does."""
    inner = "import subprocess, sys, fedbone; subprocess.run([sys.executable, '-c', ''], check=True)"
    try:
        return (
            subprocess.run([*account, sys.executable, "-c", inner], cwd=REPOSITORY, capture_output=True).returncode == 0
        )
    except FileNotFoundError:
        return False


AS_A_RELAY = """
import runpy, sys
from nvflare.private.fed.authenticator import Authenticator
begin = Authenticator.__init__
Authenticator.__init__ = lambda self, *a, **k: begin(self, *a, **{**k, "client_type": "relay"})
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_stolen_certificate_without_the_login_key_gets_nobody_in_and_throws_nobody_out(deployment, tmp_path) -> None:
    """FLARE asks for a login of what calls itself a hospital only; it gives a relay with its name a token as well."""
    real = deployment.hospitals["hospital_b"]
    deployment.wait(lambda: deployment.look()["parties"]["hospital_b"]["registered"])
    copy = tmp_path / "stolen"
    ignored = shutil.ignore_patterns("runs", "login.key", "*.lock", "*.log*")
    for part in ("startup", "local", "fedbone"):
        shutil.copytree(real.folder / part, copy / part, ignore=ignored)
    _, _, module, *options = parts(Kit.load(copy))[0].command
    before = len(list(read_log(deployment.server.own / "audit.jsonl")))
    with open(tmp_path / "out", "wb") as out:
        command = [sys.executable, "-c", AS_A_RELAY, module, *options]
        env = environment(Kit.load(copy), "hospital")
        thief = subprocess.Popen(command, cwd=copy, env=env, stdout=out, stderr=out, preexec_fn=die_with(os.getpid()))
    try:
        deployment.wait(lambda: [e for e in _since(deployment, before) if e["event"] == "refusal"])
        time.sleep(5)  # it tries again and again
    finally:
        thief.kill()
        thief.wait()
    assert [e for e in _since(deployment, before) if e["event"] == "login"] == []
    assert b"Successfully registered" not in (tmp_path / "out").read_bytes()
    assert deployment.look()["parties"]["hospital_b"]["registered"]


def _since(deployment: Deployment, line: int) -> list[dict]:
    return list(read_log(deployment.server.own / "audit.jsonl"))[line:]


def test_no_party_needs_to_be_root() -> None:
    """Where this account is root, as another: ordinary accounts run all the tests above."""
    account = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    if account and not may_run_python(account):
        pytest.skip("not run: this account is root, and another may not run this Python, or there is no setpriv")
    folder = Path(tempfile.mkdtemp(prefix="fedbone of nobody "))
    kits = folder / "my kits"
    env = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder)}

    def deploy(*words: object) -> str:
        command = [*account, sys.executable, "-m", "fedbone", "deploy", *map(str, words)]
        done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    try:
        if account:
            shutil.chown(folder, "nobody", "nogroup")
        deploy("init", "--out", kits)
        deploy("up", kits)
        assert {(kits / name / "log.txt").stat().st_uid for name in ALL} == {folder.stat().st_uid}
        text = deploy("submit", kits, "--run", "first", "--size", SIZE_PX, "--rounds", 1, "--wait")
        assert "run first is finished: model" in text
        assert "no process is left" in deploy("down", kits)
    finally:
        if kits.exists():
            deploy("down", kits)
        shutil.rmtree(folder)
