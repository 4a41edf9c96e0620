"""Planted defects are found and named, one kind at a time; sound label sets leave nothing to say."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedbone.config import get_profile
from fedbone.errors import UserError
from fedbone.federation import command
from fedbone.imaging import quality
from fedbone.imaging.coco import write_annotations
from fedbone.imaging.quality import Finding, report
from tests.dicom_cases import film, save

ROWS, COLS = 120, 90
JOINTS = ("nose", "left_hip", "right_hip", "left_knee", "right_knee")
POINTS = np.array([[50, 10, 2], [70, 60, 2], [30, 60, 2], [68, 110, 1], [33, 112, 2]], float)
EXCHANGE = [0, 2, 1, 4, 3]


def hospital(place: Path, films: int = 10, seed: int = 0, **tags: object) -> Path:
    """Films of noise, each of its own patient, with joints some pixels around POINTS and the same from two readers."""
    rng = np.random.default_rng([seed, len(place.name), *place.name.encode()])
    images, labels = [], []
    for number in range(films):
        values = rng.integers(0, 4096, (ROWS, COLS)).astype(np.uint16)
        pitch = {"PixelSpacing": [0.2 + 0.01 * seed, 0.2], "PatientID": f"SECRET {place.name} {number}"}
        save(place / f"film {number:02d}.dcm", film(values, BitsStored=12, **pitch | tags))
        images.append({"file_name": f"film {number:02d}.dcm", "width": COLS, "height": ROWS, "patient_id": None})
        labels.append(POINTS + np.append(rng.uniform(-3, 3, 2), 0) + rng.normal(0, 1, (len(JOINTS), 3)) * [1, 1, 0])
    for reader in (labels, [points + rng.normal(0, 2, points.shape) * [1, 1, 0] for points in labels]):
        name = "annotations.json" if reader is labels else "second_reader.json"
        write_annotations(place / name, JOINTS, images, [np.clip(points, 0.9, (88, 118, 2)) for points in reader])
    return place


def points_of(place: Path, number: int) -> np.ndarray:
    content = json.loads((place / "annotations.json").read_text())
    return np.reshape(content["annotations"][number]["keypoints"], (-1, 3))


def relabel(place: Path, number: int, change: Callable, name: str = "annotations.json") -> None:
    """Replace the keypoints (K, 3) of film ``number`` by ``change(keypoints)``."""
    content = json.loads((place / name).read_text())
    entry = content["annotations"][number]
    entry["keypoints"] = np.ravel(change(np.reshape(entry["keypoints"], (-1, 3)))).tolist()
    (place / name).write_text(json.dumps(content))


def set_images(place: Path, **changes: dict[int, object]) -> None:
    content = json.loads((place / "annotations.json").read_text())
    for key, values in changes.items():
        for number, value in values.items():
            content["images"][number][key] = value
    (place / "annotations.json").write_text(json.dumps(content))


def retag(place: Path, **tags: object) -> None:
    """The same films with other tags."""
    for number, path in enumerate(sorted(place.glob("*.dcm"))):
        _, stored = quality.read_stored(path)
        save(path, film(stored, BitsStored=12, **{"PixelSpacing": [0.2, 0.2], "PatientID": f"SECRET {number}"} | tags))


def kinds(findings: list[Finding]) -> list[tuple[str, tuple[str, ...]]]:
    return [(found.kind, found.films) for found in findings]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return hospital(tmp_path / "my films" / "north")


def test_sound_hospitals_leave_nothing_to_say(place: Path) -> None:
    hospital(place.parent / "south", seed=1)
    hospital(place / "test", 4, seed=2)
    (place.parent / "weights").mkdir()
    calls: list[tuple[int, int, str]] = []
    assert report(place.parent, progress=lambda *call: calls.append(call)) == []
    assert calls[-1] == (24, 24, "south")
    assert [done for done, _, _ in calls] == list(range(1, 25))
    assert report(place) == []  # one hospital by itself, as in a federation
    (place / "second_reader.json").unlink()
    assert report(place) == []


@pytest.mark.parametrize("syntax", [None, "1.2.840.10008.1.2.5"])
def test_duplicates_of_another_patient_with_sides_exchanged(place: Path, syntax: str | None) -> None:
    """The two 'patients' of a public set: the same pixels, sides exchanged, labels 15 to 21 px apart."""
    _, stored = quality.read_stored(place / "film 03.dcm")
    save(place / "film 07.dcm", film(stored, BitsStored=12, PatientID="OTHER", PixelSpacing=[0.2, 0.2]), syntax)
    first = points_of(place, 3)
    length = np.array([15.0, 21, 18, 16, 20])
    shift = np.stack([length * 0, -length * np.sign(first[:, 1] - 40), length * 0], axis=1)
    relabel(place, 7, lambda _: (first + shift)[EXCHANGE])
    found = report(place)
    duplicate = found[0]
    assert kinds(found) == [
        ("duplicate", ("film 03.dcm", "film 07.dcm")),
        ("sides", ("film 07.dcm",)),
        ("sides", ("film 07.dcm",)),  # the second reader had them right
    ]
    assert "pixels are those of film 07.dcm too (different patient ids)" in duplicate.what
    assert "15.0 to 21.0 px apart, after left and right" in duplicate.what
    assert "whose film" in duplicate.remedy
    assert "SECRET" not in str(found)
    assert "OTHER" not in str(found)


def test_duplicates_of_one_patient_and_of_an_unknown_one(place: Path) -> None:
    for number in (5, 6):
        shutil.copy(place / "film 04.dcm", place / f"film {number:02d}.dcm")
        relabel(place, number, lambda _: points_of(place, 4) + np.array([3, 4, 0]))
    (found,) = report(place)
    assert (found.kind, found.films) == ("duplicate", ("film 04.dcm", "film 05.dcm", "film 06.dcm"))
    assert "film 05.dcm, film 06.dcm too (one patient id); labels 5.0 to 5.0 px apart" in found.what
    assert "put right" not in found.what
    set_images(place, patient_id={4: "p1", 5: "p1", 6: "p2"})  # the label file goes before the header
    assert "(different patient ids)" in report(place)[0].what
    set_images(place, patient_id=dict.fromkeys((4, 5, 6)))
    retag(place, PatientID=None)
    assert "(unknown patients)" in report(place)[0].what


def test_a_test_film_that_is_also_a_training_film(place: Path) -> None:
    hospital(place / "test", 3, seed=2)
    shutil.copy(place / "film 04.dcm", place / "test" / "film 01.dcm")
    assert ("duplicate", ("film 04.dcm", "test/film 01.dcm")) in kinds(report(place))


def test_a_film_of_two_hospitals(place: Path) -> None:
    other = hospital(place.parent / "south", seed=1)
    _, stored = quality.read_stored(place / "film 02.dcm")
    negative = film(4095 - stored, BitsStored=12, PhotometricInterpretation="MONOCHROME1", PixelSpacing=[0.21, 0.2])
    save(other / "film 08.dcm", negative)
    (found,) = report(place.parent)
    assert (found.kind, found.hospital, found.films) == ("duplicate", "north", ("film 02.dcm",))
    assert "south/film 08.dcm" in found.what


def test_a_changed_pixel_makes_another_film(place: Path) -> None:
    _, stored = quality.read_stored(place / "film 03.dcm")
    stored = stored.copy()
    stored[60, 40] ^= 1
    save(place / "film 07.dcm", film(stored, BitsStored=12, PixelSpacing=[0.2, 0.2]))
    assert report(place) == []


def exchange(place: Path, *numbers: int) -> None:
    for number in numbers:
        for name in ("annotations.json", "second_reader.json"):
            relabel(place, number, lambda points: points[EXCHANGE], name)


def test_single_films_against_the_majority(place: Path) -> None:
    exchange(place, 0, 3, 8, 9)  # 4 of 10
    found = report(place)
    assert kinds(found) == [("sides", (f"film {number:02d}.dcm",)) for number in (0, 3, 8, 9)]
    assert all("the other way round than on this hospital's other films" in each.what for each in found)


def test_a_hospital_that_mirrors_everything_is_one_finding(place: Path) -> None:
    exchange(place, *range(10))
    (found,) = report(place)
    assert (found.kind, found.films) == ("sides", ())
    assert "on 10 of 10 films" in found.what
    exchange(place, 2)
    assert kinds(report(place)) == [("sides", ()), ("sides", ("film 02.dcm",))]
    assert "on 9 of 10 films" in report(place)[0].what
    exchange(place, 2)
    retag(place, PatientOrientation=["R", "F"])
    assert report(place) == []  # the headers say so: mirrored films with right labels


def test_one_exchanged_pair(place: Path) -> None:
    for name in ("annotations.json", "second_reader.json"):
        relabel(place, 6, lambda points: points[[0, 1, 2, 4, 3]], name)
    (found,) = report(place)
    assert (found.kind, found.films) == ("sides", ("film 06.dcm",))
    assert "_hip and " in found.what or "_knee and " in found.what  # two pairs: either may be the wrong one


@pytest.mark.parametrize("tags", [{"ViewPosition": "LL"}, {"PatientOrientation": ["A", "F"]}])
def test_lateral_films_by_their_header_are_not_judged(place: Path, tags: dict) -> None:
    exchange(place, 0, 3)
    retag(place, **tags)
    assert report(place) == []


def test_superimposed_joints_are_not_judged(place: Path) -> None:
    def flat(points: np.ndarray) -> np.ndarray:
        points[[1, 3], 0], points[[2, 4], 0] = 45, 63  # 18 px to the wrong side, of 20 that are not judged
        return points

    for name in ("annotations.json", "second_reader.json"):
        relabel(place, 5, flat, name)
    assert report(place) == []


def test_readers_who_exchange_sides(place: Path) -> None:
    relabel(place, 4, lambda points: points[EXCHANGE], "second_reader.json")
    (found,) = report(place)
    assert (found.kind, found.films) == ("sides", ("film 04.dcm",))
    assert "two readers" in found.what


@pytest.mark.parametrize("corner", [(0, 0), (COLS - 1, 0), (0, ROWS - 1), (COLS - 1, ROWS - 1), (-0.5, 0.5)])
def test_points_in_a_corner(place: Path, corner: tuple[float, float]) -> None:
    def move(points: np.ndarray) -> np.ndarray:
        points[0] = (*corner, 1)
        return points

    relabel(place, 2, move)
    (found,) = report(place)
    assert (found.kind, found.films, found.what) == ("points", ("film 02.dcm",), "nose lies in a corner of the film")


@pytest.mark.parametrize("point", [(0, 40, 2), (40, 0, 2), (COLS - 1, 60, 2), (0, 0, 0), (2, 2, 2)])
def test_points_at_an_edge_or_unlabelled_are_no_corner(place: Path, point: tuple[float, float, int]) -> None:
    def move(points: np.ndarray) -> np.ndarray:
        points[0] = point
        return points

    relabel(place, 2, move)
    assert report(place) == []


def test_two_joints_on_one_point(place: Path) -> None:
    def copy(points: np.ndarray) -> np.ndarray:
        points[4] = points[0]
        return points

    relabel(place, 2, copy)
    assert [(f.kind, f.films, f.what) for f in report(place) if f.kind == "points"] == [
        ("points", ("film 02.dcm",), "nose and right_knee have the same point")
    ]


@pytest.mark.parametrize("size", [{}, {"width": {2: None}}])
def test_points_outside_the_film(place: Path, size: dict) -> None:
    def move(points: np.ndarray) -> np.ndarray:
        points[0] = (COLS + 5, 10, 2)
        return points

    relabel(place, 2, move)
    set_images(place, **size)
    (found,) = report(place)
    assert found.kind == "unusable"
    assert "film 02.dcm" in str(found)
    assert f"outside the film of {COLS} x {ROWS} pixels" in found.what


@pytest.mark.parametrize(
    ("pitch", "words"),
    [
        (None, "no pixel spacing"),
        ([0, 0], "a placeholder"),
        ([1, 1], "a placeholder"),
        ([-0.2, -0.2], "a placeholder"),
        ([50, 50], "a placeholder"),
    ],
)
def test_spacings_that_mean_nothing(place: Path, pitch: list[float] | None, words: str) -> None:
    retag(place, PixelSpacing=pitch) if pitch else retag(place, PixelSpacing="")
    (found,) = report(place)
    assert found.kind == "spacing"
    assert f"10 of 10 films have {words}" in found.what
    assert len(found.films) == 10
    if pitch:
        retag(place, PixelSpacing=pitch, ImagerPixelSpacing=[0.15, 0.15])
        assert report(place) == []  # the detector's pitch is there


def test_one_spacing_for_all_hospitals(place: Path) -> None:
    hospital(place.parent / "south", seed=0)
    (found,) = report(place.parent)
    assert (found.kind, found.hospital, found.films) == ("spacing", "north, south", ())
    assert "0.2 x 0.2 mm" in found.what


def test_bad_files_never_stop_it(place: Path) -> None:
    (place / "film 00.dcm").write_bytes(b"")
    (place / "film 01.dcm").unlink()
    (place / "film 02.dcm").write_text("a text file")
    (place / "film 03.dcm").write_bytes((place / "film 03.dcm").read_bytes()[:-500])
    raw = (place / "film 04.dcm").read_bytes()
    (place / "film 04.dcm").write_bytes(raw.replace(b"0.2\\0.2", b"abcd\\ef"))
    save(place / "film 07.dcm", film(np.eye(ROWS, COLS, dtype=np.uint16), PatientOrientation=["L", "F"]))
    raw = (place / "film 07.dcm").read_bytes()
    (place / "film 07.dcm").write_bytes(raw.replace(b"\x20\x00\x20\x00CS", b"\x20\x00\x20\x00FD"))
    relabel(place, 5, lambda points: points * [1, 1, 0])
    set_images(place, file_name={6: "x" * 300})
    (place / "second_reader.json").write_text("{")
    south = hospital(place.parent / "south", seed=1)
    (south / "annotations.json").write_text("[]")
    relabel(place, 9, lambda points: points[EXCHANGE])
    found = report(place.parent)
    text = "\n".join(map(str, found))
    for word in ("film 00.dcm: the file is empty", "film 01.dcm: it cannot be read", "film 02.dcm: it is not a DICOM"):
        assert word in text
    for word in ("film 03.dcm: it is cut short", "every keypoint has visibility 0", "x" * 300, "not valid JSON"):
        assert word in text
    assert "south: annotations.json: expected a JSON object" in text
    assert "film 07.dcm: its header is damaged (BytesLengthException)" in text
    assert "1 of 3 films have a placeholder" in text
    assert [f.films for f in found if f.kind == "sides"] == [("film 09.dcm",)]
    assert [quality.KINDS.index(f.kind) for f in found] == sorted(quality.KINDS.index(f.kind) for f in found)


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"annotations\.json"):
            report(folder)


def test_findings_read_as_one_line() -> None:
    found = Finding("points", "north", ("a.dcm", "b.dcm"), "nose is odd", "Set it")
    assert str(found) == "north/a.dcm: nose is odd. Set it"
    assert str(Finding("sides", "north", (), "all odd", "Look")) == "north: all odd. Look"


def test_federate_names_what_to_check_before_it_trains(place: Path, capsys: pytest.CaptureFixture) -> None:
    def load() -> str:
        args = {"data": place.parent, "size": 32, "seed": 0, "split_by_file": True, "rounds": 1}
        command.load(argparse.Namespace(**args), get_profile("cpu", rounds=1))
        return capsys.readouterr().err

    assert "check: " not in load()
    exchange(place, 3)
    (place / "film 08.dcm").write_bytes(b"")
    text = load()
    assert "check: north/film 03.dcm: left and right joints" in text
    assert text.count("film 08.dcm") == 1
