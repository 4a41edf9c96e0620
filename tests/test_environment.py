"""The environment is built by a stand-in for venv and pip, so that every interruption can be played in milliseconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedbone import environment
from fedbone.errors import UserError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A clone with two pins; every command is recorded, ``-m venv`` makes an interpreter that works."""
    requirements = tmp_path / "clone with space" / "requirements.txt"
    requirements.parent.mkdir()
    requirements.write_text("torch==2.14.1\nsix==1.17.0\n")
    calls: list[list[str]] = []

    def call(command: list[str]) -> int:
        calls.append(command[2:])
        if command[2] == "venv":
            folder = Path(command[3])
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "python").symlink_to(sys.executable)
            (folder / "pyvenv.cfg").write_text("")
        return 0

    monkeypatch.setattr(environment, "REQUIREMENTS", requirements)
    monkeypatch.setattr(environment, "REPOSITORY", requirements.parent)
    monkeypatch.setattr(environment, "_call", call)
    monkeypatch.setattr(environment, "register_kernel", lambda folder: calls.append(["kernel"]))
    monkeypatch.delenv("FEDBONE_VENV", raising=False)
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    calls_of = environment.environment_dir()
    return calls, calls_of, requirements


def test_first_run_builds_and_second_does_nothing(machine):
    calls, folder, _ = machine
    assert environment.ensure() == folder / "bin" / "python"
    assert [call[0] for call in calls] == ["venv", "pip", "kernel"]
    calls.clear()
    environment.ensure()
    assert calls == []


def test_a_changed_requirement_is_installed_into_the_same_environment(machine):
    calls, _, requirements = machine
    environment.ensure()
    calls.clear()
    requirements.write_text("six==1.16.0\n")
    environment.ensure()
    assert [call[0] for call in calls] == ["pip", "kernel"]


@pytest.mark.parametrize("killed_in", ["venv", "pip", "kernel"])
def test_a_killed_installation_starts_again_from_nothing(machine, monkeypatch, killed_in):
    calls, folder, _ = machine
    call = environment._call

    def killed(command: list[str]) -> int:
        if command[2] == killed_in:
            raise KeyboardInterrupt
        return call(command)

    def kernel_killed(folder: Path) -> None:
        if killed_in == "kernel":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environment, "_call", killed)
        patch.setattr(environment, "register_kernel", kernel_killed)
        with pytest.raises(KeyboardInterrupt):
            environment.ensure()
    (folder / "left over").write_text("half a package")
    calls.clear()
    environment.ensure()
    assert [call[0] for call in calls] == ["venv", "pip", "kernel"]
    assert not (folder / "left over").exists()
    assert not folder.with_name(".venv.old").exists()


def test_an_interpreter_that_does_not_start_is_replaced(machine):
    calls, folder, _ = machine
    environment.ensure()
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to("/nowhere/python")
    calls.clear()
    environment.ensure()
    assert [call[0] for call in calls] == ["venv", "pip", "kernel"]


def test_an_environment_of_somebody_else_is_never_deleted(machine, monkeypatch, tmp_path):
    calls, _, _ = machine
    conda = tmp_path / "conda"
    (conda / "bin").mkdir(parents=True)
    (conda / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("FEDBONE_VENV", str(conda))
    environment.ensure()
    assert [call[0] for call in calls] == ["pip", "kernel"]
    environment._write_state(conda, ["adding", "", ""])  # killed in a later installation
    with pytest.raises(UserError, match="not fedbone's to delete"):
        environment.ensure()
    assert (conda / "bin" / "python").exists()


def test_torch_comes_from_the_named_index_and_the_environment_remembers_it(machine, monkeypatch):
    calls, _, requirements = machine
    monkeypatch.setenv("TORCH_INDEX", "https://example.org/whl/cpu")
    environment.ensure()
    torch, rest = [call for call in calls if call[0] == "pip"]
    assert torch[-3:] == ["--index-url", "https://example.org/whl/cpu", "torch==2.14.1"]
    assert "torch" not in Path(rest[-1]).read_text()
    monkeypatch.delenv("TORCH_INDEX")
    calls.clear()
    environment.ensure()
    assert calls == []
    requirements.write_text("torch==2.14.1\n")  # a later pull: torch still comes from there
    environment.ensure()
    assert calls[0][-2] == "https://example.org/whl/cpu"


def test_an_index_without_the_pin_gives_the_newest_before_it(machine, monkeypatch):
    calls, _, _ = machine
    call = environment._call
    monkeypatch.setenv("TORCH_INDEX", "https://example.org/whl/cu118")
    monkeypatch.setattr(environment, "_call", lambda command: call(command) or int(command[-1] == "torch==2.14.1"))
    environment.ensure()
    assert [command[-1] for command in calls[1:3]] == ["torch==2.14.1", "torch<=2.14.1"]


def test_failing_pip_is_one_clear_error(machine, monkeypatch):
    call = environment._call
    monkeypatch.setattr(environment, "_call", lambda command: call(command) or int(command[2] == "pip"))
    with pytest.raises(UserError, match="could not install"):
        environment.ensure()


def test_a_full_disk_is_named_before_anything_is_made(machine, monkeypatch):
    calls, folder, _ = machine
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3e9}))
    with pytest.raises(UserError, match=r"3\.0 GB free.*10 GB.*FEDBONE_VENV"):
        environment.ensure()
    assert not folder.exists()
    assert calls == []


@pytest.mark.parametrize(("version", "fits"), [((3, 8), 0), ((3, 10), 0), ((3, 11), 1), ((3, 13), 1), ((3, 14), 0)])
def test_python_versions(version, fits):
    if fits:
        environment.check_python(version)
    else:
        with pytest.raises(UserError, match=r"3\.11, 3\.12 or 3\.13"):
            environment.check_python(version)


def test_windows_interpreter(monkeypatch, tmp_path):
    monkeypatch.setattr(environment.os, "name", "nt")
    assert environment.python_of(tmp_path).parts[-2:] == ("Scripts", "python.exe")


@pytest.mark.skipif(os.name == "nt", reason="process groups")
def test_a_killed_command_takes_its_pip_with_it(tmp_path):
    (tmp_path / "busy.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)\n"
    )
    code = f"from fedbone import environment as e; e._call([{sys.executable!r}, '-m', 'busy'])"
    path = os.pathsep.join([str(tmp_path), str(environment.REPOSITORY)])
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    grandchild = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not is_running(grandchild))


def wait_for(condition, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode == 0
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
