"""The ledger has one entry for each statement, each with a figure that was checked, and none can be made up."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from nbformat import v4

from fedbone.errors import UserError
from fedbone.teaching import claims, workbook
from fedbone.teaching.checks import ClaimError
from fedbone.teaching.claims import Finding
from fedbone.teaching.statements import STATEMENTS

ROOT = Path(__file__).resolve().parents[1]
GOOD = {"id": "C16", "verdict": "refuted", "said": "no", "cell": "a", "test": "tests/test_losses.py"}


@pytest.fixture(scope="module")
def ledger() -> list[dict]:
    return claims.collect(workbook.chapters())


def test_every_statement_has_one_entry_with_all_fields(ledger):
    numbers = [f"C{n:02}" for n in range(1, 28)] + [f"E{n:02}" for n in range(1, 20)]
    assert [entry["id"] for entry in ledger] == numbers == list(STATEMENTS)
    assert all(list(entry)[: len(claims.FIELDS)] == list(claims.FIELDS) for entry in ledger)
    assert all(entry["spread"] and entry["said"] for entry in ledger)


def test_what_was_not_measured_says_how_to_and_the_rest_has_a_figure(ledger):
    for entry in ledger:
        assert bool(entry["figure"]) != (entry["verdict"] == "not_measured"), entry["id"]
        assert bool(entry["command"]) == (entry["verdict"] == "not_measured"), entry["id"]


def test_the_named_cells_computed_something(ledger):
    """That a figure is within its bounds is asserted by the finding itself."""
    for entry in ledger:
        cell = json.loads((ROOT / "notebooks" / entry["notebook"]).read_text())["cells"][entry["cell"] - 1]
        assert cell["cell_type"] == "code", entry["id"]
        assert cell["outputs"], f"{entry['id']}: {entry['cell_id']} shows nothing"


def test_the_named_tests_exist(ledger):
    for entry in ledger:
        file, _, name = entry["test"].partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in names if name else names, f"{entry['id']}: {entry['test']}"


def test_the_readme_shows_this_ledger(ledger):
    assert claims.summary(ledger, "notebooks/") in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "wrong",
    [
        {"figure": 3.0, "within": (4, 5)},
        {"figure": 3.0},
        {"figure": "seen"},
        {"figure": "seen", "holds": False},
        {"id": "C99", "figure": 3.0, "within": (1, 5)},
        {"verdict": "perhaps", "figure": 3.0, "within": (1, 5)},
        {"verdict": "not_measured"},
        {"verdict": "not_measured", "command": "make run", "figure": 2.0},
        {},
    ],
)
def test_a_finding_that_does_not_hold_or_is_incomplete_is_refused(wrong):
    with pytest.raises(ClaimError):
        Finding(**{**GOOD, **wrong})


def test_a_short_run_is_no_finding_of_a_full_one(monkeypatch):
    monkeypatch.setenv("FEDBONE_ROUNDS", "4")
    assert Finding(**GOOD, figure=3.0, within=(4, 5), full_run=True).skipped
    with pytest.raises(ClaimError):
        Finding(**GOOD, figure=3.0, within=(4, 5))


def stored(folder: Path, name: str, *entries: dict) -> Path:
    data = [{**GOOD, "figure": "1", "spread": "none", **entry} for entry in entries]
    output = v4.new_output("display_data", data={"text/plain": ""}, metadata={claims.FINDINGS: data})
    cell = v4.new_code_cell("claim()", outputs=[output], id="a")
    (folder / name).write_text(json.dumps(v4.new_notebook(cells=[cell])))
    return folder / name


def test_an_entry_in_two_chapters_or_in_none_is_an_error(tmp_path):
    whole = stored(tmp_path, "00_a.ipynb", *({"id": key} for key in STATEMENTS))
    assert [entry["cell"] for entry in claims.collect([whole])] == [1] * len(STATEMENTS)
    with pytest.raises(UserError, match="C16: is in"):
        claims.collect([whole, stored(tmp_path, "01_b.ipynb", {"id": "C16"})])
    with pytest.raises(UserError, match="C02"):
        claims.collect([stored(tmp_path, "02_c.ipynb", {"id": "C01"})])
    with pytest.raises(UserError, match="names the cell 'gone'"):
        claims.collect([stored(tmp_path, "03_d.ipynb", {"cell": "gone"})])


def test_the_ledger_is_written_as_json_and_shown_whole(tmp_path, ledger):
    entries = claims.write(workbook.chapters(), tmp_path / "claims.json")
    assert json.loads((tmp_path / "claims.json").read_text()) == json.loads(json.dumps(entries))
    assert all(f"| {key} |" in claims.whole(entries).data for key in STATEMENTS)
