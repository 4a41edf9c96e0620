"""How long a training takes: an estimate before it starts, and the time that is left once some of it was measured.

The estimate counts the network's arithmetic with PyTorch's own counter; backward costs twice a forward pass.
"""

from __future__ import annotations

import functools
import json
import math
import os
from pathlib import Path

from fedbone.config import REPOSITORY, Profile

MEASURED = REPOSITORY / "notebooks" / "tables" / "gpu"  # what tests/benchmarks/gpu.py wrote on real machines
KIND = ("preset", "size_px", "batch", "micro_batch", "checkpointing", "precision")  # what decides the time of a step
MEASURED_STEPS = 20  # optimiser steps after which the measured pace replaces the estimate
COUNTED_PX = 64  # arithmetic is counted at this side and grows with the area
# the cpu profile on one core of a shared AMD EPYC server, augmentation and optimiser included: 168 films a second
CPU_CORE_FLOPS = 33e9
# float16 estimates. 8 % of a T4's peak of 65 TFLOP/s (NVIDIA's data sheet): memory limits convolutions this narrow
GPU_FLOPS = {"T4": 5e12}
# nor is a step faster than its thousands of kernels can be started: W32 took 0.24 s a step on an H100, with batch 8 as
# with batch 16, and W18 has as many layers
GPU_STEP_S = 0.25


@functools.cache
def training_flops(preset: str, size_px: int) -> float:
    """Floating point operations (a multiplication and an addition are two) to train on one film once."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fedbone.model.hrnet import build

    model = build(preset, 17).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 1, COUNTED_PX, COUNTED_PX))
    return 3 * counter.get_total_flops() * (size_px / COUNTED_PX) ** 2


def measurements(folder: Path = MEASURED) -> list[dict]:
    """The committed results of tests/benchmarks/gpu.py, in the order of their files' names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def films_per_s(profile: Profile, gpu: str = "", folder: Path = MEASURED, cores: int | None = None) -> tuple | None:
    """(films a second in training, where the figure is from); None for a GPU of which nothing is known.

    gpu: its name as nvidia-smi gives it. cores: of the CPU that train side by side (default: those of this machine).
    """
    flops = training_flops(profile.preset, profile.size_px)
    if profile.device == "cpu":
        cores = cores or os.cpu_count() or 1
        return cores * CPU_CORE_FLOPS / flops, f"estimate for {cores} core{'s' if cores > 1 else ''} like ours"
    kind = {key: getattr(profile, key) for key in KIND}
    for result in measurements(folder):
        for row in result["rows"]:
            if result["gpu"] == gpu and row["films_per_s"] and kind.items() <= row.items():
                return row["films_per_s"], f"measured on {gpu}"
    for name, speed in GPU_FLOPS.items():
        if name in gpu.replace("-", " ").split() and profile.precision == "fp16":
            return min(speed / flops, profile.batch / GPU_STEP_S), f"estimate: no {name} was measured"
    return None


def forecast(profile: Profile, presentations: int, gpu: str = "", cores: int | None = None) -> str:
    """Training time in words, for so many presentations of a film."""
    found = films_per_s(profile, gpu, cores=cores)
    if found is None:
        return f"unknown before it starts: no figure for {gpu or 'this GPU'}"
    rate, source = found
    return f"{duration(presentations / rate)} ({source})"


def duration(seconds: float) -> str:
    """A time for people: whole minutes, rounded up, or hours from two on."""
    if seconds < 60:
        return "less than a minute"
    minutes = math.ceil(seconds / 60)
    if minutes >= 120:
        return f"about {seconds / 3600:.1f} hours"
    return f"about {minutes} minute{'s' if minutes > 1 else ''}"


class Pace:
    """The time left of counted work, from what was measured: nothing is said before ``enough`` was done.

    The count starts at the first report, so that starting up and warming up are not taken for the pace of the work.
    """

    def __init__(self, enough: int) -> None:
        self.enough, self.first = enough, None

    def remaining_s(self, done: int, total: int, at_s: float) -> float | None:
        """Seconds left when ``done`` of ``total`` are finished at time ``at_s``; None as long as too few are."""
        if self.first is None or done < self.first[0]:  # other work began
            self.first = done, at_s
        done_before, before_s = self.first
        if done - done_before < self.enough:
            return None
        return (total - done) * (at_s - before_s) / (done - done_before)
