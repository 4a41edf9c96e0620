"""Speed and memory of training on the GPU of this machine: ``python tests/benchmarks/gpu.py --out FILE.json``.

Ends with one line of JSON, which ``--out`` also writes; notebooks/tables/gpu/ keeps such files, and
``python -m notebooks.tables.make_readme_gpu`` puts them into README.md. Films of noise: neither speed nor memory
depends on what a film shows. A step is what training does, augmentation on one CPU core included. It needs only torch,
numpy, OpenCV and safetensors beside fedbone itself.

``--limit-gb 15`` allows PyTorch no more than a 16 GB card leaves to a program, so that a large card can stand in for
one. ``--device cpu --size 64 --steps 2`` runs the same function on the CPU, where bfloat16 takes the place of float16
and memory is not measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only its own folder is there

from fedbone.config import COARSEST_PX, PROFILES, Profile
from fedbone.files import write_atomic
from fedbone.imaging.dataset import FilmSet
from fedbone.model.hrnet import build_for
from fedbone.model.training import Trainer, augment, reproducible
from fedbone.options import positive

JOINTS, WARM_UP = 17, 3
ARTICLE = PROFILES["t4-article"]
CASES = {
    "t4": PROFILES["t4"],
    "t4-article": ARTICLE,
    "t4-article, contiguous": ARTICLE,
    "t4-article, batch 32": replace(ARTICLE, batch=32),
    "t4-article, batch 32 in passes of 16": replace(ARTICLE, batch=32, micro_batch=16),
    "t4-article, batch 32, checkpointing": replace(ARTICLE, batch=32, checkpointing=True),
    "t4-article, bf16": replace(ARTICLE, precision="bf16"),
    "a100": PROFILES["a100"],
}
KEPT = ("preset", "size_px", "batch", "micro_batch", "checkpointing", "precision")  # of a profile, in every row


def noise_films(count: int, size_px: int) -> FilmSet:
    """Films without content, every joint labelled."""
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(1, size_px - 1, (count, JOINTS, 3)).astype(np.float32)
    images = rng.integers(0, 256, (count, size_px, size_px), dtype=np.uint8)
    return FilmSet(images, keypoints, np.ones((count, 2), np.float32), tuple(map(str, range(count))))


def measure(name: str, profile: Profile, steps: int) -> dict:
    """One row: films a second and peak memory of ``steps`` optimiser steps after WARM_UP others.

    outcome: ran, out of memory, or no bf16 (the hardware has none; PyTorch would emulate it). peak_mb: megabytes (1e6
    bytes) that PyTorch had allocated at most, None on the CPU.
    """
    layout = "contiguous" if name.endswith("contiguous") else "channels_last"
    row = {"name": name, **{key: getattr(profile, key) for key in KEPT}, "memory_format": layout}
    row |= {"outcome": "ran", "films_per_s": None, "peak_mb": None}
    on_gpu = profile.device == "cuda"
    if on_gpu and profile.precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        return row | {"outcome": "no bf16"}
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        rate = films_per_s(profile, getattr(torch, layout.replace("contiguous", "contiguous_format")), steps)
    except torch.OutOfMemoryError:
        return row | {"outcome": "out of memory"}
    peak = round(torch.cuda.max_memory_allocated() / 1e6) if on_gpu else None
    return row | {"films_per_s": round(rate, 2), "peak_mb": peak}


def films_per_s(profile: Profile, layout: torch.memory_format, steps: int) -> float:
    """Films a second of training; the loss of every step is read, so the GPU has finished when the clock stops."""
    trainer = Trainer(build_for(profile, JOINTS).to(memory_format=layout), profile)
    films, rng = noise_films(4 * profile.batch, profile.size_px), np.random.default_rng(0)

    def step(number: int) -> None:
        index = np.arange(profile.batch) + number % 4 * profile.batch
        trainer.step(*augment(films, index, rng, profile), profile.learning_rate, profile.wing_weight)

    with reproducible(profile.device):
        for number in range(WARM_UP):
            step(number)
        begin = time.perf_counter()
        for number in range(steps):
            step(number)
        return steps * profile.batch / (time.perf_counter() - begin)


def adapt(profile: Profile, device: str, size_px: int | None, batch: int | None) -> Profile:
    """The profile on another device, with smaller films and batches where they are asked for."""
    precision = "bf16" if device == "cpu" and profile.precision == "fp16" else profile.precision
    share = min(batch or profile.batch, profile.batch) / profile.batch
    micro = profile.micro_batch and max(1, int(profile.micro_batch * share))
    changes = {"batch": int(profile.batch * share), "micro_batch": micro, "size_px": size_px or profile.size_px}
    return replace(profile, device=device, precision=precision, **changes)


def machine(device: str, limit_gb: float | None) -> dict:
    """What the figures were measured on and with."""
    facts = {"device": device, "gpu": None, "driver": None, "memory_gb": None, "limit_gb": limit_gb}
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        facts |= {"gpu": torch.cuda.get_device_name(), "driver": driver(), "memory_gb": round(total / 1e9, 1)}
        if limit_gb:
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gb * 1e9 / total))
    return facts | {"torch": torch.__version__, "cuda": torch.version.cuda, "date": time.strftime("%Y-%m-%d")}


def driver() -> str | None:
    """Version of the NVIDIA driver, None where nvidia-smi is missing."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else None


def main() -> None:
    """Measure every case, print a line for each, then all as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--limit-gb", type=float, metavar="GB", help="of GPU memory (default: all that the card has)")
    parser.add_argument("--steps", type=positive, default=12, help="timed optimiser steps of a case (default 12)")
    parser.add_argument("--size", type=positive, metavar="PX", help="side of the films (default: the profile's)")
    parser.add_argument("--batch", type=positive, metavar="FILMS", help="at most (default: the profile's)")
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), metavar="CASE", help=f"of: {'; '.join(CASES)}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the line of JSON there too")
    args = parser.parse_args()
    if args.size and args.size % COARSEST_PX:
        parser.error(f"--size: HRNet halves a film five times; give a multiple of {COARSEST_PX}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; --device cpu measures on the CPU")
    result = {**machine(args.device, args.limit_gb), "steps": args.steps, "rows": []}
    for name in args.only or CASES:
        row = measure(name, adapt(CASES[name], args.device, args.size, args.batch), args.steps)
        result["rows"].append(row)
        print(f"{name:38} {row['outcome']}, films/s: {row['films_per_s']}, peak MB: {row['peak_mb']}", flush=True)
    line = json.dumps(result)
    if args.out:
        write_atomic(args.out, line.encode() + b"\n")
    print(line)


if __name__ == "__main__":
    main()
