"""All parties of a deployment on one machine, for trying it: up and down."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedbone.engines.flare.kit import ADMIN, Kit, load_parties
from fedbone.engines.flare.preflight import port_problem
from fedbone.engines.flare.processes import end_processes, environment, party_processes, supervisors
from fedbone.errors import UserError
from fedbone.progress import Bar

PATIENCE_S = 60.0
TAIL_LINES = 8


def up(kits: Path, report: Callable[[str], None] = print) -> None:
    """Start what does not run yet; return when the server knows all hospitals that have a login key there.

    Raises UserError when one of them is late.
    """
    parties = load_parties(kits)
    begun, started = time.time(), {}
    if not supervisors(parties[0]) and (problem := port_problem(parties[0])):
        raise problem
    for kit in parties:
        if not supervisors(kit):
            started[kit.name] = _start(kit)
    registry = parties[0].identity_check().registry
    keyless = [kit for kit in parties[1:] if not registry.active(kit.name)]
    with Bar("starting", "party") as bar:
        _await(Path(kits), [kit for kit in parties if kit not in keyless], started, begun, bar)
    for kit in parties:
        report(f"{kit.name}: {'started' if kit.name in started else 'ran already'}, log: {_log(kit)}")
    for kit in keyless:
        report(f"{kit.name}: the server lets it in when it has a login key of it (`deploy newkey`, `deploy register`)")
    report(f"{len(parties) - len(keyless)} parties are up after {time.time() - begun:.1f} s")


def down(kits: Path, report: Callable[[str], None] = print) -> None:
    """Stop everything that runs in these kits; nothing of it is left when this returns."""
    parties, begun = load_parties(kits), time.monotonic()
    running = {kit.name: len(party_processes(kit)) for kit in parties}
    end_processes(lambda: set().union(*(party_processes(kit) for kit in parties)))
    for name, count in running.items():
        report(f"{name}: {f'{count} processes stopped' if count else 'nothing ran'}")
    report(f"no process is left after {time.monotonic() - begun:.1f} s")


def _start(kit: Kit) -> subprocess.Popen:
    with open(kit.own / "supervisor.log", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedbone", "deploy", "start", str(kit.folder)],
            cwd=kit.folder,
            env=environment(kit, "supervisor"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await(kits: Path, parties: list[Kit], started: dict[str, subprocess.Popen], begun: float, bar: Bar) -> None:
    """Until the server answers its administrator, and has heard of every hospital since ``begun`` (time.time())."""
    from fedbone.engines.flare.jobs import ADMINISTRATOR, session  # takes its time while the server starts

    ends = time.monotonic() + PATIENCE_S
    server = parties[0]
    bar(0, len(parties), server.name)
    while not _listens(server):
        _require_time(server, started, ends)
        time.sleep(0.1)
    with session(ADMINISTRATOR, kits / ADMIN, timeout_s=max(1.0, ends - time.monotonic())) as opened:
        while True:
            clients = opened.get_system_info().client_info
            heard = {client.name for client in clients if (client.last_connect_time or 0) >= begun}
            missing = [kit for kit in parties[1:] if kit.name not in heard]
            if not missing:
                break
            bar(len(parties) - len(missing), len(parties), missing[0].name)
            _require_time(missing[0], started, ends)
            time.sleep(0.2)
    bar(len(parties), len(parties), "all up")


def _listens(server: Kit) -> bool:
    try:
        socket.create_connection((server.host, server.port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _require_time(kit: Kit, started: dict[str, subprocess.Popen], ends: float) -> None:
    ended = kit.name in started and started[kit.name].poll() is not None
    if ended or time.monotonic() > ends:
        problem = "its supervisor ended" if ended else f"it is not up after {PATIENCE_S:g} s"
        remedy = "Mend it and run `up` again, or stop the others with `python -m fedbone deploy down`"
        error = UserError(kit.name, problem, remedy)
        for path in (kit.own / "supervisor.log", _log(kit)):
            error.add_note(f"The end of {path}:\n{_tail(path)}")
        raise error


def _log(kit: Kit) -> Path:
    return kit.own / f"{kit.role}.log"


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(-min(path.stat().st_size, 10_000), 2)
            return "\n".join(file.read().decode(errors="replace").splitlines()[-TAIL_LINES:])
    except FileNotFoundError:
        return "(nothing)"
