"""Tiny notebooks through the real kernel: what is executed, what is written, how a failure ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from fedbone.errors import UserError
from fedbone.teaching import book, workbook
from fedbone.teaching.workbook import CellFailure
from tests.test_environment import is_running, wait_for

TITLE = "# 00 A small one\n\nWith $x_1^2$, and\n\n$$\\varepsilon = \\frac{1}{2}$$\n\n`a $b$ c`"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDBONE_BUILD", str(tmp_path / "my build"))
    monkeypatch.delenv("FEDBONE_ROUNDS", raising=False)
    monkeypatch.delenv("FEDBONE_DATA", raising=False)
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
