"""Builds the repository's own Python environment once: .venv, the pinned packages, the Jupyter kernel "fedbone".

Standard library only, and plain enough for Python 3.8 to read it far enough to say which version is needed.

FEDBONE_VENV names another folder for the environment; an existing one (conda, a cloud image's own) is used as it is
and never deleted. TORCH_INDEX takes torch and torchvision from another index: https://download.pytorch.org/whl/cpu
saves 3 GB, .../cu126 serves older GPU drivers; an environment remembers it until another index is named.

A state file in the environment says how far a set-up came, so a killed one starts again cleanly.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from fedbone.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
REQUIREMENTS = REPOSITORY / "requirements.txt"
OLDEST, NEWEST = (3, 11), (3, 13)
KERNEL, KERNEL_TITLE = "fedbone", "fedbone (.venv)"
STATE = "fedbone-environment.txt"
FREE_BYTES = 10e9  # 6.6 GB installed with the CUDA build of torch, and 3 GB that pip downloads first
FREE_BYTES_CPU = 5e9
FROM_TORCH_INDEX = ("torch", "torchvision")
# Runs a module in a process group that ends with the command that started it, even when that one is killed: an
# orphaned pip would go on writing into the environment that the next run makes.
ENDS_WITH_PARENT = """
import os, runpy, sys, threading, time
def watch(parent):
    while os.getppid() == parent:
        time.sleep(0.1)
    os.killpg(0, 9)
threading.Thread(target=watch, args=(int(sys.argv.pop(1)),), daemon=True).start()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def check_python(version: tuple = sys.version_info[:2]) -> None:
    """Raises UserError unless this Python can carry the pinned packages."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        raise UserError(
            "Python %d.%d" % tuple(version[:2]),
            "this project needs Python 3.11, 3.12 or 3.13",
            "Install one of them and name it: make run PYTHON=python3.12 (or python3.12 -m fedbone workbook)",
        )


def environment_dir() -> Path:
    """Folder of the environment: FEDBONE_VENV, else .venv in the repository."""
    return Path(os.environ.get("FEDBONE_VENV") or REPOSITORY / ".venv").expanduser().absolute()


def python_of(folder: Path) -> Path:
    """The interpreter inside environment ``folder``, whether it exists or not."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def torch_index(folder: Path) -> str:
    """TORCH_INDEX, else the one that environment ``folder`` was built with, else '' for PyPI."""
    named = os.environ.get("TORCH_INDEX", "").strip()
    state = _read_state(folder)
    return named or (state[2] if len(state) > 2 else "")


def ready_state(folder: Path) -> list[str]:
    """The lines a finished environment's state file holds: 'ready', fingerprint, torch index."""
    seed = REQUIREMENTS.read_bytes() + "{}.{}.{}".format(*_version_of(folder)).encode()
    return ["ready", hashlib.sha256(seed).hexdigest(), torch_index(folder)]


def is_ready(folder: Path) -> bool:
    """True when everything in requirements.txt is installed in ``folder`` for the Python it holds."""
    return python_of(folder).exists() and _read_state(folder) == ready_state(folder)


def ensure(folder: Path | None = None) -> Path:
    """Make environment ``folder`` ready (nothing to do on a second run) and return its interpreter.

    Raises UserError for an unusable Python, a full disk, or a pip that fails.
    """
    folder = folder or environment_dir()
    if not REQUIREMENTS.exists():
        raise UserError(REQUIREMENTS, "not found", "Run this command from a clone of the repository")
    if is_ready(folder):
        return python_of(folder)
    index = torch_index(folder)
    usable = _works(folder) and _read_state(folder)[:1] not in (["making"], ["adding"])
    check_python(_version_of(folder) if usable else sys.version_info)
    if folder.exists() and not usable:
        _remove(folder)
    if usable:
        _write_state(folder, ["adding", "", index])
    else:
        _check_space(folder, index)
        _say(f"Making the environment {folder} (a few minutes, once)")
        _create(folder, index)
    _install(folder, index)
    register_kernel(folder)
    _write_state(folder, ready_state(folder))
    return python_of(folder)


def enter(arguments: list[str]) -> None:
    """Go on with ``python -m fedbone arguments`` inside the environment; returns only when already inside it."""
    python = ensure()
    folder = environment_dir()
    os.environ["PATH"] = str(python.parent) + os.pathsep + os.environ.get("PATH", "")  # tensorboard, jupyter
    if Path(sys.prefix).resolve() == folder.resolve():
        return
    os.environ["VIRTUAL_ENV"] = str(folder)
    os.chdir(REPOSITORY)
    command = [str(python), "-m", "fedbone", *arguments]
    sys.stdout.flush()
    if os.name == "nt":  # exec on Windows returns to the shell before the command ends
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)


def register_kernel(folder: Path) -> None:
    """Announce the environment as kernel "fedbone": inside it, and to every other Jupyter of this user."""
    command = [str(python_of(folder)), "-m", "ipykernel", "install", "--name", KERNEL, "--display-name", KERNEL_TITLE]
    _run([*command, "--prefix", str(folder)], "the kernel could not be registered", "Read the message above")
    user = subprocess.run([*command, "--user"], capture_output=True, check=False)
    if user.returncode:
        _say("Your home folder is read-only: the kernel is known to this environment's own JupyterLab (make lab) only")


def _install(folder: Path, index: str) -> None:
    """pip install requirements.txt; with ``index``, torch and torchvision come from there first."""
    pip = [str(python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", "-q"]
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    torch = [line for line in lines if line.split("==")[0].strip().lower() in FROM_TORCH_INDEX]
    advice = "Check network and disk, then run the same command again: it starts cleanly"
    if index and torch:
        _say(f"Installing {' '.join(torch)} from {index}")
        remove = [*pip[:3], "uninstall", "-y", "-q", *FROM_TORCH_INDEX]  # else pip keeps PyPI's build
        subprocess.run(remove, capture_output=True, check=False)
        if _call([*pip, "--index-url", index, *torch]):
            _say("That index does not have these versions: taking the newest before them")
            older = [line.replace("==", "<=") for line in torch]
            _run([*pip, "--index-url", index, *older], "pip found no torch there", "Check TORCH_INDEX")
        lines = [line for line in lines if line not in torch]
    _say("Installing requirements.txt")
    wanted = folder / "requirements-installed.txt"
    wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _run([*pip, "-r", str(wanted)], "pip could not install the packages", advice)


def _create(folder: Path, index: str) -> None:
    folder.mkdir(parents=True)
    _write_state(folder, ["making", "", index])
    base = getattr(sys, "_base_executable", None) or sys.executable
    advice = "On Debian and Ubuntu: apt-get install python%d.%d-venv" % sys.version_info[:2]
    _run([base, "-m", "venv", str(folder)], "python -m venv failed", advice)


def _remove(folder: Path) -> None:
    """Delete a half-made environment in two steps, so that a kill in between leaves nothing that looks whole."""
    own = (folder / "pyvenv.cfg").exists() or _read_state(folder)[:1] == ["making"] or not any(folder.iterdir())
    if not own:
        remedy = f"Run pip install -r requirements.txt in it and delete its {STATE}, or unset FEDBONE_VENV"
        raise UserError(folder, "its set-up was interrupted, and it is not fedbone's to delete", remedy)
    _say(f"{folder} is incomplete: making it anew")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _works(folder: Path) -> bool:
    """True when the folder holds an interpreter that starts and has pip."""
    if not python_of(folder).exists():
        return False
    return not subprocess.run([str(python_of(folder)), "-c", "import pip"], capture_output=True, check=False).returncode


def _version_of(folder: Path) -> tuple:
    """(major, minor, micro) of the Python in ``folder``, this Python's own when there is none."""
    code = "import sys; print(*sys.version_info[:3])"
    if Path(sys.prefix).resolve() == folder.resolve() or not python_of(folder).exists():
        return tuple(sys.version_info[:3])
    out = subprocess.run([str(python_of(folder)), "-c", code], capture_output=True, text=True, check=False).stdout
    return tuple(int(part) for part in out.split()) or tuple(sys.version_info[:3])


def _check_space(folder: Path, index: str) -> None:
    parent = next(path for path in folder.parents if path.exists())
    free, need = shutil.disk_usage(parent).free, FREE_BYTES_CPU if index.endswith("/cpu") else FREE_BYTES
    if free < need:
        raise UserError(
            parent,
            f"{free / 1e9:.1f} GB free, the installation needs {need / 1e9:.0f} GB",
            "Free some, name a folder on another disk with FEDBONE_VENV, or set "
            "TORCH_INDEX=https://download.pytorch.org/whl/cpu (no GPU, 5 GB)",
        )


def _run(command: list[str], problem: str, remedy: str) -> None:
    if _call(command):
        raise UserError(" ".join(command[:4]), problem, remedy)


def _call(command: list[str]) -> int:
    """Exit code of ``python -m module arguments``, which does not outlive this process."""
    if os.name == "nt":
        return subprocess.call(command)
    guarded = [command[0], "-c", ENDS_WITH_PARENT, str(os.getpid()), *command[2:]]
    process = subprocess.Popen(guarded, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _read_state(folder: Path) -> list[str]:
    try:
        return (folder / STATE).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []


def _write_state(folder: Path, lines: list[str]) -> None:
    temporary = folder / (STATE + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / STATE)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
