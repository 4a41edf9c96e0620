"""The benchmarks run, and end with the one line that other programs read; README shows what was committed of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from notebooks.tables.make_readme_gpu import README, table, with_table

ROOT = Path(__file__).resolve().parents[1]
IMAGING = {"fast_window_speedup", "film_128_cpu_ms", "film_512_cpu_ms", "films_600_at_128_cpu_s", "films_600_measured"}
RATIOS = {"step_vs_timm", "channels_last_vs_contiguous", "augment_vs_torchvision", "share_of_peak"}
MACHINE = {"device", "gpu", "driver", "memory_gb", "limit_gb", "torch", "cuda", "date", "steps", "rows"}
ROW = {"name", "preset", "size_px", "batch", "micro_batch", "checkpointing", "precision", "memory_format"}
ROW |= {"outcome", "films_per_s", "peak_mb"}


def last_line(*command: str) -> dict:
    """What the benchmark prints last, which must be its only line of JSON."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    *table, last = done.stdout.splitlines()
    assert not [line for line in table if line.startswith("{")]
    return json.loads(last)


def test_imaging_ends_with_one_line_of_json() -> None:
    figures = last_line("-m", "tests.benchmarks.imaging", "--repeats", "3", "--films", "2", "--large-films", "1")
    assert figures.keys() == IMAGING
    assert figures.pop("films_600_measured") is False
    assert all(value > 0 for value in figures.values())
    assert figures["fast_window_speedup"] > 1  # both ways run in turn on the same film
    assert figures["films_600_at_128_cpu_s"] == pytest.approx(figures["film_128_cpu_ms"] * 600 / 1000, rel=0.01)


def test_model_ends_with_one_line_of_json() -> None:
    figures = last_line("tests/benchmarks/model.py", "--repeats", "1", "--places", "200")
    assert figures.keys() == RATIOS | {"bf16_vs_fp32_w32", "rotation_error_px"}
    assert all(figures[name] > 0 for name in RATIOS)
    assert figures["bf16_vs_fp32_w32"] is None or figures["bf16_vs_fp32_w32"] > 0
    assert 0 < figures["rotation_error_px"] < 0.01
    assert figures["augment_vs_torchvision"] > 1  # both sides run in turn on the same films
    assert figures["share_of_peak"] < 1


def test_gpu_runs_on_the_cpu_and_ends_with_one_line_of_json(tmp_path) -> None:
    out = tmp_path / "cpu.json"
    kinds = ("contiguous", "batch 32 in passes of 16", "batch 32, checkpointing")
    only = ["t4", *(f"t4-article, {kind}" for kind in kinds)]
    options = ["--device", "cpu", "--size", "32", "--batch", "2", "--steps", "1", "--out", str(out)]
    result = last_line("tests/benchmarks/gpu.py", *options, "--only", *only)
    assert result == json.loads(out.read_text())
    assert result.keys() == MACHINE
    assert [row["name"] for row in result["rows"]] == only
    for row in result["rows"]:
        assert row.keys() == ROW
        assert (row["outcome"], row["size_px"], row["batch"], row["precision"]) == ("ran", 32, 2, "bf16")
        assert row["films_per_s"] > 0
    assert [row["memory_format"] for row in result["rows"]] == ["channels_last", "contiguous", *["channels_last"] * 2]
    assert [row["micro_batch"] for row in result["rows"]] == [None, None, 1, None]
    assert [row["checkpointing"] for row in result["rows"]] == [False, False, False, True]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="not run: this system does not report a process's peak memory")
def test_the_article_s_network_trains_on_the_cpu_in_under_4_gb() -> None:
    options = ["--device", "cpu", "--only", "t4-article", "--batch", "2", "--steps", "2"]
    run = subprocess.Popen([sys.executable, "tests/benchmarks/gpu.py", *options], cwd=ROOT, stdout=subprocess.PIPE)
    row = json.loads(run.stdout.read().splitlines()[-1])["rows"][0]
    _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0
    assert (row["preset"], row["size_px"], row["batch"], row["outcome"]) == ("w32", 512, 2, "ran")
    peak_gb = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    assert 1 < peak_gb < 4


def test_readme_shows_the_committed_gpu_results() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_table(readme, table()) == readme, "run python -m notebooks.tables.make_readme_gpu"


def test_the_gpu_table_says_what_was_not_measured_and_what_did_not_fit(tmp_path) -> None:
    row = {"preset": "w32", "size_px": 512, "batch": 32, "micro_batch": None, "checkpointing": False}
    row |= {"precision": "fp16", "memory_format": "channels_last", "outcome": "out of memory"}
    row |= {"films_per_s": None, "peak_mb": None}
    ran = {**row, "micro_batch": 16, "outcome": "ran", "films_per_s": 12.34, "peak_mb": 9070}
    machine = {"gpu": "NVIDIA A100-SXM4-40GB", "memory_gb": 42.3, "limit_gb": 15.0, "torch": "2.14.1"}
    (tmp_path / "a100.json").write_text(json.dumps({**machine, "rows": [row, ran]}))
    _, _, *lines = table(tmp_path).splitlines()
    gpu = "NVIDIA A100-SXM4-40GB, 15 GB allowed"
    assert lines == [
        "| T4 | | | not measured | not measured |",
        f"| {gpu} | 2.14.1 | W32 at 512 px, fp16, batch 32 | out of memory |  |",
        f"| {gpu} | 2.14.1 | W32 at 512 px, fp16, batch 32, in passes of 16 | 12.3 | 9.1 GB |",
    ]
