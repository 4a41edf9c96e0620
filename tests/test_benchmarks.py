"""The benchmarks run, and end with the one line that other programs read; README shows what was committed of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedbone.federation.hospital import Update
from fedbone.model.schedule import films_shown
from notebooks.tables.make_readme_gpu import README, table, with_table
from tests.benchmarks import federation
from tests.benchmarks.memory import STATUS, memory_mb

ROOT = Path(__file__).resolve().parents[1]
IMAGING = {"fast_window_speedup", "film_128_cpu_ms", "film_512_cpu_ms", "films_600_at_128_cpu_s", "films_600_measured"}
RATIOS = {"step_vs_timm", "channels_last_vs_contiguous", "augment_vs_torchvision", "share_of_peak"}
FEDERATION = {"mre_ratio_sample", "mre_ratio_sample_2x", "pck_ratio_sample", "loop_overhead_ms_per_round"}
FEDERATION |= {"aggregate_vs_flare", "aggregate_bandwidth_share", "hospitals_100_peak_mb"}
PRIVACY = {"dpsgd_vs_plain_step", "dpsgd_vs_plain_step_64", "audit_cpu_s", "error_by_epsilon"}
ENCRYPTION = {"encrypt_vs_phe", "aggregate_vs_phe", "decrypt_vs_lanes", "round_vs_phe", "wire_vs_float32"}
DEPLOYMENT = {"up_s", "first_step_s", "round_overhead_s", "recover_s", "down_s", "server_rss_mb", "hospital_rss_mb"}
SYFT = {"same_vector", "job_overhead_cpu_s", "largest_job_mb"}
MACHINE = {"device", "gpu", "driver", "memory_gb", "limit_gb", "torch", "cuda", "date", "steps", "rows"}
ROW = {"name", "preset", "size_px", "batch", "micro_batch", "checkpointing", "precision", "memory_format"}
ROW |= {"outcome", "films_per_s", "peak_mb"}


def last_line(*command: str) -> dict:
    """What the benchmark prints last, which must be its only line of JSON."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    *table, last = done.stdout.splitlines()
    assert not [line for line in table if line.startswith("{")]
    return json.loads(last)


@pytest.mark.slow
def test_imaging_ends_with_one_line_of_json() -> None:
    figures = last_line("-m", "tests.benchmarks.imaging", "--repeats", "3", "--films", "2", "--large-films", "1")
    assert figures.keys() == IMAGING
    assert figures.pop("films_600_measured") is False
    assert all(value > 0 for value in figures.values())
    assert figures["fast_window_speedup"] > 1  # both ways run in turn on the same film
    assert figures["films_600_at_128_cpu_s"] == pytest.approx(figures["film_128_cpu_ms"] * 600 / 1000, rel=0.01)


@pytest.mark.slow
def test_model_ends_with_one_line_of_json() -> None:
    figures = last_line("tests/benchmarks/model.py", "--repeats", "1", "--places", "200")
    assert figures.keys() == RATIOS | {"bf16_vs_fp32_w32", "rotation_error_px"}
    assert all(figures[name] > 0 for name in RATIOS)
    assert figures["bf16_vs_fp32_w32"] is None or figures["bf16_vs_fp32_w32"] > 0
    assert 0 < figures["rotation_error_px"] < 0.01
    assert figures["augment_vs_torchvision"] > 1  # both sides run in turn on the same films
    assert figures["share_of_peak"] < 1


@pytest.mark.slow
def test_federation_ends_with_one_line_of_json() -> None:
    training = ["--seeds", "0", "--rounds", "2", "--films", "4"]
    figures = last_line("tests/benchmarks/federation.py", *training, "--repeats", "2", "--parameters", "1000000")
    assert figures.keys() == FEDERATION
    assert 0.3 < figures["mre_ratio_sample"] < 3  # after two rounds no arm has learnt anything
    assert 0.3 < figures["mre_ratio_sample_2x"] < 3
    assert figures["pck_ratio_sample"] is None or figures["pck_ratio_sample"] >= 0
    assert figures["loop_overhead_ms_per_round"] > 0
    assert 0.05 < figures["aggregate_vs_flare"] < 5  # both sides run in turn on the same updates
    assert 0.05 < figures["aggregate_bandwidth_share"] < 1  # adding reads what copying reads, and does more
    if STATUS.exists():
        assert 0 < figures["hospitals_100_peak_mb"] < 1000  # twice what model and gradients take at each


@pytest.mark.slow
def test_privacy_ends_with_one_line_of_json() -> None:
    figures = last_line("tests/benchmarks/privacy.py", "--repeats", "1", "--calls", "400", "--skip-training")
    assert figures.keys() == PRIVACY
    assert figures["error_by_epsilon"] is None
    assert all(1 < figures[key] < 20 for key in ("dpsgd_vs_plain_step", "dpsgd_vs_plain_step_64"))
    assert figures["audit_cpu_s"] > 0


@pytest.mark.slow
def test_encryption_ends_with_one_line_of_json() -> None:
    figures = last_line("tests/benchmarks/encryption.py", "--repeats", "1", "--parameters", "10000", "--floats", "10")
    assert figures.keys() == ENCRYPTION | {f"{name}_3072" for name in ENCRYPTION}
    for suffix in ("", "_3072"):  # both sides in one process: half of what is demanded of a quiet machine
        assert figures[f"encrypt_vs_phe{suffix}"] > 375
        assert figures[f"aggregate_vs_phe{suffix}"] > 125
        assert figures[f"decrypt_vs_lanes{suffix}"] > 0.35
        assert figures[f"round_vs_phe{suffix}"] > 125
        assert 1 < figures[f"wire_vs_float32{suffix}"] < 1.5  # of so few numbers the last ciphertext is not full


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="not run: jobs need Linux or macOS")
def test_syft_workers_ends_with_one_line_of_json() -> None:
    small = ["--hospitals", "1", "2", "--rounds", "1", "--films", "2"]
    figures = last_line("tests/benchmarks/syft_workers.py", *small)
    assert figures.keys() == SYFT | {"hospitals_1_peak_mb", "hospitals_2_peak_mb"}
    assert figures["same_vector"] is True
    assert 0.2 < figures["job_overhead_cpu_s"] < 60  # a job imports torch
    if STATUS.exists():
        assert 100 < figures["largest_job_mb"] < 4000  # what a job may take
        assert 100 < figures["hospitals_1_peak_mb"] < 4000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="not run: a deployment needs Linux")
def test_deployment_ends_with_one_line_of_json() -> None:
    figures = last_line("tests/benchmarks/deployment.py", "--repeats", "1", "--size", "64")
    assert figures.keys() == DEPLOYMENT | {"same_vector"}
    assert figures["same_vector"] is True
    assert all(figures[name] > 0 for name in DEPLOYMENT)


def test_federation_s_ratios_are_the_federation_s_error_over_that_of_pooled_training() -> None:
    scores = [{"mre_mm": mm, "pck_0_05": pck} for mm, pck in ((4.4, 0.97), (5.0, 0.96), (4.0, 0.98))]
    expected = {"mre_ratio_sample": 1.25, "mre_ratio_sample_2x": 1.1, "pck_ratio_sample": 0.96 / 0.98}
    assert federation.ratios(*scores) == pytest.approx(expected)
    twice, federated, pooled = (arm.profile for arm in federation.arms_of(federation.PROFILE).values())
    assert twice.rounds == 2 * federated.rounds
    assert films_shown(200, federated) == films_shown(200, pooled)


def test_federation_reports_the_worse_size_and_leaves_training_out_when_asked(monkeypatch, capsys) -> None:
    sizes = {federation.SMALL: (0.3, 0.1), federation.LARGE: (0.7, 0.2)}
    monkeypatch.setattr(federation, "aggregation", lambda parameters, _: sizes[parameters])
    monkeypatch.setattr(federation, "loop_overhead_ms", lambda _: 4.0)
    monkeypatch.setattr(federation, "hospitals_peak_mb", lambda count: 5.0 * count)
    monkeypatch.setattr(sys, "argv", ["federation", "--skip-training"])
    federation.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() == FEDERATION
    assert {name for name in figures if figures[name] is None} == {n for n in FEDERATION if "ratio_sample" in n}
    assert (figures["aggregate_vs_flare"], figures["aggregate_bandwidth_share"]) == (0.3, 0.2)
    assert figures["hospitals_100_peak_mb"] == 500


def test_both_aggregators_give_the_mean_and_only_flare_s_depends_on_the_order() -> None:
    rng = np.random.default_rng(0)
    updates, weights = [rng.standard_normal(5000).astype(np.float32) for _ in range(10)], np.full(10, 0.1)
    for aggregate, digits in ((federation.ours, 1e-9), (federation.flare, 1e-6)):
        assert aggregate(updates, weights) == pytest.approx(np.mean(updates, axis=0, dtype=float), abs=digits)
    assert "backward, 0 of 5000" in federation.exactness(federation.ours, updates, weights)
    assert "backward, 0 of 5000" not in federation.exactness(federation.flare, updates, weights)


def test_loop_overhead_counts_what_happens_in_every_round(monkeypatch) -> None:
    def busy(*_: object) -> Update:
        begin = time.process_time()
        while time.process_time() < begin + 0.05:
            pass
        return Update(np.zeros(federation.SMALL, np.float32), np.ones(17, bool), {"losses": [0.0]})

    plain = federation.loop_overhead_ms(2)
    monkeypatch.setattr(federation.Prepared, "local_update", busy)
    assert federation.loop_overhead_ms(2) > plain + 100  # of the 150 that three hospitals spend


@pytest.mark.skipif(not STATUS.exists(), reason="not run: only Linux has /proc/self/status")
def test_peak_memory_stays_when_memory_is_given_back() -> None:
    before = memory_mb("VmRSS")
    filled = np.ones(60_000_000, np.int8)
    del filled
    assert memory_mb("VmHWM") > before + 50
    assert memory_mb("VmRSS") < before + 50


@pytest.mark.slow
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


@pytest.mark.release  # ten minutes on two busy cores
@pytest.mark.skipif(not STATUS.exists(), reason="not run: only Linux has /proc/self/status")
def test_the_article_s_network_trains_on_the_cpu_in_under_4_gb() -> None:
    options = ["--device", "cpu", "--only", "t4-article", "--batch", "2", "--steps", "2"]
    command, peak_mb = [sys.executable, "tests/benchmarks/gpu.py", *options], 0.0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            with contextlib.suppress(OSError, StopIteration):  # it has just ended
                peak_mb = max(peak_mb, memory_mb("VmHWM", run.pid))
            time.sleep(0.05)
        row = json.loads(run.stdout.read().splitlines()[-1])["rows"][0]
    assert run.returncode == 0
    assert (row["preset"], row["size_px"], row["batch"], row["outcome"]) == ("w32", 512, 2, "ran")
    assert 1000 < peak_mb < 4000


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
