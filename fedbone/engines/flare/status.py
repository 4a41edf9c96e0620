"""What a deployment on this machine is doing: told by its processes, its server and its audit log."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fedbone.engines.flare.jobs import ADMINISTRATOR, live_job, registered, session
from fedbone.engines.flare.kit import ADMIN, Kit, load_parties
from fedbone.engines.flare.processes import party_processes, supervisors
from fedbone.engines.flare.run_folder import CANCELLED, FINISHED, PLAN, last_release, read_plan, read_status
from fedbone.errors import UserError


def look(kits: Path) -> dict:
    """{"parties": by name, "runs": by name}, JSON values.

    A party has its number of ``processes``, whether its ``supervisor`` runs and, for a hospital, whether the server
    has a login key of it (``key``; False: revoked) and knows it with that (``registered``; None: the server does not
    answer). A run has ``state`` (running, waiting, finished,
    cancelled), ``finished_rounds`` of ``rounds``, the ``model`` of the last one, the last ``problem``, ``history``.
    """
    server, *hospitals = parties = load_parties(kits)
    runs = sorted(path.parent.name for path in server.own.glob(f"runs/*/{PLAN}"))
    known, jobs = _ask_server(server, Path(kits), runs)
    told = {}
    for kit in parties:
        told[kit.name] = {"processes": len(party_processes(kit)), "supervisor": bool(supervisors(kit))}
    registry = server.identity_check().registry
    for kit in hospitals:
        key = bool(registry.active(kit.name))
        # FLARE still counts a hospital whose key was revoked while it was there; nothing of it is accepted
        told[kit.name] |= {"key": key, "registered": None if known is None else key and kit.name in known}
    return {"parties": told, "runs": {run: _run(server, run, jobs.get(run)) for run in runs}}


def _ask_server(server: Kit, kits: Path, runs: list[str]) -> tuple[list[str] | None, dict[str, bool]]:
    """(the hospitals that the server knows, by run whether a job of it is alive); (None, {}) if it does not answer."""
    if not party_processes(server):
        return None, {}
    try:
        with session(ADMINISTRATOR, kits / ADMIN, timeout_s=5.0) as opened:
            return registered(opened), {run: bool((job := live_job(opened, run)) and job[1]) for run in runs}
    except UserError:
        return None, {}


def _run(server: Kit, run: str, alive: bool | None) -> dict:
    folder = server.run_folder(run)
    status, (index, model) = read_status(folder), last_release(server, run)
    done = next((state for state in (FINISHED, CANCELLED) if (folder / state).exists()), "")
    return {
        "state": done or ("running" if alive else "waiting"),
        "finished_rounds": index + 1,
        "rounds": read_plan(folder).profile.rounds,
        "model": model,
        "problem": "" if done else status.get("problem", ""),
        "history": status.get("history", []),
    }


def run_status(args: argparse.Namespace) -> int:
    """Tell it; 1 when something is not as it should be: a party that is down, or a run that waits."""
    told = look(args.kits)
    print(json.dumps(told, indent=1) if args.json else in_words(told))
    parties, runs = told["parties"].values(), told["runs"].values()
    well = all(p["supervisor"] and p.get("registered", True) and p.get("key", True) for p in parties)
    return 0 if well and all(run["state"] != "waiting" for run in runs) else 1


def in_words(told: dict) -> str:
    """One line for each party and each run."""
    lines = []
    for name, party in told["parties"].items():
        words = {True: ", registered", False: ", NOT registered", None: ", the server does not answer"}
        known = words[party["registered"]] if "registered" in party else ""
        known += "" if party.get("key", True) else ", its login key is REVOKED"
        supervisor = "up" if party["supervisor"] else "DOWN"
        lines.append(f"{name:14} {supervisor}, {party['processes']} processes{known}")
    for name, run in told["runs"].items():
        lines.append(f"run {name}: {run['state']}, {run['finished_rounds']} of {run['rounds']} rounds finished")
        if run["problem"]:
            lines.append(f"  last problem: {run['problem']}")
        if run["history"]:
            last = run["history"][-1]
            who = "; ".join(f"{hospital} {what}" for hospital, what in last["hospitals"].items())
            lines.append(f"  round {last['round']} ({last['seconds']} s): {who}")
    return "\n".join(lines)
