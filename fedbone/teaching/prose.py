"""Numbers in the text of a notebook: those that were measured stand between marks and come from a cell's output.

``<!--=name-->12.3<!--/-->`` (a reader sees 12.3) is written from the figure ``name`` of an asserted cell of the same
notebook: see ``checks.claim``. All other numbers must be references (chapter 05, section 3, 2017), or *given*:
settings, definitions and what the tutorial says, listed with their source in notebooks/given_numbers.json. Standard
library only: git's hook uses it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

FIGURES = "fedbone_figures"  # key in an output's metadata: name -> text
MARKED = re.compile(r"<!--=(\w+)-->(.*?)<!--/-->", re.DOTALL)
_WORDS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty|hundred"
_UNITS = r"px|pixels?|mm|millimetres?|%|per ?cent|percent|seconds?|minutes?|hours?|degrees?|times|GB|MB|gigabytes?"
NUMBER = re.compile(
    r"(?<![\w.,^@])(?<![A-Za-z][-–])[-+−±]?(?!0\d\b(?!\.))\d+(?:[.,]\d+)*(?:e[-−]?\d+)?(?!\w)"
    rf"|\b(?:{_WORDS})(?= (?:{_UNITS})\b)",
    re.IGNORECASE,
)
# what is not read as a statement: code, formulas, comments and marks, link targets, enumerators, the workbook's map
_SILENT = re.compile(
    r"```[\s\S]*?```|`[^`\n]*`|\$\$[\s\S]*?\$\$|\$[^$\n]+\$|<!--=\w+-->.*?<!--/-->|<!--[\s\S]*?-->|<[^>\n]+>|(?<=\])\([^)\n]*\)"
    r"|^(?: {4}|\t).*$|^#+ +\d*[.)]?|^\s*(?:\*\*)?\d+\.(?:\*\*)?(?= )|^.*00 start.*10 evaluation.*$",
    re.MULTILINE,
)
_NUMBERS = r"\d+(?:(?:,| to| and|,? or|–|-) ?\d+)*"
_REFERENCE = re.compile(
    rf"\b(?:chapters?|notebooks?|sections?|figures?|tables?|algorithm|eq\.|equations?|steps?|exercises?|questions?"
    rf"|layer|stages?|round|PS3\.\d+|PS3|SP|Table|CID|annex) {_NUMBERS}(?:\.\d+)*"
    r"|\b(?:19|20)\d\d\b|\bPS3\.\d+(?: [A-Z]?[\d.]+)?|\*\*10 evaluation[^*\n]*\*\*",
    re.IGNORECASE,
)


def figures(notebook: Mapping) -> dict[str, str]:
    """The figures that the stored outputs of ``notebook`` carry: name -> text.

    Raises ValueError for a name with two texts.
    """
    found: dict[str, str] = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            for name, text in output.get("metadata", {}).get(FIGURES, {}).items():
                if found.setdefault(name, text) != text:
                    raise ValueError(f"two cells give the figure {name!r}: {found[name]} and {text}")
    return found


def bind(notebook: dict) -> dict:
    """Write the figures of its own outputs into the text cells of ``notebook``, in place; one that is missing stays."""
    known = figures(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])
            cell["source"] = MARKED.sub(lambda m: f"<!--={m[1]}-->{known.get(m[1], m[2])}<!--/-->", source)
    return notebook


def problems(notebook: Mapping, given: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """(cell, what is wrong) for numbers in its text that nobody measured and nobody gave; cells count from 1.

    given: phrase -> where its numbers come from. A phrase that no text holds is reported too, as of cell 0.
    """
    known, used = figures(notebook), set()
    for number, cell in enumerate(notebook["cells"], 1):
        if cell["cell_type"] != "markdown":
            continue
        source = "".join(cell["source"])
        for name, text in MARKED.findall(source):
            if known.get(name) != text:
                yield number, f"the text says {text} where the figure {name!r} is {known.get(name, 'not measured')}"
        text = _REFERENCE.sub(_blank, _SILENT.sub(_blank, source))
        covered = [(m.start(), m.end(), phrase) for phrase in given for m in _places(phrase, text)]
        used |= {phrase for *_, phrase in covered}
        for match in NUMBER.finditer(text):
            if not any(start <= match.start() and match.end() <= end for start, end, _ in covered):
                around = " ".join(text[max(0, match.start() - 30) : match.end() + 30].split())
                yield number, f"the number {match[0]} is bound to no cell: ... {around} ..."
    yield from ((0, f"given_numbers.json: no text holds {phrase!r}") for phrase in given if phrase not in used)


def given_numbers(path: Path, stem: str) -> dict[str, str]:
    """The given phrases of the notebook ``stem`` in the JSON file ``path``: phrase -> source."""
    return json.loads(path.read_text(encoding="utf-8")).get(stem, {})


def _places(phrase: str, text: str) -> Iterator[re.Match]:
    """Where ``phrase`` stands in ``text`` and is no part of a longer number or word."""
    return re.finditer(rf"(?<![\w.]){re.escape(phrase)}(?!\w|[.,]\d)", text)


def _blank(match: re.Match) -> str:
    return re.sub(r"[^\n]", " ", match[0])
