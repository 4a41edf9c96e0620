"""A hospital that was lost comes back into the running job, and one that fails does not end it.

FLARE 2.9.0 fails the whole job when one hospital's process ends, never starts a job at a hospital that has come back,
and leaves jobs of a killed server RUNNING for ever. This component of the server's own process mends the three with
FLARE's own functions; the names that it touches are internal, which is one reason why the version is pinned. It also
keeps the plan of each job before its process starts: the watchdog brings back what has a plan.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, RunProcessKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job, JobMetaKey
from nvflare.apis.job_scheduler_spec import DispatchInfo

from fedbone.engines.flare.admission import plan_of_app
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.run_folder import keep_plan
from fedbone.errors import UserError

PERIOD_S = 1.0
PAUSES_S = (0, 1, 5, 15, 60)  # before the next start at one hospital in one job: a crash loop must not fill its log


class Rejoin(FLComponent):
    """Watches the running jobs; FLARE makes it from the server's local configuration."""

    def __init__(self) -> None:
        super().__init__()
        self._lost: set[tuple[str, str]] = set()  # (job, hospital) whose process ended
        self._starts: dict[tuple[str, str], list[float]] = {}
        self._failing = threading.local()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begin when the server has started; keep the plan of a job that is about to start."""
        if event_type == EventType.JOB_DEPLOYED:
            self._keep_plan(fl_ctx.get_prop(FLContextKey.JOB_RUN_NUMBER))
        if event_type != EventType.SYSTEM_START:
            return
        engine = fl_ctx.get_engine()
        engine.job_runner.update_unfinished_jobs(fl_ctx)  # what a killed server left is not running any more
        self._absorb_failures(engine.job_runner)
        threading.Thread(target=self._watch, args=(engine,), daemon=True).start()

    def _keep_plan(self, job_id: str) -> None:
        """A job whose process is killed before it could write anything would be lost otherwise."""
        try:
            kit = Kit.load(Path.cwd())  # FLARE's processes work in their kit
            plan = plan_of_app(kit.folder / job_id / "app_server")
            keep_plan(kit.run_folder(plan.run), plan)
        except (UserError, OSError) as error:
            self.logger.error(f"the plan of job {job_id} is not kept: {error}")

    def _absorb_failures(self, runner) -> None:
        """A failure at one hospital is noted here; whether the round still counts is for its quorum to say."""
        resolve = runner.resolve_client_outcome

        def fail_run(job_id: str, process_return_code: int, fl_ctx: FLContext) -> str:
            self._failing.job = job_id
            self.logger.warning(f"job {job_id} goes on without a hospital that failed (code {process_return_code})")
            return ""

        def resolve_client_outcome(job_id: str, client_name: str) -> None:
            if getattr(self._failing, "job", None) == job_id:
                self._failing.job = None
                self._lost.add((job_id, client_name))
            resolve(job_id, client_name)

        runner.fail_run, runner.resolve_client_outcome = fail_run, resolve_client_outcome

    def _watch(self, engine) -> None:
        while True:
            time.sleep(PERIOD_S)
            try:
                for job_id, process in list(engine.run_processes.items()):
                    self._look_after(engine, job_id, process)
            except Exception as error:  # the watch goes on whatever one job's state is
                self.logger.error(f"looking after the hospitals failed: {type(error).__name__}: {error}")

    def _look_after(self, engine, job_id: str, process: dict) -> None:
        job = engine.job_runner.running_jobs.get(job_id)
        if job is None or process.get(RunProcessKey.PROCESS_FINISHED):
            return
        participants = process.get(RunProcessKey.PARTICIPANTS) or {}
        for client in engine.get_clients():
            known = client.token in participants
            if (not known or (job_id, client.name) in self._lost) and self._may_start(job_id, client.name):
                self._start(engine, job, process, client)

    def _may_start(self, job_id: str, name: str) -> bool:
        starts = self._starts.get((job_id, name), [])
        pause = PAUSES_S[min(len(starts), len(PAUSES_S) - 1)]
        return not starts or time.monotonic() - starts[-1] >= pause

    def _start(self, engine, job: Job, process: dict, client: Client) -> None:
        key = (job.job_id, client.name)
        self._starts.setdefault(key, []).append(time.monotonic())
        with engine.new_context() as fl_ctx:
            ready, token = engine.check_client_resources(job, {client.name: {}}, fl_ctx).get(client.name, (False, ""))
            if not ready:
                return
            self._deploy(engine, job, client, fl_ctx)
            self._lost.discard(key)
            others = {t: c for t, c in process[RunProcessKey.PARTICIPANTS].items() if c.name != client.name}
            process[RunProcessKey.PARTICIPANTS] = participants = {**others, client.token: client}
            job.meta[JobMetaKey.JOB_CLIENTS] = [c.to_dict() for c in participants.values()]
            with engine.job_runner.lock:
                engine.job_runner._pending_client_outcomes.setdefault(job.job_id, set()).add(client.name)
            engine.start_client_job(job, {client.name: DispatchInfo("app", {}, token)}, fl_ctx)
            self.logger.info(f"{client.name} is back in job {job.job_id}, start {len(self._starts[key])}")

    def _deploy(self, engine, job: Job, client: Client, fl_ctx: FLContext) -> None:
        """Send the job's configuration: a hospital that was not there at the beginning has none."""
        runner = engine.job_runner
        message = runner._make_deploy_message(job, job.get_application("app", fl_ctx), "app", fl_ctx)
        engine._send_admin_requests({client.token: message}, fl_ctx, timeout_secs=15)
