import json
import time

import pytest

from fedbone import progress
from fedbone.progress import Bar


def test_nothing_is_drawn_before_the_first_call(capsys):
    with Bar("reading", "film"):
        pass
    assert capsys.readouterr().err == ""


def test_the_bar_shows_title_count_and_text(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with Bar("reading", "film") as bar:
        bar(1, 3, "a")
        bar(3, 3, "b")
    drawn = capsys.readouterr().err
    assert "reading" in drawn
    assert "3/3" in drawn


def test_it_closes_when_the_work_fails(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    bar = Bar("reading", "film")

    def work():
        with bar:
            bar(1, 2, "")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert bar._bar.disable  # closed


def test_tqdm_disable_keeps_stored_outputs_clean(capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with Bar("reading", "film") as bar:
        bar(1, 1, "a")
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_a_note_of_the_newest_count_for_whoever_runs_the_notebook(tmp_path, monkeypatch):
    note = tmp_path / "build" / "progress.json"
    monkeypatch.setenv(progress.NOTE, str(note))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(progress, "NOTE_EVERY_S", 0.0)
    with Bar("training", "round") as bar:
        for done in (1, 2):
            bar(done, 3, "a")
            found = json.loads(note.read_text())
            assert abs(found.pop("at_s") - time.time()) < 10
            assert found == {"title": "training", "unit": "round", "done": done, "total": 3}


def test_notes_are_rare_and_never_stop_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv(progress.NOTE, str(tmp_path / "progress.json"))
    with Bar("reading", "film") as bar:
        for done in range(100):
            bar(done, 1000, "")
    assert json.loads((tmp_path / "progress.json").read_text())["done"] < 99
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(progress.NOTE, str(tmp_path / "file" / "progress.json"))
    with Bar("reading", "film") as bar:
        bar(1, 2, "")
