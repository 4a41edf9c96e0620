"""The login at FLARE's registration, with stand-ins for FLARE's contexts."""

from __future__ import annotations

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.private.defs import ClientType

from fedbone.custody.audit_log import read_log
from fedbone.custody.identity import LoginKey, Registry
from fedbone.engines.flare.kit import load_parties
from fedbone.engines.flare.security import PROPERTY, LoginGate, LoginSender
from tests.kits import make_kits


@pytest.fixture
def parties(tmp_path):
    return load_parties(make_kits(tmp_path / "my kits"))


def token_of(kit, monkeypatch) -> str:
    monkeypatch.chdir(kit.folder)
    fl_ctx = FLContext()
    LoginSender().handle_event(EventType.BEFORE_CLIENT_REGISTER, fl_ctx)
    return fl_ctx.get_prop(PROPERTY)


def register(server, site: str, token: str | None, monkeypatch, kind: str = ClientType.REGULAR) -> None:
    monkeypatch.chdir(server.folder)
    fl_ctx = FLContext()
    fl_ctx.set_prop(FLContextKey.CLIENT_TYPE, kind, private=True, sticky=False)
    props = {PROPERTY: token}
    fl_ctx.set_peer_context(_peer(site, props))
    LoginGate().handle_event(EventType.CLIENT_REGISTER_RECEIVED, fl_ctx)


def _peer(site: str, props: dict) -> FLContext:
    peer = FLContext()
    peer.get_identity_name = lambda *_: site
    peer.get_prop = lambda key, default=None: props.get(key, default)
    return peer


def events(server) -> list[tuple[str, str]]:
    return [(entry["event"], entry["site"]) for entry in read_log(server.own / "audit.jsonl") if "site" in entry]


def test_a_hospital_gets_in_with_its_token(parties, monkeypatch):
    server, north, _ = parties
    register(server, "north", token_of(north, monkeypatch), monkeypatch)
    assert events(server) == [("login", "north")]


def test_it_does_not_get_in_without(parties, monkeypatch):
    server, _, _ = parties
    with pytest.raises(NotAuthenticated, match="no token"):
        register(server, "north", None, monkeypatch)
    assert events(server) == [("refusal", "north")]


def test_nor_twice_with_the_same_nor_under_another_name(parties, monkeypatch):
    server, north, _ = parties
    token = token_of(north, monkeypatch)
    with pytest.raises(NotAuthenticated):
        register(server, "south", token, monkeypatch)
    register(server, "north", token, monkeypatch)
    with pytest.raises(NotAuthenticated):
        register(server, "north", token, monkeypatch)


def test_a_revoked_key_gets_nobody_in_and_a_new_one_does(parties, monkeypatch):
    server, north, _ = parties
    registry = Registry(server.own / "registry.json")
    registry.revoke(north.login_key().kid, "laptop lost")
    with pytest.raises(NotAuthenticated, match="revoked"):
        register(server, "north", token_of(north, monkeypatch), monkeypatch)
    new = LoginKey.create("north")
    registry.add(new.public_entry())
    (north.own / "login.key").unlink()
    new.save(north.own / "login.key")
    register(server, "north", token_of(north, monkeypatch), monkeypatch)


def test_whatever_breaks_at_the_server_lets_nobody_in(parties, monkeypatch):
    """FLARE would take any other exception for a yes."""
    server, north, _ = parties
    token = token_of(north, monkeypatch)
    (server.own / "registry.json").write_text("{")
    with pytest.raises(NotAuthenticated):
        register(server, "north", token, monkeypatch)


def test_the_administrator_is_never_locked_out(parties, monkeypatch):
    server, _, _ = parties
    (server.own / "registry.json").write_text("{")
    register(server, "admin@fedbone.org", None, monkeypatch, kind=ClientType.ADMIN)


def test_a_revoked_hospital_does_not_come_back_by_its_heartbeat(parties, monkeypatch):
    server, north, _ = parties
    monkeypatch.chdir(server.folder)
    for revoked in (False, True):
        if revoked:
            Registry(server.own / "registry.json").revoke(north.login_key().kid, "laptop lost")
        fl_ctx = FLContext()
        fl_ctx.set_peer_context(_peer("north", {}))
        LoginGate().handle_event(EventType.CLIENT_HEARTBEAT_RECEIVED, fl_ctx)
        assert bool(fl_ctx.get_prop(FLContextKey.UNAUTHENTICATED)) is revoked


def test_other_events_mean_nothing_to_them(parties, monkeypatch):
    monkeypatch.chdir(parties[0].folder)
    fl_ctx = FLContext()
    for component in (LoginGate(), LoginSender()):
        component.handle_event(EventType.START_RUN, fl_ctx)
    assert fl_ctx.get_prop(PROPERTY) is None
