"""A search for model weights that lie in clear on a disk: by their own bytes, and by the files that usually hold them.

Found is a stretch of a known vector that is longer than about a sixty-fourth of it, stored as float32, float64 or
float16 of this machine's usual byte order, at any offset, also inside a zip, gzip, bzip2 or xz file. Not found are
values that were changed (scaled, averaged, noised), text (JSON, base64), archives inside archives in detail (they are
named), memory, swap, and what was deleted and not yet overwritten.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from fedbone.custody.compliance import Evidence
from fedbone.custody.vault import FIRST_LINE
from fedbone.errors import UserError

FORMS = {"float32": "<f4", "float64": "<f8", "float16": "<f2"}
WINDOW_BYTES, WINDOWS = 64, 64  # length of the stretches looked for, and how many a vector and form
WORD_BYTES = 8  # a window at any offset covers a whole word of the block, beginning at one of its first 8 bytes
BLOCK_BYTES = 1 << 22
TABLE_BITS = 20
HASH = np.uint64(0x9E3779B97F4A7C15)  # multiplicative hashing (Knuth, The Art of Computer Programming 3, 6.4)
NPY = "a .npy array"
ZIP = b"PK\x03\x04"
STREAMS: dict[bytes, Callable] = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
CLOSED = {b"\x28\xb5\x2f\xfd": "Zstandard", b"7z\xbc\xaf": "7-Zip"}
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Finding:
    """A file (or ``file > member`` of an archive) and what is wrong with it, or why it could not be looked into."""

    where: str
    what: str


def clear_weights(folders: Iterable[Path], vectors: Mapping[str, np.ndarray]) -> list[Finding]:
    """What lies in clear under ``folders``; ``vectors``: the known (P,) vectors by name (models, updates, any round).

    Every file is read as a stream (a map of it would crash should somebody cut it off meanwhile). A file, folder or
    archive that cannot be looked into is a finding as well. Raises UserError for a folder that is not there, and for a
    vector without a stretch that could be recognised.
    """
    index = _Index(vectors)
    return [finding for look in _scan(list(folders), index) for finding in look.findings]


def storage_sealed(folders: Iterable[Path], vectors: Mapping[str, np.ndarray]) -> Evidence:
    """Nothing is found by ``clear_weights``, and it does find each vector. Raises UserError naming what was found."""
    folders, index = list(folders), _Index(vectors)
    for name, vector in vectors.items():
        planted = io.BytesIO(b"?" + np.asarray(vector, "<f4").tobytes())
        if not _look("control", planted, index).findings:
            raise UserError(name, "the search does not find this vector where it is", "Report it: this is an error")
    looks = list(_scan(folders, index))
    findings = [finding for look in looks for finding in look.findings]
    if findings:
        shown = "; ".join(f"{finding.where}: {finding.what}" for finding in findings[:3])
        problem = f"{len(findings)} findings in {len(looks)} files, the first: {shown}"
        raise UserError("models at rest", problem, "Seal or delete them, look into what could not be read, scan again")
    sealed = sum(look.sealed for look in looks)
    if not sealed:
        problem = f"none of {len(looks)} files is sealed, so no stored model was examined"
        raise UserError("models at rest", problem, "Name the folders that a run has written to")
    text = "No weights in clear were found; the same search found each vector in memory."
    size = sum(look.bytes for look in looks)
    return Evidence(text, {"sealed files": sealed, "files": len(looks), "bytes": size, "vectors": len(vectors)})


class _Index:
    """Stretches of all vectors, to be looked up by any of their first eight words."""

    def __init__(self, vectors: Mapping[str, np.ndarray]) -> None:
        self.windows: dict[bytes, str] = {}
        for name, vector in vectors.items():
            self._add(name, np.asarray(vector))
        if not self.windows:
            raise UserError("vectors", "there is none to look for", "Give at least the model that was trained")
        self.smallest = min(np.size(vector) for vector in vectors.values())
        self._names, self._known = list(self.windows.values()), list(self.windows)
        anchors = [known[shift : shift + WORD_BYTES] for known in self._known for shift in range(WORD_BYTES)]
        words = np.frombuffer(b"".join(anchors), "<u8")
        self._order = np.argsort(words, kind="stable")
        self._words = words[self._order]
        self._table = np.zeros(1 << TABLE_BITS, bool)
        self._table[_hashed(words)] = True

    def _add(self, name: str, vector: np.ndarray) -> None:
        for form, code in FORMS.items():
            with np.errstate(over="ignore"):
                stretches = _telling(vector.astype(code).ravel())
            if not len(stretches) and form == "float32":
                problem = "it has no sixteen different numbers in a row, so its bytes say nothing"
                raise UserError(name, problem, "Give a trained model or an update")
            self.windows |= {stretch.tobytes(): f"{name} as {form}" for stretch in stretches}

    def found_in(self, block: bytes) -> set[str]:
        """Names of the vectors of which ``block`` holds a whole window."""
        words = np.frombuffer(block, "<u8", len(block) // WORD_BYTES)
        places = np.flatnonzero(self._table[_hashed(words)])
        first = np.searchsorted(self._words, words[places], "left")
        last = np.searchsorted(self._words, words[places], "right")
        found = set()
        for k in np.flatnonzero(last > first):
            for entry in self._order[first[k] : last[k]]:
                window, shift = divmod(int(entry), WORD_BYTES)
                start = int(places[k]) * WORD_BYTES - shift
                if block[start : start + WINDOW_BYTES] == self._known[window]:
                    found.add(self._names[window])
        return found


def _hashed(words: np.ndarray) -> np.ndarray:
    return (words * HASH) >> np.uint64(64 - TABLE_BITS)


def _telling(numbers: np.ndarray) -> np.ndarray:
    """(at most WINDOWS, n) stretches of n numbers, 64 bytes, evenly spread; all finite, different and not zero."""
    n = WINDOW_BYTES // numbers.itemsize
    rows = numbers[: numbers.size // n * n].reshape(-1, n)
    for step in (max(1, len(rows) >> 16), 1):  # a sample of a large vector; all of it where the sample shows nothing
        some = rows[::step]
        ordered = np.sort(some, axis=1)
        good = np.isfinite(some).all(1) & some.all(1) & (ordered[:, 1:] != ordered[:, :-1]).all(1)
        if good.any():
            break
    places = np.flatnonzero(good)
    return some[places[np.linspace(0, len(places) - 1, min(WINDOWS, len(places))).astype(int)]]


@dataclass(frozen=True)
class _Look:
    findings: list[Finding]
    bytes: int = 0
    numbers: int = 0  # that a .npy file holds
    sealed: bool = False


def _scan(folders: list[Path], index: _Index) -> Iterator[_Look]:
    """One for each file, and of each folder that could not be listed or lies elsewhere."""
    roots = [Path(folder).resolve() for folder in folders]
    for folder, root in zip(folders, roots, strict=True):
        if not root.is_dir():
            raise UserError(folder, "there is no such folder to examine", "Name the folders of the deployment")
        errors: list[OSError] = []
        for at, below, names in os.walk(root, onerror=errors.append):
            for link in (Path(at, name) for name in below if os.path.islink(Path(at, name))):
                if not any(link.resolve().is_relative_to(other) for other in roots):
                    yield _Look([Finding(str(link), "a link to a folder elsewhere, not looked into")])
            for name in names:
                yield from _file(Path(at, name), index)
        for error in errors:
            yield _Look([Finding(str(error.filename), f"could not be read ({error.strerror})")])


def _file(path: Path, index: _Index) -> Iterator[_Look]:
    """Nothing for a socket or a pipe, which keep nothing on the disk (and a pipe would never end)."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
            return
        if not stat.S_ISREG(mode):
            yield _Look([Finding(str(path), "not a regular file, not looked into")])
            return
        with path.open("rb") as file:
            look = _look(str(path), file, index)
        yield look
    except OSError as error:
        yield _Look([Finding(str(path), f"could not be read ({error.strerror})")])


def _look(where: str, file: BinaryIO, index: _Index, nested: bool = False) -> _Look:
    """At the bytes of ``file``, at the numbers that its form says it holds, and once into an archive."""
    head = block = file.read(BLOCK_BYTES)
    found, size = index.found_in(block), len(block)
    while more := file.read(BLOCK_BYTES):
        size += len(more)
        block = block[1 - WINDOW_BYTES :] + more  # a window may lie across the border
        found |= index.found_in(block)
    findings = [Finding(where, f"{name} lies here in clear") for name in sorted(found)]
    kind, numbers = _numbers(head, size)
    if numbers >= index.smallest:
        findings.append(Finding(where, f"{kind} with room for {numbers} numbers; a model has {index.smallest}"))
    closed = next((name for magic, name in CLOSED.items() if head.startswith(magic)), "")
    if closed or (nested and head.startswith((ZIP, *STREAMS))):
        findings.append(Finding(where, f"{closed or 'an archive inside an archive'}, not looked into"))
    elif head.startswith((ZIP, *STREAMS)):
        try:
            findings += _inside(where, file, head, index)
        except UNREADABLE as error:
            findings.append(Finding(where, f"an archive that could not be read ({type(error).__name__})"))
    return _Look(findings, size, numbers if kind == NPY else 0, head.startswith(FIRST_LINE))


def _inside(where: str, file: BinaryIO, head: bytes, index: _Index) -> list[Finding]:
    file.seek(0)
    if not head.startswith(ZIP):
        opened = next(opener for magic, opener in STREAMS.items() if head.startswith(magic))
        with opened(file) as stream:
            return _look(f"{where} > content", stream, index, nested=True).findings
    findings, total, numbers = [], 0, 0
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                look = _look(f"{where} > {member.filename}", stream, index, nested=True)
            findings, total, numbers = findings + look.findings, total + look.bytes, numbers + look.numbers
        is_torch = any(name.endswith("data.pkl") for name in archive.namelist())
    numbers = max(numbers, total // 2 if is_torch else 0)
    if numbers >= index.smallest:
        kind = "PyTorch's archive" if is_torch else "an .npz archive"
        findings.append(Finding(where, f"{kind} with room for {numbers} numbers; a model has {index.smallest}"))
    return findings


def _numbers(head: bytes, size: int) -> tuple[str, int]:
    """(form, how many numbers a file of ``size`` bytes holds by its first block, at two bytes each in a pickle)."""
    try:
        if head.startswith(npy.MAGIC_PREFIX):
            file = io.BytesIO(head)
            major = npy.read_magic(file)[0]
            shape, _, kind = (npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0)(file)
            return ("a pickle in a .npy file", size // 2) if kind.hasobject else (NPY, math.prod(shape))
        if head[8:9] == b"{":
            header = json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])
            shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
            return "a safetensors file", sum(map(math.prod, shapes))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", 0  # it only began like one; its bytes were searched all the same
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle", size // 2
    return "", 0
