"""What keeps the module small: imports point upward, short files and functions, nothing unused, a fast import."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fedbone"
LAYERS = (
    "errors files progress workers config options environment vectors run_state imaging model encryption privacy "
    "custody federation engines teaching __main__"
).split()
LONGEST_FILE, LONGEST_FUNCTION = 260, 45
HEAVY = ("torch", "syft", "syft_rds", "mujoco", "myo_sim", "ipywidgets", "cv2", "numpy", "nvflare", "tink", "gmpy2")
LEAVES = {  # heavy packages that only these modules may import
    "mujoco": ("imaging",),
    "myo_sim": ("imaging",),
    "ipywidgets": ("teaching",),
    "syft": ("engines",),
    "syft_rds": ("engines",),
    "nvflare": ("engines",),
    "tink": ("custody",),
    "gmpy2": ("encryption",),
}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in FILES if path.name not in ("__init__.py", "__main__.py")]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def layer(name: str) -> int:
    """Rank of a dotted fedbone module: 0 is the bottom that all may import."""
    parts = name.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 else 0


def imports(source: str) -> set[str]:
    """Every dotted name that Python source imports, also inside functions; ``from a import b`` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_upward(path):
    wrong = [
        name
        for name in imports(path.read_text(encoding="utf-8"))
        if name.startswith("fedbone.") and name != "fedbone.__version__" and layer(name) > layer(module_name(path))
    ]
    assert not wrong, f"{module_name(path)} imports from a later layer: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_packages_stay_in_their_leaf(path):
    roots = {name.split(".")[0] for name in imports(path.read_text(encoding="utf-8"))}
    own = path.relative_to(PACKAGE).parts[0]
    assert not [name for name, allowed in LEAVES.items() if name in roots and own not in allowed]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_are_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LONGEST_FILE
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno + 1 > LONGEST_FUNCTION}
    assert not long, f"functions over {LONGEST_FUNCTION} lines: {long}"


def test_import_is_fast_and_light():
    """Processor seconds, so that a busy machine does not fail it."""
    code = f"import time; import fedbone; import sys; print(time.process_time(), *(set({HEAVY}) & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    seconds, *heavy = out.split()
    assert float(seconds) < 1
    assert not heavy


def notebook_sources() -> list[str]:
    cells = [
        cell
        for path in (ROOT / "notebooks").rglob("*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    lines = ("".join(cell["source"]) for cell in cells)
    return [re.sub(r"(?m)^\s*[%!].*$", "", source) for source in lines]


def test_every_module_is_used():
    """By a notebook, another module, a command or FLARE: a module that only its test imports has no reason to be."""
    used = set()
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        used |= {name for name in imports(source) if name != module_name(path)}
        used |= set(re.findall(r'"path": "(fedbone[\w.]+)"', source))  # a class that FLARE loads by its name
    for source in notebook_sources():
        used |= imports(source)
    for path in (ROOT / "notebooks").rglob("*.py"):
        used |= imports(path.read_text(encoding="utf-8"))
    names = map(module_name, MODULES)
    assert not [name for name in names if not any(u == name or u.startswith(name + ".") for u in used)]


def test_nothing_names_this_machine():
    pattern = re.compile(r"(?<![\w.])(/root/|/work/|/home/\w)")
    allowed = {"notebook_guards.py", "test_architecture.py", "test_notebooks.py"}
    sources = [*FILES, *(p for p in (ROOT / "tests").rglob("*.py") if p.name not in allowed)]
    assert not [path.name for path in sources if pattern.search(path.read_text(encoding="utf-8"))]
