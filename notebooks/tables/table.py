"""What the scripts of this folder share: their arguments and the form of their tables."""

from __future__ import annotations

import csv
import io
import platform
import sys
from pathlib import Path

from fedbone.files import write_atomic

FOLDER = Path(__file__).parent


def seeds() -> list[int]:
    """The seeds on the command line, else 0, 1 and 2."""
    return [int(word) for word in sys.argv[1:]] or [0, 1, 2]


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def save(name: str, columns: list[str], rows: list[dict]) -> None:
    """Write a table of this folder, and print it."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomic(FOLDER / name, text.getvalue().encode())
    print(text.getvalue())
