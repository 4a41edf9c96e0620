"""Each broken machine is put in place of this one; the message must hold the line that fixes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedbone.teaching import setup
from fedbone.teaching.setup import SET_UP_CELL, Machine, SetupStop, check

ROOT = Path(__file__).resolve().parents[1]
GPU = "Tesla T4, 535.183.01"


def torch(cuda: str | None, available: bool) -> SimpleNamespace:
    return SimpleNamespace(
        version=SimpleNamespace(cuda=cuda), cuda=SimpleNamespace(is_available=lambda: available)
    )


@pytest.fixture
def good(tmp_path) -> Machine:
    (tmp_path / "requirements.txt").write_text("torch==2.14.1\npydicom==3.0.2\n")
    return Machine(
        python=(3, 12),
        prefix=tmp_path / ".venv",
        root=tmp_path,
        colab=False,
        environ={},
        is_installed=lambda name: True,
        load=lambda name: torch("13.0", True),
        nvidia_smi=lambda: "",
    )


def stopped(machine: Machine) -> str:
    with pytest.raises(SetupStop) as stop:
        check(machine)
    assert stop.value._render_traceback_() == [str(stop.value)]
    assert "\n" not in str(stop.value)
    return str(stop.value)


def lacks(*missing: str):
    return lambda name: name not in missing


def test_a_good_machine_prints_one_stable_line(good, capsys):
    ready = check(good)
    assert capsys.readouterr().out == "fedbone 0.1.0 is ready, profile cpu\n"
    assert ready.profile.name == "cpu"
    assert ready.root == good.root


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_wrong_python(good, version):
    assert "3.11, 3.12 or 3.13" in stopped(replace(good, python=version))


def test_old_python_with_the_environment_there_points_to_its_kernel(good):
    (good.root / ".venv").mkdir()
    assert "Change Kernel > fedbone (.venv)" in stopped(replace(good, python=(3, 9), prefix=Path("/opt/conda")))


def test_wrong_kernel(good):
    (good.root / ".venv").mkdir()
    message = stopped(replace(good, prefix=Path("/opt/conda"), is_installed=lacks("pydicom")))
    assert "lacks pydicom" in message
    assert "Change Kernel > fedbone (.venv)" in message


def test_installation_cut_short(good):
    (good.root / ".venv").mkdir()
    assert "make run" in stopped(replace(good, is_installed=lacks("pydicom")))


def test_cloud_image_without_torch_installs_everything_into_its_own_kernel(good):
    message = stopped(replace(good, prefix=Path("/opt/conda"), is_installed=lacks("torch", "pydicom")))
    assert f'%pip install -q -r "{good.root / "requirements.txt"}"' in message
    assert "Restart Kernel" in message


def test_cloud_image_keeps_the_torch_that_fits_its_driver(good):
    message = stopped(replace(good, prefix=Path("/opt/conda"), is_installed=lacks("pydicom")))
    assert "%pip install -q pydicom==3.0.2 in a cell" in message


def test_colab_restarts_its_session(good):
    message = stopped(replace(good, colab=True, is_installed=lacks("pydicom")))
    assert "Runtime > Restart session" in message


def test_syft_is_asked_for_where_it_is_used(good):
    check(replace(good, is_installed=lacks("syft", "syft_rds")))  # the other notebooks do without
    setup.require_syft(good)
    with pytest.raises(SetupStop, match=r"lacks syft, syft-rds\. Run %pip install -q .*syft-rds"):
        setup.require_syft(replace(good, is_installed=lacks("syft", "syft_rds")))
    with pytest.raises(SetupStop, match="Linux and macOS only"):
        setup.require_syft(replace(good, platform="win32"))


def test_missing_libgl(good):
    def load(name: str) -> object:
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    message = stopped(replace(good, load=load))
    assert "apt-get install -y libgl1" in message
    assert "opencv-python-headless" in message


@pytest.mark.parametrize(
    ("driver", "cuda", "expected"),
    [
        (GPU, "13.0", ["needs driver 580", "TORCH_INDEX=https://download.pytorch.org/whl/cu126 make run"]),
        ("RTX 4090, 581.29", None, ["without CUDA", "TORCH_INDEX=https://download.pytorch.org/whl/cu130 make run"]),
        ("Tesla K80, 470.57.02", "13.0", ["needs driver 580", "whl/cu118"]),
        ("Tesla K20, 390.10", "13.0", ["Update the driver to 525"]),
        ("A100, 590.01", "13.0", ["restart the kernel", "--gpus all"]),
    ],
)
def test_gpu_that_torch_cannot_use(good, driver, cuda, expected):
    machine = replace(good, nvidia_smi=lambda: driver, load=lambda name: torch(cuda, False))
    message = stopped(machine)
    assert all(part in message for part in (*expected, "FEDBONE_PROFILE=cpu")), message
    assert driver.split(",")[0] in message


def test_gpu_advice_in_a_foreign_kernel_is_a_pip_line(good):
    machine = replace(good, prefix=Path("/opt/conda"), nvidia_smi=lambda: GPU, load=lambda name: torch("13.0", False))
    assert "%pip install --force-reinstall torch torchvision --index-url" in stopped(machine)


@pytest.mark.parametrize("environ", [{"FEDBONE_PROFILE": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_who_asks_for_the_cpu_gets_it(good, environ):
    machine = replace(good, environ=environ, nvidia_smi=lambda: GPU, load=lambda name: torch("13.0", False))
    assert check(machine).profile.name == "cpu"


def test_a_working_gpu_on_the_cpu_profile_is_mentioned(good, capsys):
    check(replace(good, nvidia_smi=lambda: GPU))
    assert "FEDBONE_PROFILE=t4" in capsys.readouterr().out


def test_unknown_profile_is_a_clean_stop(good, monkeypatch):
    monkeypatch.setenv("FEDBONE_PROFILE", "tpu")
    assert "unknown profile 'tpu'" in stopped(good)


def test_own_films_mark_the_output(good, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FEDBONE_DATA", str(tmp_path / "clinic"))
    check(good)
    assert "own films: clinic" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize(("script", "seen"), [("echo 'T4, 535'", "T4, 535"), ("exit 9", ""), ("echo x; exit 1", "")])
def test_nvidia_smi_is_read(tmp_path, monkeypatch, script, seen):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup._nvidia_smi() == seen


def run_cell(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", SET_UP_CELL], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("where", [".", "clone", "clone/notebooks", "clone/fedbone/teaching"])
def test_the_cell_finds_the_repository(tmp_path, where):
    (tmp_path / "clone" / "notebooks").mkdir(parents=True)
    shutil.copytree(ROOT / "fedbone", tmp_path / "clone" / "fedbone", ignore=shutil.ignore_patterns("__pycache__"))
    done = run_cell(tmp_path / where)
    assert done.returncode == 0, done.stderr
    assert "is ready" in done.stdout


def test_the_cell_alone_says_how_to_fetch_the_rest(tmp_path):
    done = run_cell(tmp_path)
    assert done.returncode == 1
    assert "git clone" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_cell_is_short():
    lines = SET_UP_CELL.splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 120
