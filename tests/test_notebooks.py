"""The committed notebooks obey the guards; the guards themselves, nbval's flags and the whole chain can turn red."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from fedbone.teaching import testing, workbook
from fedbone.teaching.setup import SET_UP_CELL
from tests.notebook_guards import given_numbers, problems

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
CHECKED = "# NBVAL_CHECK_OUTPUT\n"
PNG = "iVBORw0KGgo="


@every_notebook
def test_guards(path):
    assert problems(path.read_bytes(), given_numbers(path.stem)) == []


def test_every_chapter_says_where_the_reader_is_and_leads_to_the_others():
    names = {path.stem[:2]: path.name for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        text = "".join(nbformat.read(path, as_version=4).cells[0].source)
        line = next(line for line in text.splitlines() if line.startswith("*Where you are:*"))
        steps = [part.strip() for part in line.removeprefix("*Where you are:*").split(" · ")]
        assert len(steps) == len(names), path.name
        for number, step in zip(names, steps, strict=True):
            here = step.startswith(f"**{number} ") and step.endswith("**")
            assert here if number == path.stem[:2] else step.endswith(f"]({names[number]})"), f"{path.name}: {step}"


def text_output(text: str) -> nbformat.NotebookNode:
    return v4.new_output("stream", name="stdout", text=text)


def good_notebook() -> nbformat.NotebookNode:
    cells = [v4.new_markdown_cell("# 00\n![three hips](hips.png)"), v4.new_code_cell(SET_UP_CELL)]
    cells += [v4.new_code_cell(f"{CHECKED}print({n} * 7)", outputs=[text_output(f"{n * 7}\n")]) for n in range(3)]
    notebook = workbook.normalise(v4.new_notebook(cells=cells))
    for cell in notebook.cells[1:2]:
        cell.outputs = [text_output("fedbone 0.1.0 is ready, profile cpu\n")]
    return notebook


def raw(notebook: nbformat.NotebookNode) -> bytes:
    return nbformat.writes(notebook).encode()


def test_a_good_notebook_has_no_problems():
    assert problems(raw(good_notebook())) == []


def picture(kind: str = "image/png") -> nbformat.NotebookNode:
    return v4.new_output("display_data", data={kind: PNG, "text/plain": "<Figure size 640x480 with 1 Axes>"})


def html(text: str) -> nbformat.NotebookNode:
    return v4.new_output("display_data", data={"text/html": text, "text/plain": "<IPython.core.display.HTML object>"})


BREAKS = {  # what is done to the good notebook, and the words that the guard must answer with
    "count is null": (lambda nb: nb.cells[2].update(execution_count=None), "execution counts"),
    "executed out of order": (lambda nb: nb.cells[2].update(execution_count=9), "execution counts"),
    "output stripped": (lambda nb: nb.cells[2].update(outputs=[]), "without text output"),
    "only a picture": (lambda nb: nb.cells[2].update(outputs=[picture()]), "without text output"),
    "too few checked": (lambda nb: nb.cells.pop(), "2 cells carry"),
    "skipped": (lambda nb: nb.cells[2].metadata.update(tags=["skip-execution"]), "skip-execution"),
    "may raise": (lambda nb: nb.cells[2].metadata.update(tags=["raises-exception"]), "without an assert"),
    "input": (lambda nb: nb.cells[2].update(source="%time\nname = input('?')"), "input()"),
    "long cell": (lambda nb: nb.cells[2].update(source=CHECKED + "x = 1\n" * 30), "31 lines"),
    "kernel": (lambda nb: nb.metadata.kernelspec.update(name="python3"), "kernelspec"),
    "widget state": (lambda nb: nb.metadata.update(widgets={}), "widget state"),
    "picture": (lambda nb: nb.cells[3].outputs.append(picture("image/jpeg")), "without alt= text"),
    "img without alt": (lambda nb: nb.cells[3].outputs.append(html('<img src="x">')), "without alt text"),
    "img with empty alt": (lambda nb: nb.cells[3].outputs.append(html('<img alt="" src="x">')), "without alt text"),
    "markdown picture": (lambda nb: nb.cells[0].update(source="![](hips.png)"), "without alt text"),
    "too large": (lambda nb: nb.cells[0].update(source="x" * 300_000), "300"),
    "path in output": (lambda nb: nb.cells[3].update(outputs=[text_output("/home/ann/x")]), "path of one machine"),
    "path in source": (lambda nb: nb.cells[3].update(source=CHECKED + "open('/tmp/x')"), "path of one machine"),
    "error": (lambda nb: nb.cells[3].outputs.append(v4.new_output("error", ename="E", evalue="")), "is an error"),
    "own films": (lambda nb: nb.cells[1].update(outputs=[text_output("own films: clinic")]), "own films"),
    "own data mark": (lambda nb: nb.metadata.update(FEDBONE_OWN_DATA=True), "mark of own data"),
    "other set-up": (lambda nb: nb.cells[1].update(source="import fedbone"), "SET_UP_CELL"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_guard_can_fail(name):
    change, words = BREAKS[name]
    notebook = copy.deepcopy(good_notebook())
    change(notebook)
    found = problems(raw(notebook))
    assert any(words in problem for problem in found), found


def test_the_bytes_of_a_picture_are_not_searched_for_paths():
    notebook = good_notebook()
    notebook.cells[3].source += "\nshow(alt='hips')"
    notebook.cells[3].outputs += [picture(), html(f'<img alt="hips" src="data:image/png;base64,{PNG}/tmp/AA/root/">')]
    assert problems(raw(notebook)) == []


def test_the_hook_refuses_staged_own_films(tmp_path):
    repository = tmp_path / "clone"
    for name in ("tests/notebook_guards.py", "fedbone/__init__.py", "fedbone/teaching/__init__.py",
                 "fedbone/teaching/setup.py", "fedbone/teaching/prose.py", "notebooks/given_numbers.json",
                 ".githooks/pre-commit"):  # fmt: skip
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, repository / name)
    path = repository / "notebooks" / "00_a.ipynb"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}

    def git(*words: str) -> int:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=.githooks"]
        return subprocess.call(["git", *who, *words], cwd=repository, env=environment, stdout=subprocess.DEVNULL)

    git("init", "-q")
    path.write_bytes(raw(good_notebook()))
    git("add", "notebooks")
    assert git("commit", "-qm", "good") == 0
    bad = good_notebook()
    bad.cells[1].outputs[0].text += "own films: clinic\n"
    path.write_bytes(raw(bad))
    git("add", "notebooks")
    path.write_bytes(raw(good_notebook()))  # what counts is what is staged
    assert git("commit", "-qm", "own films") == 1


def nbval(path: Path, **variables: str) -> subprocess.CompletedProcess:
    command = testing.pytest(*testing.NBVAL, str(path))
    environment = testing.environment(**variables)
    return subprocess.run(command, cwd=path.parents[1], env=environment, capture_output=True, text=True, check=False)


SLOW_MUTATIONS = [pytest.param(what, marks=pytest.mark.slow) for what in ("none", "source")]


@pytest.mark.parametrize("mutation", [*SLOW_MUTATIONS, "stored output", "exception in an unchecked cell"])
def test_nbval_turns_red(tmp_path, mutation):
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / "00_a.ipynb"
    notebook = good_notebook()
    notebook.cells[1].source = "print('not checked')"
    if mutation == "source":
        notebook.cells[3].source = CHECKED + "print(8)"
    elif mutation == "stored output":
        notebook.cells[3].outputs[0].text = "8\n"
    elif mutation.startswith("exception"):
        notebook.cells[1].source = "1 / 0"
    path.write_bytes(raw(notebook))
    done = nbval(path)
    assert done.returncode == (0 if mutation == "none" else 1), done.stdout
    assert "4 passed" in done.stdout or mutation != "none"


def clean_copy(folder: Path) -> Path:
    """What git would clone: no build folder, no caches."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".ipynb_checkpoints")
    for name in ("fedbone", "data", "notebooks", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def offline(log: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT / "tests" / "offline"), "FEDBONE_OFFLINE_LOG": str(log)}


@pytest.mark.slow
@every_notebook
def test_runs_alone_from_a_fresh_clone_without_network(path, tmp_path):
    copy_of = clean_copy(tmp_path / "a clone")
    variables = {"FEDBONE_ROUNDS": "2", "FEDBONE_PROFILE": "cpu", "FEDBONE_BUILD": str(copy_of / "build")}
    workbook.execute(copy_of / "notebooks" / path.name, {**offline(tmp_path / "log"), **variables})
    assert not (tmp_path / "log").exists(), (tmp_path / "log").read_text()
    left = sorted(p.name for p in (copy_of / "notebooks").iterdir())
    assert left == sorted(p.name for p in (ROOT / "notebooks").iterdir() if p.name != ".ipynb_checkpoints")


@pytest.mark.parametrize("code", ["create_connection(('192.0.2.1', 80), 1)", "getaddrinfo('example.org', 1)"])
def test_the_offline_guard_refuses_and_writes_down(tmp_path, code):
    log = tmp_path / "log"
    run = f"import socket\ntry: socket.{code}\nexcept OSError: print('refused')"
    environment = {**os.environ, **offline(log)}
    done = subprocess.run([sys.executable, "-c", run], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr
    assert log.read_text().strip() in ("192.0.2.1", "example.org")


def test_the_offline_guard_lets_loopback_through(tmp_path):
    (tmp_path / "nb").mkdir()
    path = tmp_path / "nb" / "00_a.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("print(6 * 7)")]), path)
    done = workbook.execute(path, offline(tmp_path / "log"))
    assert done.cells[0].outputs[0].text == "42\n"
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("np.full(hospitals, 1 / hospitals)", "np.arange(1, hospitals + 1) / np.arange(1, hospitals + 1).sum()"),
        ("scale = np.float64(weight) * UNITS", "scale = UNITS"),
    ],
)
def test_other_fedavg_weights_turn_the_unit_tests_red(tmp_path, old, new):
    copy_of = clean_copy(tmp_path / "mutant")
    path = copy_of / "fedbone" / "federation" / "strategies.py"
    source = path.read_text(encoding="utf-8")
    assert source.count(old) == 1, "the mutation no longer fits the source"
    names = [copy_of / "tests" / f"test_{name}.py" for name in ("strategies", "rounds")]
    command = testing.pytest("-x", "-m", "not slow", *(str(n) for n in names if n.exists()))
    options = {"cwd": copy_of, "env": testing.environment(), "capture_output": True, "check": False}
    assert subprocess.run(command, **options).returncode == 0
    path.write_text(source.replace(old, new), encoding="utf-8")
    assert subprocess.run(command, **options).returncode == 1


@pytest.mark.slow
def test_a_changed_checked_cell_turns_its_notebook_red(tmp_path):
    copy_of = clean_copy(tmp_path / "mutant")
    path = copy_of / "notebooks" / NOTEBOOKS[0].name
    content = json.loads(path.read_text(encoding="utf-8"))
    checked = next(cell for cell in content["cells"] if "NBVAL_CHECK_OUTPUT" in "".join(cell["source"]))
    checked["source"] = [*checked["source"], "\nprint('changed')"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert nbval(path, FEDBONE_ROUNDS="2").returncode == 1
