"""The claims ledger: what the tutorial says (C01-C27, E01-E19), what was found, and the cell that measured it.

A chapter's last part calls ``ledger`` with its findings. They travel in the output's metadata, so that the ledger can
be collected from the stored notebooks, or from those that ``make run`` has just executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from IPython.display import Markdown, display

from fedbone.config import is_full_run, own_data
from fedbone.errors import UserError
from fedbone.files import write_atomic
from fedbone.teaching.checks import ClaimError
from fedbone.teaching.statements import STATEMENTS

VERDICTS = ("confirmed", "conditional", "refuted", "corrected", "not_measured")
FINDINGS = "fedbone_findings"  # key in an output's metadata
FIELDS = ("id", "statement", "verdict", "figure", "spread", "notebook", "cell", "test")


@dataclass(frozen=True)
class Finding:
    """What one chapter found about one claim.

    id: of STATEMENTS. said: one sentence, its numbers inserted. figure: what was measured: a number with ``within`` =
    (lowest, highest accepted) and ``unit``, or a text with ``holds``, what was checked; None for not_measured, whose
    ``said`` gives the reason and whose ``command`` would measure it. spread: over seeds, or why there is none. cell: id
    of the cell that measured it; row: the row of a committed table that it read. test: ``tests/file.py::name``.
    full_run: the figure is that of a full run on the workbook's own hospitals. Raises ClaimError when it does not hold.
    """

    id: str
    verdict: str
    said: str
    cell: str
    test: str
    figure: float | str | None = None
    within: tuple[float, float] | None = None
    unit: str = ""
    holds: bool | None = None
    spread: str = "none: no chance in it"
    row: str = ""
    command: str = ""
    full_run: bool = False

    def __post_init__(self) -> None:
        if self.id not in STATEMENTS or self.verdict not in VERDICTS:
            raise ClaimError(f"{self.id} is no claim of the ledger, or {self.verdict!r} no verdict: {VERDICTS}")
        if self.verdict == "not_measured":
            complete, held = bool(self.command) and self.figure is None, True
        elif isinstance(self.figure, str):
            complete, held = self.within is None and self.holds is not None, bool(self.holds)
        else:
            complete = self.figure is not None and self.within is not None
            held = complete and self.within[0] <= self.figure <= self.within[1]
        if not complete:
            raise ClaimError(f"{self.id}: a number needs `within`, a text `holds`, not_measured a `command`")
        if not held and not self.skipped:
            raise ClaimError(f"{self.id} does not hold: {self.figure} {self.unit}, accepted {self.within or self.said}")

    @property
    def skipped(self) -> bool:
        """A short run, or own films, say nothing about a figure of the full training."""
        return self.full_run and (not is_full_run() or own_data() is not None)

    @property
    def shown_figure(self) -> str:
        """The figure as text, with its unit and what was accepted."""
        if self.figure is None or isinstance(self.figure, str):
            return self.figure or ""
        low, high = self.within
        accepted = f"{low:.4g} to {high:.4g}" if high > low else "exactly this"
        return f"{self.figure:.4g}{' ' * bool(self.unit)}{self.unit} (accepted: {accepted})"


def ledger(*findings: Finding) -> None:
    """Show the findings of a chapter as a table, and keep them in the output for ``collect``."""
    rows = [
        (f"**{f.id}** {STATEMENTS[f.id]}", f"**{f.verdict.replace('_', ' ')}**", f.said, f.shown_figure, f.spread)
        for f in findings
    ]
    data = [_data(finding) for finding in findings if not finding.skipped]
    note = "" if len(data) == len(findings) else "\n\nNot checked in a short run or on own films: some of these."
    text = table(("claim or defect", "verdict", "what we found", "figure", "seed spread"), rows) + note
    plain = f"claims ledger: {', '.join(finding.id for finding in findings)}"
    display({"text/markdown": text, "text/plain": plain}, raw=True, metadata={FINDINGS: data})


def _data(finding: Finding) -> dict:
    return {**asdict(finding), "figure": finding.shown_figure or None}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown of a table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(part) for part in line) + " |" for line in lines)


def findings_in(notebook: Mapping, name: str) -> Iterator[dict]:
    """The findings in the stored outputs of ``notebook``, with its file ``name`` and their cell's number.

    Raises UserError for one that names a cell which is not there.
    """
    numbers = {cell.get("id"): number for number, cell in enumerate(notebook["cells"], 1)}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            for found in output.get("metadata", {}).get(FINDINGS, ()):
                if found["cell"] not in numbers:
                    raise UserError(name, f"{found['id']} names the cell {found['cell']!r}", "Name the id of a cell")
                yield {**found, "notebook": name, "cell": numbers[found["cell"]], "cell_id": found["cell"]}


def collect(paths: Sequence[Path], own: Sequence[Finding] = ()) -> list[dict]:
    """The whole ledger from notebook files: one entry for each id of STATEMENTS, in their order, FIELDS first.

    own: findings of the notebook that is asking, which is none of ``paths``. Raises UserError when an entry is missing
    or stands in two chapters.
    """
    stored = (entry for path in paths for entry in findings_in(json.loads(path.read_text(encoding="utf-8")), path.name))
    here = ({**_data(finding), "notebook": "this chapter", "cell_id": finding.cell} for finding in own)
    found: dict[str, dict] = {}
    for entry in (*stored, *here):
        other = found.setdefault(entry["id"], entry)
        if other is not entry:
            raise UserError(entry["id"], f"is in {other['notebook']} and in {entry['notebook']}", "Keep one of both")
    if missing := [key for key in STATEMENTS if key not in found]:
        raise UserError("claims ledger", f"no finding for {', '.join(missing)}", "Run make notebooks, then this again")
    every = {key: {"statement": STATEMENTS[key], **found[key]} for key in STATEMENTS}
    return [{field: entry[field] for field in FIELDS} | entry for entry in every.values()]


def write(paths: Sequence[Path], out: Path) -> list[dict]:
    """Write the ledger of the notebooks ``paths`` as JSON to ``out``; the entries."""
    entries = collect(paths)
    write_atomic(out, (json.dumps(entries, indent=1, ensure_ascii=False) + "\n").encode())
    return entries


def summary(entries: Sequence[Mapping], folder: str = "") -> str:
    """Markdown: how many verdicts of each kind, then a line for each entry. folder: where the notebooks lie."""
    counts = {verdict: sum(entry["verdict"] == verdict for entry in entries) for verdict in VERDICTS}
    line = ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in counts.items())
    rows = [
        (e["id"], e["statement"], e["verdict"].replace("_", " "), f"[{e['notebook'][:2]}]({folder}{e['notebook']})")
        for e in entries
    ]
    return f"{len(entries)} statements: {line}.\n\n{table(('id', 'statement', 'verdict', 'chapter'), rows)}"


def whole(entries: Sequence[Mapping]) -> Markdown:
    """The whole ledger for a notebook: every entry with figure, spread, cell and test."""
    rows = [
        (
            *(e["id"], e["statement"], e["verdict"].replace("_", " "), e["figure"] or e["said"], e["spread"]),
            *(f"{e['notebook'].split('_')[0]}, cell {e['cell']}", f"`{e['test']}`"),
        )
        for e in entries
    ]
    return Markdown(table(("id", "statement", "verdict", "figure", "seed spread", "measured in", "test"), rows))
