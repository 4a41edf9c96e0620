"""A number in a chapter's text is measured, given with its source, or a reference; anything else is found."""

from __future__ import annotations

import pytest
from nbformat import v4

from fedbone.teaching import prose


def notebook(text: str, **figures: str) -> dict:
    output = v4.new_output("display_data", data={"text/plain": "holds"}, metadata={prose.FIGURES: figures})
    return v4.new_notebook(cells=[v4.new_code_cell("claim(...)", outputs=[output]), v4.new_markdown_cell(text)])


def found(text: str, given: dict[str, str] | None = None, **figures: str) -> list[str]:
    return [problem for _, problem in prose.problems(notebook(text, **figures), given or {})]


@pytest.mark.parametrize(
    "text",
    [
        "The error is 3.7 px.",
        "It finds 97 % of the joints.",
        "About twelve pixels, which is much.",
        "The limits are -2.0 to +1.7 degrees.",
        "Seen 1,024 times",
        "epsilon 5e-3",
        "| joints | 0.93 |",
        "## A heading with 12 joints",
        "- a point: 45 films",
        "(0.6)",
        "**7** of them",
        "**12 joints** are found",
        "at most 20 %",
        "    code = 1\n\nand 3.7 px in the text",
        "*Where:* 00 start · 10 evaluation\n\nIt errs by 3.7 px.",
        "```\n1\n```\n3.7 px `x`",
    ],
)
def test_an_unbound_number_is_found(text):
    assert found(text)


@pytest.mark.parametrize(
    "text",
    [
        "Chapter 05 and sections 3 to 5, table 2; PS3.15 E.1 (Carlini et al., S&P 2022).",
        "C07 and E12, HRNet-W32, ResNet-50, AES-256, W18, PCK@0.05, fp16, T4.",
        "`size = 128` and $x = 3$ and [a link](https://example.org/3.7).",
        "    indented = 128",
        "```\ncode = 12\n```",
        "**2.** Return the second.\n1. first\n2. second",
        "## 3. Three hospitals",
        "three hospitals, two readers, one epoch",
        "see **06 Differential privacy** (06)",
        '<img alt="a film" width="640">',
    ],
)
def test_what_is_no_statement_is_left_alone(text):
    assert found(text) == []


def test_a_marked_number_is_that_of_its_cell():
    text = "The error is <!--=error_px-->0.9<!--/--> px."
    assert found(text, error_px="0.9") == []
    assert "'error_px' is 1.2" in found(text, error_px="1.2")[0]
    assert "not measured" in found(text)[0]


def test_binding_writes_the_figures_and_leaves_what_is_missing():
    text = "<!--=a-->0<!--/--> and <!--=b-->7<!--/-->"
    bound = prose.bind(notebook(text, a="3.5"))["cells"][1]["source"]
    assert bound == "<!--=a-->3.5<!--/--> and <!--=b-->7<!--/-->"


def test_two_cells_cannot_give_one_name_two_texts():
    two = notebook("", a="1")
    two["cells"].append(notebook("", a="2")["cells"][0])
    with pytest.raises(ValueError, match="'a'"):
        prose.figures(two)


def test_a_given_phrase_covers_its_place_and_no_other():
    given = {"an epsilon of 1": "the question"}
    assert found("We ask for an epsilon of 1.", given) == []
    assert found("We ask for an epsilon of 1, and measure 1.", given)
    assert found("We ask for an epsilon of 1.5.", given)
    assert found("We ask for an epsilon of 10.", given)


def test_a_given_phrase_that_nobody_needs_is_reported():
    assert found("No number here.", {"17 points": "COCO"}) == ["given_numbers.json: no text holds '17 points'"]
