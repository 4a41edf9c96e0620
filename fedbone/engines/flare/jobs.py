"""Talking to a running server as one of its users: submit a run, see its jobs. Every session is closed again."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from nvflare.fuel.flare_api.api_spec import NoConnection
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from fedbone.engines.flare.plan import Plan, job_files
from fedbone.errors import UserError

ADMINISTRATOR, WATCHDOG = "admin@fedbone.org", "watchdog@fedbone.org"
ENDED = ("FINISHED", "ABANDONED", "FAILED")  # beginnings of the states of a job that does not run any more


@contextmanager
def session(user: str, kit: Path, timeout_s: float = 15.0) -> Iterator[Session]:
    """A session of ``user`` with its start-up kit. An open one would keep the process alive for ever.

    Raises UserError when the server cannot be reached or refuses the user.
    """
    try:
        with redirect_stdout(sys.stderr):  # FLARE tells there what it does
            opened = new_secure_session(user, str(kit), timeout=timeout_s)
    except (NoConnection, TimeoutError) as error:
        problem = f"the server does not let {user} in ({error!s:.120})"
        raise UserError(kit, problem, "Is it up (`python -m fedbone deploy status`), and is this its kit?") from error
    try:
        yield opened
    finally:
        opened.close()


def submit(to: Session, plan: Plan) -> str:
    """Hand in the job of ``plan``; its id."""
    with tempfile.TemporaryDirectory(prefix="fedbone_job_") as folder:
        job = Path(folder) / plan.run
        for name, content in job_files(plan).items():
            path = job / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return to.submit_job(str(job))


def wait_for_start(to: Session, job_id: str, run: str, within_s: float = 60.0) -> None:
    """Until the job runs. Raises UserError, with each party's reason, when it is refused or does not start in time."""
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        meta = to.get_job_meta(job_id)
        state = meta.get("status", "")
        if state.startswith(ENDED):
            detail = _refusals(meta)
            if not detail:  # FLARE writes the state first and the reasons after it
                time.sleep(1.0)
                detail = _refusals(to.get_job_meta(job_id))
            remedy = "Mend it, and submit again" if detail else "The server's log says why"
            raise UserError(f"run {run}", f"the job ended as {state}{': ' if detail else ''}{detail:.400}", remedy)
        if state == "RUNNING":
            return
        time.sleep(0.2)
    problem = f"the job has not started in {within_s:g} s"
    raise UserError(f"run {run}", problem, "Are enough hospitals there? It starts by itself when they are")


def _refusals(meta: dict) -> str:
    return "; ".join(line for line in meta.get("job_deploy_detail", []) if not line.endswith(": OK"))


def live_job(to: Session, run: str) -> tuple[str, bool] | None:
    """(job id, whether the server has a process for it) of the run's job that has not ended; None: there is none."""
    for job in to.list_jobs(name_prefix=run):
        if job["job_name"] == run and not job["status"].startswith(ENDED):
            running = {info.job_id for info in to.get_system_info().job_info or []}
            return job["job_id"], job["status"] != "RUNNING" or job["job_id"] in running
    return None


def registered(to: Session) -> list[str]:
    """The hospitals that the server knows at the moment."""
    return sorted(client.name for client in to.get_system_info().client_info)
