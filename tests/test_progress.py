import pytest

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
