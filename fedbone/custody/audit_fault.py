"""Down an audit log: what is wrong with a line at its place, and which line was the first to be altered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedbone.custody.audit_entry import PURPOSE, before_the_first, canonical, digest
from fedbone.custody.audit_file import NO_LOG, Line
from fedbone.encryption.signing import verify
from fedbone.errors import UserError

Fault = tuple[int, str]  # number of the line, from 1; what is wrong


class Altered(UserError):
    """A log that is not as it was written; ``where`` ends with the number of the first bad line, from 1."""


@dataclass(frozen=True)
class Verified:
    """An unaltered log: how many ``entries`` it has, and its ``head`` (number, hex sha256), as ``AuditLog.head`` says.

    ``unsigned``: entries after the last signed head; ``torn_bytes``: of a last line that was cut off, by a kill or by
    somebody, and which is not counted; ``notes``: what is odd but proves nothing.
    """

    entries: int
    head: tuple[int, str]
    unsigned: int
    torn_bytes: int
    notes: tuple[str, ...]


class Walk:
    """Down the log ``path`` of the owner of ``public``, line by line: what the next line must fit.

    n: its number. previous: sha256 of the line before it. log, every: as the first line says. head_line: of the last
    line that was a head with a good signature, from 1.
    """

    def __init__(self, path: Path, public: bytes) -> None:
        self.path, self.public = path, public
        self.n = self.head_line = self.torn_bytes = self.backwards = self.first_backwards = 0
        self.previous = self.log = self.time = ""
        self.every = 1

    def step(self, line: Line, following: Line) -> None:
        if self.n == 0:
            self._begin(line.entry, following.entry)
        if found := _fault(self, line, following):
            raise self.altered(*found)
        entry = line.entry
        self.n, self.previous = self.n + 1, digest(line.data)
        if entry["event"] == "head":
            self.head_line = self.n
        if entry["time"] < self.time:
            self.backwards, self.first_backwards = self.backwards + 1, self.first_backwards or self.n
        self.time = entry["time"]

    def verified(self) -> Verified:
        notes = ()
        if self.backwards:
            text = f"{self.backwards} entries are earlier than the one before, first in line {self.first_backwards}"
            notes = (f"{text}: the clock was set back",)
        head, unsigned = (self.n - 1, self.previous), self.n - self.head_line
        return Verified(self.n, head, unsigned, self.torn_bytes, notes)

    def altered(self, line: int, problem: str) -> Altered:
        remedy = "Compare it with a copy kept elsewhere, and find out who can write to this file"
        return Altered(f"{self.path}, line {line}", problem, remedy)

    def _begin(self, first: dict | None, second: dict | None) -> None:
        if first is None and second is None:
            raise UserError(self.path, "it is not an audit log", NO_LOG)
        if first and first.get("key", self.public.hex()) != self.public.hex():
            problem = f"it was begun with the key {first['key']:.16}..., and {self.public.hex():.16}... was given"
            remedy = "Give this log's key; if that was it, somebody has exchanged the log or its first line"
            raise Altered(f"{self.path}, line 1", problem, remedy)
        if first and first["event"] == "head" and "every" in first:
            self.log, self.every = first.get("log", ""), first["every"]
        self.previous = before_the_first(self.public, self.log)

    def signed(self, head: dict) -> bool:
        unsigned = {name: value for name, value in head.items() if name != "signature"}
        signature = bytes.fromhex(head.get("signature", ""))
        return verify(self.public, PURPOSE, canonical(unsigned), signature)


def _fault(at: Walk, line: Line, following: Line) -> Fault | None:
    """The first altered, removed, inserted or re-ordered line, judged by ``line`` and the one ``following`` it."""
    entry, after = line.entry, following.entry
    here = at.n + 1
    if entry is None:
        return here, "it is not as a log writes its lines: it was altered or inserted"
    fits = (entry["n"], entry["previous"]) == (at.n, at.previous)
    if after and (after["n"], after["previous"]) == (at.n, at.previous):
        if not fits:
            return here, f"it was inserted or moved here: the next line is the one that belongs here, number {at.n}"
        if line.data == following.data:
            return here + 1, "it is the line before it once more"
        return here, "it or the next line was inserted: both claim the same place"
    if not fits:
        return _misfit(at, line, after)
    if entry["event"] == "head" and not at.signed(entry):
        return here, f"the signature of this head is wrong: it was altered{_or_before(at, here)}"
    if entry["event"] != "head" and at.n % at.every == 0:
        return (
            here,
            f"every {at.every} entries a signed head is due, here too: this line was exchanged{_or_before(at, here)}",
        )
    return None


def _misfit(at: Walk, line: Line, after: dict | None) -> Fault:
    here, n = at.n + 1, line.entry["n"]
    if n == at.n:
        return _broken_link(at, line, after)
    if line.entry["previous"] == at.previous:
        return here, f"its number {n} was altered: it is chained to number {at.n - 1}"
    if n < at.n:
        return here, f"it has number {n}, and {at.n} was expected: an earlier line stands here again, or was moved here"
    if after and after["n"] == n + 1:
        return here, f"it has number {n}, and {at.n} was expected: {n - at.n} lines before it were removed"
    return here, f"it has number {n}, and {at.n} was expected: lines were re-ordered, exchanged or removed"


def _broken_link(at: Walk, line: Line, after: dict | None) -> Fault:
    """The line has the right number, but is chained to other bytes than stand before it: which of the two is false?"""
    here, before, entry = at.n + 1, at.n, line.entry
    if at.n == 0:
        return here, "it was altered: it does not begin a log of its key"
    if before == at.head_line:
        return (
            here,
            "it was altered, or comes from another log than the line before it, which is signed",
        )
    if entry["event"] == "head":
        genuine = entry.get("log") == at.log and at.signed(entry)
    else:
        genuine = after is not None and after["previous"] == digest(line.data)
    if genuine:
        return before, f"it was altered{_or_before(at, before)}: line {here} was chained to other bytes"
    if after or entry["event"] == "head":
        return here, "it was altered, or comes from another log: it is not chained to the line before it"
    return before, f"it or line {here}, the last one, was altered: they are not chained"


def _or_before(at: Walk, line: int) -> str:
    """What cannot be told apart where a signature is all that is left to compare with."""
    if line <= at.head_line + 1:
        return ""
    return f", or an earlier one since the head in line {at.head_line}, with the chain computed again"
