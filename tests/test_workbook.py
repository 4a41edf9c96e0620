"""Tiny notebooks through the real kernel: what is executed, what is written, how a failure ends."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from fedbone import __main__ as main
from fedbone.config import PROFILES
from fedbone.errors import UserError
from fedbone.imaging.hospitals import training_hospitals
from fedbone.imaging.site_table import SITES
from fedbone.teaching import book, following, workbook
from fedbone.teaching.workbook import CellFailure
from tests.test_environment import is_running, wait_for

TITLE = "# 00 A small one\n\nWith $x_1^2$, and\n\n$$\\varepsilon = \\frac{1}{2}$$\n\n`a $b$ c`"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDBONE_BUILD", str(tmp_path / "my build"))
    monkeypatch.delenv("FEDBONE_ROUNDS", raising=False)
    monkeypatch.delenv("FEDBONE_DATA", raising=False)
    monkeypatch.delenv("FEDBONE_PROFILE", raising=False)
    (tmp_path / "note books").mkdir()
    return tmp_path / "note books"


def write(folder: Path, name: str, *sources: str) -> Path:
    cells = [v4.new_markdown_cell(TITLE), *(v4.new_code_cell(source) for source in sources)]
    nbformat.write(v4.new_notebook(cells=cells), folder / name)
    return folder / name


def results(folder: Path) -> Path:
    return folder.parent / "my build" / "results.json"


def writes_results(folder: Path, content: dict | None = None) -> str:
    content = content if content is not None else dict.fromkeys(workbook.RESULT_KEYS)
    return f"open({str(results(folder))!r}, 'w').write({json.dumps(content)!r})"


def test_the_book(folder, capsys):
    metrics = {"pck_0_05": 0.9812, "interval_95": {"pck_0_05": [0.9, 0.99]}, "mre_mm": None}
    content = {**dict.fromkeys(workbook.RESULT_KEYS), "federated": metrics, "local": {"hospital_a": metrics}}
    first = write(folder, "00_first.ipynb", "import os, sys", "print(sys.executable, os.getcwd(), sep='|')")
    write(folder, "05_last.ipynb", writes_results(folder, content))
    before = first.read_bytes()
    assert workbook.build(folder) == 0
    out = folder.parent / "my build" / "workbook"
    assert first.read_bytes() == before
    assert sorted(os.listdir(out)) == ["00_first.html", "00_first.ipynb", "05_last.html", "05_last.ipynb", "index.html"]
    printed = nbformat.read(out / "00_first.ipynb", as_version=4).cells[2].outputs[0].text
    assert printed.split("|") == [sys.executable, f"{folder}\n"]
    index = (out / "index.html").read_text()
    assert '<a href="00_first.html">00 A small one</a>' in index
    assert "0.981" in index
    assert "0.900 to 0.990" in index
    assert "hospital_a alone" in index
    assert "pooled" not in index.split("<table>")[1]
    assert re.search(r"\[1/2\] 00_first\.ipynb \.\.\. ok, \d+ s", capsys.readouterr().err)


TICKS = """
import time
from fedbone.progress import Bar
with Bar("training", "round") as bar:
    for done in (1, 2, 3, 4):
        bar(done, 100, "")
        time.sleep(1.1)
print("a stored output")
"""


def test_the_reader_sees_an_estimate_and_then_the_time_left(folder, capsys, monkeypatch):
    monkeypatch.setattr(workbook, "LOOK_EVERY_S", 0.1)
    monkeypatch.setenv("PYTHONPATH", str(workbook.config.REPOSITORY))
    write(folder, "00_first.ipynb", TICKS)
    write(folder, "05_last.ipynb", writes_results(folder))
    assert workbook.build(folder) == 0
    err = capsys.readouterr().err
    length = r"(about \d+ minutes?|less than a minute)"
    assert re.match(rf"training, cpu profile: {length} \(estimate for \d+ cores? like ours\)\n", err)
    left = r"\n    training: [234] of 100 rounds, about [234] minutes left\n    ok, \d+ s\n"
    assert re.search(r"\[1/2\] 00_first\.ipynb \.\.\. " + left, err), err
    assert re.search(r"\[2/2\] 05_last\.ipynb \.\.\. ok", err)  # nothing of the first notebook's
    stored = nbformat.read(folder.parent / "my build" / "workbook" / "00_first.ipynb", as_version=4)
    assert [output.text for output in stored.cells[1].outputs] == ["a stored output\n"]


def test_a_minute_passes_before_more_is_said(tmp_path):
    said, note = [], tmp_path / "note.json"
    look = following.Follower(note, PROFILES["cpu"], said.append)

    def tick(done: int, at_s: float, title: str = "training", unit: str = "film") -> None:
        note.write_text(json.dumps({"title": title, "unit": unit, "done": done, "total": 10_000, "at_s": at_s}))
        look()

    look()  # no note yet
    tick(100, 1000.0)
    tick(259, 1010.0)
    assert said == []  # 159 films are fewer than 20 steps of 8
    tick(260, 1010.0)
    tick(500, 1050.0)
    tick(1060, 1071.0)
    tick(30, 1300.0, "checking", "file")
    assert said == [
        "\n    training: 260 of 10,000 films, about 11 minutes left",
        "    training: 1,060 of 10,000 films, about 12 minutes left",
    ]


def test_the_estimate_counts_the_workbook_s_own_films(monkeypatch):
    films = inspect.signature(training_hospitals).parameters["n_train"].default * len(SITES)
    assert films == following.TRAINING_FILMS
    monkeypatch.setenv("FEDBONE_DATA", "mine")
    assert "depends on your films" in following.expected(PROFILES["cpu"])


def test_a_profile_reaches_the_kernels(folder, monkeypatch):
    args = main.parser().parse_args(["workbook", "--profile", "cpu"])
    write(folder, "05_last.ipynb", "import os; print(os.environ.get('FEDBONE_PROFILE'))", writes_results(folder))
    assert workbook.build(folder, profile=args.profile) == 0
    done = nbformat.read(folder.parent / "my build" / "workbook" / "05_last.ipynb", as_version=4)
    assert done.cells[1].outputs[0].text == "cpu\n"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="profile t4: it needs a CUDA GPU"):
        workbook.build(folder, profile="t4")


@pytest.mark.skipif(shutil.which("make") is None, reason="not run: make is missing")
@pytest.mark.parametrize(
    ("words", "command_line"),
    [
        ("run PROFILE=t4", "workbook --profile t4"),
        ("lab PROFILE=a100", "lab --profile a100"),
        ("run", "workbook"),
        ("test PROFILE=t4", "test"),
    ],
)
def test_make_passes_the_profile_on(words, command_line):
    rules = (workbook.config.REPOSITORY / "Makefile").read_text()
    shown = rules.replace("$(PYTHON) -m fedbone", "@echo")
    outer = ("FEDBONE_PROFILE", "PROFILE", "MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL")  # these tests may run under make
    clean = {name: value for name, value in os.environ.items() if name not in outer}
    command = ["make", "-f", "-", *words.split()]
    done = subprocess.run(command, input=shown, capture_output=True, text=True, check=True, env=clean)
    assert done.stdout.strip() == command_line


def test_the_page_loads_nothing_from_elsewhere(folder):
    notebook = nbformat.read(write(folder, "00_first.ipynb", "1"), as_version=4)
    book.write_chapter(folder, "00_first", notebook, 1.0)
    html = (folder / "00_first.html").read_text()
    assert not re.search(r"""(src|href)=["']?https?://|url\(["']?https?://|import\(["']https?://|@import""", html)
    assert html.count("<math ") == 2
    assert "<mfrac>" in html
    assert "a $b$ c" in html


def test_an_unknown_formula_shows_its_source():
    assert book._formula(r"\frac{1}{", "inline") == r"<code>\frac{1}{</code>"


def test_the_first_failing_cell_stops_the_run(folder, capsys):
    write(folder, "00_first.ipynb", "ok = 1", "value = 3\n1 / 0", "never = 1")
    write(folder, "01_second.ipynb", "2")
    assert workbook.build(folder) == 1
    err = capsys.readouterr().err
    assert "00_first.ipynb, cell 3:\n    value = 3\n    1 / 0\n" in err
    assert "ZeroDivisionError: division by zero" in err
    assert "01_second" not in err


def test_a_dying_kernel_and_an_endless_cell_are_failures(folder, monkeypatch):
    with pytest.raises(CellFailure, match=r"cell 2:\n    import os; os\._exit\(3\)"):
        workbook.execute(write(folder, "00_dies.ipynb", "import os; os._exit(3)"))
    monkeypatch.setattr(workbook, "CELL_SECONDS", 1)
    with pytest.raises(CellFailure, match="time"):
        workbook.execute(write(folder, "00_hangs.ipynb", "import time; time.sleep(30)"))


@pytest.mark.parametrize(("content", "problem"), [(None, "not written"), ({"seed": 0}, "lacks schema_version")])
def test_missing_or_poor_results_fail_the_run(folder, capsys, content, problem):
    results(folder).parent.mkdir()
    results(folder).write_text("{}")
    os.utime(results(folder), (1, 1))  # of an older run
    write(folder, "05_last.ipynb", writes_results(folder, content) if content else "1")
    assert workbook.build(folder) == 1
    assert problem in capsys.readouterr().err


def test_write_back_leaves_the_same_bytes_twice(folder):
    path = write(folder, "00_first.ipynb", "import ipywidgets as w\nw.IntSlider()", "print('a')\nprint('b')", "6 * 7")
    assert workbook.write_back(folder=folder) == 0
    once = path.read_bytes()
    workbook.write_back(["00"], folder)
    assert path.read_bytes() == once
    notebook = nbformat.reads(once.decode(), as_version=4)
    assert notebook.metadata.kernelspec.name == "fedbone"
    assert "widgets" not in notebook.metadata
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3]
    assert [set(out.data) for out in notebook.cells[1].outputs] == [{"text/plain"}]
    assert [out.text for out in notebook.cells[2].outputs] == ["a\nb\n"]
    assert once.endswith(b"}\n")
    assert b"\r" not in once


def test_a_failing_notebook_is_not_written_back(folder):
    path = write(folder, "00_first.ipynb", "1 / 0")
    before = path.read_bytes()
    assert workbook.write_back(folder=folder) == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("variable", ["FEDBONE_DATA", "FEDBONE_ROUNDS"])
def test_own_films_and_short_training_are_never_written_back(folder, monkeypatch, variable):
    write(folder, "00_first.ipynb", "1")
    monkeypatch.setenv(variable, "3")
    with pytest.raises(UserError, match="Unset both"):
        workbook.write_back(folder=folder)


def test_chapters_by_name(folder):
    for name in ("03_c.ipynb", "00_a.ipynb", "notes.ipynb"):
        write(folder, name)
    assert [path.name for path in workbook.chapters(folder)] == ["00_a.ipynb", "03_c.ipynb"]
    assert [path.name for path in workbook.chapters(folder, ["notebooks/03_c.ipynb"])] == ["03_c.ipynb"]
    with pytest.raises(UserError, match="'07'"):
        workbook.chapters(folder, ["07"])


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_kernel_outlives_its_run(folder, how):
    path = write(folder, "00_first.ipynb", "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)")
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from pathlib import Path; from fedbone.teaching.workbook import execute; execute(Path({str(path)!r}))"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), 40)
    kernel = int((folder / "pid").read_text())
    run.send_signal(how)
    run.wait(20)
    wait_for(lambda: not is_running(kernel))
