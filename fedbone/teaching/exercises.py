"""The chapters' exercises from outside their chapter: solutions are graded by the very cell that the reader sees."""

from __future__ import annotations

import ast
import json
import re
import symtable
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from fedbone import config
from fedbone.errors import UserError
from fedbone.teaching import checks

NOTEBOOKS = config.REPOSITORY / "notebooks"
SOLUTIONS = NOTEBOOKS / "solutions"


def graded(chapter: str, answer: Callable, name: str | None = None, folder: Path = NOTEBOOKS) -> bool:
    """Run the exercise ``name`` (default: the answer's own name) of a chapter ("02") on ``answer``; True when solved.

    Only the exercise's cell is run, with ``answer`` in place of its stub, and the statements above that it needs.
    Raises UserError for a chapter or an exercise that is not there.
    """
    name, verdicts = name or answer.__name__, []
    cells = _cells(chapter, folder)
    at = next((i for i, cell in enumerate(cells) if _grades(cell) and any(_is_stub(line, name) for line in cell)), None)
    if at is None:
        there = ", ".join(names(chapter, folder))
        raise UserError(f"chapter {chapter}", f"it has no exercise {name!r}", f"Its exercises are: {there}")

    def grade(*cases: object, **options: object) -> bool:
        verdicts.append(checks.grade(*cases, **options))
        return verdicts[-1]

    own = [line for line in cells[at] if not _is_stub(line, name)]
    space = {name: answer, "grade": grade}
    _run(_needed(own, [line for cell in cells[:at] for line in cell], known=set(space)) + own, space)
    return verdicts == [True]


def given(chapter: str, *wanted: str, folder: Path = NOTEBOOKS) -> list:
    """The values that a chapter's ``wanted`` names have at its end; runs only what they need. Raises UserError."""
    lines, space = [line for cell in _cells(chapter, folder) for line in cell], {}
    _run(_needed(ast.parse("\n".join(wanted)).body, lines), space)
    if missing := [name for name in wanted if name not in space]:
        raise UserError(f"chapter {chapter}", f"it does not define {', '.join(missing)}", "Look up the spelling there")
    return [space[name] for name in wanted]


def names(chapter: str, folder: Path = NOTEBOOKS) -> list[str]:
    """The names of a chapter's exercises, in order: the stubs in cells that grade them. Raises UserError."""
    cells = filter(_grades, _cells(chapter, folder))
    return [line.name for cell in cells for line in cell if isinstance(line, ast.FunctionDef) and _is_stub(line)]


def _cells(chapter: str, folder: Path) -> list[list[ast.stmt]]:
    """The top-level statements of each code cell, without lines for IPython (% and !)."""
    path = next(iter(sorted(folder.glob(f"{chapter}_*.ipynb"))), None)
    if path is None:
        raise UserError(folder, f"no notebook begins with {chapter}_", "Chapters look like 03")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return [ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", source)).body for source in sources]


def _is_stub(line: ast.stmt, name: str | None = None) -> bool:
    """A function whose body is ``...`` alone."""
    return (
        isinstance(line, ast.FunctionDef)
        and name in (None, line.name)
        and isinstance(line.body[-1], ast.Expr)
        and isinstance(line.body[-1].value, ast.Constant)
        and line.body[-1].value.value is Ellipsis
    )


def _grades(cell: list[ast.stmt]) -> bool:
    calls = (node for line in cell for node in ast.walk(line) if isinstance(node, ast.Call))
    return any(isinstance(call.func, ast.Name) and call.func.id == "grade" for call in calls)


def _needed(own: list[ast.stmt], earlier: list[ast.stmt], known: Set[str] = frozenset()) -> list[ast.stmt]:
    """The statements of ``earlier`` that ``own`` needs, directly or not, for names that are not ``known``."""
    wanted, kept = set(), []
    for line in reversed(own):
        bound, used = _bound_and_used(line)
        wanted = wanted - bound | used
    for line in reversed(earlier):
        bound, used = _bound_and_used(line)
        if bound & wanted - known:
            kept.insert(0, line)
            wanted = wanted - bound | used
    return kept


def _bound_and_used(line: ast.stmt) -> tuple[set[str], set[str]]:
    """The names that a top-level statement binds, and the module's names that it or a function in it reads."""
    top = symtable.symtable(ast.unparse(line), "cell", "exec")
    bound = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    return bound, used | {s.get_name() for inner in _inside(top) for s in inner.get_symbols() if s.is_global()}


def _inside(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        yield child
        yield from _inside(child)


def _run(lines: list[ast.stmt], space: dict) -> None:
    exec(compile(ast.Module(lines, []), "exercise", "exec"), space)
