"""One run on the server's disk: the model of the last finished round, sealed, and what the audit log says of it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedbone.custody.audit_log import AuditLog, read_log, verify_log
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.plan import Plan
from fedbone.errors import UserError
from fedbone.files import sync_folder, write_atomic, write_json

KEPT = 2  # rounds on the disk: the last finished one, and the one before it
PLAN, STATUS, LOCK = "plan.json", "status.json", "lock"
FINISHED, CANCELLED = "finished", "cancelled"  # files that say so


class RunFolder:
    """The folder ``runs/<run>`` of a server's kit.

    A round counts when the audit log says so: its model is written first, then its entry ``release`` with the model's
    sha256. Whoever resumes demands exactly that round, so that an older file that was put back is refused.
    """

    def __init__(self, kit: Kit, plan: Plan, audit: AuditLog) -> None:
        self.plan, self.audit, self._kit = plan, audit, kit
        self.folder = kit.run_folder(plan.run)
        self._status = {"run": plan.run, "rounds": plan.profile.rounds, "state": "starting", "history": []}

    @contextmanager
    def opened(self, patience_s: float = 30.0) -> Iterator[RunFolder]:
        """Hold the folder: the job process of a killed server may live for some seconds more, and must not write too.

        Raises UserError when it is held for ``patience_s``, and for another plan of the same name.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, "ab") as lock:
            ends = time.monotonic() + patience_s
            while not _locked(lock.fileno()):
                if time.monotonic() > ends:
                    problem = f"another process has been at work on it for {patience_s:g} s"
                    raise UserError(f"run {self.plan.run}", problem, "Look at `python -m fedbone deploy status`")
                time.sleep(0.1)
            keep_plan(self.folder, self.plan)
            yield self

    def finished(self) -> tuple[int, str]:
        """(the last finished round, or -1; its model's sha256), as ``last_release`` says."""
        return last_release(self._kit, self.plan.run)

    def path(self, index: int) -> Path:
        """The file of the model after round ``index``."""
        return self.folder / f"round_{index:04d}.sealed"

    def release(self, index: int, model: str) -> None:
        """Round ``index`` is finished: its file is on the disk, and older ones are removed."""
        sync_folder(self.folder)
        self.audit.append("release", run=self.plan.run, round=index, model=model)
        self.audit.sign_head()
        for old in sorted(self.folder.glob("round_*.sealed"))[:-KEPT]:
            old.unlink()

    def finish(self, model: str, received: dict[str, str]) -> None:
        """The run is over: nothing starts it again."""
        self.audit.append("stop", run=self.plan.run, model=model, outcome="finished")
        self.audit.sign_head()
        self.tell("finished", model=model, received=received)
        write_atomic(self.folder / FINISHED, b"")

    def tell(self, state: str, **more: object) -> None:
        """Write ``status.json``, for people: the truth is in the sealed files and the audit log."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._status |= {"state": state, "pid": os.getpid(), "updated": now, **more}
        write_json(self.folder / STATUS, self._status)

    def tell_round(self, index: int, hospitals: dict[str, str], model: str, seconds: float) -> None:
        """One finished round for ``status.json``: by hospital what it did, and the wall time."""
        row = {"round": index, "model": model, "seconds": round(seconds, 2), "hospitals": hospitals}
        self._status["history"] = [*self._status["history"], row]
        self.tell("running")

    def go_on(self, index: int) -> None:
        """Keep the history of the rounds up to ``index`` from an earlier process."""
        self._status["history"] = [row for row in read_status(self.folder).get("history", []) if row["round"] <= index]


def keep_plan(folder: Path, plan: Plan) -> None:
    """Write the plan into a run's folder, once. Raises UserError when there is another one of the same name."""
    require_same_plan(folder, plan)
    if not (folder / PLAN).exists():
        write_atomic(folder / PLAN, plan.to_json().encode())
        sync_folder(folder)


def require_same_plan(folder: Path, plan: Plan) -> None:
    """Raises UserError when the folder of this run holds another plan."""
    path = folder / PLAN
    if path.exists() and path.read_text() != plan.to_json():
        problem = "there is a run of this name with another plan"
        raise UserError(f"run {plan.run}", problem, "Choose another name: a run's plan never changes")


def read_plan(folder: Path) -> Plan:
    """The plan of a run's folder. Raises UserError when there is none that can be read."""
    try:
        return Plan.from_json((folder / PLAN).read_text())
    except FileNotFoundError:
        raise UserError(folder, "there is no run of this name", "Look at `python -m fedbone deploy status`") from None
    except UnicodeDecodeError:
        remedy = "Put the file back from a copy, or move the run's folder away"
        raise UserError(folder / PLAN, "it is damaged: it is not text", remedy) from None


def last_release(kit: Kit, run: str) -> tuple[int, str]:
    """(the last finished round of ``run``, or -1; its model's sha256), by the audit log of the server's ``kit``.

    Raises UserError for a log that was altered.
    """
    path = kit.own / "audit.jsonl"
    if not path.exists():
        return -1, ""
    verified = verify_log(path, kit.audit_public())
    signed = verified.entries - verified.unsigned  # what comes after the last signed head, anybody could have added
    entries = (entry for entry in read_log(path) if entry["n"] < signed)
    releases = [entry for entry in entries if entry["event"] == "release" and entry.get("run") == run]
    return (releases[-1]["round"], releases[-1]["model"]) if releases else (-1, "")


def read_status(folder: Path) -> dict:
    """What ``tell`` wrote last; empty before the first time."""
    try:
        return json.loads((folder / STATUS).read_bytes())
    except FileNotFoundError:
        return {}


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
