"""What a job prints, on its way to the hospital's log: as plain text, limited, and without ever waiting for a reader."""

from __future__ import annotations

import codecs
import os
import select
import time

FLUSH_S = 5.0  # for whoever reads our output to take the rest of it


class Logs:
    """The job's output on its way to ours, as plain text, up to ``most`` bytes; it never waits for our reader.

    bytes: how much the job wrote. unread: our reader is gone.
    """

    def __init__(self, most: int) -> None:
        pipes = [os.pipe(), os.pipe()]
        self.writers = tuple(write for _, write in pipes)
        self._targets = {read: target for (read, _), target in zip(pipes, (1, 2), strict=True)}
        self._decoders = {target: codecs.getincrementaldecoder("utf-8")("replace") for target in (1, 2)}
        self._waiting = {1: b"", 2: b""}
        self._most, self.bytes, self.unread = most, 0, False

    def close_writers(self) -> None:
        for writer in self.writers:
            os.close(writer)

    def move(self, seconds: float) -> None:
        """Pass on what comes within ``seconds``; ends early when the job has closed its output or broken the limit."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self.bytes <= self._most and not self.unread:
            full = [target for target, text in self._waiting.items() if text]
            ready, free, _ = select.select([*self._targets], full, [], left)
            for reader in ready:
                self._read(reader)
            for target in free:
                self._write(target)
            if not self._busy():
                break

    def _busy(self) -> bool:
        return bool(self._targets) or any(self._waiting.values())

    def finish(self) -> None:
        """The rest, once nothing of the job is left to write more."""
        if self._busy():
            self.move(FLUSH_S)

    def _read(self, reader: int) -> None:
        target, data = self._targets[reader], os.read(reader, 65_536)
        if not data:
            os.close(reader)
            del self._targets[reader]
        # control characters could rewrite what a person sees of the log
        text = self._decoders[target].decode(data[: max(0, self._most - self.bytes)], final=not data)
        self.bytes += len(data)
        self._waiting[target] += "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text).encode()

    def _write(self, target: int) -> None:
        try:
            written = os.write(target, self._waiting[target][: select.PIPE_BUF])
            self._waiting[target] = self._waiting[target][written:]
        except OSError:
            self.unread = True
