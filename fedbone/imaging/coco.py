"""COCO keypoint JSON: the labels that travel beside a hospital's films.

Keypoints: (K, 3) = x, y, visibility in pixel **index** coordinates of the film (the centre of a pixel is a whole
number); visibility 0 = not labelled, 1 = hidden, 2 = visible. Format: https://cocodataset.org/#format-data, keypoints.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from fedbone.errors import UserError
from fedbone.files import write_json

COCO_JOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
_Images = dict[object, dict | None]  # by image id; None: reported, not usable


@dataclass(frozen=True)
class Record:
    """One labelled film. keypoints (K, 3) float32 in film pixels, x = y = 0 where v = 0; None: not in the file."""

    file_name: str
    width: int | None
    height: int | None
    patient_id: str | None
    keypoints: np.ndarray


@dataclass(frozen=True)
class Annotations:
    """A whole annotations file: K joint names, the usable records and one error for each that is not."""

    joints: tuple[str, ...]
    records: list[Record]
    problems: list[UserError]


def read_annotations(path: Path) -> Annotations:
    """The labelled films of a COCO keypoint file; images without an annotation are left out.

    A defect of one image or annotation becomes a UserError in ``problems`` and the others come through.
    Raises UserError for a defect of the whole file: not JSON, no or several categories with keypoints, no images.
    """
    path = Path(path)
    content = _load(path)
    category = _keypoint_category(path, content["categories"])
    joints, problems, records = tuple(category["keypoints"]), [], []
    images = _images(path, content["images"], problems)
    annotations = _annotations(path, content["annotations"], category.get("id"), images, problems)
    for image_id, annotation in annotations.items():
        try:
            records.append(_record(images[image_id], annotation, len(joints)))
        except _RowError as error:
            name = images[image_id]["file_name"]
            where = f"{path}, image id {image_id!r} ({name}), annotation id {annotation.get('id')!r}"
            problems.append(UserError(where, *error.args))
    return Annotations(joints, records, problems)


def write_annotations(
    path: Path, joints: tuple[str, ...], images: list[dict[str, object]], keypoints: list[np.ndarray]
) -> None:
    """Write films and their labels as COCO keypoint JSON (atomic).

    images: dicts with file_name, width, height, patient_id; keypoints: one (K, 3) array per image in film pixels,
    kept to 0.001 px. Raises ValueError where shapes do not fit.
    """
    if len(images) != len(keypoints) or any(np.shape(points) != (len(joints), 3) for points in keypoints):
        raise ValueError(f"expected one ({len(joints)}, 3) array for each of {len(images)} images")
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(joints), "skeleton": []}
    content = {
        "images": [{"id": number, **image} for number, image in enumerate(images, start=1)],
        "annotations": [_annotation(number, points) for number, points in enumerate(keypoints, start=1)],
        "categories": [category],
    }
    write_json(Path(path), content)


def outside_message(keypoints: np.ndarray, width: int, height: int) -> tuple[str, str] | None:
    """(problem, remedy) for the first labelled joint that is not on a film of width x height pixels, or None.

    A film of W columns spans x from -0.5 to W - 0.5, because whole numbers are pixel centres.
    """
    x, y, visibility = np.asarray(keypoints, dtype=np.float64).T
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    outside = np.flatnonzero((visibility > 0) & ~inside)
    if not len(outside):
        return None
    place = f"keypoint {outside[0] + 1} lies at ({x[outside[0]]:g}, {y[outside[0]]:g})"
    problem = f"{place}, outside the film of {width} x {height} pixels"
    return problem, "Move it onto the film, or set its visibility to 0 if the joint is not in the picture"


class _RowError(Exception):
    """(problem, remedy) of one record, raised where its file and id are not known."""


def _load(path: Path) -> dict[str, list]:
    remedy = "Export the labels again as COCO keypoint JSON (an object with images, annotations and categories)"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "Check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        place = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(path, f"it is not valid JSON{place}", remedy) from error
    if not isinstance(content, dict):
        raise UserError(path, f"expected a JSON object, got a {type(content).__name__}", remedy)
    for key in ("categories", "images", "annotations"):
        value = content.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            raise UserError(path, f"{key!r} is missing, empty or not a list of objects", remedy)
    return content


def _keypoint_category(path: Path, categories: list[dict]) -> dict:
    found = [category for category in categories if category.get("keypoints")]
    if len(found) != 1:
        problem = f"expected one category with a list of keypoint names, found {len(found)} of {len(categories)}"
        raise UserError(path, problem, 'Give exactly one category its "keypoints": ["left_hip", ...]')
    names = found[0]["keypoints"]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(path, "the category's keypoints are not names", 'Write "keypoints": ["left_hip", ...]')
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(path, f"keypoint name {twice[0]!r} appears twice", "Give each joint a name of its own")
    return found[0]


def _images(path: Path, images: list[dict], problems: list[UserError]) -> _Images:
    """Image entries by id, in file order; None for one that was reported and is not usable."""
    usable: _Images = {}
    names: set[str] = set()
    for entry in images:
        try:
            image = {
                "file_name": _file_name(entry.get("file_name")),
                "width": _size(entry, "width"),
                "height": _size(entry, "height"),
                "patient_id": _patient_id(entry.get("patient_id")),
            }
            if not _is_id(entry.get("id")) or entry["id"] in usable or image["file_name"] in names:
                raise _RowError("its id or file_name is missing or used before", "Give each image its own id and file")
        except _RowError as error:
            problems.append(UserError(f"{path}, image id {entry.get('id')!r}", *error.args))
            if _is_id(entry.get("id")):
                usable.setdefault(entry["id"], None)
            continue
        usable[entry["id"]] = image
        names.add(image["file_name"])
    return usable


def _annotations(
    path: Path, annotations: list[dict], category_id: object, images: _Images, problems: list[UserError]
) -> dict[object, dict]:
    """The one keypoint annotation of each image, by image id; images with several people are reported and left out."""
    by_image: dict[object, list[dict]] = {}
    for annotation in annotations:
        image_id, category = annotation.get("image_id"), annotation.get("category_id", category_id)
        where = f"{path}, annotation id {annotation.get('id')!r}"
        if category != category_id:  # boxes of other categories may share the file
            if "keypoints" in annotation:
                problem = f"its category_id {category!r} is not that with keypoints, {category_id!r}"
                problems.append(UserError(where, problem, "Correct category_id"))
        elif not _is_id(image_id) or image_id not in images:
            problem = f"its image_id {image_id!r} is not one of the file's images"
            problems.append(UserError(where, problem, "Correct image_id, or delete the annotation"))
        elif images[image_id]:
            by_image.setdefault(image_id, []).append(annotation)
    for image_id in [key for key, found in by_image.items() if len(found) > 1]:
        where = f"{path}, image id {image_id!r} ({images[image_id]['file_name']})"
        problem = f"it has {len(by_image.pop(image_id))} keypoint annotations, expected one patient a film"
        problems.append(UserError(where, problem, "Keep one annotation for the film"))
    return {image_id: found[0] for image_id, found in by_image.items()}


def _record(image: dict, annotation: dict, joints: int) -> Record:
    points = _keypoints(annotation.get("keypoints"), joints)
    if image["width"] and image["height"]:
        message = outside_message(points, image["width"], image["height"])
        if message:
            raise _RowError(*message)
    labelled = points[:, 2] > 0
    if not labelled.any():
        raise _RowError("every keypoint has visibility 0", "Label a joint, or remove the annotation")
    keypoints = np.where(labelled[:, None], points, 0.0).astype(np.float32)
    return Record(**image, keypoints=keypoints)


def _keypoints(flat: object, joints: int) -> np.ndarray:
    """COCO's flat list [x1, y1, v1, x2, ...] as (K, 3) float64."""
    if not isinstance(flat, list) or len(flat) != 3 * joints:
        got = f"{len(flat)}" if isinstance(flat, list) else "no list"
        remedy = f"Write x, y, visibility for each of the {joints} joints; visibility 0 for a joint without a label"
        raise _RowError(f"expected {3 * joints} keypoint numbers (3 x {joints} joints), got {got}", remedy)
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in flat):
        raise _RowError("a keypoint value is not a number", "Write plain numbers: x, y, visibility")
    if not all(abs(value) < 1e9 for value in flat):  # NaN compares false; json turns 1e999 into infinity
        raise _RowError("a keypoint value is NaN, infinite or huge", "Write 0, 0, 0 for a joint without a label")
    points = np.array(flat, dtype=np.float64).reshape(joints, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise _RowError("a visibility is not 0, 1 or 2", "Use 0 = not labelled, 1 = hidden, 2 = visible")
    return points


def _file_name(name: object) -> str:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise _RowError("file_name is missing or not plain text", "Name the film, relative to the folder of this file")
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or PureWindowsPath(name).drive or ".." in relative.parts:
        raise _RowError(f"file_name {name!r} leaves the folder of this file", "Use a name inside it, such as a.dcm")
    return str(relative)


def _size(entry: dict, key: str) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value < 1e6 or value != int(value):
        raise _RowError(f"{key} is {value!r}", f"Write the film's {key} in pixels, or leave it out")
    return int(value)


def _patient_id(value: object) -> str | None:
    if value is None or value != value:  # NaN: what pandas writes for an empty cell
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _RowError("patient_id is neither text nor a number", 'Write a pseudonym such as "p017", or none')
    return str(value).strip() or None


def _is_id(value: object) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _annotation(number: int, keypoints: np.ndarray) -> dict[str, object]:
    points = np.asarray(keypoints, dtype=np.float64)
    labelled = points[points[:, 2] > 0, :2]
    low, high = (labelled.min(0), labelled.max(0)) if len(labelled) else (np.zeros(2), np.zeros(2))
    flat = [number for x, y, v in points for number in (round(float(x), 3), round(float(y), 3), int(v))]
    box = [round(float(value), 3) for value in (*low, *(high - low))]
    return {
        "id": number,
        "image_id": number,
        "category_id": 1,
        "keypoints": flat,
        "num_keypoints": len(labelled),
        "bbox": box,
        "area": round(box[2] * box[3], 3),
        "iscrowd": 0,
    }
