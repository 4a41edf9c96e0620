"""Which order of a tensor's axes in memory trains fastest on this GPU; the answer differs between GPUs.

Both orders compute the same network. channels_last (B, H, W, C in memory) suits tensor cores and CPU convolutions.
"""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from torch import nn

from fedbone.config import Profile
from fedbone.model.pace import KIND
from fedbone.model.training import Trainer, as_batch, reproducible

FORMATS = (torch.channels_last, torch.contiguous_format)
WARM_UP, TIMED = 3, 20  # optimiser steps in each format
_found: dict[tuple, torch.memory_format] = {}


def in_fastest_format(model: nn.Module, profile: Profile, size_px: int, joints: int) -> nn.Module:
    """``model`` in the memory format to train it in: timed once per GPU process and kind of training.

    On the CPU always channels_last: rounding depends on the format, and a stopwatch must not decide the bytes.
    """
    if profile.device == "cpu":
        return model.to(memory_format=torch.channels_last)
    kind = type(model), size_px, profile.norm, *(getattr(profile, name) for name in KIND)
    if kind not in _found:
        _found[kind] = fastest_memory_format(model, profile, size_px, joints)
        torch.cuda.empty_cache()  # the copies are gone: their memory must not lie split among cached blocks
    return model.to(memory_format=_found[kind])


def fastest_memory_format(
    model: nn.Module, profile: Profile, size_px: int, joints: int, timed: int = TIMED
) -> torch.memory_format:
    """The format with the shorter median step of ``timed``, measured on copies of ``model`` and films of noise.

    The two take turns, so that a GPU that heats up slows both. channels_last where memory is too small for two copies.
    """
    rng = np.random.default_rng(0)
    images = as_batch(rng.random((profile.batch, 1, size_px, size_px), np.float32))
    keypoints = torch.from_numpy(rng.uniform(1, size_px - 1, (profile.batch, joints, 3)).astype(np.float32))
    try:
        trainers = [Trainer(copy.deepcopy(model).to(memory_format=f), profile) for f in FORMATS]
        with reproducible(profile.device):
            for trainer in trainers:
                for _ in range(WARM_UP):
                    trainer.step(images, keypoints, 0.0, profile.wing_weight)
            turns = [[_seconds(trainer, images, keypoints) for trainer in trainers] for _ in range(timed)]
    except torch.OutOfMemoryError:
        return FORMATS[0]
    return FORMATS[int(np.argmin(np.median(turns, axis=0)))]


def _seconds(trainer: Trainer, images: torch.Tensor, keypoints: torch.Tensor) -> float:
    """Of one step; its loss is read, so the GPU has finished when it returns."""
    begin = time.perf_counter()
    trainer.step(images, keypoints, 0.0, trainer.profile.wing_weight)
    return time.perf_counter() - begin
