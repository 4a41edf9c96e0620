"""The stopwatch that chooses a memory format on a GPU, and that it never decides anything on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedbone.model import memory_format as module
from fedbone.model.hrnet import build
from fedbone.model.memory_format import fastest_memory_format, in_fastest_format
from fedbone.model.training import Trainer, augment
from fedbone.vectors import sha256, to_vector
from tests.helpers import dot_films, tiny_profile

PROFILE = tiny_profile(batch=2)


def is_channels_last(model) -> bool:
    """Of a 3x3 convolution with many channels, whose two layouts differ."""
    return model.stem[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_cpu_never_measures(monkeypatch):
    monkeypatch.setattr(module, "fastest_memory_format", None)
    model = build("w8n", 3).to(memory_format=torch.contiguous_format)
    assert is_channels_last(in_fastest_format(model, PROFILE, 32, 3))


@pytest.mark.parametrize(("slow", "expected"), [(True, torch.contiguous_format), (False, torch.channels_last)])
def test_the_faster_of_the_two_is_taken_in_turns(monkeypatch, slow, expected):
    timed = []

    def seconds(trainer, images, keypoints):
        timed.append(is_channels_last(trainer.model))
        return 2.0 if timed[-1] == slow else 1.0

    monkeypatch.setattr(module, "_seconds", seconds)
    monkeypatch.setattr(module, "WARM_UP", 1)
    assert fastest_memory_format(build("w8n", 3), PROFILE, 32, 3) == expected
    assert timed == [True, False] * 20


def test_one_slow_step_decides_nothing(monkeypatch):
    times = iter([9.0, 1.0] + [1.0, 2.0] * 4)
    monkeypatch.setattr(module, "_seconds", lambda *_: next(times))
    monkeypatch.setattr(module, "WARM_UP", 0)
    assert fastest_memory_format(build("w8n", 3), PROFILE, 32, 3, timed=5) == torch.channels_last


def test_the_model_itself_is_not_trained():
    model = build("w8n", 3)
    before = sha256(to_vector(model))
    fastest_memory_format(model, PROFILE, 32, 3, timed=1)
    assert sha256(to_vector(model)) == before
    assert is_channels_last(model)


def test_too_little_memory_for_two_copies_is_no_error(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module.Trainer, "step", full)
    assert fastest_memory_format(build("w8n", 3), PROFILE, 32, 3) == torch.channels_last


def test_a_kind_of_training_is_measured_once_a_process(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_found", {})
    monkeypatch.setattr(module.torch.cuda, "empty_cache", lambda: None)

    def fastest(model, profile, size_px, joints):
        asked.append(size_px)
        return torch.contiguous_format

    monkeypatch.setattr(module, "fastest_memory_format", fastest)
    gpu = replace(PROFILE, device="cuda")
    for size_px in (32, 32, 64, 32):
        assert not is_channels_last(in_fastest_format(build("w8n", 3), gpu, size_px, 3))
    assert asked == [32, 64]


def test_both_formats_train_the_same_network():
    batch, gradients = augment(dot_films(4), np.arange(4), np.random.default_rng(0), PROFILE), []
    for memory_format in module.FORMATS:
        trainer = Trainer(build("w8n", 3).to(memory_format=memory_format), PROFILE)
        trainer.gradient(*batch, 0.02)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()
