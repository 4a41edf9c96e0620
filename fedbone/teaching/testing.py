"""What ``make test`` and ``make test-all`` run: each step in a process of its own, all of them even after a failure."""

from __future__ import annotations

import subprocess
import sys
import time

from fedbone import config
from fedbone.teaching import workbook
from fedbone.teaching.exercises import SOLUTIONS

ROUNDS = "4"  # enough that every cell works; claims about the full training are checked by make run
CELL_SECONDS = 600
TESTS = config.REPOSITORY / "tests"
# current-env: this interpreter, whatever kernel the file names. lax: only cells marked NBVAL_CHECK_OUTPUT are compared
NBVAL = ("--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}")
# loadscope: a notebook is one kernel, so its cells must stay on one worker, in order
TWO_PROCESSES = ("-n", "2", "--dist", "loadscope")


def test() -> int:
    """Unit tests, then every notebook and every solution against its stored results; the exit code."""
    notebooks = [str(path) for folder in (workbook.NOTEBOOKS, SOLUTIONS) for path in workbook.chapters(folder)]
    stored = pytest(*NBVAL, *TWO_PROCESSES, *notebooks)
    return _steps(
        ("unit tests", pytest("-m", "not slow and not release", *TWO_PROCESSES, str(TESTS)), environment()),
        ("notebooks against their stored results", stored, environment(FEDBONE_ROUNDS=ROUNDS)),
    )


def test_all() -> int:
    """The slow tests, the whole workbook with full training, and whether every pin has a binary wheel."""
    book = [sys.executable, "-m", "fedbone", "workbook"]  # as a reader would run it, with the reader's variables
    return _steps(
        ("slow tests", pytest("-m", "slow", *TWO_PROCESSES, str(TESTS)), environment()),
        ("the whole workbook", book, None),
        ("binary wheels for every pin", [sys.executable, str(TESTS / "wheels.py")], None),
    )


def pytest(*arguments: str) -> list[str]:
    """A pytest command that writes its cache into build/."""
    return [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={config.build_dir() / 'pytest'}", *arguments]


def environment(**extra: str) -> dict[str, str]:
    """Variables for tests: never on own films, and results apart from those of make run."""
    shared = workbook.kernel_environment()
    shared.pop("FEDBONE_DATA", None)
    return {"FEDBONE_PROFILE": "cpu", **extra, **shared, "FEDBONE_BUILD": str(config.build_dir() / "test")}


def _steps(*steps: tuple[str, list[str], dict[str, str] | None]) -> int:
    """Run named commands with their variables one after the other, say how each ended; 1 when any failed."""
    failed = []
    for name, command, variables in steps:
        print(f"== {name}", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        code = subprocess.call(command, cwd=config.REPOSITORY, env=variables)
        print(f"== {name}: {'ok' if not code else 'FAILED'}, {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        failed += [name] if code else []
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
