"""What a job prints, in a file that stays at its hospital: plain text, and limited.

syft lets the submitter read whatever the supervisor itself prints, so nothing of a job goes there.
"""

from __future__ import annotations

import codecs
import os
import select
import time
from pathlib import Path
from types import TracebackType

FINISH_S = 5.0  # at most, should a process that escaped (not on Linux) keep the pipe open


class Log:
    """The file ``path``, made new and for this user only; a context manager.

    writer: the end of a pipe for the job's stdout and stderr; bytes: how much came through it; open: whether more can.
    Beyond ``most`` bytes nothing is written or read.
    """

    def __init__(self, path: Path, most: int) -> None:
        path.unlink(missing_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._reader, self.writer = os.pipe()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._most, self.open, self.bytes = most, True, 0

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._reader)
        os.close(self._file)

    def close_writer(self) -> None:
        """Once the job has it: the pipe ends when the job's own end is closed."""
        os.close(self.writer)

    def move(self, seconds: float) -> None:
        """Write what comes within ``seconds``; ends early when nothing can come any more."""
        end = time.monotonic() + seconds
        while self.open and self.bytes <= self._most and (left := end - time.monotonic()) > 0:
            if select.select([self._reader], [], [], left)[0]:
                self._read()

    def finish(self) -> None:
        """Write the rest, once nothing of the job is left to print more."""
        self.move(FINISH_S)

    def say(self, text: str) -> None:
        """A line of the supervisor's own."""
        os.write(self._file, f"{text}\n".encode(errors="backslashreplace"))

    def _read(self) -> None:
        data = os.read(self._reader, 65_536)
        self.open = bool(data)
        # control characters could rewrite what a person sees of the log
        text = self._decoder.decode(data[: max(0, self._most - self.bytes)], final=not data)
        self.bytes += len(data)
        os.write(self._file, "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text).encode())
