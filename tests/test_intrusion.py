"""What an intruder's own output must say before a server is said to have kept it out."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedbone.engines.flare import intrusion
from fedbone.engines.flare.intrusion import noted, require_turned_away
from fedbone.engines.flare.kit import Kit
from fedbone.errors import UserError
from tests.kits import make_kits

REJECTED = "2026 - Authenticator - ERROR - registration rejected: register_client unauthenticated\n"
REGISTERED = "2026 - FederatedClient - INFO - Successfully registered client:north for project fedbone.\n"


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]) as running:
        yield running
        running.kill()


@pytest.mark.parametrize(
    ("said", "problem"),
    [(REGISTERED, "was let in"), (REJECTED + REGISTERED, "was let in"), ("", r"not turned away \(not within 0.5 s")],
)
def test_only_one_who_was_turned_away_is_kept_out(tmp_path, monkeypatch, process, said, problem):
    monkeypatch.setattr(intrusion, "PATIENCE_S", 0.5)
    output = tmp_path / "intruder.log"
    output.write_text(f"starting\n{said}")
    with pytest.raises(UserError, match=problem):
        require_turned_away(output, process)


def test_one_that_ended_before_it_was_turned_away_proves_nothing(tmp_path, process):
    (tmp_path / "log").touch()
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="its process ended first"):
        require_turned_away(tmp_path / "log", process)


def test_one_that_was_turned_away_is_kept_out(tmp_path, process):
    (tmp_path / "log").write_text(REJECTED)
    require_turned_away(tmp_path / "log", process)


def test_what_turned_it_away_has_to_be_the_login_gate(tmp_path):
    server = Kit.load(make_kits(tmp_path / "kits") / "server")
    server.audit().append("refusal", outcome="refused", detail="the key abc is not registered")
    assert noted(server, "abc") == "the key abc is not registered"
    with pytest.raises(UserError, match="noted no refusal"):
        noted(server, "def")
