"""The threat matrix names tests that exist, chapters show their own rows, and two rows are tried here."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.federation.strategies import equal_weights, weighted_mean
from fedbone.imaging import quality
from fedbone.imaging.coco import write_annotations
from fedbone.model.hrnet import build_for
from fedbone.privacy.dpsgd import PatientPrivacy
from fedbone.privacy.ledger import Ledger
from fedbone.teaching import threats
from fedbone.teaching.threats import CHAPTERS, NOT_DEFENDED, THREATS
from fedbone.vectors import l2_norm, to_vector
from tests.dicom_cases import film, save
from tests.helpers import dot_hospital, tiny_profile

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def cells(chapter: str) -> list[tuple[str, str]]:
    """(kind, source) of each cell of a chapter."""
    content = json.loads(NOTEBOOKS[chapter].read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


def test_every_named_test_exists():
    for row in THREATS:
        assert bool(row.test) is not bool(row.untested)
        if row.test:
            file, name = row.test.split("::")
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], row.test


def test_only_what_nothing_stops_may_go_untried():
    assert {row.asset for row in THREATS if row.untested} == {"model"}
    assert all(row.defence == NOT_DEFENDED for row in THREATS if row.untested)


def test_no_threat_is_listed_twice_and_every_field_says_something():
    assert len({row[:3] for row in THREATS}) == len(THREATS)
    assert all(field.strip() for row in THREATS for field in row[:6])
    assert {row.chapter for row in THREATS} <= set(CHAPTERS)


def test_the_matrix_of_chapter_00_is_this_one():
    code = [source for kind, source in cells("00") if kind == "code"]
    assert any(source.endswith("matrix()") for source in code)
    assert not any("curious server |" in source for source in code)
    table = threats.matrix().data.splitlines()
    assert len(table) == 2 + len(THREATS)
    assert all(f"| {row.attempt} |" in line for row, line in zip(THREATS, table[2:], strict=True))
    assert sum("**not defended**" in line for line in table) == sum(not row.defended for row in THREATS)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_chapter_shows_its_own_rows_once_before_its_recap(chapter):
    found = [index for index, (_, source) in enumerate(cells(chapter)) if "threats.lit(" in source]
    assert len(found) == 1
    assert f'threats.lit("{chapter}")' in cells(chapter)[found[0]][1]
    after = "".join(source for _, source in cells(chapter)[found[0] + 1 :])
    assert "## Recap" in after


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_what_a_chapter_shows_are_its_rows_of_the_matrix(chapter):
    shown = threats.lit(chapter).data
    own = [row for row in THREATS if row.chapter == chapter]
    assert all(f"| {row.attempt} |" in shown for row in own)
    assert sum(line.startswith(("| ● ", "| ○ ")) for line in shown.splitlines()) == len(own)
    assert shown.count("| ○ ") == shown.count("**not defended**") == sum(not row.defended for row in own)
    met = sum(row.chapter <= chapter for row in THREATS)
    assert f"**{met} of {len(THREATS)} rows are lit" in shown


def test_at_the_end_every_row_is_lit_once():
    assert sum(threats.lit(chapter).data.count("| ● ") for chapter in CHAPTERS) == sum(row.defended for row in THREATS)
    assert f"**{len(THREATS)} of {len(THREATS)} rows" in threats.lit("10").data
    assert {row.chapter for row in THREATS} == set(CHAPTERS)


def test_each_row_leads_from_the_notebooks_to_a_file_that_is_there():
    for row in THREATS:
        if row.test:
            target = f"../{row.test.split('::')[0]}"
            assert f']({target} "{row.test}")' in threats.matrix().data
            assert (ROOT / "notebooks" / target).is_file()


def test_another_chapter_is_refused():
    with pytest.raises(UserError, match="no chapter '11'"):
        threats.lit("11")


# ---- two rows of the matrix that no other test tries


def test_two_hospitals_that_subtract_their_own_are_left_with_the_thirds_noise(tmp_path):
    """They know the mean and two updates of three, so they hold the third, and in it the noise that hides patients."""
    privacy = PatientPrivacy(clip_norm=0.5, noise_multiplier=1.0, patients=8, batch=4, part="all")
    profile = tiny_profile()
    start = to_vector(build_for(profile, 3, seed=0))

    def sent(number: int, noise_multiplier: float) -> np.ndarray:
        own = replace(privacy, noise_multiplier=noise_multiplier, rng=np.random.default_rng(number))
        ledger = Ledger(tmp_path / f"{number} {noise_multiplier}.json", 1e-5)
        hospital = Hospital(dot_hospital("abc"[number], seed=number), profile, privacy=(own, ledger))
        return hospital.local_update(start, RoundTask(0, 0)).delta.astype(np.float64)

    updates = [sent(number, 1.0) for number in range(3)]
    held = 3 * weighted_mean(updates, equal_weights(3)) - updates[0] - updates[1]
    of_films = sent(2, 0.0)  # the same patients and pictures, by the same generator
    hiding = held - of_films
    per_weight = privacy.learning_rate * privacy.noise_multiplier * privacy.clip_norm / privacy.batch
    assert hiding.std() == pytest.approx(per_weight, rel=0.02)
    assert l2_norm(hiding) > 50 * l2_norm(of_films) > 0


def test_labels_that_are_moved_a_little_are_not_noticed(tmp_path):
    """A hip moved by a tenth of the film is wrong on every film, and the search for gross errors has nothing to say."""
    side, rng = 100, np.random.default_rng(0)
    joints, points = ("left_hip", "right_hip"), np.array([[70, 50, 2], [30, 50, 2]], float)
    place = tmp_path / "north"
    images = []
    for number in range(8):
        values = rng.integers(0, 4096, (side, side)).astype(np.uint16)
        save(place / f"{number}.dcm", film(values, BitsStored=12, PatientID=f"P{number}", PixelSpacing=[0.2, 0.2]))
        images.append({"file_name": f"{number}.dcm", "width": side, "height": side, "patient_id": None})
    moved, exchanged = points + np.array([[0, side / 10, 0], [0, 0, 0]]), points[::-1]
    write_annotations(place / "annotations.json", joints, images, [moved] * 8)
    assert quality.report(place) == []
    write_annotations(place / "annotations.json", joints, images, [*[moved] * 7, exchanged])
    assert [found.kind for found in quality.report(place)] == ["sides"]  # a gross one is found
