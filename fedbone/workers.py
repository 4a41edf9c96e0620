"""What every worker process needs, whatever it works on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def begin_worker() -> None:
    """Begin this worker process: it leaves Ctrl+C to its parent, and ends when that does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers; they need not print tracebacks too
    end_with_parent()


def end_with_parent() -> None:
    """Let this worker process end when its parent does; an ``initializer`` for process pools.

    A killed parent cannot stop its workers, and a pool's worker would wait for work forever.
    """
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
