"""CPU time of reading a film and of simulating one: ``python tests/benchmarks/imaging.py`` (or -m, from the root).

Both ways of reading start from the same decoded film and are timed in turn, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only its own folder is there

from fedbone.imaging.frame import Frame
from fedbone.imaging.grey import to_grey
from fedbone.imaging.hospitals import simulate_film
from fedbone.imaging.site_table import SITES
from tests.dicom_cases import film

ROWS, COLS, SIZE_PX = 2400, 1935, 512  # a common detector, and the network's largest input
TRAINING_FILMS = 200  # of each hospital


def large_film() -> tuple[np.ndarray, Dataset]:
    """Stored values and header of a 12-bit film with a window: smooth shadows and noise."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.uniform(300, 3800, (12, 10)), (COLS, ROWS), interpolation=cv2.INTER_CUBIC)
    stored = np.clip(smooth + rng.normal(0, 30, smooth.shape), 0, 4095).astype(np.uint16)
    tags = {"WindowCenter": 2000, "WindowWidth": 3000, "RescaleSlope": 1, "RescaleIntercept": 0}
    return stored, film(stored, BitsStored=12, **tags)


def read_fast(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """The project's way: resize the stored values, then window."""
    return to_grey(stored, dataset, Frame(*stored.shape, SIZE_PX)).image


def read_slow(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """pydicom's functions at full resolution, then resize: the usual way."""
    windowed = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
    frame = Frame(*stored.shape, SIZE_PX)
    (rows, cols), (top, left) = frame.inner, frame.offset
    small = cv2.resize(windowed, (cols, rows), interpolation=cv2.INTER_AREA) / (2**dataset.BitsStored - 1)
    image = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    image[top : top + rows, left : left + cols] = np.rint(small * 255)
    return image


def cpu_ms(work: Callable[..., object], *arguments: object) -> float:
    """CPU milliseconds of one call."""
    started = time.process_time()
    work(*arguments)
    return (time.process_time() - started) * 1000


def time_reading(repeats: int) -> tuple[float, float, int]:
    """Median CPU ms of the fast and of the slow way, and the largest difference of their pictures in grey levels."""
    stored, dataset = large_film()
    apart = int(np.abs(read_fast(stored, dataset).astype(int) - read_slow(stored, dataset)).max())
    times = [(cpu_ms(read_fast, stored, dataset), cpu_ms(read_slow, stored, dataset)) for _ in range(repeats)]
    fast, slow = (statistics.median(column) for column in zip(*times, strict=True))
    return fast, slow, apart


def time_films(films: dict[int, int]) -> dict[int, dict[str, list[float]]]:
    """CPU ms of each film by size and hospital; films: how many of each hospital for a size in pixels, taken in turn.

    The first film of every hospital and size is drawn before: it loads the skeleton and fills the caches.
    """
    for size_px in films:
        for hospital in SITES:
            simulate_film(hospital, 0, TRAINING_FILMS, size_px)
    times = {size_px: {hospital: [] for hospital in SITES} for size_px in films}
    for index in range(max(films.values())):
        for size_px in (size for size, count in films.items() if index < count):
            for hospital, measured in times[size_px].items():
                measured.append(cpu_ms(simulate_film, hospital, 0, index, size_px))
    return times


def main() -> None:
    """Measure, print a table, then the results as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="of both ways of reading (default 9)")
    parser.add_argument("--films", type=int, default=TRAINING_FILMS, help="a hospital at 128 pixels (default 200)")
    parser.add_argument("--large-films", type=int, default=12, help="a hospital at 512 pixels (default 12)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    fast, slow, apart = time_reading(args.repeats)
    times = time_films({128: args.films, 512: args.large_films})
    mean = {size: statistics.mean(ms for each in rows.values() for ms in each) for size, rows in times.items()}
    measured = args.films == TRAINING_FILMS
    total_s = sum(map(sum, times[128].values())) / args.films * TRAINING_FILMS / 1000

    print(f"read {ROWS} x {COLS} pixels at {SIZE_PX}, CPU ms: resize first {fast:.1f}, window first {slow:.1f}")
    print(f"largest difference of the two pictures: {apart} grey levels, where the window clips")
    for size_px, rows in times.items():
        each = ", ".join(f"{name} {statistics.mean(values):.1f}" for name, values in rows.items())
        print(f"draw a film at {size_px} pixels, CPU ms: {mean[size_px]:.1f} (mean of {each})")
    print(f"draw 600 films at 128 pixels: {total_s:.1f} CPU s, {'measured' if measured else 'from fewer films'}")
    figures = {
        "fast_window_speedup": round(slow / fast, 2),
        "film_128_cpu_ms": round(mean[128], 2),
        "film_512_cpu_ms": round(mean[512], 2),
        "films_600_at_128_cpu_s": round(total_s, 2),
        "films_600_measured": measured,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
