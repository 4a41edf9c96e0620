"""Login tokens at FLARE's doors: the hospital signs them, the server's own process checks them.

Both stand in the parties' local configuration, which no job can change. FLARE itself asks for a certificate of this
deployment only, and takes the sender's word for what kind of party it is; the token says that it also holds the login
key that is registered now. Two of FLARE 2.9.0's functions let a hospital in, registration and heartbeat; the gate
stands before both, under the one name that FLARE compares with the certificate and with its own signature.
"""

from __future__ import annotations

import os
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys, ClientType

from fedbone.custody.identity import login_token
from fedbone.engines.flare.kit import Kit
from fedbone.errors import UserError

PROPERTY = "fedbone_login"


def _kit() -> Kit:
    return Kit.load(Path.cwd())  # FLARE's processes work in their kit


class LoginSender(FLComponent):
    """In a hospital: a fresh token whenever it registers, and with each heartbeat, which may have to do the same."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Put the token where the server finds it."""
        if event_type in (EventType.BEFORE_CLIENT_REGISTER, EventType.BEFORE_CLIENT_HEARTBEAT):
            kit = _kit()
            fl_ctx.set_prop(PROPERTY, login_token(kit.login_key(), kit.project), private=False, sticky=False)


class LoginGate(FLComponent):
    """At the server: nobody is a hospital here without a login by a key that is registered at this moment.

    A session (FLARE's own token) holds as long as the key that began it. Administrators are not hospitals and come in
    by certificate and role alone: they can always get in to mend things.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sessions: dict[tuple[str, str], str] = {}  # (hospital, FLARE's token): id of the login key
        self._refused: set[tuple[str, str]] = set()  # told once: a heartbeat comes every few seconds

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Stand before the server's doors when it starts; a server without the gate must not run."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            try:
                self.guard(fl_ctx.get_engine().client_manager)
            except Exception as error:  # FLARE would go on without
                self.logger.critical(f"the login gate cannot be set up: {type(error).__name__}: {error}")
                os._exit(1)

    def guard(self, manager) -> None:
        """Put the check before ``authenticate`` and ``heartbeat`` of FLARE's client manager."""
        authenticate, heartbeat = manager.authenticate, manager.heartbeat

        def guarded_authenticate(request: Message, fl_ctx: FLContext):
            name = request.get_header(CellMessageHeaderKeys.CLIENT_NAME)
            kid = self._admit(name, request.get_header(CellMessageHeaderKeys.CLIENT_TYPE), fl_ctx)
            client = authenticate(request, fl_ctx)
            if client and kid:
                self._enter(name, client.token, kid)
            return client

        def guarded_heartbeat(token: str, client_name: str, client_fqcn: str, fl_ctx: FLContext) -> bool:
            if not self._still_in(client_name, token, fl_ctx):
                if token in manager.clients:
                    manager.remove_client(token)
                fl_ctx.set_prop(FLContextKey.UNAUTHENTICATED, f"{client_name} is not logged in", sticky=False)
                return False
            return heartbeat(token, client_name, client_fqcn, fl_ctx)

        manager.authenticate, manager.heartbeat = guarded_authenticate, guarded_heartbeat
        for token in list(manager.clients):  # who came before the gate stood
            manager.remove_client(token)

    def _admit(self, name: str, kind: str, fl_ctx: FLContext) -> str | None:
        """The id of the login key; None for an administrator. Raises NotAuthenticated, the exception FLARE heeds."""
        try:
            if kind == ClientType.ADMIN and name not in _kit().hospitals:
                return None
            if kind != ClientType.REGULAR:
                raise UserError(f"login of {name}", f"it comes as {kind!r:.40}", "Only hospitals log in here")
            return self._login(name, fl_ctx)
        except Exception as error:  # whatever went wrong, also on our side: FLARE would let the hospital in
            self.logger.error(f"{type(error).__name__}: {error}")
            if isinstance(error, UserError):
                self._audit_refusal(name, str(error))
            raise NotAuthenticated(str(error)) from error

    def _still_in(self, name: str, token: str, fl_ctx: FLContext) -> bool:
        """Whether the session holds, or, after a restart of the server or a change of keys, a login begins it again."""
        session = name, token
        try:
            entry = _kit().identity_check().registry.entry(self._sessions.get(session, ""))
            if entry is None or entry["state"] != "active":
                self._enter(name, token, self._login(name, fl_ctx))
            self._refused.discard(session)
            return True
        except Exception as error:  # on any doubt nobody is in
            self._sessions.pop(session, None)
            if session not in self._refused:
                self._refused.add(session)
                self.logger.error(f"heartbeat of {name}: {type(error).__name__}: {error}")
                if isinstance(error, UserError):
                    self._audit_refusal(name, str(error))
            return False

    def _login(self, name: str, fl_ctx: FLContext) -> str:
        peer = fl_ctx.get_peer_context()
        return _kit().identity_check().login(peer.get_prop(PROPERTY) if peer else None, name)

    def _enter(self, name: str, token: str, kid: str) -> None:
        self._sessions[name, token] = kid
        _kit().audit().append("login", site=name)

    def _audit_refusal(self, name: str, detail: str) -> None:
        kit = _kit()
        # a stranger calls itself what it likes: no name of its own stands where hospitals' names do
        known = {"site": name} if name in kit.hospitals else {}
        kit.audit().append("refusal", outcome="refused", detail=detail, **known)
