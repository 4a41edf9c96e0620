"""Every exercise refuses its stub and all planted wrong answers, and takes the solution and others that are right."""

from __future__ import annotations

import importlib
import json

import pytest

from fedbone.errors import UserError
from fedbone.teaching import testing, workbook
from fedbone.teaching.exercises import SOLUTIONS, given, graded, names
from tests.notebook_guards import given_numbers, problems

CHAPTERS = [path.name[:2] for path in workbook.chapters()]
ANSWERS = {chapter: importlib.import_module(f"tests.mutants.chapter_{chapter}") for chapter in CHAPTERS}
EXERCISES = [(chapter, name) for chapter in CHAPTERS for name in names(chapter)]
every_exercise = pytest.mark.parametrize(("chapter", "name"), EXERCISES)


def planted(kind: str) -> list:
    return [(c, name, what) for c, name in EXERCISES for what in getattr(ANSWERS[c], kind).get(name, ())]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_chapter_has_two_exercises_and_three_wrong_answers_for_each(chapter):
    assert len(names(chapter)) >= 2
    assert set(names(chapter)) == set(ANSWERS[chapter].WRONG) == set(ANSWERS[chapter].RIGHT)
    assert all(len(wrong) >= 3 for wrong in ANSWERS[chapter].WRONG.values())


@every_exercise
def test_the_stub_is_not_accepted_and_the_solution_is(chapter, name):
    assert not graded(chapter, lambda *given: None, name)
    assert not graded(chapter, lambda *given: ..., name)
    (solution,) = given(chapter, name, folder=SOLUTIONS)
    assert graded(chapter, solution, name)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a wrong answer may divide by zero
@pytest.mark.parametrize(("chapter", "name", "what"), planted("WRONG"))
def test_a_wrong_answer_is_refused(chapter, name, what, capsys):
    assert not graded(chapter, ANSWERS[chapter].WRONG[name][what], name)
    assert "Hint: " in capsys.readouterr().out


@pytest.mark.parametrize(("chapter", "name", "what"), planted("RIGHT"))
def test_a_right_answer_written_otherwise_is_taken(chapter, name, what):
    assert graded(chapter, ANSWERS[chapter].RIGHT[name][what], name)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_committed_solutions_are_solved(chapter):
    (path,) = SOLUTIONS.glob(f"{chapter}_*.ipynb")
    assert problems(path.read_bytes(), given_numbers(path.stem)) == []
    cells = {cell["id"]: cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}
    solved = ["".join(c["outputs"][0]["text"]) for i, c in cells.items() if i.startswith("solution-")]
    assert len(solved) == len(names(chapter))
    assert all(text.endswith("solved: all cases agree\n") for text in solved)


def test_an_exercise_or_a_name_that_is_not_there_is_told():
    with pytest.raises(UserError, match="cropped_x, exchanged"):
        graded("02", lambda: 1, "cropped_y")
    with pytest.raises(UserError, match="no notebook begins with 77_"):
        graded("77", lambda: 1, "cropped_x")
    with pytest.raises(UserError, match="does not define nobody"):
        given("02", "nobody")


def test_make_test_executes_the_solutions(monkeypatch):
    ran = []
    monkeypatch.setattr(testing, "_steps", lambda *steps: ran.extend(steps) or 0)
    assert testing.test() == 0
    command = next(command for name, command, _ in ran if name.startswith("notebooks"))
    assert {str(path) for path in SOLUTIONS.glob("*.ipynb")} < set(command)
