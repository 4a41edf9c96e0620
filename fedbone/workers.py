"""What every worker process needs, whatever it works on."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Let this worker process end when its parent does; an ``initializer`` for process pools.

    A killed parent cannot stop its workers, and a pool's worker would wait for work forever.
    """
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
