"""Brings a run back after its job was lost: a process beside the server, which can be killed at any time as well.

It remembers nothing. What there is to do stands in the run folders and the audit log; whether a job is alive, FLARE
says and, where its word cannot be trusted (a killed server leaves jobs RUNNING), the server's list of processes.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nvflare.fuel.flare_api.flare_api import Session

from fedbone.engines.flare.jobs import WATCHDOG, live_job, registered, session, submit
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.plan import Plan
from fedbone.engines.flare.run_folder import CANCELLED, FINISHED, PLAN, last_release, read_plan
from fedbone.errors import UserError

LOOK_S = 0.5
LOOKS_WITHOUT_PROCESS = 4  # until a job that FLARE calls running counts as lost
PATIENCE_S = 20.0  # for hospitals that are still coming back: a run is better repeated with all of them
LONGEST_PAUSE_S = 60.0
ABORT_PAUSE_S = 5.0  # a job that was told to end takes some seconds


@dataclass
class _Trial:
    """What was tried for one run since its last finished round."""

    finished: int = -1
    jobs: int = 0
    not_before: float = 0.0
    looks: int = 0  # at a job without a process
    lost_at: float | None = None


class Watchdog:
    """``look(session)`` once, or ``watch()`` for ever."""

    def __init__(self, kit: Kit) -> None:
        self._kit, self._trials = kit, {}
        self._next_end: dict[str, float] = {}  # when a cancelled run is looked at again
        self._told: set[str] = set()

    def watch(self) -> None:
        """Look twice a second until the process is ended. Raises UserError when another watchdog is at work."""
        with open(self._kit.own / "watchdog.lock", "ab") as lock:
            try:
                fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(self._kit.folder, "its watchdog is at work already", "One is enough") from None
            while True:
                try:
                    with session(WATCHDOG, self._kit.own / "watchdog") as opened:
                        while True:
                            self.look(opened)
                            time.sleep(LOOK_S)
                except Exception as error:  # the server may be gone for as long as it likes
                    print(f"watchdog: {type(error).__name__}: {error!s:.200}", flush=True)
                    time.sleep(LOOK_S)

    def look(self, to: Session) -> None:
        """Once over all runs: what has lost its job gets a new one."""
        for plan in unfinished(self._kit, self._tell_once):
            trial = self._trials.setdefault(plan.run, _Trial())
            found = live_job(to, plan.run)
            if found is None:
                self._start_again(to, plan, trial)
            elif found[1]:
                trial.looks, trial.lost_at = 0, None
            else:
                trial.looks += 1
                if trial.looks >= LOOKS_WITHOUT_PROCESS:
                    self._start_again(to, plan, trial)
        for run in cancelled(self._kit):
            self._end(to, run)

    def _tell_once(self, problem: str) -> None:
        """It looks twice a second, and its output is kept."""
        if problem not in self._told:
            self._told.add(problem)
            print(problem, flush=True)

    def _end(self, to: Session, run: str) -> None:
        """Abort what lives of a cancelled run; seldom, since nothing new of it is let in."""
        now = time.monotonic()
        if now < self._next_end.get(run, now):
            return
        found = live_job(to, run)
        if found and found[1]:
            print(f"watchdog: run {run} is cancelled: {to.abort_job(found[0])}", flush=True)
        self._next_end[run] = now + (ABORT_PAUSE_S if found else LONGEST_PAUSE_S)

    def _start_again(self, to: Session, plan: Plan, trial: _Trial) -> None:
        """When its hospitals are there, or after PATIENCE_S enough of them; with a growing pause if nothing helps."""
        now = time.monotonic()
        trial.lost_at = trial.lost_at or now
        there = set(registered(to)) & set(plan.hospitals)
        enough = len(there) == len(plan.hospitals) or (
            len(there) >= plan.min_hospitals and now - trial.lost_at >= PATIENCE_S
        )
        if not enough or now < trial.not_before:
            return
        finished, _ = last_release(self._kit, plan.run)
        if finished > trial.finished:
            trial.finished, trial.jobs = finished, 0
        trial.jobs += 1
        trial.not_before = now + min(LONGEST_PAUSE_S, 2.0**trial.jobs)
        trial.looks, trial.lost_at = 0, None
        job = submit(to, plan)
        print(f"watchdog: run {plan.run} goes on from round {finished + 1} as job {job}", flush=True)
        self._kit.audit().append("start", run=plan.run, round=finished + 1, job=job, detail="by the watchdog")


def unfinished(kit: Kit, tell: Callable[[str], None] = print) -> list[Plan]:
    """The runs that were begun and are neither finished nor cancelled; ``tell`` gets what is wrong with one."""
    plans = []
    for path in sorted(kit.own.glob(f"runs/*/{PLAN}")):
        if not (path.with_name(FINISHED).exists() or path.with_name(CANCELLED).exists()):
            try:
                plans.append(read_plan(path.parent))
            except (UserError, OSError) as error:  # one damaged file must not keep the other runs down
                tell(f"watchdog: {path}: {error!s:.200}")
    return plans


def cancelled(kit: Kit) -> list[str]:
    """The runs that were ended for good before they were finished."""
    return sorted(path.parent.name for path in kit.own.glob(f"runs/*/{CANCELLED}"))


def watch(folder: Path) -> None:
    """Watch over the server's kit in ``folder``."""
    Watchdog(Kit.load(folder)).watch()
