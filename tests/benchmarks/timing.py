"""The stopwatch of the benchmarks: CPU time, sides of a ratio in turns, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Work = Callable[[], object]


def cpu_seconds(work: Work) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def medians(repeats: int, *works: Work, warm: bool = False) -> list[float]:
    """Median CPU seconds of each of ``works``, called in turn; the first turn warms up and is not counted.

    warm: call each once more just before its clock starts. Memory that was freed a while ago can cost the system more
    time to hand out again than the work itself takes.
    """

    def measure(work: Work) -> float:
        if warm:
            work()
        return cpu_seconds(work)

    turns = [[measure(work) for work in works] for _ in range(repeats + 1)][1:]
    return [statistics.median(column) for column in zip(*turns, strict=True)]
