"""What the owner of data reads before a job may run: every file of it, and what changed since the last approved one.

An approval is for one digest. It covers all files of the job, the sources of fedbone, the version of Python, and what
pip recorded of every installed package. Whoever edits an installed file by hand changes none of these: the machine's
administrator must be trusted.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import stat
import sysconfig
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from fedbone.config import REPOSITORY
from fedbone.errors import UserError

FORM = "config.yaml"  # syft's; it holds the time of submission and a path of the coordinator's
INPUTS = "code/inputs/"  # numbers for the job; everything else in it is code
PACKAGES = ("numpy", "safetensors", "syft", "torch")  # whose versions a reader may want to see
LONGEST_LINE = 400  # characters; a longer one is no code that somebody can read


@dataclass(frozen=True)
class Submission:
    """A job as it came: path in its folder -> content, and the versions of what would run it."""

    hospital: str
    name: str
    submitted_by: str
    files: dict[str, bytes] = field(repr=False)
    software: dict[str, str] = field(repr=False)

    @property
    def title(self) -> str:
        """The name without its number: what its submitter calls jobs of this kind."""
        return self.name.partition("-")[2]

    @property
    def digest(self) -> str:
        """sha256 of all files of the job and of ``software``."""
        return self._digest(self.files)

    @property
    def code_digest(self) -> str:
        """The same without the inputs and syft's form (config.yaml, which holds the time of submission)."""
        code = {path: content for path, content in self.files.items() if not path.startswith(INPUTS)}
        return self._digest({path: content for path, content in code.items() if path != FORM})

    def _digest(self, files: dict[str, bytes]) -> str:
        parts = [sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files.items())]
        return hashlib.sha256(json.dumps([*parts, self.software], sort_keys=True).encode()).hexdigest()

    def text(self, path: str) -> str:
        """A file for reading: what is not plain printable ASCII is written as an escape.

        Letters of another alphabet that look like ours, marks that turn the direction of writing, and controls that
        move the cursor make code read otherwise than it runs (Boucher and Anderson, USENIX Security 2023).
        """
        lines = self.files[path].decode("utf-8", "backslashreplace").expandtabs(4).split("\n")
        return "\n".join(_cut("".join(map(_plain, line))) for line in lines)

    def diff(self, before: Submission | None) -> str:
        """What differs from ``before`` line by line (unified diff), inputs by size; "" where nothing does."""
        old = before.files if before else {}
        parts = [self._difference(path, old, before) for path in sorted({*old, *self.files} - {FORM})]
        if before and before.software != self.software:
            parts.append(f"software: {before.software} -> {self.software}")
        return "\n".join(part for part in parts if part)

    def _difference(self, path: str, old: dict[str, bytes], before: Submission | None) -> str:
        if old.get(path) == self.files.get(path):
            return ""
        shown = "".join(map(_plain, path))
        if path.startswith(INPUTS):
            sizes = [f"{len(files[path]):,} bytes" if path in files else "none" for files in (old, self.files)]
            return f"{shown}: {' -> '.join(sizes)}"
        texts = [s.text(path).split("\n") if s and path in s.files else [] for s in (before, self)]
        lines = "\n".join(difflib.unified_diff(*texts, f"approved/{shown}", f"submitted/{shown}", lineterm=""))
        return lines or f"{shown}: changed where it is not shown (tabs, escapes, the rest of a long line)"


def _plain(character: str) -> str:
    return character if " " <= character <= "~" else character.encode("unicode_escape").decode()


def _cut(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[:LONGEST_LINE]} [{len(line) - LONGEST_LINE:,} MORE CHARACTERS IN THIS LINE ARE NOT SHOWN]"


def read_submission(hospital: str, name: str, submitted_by: str, folder: Path) -> Submission:
    """The job in ``folder``. Raises UserError for anything but plain files and folders: a link leads elsewhere."""
    files = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
        elif not stat.S_ISDIR(mode):
            remedy = "Reject it, and ask for a job of plain files"
            raise UserError(f"job {name}", "it holds a link or a device, of which the content can change", remedy)
    return Submission(hospital, name, submitted_by, files, software())


def software() -> dict[str, str]:
    """What a job meets here: Python and some packages by version, and two sums of sha256.

    One is over every source file of fedbone, the other over the RECORD of each installed package, which holds a sha256
    of each of its files as it was installed (PEP 376).
    """
    sources = hashlib.sha256()
    for path in sorted((REPOSITORY / "fedbone").rglob("*.py")):
        sources.update(path.relative_to(REPOSITORY).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    records = hashlib.sha256()
    for path in sorted(Path(sysconfig.get_path("purelib")).glob("*.dist-info/RECORD")):
        records.update(path.read_bytes())
    versions = {name: version(name) for name in PACKAGES}
    python = {"python": platform.python_version(), "os": os.name}
    return {**python, **versions, "fedbone": sources.hexdigest(), "all packages": records.hexdigest()}
