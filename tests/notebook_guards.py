"""What must hold for a committed notebook so that a green nbval run means something. Standard library only.

As a script it checks files, or with --staged the notebooks about to be committed (see .githooks/pre-commit):
``python tests/notebook_guards.py notebooks/*.ipynb``.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
from fedbone.teaching import prose  # noqa: E402 - found through the line above
from fedbone.teaching.setup import SET_UP_CELL  # noqa: E402

CHECKED = "NBVAL_CHECK_OUTPUT"
FEWEST_CHECKED = 3
LONGEST_CELL = 30
LARGEST_BYTES = 300_000
MACHINE_PATH = re.compile(r"(?<![\w.])(/root/|/home/\w|/tmp/|/work/|/Users/\w|[A-Z]:\\Users)")
OWN_DATA = re.compile(r"own films:")
DATA_URI = re.compile(r"data:[\w/+]+;base64,[\w+/=]+")
SKIP_TAGS = {"skip-execution", "nbval-skip", "nbval-ignore-output", "nbval-raises-exception"}


def problems(raw: bytes, given: Mapping[str, str] | None = None) -> list[str]:
    """Everything wrong with one notebook file, as sentences; [] for a good one.

    given: phrases of given_numbers.json.
    """
    notebook = json.loads(raw)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = list(_about_file(notebook, raw, code))
    for number, cell in enumerate(notebook["cells"], 1):
        rules = _about_code(cell) if cell["cell_type"] == "code" else _about_text(cell)
        found += [f"cell {number}: {problem}" for problem in rules]
    return found + [f"cell {number}: {problem}" for number, problem in prose.problems(notebook, given or {})]


def _about_file(notebook: dict, raw: bytes, code: list[dict]) -> Iterator[str]:
    if len(raw) > LARGEST_BYTES:
        yield f"{len(raw) / 1000:.0f} kB, at most {LARGEST_BYTES / 1000:.0f} (photographs as JPEG)"
    if notebook["metadata"].get("kernelspec", {}).get("name") != "fedbone":
        yield "kernelspec is not 'fedbone': JupyterLab would start another Python"
    if "widgets" in notebook["metadata"]:
        yield "holds widget state"
    if b"FEDBONE_OWN_DATA" in raw:
        yield "carries the mark of own data"
    counts = [cell.get("execution_count") for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"execution counts are {counts}, not 1..{len(code)}: nbval compares nothing where one is null"
    checked = sum(CHECKED in _source(cell) for cell in code)
    if checked < FEWEST_CHECKED:
        yield f"{checked} cells carry # {CHECKED}, at least {FEWEST_CHECKED} must"
    if not code or _source(code[0]).strip() != SET_UP_CELL:
        yield "the first code cell is not fedbone.teaching.setup.SET_UP_CELL"


def _about_code(cell: dict) -> Iterator[str]:
    source, outputs, tags = _source(cell), cell["outputs"], set(cell["metadata"].get("tags", ()))
    text = "\n".join(_texts(outputs))
    if CHECKED in source and not _comparable(outputs):
        yield f"# {CHECKED} without text output: nbval never compares pictures"
    if tags & SKIP_TAGS:
        yield f"tagged {sorted(tags & SKIP_TAGS)}: nbval would skip it or misread it"
    if "raises-exception" in tags and "assert" not in source:
        yield "tagged raises-exception without an assert: nbval does not require the exception"
    if any(output["output_type"] == "error" for output in outputs):
        yield "its stored output is an error"
    if len(source.splitlines()) > LONGEST_CELL:
        yield f"{len(source.splitlines())} lines, at most {LONGEST_CELL}"
    if _calls_input(source):
        yield "calls input(), which no test can answer"
    if _has_picture(outputs) and "alt=" not in source:
        yield "shows a picture without alt= text"
    if re.search(r"<img(?![^>]*\balt=[\"'][^\"'])[^>]*>", text):
        yield "shows an <img> without alt text"
    if MACHINE_PATH.search(source) or MACHINE_PATH.search(text):
        yield "names a path of one machine"
    if OWN_DATA.search(text):
        yield "was run on own films"


def _about_text(cell: dict) -> Iterator[str]:
    source = _source(cell)
    if re.search(r"!\[\s*\]\(", source) or re.search(r"<img(?![^>]*\balt=[\"'][^\"'])[^>]*>", source):
        yield "a picture without alt text"
    if MACHINE_PATH.search(source):
        yield "names a path of one machine"


def _source(cell: dict) -> str:
    return "".join(cell["source"])


def _texts(outputs: list[dict]) -> Iterator[str]:
    """Every text of the outputs, without the bytes of pictures, in which any path may turn up by chance."""
    for output in outputs:
        parts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if not k.startswith("image/"))]
        for part in parts:
            yield DATA_URI.sub("data:", "".join(part) if isinstance(part, (str, list)) else json.dumps(part))


def _comparable(outputs: list[dict]) -> bool:
    """True when some stored text is more than the name of a figure."""
    texts = ("".join(text) for text in _texts(outputs))
    return any(text.strip() and not re.fullmatch(r"\s*<[\w. ]+( object| size .*)?>\s*", text) for text in texts)


def _has_picture(outputs: list[dict]) -> bool:
    return any(kind in ("image/png", "image/jpeg") for output in outputs for kind in output.get("data", {}))


def _calls_input(source: str) -> bool:
    python = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    try:
        calls = [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)]
    except SyntaxError:  # a cell magic's own language
        return False
    return any(isinstance(call.func, ast.Name) and call.func.id == "input" for call in calls)


def given_numbers(stem: str) -> dict[str, str]:
    """The given phrases of the notebook ``stem``."""
    return prose.given_numbers(REPOSITORY / "notebooks" / "given_numbers.json", stem)


def _staged() -> Iterator[tuple[str, bytes]]:
    command = ["git", "diff", "--cached", "--name-only", "--diff-filter=ACMR", "-z", "--", "notebooks/*.ipynb"]
    names = subprocess.run(command, capture_output=True, check=True, cwd=REPOSITORY).stdout.decode().split("\0")
    for name in filter(None, names):
        yield name, subprocess.run(["git", "show", f":{name}"], capture_output=True, check=True, cwd=REPOSITORY).stdout


def main(arguments: list[str]) -> int:
    """Check the named notebooks (or the staged ones) and print what is wrong; exit code 1 if anything is."""
    files = _staged() if arguments == ["--staged"] else ((name, Path(name).read_bytes()) for name in arguments)
    found = [f"{name}: {problem}" for name, raw in files for problem in problems(raw, given_numbers(Path(name).stem))]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
