"""What is said when a GPU's memory runs out: the numbers of this training, and a remedy that the planner says fits."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fedbone.config import PROFILES
from fedbone.model import out_of_memory as module
from fedbone.model.out_of_memory import out_of_memory, remedy
from fedbone.model.planner import largest_batch

PROFILE = PROFILES["t4-article"]  # w32, 512 px, fp16, batch 16


@pytest.fixture
def room(monkeypatch):
    """Say how many films fit: a function of size and checkpointing, in place of the planner's."""

    def give(fits) -> None:
        monkeypatch.setattr(
            module,
            "largest_batch",
            lambda preset, size_px, precision, memory_gb, *, checkpointing: fits(size_px, checkpointing),
        )

    return give


def test_the_error_names_everything_that_a_reader_can_change(monkeypatch, room):
    room(lambda size_px, checkpointing: 5)
    monkeypatch.setattr(module, "gpu_memory", lambda: ("Tesla T4", 15.84, 9.26))
    error = out_of_memory(replace(PROFILE, micro_batch=12), 512)
    assert str(error) == (
        "profile t4-article: w32 at 512 px, fp16, batch 16 in passes of 12 does not fit into the memory of Tesla T4: "
        "15.8 GB, of which 9.3 GB are free for this program. "
        "Take micro_batch=5 (--micro-batch 5): the same gradients in smaller passes"
    )


@pytest.mark.parametrize(
    ("changes", "fits", "words"),
    [
        ({}, lambda px, checkpointing: 100, "micro_batch=8 "),  # 16 just failed, whatever the planner says
        ({"micro_batch": 3}, lambda px, checkpointing: 100, "micro_batch=1 "),
        ({"micro_batch": 1}, lambda px, checkpointing: 100, "Take checkpointing=True (--checkpointing)"),
        (
            {},
            lambda px, checkpointing: 7 * checkpointing,
            "checkpointing=True (--checkpointing) and micro_batch=7 ",
        ),
        ({}, lambda px, checkpointing: 40 * checkpointing, "checkpointing=True (--checkpointing)"),
        (
            {},
            lambda px, checkpointing: 2 * (px <= 384),
            "films of 384 px (--size 384), checkpointing=True and micro_batch=2 ",
        ),
        ({"checkpointing": True}, lambda px, checkpointing: 6 * checkpointing, "micro_batch=6 "),
        ({}, lambda px, checkpointing: 0, "smaller network (--preset w8n)"),
    ],
)
def test_the_mildest_change_that_fits_is_named(room, changes, fits, words):
    room(fits)
    text = remedy(replace(PROFILE, **changes), 512, 15.0)
    assert words in text
    assert text.startswith("Take ")


def test_a_training_that_was_checkpointed_already_needs_smaller_films(room):
    room(lambda size_px, checkpointing: int(size_px < 512))
    assert "films of 480 px" in remedy(replace(PROFILE, checkpointing=True, micro_batch=1), 512, 15.0)


@pytest.mark.parametrize("memory_gb", [15.0, 6.0, 2.0, 1.0])
def test_the_planner_agrees_with_what_is_named(memory_gb):
    """With the real planner: the words are taken apart again and asked of it."""
    text = remedy(PROFILE, 512, memory_gb)
    films = int(found[1]) if (found := re.search(r"micro_batch=(\d+)", text)) else PROFILE.batch
    size_px = int(found[1]) if (found := re.search(r"films of (\d+) px", text)) else 512
    checkpointing = "checkpointing=True" in text
    assert films <= largest_batch("w32", size_px, "fp16", memory_gb, checkpointing=checkpointing)
    assert size_px % 32 == 0


def test_on_a_cpu_the_memory_is_that_of_the_computer(room):
    room(lambda size_px, checkpointing: 2)
    error = str(out_of_memory(PROFILES["cpu"], 1024))
    assert re.search(r"does not fit into the memory of this computer: \d+\.\d GB, of which \d+\.\d GB are free", error)
    assert "--micro-batch 2" in error
