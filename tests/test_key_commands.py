"""Login keys are ended and exchanged by commands, each on the machine of its owner."""

from __future__ import annotations

import argparse
import json

import pytest

from fedbone.custody.audit_log import read_log, verify_log
from fedbone.custody.identity import login_token
from fedbone.engines.flare import machine
from fedbone.engines.flare.command import deploy_options
from fedbone.engines.flare.kit import Kit, load_parties
from fedbone.errors import UserError
from tests.kits import make_kits


@pytest.fixture
def kits(tmp_path):
    return make_kits(tmp_path / "my kits")


def deploy(*words: object) -> int:
    parser = argparse.ArgumentParser()
    deploy_options(parser)
    args = parser.parse_args([str(word) for word in words])
    return args.action(args)


def let_in(server: Kit, hospital: Kit) -> None:
    server.identity_check().login(login_token(hospital.login_key(), hospital.project), hospital.name)


def events(server: Kit, *names: str) -> list[dict]:
    return [entry for entry in read_log(server.own / "audit.jsonl") if entry["event"] in names]


def test_a_revoked_hospital_is_shut_out_and_its_new_key_lets_it_in(kits, tmp_path, capsys):
    server, north, south = load_parties(kits)
    old = north.login_key().kid
    assert deploy("revoke", kits / "server", "north", "--reason", "Dr Who's laptop was stolen") == 0
    with pytest.raises(UserError, match="was revoked"):
        let_in(server, north)
    let_in(server, south)
    public = tmp_path / "public.json"
    assert deploy("newkey", kits / "north", "--out", public) == 0
    new = north.login_key().kid
    assert new != old
    with pytest.raises(UserError, match="not registered"):
        let_in(server, north)
    assert deploy("register", kits / "server", public) == 0
    let_in(server, north)
    noted = [(entry["event"], entry["site"], entry["kid"]) for entry in events(server, "revoke", "register")]
    assert noted == [("revoke", "north", old), ("register", "north", new)]
    assert "Who" not in (server.own / "audit.jsonl").read_text()
    verify_log(server.own / "audit.jsonl", server.audit_public())
    assert new in capsys.readouterr().out


def test_a_key_is_exchanged_without_a_theft_and_the_old_one_ended_alone(kits, capsys):
    server, north, _ = load_parties(kits)
    old = north.login_key().kid
    deploy("newkey", kits / "north")
    deploy("register", kits / "server", north.own / "login_public.json")
    assert f"--key={old}" in capsys.readouterr().out
    deploy("revoke", kits / "server", "north", f"--key={old}", "--reason", "exchanged")
    let_in(server, north)
    assert server.identity_check().registry.holding("north") == [north.login_key().kid]


def test_a_new_key_is_secret_and_its_public_part_holds_none_of_it(kits, capsys):
    north = Kit.load(kits / "north")
    (north.own / "login.key.new").write_text("of a call that was killed")
    deploy("newkey", kits / "north")
    assert (north.own / "login.key").stat().st_mode & 0o777 == 0o600
    entry = json.loads((north.own / "login_public.json").read_bytes())
    assert entry == north.login_key().public_entry() == json.loads(capsys.readouterr().out.splitlines()[0])
    assert "d" not in entry["public"]
    assert not list(north.own.glob("*.new"))


def test_the_old_key_stays_when_the_new_one_cannot_be_told(kits):
    north = Kit.load(kits / "north")
    old = north.login_key().kid
    with pytest.raises(OSError, match="directory"):
        deploy("newkey", kits / "north", "--out", kits / "north")
    assert north.login_key().kid == old


def test_what_makes_no_sense_is_refused(kits, tmp_path):
    public = tmp_path / "public.json"
    public.write_text(json.dumps({"site": "west", "public": {}}))
    with pytest.raises(UserError, match="no hospital of this name"):
        deploy("register", kits / "server", public)
    with pytest.raises(UserError, match="no hospital of this name"):
        deploy("revoke", kits / "server", "west", "--reason", "x")
    with pytest.raises(UserError, match="no such login key"):
        deploy("revoke", kits / "server", "north", "--reason", "x", "--key", "unknown")
    with pytest.raises(UserError, match="kit of north"):
        deploy("revoke", kits / "north", "north", "--reason", "x")
    with pytest.raises(UserError, match="no hospital's kit"):
        deploy("newkey", kits / "server")


def test_up_does_not_wait_for_a_hospital_without_a_key(kits, monkeypatch):
    deploy("revoke", kits, "north", "--reason", "stolen")
    awaited, said = [], []
    monkeypatch.setattr(machine, "port_problem", lambda kit: None)
    monkeypatch.setattr(machine, "_start", lambda kit: None)
    monkeypatch.setattr(machine, "_await", lambda _, parties, *more: awaited.extend(kit.name for kit in parties))
    machine.up(kits, said.append)
    assert awaited == ["server", "south"]
    assert any(line.startswith("north: the server lets it in when") for line in said)
