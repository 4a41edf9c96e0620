"""Probes of what lies on the disk of a deployment: models, keys, and keys where they must not be."""

from __future__ import annotations

import base64
import hashlib
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from fedbone.custody import at_rest
from fedbone.custody.compliance import Evidence
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.kits import AUTHORITY, OFFICERS
from fedbone.engines.flare.processes import party_processes, supervisors
from fedbone.engines.flare.record_probes import NO_RUN, runs_of
from fedbone.engines.flare.run_commands import open_model
from fedbone.engines.flare.run_folder import last_release
from fedbone.errors import UserError

OF_ALL_HOSPITALS = ("hospitals.key", "sum.key")  # they share these two; the server has neither
PRIVATE_PEM, BEGINNING_BYTES = b"PRIVATE KEY-----", 1 << 12
OFF_LINE = {
    AUTHORITY: "whose key makes certificates that every party trusts",
    OFFICERS: "whose keys sign consent",
}


def storage_sealed(kits: Path, parties: Sequence[Kit], also: Sequence[Path]) -> Evidence:
    """No released model lies in clear in the kits, the parties' own temporary folders and ``also``.

    Raises UserError for one that does, and for a sealed model that does not open.
    """
    models = released_models(parties)
    if not models:
        return Evidence("Nothing was searched.", undecided=NO_RUN)
    own, shared = temporary_folders(parties)
    elsewhere = [folder for folder in own if not folder.is_relative_to(kits)]
    found = at_rest.storage_sealed([kits, *elsewhere, *also], models)
    details = {**found.details, "temporary folders searched": len(own), "other folders searched": len(also)}
    left = len(shared - {Path(folder).resolve() for folder in also})
    undecided = f"Not searched: {left} temporary folder that others write to as well. Name it with --also."
    return replace(found, details=details, undecided=undecided if left else "")


def released_models(parties: Sequence[Kit]) -> dict[str, np.ndarray]:
    """By run, the newest model (P,) that a vault of this deployment opens."""
    server, *hospitals = parties
    models = {}
    for plan in runs_of(server):
        readable = [server] if plan.sums == "none" else [kit for kit in hospitals if last_release(kit, plan.run)[1]]
        for kit in readable[:1]:
            if last_release(kit, plan.run)[1]:
                models[f"model of run {plan.run}"] = open_model(kit, plan.run)[2]
    return models


def temporary_folders(parties: Sequence[Kit]) -> tuple[set[Path], set[Path]]:
    """(those that the parties' processes have to themselves, those that every account writes to)."""
    folders = set()
    # a supervisor makes no temporary files, and one in a terminal has the environment of that
    for process in set().union(*(party_processes(kit) - supervisors(kit) for kit in parties)):
        with suppress(OSError):  # it has ended
            environ = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            named = [value[7:].decode() for value in environ if value.startswith(b"TMPDIR=")]
            folders.add(Path(*named or ["/tmp"]).resolve())
    there = {folder for folder in folders if folder.is_dir()}
    own = {folder for folder in there if not folder.stat().st_mode & stat.S_IWOTH}
    return own, there - own


def key_files_private(kits: Path, parties: Sequence[Kit]) -> Evidence:
    """Every key file is its owner's alone, and no party has another's. Raises UserError naming what is not so."""
    keys = {path: _owner(path, kits) for path in secret_files(kits)}
    without = [kit.name for kit in parties if kit.name not in keys.values()]
    if without:
        raise UserError(kits, f"no key file was found at {', '.join(without)}", "Name the folder of `deploy init`")
    problems = [problem for path in keys for problem in _open_to_others(path, kits)]
    problems += _at_two_parties(keys, {kit.name for kit in parties[1:]})
    if problems:
        shown = "; ".join(problems[:3])
        remedy = "Run `chmod 600` on them, or remove them; replace a key that others may have read"
        raise UserError("key files", f"{len(problems)} findings, the first: {shown}", remedy)
    accounts = len({path.stat().st_uid for path in keys})
    text = f"{len(keys)} key files are open to their account only, and no party has a key of another."
    there = [f"{name}/, {what}" for name, what in OFF_LINE.items() if (kits / name).exists()]
    details = {"key files": len(keys), "accounts that own them": accounts, "parties": len(parties)}
    undecided = f"Still on this machine: {'; '.join(there)}. Move them off line." if there else ""
    return Evidence(text, details, undecided)


def secret_files(folder: Path) -> Iterator[Path]:
    """Files below ``folder`` that hold a private or secret key, by name or by how they begin."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (path.suffix == ".key" or PRIVATE_PEM in _beginning(path)):
            yield path


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(BEGINNING_BYTES)


def _owner(path: Path, kits: Path) -> str:
    """The party whose folder ``path`` lies in."""
    return path.relative_to(kits).parts[0]


def _open_to_others(path: Path, kits: Path) -> Iterator[str]:
    status, name = path.stat(), path.relative_to(kits)
    if status.st_mode & 0o077:
        yield f"{name} can be used by others (mode {status.st_mode & 0o777:03o})"
    if status.st_uid != kits.stat().st_uid:
        yield f"{name} belongs to another account (user id {status.st_uid})"
    for folder in [at for at in path.parents if at.is_relative_to(kits)]:
        if folder.stat().st_mode & 0o022:
            yield f"{folder.relative_to(kits)}, where {path.name} lies, can be written to by others"


def _at_two_parties(keys: dict[Path, str], hospitals: set[str]) -> Iterator[str]:
    places: dict[str, list[Path]] = {}
    for path in keys:
        places.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(path)
    for same in places.values():
        owners = {keys[path] for path in same}
        if len(owners) > 1 and not (owners <= hospitals and {path.name for path in same} <= set(OF_ALL_HOSPITALS)):
            yield f"{same[0].name} of {keys[same[0]]} lies at {', '.join(sorted(owners - {keys[same[0]]}))} too"


def server_holds_no_private_key(parties: Sequence[Kit]) -> Evidence:
    """No file of the server holds a hospital's key in any usual form. Raises UserError naming the file.

    Every key is found by the same search in the hospital's own folder.
    """
    server, *hospitals = parties
    needles = {path: _forms(path) for kit in hospitals for path in secret_files(kit.folder)}
    for path, forms in needles.items():
        if not any(form in path.read_bytes() for form in forms):
            raise UserError(path.name, "the search does not find this key where it is", "Report it: this is an error")
    files = sorted(path for path in server.folder.rglob("*") if path.is_file())
    for path in files:
        content = path.read_bytes()
        for key, forms in needles.items():
            if any(form in content for form in forms):
                problem = f"it holds a key of a hospital ({key.name})"
                remedy = "Remove it, make that hospital a new key, and find out how it got there"
                raise UserError(path.relative_to(server.folder), problem, remedy)
    sums = [plan.run for plan in runs_of(server) if plan.sums != "none"]
    details = {"files of the server": len(files), "keys looked for": len(needles), "runs with sums": len(sums)}
    return Evidence("None of the hospitals' keys was found in the server's folder; in theirs each was.", details)


def _forms(path: Path) -> list[bytes]:
    """How a key may be written: as the file has it, and its secret number raw, in hex and in base64."""
    content = path.read_bytes()
    raw = _secret_number(content)
    more = [raw, raw.hex().encode(), base64.b64encode(raw), base64.urlsafe_b64encode(raw)] if raw else []
    return [content.strip() if raw != content else content, *more]


def _secret_number(content: bytes) -> bytes:
    if len(content) == 32:
        return content
    if PRIVATE_PEM not in content:
        return b""
    key = serialization.load_pem_private_key(content[content.index(b"-----BEGIN") :], None)
    if isinstance(key, EllipticCurvePrivateKey):
        return key.private_numbers().private_value.to_bytes(32, "big")
    prime = key.private_numbers().p
    return prime.to_bytes((prime.bit_length() + 7) // 8, "big")
