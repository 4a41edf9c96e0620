"""One progress bar for shell and notebook."""

from __future__ import annotations

import os
from types import TracebackType

from tqdm.auto import tqdm


class Bar:
    """Called as ``bar(done, total, text)``; nothing is drawn before the first call, and TQDM_DISABLE=1 keeps it so."""

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit, self._bar = title, unit, None

    def __call__(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            # the notebook's bar ignores TQDM_DISABLE, so say it
            off = os.environ.get("TQDM_DISABLE", "") not in ("", "0")
            self._bar = tqdm(total=total, desc=self.title, unit=self.unit, disable=off)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
