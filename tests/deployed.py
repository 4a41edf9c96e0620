"""A deployment on this machine for tests: three hospitals of the sample, and their processes by what they are."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import psutil
import torch

from fedbone.__main__ import main
from fedbone.config import REPOSITORY, SAMPLE, get_profile
from fedbone.custody.at_rest import Finding, clear_weights
from fedbone.custody.audit_log import read_log, verify_log
from fedbone.encryption.paillier_keys import generate
from fedbone.engines.flare import kits
from fedbone.engines.flare.jobs import ADMINISTRATOR, ENDED, session, submit, wait_for_start
from fedbone.engines.flare.kit import ADMIN, load_parties
from fedbone.engines.flare.plan import Plan
from fedbone.engines.flare.processes import party_processes
from fedbone.engines.flare.run_folder import read_status
from fedbone.engines.flare.status import look
from fedbone.federation.hospital import Hospital
from fedbone.federation.rounds import RoundRules, run_rounds
from fedbone.federation.secure import SecureSums
from fedbone.imaging.dataset import HospitalData
from fedbone.imaging.folder import load_hospitals
from fedbone.vectors import sha256

PLANTED = REPOSITORY / "tests" / "planted_faults"
SIZE_PX, KEY_BITS = 64, 2048
JOB = {"server": "runner_process", "hospital": "worker_process"}  # in the command line of a job's process


class Deployment:
    """Kits in ``folder`` and their processes; a context manager, which ends them.

    faults: see tests/planted_faults; None: nothing can be planted, the processes are those of any user.
    """

    def __init__(self, folder: Path, faults: dict | None) -> None:
        self.folder, self.kits, self._faults = folder, folder / "my kits", folder / "faults.json"
        if faults is not None:
            self.plant(faults)
        if not self.kits.exists():
            _init(self.kits)
        self.server, *hospitals = load_parties(self.kits)
        self.hospitals = {kit.name: kit for kit in hospitals}

    def plant(self, faults: dict) -> None:
        beside = self._faults.with_suffix(".new")  # whole at any moment: processes read it at each round
        beside.write_text(json.dumps(faults))
        beside.replace(self._faults)

    def command(self, action: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess:
        temporary = self.folder / "temporary files"
        temporary.mkdir(exist_ok=True)
        env = {**os.environ, "TMPDIR": str(temporary), "TQDM_DISABLE": "1"}
        if self._faults.exists():
            env |= {"PYTHONPATH": str(PLANTED), "FEDBONE_TEST_FAULTS": str(self._faults)}
        command = [sys.executable, "-m", "fedbone", "deploy", action, *map(str, arguments)]
        done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=180)
        assert not check or done.returncode == 0, f"deploy {action}: {done.stdout}\n{done.stderr}"
        return done

    def __enter__(self) -> Deployment:
        try:
            self.command("up", self.kits)
        except BaseException:  # nobody else would end what has started
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.command("down", self.kits)

    def plan(self, run: str, **changes: object) -> Plan:
        directory = self.server.directory()
        plain = Plan(
            run=run,
            profile=get_profile("cpu", rounds=5, size_px=SIZE_PX),
            seed=0,
            hospitals=self.server.hospitals,
            joints=tuple(directory["hospital_a"]["joints"]),
            labels={name: tuple(entry["labels"]) for name, entry in directory.items()},
            min_hospitals=2,
            deadline_s=60.0,
            grace_s=4.0,
        )
        return replace(plain, **changes)

    def submit(self, plan: Plan) -> str:
        with session(ADMINISTRATOR, self.kits / ADMIN) as opened:
            job = submit(opened, plan)
            wait_for_start(opened, job, plan.run)
        return job

    def status(self, run: str) -> dict:
        return read_status(self.server.run_folder(run))

    def look(self) -> dict:
        """What ``deploy status`` tells."""
        return look(self.kits)

    def wait(self, what: Callable[[], object], within_s: float = 90.0) -> float:
        """Seconds until ``what()`` is true."""
        began = time.monotonic()
        while not what():
            assert time.monotonic() - began < within_s, f"not in {within_s} s; {self.tails()}"
            time.sleep(0.05)
        return time.monotonic() - began

    def wait_for_end(self, run: str, within_s: float = 180.0) -> dict:
        """The run's status when it is finished, and no job and no process of one is left."""
        self.wait(lambda: self.status(run).get("state") == "finished", within_s)
        self.wait(lambda: not any(self.processes(party, "job") for party in (self.server.name, *self.hospitals)))
        return self.status(run)

    def events(self, run: str, event: str, party: str = "server") -> list[dict]:
        kit = self.hospitals.get(party, self.server)
        path = kit.own / "audit.jsonl"
        return [entry for entry in read_log(path) if entry["event"] == event and entry.get("run") == run]

    def in_round(self, run: str, index: int) -> bool:
        """Whether hospitals train for round ``index``."""
        return any(entry["round"] == index for entry in self.events(run, "pull"))

    def processes(self, party: str, part: str) -> list[int]:
        """part: parent, job or watchdog."""
        kit = self.hospitals.get(party, self.server)
        found = []
        for pid in sorted(party_processes(kit)):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            text = " ".join(command)
            kind = "job" if JOB[kit.role] in text else "parent" if "_train" in text else ""
            kind = "watchdog" if " watch " in f"{text} " else kind
            if kind == part:
                found.append(pid)
        return found

    def kill(self, party: str, *parts: str, number: int = signal.SIGKILL) -> list[int]:
        pids = [pid for part in parts for pid in self.processes(party, part)]
        for pid in pids:
            os.kill(pid, number)
        return pids

    def took_part(self, run: str) -> list[list[str]]:
        """By round, the hospitals whose update counted; of a round that was repeated, the last time."""
        rounds = {entry["round"]: entry["hospitals"].split(",") for entry in self.events(run, "aggregation")}
        assert sorted(rounds) == list(range(len(rounds)))
        return [rounds[index] for index in sorted(rounds)]

    def log(self, party: str) -> list[str]:
        """The lines that a party's processes and its supervisor have said."""
        kit = self.hospitals.get(party, self.server)
        return [line for path in sorted(kit.own.glob("*.log")) for line in path.read_text(errors="replace").split("\n")]

    def tails(self) -> str:
        logs = sorted(self.kits.glob("*/fedbone/*.log"))
        return "\n".join(f"{log.parent.parent.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs)

    def jobs_alive(self) -> list[str]:
        """The jobs that the server does not call ended."""
        with session(ADMINISTRATOR, self.kits / ADMIN) as opened:
            return [job["job_name"] for job in opened.list_jobs() if not job["status"].startswith(ENDED)]

    def defunct(self) -> list[str]:
        """Processes below the parties' that have ended, and that their parent has not noticed."""
        pids = {pid for kit in (self.server, *self.hospitals.values()) for pid in party_processes(kit)}
        found = []
        for process in psutil.process_iter(["ppid", "status", "name"]):
            if process.info["status"] == psutil.STATUS_ZOMBIE and process.info["ppid"] in pids:
                found.append(f"{process.info['name']} {process.pid}")
        return found

    def require_valid_logs(self) -> None:
        """Every party's audit log, each line and every signature."""
        for kit in (self.server, *self.hospitals.values()):
            verify_log(kit.own / "audit.jsonl", kit.audit_public())

    def clear_weights(self, plan: Plan) -> list[Finding]:
        """What lies in clear of the run's models, in the kits, FLARE's job stores and the temporary folder."""
        models = undisturbed(plan, tuple(map(tuple, self.took_part(plan.run))))
        return clear_weights([self.kits, self.folder / "temporary files"], models)

    def problems(self, plan: Plan) -> list[str]:
        """What is wrong with a run that is finished, in words; nothing for one that survived all that befell it."""
        status, took_part = self.status(plan.run), self.took_part(plan.run)
        told = self.look()["runs"][plan.run]
        model = sha256(list(undisturbed(plan, tuple(map(tuple, took_part))).values())[-1])
        released = {entry["round"]: entry["model"] for entry in self.events(plan.run, "release")}
        checks = {
            "the last model is not that of an undisturbed run": status["model"] == model == told["model"],
            "the audit log names another model": released.get(plan.profile.rounds - 1) == model,
            "a round is missing": len(took_part) == len(released) == plan.profile.rounds,
            "a round had too few hospitals": min(map(len, took_part)) >= plan.min_hospitals,
            "status does not say that it is finished": (told["state"], told["problem"]) == ("finished", ""),
            "status tells other hospitals": took_part == [_who(row) for row in told["history"]],
        }
        return [problem for problem, well in checks.items() if not well]


def _who(row: dict) -> list[str]:
    return sorted(name for name, what in row["hospitals"].items() if what == "took part")


def _init(out: Path) -> None:
    """``deploy init`` in this process, with Paillier keys that are made sooner."""
    real, kits.generate = kits.generate, lambda: generate(KEY_BITS)
    try:
        assert main(["deploy", "init", "--out", str(out)]) == 0
    finally:
        kits.generate = real


@cache
def films(size_px: int, seed: int) -> tuple[HospitalData, ...]:
    return tuple(load_hospitals(SAMPLE, size_px, seed)[0])


@cache
def _undisturbed(text: str, took_part: tuple[tuple[str, ...], ...]) -> dict:
    plan, models = Plan.from_json(text), {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_rounds(
            [Hospital(hospital, plan.profile) for hospital in films(plan.profile.size_px, plan.seed)],
            plan.profile,
            plan.seed,
            strategy=plan.strategy,
            rules=RoundRules(min_hospitals=plan.min_hospitals),
            available=lambda index, name: name in took_part[index],
            on_round=lambda record, vector: models.update({f"round {record.round}": vector.copy()}),
            secure=SecureSums(plan.lanes_of_sums()) if plan.sums != "none" else None,
        )
    finally:
        torch.set_num_threads(threads)
    return models


def undisturbed(plan: Plan, took_part: tuple[tuple[str, ...], ...]) -> dict:
    """By round, the models (P,) of a run in this process, where only those who took part could be reached."""
    return _undisturbed(replace(plan, run="undisturbed").to_json(), took_part)


def said(lines: Iterable[str], *patterns: str) -> bool:
    """Whether one of these lines fits all of these regular expressions."""
    return any(all(re.search(pattern, line) for pattern in patterns) for line in lines)
