"""The file of an audit log: its last line without reading the rest, and lines added so that a kill hides nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedbone.custody.audit_entry import LINE_BYTES, digest, entry_or_none
from fedbone.errors import UserError
from fedbone.files import alone, sync_folder

TELL_EVERY = 1000  # lines, from one call of ``progress`` to the next
BEGINNING = b'{"event":"head","every":'  # of every log
NO_LOG = "Give the audit.jsonl of a party"
BROKEN = "Run `python -m fedbone audit verify` on it; move it away to begin a new log, and keep it as evidence"


@dataclass(frozen=True)
class End:
    """Where a log ends: its first and last entry and the last one's sha256 (None, None, "" before the first line).

    ``offset``: bytes up to the end of the last whole line; ``torn``: what follows it, of a line that was cut off.
    """

    first: dict | None
    last: dict | None
    sha256: str
    offset: int
    torn: bytes


class Line(NamedTuple):
    """A line with its line feed (a torn one has none), and its entry (None where it is none)."""

    data: bytes
    entry: dict | None


@contextlib.contextmanager
def held(path: Path, flags: int) -> Iterator[int]:
    """Hold the log ``path``, opened with ``flags`` of ``os.open``: no other thread or process adds to it meanwhile.

    Raises OSError, always naming ``path``, and UserError where there was a log and it is gone or empty.
    """
    lock = path.with_name(f"{path.name}.lock")  # its content says that there was a log
    try:
        with alone(lock) as marker:
            if marker.tell() and not (path.exists() and path.stat().st_size):
                remedy = f"Restore it from a backup; delete {lock.name} only to begin a new log knowingly"
                raise UserError(path, "the audit log is gone, and there was one", remedy)
            handle = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)
            try:
                yield handle
            finally:
                os.close(handle)
            if not marker.tell():
                with contextlib.suppress(OSError):  # the disk is full: the next one writes it
                    os.write(marker.fileno(), b"this log has begun")
                sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def end_of(path: Path, handle: int) -> End:
    """Where the open log ends. Raises UserError for a file that is none, or whose last line was altered."""
    size = os.fstat(handle).st_size
    start = max(0, size - 2 * LINE_BYTES)
    whole, feed, torn = _read(handle, start, size - start).rpartition(b"\n")
    if len(torn) > LINE_BYTES or (not feed and not torn.startswith(BEGINNING[: len(torn)])):
        raise UserError(path, "it is not an audit log, and nothing was added to it", NO_LOG)
    if not feed:
        return End(None, None, "", 0, torn)
    line = whole.rpartition(b"\n")[2] + b"\n"
    first, last = entry_or_none(_read(handle, 0, LINE_BYTES).partition(b"\n")[0] + b"\n"), entry_or_none(line)
    if last is None or first is None or not first.keys() >= {"key", "log"} or first.get("every", 0) < 2:
        raise UserError(path, "its first or last line is not one of an audit log; nothing was added to it", BROKEN)
    return End(first, last, digest(line), size - len(torn), torn)


def add(handle: int, end: End, lines: bytes) -> None:
    """Write ``lines`` after the last whole line, and wait until they are on the disk.

    They are written over a torn line, which is therefore there until they are complete. On a full disk the log is left
    as it was found. Raises OSError.
    """
    try:
        _write(handle, end.offset, lines)
        os.fsync(handle)
    except OSError:
        with contextlib.suppress(OSError):  # then the next one finds a torn line
            _write(handle, end.offset, end.torn)
        raise


def lines_of(path: Path, progress: Callable[[int, int, str], None] | None = None) -> Iterator[Line]:
    """Each line of the file; longer ones than a log has come in pieces. ``progress`` is told bytes.

    Raises UserError for a file that cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            size, count = os.fstat(file.fileno()).st_size, 0
            while data := file.readline(LINE_BYTES + 1):
                yield Line(data, entry_or_none(data))
                count += 1
                if progress and count % TELL_EVERY == 0:
                    progress(file.tell(), size, "")
    except OSError as error:
        remedy = "Check the name, and that this account may read the file"
        raise UserError(path, f"the audit log cannot be read ({error.strerror})", remedy) from error


def entries_of(path: Path) -> Iterator[dict]:
    """Each entry, unverified; a torn last line is left out. Raises UserError for a line that is none."""
    for number, line in enumerate(lines_of(path), 1):
        if line.entry:
            yield line.entry
        elif line.data.endswith(b"\n"):
            raise UserError(f"{path}, line {number}", "it is not an entry of an audit log", BROKEN)


def _write(handle: int, offset: int, data: bytes) -> None:
    os.lseek(handle, offset, os.SEEK_SET)
    end = offset + len(data)
    while data:
        data = data[os.write(handle, data) :]
    os.ftruncate(handle, end)


def _read(handle: int, offset: int, count: int) -> bytes:
    os.lseek(handle, offset, os.SEEK_SET)
    data = b""
    while len(data) < count and (piece := os.read(handle, count - len(data))):
        data += piece
    return data
