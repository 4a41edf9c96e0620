"""Labels in COCO form: what is written comes back, and each kind of bad record costs only itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.errors import UserError
from fedbone.imaging.coco import COCO_JOINTS, read_annotations, write_annotations

NAMES = ["left_hip", "right_hip"]


def labels(films: int = 4) -> dict:
    """A sound annotations file by hand, with K = 2, independent of write_annotations."""
    return {
        "images": [
            {"id": n, "file_name": f"film_{n}.dcm", "width": 100, "height": 80, "patient_id": f"p{n}"}
            for n in range(1, films + 1)
        ],
        "annotations": [
            {"id": 10 * n, "image_id": n, "category_id": 1, "keypoints": [10 + n, 20, 2, 30, 40.5, 1]}
            for n in range(1, films + 1)
        ],
        "categories": [{"id": 1, "name": "pelvis", "keypoints": NAMES}],
    }


def dump(folder: Path, content: object) -> Path:
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_reads_records(tmp_path: Path) -> None:
    found = read_annotations(dump(tmp_path, labels()))
    assert found.joints == tuple(NAMES)
    assert found.problems == []
    first = found.records[0]
    assert (first.file_name, first.width, first.height, first.patient_id) == ("film_1.dcm", 100, 80, "p1")
    assert first.keypoints.dtype == np.float32
    assert first.keypoints.tolist() == [[11, 20, 2], [30, 40.5, 1]]


def test_joint_order_is_cocos() -> None:
    """The list in COCO's own person_keypoints files."""
    parts = ["eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"]
    expected = ["nose"] + [f"{side}_{part}" for part in parts for side in ("left", "right")]
    assert list(COCO_JOINTS) == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, joints: int, films: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    films += 1
    points = rng.uniform(0, 99, (films, joints, 3))
    points[..., 2] = rng.integers(0, 3, (films, joints))
    points[:, 0, 2] = 2
    images = [{"file_name": f"ä {n}.dcm", "width": 100, "height": 100, "patient_id": None} for n in range(films)]
    path = tmp_path_factory.getbasetemp() / "round trip" / "annotations.json"
    names = tuple(f"j{n}" for n in range(joints))
    write_annotations(path, names, images, list(points))
    found = read_annotations(path)
    assert (found.joints, found.problems) == (names, [])
    points[points[..., 2] == 0] = 0
    np.testing.assert_allclose([record.keypoints for record in found.records], points, atol=0.00051)
    box = json.loads(path.read_text(encoding="utf-8"))["annotations"][0]
    seen = points[0, points[0, :, 2] > 0, :2]
    assert box["num_keypoints"] == len(seen)
    np.testing.assert_allclose(box["bbox"], [*seen.min(0), *(seen.max(0) - seen.min(0))], atol=0.002)


def test_write_refuses_wrong_shapes(tmp_path: Path) -> None:
    image = {"file_name": "a.dcm", "width": 9, "height": 9, "patient_id": "p"}
    for points in ([np.zeros((3, 3))], []):
        with pytest.raises(ValueError, match="array for each"):
            write_annotations(tmp_path / "x.json", ("a", "b"), [image], points)
    assert list(tmp_path.iterdir()) == []


def _broken(change: str) -> dict:
    content = labels()
    exec(change, {"c": content, "i": content["images"][1], "a": content["annotations"][1]})
    return content


BAD_RECORDS = {
    "a['keypoints'] = a['keypoints'][:5]": "expected 6 keypoint numbers .*got 5",
    "a['keypoints'] += [1, 1, 2]": "got 9",
    "del a['keypoints']": "got no list",
    "a['keypoints'] = '123456'": "got no list",
    "a['keypoints'][0] = float('nan')": "NaN",
    "a['keypoints'][4] = float('-inf')": "infinite",
    "a['keypoints'][0] = 10 ** 400": "huge",
    "a['keypoints'][0] = '7'": "not a number",
    "a['keypoints'][0] = None": "not a number",
    "a['keypoints'][0] = True": "not a number",
    "a['keypoints'][2] = 3": "visibility",
    "a['keypoints'][2] = 1.5": "visibility",
    "a['keypoints'][2] = -1": "visibility",
    "a['keypoints'][2] = a['keypoints'][5] = 0": "every keypoint has visibility 0",
    "a['keypoints'][0] = 99.51": r"keypoint 1 lies at \(99.51, 20\), outside the film of 100 x 80",
    "a['keypoints'][3] = -0.51": "keypoint 2 lies at",
    "a['keypoints'][4] = 79.6": "outside the film",
    "a['image_id'] = 99": "image_id 99 is not one",
    "a['image_id'] = None": "image_id None",
    "a['image_id'] = [2]": "image_id",
    "del a['image_id']": "image_id",
    "c['annotations'].append(dict(a, id=77))": "2 keypoint annotations, expected one patient",
    "i['width'] = 0": "width is 0",
    "i['height'] = '80'": "height is '80'",
    "i['height'] = 80.5": "height is 80.5",
    "i['patient_id'] = ['p']": "patient_id",
    "i['id'] = None": "id or file_name",
    "i['id'] = 1": "id or file_name",
    "i['file_name'] = 'film_1.dcm'": "id or file_name",
    "i['file_name'] = './film_1.dcm'": "id or file_name",
    "i['file_name'] = None": "file_name",
    "i['file_name'] = ' '": "file_name",
    "i['file_name'] = 'a\\0.dcm'": "file_name",
    "i['file_name'] = '\\ud800.dcm'": "file_name",
    "i['file_name'] = '../a.dcm'": "leaves the folder",
    "i['file_name'] = 'x/../../a.dcm'": "leaves the folder",
    "i['file_name'] = '..\\\\a.dcm'": "leaves the folder",
    "i['file_name'] = '/etc/passwd'": "leaves the folder",
    "i['file_name'] = 'C:\\\\a.dcm'": "leaves the folder",
    "i['file_name'] = '\\\\\\\\server\\\\share\\\\a.dcm'": "leaves the folder",
}


@pytest.mark.parametrize("change", BAD_RECORDS)
def test_a_bad_record_costs_only_itself(tmp_path: Path, change: str) -> None:
    path = dump(tmp_path, _broken(change))
    found = read_annotations(path)
    survivors = {record.file_name for record in found.records}
    assert {"film_3.dcm", "film_4.dcm"} <= survivors
    assert "film_1.dcm" in survivors or "'id'] = 1" in change
    assert len(survivors) == 3
    with pytest.raises(UserError, match=BAD_RECORDS[change]):
        raise found.problems[0]
    assert len(found.problems) == (2 if "i['id']" in change else 1)  # without its id, the label has no film either
    error = found.problems[0]
    assert error.where.startswith(str(path))
    assert "id" in error.where
    assert error.remedy


GOOD_VARIANTS = [
    "del i['width'], i['height']",
    "i['patient_id'] = ''",
    "i['patient_id'] = float('nan')",
    "del i['patient_id']",
    "i['width'] = 100.0",
    "a['keypoints'][:3] = [0, 0, 0]",
    "a['keypoints'][:3] = [-500, 0, 0]",
    "a['keypoints'][:2] = [-0.5, 79.5]",
    "del a['category_id']",
    "i['id'] = a['image_id'] = 'two'",
    "i['file_name'] = 'sub\\\\film_2.dcm'",
    "c['categories'].append({'id': 2, 'name': 'metal'}); c['annotations'].append({'image_id': 2, 'category_id': 2})",
]


@pytest.mark.parametrize("change", GOOD_VARIANTS)
def test_tolerated(tmp_path: Path, change: str) -> None:
    found = read_annotations(dump(tmp_path, _broken(change)))
    assert found.problems == []
    assert len(found.records) == 4
    second = found.records[1]
    assert (second.keypoints[second.keypoints[:, 2] == 0] == 0).all()
    if "patient_id" in change:
        assert second.patient_id is None
    if "sub" in change:
        assert second.file_name == "sub/film_2.dcm"


def test_unlabelled_images_are_skipped_and_bom_is_read(tmp_path: Path) -> None:
    content = labels()
    del content["annotations"][2]
    found = read_annotations(dump(tmp_path, "\ufeff" + json.dumps(content)))
    assert [record.file_name for record in found.records] == ["film_1.dcm", "film_2.dcm", "film_4.dcm"]
    assert found.problems == []


BAD_FILES = {
    "not JSON": ("hello", "not valid JSON at line 1"),
    "empty": ("", "not valid JSON"),
    "cut": (json.dumps(labels())[:-30], "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "list": ([1], "expected a JSON object, got a list"),
    "no categories": ({**labels(), "categories": []}, "'categories'"),
    "no images": ({**labels(), "images": None}, "'images'"),
    "no annotations": ({"images": labels()["images"], "categories": labels()["categories"]}, "'annotations'"),
    "numbers": ({**labels(), "annotations": [1, 2]}, "'annotations'"),
    "no names": ({**labels(), "categories": [{"id": 1, "name": "person"}]}, "found 0 of 1"),
    "empty names": ({**labels(), "categories": [{"id": 1, "keypoints": []}]}, "found 0 of 1"),
    "two": ({**labels(), "categories": [{"id": 1, "keypoints": NAMES}, {"id": 2, "keypoints": ["a"]}]}, "found 2 of 2"),
    "text": ({**labels(), "categories": [{"id": 1, "keypoints": "left_hip"}]}, "not names"),
    "numbers as names": ({**labels(), "categories": [{"id": 1, "keypoints": [1, 2]}]}, "not names"),
    "twice": ({**labels(), "categories": [{"id": 1, "keypoints": ["a", "a"]}]}, "'a' appears twice"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_error(tmp_path: Path, name: str) -> None:
    content, words = BAD_FILES[name]
    path = dump(tmp_path, copy.deepcopy(content))
    with pytest.raises(UserError, match=words) as caught:
        read_annotations(path)
    assert caught.value.where == str(path)
    assert len(caught.value.remedy) > 10


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes('{"images": "Müller"}'.encode("latin-1"))
    for path, words in ((tmp_path / "latin.json", "valid JSON"), (tmp_path / "absent.json", "No such file")):
        with pytest.raises(UserError, match=words):
            read_annotations(path)
