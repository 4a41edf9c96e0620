"""One progress bar for shell and notebook, and a note of it for the program that runs the notebook."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from types import TracebackType

from tqdm.auto import tqdm

from fedbone.files import write_atomic

NOTE = "FEDBONE_PROGRESS"  # environment variable: a file for the newest count, because a stored notebook shows no bar
NOTE_EVERY_S = 1.0


class Bar:
    """Called as ``bar(done, total, text)``; nothing is drawn before the first call, and TQDM_DISABLE=1 keeps it so."""

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit, self._bar, self._noted_at = title, unit, None, -NOTE_EVERY_S

    def __call__(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            # the notebook's bar ignores TQDM_DISABLE, so say it
            off = os.environ.get("TQDM_DISABLE", "") not in ("", "0")
            self._bar = tqdm(total=total, desc=self.title, unit=self.unit, disable=off)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)
        if os.environ.get(NOTE) and time.monotonic() - self._noted_at >= NOTE_EVERY_S:
            self._note(done, total)

    def _note(self, done: int, total: int) -> None:
        """Leave title, unit, done, total and at_s (time.time()) where whoever runs this notebook looks for it."""
        self._noted_at = time.monotonic()
        note = {"title": self.title, "unit": self.unit, "done": done, "total": total, "at_s": time.time()}
        with contextlib.suppress(OSError):  # on Windows it cannot be replaced while it is read; the next one can
            write_atomic(Path(os.environ[NOTE]), json.dumps(note).encode())

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
