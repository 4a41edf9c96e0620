"""A real attempt to get into a running server: a hospital's stolen certificate, and a login key that nobody knows."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from fedbone.custody.audit_log import read_log
from fedbone.custody.registry import LoginKey
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.processes import end_processes, environment, party_processes
from fedbone.engines.flare.supervisor import parts
from fedbone.errors import UserError

PATIENCE_S = 60.0
LOOK_S = 0.2
WHERE = "login over the network"
TURNED_AWAY, LET_IN = b"registration rejected", b"Successfully registered client"  # FLARE's words, in its client's log


def forged_registration(server: Kit, hospital: Kit) -> str:
    """What the running server noted when the intruder tried to register; no process of it is left.

    Raises UserError when the intruder was let in, or was not turned away within a minute, or the server has noted no
    refusal of it. The server's audit log keeps the attempt: tell whoever reads it.
    """
    with tempfile.TemporaryDirectory(prefix="fedbone_intruder_") as folder:
        kit, key = _false_kit(Path(folder).resolve() / hospital.name, hospital)
        output = Path(folder) / "intruder.log"
        log = open(output, "wb")  # noqa: SIM115 (closed with the process below)
        process = subprocess.Popen(
            [sys.executable, *parts(kit)[0].command],
            cwd=kit.folder,
            env=environment(kit, "hospital"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            require_turned_away(output, process)
            return f"refused: {noted(server, key.kid)}"
        finally:
            end_processes(lambda: party_processes(kit), 0.0)
            process.kill()
            process.wait()
            log.close()


def _false_kit(folder: Path, hospital: Kit) -> tuple[Kit, LoginKey]:
    """The hospital's kit as a thief has it who got the certificate and not the login key."""
    for part in ("startup", "local"):
        shutil.copytree(hospital.folder / part, folder / part)
    kit, key = replace(hospital, folder=folder), LoginKey.create(hospital.name)
    kit.write_settings()
    key.save(kit.own / "login.key")
    return kit, key


def require_turned_away(output: Path, process: subprocess.Popen) -> None:
    """Raises UserError unless the intruder's own ``output`` says so: the server notes a refusal before it refuses."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        ended, said = process.poll() is not None, output.read_bytes()  # in this order: all that it said is there
        if LET_IN in said:
            remedy = "Stop the server, and find out why it lets in whom it refuses"
            raise UserError(WHERE, "a hospital with a forged login key was let in", remedy)
        if TURNED_AWAY in said:
            return
        if ended or time.monotonic() > ends:
            how = "its process ended first" if ended else f"not within {PATIENCE_S:g} s"
            problem = f"a hospital with a forged login key was not turned away ({how})"
            raise UserError(WHERE, problem, "Is the server up? If so, find out whether the intruder got in")
        time.sleep(LOOK_S)


def noted(server: Kit, kid: str) -> str:
    """The detail of the refusal in the server's audit log that names the key ``kid``."""
    for entry in read_log(server.own / "audit.jsonl"):
        if entry["event"] == "refusal" and kid in entry.get("detail", ""):
            return entry["detail"]
    problem = "the server turned a forged login key away, and noted no refusal of it"
    raise UserError(WHERE, problem, "Find out what refused it: the login gate did not")
