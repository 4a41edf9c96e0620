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


def forged_registration(server: Kit, hospital: Kit) -> str:
    """What the running server noted when the intruder tried to register; no process of it is left.

    Raises UserError when the server has noted no refusal of it within a minute. The server's audit log keeps the
    attempt: tell whoever reads it.
    """
    with tempfile.TemporaryDirectory(prefix="fedbone_intruder_") as folder:
        kit, key = _false_kit(Path(folder).resolve() / hospital.name, hospital)
        log = open(Path(folder) / "intruder.log", "wb")  # noqa: SIM115 (closed with the process below)
        process = subprocess.Popen(
            [sys.executable, *parts(kit)[0].command],
            cwd=kit.folder,
            env=environment(kit, "hospital"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            return f"refused: {_noted(server, key.kid, process)}"
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


def _noted(server: Kit, kid: str, process: subprocess.Popen) -> str:
    """The detail of the refusal in the server's audit log that names the key ``kid``."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends and process.poll() is None:
        for entry in read_log(server.own / "audit.jsonl"):
            if entry["event"] == "refusal" and kid in entry.get("detail", ""):
                return entry["detail"]
        time.sleep(LOOK_S)
    problem = f"the server noted no refusal of a forged login key within {PATIENCE_S:g} s"
    raise UserError("login over the network", problem, "Is it up? If so, find out whether the intruder got in")
