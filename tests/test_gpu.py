"""What only a CUDA GPU can show. Without one every test here is skipped, and says so.

These tests need no more than torch, numpy, OpenCV, safetensors and pytest: ``python -m pytest tests/test_gpu.py``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from fedbone.config import PROFILES
from fedbone.model.hrnet import build
from fedbone.model.memory_format import FORMATS, fastest_memory_format
from fedbone.model.training import Trainer, augment, predict
from tests.helpers import dot_films

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: PyTorch sees no CUDA GPU"),
]
ARTICLE = PROFILES["t4-article"]
SMALL = replace(PROFILES["t4"], preset="w8n", size_px=64, batch=8, sigma_px=1.5)
BATCH = np.arange(8)


@pytest.fixture
def gpu() -> ModuleType:
    """The benchmark, imported late: it holds this process to one thread."""
    from tests.benchmarks import gpu

    return gpu


def small_step(trainer: Trainer, rng: np.random.Generator) -> float:
    films = dot_films(8, side=64)
    return trainer.step(*augment(films, BATCH, rng, trainer.profile), 1e-3, 0.02)


def test_fp16_training_survives_an_overflow():
    trainer, rng = Trainer(build("w8n", 3), SMALL), np.random.default_rng(0)
    trainer.scaler = torch.amp.GradScaler("cuda", 2.0**40)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    losses = [small_step(trainer, rng) for _ in range(3)]
    assert all(map(math.isfinite, losses))
    assert trainer.scaler.get_scale() < 2.0**40  # it did overflow
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert any((p != q).any() for p, q in zip(trainer.model.parameters(), before, strict=True))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_learns_the_dots(precision):
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("not run: this GPU has no bf16")
    profile = replace(SMALL, precision=precision, rotation_deg=5.0)
    films, rng = dot_films(8, side=64), np.random.default_rng(0)
    trainer = Trainer(build("w8n", 3), profile)
    before = np.abs(predict(trainer.model, films.images, profile)[..., :2] - films.keypoints[..., :2]).mean()
    for _ in range(150):
        small_step(trainer, rng)
    after = np.abs(predict(trainer.model, films.images, profile)[..., :2] - films.keypoints[..., :2]).mean()
    assert after < 0.6 * before


def test_the_article_s_network_fits_a_16_gb_card(gpu):
    row = gpu.measure("t4-article", ARTICLE, steps=2)
    assert row["outcome"] == "ran"
    assert 1_000 < row["peak_mb"] < 16_000


def test_batch_32_fits_15_gb_with_checkpointing_or_in_passes(gpu):
    one = gpu.measure("batch 32, checkpointing", replace(ARTICLE, batch=32, checkpointing=True), steps=2)
    two = gpu.measure("batch 32 in passes of 16", replace(ARTICLE, batch=32, micro_batch=16), steps=2)
    assert (one["outcome"], two["outcome"]) == ("ran", "ran")
    assert max(one["peak_mb"], two["peak_mb"]) < 15_000


def test_a_batch_that_does_not_fit_is_a_row_and_not_the_end(gpu):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2e9 / total)
    try:
        assert gpu.measure("t4-article", ARTICLE, steps=2)["outcome"] == "out of memory"
        assert gpu.measure("small", replace(ARTICLE, size_px=64, batch=2), steps=2)["outcome"] == "ran"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_memory_format_is_chosen_by_timing_and_the_model_is_left_alone():
    model = build("w8n", 3).cuda()
    before = [p.detach().clone() for p in model.parameters()]
    assert fastest_memory_format(model, SMALL, 64, 3, timed=3) in FORMATS
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
