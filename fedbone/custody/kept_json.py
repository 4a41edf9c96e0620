"""A JSON file that several processes read and change: never half written, never silently replaced by a fresh one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedbone.errors import UserError
from fedbone.files import alone, sync_folder, write_json

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what a check of outside JSON may raise


def read_strictly(data: bytes) -> object:
    """What ``data``, UTF-8 JSON, says, where it can be read in one way only.

    Raises ValueError or RecursionError for anything else: a name twice in one object (RFC 8259, section 4, leaves open
    which one counts), NaN and infinity, a byte order mark.
    """
    return json.loads(data.decode(), object_pairs_hook=_each_name_once, parse_constant=_no_constant)


def _each_name_once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True)
class KeptJson:
    """The JSON object in the file ``path``, of which ``name`` (for messages) says what it is.

    ``check`` raises one of ``UNREADABLE`` for content that is not of this kind; ``remedy`` says how to get a lost file
    back. Every method raises UserError for a file that is damaged, cannot be read, or is gone though there was one.
    """

    path: Path
    name: str
    check: Callable[[dict], None]
    remedy: str

    def read(self) -> dict | None:
        """The content; None before the first change."""
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            if Path(self.path).is_symlink() or (self._lock.exists() and self._lock.stat().st_size):
                raise UserError(self.path, f"the {self.name} is gone, and there was one", self.remedy) from None
            return None
        except OSError as error:
            remedy = "Check that this account may read the file"
            raise UserError(self.path, f"the {self.name} cannot be read ({error.strerror})", remedy) from error
        try:
            content = read_strictly(data)
            self.check(content)
        except UNREADABLE as error:
            problem = f"the {self.name} is damaged ({error!s:.120})"
            raise UserError(self.path, problem, self.remedy) from error
        return content

    @contextmanager
    def change(self) -> Iterator[dict]:
        """Hold the file: the content ({} before the first change), which may be changed in place.

        It is on the disk when the block ends; nothing changes where the block raises or the process is killed.
        """
        with alone(self._lock) as marker:
            content = self.read() or {}
            yield content
            write_json(self._file, content)
            sync_folder(self._file.parent)  # the new name must survive a power failure too
            if not marker.tell():
                marker.write(b"this file has begun")

    @property
    def _file(self) -> Path:
        """The file itself: replacing a link would begin a second file beside the one it leads to."""
        return Path(self.path).resolve()

    @property
    def _lock(self) -> Path:
        return self._file.with_name(f"{self._file.name}.lock")
