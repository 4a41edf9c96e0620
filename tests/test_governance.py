"""Every figure of the cards is that of the file they name, and the files are there."""

import csv
import json
import re
from pathlib import Path

import pytest

from fedbone.engines.flare.disk_probes import OF_ALL_HOSPITALS
from fedbone.model.predict import load_network
from fedbone.vectors import load_checkpoint, sha256, to_vector

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "data" / "sample" / "weights" / "federated_cpu.safetensors"
TEXT = (ROOT / "notebooks" / "governance.md").read_text(encoding="utf-8")
CARD = dict(re.findall(r"(?m)^\| ([^|]+?) \| ([^|]+?) \|$", TEXT[TEXT.index("## 5.") : TEXT.index("## 6.")]))


@pytest.fixture(scope="module")
def rows():
    with open(ROOT / "notebooks" / "tables" / "gains.csv", encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if (row["model"], row["seed"]) == ("federated", "0")]
    return {row["tested_at"]: row for row in found}


def test_the_rows_are_of_this_very_model(rows):
    found = sha256(to_vector(load_network(WEIGHTS).model))
    assert {row["vector_sha256"] for row in rows.values()} == {found[:16]}


def test_the_results_are_those_of_the_table(rows):
    total, a, b, c = (rows[name] for name in ("all hospitals", "hospital_a", "hospital_b", "hospital_c"))
    found = CARD["found within 5 % (PCK@0.05), within 2 % (PCK@0.02)"]
    assert found.startswith(f"{total['pck_0_05']}, {total['pck_0_02']} over all films")
    assert CARD["mean error"].startswith(f"{total['mre_px']} pixels")
    expected = f"A {a['pck_0_02']}, B {b['pck_0_02']}, C {c['pck_0_02']} "
    assert CARD["by hospital, PCK@0.02"].startswith(expected)
    worst = f"{total['worst_joint'].replace('_', ' ')}, PCK@0.05 {total['worst_joint_pck_0_05']} "
    assert CARD["worst joint"].startswith(worst)
    cost = CARD["cost of joining, against its own model at home"]
    assert cost.startswith(", ".join(f"{n} +{row['minus_own_px']}" for n, row in zip("ABC", (a, b, c), strict=True)))


def test_the_form_is_that_of_the_file():
    arrays, about = load_checkpoint(WEIGHTS)
    assert f"{about['rounds']} rounds, seed {about['seed']}" in CARD["made by"]
    numbers = f"{sum(array.size for array in arrays.values()):,} numbers"
    size = f"{about['size_px']} x {about['size_px']} pixels"
    joints = f"{len(about['joints'])} joints"
    assert [words in CARD["form"] for words in (numbers, size, joints)] == [True] * 3


def test_the_test_films_are_those_that_notebook_10_counts():
    notebook = json.loads((ROOT / "notebooks" / "10_evaluation_and_compliance.ipynb").read_text(encoding="utf-8"))
    shown = "".join("".join(o.get("text", "")) for cell in notebook["cells"] for o in cell.get("outputs", []))
    films, patients = re.search(r"(\d+) simulated films of (\d+) patients", CARD["tested on"]).groups()
    assert f"{patients} patients, {films} films" in shown


def test_every_file_that_is_named_is_there():
    named = set(re.findall(r"`((?:notebooks|data|fedbone)/[\w./]+)`", TEXT))
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_drill_takes_an_hour_and_its_times_go_forward():
    drill = TEXT[TEXT.index("## 4.") : TEXT.index("## 5.")]
    minutes = [int(minute) for minute in re.findall(r"(?m)^\| (\d+) \|", drill)]
    assert minutes == sorted(set(minutes))
    assert (minutes[0], minutes[-1] < 60) == (0, True)


def test_what_it_is_not_is_said():
    for words in ("Not a medical device", "not legal advice"):
        assert words in TEXT


@pytest.mark.parametrize("key", OF_ALL_HOSPITALS)
def test_keys_that_all_hospitals_share_are_in_the_table_and_in_the_drill(key):
    hospital = next(line for line in TEXT.splitlines() if line.startswith("| hospital |"))
    section = TEXT[TEXT.index("## 4.") : TEXT.index("## 5.")]
    drill = {row.split("|")[1].strip(): row for row in section.splitlines() if row.startswith("|")}
    assert [f"`{key}`" in text for text in (hospital, drill["5"], drill["55"])] == [True] * 3
    assert "new kits for **all** hospitals" in drill["55"]
