"""``python -m fedbone audit``: whether an audit log is as it was written, and what it says."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedbone.errors import UserError
from fedbone.options import positive

QUIET_S = 2.0  # no bar before
COLUMNS = ("line", "time (UTC)", "event", "who", "run", "round", "model", "outcome")
IN_COLUMNS = {"n", "time", "event", "who", "run", "round", "model", "outcome"}
NOT_SHOWN = {"previous", "signature", "log", "key", "every"}


def audit_options(sub: argparse.ArgumentParser) -> None:
    """The options of ``python -m fedbone audit``."""
    actions = sub.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "find the first altered, removed, inserted or re-ordered line; exit code 0: none, 1: found, or the end torn"
    verify = actions.add_parser("verify", help=text, description=text + ", 2: nothing to check")
    text = "print the entries, one a line, after verifying them"
    show = actions.add_parser("show", help=text, description=text)
    for action in (verify, show):
        action.add_argument("log", type=Path, metavar="LOG", help="the audit.jsonl of a party")
        text = (
            "its public key, kept elsewhere; default: audit.pub beside the log, which whoever can write there exchanges"
        )
        action.add_argument("--key", type=Path, metavar="FILE", help=text)
    text = "another party's log, which has noted heads of this one; again for more"
    verify.add_argument("--witness", type=Path, action="append", default=[], metavar="LOG", help=text)
    show.add_argument("--last", type=positive, metavar="N", help="the last N of them only")
    show.add_argument("--run", metavar="RUN", help="of this run only")
    show.add_argument("--event", metavar="EVENT", help="of this kind only, such as refusal")


def audit(args: argparse.Namespace) -> int:
    """Carry out one action; the exit code."""
    return _verify(args) if args.action == "verify" else _show(args)


def _verify(args: argparse.Namespace) -> int:
    from fedbone.custody.audit_log import heads_noted

    public, noted = _public_key(args), set()
    for witness in args.witness:
        noted |= heads_noted(witness)
    good, lines = _checked(args.log, public, noted)
    if good and args.witness:
        newest = max((n for n, _ in noted), default=None)
        lines.append("other parties have noted no head of it" if newest is None else _agrees(len(noted), newest))
    if args.key is None:
        lines.append("the key came from beside the log; whoever can write there can exchange both: see --key")
    print(*lines, sep="\n")
    return 0 if good else 1


def _agrees(heads: int, newest: int) -> str:
    return f"it has the heads that other parties have noted: {heads}, the newest in line {newest + 1}"


def _checked(path: Path, public: bytes, noted: set[tuple[int, str]]) -> tuple[bool, list[str]]:
    """(whether the log is intact, what is to be said about it)."""
    from fedbone.custody.audit_fault import Altered
    from fedbone.custody.audit_log import verify_log

    try:
        with _bar() as progress:
            found = verify_log(path, public, noted, progress)
    except Altered as error:
        return False, [f"ALTERED: {error}"]
    torn = f"the last line is torn: {found.torn_bytes} bytes (a kill, or an append at this moment, mid-write?)"
    state = f"{path}: {torn}; above it {found.entries}" if found.torn_bytes else f"{path}: intact, {found.entries}"
    lines = [f"{state} entries, head {found.head[0]} {found.head[1]}", *found.notes]
    if found.unsigned:
        lines.append(f"no head has signed the last {found.unsigned} yet: whoever can write there can still change them")
    return not found.torn_bytes, lines


def _show(args: argparse.Namespace) -> int:
    from fedbone.custody.audit_file import lines_of

    try:
        public = _public_key(args)
    except UserError as error:
        good, remarks = False, [str(error)]
    else:
        good, remarks = _checked(args.log, public, set())
    rows = deque(maxlen=args.last)
    for number, line in enumerate(lines_of(args.log), 1):
        if line.entry is None:
            rows.append((str(number), "not an entry of a log"))
        elif args.run in (None, line.entry["run"]) and args.event in (None, line.entry["event"]):
            rows.append(_row(number, line.entry))
    warning = [] if good else ["WARNING: this log does not verify.", *remarks, ""]
    _print([*warning, *_table([COLUMNS, *rows])])
    return 0 if good else 1


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """One line a row; what stands after the columns is as wide as it is."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(COLUMNS))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=False)).rstrip() for row in rows
    ]


def _print(lines: list[str]) -> None:
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:  # `| head` has read enough; Python would try again, and complain, when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _row(number: int, entry: dict) -> tuple[str, ...]:
    """By column; what has none stands at the end, by name."""
    more = " ".join(f"{name}={value}" for name, value in entry.items() if name not in IN_COLUMNS | NOT_SHOWN)
    at = entry["time"].replace("T", " ").rstrip("Z")
    number_of_round = "" if entry["round"] is None else str(entry["round"])
    model = entry["model"][:12]
    return (str(number), at, entry["event"], entry["who"], entry["run"], number_of_round, model, entry["outcome"], more)


def _public_key(args: argparse.Namespace) -> bytes:
    path = args.key or args.log.with_name("audit.pub")
    try:
        text = path.read_text(encoding="ascii").strip()
        key = bytes.fromhex(text)
    except OSError as error:
        remedy = "Give the party's audit.pub: --key FILE"
        raise UserError(path, f"the public key cannot be read ({error.strerror})", remedy) from error
    except ValueError:
        key = b""
    if len(key) != 32:
        raise UserError(path, "it is not a public key of 64 hexadecimal digits", "Give the party's audit.pub")
    return key


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar for what takes longer than ``QUIET_S``."""
    from fedbone.progress import Bar

    began = time.monotonic()
    with Bar("verifying", "byte") as bar:

        def progress(done: int, total: int, text: str) -> None:
            if time.monotonic() - began > QUIET_S:
                bar(done, total, text)

        yield progress
