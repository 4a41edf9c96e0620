"""Who did what, when, in a file that shows where somebody altered it: a chain of sha256 whose heads are signed.

Each line holds the sha256 of the line before it (Schneier and Kelsey, USENIX Security 1998, without their encryption),
and every so often a line ``head`` signs, by Ed25519, its own number and thereby every byte above it. What that proves:

- Whoever can write to the file and lacks the key can alter, remove, insert or re-order nothing above the last head
  without being found. Below it he can do what he likes: cut off lines, alter them, add up to ``head_every`` - 1 of his
  own; ``Verified.unsigned`` counts them. He can also cut the file at an earlier place, or put back an older copy.
- Whoever has the key, as this machine's administrator has, can write everything anew.

Against both helps what other parties have noted: they are shown ``AuditLog.head``, and write it into their own logs as
``head_n`` and ``head_sha256``; ``verify_log`` misses a noted head that is not in the log. Lines after the last head
that somebody else has noted are as safe as this machine and its key. A party that notes a false head accuses falsely:
two logs contradict each other then, and people have to find out which is right.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, pairwise
from pathlib import Path

from fedbone.custody.audit_entry import (
    COMMON,
    LINE_BYTES,
    OWN,
    PURPOSE,
    before_the_first,
    canonical,
    digest,
    fitting,
    require_fields,
)
from fedbone.custody.audit_fault import Verified, Walk
from fedbone.custody.audit_file import NO_LOG, End, Line, add, end_of, entries_of, held, lines_of
from fedbone.encryption.signing import SigningKey
from fedbone.errors import UserError

HEAD = {"event": "head"}


@dataclass(frozen=True)
class AuditLog:
    """The log in the file ``path``, to which ``who`` writes; several processes and threads may, at once.

    The first line is a head, and each whose number ``head_every`` divides. Each method raises UserError for a file that
    is no log of this key, was damaged at its end, or is gone though there was one, and OSError naming the log.
    """

    path: Path
    key: SigningKey = field(repr=False)
    who: str
    head_every: int = 100

    def __post_init__(self) -> None:
        require_fields({"who": self.who, "every": self.head_every})
        if self.head_every < 2:
            raise ValueError(f"head_every must be 2 or more, got {self.head_every}")

    def append(self, event: str, **fields: object) -> dict:
        """The new entry, which is on the disk when this returns.

        ``fields``: ``run=""``, ``round=None``, ``model=""`` (hex sha256), ``outcome="ok"``, and others of
        ``audit_entry.GIVEN``. Of ``detail`` paths are taken out and it is cut. A line that a kill has cut off before is
        replaced by an entry ``recovered`` with its length and sha256. Raises ValueError, with nothing written, for
        fields that no entry has; on a full disk the log stays as it was.
        """
        if event in ("head", "recovered"):
            raise ValueError(f"the log itself writes the event {event}")
        if type(fields.get("detail")) is str:
            fields["detail"] = fitting(fields["detail"])
        given = {**COMMON, **fields, "event": event}
        require_fields(given)
        if own := given.keys() & OWN.keys():
            raise ValueError(f"the log itself writes the fields {', '.join(sorted(own))}")
        return self._add(given)

    def sign_head(self) -> dict:
        """A new entry ``head``, which signs all that stands above it: do so at each round."""
        return self._add(HEAD)

    def head(self) -> tuple[int, str]:
        """(number, hex sha256) of the last entry, for other parties to note; it is on the disk."""
        with held(self._file, os.O_RDWR) as handle:
            end = end_of(self._file, handle)
            if end.last is None:
                raise UserError(self.path, "the audit log has no entry yet", "Write one first, such as start")
            os.fsync(handle)  # of a process that was killed before its own
        return end.last["n"], end.sha256

    def _add(self, fields: dict) -> dict:
        with held(self._file, os.O_RDWR | os.O_CREAT) as handle:
            end = end_of(self._file, handle)
            new = _NewLines(self, end)
            if end.torn:
                new.add({"event": "recovered", "bytes": len(end.torn), "sha256": digest(end.torn)})
            entry = new.add(fields)
            new.add_due_head()  # now, not with the next entry, which may be long in coming
            add(handle, end, new.lines)
        return entry

    @property
    def _file(self) -> Path:
        return Path(self.path).resolve()  # one lock for all links to it


class _NewLines:
    """The lines to write after the end of a log."""

    def __init__(self, log: AuditLog, end: End) -> None:
        self._log, self.lines = log, b""
        public = log.key.public
        if end.first is None:
            self._id, self._every = secrets.token_hex(16), log.head_every
            self._n, self._previous = 0, before_the_first(public, self._id)
            return
        self._id, self._every = end.first["log"], end.first["every"]
        self._n, self._previous = end.last["n"] + 1, end.sha256
        if end.first["key"] != public.hex():
            problem = f"it was begun with the key {end.first['key']:.16}..., and this is {public.hex():.16}..."
            raise UserError(log.path, problem, "Begin a new log for a new key, under another name")

    def add(self, fields: dict) -> dict:
        if fields is not HEAD:
            self.add_due_head()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        entry = {**COMMON, **fields, "n": self._n, "time": now, "who": self._log.who, "previous": self._previous}
        if fields is HEAD:
            entry["log"] = self._id
            if self._n == 0:
                entry |= {"key": self._log.key.public.hex(), "every": self._every}
            entry["signature"] = self._log.key.sign(PURPOSE, canonical(entry)).hex()
        line = canonical(entry)
        self.lines += line
        self._n, self._previous = self._n + 1, digest(line)
        return entry

    def add_due_head(self) -> None:
        if self._n % self._every == 0:
            self.add(HEAD)


def verify_log(
    path: Path,
    public: bytes,
    witnessed: Iterable[tuple[int, str]] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> Verified:
    """Check every line of the log of the owner of ``public`` (32 bytes), in constant memory.

    witnessed: heads (number, hex sha256) that other parties have noted. progress: told bytes. Raises ``Altered`` at the
    first line that is wrong, and UserError where there is nothing to check: no file, an empty one, not a log.
    """
    walk, noted = Walk(Path(path), public), {}
    for n, sha256 in witnessed:
        noted.setdefault(n, set()).add(sha256)
    for line, following in pairwise(chain(lines_of(path, progress), [Line(b"", None)])):
        if not following.data and not line.data.endswith(b"\n") and len(line.data) <= LINE_BYTES:
            walk.torn_bytes = len(line.data)
            break
        walk.step(line, following)
        if noted.pop(walk.n - 1, {walk.previous}) != {walk.previous}:
            problem = "another party has noted another sha256 for it: it or a line above it was written anew"
            raise walk.altered(walk.n, problem)
    if walk.n == 0:
        raise UserError(path, "the audit log has no whole line", NO_LOG)
    if noted:
        problem = f"it is missing: the log ends with number {walk.n - 1}, and another party has noted {max(noted)}"
        raise walk.altered(walk.n + 1, problem)
    return walk.verified()


def read_log(path: Path) -> list[dict]:
    """All entries, unverified; a torn last line is left out. Raises UserError for a line that is none."""
    return list(entries_of(path))


def heads_noted(path: Path) -> set[tuple[int, str]]:
    """The heads of another party's log that the log ``path`` has noted, for ``verify_log``.

    It is verified with the key that its own first line names: that finds damage, not a log that was made up.
    """
    first = next(entries_of(path), {})
    verify_log(path, bytes.fromhex(first.get("key", "00" * 32)))
    return {(e["head_n"], e["head_sha256"]) for e in entries_of(path) if {"head_n", "head_sha256"} <= e.keys()}
