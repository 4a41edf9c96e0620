"""The server's part of a job in FLARE: k of n hospitals a round, each round on the disk before the next begins."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from nvflare.apis.client import Client
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fedbone.custody.audit_log import AuditLog
from fedbone.engines.flare.ask import Ask, Stopped
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.plan import Plan
from fedbone.engines.flare.run_folder import RunFolder
from fedbone.engines.flare.server import rounds_of


class Rounds(Controller):
    """Runs the rounds of ``plan`` (its JSON) that are not finished yet; FLARE makes it from the job's configuration."""

    def __init__(self, plan: str) -> None:
        super().__init__(task_check_period=0.05)
        self._plan = Plan.from_json(plan)

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Nothing: everything happens in ``control_flow``, whose errors FLARE reports."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """All rounds; an error ends the job, and the watchdog starts another one from the last finished round."""
        kit = Kit.load(Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir()))
        audit = kit.audit()
        ask = Ask(self, self._plan, kit.identity_check(), audit, fl_ctx, abort_signal)
        with ExitStack() as held:
            folder = None
            try:
                folder = held.enter_context(RunFolder(kit, self._plan, audit).opened())
                rounds_of(kit, self._plan, folder).run(ask)
            except Stopped:
                folder.tell("stopped")
                raise
            except Exception as error:
                self._note_failure(audit, folder, error, fl_ctx)
                raise

    def _note_failure(self, audit: AuditLog, folder: RunFolder | None, error: Exception, fl_ctx: FLContext) -> None:
        """In the log first: that the disk is full may be what ended the job.

        Without ``folder`` another job or another plan holds it, and its status is not ours to write.
        """
        self.log_error(fl_ctx, f"run {self._plan.run} cannot go on in this job: {error}")
        try:
            audit.append("stop", run=self._plan.run, outcome="failed", detail=str(error)[:250])
            if folder:
                folder.tell("failed", problem=str(error)[:500])
        except OSError as full:
            self.log_error(fl_ctx, f"run {self._plan.run}: that could not be noted: {full}")

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing is left open: a round counts when it is on the disk."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """An answer after its round was closed; it does not count."""
        self.log_warning(fl_ctx, f"{client.name}: its answer to {task_name!r} came after the round was closed")
