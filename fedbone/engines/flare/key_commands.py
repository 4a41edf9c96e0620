"""Login keys: ``deploy revoke`` and ``deploy register`` at the server, ``deploy newkey`` at the hospital."""

from __future__ import annotations

import argparse
import json
import os

from fedbone.custody.registry import LoginKey, Registry
from fedbone.engines.flare.kit import Kit, hospital_kit, read_json, server_kit
from fedbone.errors import UserError
from fedbone.files import write_json

LOGIN = "login.key"


def run_revoke(args: argparse.Namespace) -> int:
    """From now on let the hospital in with none of its keys, or not with the one that is named."""
    kit = server_kit(args.kit)
    _require_hospital(kit, args.hospital)
    registry = _registry(kit)
    holding = registry.holding(args.hospital)
    chosen = [kid for kid in holding if args.key in (None, kid)]
    if not chosen:
        remedy = f"Its keys that hold: {', '.join(holding) or 'none'}"
        raise UserError(args.hospital, "it has no such login key that holds", remedy)
    for kid in chosen:
        registry.revoke(kid, args.reason)
        # the reason stays in the registry: somebody could be named in it
        kit.audit().append("revoke", site=args.hospital, kid=kid)
        print(f"{args.hospital}: key {kid} is revoked")
    kit.audit().sign_head()
    print(f"{args.hospital}: {len(registry.holding(args.hospital))} of its keys still hold; no restart is needed")
    return 0


def run_register(args: argparse.Namespace) -> int:
    """Let a hospital in with the key of ``deploy newkey``."""
    kit, entry = server_kit(args.kit), read_json(args.public)
    site, registry = entry.get("site"), _registry(kit)
    _require_hospital(kit, site)
    older = registry.holding(site)
    kid = registry.add(entry)
    audit = kit.audit()
    audit.append("register", site=site, kid=kid)
    audit.sign_head()
    print(f"{site}: key {kid} is registered. Compare it with what the hospital reads to you by telephone")
    for old in older:
        print(f"  its older key holds too; end it: deploy revoke {args.kit} {site} --key={old} --reason TEXT")
    return 0


def run_newkey(args: argparse.Namespace) -> int:
    """Make a new login key in place of the old one, which stays until the new one is whole on the disk."""
    kit = hospital_kit(args.kit)
    key, new = LoginKey.create(kit.name), kit.own / f"{LOGIN}.new"
    new.unlink(missing_ok=True)  # of a call that was killed: nothing knows that key
    key.save(new)
    out = write_json(args.out or kit.own / "login_public.json", key.public_entry())
    os.replace(new, kit.own / LOGIN)
    print(json.dumps(key.public_entry()))
    print(f"{kit.name}: new key {key.kid}. The server lets it in once its staff have run")
    print(f"  python -m fedbone deploy register SERVER_KIT {out.name}, with {out} from here: it is public")
    return 0


def _registry(kit: Kit) -> Registry:
    return kit.identity_check().registry


def _require_hospital(kit: Kit, name: object) -> None:
    if name not in kit.hospitals:
        known = ", ".join(kit.hospitals)
        raise UserError(f"{name!r:.60}", "there is no hospital of this name", f"This deployment has {known}")
