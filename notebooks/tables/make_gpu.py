"""Measures notebooks/tables/gpu.csv: speed and memory of training HRNet-W32 at 512 pixels on the GPU of this machine.

    python -m notebooks.tables.make_gpu [OUT.csv]      (two minutes)

Films of noise: speed and memory do not depend on what a film shows. The rate includes the augmentation on one CPU
core. PyTorch may use only limit_gb of the card, so that a large card can stand in for a
small one; fits says whether the batch ran.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedbone.config import PROFILES
from fedbone.files import write_atomic
from fedbone.imaging.dataset import FilmSet
from fedbone.model.hrnet import build
from fedbone.model.training import Trainer

COLUMNS = ["device", "torch", "precision", "batch", "limit_gb", "fits", "films_per_s", "peak_gb"]
LIMIT_GB = 15.0  # what a 16 GB card leaves to a program
FILMS = 96


def noise_films(count: int, size_px: int) -> FilmSet:
    """Films without content, every joint labelled."""
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(100, size_px - 100, (count, 17, 3)).astype(np.float32)
    images = rng.integers(0, 256, (count, size_px, size_px), dtype=np.uint8)
    return FilmSet(images, keypoints, np.ones((count, 2), np.float32), tuple(map(str, range(count))))


def measure(precision: str, batch: int, films: FilmSet) -> dict:
    """One row: the second and third epoch are timed, the first warms up."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    profile = replace(PROFILES["t4"], precision=precision, batch=batch)
    row = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "precision": precision, "batch": batch}
    row |= {"limit_gb": LIMIT_GB, "fits": "no", "films_per_s": "", "peak_gb": ""}
    trainer, rng = Trainer(build(profile.preset, 17), profile), np.random.default_rng(0)
    try:
        trainer.epoch(films, 1e-3, 0.02, rng)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(2):
            trainer.epoch(films, 1e-3, 0.02, rng)
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        return row
    rate = 2 * len(films) / (time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() / 1e9
    return row | {"fits": "yes", "films_per_s": round(rate, 1), "peak_gb": round(peak, 2)}


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("gpu.csv")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT_GB * 1e9 / total))
    films = noise_films(FILMS, PROFILES["t4"].size_px)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for precision, batch in [("fp16", 8), ("fp16", 16), ("fp16", 24), ("fp16", 32), ("fp32", 16), ("bf16", 16)]:
        table.writerow(measure(precision, batch, films))
    write_atomic(out, text.getvalue().encode())
    print(text.getvalue())
