"""Measurements, not tests: each module prints a table and ends with one line of JSON. CPU time of a single thread."""

import os

for _library in ("OMP", "OPENBLAS", "MKL"):  # before anything imports numpy
    os.environ[f"{_library}_NUM_THREADS"] = "1"
