"""`python -m fedbone deploy ...`: a deployment from the shell. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedbone.engines.flare.party_options import films_options, key_options
from fedbone.engines.flare.run_options import (
    cancel_options,
    check_options,
    consent_options,
    consent_terms,
    model_options,
    status_options,
    submit_options,
    watch_options,
)
from fedbone.errors import UserError
from fedbone.options import positive

if TYPE_CHECKING:
    from fedbone.engines.flare.describe import Described


def deploy_options(sub: argparse.ArgumentParser) -> None:
    """The commands under ``python -m fedbone deploy``."""
    actions = sub.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, work, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(action=work)
        return action

    _init_options(add("init", _init, "make the kits of a new deployment: server, hospitals, administrator"))
    films_options(add)
    start = add("start", _start, "run one party in the foreground, and start it again whenever it ends")
    start.add_argument("kit", type=Path, metavar="KIT", help="the party's folder")
    for name, work, text in (("up", _up, "start all parties on this machine"), ("down", _down, "stop them all")):
        add(name, work, text).add_argument("kits", type=Path, metavar="KITS", help="the folder of `deploy init`")
    submit_options(add("submit", _submit, "start a run; it goes on whatever is killed, until its rounds are done"))
    status_options(add("status", _status, "what parties and runs are doing"))
    cancel_options(add("cancel", _cancel, "end a run for good, on the server's machine"))
    model_options(add("model", _model, "take a run's model out of a party's vault"))
    consent_options(add("consent", _consent, "as a hospital's officer, allow the use of its films, or end it"))
    key_options(add)
    check_options(add("check", _check, "ask a running deployment on this machine what data protection asks"))
    watch_options(add("watch", _watch, "bring lost runs back; `start` runs it beside the server"))


def deploy(args: argparse.Namespace) -> int:
    """Run one of them."""
    from fedbone.engines.flare.processes import require_linux

    require_linux()
    return args.action(args)


def _submit(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.run_commands import run_submit

    return run_submit(args)


def _status(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.status import run_status

    return run_status(args)


def _cancel(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.cancel_command import run_cancel

    return run_cancel(args)


def _model(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.run_commands import run_model

    return run_model(args)


def _consent(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.consent_command import run_consent

    return run_consent(args)


def _check(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.check_command import run_check

    return run_check(args)


def _watch(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.watchdog import watch

    watch(args.kit)
    return 0


def _init_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, required=True, metavar="KITS", help="new folder for the kits")
    films = sub.add_mutually_exclusive_group()
    films.add_argument("--data", type=Path, help="folder with one sub-folder per hospital (default: data/sample)")
    text = "instead of films: a hospital's entry, which it wrote with `deploy describe`; again for the others"
    films.add_argument("--directory", type=Path, action="append", metavar="FILE.json", help=text)
    sub.add_argument("--hospitals", type=positive, metavar="N", help="the first N of them (default: all)")
    sub.add_argument("--names", metavar="A,B,...", help="the hospitals' names, in order (default: their folders')")
    sub.add_argument("--host", default="localhost", help="the server's name as hospitals reach it (default localhost)")
    sub.add_argument("--port", type=positive, help="of the server (default: one that is free on this machine)")


def _init(args: argparse.Namespace) -> int:
    from fedbone.engines.flare.kits import AUTHORITY, VALID_DAYS, create_kits_of

    hospitals = _described(args) if args.directory else _found(args)
    out = create_kits_of(args.out, hospitals, args.host, args.port)
    if args.data is None and not args.directory:
        _sign_for_sample(out, list(hospitals))
    print(f"{out}: kits for server, administrator and {', '.join(hospitals)}")
    print(f"certificates hold for {VALID_DAYS} days; {out / AUTHORITY} can make new ones: keep it off line")
    if args.directory:
        print("each hospital names its films: `python -m fedbone deploy films KIT --data FOLDER`")
    return 0


def _described(args: argparse.Namespace) -> dict[str, Described]:
    """The hospitals as they described themselves."""
    from fedbone.engines.flare.describe import read_described

    if args.names or args.hospitals:
        problem = "--names and --hospitals choose among folders of films"
        raise UserError("--directory", problem, "Leave them out: the files name the hospitals")
    return read_described(args.directory)


def _found(args: argparse.Namespace) -> dict[str, Described]:
    """The hospitals by the films that are at hand."""
    from fedbone.config import COARSEST_PX, SAMPLE
    from fedbone.engines.flare.describe import Described
    from fedbone.imaging.folder import load_hospitals
    from fedbone.progress import Bar

    folder = args.data or SAMPLE
    with Bar("reading films", "film") as bar:
        found, problems = load_hospitals(folder, COARSEST_PX, progress=bar)
    count = args.hospitals or len(found)
    names = args.names.split(",") if args.names else [hospital.name for hospital in found[:count]]
    if not count == len(names) == len(set(names)) or count > len(found):
        problem = f"{count} hospitals and {len(set(names))} different names for {len(found)} folders"
        raise UserError(folder, problem, "Give --data with a sub-folder for each hospital, and a name for each")
    for problem in problems:
        print(problem)
    return {name: Described.of(data, folder / data.name) for name, data in zip(names, found, strict=False)}


def _sign_for_sample(out: Path, names: list[str]) -> None:
    """Nobody is on the generated films of data/sample; for others, `deploy consent` is their officers' to call."""
    from fedbone.encryption.signing import SigningKey
    from fedbone.engines.flare.consent_command import grant
    from fedbone.engines.flare.kit import Kit
    from fedbone.engines.flare.kits import OFFICERS

    terms = argparse.ArgumentParser()
    consent_terms(terms)
    said = terms.parse_args(["--legal-basis", "generated films, of nobody", "--officer", "nobody: a trial"])
    for name in names:
        grant(Kit.load(out / name), SigningKey.load(out / OFFICERS / f"{name}.key"), said)


def _start(args: argparse.Namespace) -> int:
    from fedbone.engines.flare import supervisor

    return supervisor.run(args.kit)


def _up(args: argparse.Namespace) -> int:
    from fedbone.engines.flare import machine

    machine.up(args.kits)
    return 0


def _down(args: argparse.Namespace) -> int:
    from fedbone.engines.flare import machine

    machine.down(args.kits)
    return 0
