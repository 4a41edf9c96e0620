"""``python -m fedbone deploy consent``: a hospital's officer allows, or ends, the use of its films."""

from __future__ import annotations

import argparse
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedbone.custody.consent import GRANTED, WITHDRAWN, Manifest
from fedbone.encryption.signing import SigningKey
from fedbone.engines.flare.kit import Kit, read_json
from fedbone.errors import UserError

CONSENT = "consent.json"


def dataset_sha256(folder: Path) -> str:
    """Hex sha256 over the names and contents of all files in ``folder``: what a consent is given for."""
    result = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()
        result.update(f"{content}  {name}\n".encode())
    return result.hexdigest()


def grant(kit: Kit, officer: SigningKey, args: argparse.Namespace) -> Manifest:
    """Sign for the films that ``kit`` names, as the options of ``deploy consent`` say, and put it into the kit."""
    now = datetime.now(UTC).replace(microsecond=0)
    manifest = Manifest(
        hospital=kit.name,
        dataset_sha256=dataset_sha256(kit.films()),
        purpose=args.purpose,
        runs=tuple(args.runs.split(",")),
        legal_basis=args.legal_basis,
        officer=args.officer,
        valid_from=now,
        valid_until=now + timedelta(days=args.days),
        serial=_last_serial(kit.own / CONSENT) + 1,
        state=WITHDRAWN if args.withdraw else GRANTED,
    )
    manifest.sign(kit.own / CONSENT, officer)
    return manifest


def run_consent(args: argparse.Namespace) -> int:
    """Grant or withdraw it; training asks for it before every round."""
    kit = Kit.load(args.kit)
    kit.films()  # raises UserError where there is nothing to consent to
    key = SigningKey.load(args.key)
    if key.public != kit.consent_public():
        remedy = "Give the private key that belongs to consent.pub in the kit"
        raise UserError(args.key, f"it is not the key of {kit.name}'s officer", remedy)
    manifest = grant(kit, key, args)
    print(f"{kit.name}: {manifest.state}, serial {manifest.serial}, until {manifest.valid_until:%Y-%m-%d}")
    return 0


def _last_serial(path: Path) -> int:
    """The highest serial number that was ever in this kit, also when the manifest itself is gone."""
    seen = [int(entry.name.split("-")[0]) for entry in path.parent.glob("consent_seen/*-*")]
    return max([0, *seen, *([int(read_json(path)["serial"])] if path.exists() else [])])
