"""Each mistake of the lab fits the source, and turns its test from green to red."""

from __future__ import annotations

import ast

import pytest

from fedbone import config
from fedbone.errors import UserError
from tests import sabotage
from tests.sabotage import MISTAKES, main, planted, run

every_mistake = pytest.mark.parametrize("name", MISTAKES)


@every_mistake
def test_the_mistake_fits_the_source_and_is_still_python(name):
    mistake = MISTAKES[name]
    source = (config.REPOSITORY / mistake.file).read_text(encoding="utf-8")
    wrong = planted(mistake, source)
    ast.parse(wrong)
    assert wrong != source
    file, test = mistake.test.split("::")
    assert f"def {test}(" in (config.REPOSITORY / file).read_text(encoding="utf-8")


def test_every_chapter_has_a_mistake():
    assert {mistake.chapter for mistake in MISTAKES.values()} == {f"{number:02d}" for number in range(11)}


def test_a_mistake_that_no_longer_fits_is_refused():
    with pytest.raises(UserError, match="0 times"):
        planted(MISTAKES["no-clip"], "factor = 2\n")


def test_without_a_name_all_are_listed(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said and mistake.sentence in said for name, mistake in MISTAKES.items())


@pytest.mark.parametrize(("colours", "code"), [((True, False), 0), ((True, True), 1), ((False, False), 1)])
def test_the_command_says_what_happened_and_fails_where_the_test_saw_nothing(monkeypatch, capsys, colours, code):
    monkeypatch.setattr(sabotage, "run", lambda mistake, folder: (*colours, "1 failed"))
    assert main(["no-clip"]) == code
    said = capsys.readouterr().out
    assert "+    factor = 1.0" in said
    assert f"without the mistake: {'green' if colours[0] else 'RED'}" in said
    assert f"with the mistake:    {'green' if colours[1] else 'RED'}" in said


@pytest.mark.slow
@every_mistake
def test_the_test_is_green_without_the_mistake_and_red_with_it(name, tmp_path):
    mistake = MISTAKES[name]
    before, after, said = run(mistake, tmp_path / "a copy")
    assert (before, after) == (True, False), said
    assert "failed" in said
    assert "error" not in said.splitlines()[-1]  # the test itself failed, not its import or its fixture


@pytest.mark.slow
def test_a_test_that_is_not_there_is_no_red_one(tmp_path):
    absent = MISTAKES["no-clip"]._replace(test="tests/test_dp.py::test_of_nothing")
    with pytest.raises(UserError, match="pytest ended with 4"):
        run(absent, tmp_path / "a copy")
