"""The teacher's pack and the Chinese README agree with the notebooks, the lab and README.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.sabotage import MISTAKES

ROOT = Path(__file__).resolve().parents[1]
TEACHER = ROOT / "notebooks" / "teacher"
NOTEBOOKS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
GUIDE, GLOSSARY, QUESTIONS, CHINESE, ENGLISH = (
    path.read_text(encoding="utf-8")
    for path in (*(TEACHER / f"{name}.md" for name in ("README", "glossary", "questions")),
                 ROOT / "README.zh.md", ROOT / "README.md")
)  # fmt: skip
CJK = re.compile(r"[\u4e00-\u9fff]")
every_chapter = pytest.mark.parametrize("chapter", NOTEBOOKS)


def texts(chapter: str) -> list[str]:
    cells = json.loads(NOTEBOOKS[chapter].read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def headings(chapter: str) -> list[str]:
    return [line.lstrip("# ").strip() for text in texts(chapter) for line in text.splitlines() if line.startswith("##")]


def table(text: str) -> list[list[str]]:
    """The cells of each row below the heading row and the line of dashes."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def part(name: str) -> str:
    return re.split(r"(?m)^## ", GUIDE.split(f"## {name}\n", 1)[1])[0]


# ---- the guide


@every_chapter
def test_the_aims_are_those_of_the_chapter(chapter):
    aims = [
        line
        for text in texts(chapter)
        if re.search(r"After this (chapter|half) you", text)
        for line in text.splitlines()
        if line.startswith("- ")
    ]
    section = part("What learners can do afterwards").split(f"../{NOTEBOOKS[chapter].name})", 1)[1].split("\n###")[0]
    assert aims
    assert [line for line in section.splitlines() if line.startswith("- ")] == aims


@pytest.mark.parametrize(
    ("name", "teaching", "breaks"), [("A path of 90 minutes", 90, 0), ("A path of one day", 360, 75)]
)
def test_the_minutes_of_a_path_add_up_and_its_sections_exist(name, teaching, breaks):
    rows = table(part(name))
    pauses = [row for row in rows if row[3] == "break"]
    assert sum(int(row[0]) for row in pauses) == breaks
    assert sum(int(row[0]) for row in rows) == teaching + breaks
    lessons = [row for row in rows if row[1] in NOTEBOOKS]
    for _, chapter, sections, how, question in lessons:
        assert how in ("live", "book")
        assert question.endswith("?")
        assert not [section for section in sections.split("; ") if section not in headings(chapter)]
    assert {row[1] for row in lessons} == set(NOTEBOOKS)


def test_the_guide_calls_its_minutes_plans():
    assert "All minutes on this page are **plans**" in GUIDE


def test_the_guide_lists_the_mistakes_of_the_lab():
    listed = [tuple(row) for row in table(part("The sabotage lab"))]
    assert listed == [(f"`{name}`", found.chapter, found.sentence) for name, found in MISTAKES.items()]


# ---- the glossary


def test_every_row_of_the_glossary_has_its_form():
    for row in table(GLOSSARY):
        assert len(row) == 4, row
        term, chinese, meanings, chapter = row
        assert CJK.search(chinese), term
        english, also_chinese = meanings.split("<br>")
        assert (english[-1], also_chinese[-1]) == (".", "。"), term
        assert (bool(CJK.search(english)), bool(CJK.search(also_chinese))) == (False, True), term
        assert chapter in NOTEBOOKS, term


def test_the_glossary_is_sorted_without_duplicates_and_covers_every_chapter():
    terms = [row[0].casefold() for row in table(GLOSSARY)]
    assert terms == sorted(set(terms))
    assert len(terms) >= 80
    assert {row[3] for row in table(GLOSSARY)} == set(NOTEBOOKS)


@every_chapter
def test_the_chapter_really_contains_its_terms(chapter):
    text = re.sub(r"[*_`]", "", " ".join(texts(chapter))).casefold()
    own = [row[0] for row in table(GLOSSARY) if row[3] == chapter]
    assert not [term for term in own if not re.search(rf"(?<![a-z]){re.escape(term.casefold())}", text)]


def test_chinese_names_differ():
    names = [row[1] for row in table(GLOSSARY)]
    assert len(set(names)) == len(names)


# ---- the questions


def test_there_are_twelve_questions_each_with_an_answer_and_its_place():
    blocks = re.split(r"(?m)^## ", QUESTIONS)[1:]
    assert [block.split(".")[0] for block in blocks] == [str(number) for number in range(1, 13)]
    for block in blocks:
        assert block.splitlines()[0].endswith("?")
        assert len(block.split("**Answer.**")[1].split("**Where:**")[0].split()) > 15
        chapter, section = re.search(r'\*\*Where:\*\* chapter (\d\d), "(.+)"\.', block).groups()
        assert section in headings(chapter)
    assert {re.search(r"chapter (\d\d), ", block)[1] for block in blocks} == set(NOTEBOOKS)


# ---- README.zh.md


def commands(text: str) -> set[str]:
    """Indented lines, and what stands between backticks and runs something."""
    lines = {line.strip() for line in text.splitlines() if line.startswith("    ")}
    runs = re.compile(r"(?:\w+=\S+ )*(?:make|python3?) .+")
    return lines | {code for code in re.findall(r"`([^`]+)`", text) if runs.fullmatch(code)}


def test_every_command_of_the_chinese_readme_is_in_the_english_one():
    found = commands(CHINESE)
    assert {"make run", "make test"} <= found
    assert len(found) >= 8
    assert not [line for line in found if line not in ENGLISH]


def test_the_readmes_lead_to_each_other():
    assert "[中文](README.zh.md)" in ENGLISH.splitlines()[:6]
    assert "[English](README.md)" in CHINESE.splitlines()[:6]


@pytest.mark.parametrize("page", [ROOT / "README.zh.md", *sorted(TEACHER.glob("*.md"))], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_chinese_readme_names_every_chapter():
    assert not [path.name for path in NOTEBOOKS.values() if f"(notebooks/{path.name})" not in CHINESE]
