"""The ``deploy`` commands that one party's staff run on its own kit, for keys and films, and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def key_options(add: Add) -> None:
    """Add the commands ``revoke``, ``newkey`` and ``register``."""
    sub = add("revoke", _revoke, "at the server: let a hospital in with its login keys no more")
    _server(sub)
    sub.add_argument("hospital", metavar="HOSPITAL", help="its name")
    sub.add_argument("--reason", required=True, metavar="TEXT", help="kept in the registry; name no person")
    sub.add_argument("--key", metavar="ID", help="this key only (default: all of the hospital that hold)")
    sub = add("newkey", _newkey, "at a hospital: a new login key in place of the old one")
    sub.add_argument("kit", type=Path, metavar="KIT", help="the hospital's folder")
    text = "the public part, for the server (default: fedbone/login_public.json in the kit)"
    sub.add_argument("--out", type=Path, metavar="PUBLIC.json", help=text)
    sub = add("register", _register, "at the server: let a hospital in with the key of `deploy newkey`")
    _server(sub)
    sub.add_argument("public", type=Path, metavar="PUBLIC.json", help="what `deploy newkey` wrote")


def films_options(add: Add) -> None:
    """Add the commands ``describe`` and ``films``."""
    sub = add("describe", _describe, "at a hospital: write what its films label, for `init --directory`")
    _films(sub)
    sub.add_argument("--name", required=True, help="the hospital's: small letters, digits, - and _")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="nothing in it is about a patient")
    sub = add("films", _name_films, "at a hospital: name its films in its kit, and count their patients")
    sub.add_argument("kit", type=Path, metavar="KIT", help="the hospital's folder")
    _films(sub)


def _films(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="this hospital's films and labels")


def _describe(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.describe import run_describe

    return run_describe(args)


def _name_films(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.describe import run_films

    return run_films(args)


def _server(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("kit", type=Path, metavar="SERVER_KIT", help="the server's folder")


def _revoke(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.key_commands import run_revoke

    return run_revoke(args)


def _newkey(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.key_commands import run_newkey

    return run_newkey(args)


def _register(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.key_commands import run_register

    return run_register(args)
