"""Probes of what a deployment has written down: audit logs, consent, what patients have spent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from fedbone.custody.audit_fault import Altered
from fedbone.custody.audit_log import heads_noted, read_log, verify_log
from fedbone.custody.compliance import Evidence
from fedbone.custody.consent import require_consent
from fedbone.engines.flare.consent_command import CONSENT, dataset_sha256
from fedbone.engines.flare.hospital_side import FINAL
from fedbone.engines.flare.kit import Kit, read_json
from fedbone.engines.flare.plan import Plan
from fedbone.engines.flare.run_commands import DP_DELTA
from fedbone.engines.flare.run_folder import PLAN, last_release, read_plan
from fedbone.errors import UserError
from fedbone.privacy.accounting import NoisyRounds, composed_epsilon
from fedbone.privacy.ledger import Ledger

NO_RUN = "No run has finished a round yet: check again when one has."
WHO_READS = "Find out who can write to the logs, and which of them is right"
LEDGER = "privacy.json"
Edit = Callable[[list[bytes]], list[bytes]]
EDITS: dict[str, Edit] = {  # what is done to the lines of a copy, around its middle
    "changed": lambda lines: [*lines[: _mid(lines)], _changed(lines[_mid(lines)]), *lines[_mid(lines) + 1 :]],
    "removed": lambda lines: [*lines[: _mid(lines)], *lines[_mid(lines) + 1 :]],
    "inserted": lambda lines: [*lines[: _mid(lines)], lines[_mid(lines) - 1], *lines[_mid(lines) :]],
}


def _mid(lines: list[bytes]) -> int:
    return len(lines) // 2


def _changed(line: bytes) -> bytes:
    return line.replace(b'"outcome":"', b'"outcome":"not ')


def runs_of(server: Kit) -> list[Plan]:
    """The plans of all runs that have started."""
    return [read_plan(path.parent) for path in sorted(server.own.glob(f"runs/*/{PLAN}"))]


def audit_chain(parties: Sequence[Kit]) -> Evidence:
    """Every party's log is as it was written, and three edits of a copy are found. Raises UserError otherwise.

    The server's log must also hold the heads of it that hospitals have noted.
    """
    server, *hospitals = parties
    noted = {head for kit in hospitals for head in heads_noted(_log(kit))}
    details, unsigned = {}, 0
    for kit in parties:
        found = verify_log(_log(kit), kit.audit_public(), noted if kit is server else ())
        details[f"{kit.name}: entries"], unsigned = found.entries, unsigned + found.unsigned
        _require_edits_found(kit)
    details |= {"entries that no head has signed yet": unsigned, "heads that hospitals have noted": len(noted)}
    text = f"{len(parties)} logs verify; a line changed, removed or inserted was found in a copy of each. "
    text += "A log cut off at its end is found only by what other parties have noted of it (see audit-2 too)."
    return Evidence(text, details)


def _require_edits_found(kit: Kit) -> None:
    lines = _log(kit).read_bytes().splitlines(keepends=True)
    if len(lines) < 4:
        raise UserError(_log(kit), f"it has {len(lines)} lines, too few to try edits on", "Check again after a run")
    with tempfile.TemporaryDirectory(prefix="fedbone_check_") as folder:
        copy = Path(folder, "audit.jsonl")
        for what, edit in EDITS.items():
            copy.write_bytes(b"".join(edit(lines)))
            try:
                verify_log(copy, kit.audit_public())
            except Altered:
                continue
            raise UserError(_log(kit), f"a copy with a line {what} verifies", "Report it: this is an error")


def audit_complete(parties: Sequence[Kit]) -> Evidence:
    """Server's and hospitals' logs tell of every finished round alike. Raises UserError for what only one tells.

    So the end of a log that was cut off is missed: the others go on.
    """
    server, *hospitals = parties
    if not runs_of(server):
        return Evidence("No round was looked at.", undecided=NO_RUN)
    logs = {kit.name: read_log(_log(kit)) for kit in parties}
    rounds = entries = 0
    for plan in runs_of(server):
        last = last_release(server, plan.run)[0]
        for index in range(last + 1):
            entries += _round_entries(logs, plan, index, server.name)
        rounds += last + 1
        for kit in hospitals:
            _require_no_more(kit, logs[kit.name], plan, last)
    if not rounds:
        return Evidence("No round was looked at.", undecided=NO_RUN)
    details = {"runs": len(runs_of(server)), "finished rounds": rounds, "entries of them": entries}
    text = "Each finished round has its pull and push by every hospital that took part, in the server's log and in the "
    return Evidence(f"{text}hospital's own, and one aggregation and one release.", details)


def _require_no_more(kit: Kit, log: list[dict], plan: Plan, last: int) -> None:
    """Raises UserError for a hospital whose log is ahead of the server's, or behind its own files."""
    told = {"push": last + 1, "release": last}  # the round after the last finished one may be under way
    ahead = [e for event, most in told.items() for e in _of(log, plan.run, event) if (e["round"] or 0) > most]
    kept = (kit.run_folder(plan.run) / FINAL).exists() and not _of(log, plan.run, "release")
    if ahead or kept:
        problem = f"{kit.name} keeps the run's model, and its log tells of no release"
        if ahead:
            problem = f"{kit.name} tells of round {ahead[-1]['round']}, and the server of none after {last}"
        raise UserError(f"run {plan.run}", f"{problem}: the end of a log is missing", WHO_READS)


def _round_entries(logs: dict[str, list[dict]], plan: Plan, index: int, server: str) -> int:
    """How many entries a round has. Raises UserError when one is missing."""
    own = [entry for entry in logs[server] if (entry["run"], entry["round"]) == (plan.run, index)]
    sums, released = ([e for e in own if e["event"] == event] for event in ("aggregation", "release"))
    if not sums or not released:
        raise _missing(plan, index, server, "aggregation" if not sums else "release")
    count = len(sums) + len(released)
    for name in sums[-1]["hospitals"].split(","):
        for event in ("pull", "push"):
            told = [e for e in own if (e["event"], e.get("site"), e["outcome"]) == (event, name, "ok")]
            theirs = [e for e in _of(logs.get(name, []), plan.run, event) if e["round"] == index]
            if not told or not theirs:
                raise _missing(plan, index, server if not told else name, f"{event} of {name}")
            if event == "pull" and plan.sums == "none" and not {e["model"] for e in theirs} <= _models(told):
                problem = f"round {index}: server and {name} note different models for the pull"
                raise UserError(f"run {plan.run}", problem, WHO_READS)
            count += len(told) + len(theirs)
    return count


def _models(entries: list[dict]) -> set[str]:
    return {entry["model"] for entry in entries}


def _missing(plan: Plan, index: int, who: str, what: str) -> UserError:
    return UserError(f"run {plan.run}", f"round {index}: the log of {who} has no {what}", WHO_READS)


def _of(entries: list[dict], run: str, event: str) -> list[dict]:
    return [entry for entry in entries if (entry["run"], entry["event"]) == (run, event)]


def _log(kit: Kit) -> Path:
    return kit.own / "audit.jsonl"


def consent(parties: Sequence[Kit]) -> Evidence:
    """Each hospital's manifest allows its films for its runs now. Raises UserError, as ``require_consent`` does."""
    _, *hospitals = parties
    details = {}
    for kit in hospitals:
        content = read_json(kit.own / CONSENT)
        runs = [path.parent.name for path in sorted(kit.own.glob(f"runs/*/{PLAN}"))] or content.get("runs", ["*"])
        with tempfile.TemporaryDirectory(prefix="fedbone_check_") as folder:
            copy = Path(shutil.copy(kit.own / CONSENT, folder))  # asking notes the serial number beside it
            if (kit.own / "consent_seen").is_dir():
                shutil.copytree(kit.own / "consent_seen", copy.with_name("consent_seen"))
            found, now = dataset_sha256(kit.films()), datetime.now(UTC)
            given = [require_consent(copy, kit.consent_public(), kit.name, run, found, now) for run in runs][-1]
        until = f"serial {given.serial}, until {given.valid_until:%Y-%m-%d}, by {given.officer}"
        details[kit.name] = f"{until}; legal basis: {given.legal_basis}; runs: {', '.join(runs)}"
    return Evidence("Every manifest is signed, in force, and for the films that the hospital has now.", details)


def privacy_budget(parties: Sequence[Kit]) -> Evidence:
    """What the runs have spent. Raises UserError for a hospital beyond its limit, or one that has noted nothing."""
    server, *hospitals = parties
    plans = runs_of(server)
    if not plans:
        return Evidence("No run was looked at.", undecided=NO_RUN)
    details: dict[str, str | int | float] = {}
    for kit in hospitals:
        details |= _patients_spent(kit, [plan for plan in plans if plan.patient])
    noisy = [NoisyRounds(p.noise["noise_multiplier"], 1.0, p.profile.rounds) for p in plans if p.noise]
    if noisy:
        spent = composed_epsilon(noisy, DP_DELTA)
        details["central: epsilon of a hospital"] = round(spent, 3)
        details["central: delta"], details["central: rounds planned"] = DP_DELTA, sum(part.rounds for part in noisy)
    without = [plan.run for plan in plans if not plan.noise and not plan.patient]
    if without:
        text = f"Runs without differential privacy, {', '.join(without)}: nothing bounds what these models tell."
        return Evidence(text, details, "The hospitals decide whether that is acceptable.")
    if noisy:
        text = "The noise of the server bounds what the models tell about a hospital, if the server is trusted."
        return Evidence(text, details, "No limit is set for it: the hospitals decide whether it is low enough.")
    return Evidence("Every hospital's patients have spent less than its limit, by its ledger.", details)


def _patients_spent(kit: Kit, plans: list[Plan]) -> dict[str, str | int | float]:
    """By the hospital's own ledger; nothing for a hospital without a run of this kind."""
    if not plans:
        return {}
    budget = kit.privacy_budget()
    spent = Ledger(kit.own / LEDGER, budget["dp_delta"], budget["epsilon_limit"]).epsilon(kit.name)
    pushed = sum(len(_of(read_log(_log(kit)), plan.run, "push")) for plan in plans)
    if pushed and not spent:
        problem = f"{pushed} updates with DP-SGD left {kit.name}, and its ledger has noted nothing"
        raise UserError(kit.name, problem, "Find out what became of its ledger, and start no further run")
    if spent > budget["epsilon_limit"]:
        problem = f"its patients have spent an epsilon of {spent:.4g}, and the limit is {budget['epsilon_limit']:g}"
        raise UserError(kit.name, problem, "Start no further run with these patients")
    return {f"{kit.name}: epsilon of a patient": round(spent, 3), f"{kit.name}: limit": budget["epsilon_limit"]}
