"""The login at FLARE's two doors, with FLARE's own client manager and stand-ins for its messages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.private.defs import CellMessageHeaderKeys, ClientType
from nvflare.private.fed.server.client_manager import ClientManager

from fedbone.custody.audit_log import read_log
from fedbone.custody.identity import LoginKey, Registry
from fedbone.engines.flare import security
from fedbone.engines.flare.kit import load_parties
from fedbone.engines.flare.security import PROPERTY, LoginGate, LoginSender
from tests.kits import make_kits


class Doors:
    """FLARE's client manager behind the gate; its check of the certificate is left out: every name fits."""

    def __init__(self, server, monkeypatch) -> None:
        self.server, self._patch, self.count = server, monkeypatch, 0
        self.open()

    def open(self) -> None:
        """As at a start of the server: nobody is in."""
        self.manager = ClientManager(project_name="p", min_num_clients=1, max_num_clients=9)
        self.manager.login_client = lambda request, *_: self._client(request)
        LoginGate().guard(self.manager)

    def _client(self, request) -> Client:
        name = request.get_header(CellMessageHeaderKeys.CLIENT_NAME)
        for token in [token for token, client in self.manager.clients.items() if client.name == name]:
            self.manager.clients.pop(token)  # as FLARE does for whoever has the certificate
        self.count += 1
        return Client(name, f"session-{self.count}")

    def register(self, site: str, token: str | None, kind: str = ClientType.REGULAR, says: str | None = None):
        """says: the name that the sender gives itself in its context, which no certificate vouches for."""
        self._patch.chdir(self.server.folder)
        headers = {CellMessageHeaderKeys.CLIENT_TYPE: kind, CellMessageHeaderKeys.CLIENT_NAME: site}
        headers[CellMessageHeaderKeys.CLIENT_IP] = "127.0.0.1"
        return self.manager.authenticate(SimpleNamespace(get_header=headers.get), context(says or site, token))

    def heartbeat(self, site: str, session: str, token: str | None) -> str | None:
        """Why it is refused; None when it is not."""
        self._patch.chdir(self.server.folder)
        fl_ctx = context(site, token)
        self.manager.heartbeat(session, site, site, fl_ctx)
        return fl_ctx.get_prop(FLContextKey.UNAUTHENTICATED)

    def inside(self) -> list[str]:
        return sorted(client.name for client in self.manager.clients.values())


def context(says: str, token: str | None) -> FLContext:
    fl_ctx, peer = FLContext(), FLContext()
    peer.get_identity_name = lambda *_: says
    if token:
        peer.set_prop(PROPERTY, token, private=True, sticky=False)
    fl_ctx.set_peer_context(peer)
    return fl_ctx


@pytest.fixture
def parties(tmp_path):
    return load_parties(make_kits(tmp_path / "my kits"))


@pytest.fixture
def doors(parties, monkeypatch):
    return Doors(parties[0], monkeypatch)


def token_of(kit, monkeypatch, event: str = EventType.BEFORE_CLIENT_REGISTER) -> str:
    monkeypatch.chdir(kit.folder)
    fl_ctx = FLContext()
    LoginSender().handle_event(event, fl_ctx)
    return fl_ctx.get_prop(PROPERTY)


def events(server) -> list[tuple[str, str]]:
    return [(entry["event"], entry["site"]) for entry in read_log(server.own / "audit.jsonl") if "site" in entry]


def test_a_hospital_gets_in_with_its_token_and_stays(parties, doors, monkeypatch):
    server, north, _ = parties
    client = doors.register("north", token_of(north, monkeypatch))
    assert events(server) == [("login", "north")]
    assert [doors.heartbeat("north", client.token, None) for _ in range(3)] == [None] * 3
    assert doors.inside() == ["north"]


@pytest.mark.parametrize("kind", [ClientType.REGULAR, ClientType.RELAY, ClientType.ADMIN, "", None, "Regular"])
def test_it_does_not_get_in_without_whatever_it_calls_itself_and_the_real_one_stays(parties, doors, monkeypatch, kind):
    server, north, _ = parties
    real = doors.register("north", token_of(north, monkeypatch))
    with pytest.raises(NotAuthenticated):
        doors.register("north", None, kind)
    assert events(server) == [("login", "north"), ("refusal", "north")]
    assert list(doors.manager.clients) == [real.token]


def test_a_session_that_no_login_began_ends_at_its_first_heartbeat(parties, doors, monkeypatch):
    """FLARE takes any token with its own signature for a hospital's, also one that it gave to a relay."""
    for _ in range(3):
        assert doors.heartbeat("north", "stolen", None)
    doors.manager.clients["stolen"] = Client("north", "stolen")
    assert doors.heartbeat("north", "stolen", None)
    assert doors.inside() == []
    assert events(parties[0]) == [("refusal", "north")]  # told once
    assert doors.heartbeat("north", "stolen", token_of(parties[2], monkeypatch))  # nor with another's key


def test_the_key_has_to_be_that_of_the_name_on_the_certificate(parties, doors, monkeypatch):
    server, north, _ = parties
    with pytest.raises(NotAuthenticated):
        doors.register("south", token_of(north, monkeypatch), says="north")
    assert events(server) == [("refusal", "south")]


def test_nor_twice_with_the_same_nor_under_another_name(parties, doors, monkeypatch):
    token = token_of(parties[1], monkeypatch)
    with pytest.raises(NotAuthenticated):
        doors.register("south", token)
    doors.register("north", token)
    with pytest.raises(NotAuthenticated):
        doors.register("north", token)


def test_a_revoked_key_gets_nobody_in_and_a_new_one_does(parties, doors, monkeypatch):
    server, north, _ = parties
    registry = Registry(server.own / "registry.json")
    registry.revoke(north.login_key().kid, "laptop lost")
    with pytest.raises(NotAuthenticated, match="revoked"):
        doors.register("north", token_of(north, monkeypatch))
    new = LoginKey.create("north")
    registry.add(new.public_entry())
    (north.own / "login.key").unlink()
    new.save(north.own / "login.key")
    doors.register("north", token_of(north, monkeypatch))


def test_a_revoked_hospital_is_thrown_out_at_its_next_heartbeat_and_a_new_key_lets_it_back(parties, doors, monkeypatch):
    server, north, _ = parties
    session = doors.register("north", token_of(north, monkeypatch)).token
    registry = Registry(server.own / "registry.json")
    stolen = token_of(north, monkeypatch)
    registry.revoke(north.login_key().kid, "laptop lost")
    assert doors.heartbeat("north", session, stolen)
    assert doors.inside() == []
    new = LoginKey.create("north")
    registry.add(new.public_entry())
    assert doors.heartbeat("north", session, stolen)  # the thief's session, with the old key
    (north.own / "login.key").unlink()
    new.save(north.own / "login.key")
    assert doors.heartbeat("north", session, token_of(north, monkeypatch, EventType.BEFORE_CLIENT_HEARTBEAT)) is None
    assert doors.inside() == ["north"]


def test_after_a_restart_of_the_server_a_heartbeat_logs_in_again_and_a_revoked_one_does_not(
    parties, doors, monkeypatch
):
    server, north, south = parties
    sessions = {kit.name: doors.register(kit.name, token_of(kit, monkeypatch)).token for kit in (north, south)}
    Registry(server.own / "registry.json").revoke(south.login_key().kid, "laptop lost")
    doors.open()
    beats = [doors.heartbeat(kit.name, sessions[kit.name], token_of(kit, monkeypatch)) for kit in (north, south)]
    assert [bool(refused) for refused in beats] == [False, True]
    assert doors.inside() == ["north"]


def test_whatever_breaks_at_the_server_lets_nobody_in(parties, doors, monkeypatch):
    """FLARE would take any other exception for a yes."""
    server, north, _ = parties
    session = doors.register("north", token_of(north, monkeypatch)).token
    token = token_of(north, monkeypatch)
    (server.own / "registry.json").write_text("{")
    with pytest.raises(NotAuthenticated):
        doors.register("north", token)
    assert doors.heartbeat("north", session, token)
    assert doors.inside() == []


def test_the_administrator_is_never_locked_out(parties, doors):
    (parties[0].own / "registry.json").write_text("{")
    assert doors.register("admin@fedbone.org", None, kind=ClientType.ADMIN).name == "admin@fedbone.org"
    assert doors.inside() == []


def test_who_came_before_the_gate_stood_is_out(parties, monkeypatch):
    manager = ClientManager(project_name="p", min_num_clients=1, max_num_clients=9)
    manager.clients["early"] = Client("north", "early")
    monkeypatch.chdir(parties[0].folder)
    fl_ctx = FLContext()
    fl_ctx.get_engine = lambda: SimpleNamespace(client_manager=manager)
    LoginGate().handle_event(EventType.SYSTEM_BOOTSTRAP, fl_ctx)
    assert manager.clients == {}
    assert manager.heartbeat.__name__ == "guarded_heartbeat"


def test_a_server_whose_gate_cannot_be_set_up_does_not_run(monkeypatch):
    ended = []
    monkeypatch.setattr(security.os, "_exit", ended.append)
    fl_ctx = FLContext()
    fl_ctx.get_engine = lambda: None
    LoginGate().handle_event(EventType.SYSTEM_BOOTSTRAP, fl_ctx)
    assert ended == [1]


def test_other_events_mean_nothing_to_them(parties, monkeypatch):
    monkeypatch.chdir(parties[0].folder)
    fl_ctx = FLContext()
    for component in (LoginGate(), LoginSender()):
        component.handle_event(EventType.START_RUN, fl_ctx)
    assert fl_ctx.get_prop(PROPERTY) is None
