"""The check behind every notebook's set-up cell: name the one line that fixes this machine, or say that it is ready.

Standard library only until the Python version is known to be good. Nothing here installs anything, and nothing goes
on silently with less than the reader asked for.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

SET_UP_CELL = '''\
# Set-up: finds the repository and checks this kernel; if anything is missing, one line says what to do.
import sys
from pathlib import Path

here = Path.cwd()
root = next((p for p in (here, *here.parents, *here.glob("*/")) if (p / "fedbone/teaching/setup.py").exists()), None)
if root is None:
    raise SystemExit("The module fedbone is not here. Run !git clone ADDRESS-OF-THIS-REPOSITORY, then this cell again.")
sys.path.insert(0, str(root))
from fedbone.teaching.setup import check

workbook = check()'''

IMPORTS = {  # module -> requirement
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "cv2": "opencv-python",
    "safetensors": "safetensors",
    "pydicom": "pydicom",
    "openjpeg": "pylibjpeg-openjpeg",
    "rle": "pylibjpeg-rle",
    "gdcm": "python-gdcm",
    "myo_sim": "myo-sim",
    "mujoco": "mujoco",
    "matplotlib": "matplotlib",
    "ipywidgets": "ipywidgets",
    "tensorboard": "tensorboard",
    "tqdm": "tqdm",
}
SYFT = {"syft": "syft", "syft_rds": "syft-rds", "syft_job": "syft-job", "syft_datasets": "syft-dataset"}  # notebook 04
# CUDA major version of a torch build -> oldest NVIDIA driver (branch) it runs with, from NVIDIA's CUDA release notes
# (minor-version compatibility), and the index that carries such builds
DRIVERS = {13: (580, "cu130"), 12: (525, "cu126"), 11: (450, "cu118")}
INDEX = "https://download.pytorch.org/whl/"


class SetupStop(Exception):
    """Ends the cell; a notebook shows the message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@dataclass(frozen=True)
class SetUp:
    """What a notebook needs to know: root and build are folders, profile is fedbone.config.Profile."""

    root: Path
    sample: Path
    build: Path
    profile: object
    own_data: Path | None


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _nvidia_smi() -> str:
    """Lines 'GPU name, driver version' as nvidia-smi prints them, '' without a working one."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return ""
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@dataclass(frozen=True)
class Machine:
    """Everything the checks look at, so that tests can put each broken machine in its place."""

    python: tuple = sys.version_info[:2]
    platform: str = sys.platform
    prefix: Path = Path(sys.prefix)
    root: Path = Path(__file__).resolve().parents[2]
    colab: bool = "google.colab" in sys.modules
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    is_installed: Callable[[str], bool] = _is_installed
    load: Callable[[str], object] = import_module
    nvidia_smi: Callable[[], str] = _nvidia_smi


def check(machine: Machine | None = None) -> SetUp:
    """Print one line and return the paths and the profile, or stop the cell with the line that fixes the machine.

    Raises SetupStop.
    """
    machine = machine or Machine()
    for find in (python_problem, package_problem, library_problem, gpu_problem):
        problem = find(machine)
        if problem:
            raise SetupStop(problem)
    from fedbone import __version__, config
    from fedbone.errors import UserError

    try:
        profile, build = config.get_profile(), config.build_dir()
    except UserError as error:
        raise SetupStop(str(error)) from None
    own = config.own_data()
    print(f"fedbone {__version__} is ready, profile {profile.name}")
    if own:
        print(f"own films: {own.name} (this copy of the notebook must not be committed)")
    if profile.device == "cpu" and machine.nvidia_smi():
        print("This machine has a GPU: set FEDBONE_PROFILE=t4 before starting JupyterLab to use it")
    return SetUp(machine.root, config.SAMPLE, build, profile, own)


def python_problem(machine: Machine) -> str | None:
    """A Python too old or too new for the pinned packages."""
    if (3, 11) <= tuple(machine.python[:2]) <= (3, 13):
        return None
    found = "This kernel runs Python {}.{}; fedbone needs 3.11, 3.12 or 3.13. ".format(*machine.python)
    if machine.colab:
        return found + "On Colab: Runtime > Change runtime type, and choose a version with such a Python"
    return found + _own_kernel(machine)


def require_syft(machine: Machine | None = None) -> None:
    """Stop the cell where PySyft is missing or cannot run: it locks files in a way that Windows lacks. SetupStop."""
    machine = machine or Machine()
    if machine.platform == "win32":
        raise SetupStop("PySyft 0.10 runs on Linux and macOS only. Use WSL for this chapter, or go on to chapter 05")
    if problem := package_problem(machine, SYFT):
        raise SetupStop(problem)


def package_problem(machine: Machine, imports: Mapping[str, str] = IMPORTS) -> str | None:
    """Packages that this kernel lacks, with the one line that adds them. imports: module -> requirement."""
    missing = [name for module, name in imports.items() if not machine.is_installed(module)]
    if not missing:
        return None
    found = f"This kernel lacks {', '.join(missing)}. "
    own = machine.root / ".venv"
    if own.exists() and not machine.colab:
        if machine.prefix.resolve() == own.resolve():
            return found + "Its installation was cut short. Repair it: make run (or python -m fedbone workbook)"
        return found + _own_kernel(machine)
    restart = "Runtime > Restart session" if machine.colab else "Kernel > Restart Kernel"
    if "torch" in missing:
        line = f'%pip install -q -r "{machine.root / "requirements.txt"}"'
    else:  # leave the torch that fits this machine's GPU driver alone
        line = f"%pip install -q {' '.join(_pins(machine.root, missing))}"
    return f"{found}Run {line} in a cell, then {restart}"


def library_problem(machine: Machine) -> str | None:
    """A system library that pip cannot bring: OpenCV's libGL on a server without a screen."""
    try:
        machine.load("cv2")
    except ImportError as error:
        return explain_import(error)
    return None


def explain_import(error: ImportError) -> str:
    """One line on what to do about a failed import."""
    if "libGL" in str(error) or "libgthread" in str(error) or "libglib" in str(error):
        return (
            f"OpenCV lacks a system library ({error}). Install it: sudo apt-get install -y libgl1 libglib2.0-0"
            " (without root: pip uninstall -y opencv-python; pip install opencv-python-headless)"
        )
    return f"{error}. Set up with: make run (or python -m fedbone workbook)"


def gpu_problem(machine: Machine) -> str | None:
    """A GPU that nvidia-smi lists and torch cannot use, unless FEDBONE_PROFILE=cpu or CUDA_VISIBLE_DEVICES says so."""
    hidden = machine.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if hidden or machine.environ.get("FEDBONE_PROFILE") == "cpu":
        return None
    listed = machine.nvidia_smi()
    if not listed:
        return None
    torch = machine.load("torch")
    if torch.cuda.is_available():
        return None
    name, _, driver = (part.strip() for part in listed.splitlines()[0].partition(","))
    return f"nvidia-smi lists {name} (driver {driver}), but PyTorch cannot use it: {_driver_advice(machine, driver)}"


def _driver_advice(machine: Machine, driver: str) -> str:
    """Which torch build fits ``driver`` and how to get it; FEDBONE_PROFILE=cpu is the way to go on without."""
    build = machine.load("torch").version.cuda
    branch = int((re.match(r"\d+", driver) or ["0"])[0])
    fitting = next((index for _, (oldest, index) in sorted(DRIVERS.items(), reverse=True) if branch >= oldest), None)
    cpu = ". To go on without the GPU: FEDBONE_PROFILE=cpu"
    if build:
        major = int(build.split(".")[0])
        need = DRIVERS.get(major, DRIVERS[max(DRIVERS)])[0]
        why = f"this PyTorch is built for CUDA {build}, which needs driver {need} or newer"
        if branch >= need:
            return "the driver is new enough: restart the kernel; a container must be given the GPU (--gpus all)" + cpu
    else:
        why = "this PyTorch is a build without CUDA"
    if fitting is None:
        return f"{why}. Update the driver to 525 or newer" + cpu
    if machine.prefix.resolve() == (machine.root / ".venv").resolve():
        fix = f"TORCH_INDEX={INDEX}{fitting} make run"
    else:
        fix = f"%pip install --force-reinstall torch torchvision --index-url {INDEX}{fitting} and restart the kernel"
        fix += f" (with make: TORCH_INDEX={INDEX}{fitting} make run)"
    return f"{why}. Update the driver, or take a build that fits it: {fix}{cpu}"


def _own_kernel(machine: Machine) -> str:
    if (machine.root / ".venv").exists():
        return "Choose Kernel > Change Kernel > fedbone (.venv); if it is not listed, start JupyterLab with make lab"
    return "Start with make lab (or python3.12 -m fedbone lab), which makes the right kernel"


def _pins(root: Path, names: list[str]) -> list[str]:
    """The lines of requirements.txt for ``names``."""
    lines = (root / "requirements.txt").read_text(encoding="utf-8").split()
    pins = {line.split("==")[0]: line for line in lines if "==" in line}
    return [pins.get(name, name) for name in names]
