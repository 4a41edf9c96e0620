"""A running deployment and what befalls it: processes are killed or stopped, updates are bad, a disk is full.

Each run has to end with the very model of an undisturbed run in this process in which the same hospitals took part.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedbone.config import get_profile
from fedbone.engines.flare.plan import Plan
from tests.deployed import SIZE_PX, Deployment, said

pytestmark = pytest.mark.slow
ALL = ["hospital_a", "hospital_b", "hospital_c"]
SLOW = {"slow_s": 1.0}  # a round lasts long enough to be hit
DISK_BYTES, LEAVE_BYTES = 256 << 20, 1 << 20


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """``folder`` on a file system of its own, of DISK_BYTES; false where this account may not mount one."""
    beside = folder.with_name(f"{folder.name} before")
    folder.rename(beside)
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    shutil.copytree(beside, folder, dirs_exist_ok=True, symlinks=True)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deployed"), {})
    with small_disk(made.server.folder) as mounted:
        made.disk = made.server.folder if mounted else None
        with made:
            yield made
            made.wait(lambda: not made.jobs_alive())
            assert not made.defunct()


@pytest.fixture
def deployment(deployed: Deployment) -> Deployment:
    """With no fault planted."""
    deployed.plant(SLOW)
    return deployed


def finished(deployment: Deployment, plan: Plan) -> list[list[str]]:
    """By round, who took part, of a run that survived."""
    deployment.wait_for_end(plan.run)
    assert deployment.problems(plan) == []
    deployment.require_valid_logs()
    return deployment.took_part(plan.run)


BAD = {
    "nan": r"refused: its update holds NaN or infinity",
    "short": r"refused: its update is float32 \(\d+,\), the model needs float32",
    "float64": r"refused: its update is float64 \(\d+,\), the model needs float32",
    "cut": r"refused: the message cannot be read: its content is damaged",
    "raise": r"refused: it failed \(EXECUTION_EXCEPTION\)",
    "unsigned": r"refused: there is no token",
    "forged": r"refused: its key '.*' is not registered",
    "expired": r"refused: its token expired \d+ s ago",
    "edited": r"refused: its token says sha256 '0000.*was expected",
    "replayed": r"refused: its token says round",
    "late": r"late: no answer within 4 s after enough others",
}
ROUND = {fault: index for index, fault in enumerate(BAD, start=1)}


@pytest.fixture(scope="module")
def bad_updates(deployed: Deployment) -> tuple[Deployment, Plan]:
    """A finished run in which hospital_b did all of that, one thing a round."""
    rounds = {str(index): fault for fault, index in ROUND.items()}
    deployed.plant({"hospital_b": rounds, "late_s": 7.0})
    plan = deployed.plan("bad-updates", profile=get_profile("cpu", rounds=len(BAD) + 4, size_px=SIZE_PX))
    deployed.submit(plan)
    deployed.wait_for_end(plan.run)
    return deployed, plan


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_update_does_not_count_and_the_reason_stands_in_status_log_and_audit(bad_updates, fault) -> None:
    deployment, plan = bad_updates
    index, reason = ROUND[fault], BAD[fault]
    row = deployment.status(plan.run)["history"][index]
    assert said([row["hospitals"].pop("hospital_b")], reason)
    assert row["hospitals"] == {"hospital_a": "took part", "hospital_c": "took part"}
    assert said(deployment.log("server"), f"round {index}: hospital_b", reason)
    refusals = [e for e in deployment.events(plan.run, "refusal") if (e["round"], e["site"]) == (index, "hospital_b")]
    assert [said([entry["detail"]], reason) for entry in refusals] == [True]
    assert refusals[0]["outcome"] == ("left out" if fault == "late" else "refused")


def test_after_its_bad_updates_a_hospital_takes_part_again_and_the_model_is_that_of_the_others(bad_updates) -> None:
    deployment, plan = bad_updates
    assert finished(deployment, plan)[-1] == ALL
    assert deployment.status(plan.run)["received"] == dict.fromkeys(ALL, "took part")
    assert said(deployment.log("hospital_b"), "its film store is away")  # the reason stays in the hospital


KILLS = {  # what is killed: (party, parts), the line that its supervisor or server says, whether a new job was needed
    "hospital's job process": ("hospital_b", ["job"], r"hospital_b is back in job", False),
    "hospital's parent process": ("hospital_c", ["parent"], r"hospital_c: hospital ended with code -9", False),
    "server's job process": ("server", ["job"], r"watchdog: run .* goes on from round \d as job", True),
    "server's parent process": ("server", ["parent"], r"server: server ended with code -9; next start in", True),
    "server's both processes": ("server", ["parent", "job"], r"server: server ended with code -9; next start", True),
    "watchdog": ("server", ["watchdog"], r"server: watchdog ended with code -9; next start in", False),
    "watchdog and the server's job": ("server", ["watchdog", "job"], r"watchdog: run .* goes on from", True),
}


@pytest.mark.parametrize("what", KILLS)
def test_a_run_survives_kill_9(deployment, what) -> None:
    party, parts, line, new_job = KILLS[what]
    rng = np.random.default_rng([0, list(KILLS).index(what)])
    at, delay_s = int(rng.integers(1, 3)), rng.uniform(0, 1.5)
    plan = deployment.plan(f"kill-{list(KILLS).index(what)}")
    deployment.submit(plan)
    deployment.wait(lambda: deployment.in_round(plan.run, at))
    time.sleep(delay_s)
    speaker = "server" if "back in job" in line else party
    before = set(deployment.log(speaker))
    assert len(deployment.kill(party, *parts)) == len(parts)
    took_part = finished(deployment, plan)
    assert said(set(deployment.log(speaker)) - before, line)
    assert len(deployment.events(plan.run, "start")) == (3 if new_job else 1)  # two jobs, and the watchdog's word
    assert deployment.status(plan.run)["received"] == dict.fromkeys(ALL, "took part")  # it came back in this run
    if party == "server":
        assert took_part == [ALL] * 5  # and so its model is that of a run without any fault


def test_a_run_whose_server_is_killed_before_it_has_written_anything_is_not_lost(deployment) -> None:
    plan = deployment.plan("kill-early", profile=get_profile("cpu", rounds=2, size_px=SIZE_PX))
    deployment.submit(plan)
    assert deployment.processes("server", "job")
    deployment.kill("server", "parent", "job")  # its job process is still importing
    assert not deployment.events(plan.run, "start")
    assert finished(deployment, plan) == [ALL] * 2


def test_a_stopped_hospital_is_left_out_and_goes_on_where_it_was(deployment) -> None:
    plan = deployment.plan("stopped", profile=get_profile("cpu", rounds=6, size_px=SIZE_PX))
    deployment.submit(plan)
    deployment.wait(lambda: deployment.in_round(plan.run, 1))
    deployment.kill("hospital_a", "job", "parent", number=signal.SIGSTOP)
    try:
        deployment.wait(lambda: deployment.in_round(plan.run, 3))
    finally:
        deployment.kill("hospital_a", "job", "parent", number=signal.SIGCONT)
    took_part = finished(deployment, plan)
    assert ["hospital_b", "hospital_c"] in took_part
    index = took_part.index(["hospital_b", "hospital_c"])
    assert said(deployment.log("server"), rf"round {index}: hospital_a late: no answer within 4 s after enough others")
    assert deployment.status(plan.run)["received"]["hospital_a"] == "took part"


def test_too_few_hospitals_end_no_round_and_the_run_goes_on_when_they_are_back(deployment) -> None:
    plan = deployment.plan("too-few")
    two = {name: {"2": "raise"} for name in ("hospital_a", "hospital_c")}
    deployment.plant({**SLOW, **two})
    deployment.submit(plan)
    deployment.wait(lambda: deployment.status(plan.run).get("state") == "failed")
    reason = r"round 2: 1 of the 2 hospitals it needs took part: hospital_a refused: it failed"
    assert said([deployment.status(plan.run)["problem"]], reason)
    assert said(deployment.log("server"), reason)
    assert [entry["outcome"] for entry in deployment.events(plan.run, "stop")][:1] == ["failed"]
    assert not deployment.events(plan.run, "release")[2:]
    told = deployment.look()["runs"][plan.run]
    assert told["state"] != "finished"
    assert said([told["problem"]], reason)
    deployment.plant(SLOW)
    assert finished(deployment, plan) == [ALL] * 5


def fill(disk: Path) -> Path:
    """All of it but LEAVE_BYTES."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        os.posix_fallocate(file.fileno(), 0, free - LEAVE_BYTES)
    return ballast


def test_a_full_disk_ends_no_round_and_the_run_goes_on_when_there_is_room(deployment) -> None:
    if deployment.disk is None:
        pytest.skip("not run: this account may not mount a small disk; see the test below")
    plan = deployment.plan("full-disk")
    deployment.submit(plan)
    deployment.wait(lambda: deployment.in_round(plan.run, 1))
    ballast = fill(deployment.disk)
    try:
        folder = deployment.server.run_folder(plan.run)
        deployment.wait(lambda: said(deployment.log("server"), r"No space left on device.*round_000\d\.sealed"))
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]  # nothing half-written
    finally:
        ballast.unlink()
    assert finished(deployment, plan) == [ALL] * 5


def test_a_full_folder_ends_no_round_and_the_run_goes_on_when_there_is_room(deployment) -> None:
    plan = deployment.plan("full-folder")
    deployment.submit(plan)
    deployment.wait(lambda: deployment.in_round(plan.run, 1))
    deployment.plant({**SLOW, "full": f"runs/{plan.run}"})
    deployment.wait(lambda: said(deployment.log("server"), "No space left on device", f"runs/{plan.run}/"))
    deployment.plant(SLOW)
    assert finished(deployment, plan) == [ALL] * 5
    names = {path.name for path in deployment.server.run_folder(plan.run).iterdir()}
    assert names == {"plan.json", "status.json", "lock", "finished", "round_0003.sealed", "round_0004.sealed"}


def test_when_a_whole_party_is_killed_status_says_so_and_up_brings_it_back(deployment) -> None:
    plan = deployment.plan("machine-lost")
    deployment.submit(plan)
    deployment.wait(lambda: deployment.in_round(plan.run, 1))
    supervisor = int((deployment.server.own / "supervisor.lock").read_text())
    os.kill(supervisor, signal.SIGKILL)
    deployment.wait(lambda: not deployment.processes("server", "parent"))
    told = deployment.look()
    assert told["parties"]["server"]["supervisor"] is False
    assert told["parties"]["hospital_a"]["registered"] is None  # nobody is there to ask
    assert told["runs"][plan.run]["state"] == "waiting"
    assert deployment.command("status", deployment.kits, check=False).returncode == 1
    deployment.command("up", deployment.kits)
    assert finished(deployment, plan) == [ALL] * 5
