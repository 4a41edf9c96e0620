"""Asking hospitals over FLARE: who is asked, whose answer counts, and when the waiting ends."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fedbone.custody.audit_log import AuditLog
from fedbone.custody.identity import IdentityCheck
from fedbone.engines.flare.plan import POLL_S, Plan
from fedbone.errors import UserError

TOOK_PART = "took part"
Accept = Callable[[str, bytes], None]  # (hospital, message); raises UserError or ValueError for what must not count


class Stopped(RuntimeError):
    """FLARE ended the job: aborted by a person, or the server shuts down."""


class _Round:
    """The answers to one question, which arrive in FLARE's threads."""

    def __init__(self, names: Iterable[str]) -> None:
        self.lock, self.open, self.enough_at = threading.Lock(), True, None
        self.outcome: dict[str, str] = dict.fromkeys(names, "")

    def waiting(self) -> bool:
        return not all(self.outcome.values())


class Ask:
    """``ask(task, index, message, names, enough, accept)``: see ``__call__``. One for each job."""

    def __init__(
        self,
        controller: Controller,
        plan: Plan,
        identity: IdentityCheck,
        audit: AuditLog,
        fl_ctx: FLContext,
        abort: Signal,
    ) -> None:
        self._controller, self._plan, self._identity, self._audit = controller, plan, identity, audit
        self._fl_ctx, self._abort = fl_ctx, abort

    def __call__(
        self, task: str, index: int, message: bytes, model: str, names: list[str], enough: int, accept: Accept
    ) -> dict[str, str]:
        """By hospital, that it took part, or why not.

        model: sha256 of the model that ``message`` carries or is about, for the audit log. The waiting ends when all
        have answered, ``grace_s`` after ``enough`` of them were accepted, or after ``deadline_s``; then nothing more
        is accepted. Raises Stopped.
        """
        there = {name: self._identity.registry.active(name) for name in names}
        state = _Round(name for name, active in there.items() if active)

        def sending(client_task: ClientTask, fl_ctx: FLContext) -> None:
            # before it leaves: what is not noted is not sent
            self._note("pull", client_task.client.name, index, model, task)

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            self._receive(state, client_task, index, accept, enough)

        data = Shareable({"message": message})
        seconds = int(self._plan.deadline_s) + 2
        question = Task(task, data, timeout=seconds, before_task_sent_cb=sending, result_received_cb=received)
        targets = list(state.outcome)
        if targets:
            self._controller.broadcast(question, self._fl_ctx, targets, min_responses=len(targets))
        self._wait(state, time.monotonic() + self._plan.deadline_s)
        self._controller.cancel_all_tasks(fl_ctx=self._fl_ctx)  # a silent hospital must not hold the next round
        enough_came = state.enough_at is not None
        waited = f"{self._plan.grace_s:g} s after enough others" if enough_came else f"{self._plan.deadline_s:g} s"
        late = {name: f"late: no answer within {waited}" for name, outcome in state.outcome.items() if not outcome}
        revoked = {name: "not asked: its key is revoked" for name, active in there.items() if not active}
        for name, why in (late | revoked).items():
            self._controller.log_warning(self._fl_ctx, f"round {index}: {name} {why}")
            self._note("refusal", name, index, "", why, outcome="left out")
        return {name: late.get(name) or revoked.get(name) or state.outcome[name] for name in names}

    def _wait(self, state: _Round, deadline: float) -> None:
        synced = time.monotonic()
        while True:
            if self._abort.triggered:
                raise Stopped("the job was stopped")
            with state.lock:
                now = time.monotonic()
                graced = state.enough_at is not None and now - state.enough_at >= self._plan.grace_s
                if not state.waiting() or graced or now >= deadline:
                    state.open = False
                    return
            if now - synced > 1.0:
                synced = now
                self._learn_new_tokens()
            time.sleep(POLL_S / 2)

    def _learn_new_tokens(self) -> None:
        """A hospital that was restarted has a new token, which only FLARE's parent process knows."""
        engine = self._fl_ctx.get_engine()
        clients = engine._retrieve_clients_data(self._fl_ctx.get_job_id())
        if clients:
            engine.client_manager.set_clients(clients)

    def _receive(self, state: _Round, client_task: ClientTask, index: int, accept: Accept, enough: int) -> None:
        name, result = client_task.client.name, client_task.result
        with state.lock:
            if not state.open or state.outcome.get(name):
                self._note("refusal", name, index, "", "late, or twice", outcome="refused")
                return
            try:
                message = self._checked(name, index, result)
                accept(name, message)
                state.outcome[name] = TOOK_PART
                self._note("push", name, index, hashlib.sha256(message).hexdigest(), client_task.task.name)
            except (UserError, ValueError) as error:
                state.outcome[name] = f"refused: {getattr(error, 'problem', None) or error}"
                self._controller.log_error(self._fl_ctx, f"round {index}: {name} {state.outcome[name]}")
                self._note("refusal", name, index, "", state.outcome[name][:250], outcome="refused")
            if sum(outcome == TOOK_PART for outcome in state.outcome.values()) == enough and state.enough_at is None:
                state.enough_at = time.monotonic()

    def _checked(self, name: str, index: int, result: Shareable | None) -> bytes:
        """The message of an answer whose signature is that hospital's, for this run and round."""
        code = result.get_return_code() if result is not None else ReturnCode.EMPTY_RESULT
        if code != ReturnCode.OK:
            raise UserError(name, f"it failed ({code})", "Its own log says why")
        message, token = result.get("message"), result.get("token")
        if not isinstance(message, bytes):
            raise UserError(name, "its answer carries no message", "Give both sides the same version of fedbone")
        digest = hashlib.sha256(message).hexdigest()
        try:
            self._identity.update(token, name, self._plan.run, index, digest)
        except OSError as error:  # uncaught, it would leave the round waiting for an answer that has come
            problem = f"its token cannot be noted here ({error.strerror}: {error.filename})"
            raise UserError(name, problem, "Look at the server's disk") from error
        return message

    def _note(self, event: str, site: str, index: int, model: str, detail: str, outcome: str = "ok") -> None:
        self._audit.append(
            event, run=self._plan.run, round=index, model=model, site=site, detail=detail, outcome=outcome
        )
