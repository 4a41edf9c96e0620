"""The benchmarks run, and end with the one line that other programs read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KEYS = {"fast_window_speedup", "film_128_cpu_ms", "film_512_cpu_ms", "films_600_at_128_cpu_s", "films_600_measured"}


def test_imaging_ends_with_one_line_of_json() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.imaging", "--repeats", "3", "--films", "2", "--large-films", "1"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    *table, last = done.stdout.splitlines()
    assert not [line for line in table if line.startswith("{")]
    figures = json.loads(last)
    assert figures.keys() == KEYS
    assert figures.pop("films_600_measured") is False
    assert all(value > 0 for value in figures.values())
    assert figures["fast_window_speedup"] > 1  # both ways run in turn on the same film
    assert figures["films_600_at_128_cpu_s"] == pytest.approx(figures["film_128_cpu_ms"] * 600 / 1000, rel=0.01)
