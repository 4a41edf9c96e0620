"""Consent to the use of a data set, as a file that a hospital's data officer signs and its computer demands.

What it cannot do: whoever owns the hospital's account can set the clock back, or put an old manifest back after
emptying the folder ``consent_seen``. Hence note ``serial`` in the audit log at every run, and let consent expire soon.
It shows what the officer allowed; whether patients had to be asked, and were, no file can show.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from fedbone.encryption.signing import SigningKey, verify
from fedbone.errors import UserError
from fedbone.files import sync_folder, write_json

PURPOSE = "fedbone consent to the use of a data set, version 1"
GRANTED, WITHDRAWN = "granted", "withdrawn"
HOSPITAL, SHA256 = re.compile(r"[a-z][a-z0-9_-]{0,39}"), re.compile(r"[0-9a-f]{64}")
SEEN = re.compile(r"[0-9]+-[0-9a-f]{64}")
ASK = "Ask the officer for a new manifest"


@dataclass(frozen=True)
class Manifest:
    """What may be done with which films, for which runs ("*": any), from when until when (UTC), and who says so.

    officer: a role such as "data protection officer", never a person's name. serial: 1, 2, ...; each new manifest of a
    hospital has a higher one, also the one that withdraws. Raises UserError for a field that says nothing.
    """

    hospital: str
    dataset_sha256: str
    purpose: str
    runs: tuple[str, ...]
    legal_basis: str
    officer: str
    valid_from: datetime
    valid_until: datetime
    serial: int
    state: str = GRANTED

    def __post_init__(self) -> None:
        texts = (self.purpose, self.legal_basis, self.officer)
        times = (self.valid_from, self.valid_until)
        wrong = {
            "hospital": not _fits(HOSPITAL, self.hospital),
            "dataset_sha256": not _fits(SHA256, self.dataset_sha256),
            "purpose, legal_basis or officer": not all(isinstance(text, str) and text.strip() for text in texts),
            "runs": not (isinstance(self.runs, tuple) and self.runs and all(r and type(r) is str for r in self.runs)),
            "valid_from or valid_until": not all(isinstance(time, datetime) and _is_utc(time) for time in times),
            "serial": type(self.serial) is not int or self.serial < 1,
            "state": self.state not in (GRANTED, WITHDRAWN),
        }
        for field, is_wrong in wrong.items():
            if is_wrong:
                raise UserError("consent", f"{field} is missing or of the wrong form", "See the fields of Manifest")
        if self.valid_from >= self.valid_until:
            raise UserError("consent", "it ends before it begins", "Exchange valid_from and valid_until")

    def sign(self, path: Path, officer_key: SigningKey) -> Path:
        """Write the manifest with its signature; a kill leaves the old file or the new one."""
        content = _plain(self) | {"officer_key": officer_key.public.hex()}
        return write_json(Path(path), content | {"signature": officer_key.sign(PURPOSE, _signed(content)).hex()})


def require_consent(
    path: Path, officer_public: bytes, hospital: str, run: str, dataset_sha256: str, now: datetime
) -> Manifest:
    """The manifest in ``path``, when it allows ``hospital`` to use these films for ``run`` at ``now`` (UTC).

    The highest serial number ever seen is remembered in the folder ``consent_seen`` beside it, so that an older
    manifest cannot be put back after a withdrawal. Raises UserError, saying which, for a manifest that is missing,
    unreadable, changed, of another key, older, withdrawn, for another hospital, film set or run, or out of its time.
    """
    if not _is_utc(now):
        raise ValueError("now must be a time in UTC")
    path = Path(path)
    content = _read(path)
    manifest = _verified(path, content, officer_public)
    if manifest.hospital != hospital:  # before its serial is remembered: one officer may serve several hospitals
        problem = f"it is the consent of {manifest.hospital!r}, and {hospital!r} asks"
        raise UserError(path, problem, "Give the manifest of this hospital")
    _require_newest(path, manifest.serial, hashlib.sha256(_signed(content)).hexdigest())
    if manifest.state == WITHDRAWN:
        raise UserError(path, f"the officer has withdrawn this consent (serial {manifest.serial})", f"Stop here. {ASK}")
    if manifest.dataset_sha256 != dataset_sha256:
        problem = f"it covers other films (sha256 {manifest.dataset_sha256[:12]}..., found {dataset_sha256:.12}...)"
        raise UserError(
            path, problem, f"Restore the films or labels it was given for. {ASK} if they changed on purpose"
        )
    if run not in manifest.runs and "*" not in manifest.runs:
        raise UserError(path, f"it does not cover the run {run!r:.80}, only {', '.join(manifest.runs):.200}", ASK)
    if now < manifest.valid_from:
        problem = f"it is not valid yet, only from {manifest.valid_from.isoformat()}, and it is {now.isoformat()}"
        raise UserError(path, problem, "Wait, and check this machine's clock")
    if now >= manifest.valid_until:
        problem = f"it expired at {manifest.valid_until.isoformat()}, and it is {now.isoformat()}"
        raise UserError(path, problem, f"{ASK}, and check this machine's clock")
    return manifest


def _fits(pattern: re.Pattern, value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_utc(time: datetime) -> bool:
    return time.utcoffset() == timedelta(0)


def _plain(manifest: Manifest) -> dict:
    times = {name: getattr(manifest, name).isoformat() for name in ("valid_from", "valid_until")}
    return asdict(manifest) | times | {"runs": list(manifest.runs)}


def _signed(content: dict) -> bytes:
    """What the signature is over: every field but itself, in one order."""
    return json.dumps({name: value for name, value in content.items() if name != "signature"}, sort_keys=True).encode()


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(path, "there is no consent manifest", "Ask the officer for one; nothing runs without") from None
    except OSError as error:
        remedy = "Check that this account may read it"
        raise UserError(path, f"the consent manifest cannot be read ({error.strerror})", remedy) from error
    except (ValueError, RecursionError):
        raise UserError(path, "the consent manifest is not JSON: damaged, or another file", ASK) from None
    if not isinstance(content, dict) or not {"officer_key", "signature"} <= content.keys():
        raise UserError(path, "it is not a signed consent manifest: fields are missing", ASK)
    return content


def _verified(path: Path, content: dict, officer_public: bytes) -> Manifest:
    """The manifest, once its signature holds; nothing of it is believed before."""
    if content["officer_key"] != officer_public.hex():
        problem = "it is signed with another key than that of this hospital's officer"
        raise UserError(path, problem, "Ask the officer whose public key was entered here, or enter the new one")
    try:
        holds = verify(officer_public, PURPOSE, _signed(content), bytes.fromhex(content["signature"]))
    except (ValueError, TypeError):  # no hex digits, no text
        holds = False
    if not holds:
        problem = "it was changed after it was signed: the signature does not hold"
        raise UserError(path, problem, f"{ASK}, and find out who can write here")
    fields = {name: value for name, value in content.items() if name not in ("officer_key", "signature")}
    try:
        times = {name: datetime.fromisoformat(fields[name]) for name in ("valid_from", "valid_until")}
        return Manifest(**fields | times | {"runs": tuple(fields["runs"])})
    except (KeyError, TypeError, ValueError) as error:
        why = error.problem if isinstance(error, UserError) else "other fields or forms than this version knows"
        raise UserError(path, f"what the officer signed is no manifest: {why}", ASK) from None


def _require_newest(path: Path, serial: int, digest: str) -> None:
    """Refuse what is older than the newest seen, and remember this one.

    What was seen are names of empty files, ``serial-sha256``: two processes cannot overwrite each other's.
    """
    folder = path.with_name("consent_seen")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        seen = dict(entry.name.split("-") for entry in folder.iterdir() if SEEN.fullmatch(entry.name))
        newest = max(map(int, seen), default=0)
        if serial < newest:
            problem = (
                f"it has serial number {serial}, and {newest} was seen here already: an older manifest was put back"
            )
            raise UserError(path, problem, f"Find out who did. {ASK}")
        if seen.get(str(serial), digest) != digest:
            problem = f"there was another manifest with the same serial number {serial}"
            raise UserError(path, problem, f"{ASK}, with a serial number above {newest}")
        (folder / f"{serial}-{digest}").touch(mode=0o600)
        sync_folder(folder)
    except OSError as error:
        problem = f"the serial number of the consent manifest cannot be remembered ({error.strerror})"
        raise UserError(folder, problem, "Let this account write there, with room on the disk") from error
