"""How much memory a process takes, as Linux tells it; elsewhere STATUS is not there."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def memory_mb(kind: str, process: int | str = "self") -> float:
    """Megabytes (1e6 bytes) of a process: VmRSS now, VmHWM at most since it was started.

    getrusage would report the parent's peak where that was higher: a process keeps it when it becomes another program.
    """
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024 / 1e6
