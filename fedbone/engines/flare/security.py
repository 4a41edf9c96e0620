"""Login tokens at FLARE's registration: the hospital signs one, the server's own process checks it.

Both stand in the parties' local configuration, which no job can change. Mutual TLS has said before that the party has a
certificate of this deployment; the token says that it also holds the login key that is registered now.
"""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.private.defs import ClientType

from fedbone.custody.identity import login_token
from fedbone.engines.flare.kit import Kit
from fedbone.errors import UserError

PROPERTY = "fedbone_login"


def _kit() -> Kit:
    return Kit.load(Path.cwd())  # FLARE's processes work in their kit


class LoginSender(FLComponent):
    """In a hospital: a fresh token whenever it registers."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Put the token where the server finds it."""
        if event_type == EventType.BEFORE_CLIENT_REGISTER:
            kit = _kit()
            fl_ctx.set_prop(PROPERTY, login_token(kit.login_key(), kit.project), private=False, sticky=False)


class LoginGate(FLComponent):
    """At the server: no hospital registers, or comes back by its heartbeat, without a key that is registered now.

    Administrators are not hospitals and register by certificate and role alone: they can always get in to mend things.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Raises NotAuthenticated, the one exception that FLARE takes for a no."""
        if event_type == EventType.CLIENT_HEARTBEAT_RECEIVED:
            self._heartbeat(fl_ctx)
        hospital = fl_ctx.get_prop(FLContextKey.CLIENT_TYPE) == ClientType.REGULAR
        if event_type == EventType.CLIENT_REGISTER_RECEIVED and hospital:
            self._register(fl_ctx)

    def _register(self, fl_ctx: FLContext) -> None:
        peer = fl_ctx.get_peer_context()
        site = peer.get_identity_name()
        try:
            self._require_login(peer.get_prop(PROPERTY), site)
        except Exception as error:  # whatever went wrong, also on our side: FLARE would let the hospital in
            self.log_error(fl_ctx, f"{type(error).__name__}: {error}", fire_event=False)
            raise NotAuthenticated(str(error)) from error

    def _require_login(self, token: str | None, site: str) -> None:
        kit = _kit()
        try:
            kit.identity_check().login(token, site)
        except UserError as error:
            # a stranger calls itself what it likes: no name of its own stands where hospitals' names do
            known = {"site": site} if site in kit.hospitals else {}
            kit.audit().append("refusal", outcome="refused", detail=str(error), **known)
            raise
        kit.audit().append("login", site=site)

    def _heartbeat(self, fl_ctx: FLContext) -> None:
        """After a restart of the server FLARE takes a heartbeat for a login: not of a hospital whose key is revoked."""
        peer = fl_ctx.get_peer_context()
        site = peer.get_identity_name() if peer else None
        if site and not _kit().identity_check().registry.active(site):
            fl_ctx.set_prop(FLContextKey.UNAUTHENTICATED, f"no key of {site} is registered", sticky=False)
