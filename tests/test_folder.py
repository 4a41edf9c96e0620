"""Own films as hospitals: layout, split by patient, and every defect reported while the rest goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedbone.errors import UserError
from fedbone.imaging.coco import write_annotations
from fedbone.imaging.dataset import HospitalData
from fedbone.imaging.folder import load_hospitals
from tests.dicom_cases import film, save

ROWS, COLS = 120, 90
JOINTS = ("hip", "knee", "ankle")


def hospital(
    place: Path, films: int = 10, seed: int = 0, per_patient: int = 2, by: str = "coco", joints: tuple = JOINTS
) -> Path:
    """A folder of films with one bright square per labelled joint, ``per_patient`` films of each patient."""
    rng = np.random.default_rng(seed)
    images, keypoints = [], []
    for number in range(films):
        patient = f"{place.parent.name if place.name == 'test' else place.name} {seed} {number // per_patient}"
        points = rng.integers((20, 20, 2), (70, 100, 3), (len(joints), 3))
        points[1, 2] = 0
        values = np.zeros((ROWS, COLS), np.uint16)
        for x, y, _ in points[points[:, 2] > 0]:
            values[y - 3 : y + 4, x - 3 : x + 4] = 4000
        tags = {"PatientID": patient if by == "dicom" else "", "PixelSpacing": [0.2, 0.4]}
        save(place / f"film {number:02d}.dcm", film(values, WindowCenter=2000, WindowWidth=4000, **tags))
        image = {"file_name": f"film {number:02d}.dcm", "width": COLS, "height": ROWS}
        images.append({**image, "patient_id": patient if by == "coco" else None})
        keypoints.append(points)
    write_annotations(place / "annotations.json", joints, images, keypoints)
    return place


def edit(place: Path, **changes: object) -> None:
    """Change the second image record of a hospital."""
    path = place / "annotations.json"
    content = json.loads(path.read_text())
    content["images"][1].update(changes)
    path.write_text(json.dumps(content))


def key(data: HospitalData) -> list[bytes]:
    return [image.tobytes() for half in (data.train, data.test) for image in half.images]


def test_loads_hospitals(tmp_path: Path) -> None:
    root = tmp_path / "my films"
    hospital(root / "south", 20, seed=1)
    hospital(root / "north", 10)
    for junk in (".hidden", "weights"):
        shutil.copytree(root / "north", root / junk)
    (root / "README.txt").write_text("x")
    calls: list[tuple[int, int, str]] = []
    hospitals, problems = load_hospitals(root, 64, progress=lambda *call: calls.append(call))
    assert problems == []
    assert [data.name for data in hospitals] == ["north", "south"]
    assert calls[-1] == (30, 30, "south")
    assert len(calls) == 30
    for data, films in zip(hospitals, (10, 20), strict=True):
        assert data.joints == JOINTS
        assert (len(data.train), len(data.test)) == (films * 4 // 5, films // 5)
        assert not set(data.train.patients) & set(data.test.patients)
        assert data.labelled.tolist() == [True, False, True]
        for half in (data.train, data.test):
            assert half.images.dtype == np.uint8
            assert half.images.shape[1:] == (64, 64)
            assert half.keypoints.dtype == half.spacing_mm.dtype == np.float32
            assert half.truth is None
            # 0.4 mm columns, 0.2 mm rows: 36 x 24 mm, shown with square pixels on 64 x 43
            np.testing.assert_allclose(half.spacing_mm, np.tile([0.4 * 90 / 64, 0.2 * 120 / 43], (len(half), 1)))


def test_keypoints_lie_on_the_dots(tmp_path: Path) -> None:
    hospital(tmp_path / "a", 6)
    data = load_hospitals(tmp_path, 100)[0][0]
    for images, keypoints in ((data.train.images, data.train.keypoints), (data.test.images, data.test.keypoints)):
        for image, points in zip(images, keypoints, strict=True):
            assert (points[1] == 0).all()
            for x, y, _ in points[[0, 2]]:
                assert image[round(float(y)), round(float(x))] == 255
                window = image[round(float(y)) - 4 : round(float(y)) + 5, round(float(x)) - 4 : round(float(x)) + 5]
                assert (window == 0).any()  # a dot, not a plain


def test_split_is_stable_and_follows_the_seed(tmp_path: Path) -> None:
    hospital(tmp_path / "a", 20)
    splits = [key(load_hospitals(tmp_path, 32, seed=seed)[0][0]) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert sorted(splits[0]) == sorted(splits[2])
    names = [load_hospitals(tmp_path, 32)[0][0].train.patients for _ in range(2)]
    assert names[0] == names[1]  # running numbers, not the pseudonyms of one process
    assert all(name.startswith("a-0") for name in names[0])


def test_patient_from_dicom_or_by_file_or_refused(tmp_path: Path) -> None:
    place = hospital(tmp_path / "a", 10, by="dicom")
    data = load_hospitals(tmp_path, 32)[0][0]
    assert len({*data.train.patients, *data.test.patients}) == 5
    assert not set(data.train.patients) & set(data.test.patients)
    shutil.rmtree(place)
    hospital(place, 10, by="none")
    with pytest.raises(UserError, match=r"10 of 10 films do not say whose.*--split-by-file"):
        load_hospitals(tmp_path, 32)
    data = load_hospitals(tmp_path, 32, split_by_file=True)[0][0]
    assert (len(data.train), len(data.test)) == (8, 2)
    assert len({*data.train.patients, *data.test.patients}) == 10


def test_one_patient_cannot_be_split(tmp_path: Path) -> None:
    hospital(tmp_path / "a", 6, per_patient=6)
    with pytest.raises(UserError, match="one patient"):
        load_hospitals(tmp_path, 32)
    (data,), _ = load_hospitals(tmp_path, 32, split=False)  # but evaluated by a model from elsewhere
    assert (len(data.train), len(data.test)) == (6, 0)


def test_given_test_folder(tmp_path: Path) -> None:
    place = hospital(tmp_path / "a", 6)
    hospital(place / "test", 4, seed=1)
    data = load_hospitals(tmp_path, 32)[0][0]
    assert (len(data.train), len(data.test)) == (6, 4)
    assert not set(data.train.patients) & set(data.test.patients)
    hospital(place / "test", 4, by="none")
    hospital(place, 6, by="none")
    assert len(load_hospitals(tmp_path, 32)[0][0].test) == 4  # no split to make, so nobody needs a name


def test_given_test_folder_with_a_training_patient(tmp_path: Path) -> None:
    place = hospital(tmp_path / "a", 6)
    hospital(place / "test", 4, seed=1)
    content = json.loads((place / "annotations.json").read_text())
    edit(place / "test", patient_id=content["images"][0]["patient_id"])
    with pytest.raises(UserError, match=r"1 test films are of patients.*film 01.dcm.*Move all films") as caught:
        load_hospitals(tmp_path, 32)
    assert "a 0 0" not in str(caught.value)  # the patient's name stays out of the message
    with pytest.raises(UserError, match="Move all films"):
        load_hospitals(tmp_path, 32, split_by_file=True)  # the flag is for films without an id: no known one crosses
    for folder in (place, place / "test"):
        content = json.loads((folder / "annotations.json").read_text())
        content["images"] = [{**image, "patient_id": "ANONYMOUS"} for image in content["images"]]
        (folder / "annotations.json").write_text(json.dumps(content))
    assert len(load_hospitals(tmp_path, 32, split_by_file=True)[0][0].test) == 4


def test_films_without_a_label_are_mentioned_once(tmp_path: Path) -> None:
    place = hospital(tmp_path / "a", 8, per_patient=1)
    content = json.loads((place / "annotations.json").read_text())
    del content["annotations"][3]
    content["annotations"][0]["category_id"] = "1"
    (place / "annotations.json").write_text(json.dumps(content))
    (place / "stray.dcm").write_text("")
    (data,), problems = load_hospitals(tmp_path, 32)
    assert len(data.train) + len(data.test) == 6
    assert "category_id '1' is not that with keypoints, 1" in str(problems[0])
    assert "3 DICOM files have no label" in str(problems[1])
    assert len(problems) == 2


def test_bad_films_are_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    place = hospital(tmp_path / "a", 12, per_patient=1)
    (place / "film 02.dcm").write_text("a text file")
    (place / "film 03.dcm").unlink()
    (place / "film 04.dcm").write_bytes((place / "film 04.dcm").read_bytes()[:-500])
    content = json.loads((place / "annotations.json").read_text())
    content["images"][5]["width"] = COLS + 1
    content["annotations"][6]["keypoints"][0] = float("nan")
    del content["images"][7]["width"]
    content["annotations"][7]["keypoints"][0] = COLS + 5
    (place / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "films without labels").mkdir()
    (data,), problems = load_hospitals(tmp_path, 32)
    assert len(data.train) + len(data.test) == 6
    words = ["without labels", "NaN", "film 02.*not a DICOM", "film 03.*missing", "film 04.*cut short"]
    words += ["film 05.*91 x 120 pixels, the film has 90 x 120", "film 07.*outside the film of 90 x 120"]
    assert len(problems) == len(words)
    for word in words:
        with pytest.raises(UserError, match=word):
            raise next(problem for problem in problems if word.split(".*")[0] in str(problem))


def test_hospitals_that_disagree(tmp_path: Path) -> None:
    for theirs, first in ((("hip", "ankle", "knee"), "joint 2: 'ankle'.*'knee'"), (("hip", "knee"), "joint 3: 'none'")):
        hospital(tmp_path / "a", 4)
        hospital(tmp_path / "b", 4, joints=theirs)
        with pytest.raises(UserError, match=first) as caught:
            load_hospitals(tmp_path, 32)
        assert str(tmp_path / "a" / "annotations.json") in str(caught.value)
        assert str(tmp_path / "b" / "annotations.json") in str(caught.value)
    hospital(tmp_path / "b", 4)
    hospital(tmp_path / "b" / "test", 4, joints=("hip", "knee"))
    with pytest.raises(UserError, match="joint 3"):
        load_hospitals(tmp_path, 32)


def test_a_hospital_that_cannot_be_used_is_refused_with_all_other_messages(tmp_path: Path) -> None:
    hospital(tmp_path / "a", 6)
    (tmp_path / "a" / "film 01.dcm").write_text("a text file")
    hospital(tmp_path / "b", 4)
    (tmp_path / "b" / "annotations.json").write_text("{")
    hospital(tmp_path / "c", 4)
    for path in (tmp_path / "c").glob("*.dcm"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"b/annotations.json: it is not valid JSON") as caught:
        load_hospitals(tmp_path, 32)
    notes = "\n".join(caught.value.__notes__)
    for word in ("a/film 01.dcm: it is not a DICOM", "c: none of its films", "c/film 00.dcm: the file is empty"):
        assert word in notes


def test_empty_test_folder_is_refused(tmp_path: Path) -> None:
    place = hospital(tmp_path / "a", 6)
    hospital(place / "test", 1)
    (place / "test" / "film 00.dcm").unlink()
    with pytest.raises(UserError, match="test: none of its films"):
        load_hospitals(tmp_path, 32)
    (place / "test" / "annotations.json").unlink()
    assert "test: it has no annotations.json" in str(load_hospitals(tmp_path, 32)[1][0])


def test_folders_without_hospitals(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "absent", "no such folder"), (tmp_path, "no sub-folder holds annotations.json")):
        with pytest.raises(UserError, match=words):
            load_hospitals(path, 32)
    hospital(tmp_path / "a", 2)
    hospital(tmp_path / "a" / "test", 2, seed=1)
    with pytest.raises(UserError, match=r"holds annotations.json itself.*one sub-folder per hospital"):
        load_hospitals(tmp_path / "a", 32)
    hospital(tmp_path / "test", 4)
    assert [data.name for data in load_hospitals(tmp_path, 32)[0]] == ["a", "test"]
