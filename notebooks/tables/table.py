"""What the scripts of this folder share: their arguments, the form of their tables, and filling one row by row."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from fedbone.files import write_atomic
from fedbone.imaging.hospitals import GENERATOR_VERSION
from fedbone.workers import end_with_parent

FOLDER = Path(__file__).parent
# the schedule of the tables about networks and losses: 30 epochs in one place, a rate that ends at 0.4 of the first
ONE_PLACE = {"rounds": 30, "local_epochs": 1, "round_decay": 0.97, "cooldown": 0.0}


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


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a table of this folder; none where it is not there yet."""
    path = FOLDER / name
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def save(name: str, columns: list[str], rows: list[dict]) -> None:
    """Write a table of this folder, and print it."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomic(FOLDER / name, text.getvalue().encode())
    print(text.getvalue())


def fill(name: str, columns: list[str], work: list[tuple[str, int]], measure: Callable[[str, int], list[dict]]) -> None:
    """Measure what the table lacks of ``work``, its first two columns, and write it anew after each measurement.

    Delete a table whose settings have changed; one of other films is refused. As many processes as cores.
    """
    done = rows(name)
    if others := {row["generator"] for row in done if row.get("generator")} - {str(GENERATOR_VERSION)}:
        raise SystemExit(f"{FOLDER / name} has rows of film generator {', '.join(others)}: delete it to measure anew")
    there = {(row[columns[0]], row[columns[1]]) for row in done}
    missing = [key for key in work if (key[0], str(key[1])) not in there]
    order = {(arm, str(seed)): place for place, (arm, seed) in enumerate(sorted(work, key=lambda key: key[1]))}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=end_with_parent) as executor:
        for future in as_completed([executor.submit(measure, *key) for key in missing]):
            done += future.result()
            done.sort(key=lambda row: order.get((row[columns[0]], str(row[columns[1]])), len(order)))
            save(name, columns, done)
