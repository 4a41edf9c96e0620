"""How fast this machine is, so that a limit in CPU seconds means the same work everywhere."""

from __future__ import annotations

import statistics
import time

import torch

from fedbone.config import get_profile
from fedbone.imaging.coco import COCO_JOINTS
from fedbone.model.hrnet import build_for

# Where the limits were set chapter 03's training took 38 CPU seconds; it took 78 where such a step took 0.072.
STEP_CPU_S = 0.035


def slowness(steps: int = 20) -> float:
    """How many times STEP_CPU_S a step (forward and backward) of the cpu profile takes here and now, at least 1.

    The median of ``steps``, in CPU seconds of one thread: several would wait for each other spinning, and beside other
    work that alone multiplies their CPU seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return max(1.0, _median_step_s(steps) / STEP_CPU_S)
    finally:
        torch.set_num_threads(threads)


def _median_step_s(steps: int) -> float:
    profile = get_profile("cpu")
    model, films = build_for(profile, len(COCO_JOINTS)), torch.rand(profile.batch, 1, profile.size_px, profile.size_px)

    def step() -> float:
        begin = time.process_time()
        model(films).square().mean().backward()
        return time.process_time() - begin

    step()  # the first one sets things up
    return statistics.median(step() for _ in range(steps))
