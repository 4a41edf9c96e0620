"""Estimates against published and counted arithmetic; the time left against a clock set by hand."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from fedbone.config import PROFILES
from fedbone.model import pace
from fedbone.model.hrnet import build
from fedbone.teaching import following

T4 = PROFILES["t4"]


def test_arithmetic_of_w32_is_that_of_the_paper():
    """HRNet-W32 at 256 x 192 takes 7.1 billion multiply-adds (Sun et al., table 1); training thrice as many."""
    area = 256 * 192 / 512**2
    assert pace.training_flops("w32", 512) * area / 3 / 2 == pytest.approx(7.1e9, rel=0.1)


@pytest.mark.parametrize("side", [64, 128])
def test_arithmetic_of_a_training_step_is_what_pytorch_counts(side):
    with FlopCounterMode(display=False) as counter:
        build("w8n", 17)(torch.rand(2, 1, side, side)).sum().backward()
    assert 2 * pace.training_flops("w8n", side) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_t4_profile_trains_the_workbook_within_25_minutes(tmp_path):
    rate, source = pace.films_per_s(T4, "Tesla T4", tmp_path)
    assert following.presentations_of_the_workbook(T4) / rate <= 25 * 60
    assert source == "estimate: no T4 was measured"


def test_an_estimate_is_bound_by_arithmetic_or_by_starting_kernels(tmp_path):
    rate, _ = pace.films_per_s(PROFILES["t4-article"], "Tesla T4", tmp_path)
    assert rate == pytest.approx(pace.GPU_FLOPS["T4"] / pace.training_flops("w32", 512))
    assert pace.films_per_s(T4, "Tesla T4", tmp_path)[0] == T4.batch / pace.GPU_STEP_S


def test_a_measured_figure_replaces_the_estimate(tmp_path):
    kind = {"preset": "w18", "size_px": 256, "batch": 16, "micro_batch": None, "precision": "fp16"}
    kind["checkpointing"] = False
    others = [{"batch": 32, "films_per_s": 1.0}, {"checkpointing": True, "films_per_s": 2.0}, {"films_per_s": None}]
    rows = [{**kind, **other} for other in (*others, {"films_per_s": 123.0})]
    (tmp_path / "t4.json").write_text(json.dumps({"gpu": "Tesla T4", "rows": rows}))
    assert pace.films_per_s(T4, "Tesla T4", tmp_path) == (123.0, "measured on Tesla T4")
    assert "estimate" in pace.films_per_s(T4, "NVIDIA T4", tmp_path)[1]


@pytest.mark.parametrize("gpu", ["", "NVIDIA GeForce RTX 4090", "NVIDIA T400"])
def test_nothing_is_made_up_for_an_unknown_gpu(tmp_path, gpu):
    assert pace.films_per_s(T4, gpu, tmp_path) is None
    assert pace.forecast(T4, 1000, gpu).startswith("unknown before it starts")


def test_a_t4_has_no_bf16(tmp_path):
    assert pace.films_per_s(PROFILES["a100"], "Tesla T4", tmp_path) is None


def test_twice_the_cores_halve_the_time():
    one, two = (pace.films_per_s(PROFILES["cpu"], cores=cores)[0] for cores in (1, 2))
    assert two == 2 * one
    assert re.fullmatch(r"about \d+ minutes \(estimate for .*\)", pace.forecast(PROFILES["cpu"], 78_000, cores=1))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than a minute"),
        (59, "less than a minute"),
        (60, "about 1 minute"),
        (61, "about 2 minutes"),
        (7140, "about 119 minutes"),
        (9000, "about 2.5 hours"),
    ],
)
def test_durations(seconds, text):
    assert pace.duration(seconds) == text


@given(rate=st.floats(0.1, 1000), start=st.integers(0, 1000), more=st.integers(20, 1000), rest=st.integers(0, 10_000))
def test_steady_work_takes_what_is_left_at_its_rate(rate, start, more, rest):
    clock, total = pace.Pace(20), start + more + rest
    assert clock.remaining_s(start, total, 5.0) is None
    assert clock.remaining_s(start + more, total, 5.0 + more / rate) == pytest.approx(rest / rate, rel=1e-6, abs=1e-6)


def test_nothing_is_said_before_twenty_steps_and_the_warm_up_does_not_count():
    clock = pace.Pace(20)
    assert clock.remaining_s(1, 101, 100.0) is None  # a hundred seconds until the first step
    assert clock.remaining_s(20, 101, 119.0) is None
    assert clock.remaining_s(21, 101, 120.0) == pytest.approx(80.0)


def test_other_work_starts_a_new_count():
    clock = pace.Pace(2)
    clock.remaining_s(50, 60, 0.0)
    assert clock.remaining_s(1, 10, 5.0) is None
    assert clock.remaining_s(3, 10, 7.0) == pytest.approx(7.0)
