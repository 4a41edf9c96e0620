"""A hospital's part of a job in FLARE: it carries messages to and from ``fedbone.engines.flare.hospital_side``."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from fedbone.custody.identity import sign_update
from fedbone.engines.flare.hospital_side import HospitalSide
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.plan import Plan


class HospitalExecutor(Executor):
    """Answers the server's questions of one run; FLARE makes it from the job's configuration."""

    def __init__(self, plan: str) -> None:
        super().__init__()
        self._plan, self._side = Plan.from_json(plan), None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Read the films as soon as the job starts, so that the first round need not wait for them."""
        if event_type == EventType.START_RUN:
            self._kit = Kit.load(Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir()))
            self._side = HospitalSide(self._kit, self._plan)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """The signed answer. An error stays here, in the hospital's own log: its text could quote films."""
        try:
            index, answer = self._side.answer(task_name, shareable.get("message"))
            digest, key = hashlib.sha256(answer).hexdigest(), self._kit.login_key()  # it may be exchanged in a run
            token = sign_update(key, self._kit.project, self._plan.run, index, digest)
        except Exception as error:
            self.log_exception(fl_ctx, f"task {task_name!r} failed: {error}")
            self._kit.audit().append("refusal", run=self._plan.run, outcome="failed", detail=type(error).__name__)
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        return Shareable({"message": answer, "token": token})
