"""A whole folder: planted identifiers are searched in everything that comes out, and labels still fit their films."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fedbone.errors import UserError
from fedbone.imaging import deidentify_folder as module
from fedbone.imaging.coco import read_annotations
from fedbone.imaging.confidentiality import Options
from fedbone.imaging.deidentify_folder import Result, deidentify_folder
from fedbone.imaging.dicom import read_film
from fedbone.imaging.folder import load_hospitals
from fedbone.imaging.readings import SECOND_READER
from tests.dicom_cases import film, ramp, save
from tests.planted import PLANTS, TOKENS, found_in, plant, survivors

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample"


# ---- planted identifiers


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """One run of the command over the planted folder, as its own process: input, output, code and printed bytes."""
    folder = tmp_path_factory.mktemp("planted")
    source, out = plant(folder / "in"), folder / "out"
    command = [sys.executable, "-m", "fedbone", "deidentify", str(source), str(out), "--key", str(folder / "key")]
    done = subprocess.run(command, capture_output=True, check=False, cwd=ROOT)
    return {
        "out": out,
        "code": done.returncode,
        "before": survivors(source),
        "after": survivors(out),
        "printed": found_in([done.stdout + done.stderr]),
        "text": (done.stdout + done.stderr).decode(),
        "key": (folder / "key").read_text().strip(),
    }


def test_there_are_plants_enough() -> None:
    assert len(PLANTS) == len(set(PLANTS)) == len(set(TOKENS.values())) >= 40


@pytest.mark.parametrize("name", PLANTS)
def test_the_search_finds_the_plant_where_it_was_put(planted: dict, name: str) -> None:
    assert name in planted["before"]


@pytest.mark.parametrize("name", PLANTS)
def test_no_plant_survives(planted: dict, name: str) -> None:
    assert name not in planted["after"]
    assert name not in planted["printed"]


def test_the_films_were_not_simply_left_out(planted: dict) -> None:
    """One film for each of the ten that can be read, every coding among them; four refused, with the reason."""
    out, report = planted["out"], json.loads((planted["out"] / "report.json").read_text())
    assert planted["code"] == 1
    assert len(list(out.rglob("*.dcm"))) == report["films_written"] == 10
    assert report["label_files_written"] == 3
    assert len(report["not_written"]) == 6
    assert report["other_files_left_out"] == {".json": 1, ".png": 1, ".txt": 1, "DICOMDIR": 1}
    refused = " ".join(report["not_written"])
    for reason in (
        "burned into the picture",
        "Basic Text SR",
        "unknown kind",
        "labels left out: 2",
        "labels left out: 1",
    ):
        assert reason in refused
    for path in out.rglob("*.dcm"):
        np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, ramp())


def test_only_films_labels_and_the_report_are_written(planted: dict) -> None:
    names = sorted(path.relative_to(planted["out"]).as_posix() for path in planted["out"].rglob("*") if path.is_file())
    form = r"report\.json|(hospital_[0-9a-f]{8}/(test/)?)(film_[0-9a-f]{16}\.dcm|annotations\.json)"
    assert [name for name in names if not re.fullmatch(form, name)] == []


def test_the_key_is_nowhere_but_in_its_file(planted: dict) -> None:
    forms = [planted["key"].encode(), bytes.fromhex(planted["key"])]
    assert not any(form in path.read_bytes() for path in planted["out"].rglob("*.*") for form in forms)
    assert planted["key"] not in planted["text"]


# ---- labels and films together


def run(source: Path, tmp_path: Path, options: Options | None = None, out: str = "out") -> Result:
    return deidentify_folder(source, tmp_path / out, tmp_path / "key", options)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    assert not run(SAMPLE, folder).problems
    return folder / "out"


def test_the_sample_trains_as_before(sample: Path) -> None:
    """Pictures, keypoints, joints and the grouping by patient, through the loader that training uses."""
    before, _ = load_hospitals(SAMPLE, 64)
    after, problems = load_hospitals(sample, 64)
    assert not problems
    films = [
        {
            (f.images[i].tobytes(), f.keypoints[i].round(2).tobytes()): (
                hospital.joints,
                f.patients.count(f.patients[i]),
            )
            for hospital in hospitals
            for f in [joined(hospital)]
            for i in range(len(f.images))
        }
        for hospitals in (before, after)
    ]
    assert len(films[0]) == 36
    assert films[0].keys() == films[1].keys()
    assert sorted(films[0].values()) == sorted(films[1].values())


def joined(hospital: object) -> object:
    """Training and test films as one set: which are which depends on the names of the files."""
    both = [hospital.train, hospital.test]
    return type(hospital.train)(
        np.concatenate([films.images for films in both]),
        np.concatenate([films.keypoints for films in both]),
        np.concatenate([films.spacing_mm for films in both]),
        tuple(name for films in both for name in films.patients),
    )


def test_labels_do_not_keep_the_order_of_the_old_names(sample: Path) -> None:
    for labels in sample.rglob("annotations.json"):
        names = [image["file_name"] for image in json.loads(labels.read_text())["images"]]
        assert names == sorted(names)


def test_labels_point_at_their_films(sample: Path) -> None:
    files = [*sample.rglob("annotations.json"), *sample.rglob(SECOND_READER)]
    assert len(files) == 6
    for labels in files:
        found = read_annotations(labels)
        assert len(found.records) == 12
        for record in found.records:
            new = pydicom.dcmread(labels.parent / record.file_name, stop_before_pixels=True)
            assert (record.width, record.height) == (new.Columns, new.Rows)
            assert re.fullmatch(r"P[0-9A-F]{15}", record.patient_id)
            assert re.fullmatch(r"P[0-9A-F]{15}", new.PatientID)


def hospital(place: Path, patients: list[str], ids: bool = True, study: str = "1.2.3") -> Path:
    """Films of named patients, one study each patient, with labels by the same names."""
    images, points = [], []
    for number, patient in enumerate(patients, 1):
        dataset = film(ramp(), BitsStored=12, PatientID=patient, StudyInstanceUID=f"{study}.{patients.index(patient)}")
        dataset.StudyDate = f"202603{number:02d}"
        save(place / f"film{number}.dcm", dataset)
        images.append({"id": number, "file_name": f"film{number}.dcm"} | ({"patient_id": patient} if ids else {}))
        points.append({"id": number, "image_id": number, "category_id": 1, "keypoints": [number, 2.125, 2]})
    content = {"images": images, "annotations": points, "categories": [{"id": 1, "name": "x", "keypoints": ["hip"]}]}
    (place / "annotations.json").write_text(json.dumps(content))
    return place


def test_the_labels_and_the_header_give_one_patient_one_name(tmp_path: Path) -> None:
    run(hospital(tmp_path / "in" / "a", ["X", "Y", "X"]).parent, tmp_path)
    labels = next((tmp_path / "out").rglob("annotations.json"))
    records = {int(record.keypoints[0, 0]): record for record in read_annotations(labels).records}
    headers = {number: pydicom.dcmread(labels.parent / record.file_name) for number, record in records.items()}
    assert all(headers[number].PatientID == records[number].patient_id for number in records)
    assert records[1].patient_id == records[3].patient_id != records[2].patient_id
    assert headers[1].StudyInstanceUID == headers[3].StudyInstanceUID != headers[2].StudyInstanceUID
    moved = [np.datetime64(f"{h.StudyDate[:4]}-{h.StudyDate[4:6]}-{h.StudyDate[6:]}") for h in (headers[1], headers[3])]
    assert moved[1] - moved[0] == np.timedelta64(2, "D")


def test_labels_at_the_top_and_in_a_test_folder_keep_their_place(tmp_path: Path) -> None:
    hospital(tmp_path / "in", ["X", "Y"])
    hospital(tmp_path / "in" / "test", ["Z"], study="1.2.4")
    run(tmp_path / "in", tmp_path)
    out = tmp_path / "out"
    assert len(list(out.glob("film_*.dcm"))) == 2
    assert len(list((out / "test").glob("film_*.dcm"))) == 1
    assert len(read_annotations(out / "test" / "annotations.json").records) == 1


def test_films_of_subfolders_stay_with_their_labels(tmp_path: Path) -> None:
    place = hospital(tmp_path / "in" / "a", ["X", "Y"])
    (place / "deep").mkdir()
    (place / "film1.dcm").rename(place / "deep" / "film1.dcm")
    text = (place / "annotations.json").read_text().replace("film1.dcm", "deep/film1.dcm")
    (place / "annotations.json").write_text(text)
    assert not run(place.parent, tmp_path).problems
    labels = next((tmp_path / "out").rglob("annotations.json"))
    assert all((labels.parent / record.file_name).is_file() for record in read_annotations(labels).records)
    assert len(read_annotations(labels).records) == 2


# ---- runs


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_key_gives_the_same_files_and_another_key_others(tmp_path: Path) -> None:
    source = hospital(tmp_path / "in" / "a", ["X", "Y"]).parent
    run(source, tmp_path)
    first = contents(tmp_path / "out")
    run(source, tmp_path)
    run(source, tmp_path, out="again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again") == first
    deidentify_folder(source, tmp_path / "other", tmp_path / "other key")
    assert set(contents(tmp_path / "other")) & set(first) == {"report.json"}


def test_a_film_taken_away_leaves_the_output_too(tmp_path: Path) -> None:
    source = hospital(tmp_path / "in" / "a", ["X", "Y"]).parent
    run(source, tmp_path)
    (source / "a" / "film2.dcm").unlink()
    assert run(source, tmp_path).films == 1
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1
    (source / "a" / "annotations.json").unlink()
    run(source, tmp_path)
    assert not list((tmp_path / "out").rglob("annotations.json"))


def test_a_run_that_was_killed_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = hospital(tmp_path / "in" / "a", ["X", "Y"]).parent, module.write_atomic

    def killed(path: Path, content: bytes) -> Path:
        if list((tmp_path / "out").rglob("film_*.dcm")):
            raise KeyboardInterrupt
        return real(path, content)

    monkeypatch.setattr(module, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path)
    monkeypatch.undo()
    assert run(source, tmp_path).films == 2
    assert json.loads((tmp_path / "out" / "report.json").read_text())["finished"] is True


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> Path:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        run(hospital(tmp_path / "in" / "a", ["X"]).parent, tmp_path)


def test_one_bad_film_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, real = hospital(tmp_path / "in" / "a", ["X", "Y", "Z"]), module.deidentify

    def fails_once(dataset: pydicom.Dataset, *args: object) -> object:
        if dataset.PatientID == "Y":
            raise RuntimeError("Y is the patient")
        return real(dataset, *args)

    monkeypatch.setattr(module, "deidentify", fails_once)
    result = run(place.parent, tmp_path)
    assert result.films == 2
    text = "\n".join(map(str, result.problems))
    assert "file 3 of 4: it cannot be de-identified (RuntimeError)" in text
    assert "Y is the patient" not in text + (tmp_path / "out" / "report.json").read_text()


def test_the_number_of_a_file_is_that_of_the_shell(tmp_path: Path) -> None:
    for name in ("b.dcm", "a/z.dcm", "a.dcm", "a-b/x.dcm", "Z.dcm", "é.dcm"):
        save(tmp_path / "in" / name, film(ramp(), BitsStored=12))
    (tmp_path / "in" / "a.dcm").write_bytes(b"nothing")
    told = str(run(tmp_path / "in", tmp_path).problems[0])
    if not shutil.which("find") or os.name != "posix":
        pytest.skip("no POSIX shell")
    listed = subprocess.run("find in -type f | LC_ALL=C sort", shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert f"file {listed.stdout.split().index('in/a.dcm') + 1} of 6" in told


def test_two_files_of_one_instance_are_not_mixed_up(tmp_path: Path) -> None:
    dataset = film(ramp(), BitsStored=12)
    save(tmp_path / "in" / "a.dcm", dataset)
    save(tmp_path / "in" / "b.dcm", dataset)
    result = run(tmp_path / "in", tmp_path)
    assert result.films == 1
    assert "SOP Instance UID of an earlier file" in str(result.problems[0])


def test_the_report_counts_what_was_done(tmp_path: Path) -> None:
    place = hospital(tmp_path / "in" / "a", ["X", "Y"])
    save(place / "c.dcm", film(ramp(), BitsStored=12, BurnedInAnnotation="YES", PatientComments="secret"))
    run(place.parent, tmp_path, Options(blank_percent=(10, 0, 0, 0)))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["attributes"]["PatientComments"] == {"removed (table: X)": 1}
    assert report["attributes"]["PatientID"] == {"replaced (table: Z/D)": 3}
    assert report["attributes"]["StudyDate"] == {"shifted (table: Z)": 2}
    assert report["attributes"]["PixelData"] == {"blanked at the margins": 3}
    assert report["burned_in_annotation"] == {"YES, margins blanked": 1, "unknown, margins blanked": 2}
    assert report["method"][1] == "113101 Clean Pixel Data Option"
    assert report["options"]["blank_percent"] == [10, 0, 0, 0]


def test_the_new_films_are_films(tmp_path: Path) -> None:
    run(hospital(tmp_path / "in" / "a", ["X"]).parent, tmp_path)
    path = next((tmp_path / "out").rglob("*.dcm"))
    assert read_film(path, 64).image.max() > 200
    assert path.read_bytes()[:128] == b"\0" * 128


# ---- refused before anything is written


@pytest.mark.parametrize(
    ("source", "out", "key", "message"),
    [
        ("none", "out", "key", "no such folder"),
        ("empty", "out", "key", "holds no files"),
        ("in", "in", "key", "inside each other"),
        ("in", "in/a/new", "key", "inside each other"),
        ("in/a", "in", "key", "inside each other"),
        ("in", "out", "out/key", "is to leave the hospital"),
        ("in", "foreign", "key", "not as an output of this command"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, source: str, out: str, key: str, message: str) -> None:
    hospital(tmp_path / "in" / "a", ["X"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "report.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        deidentify_folder(tmp_path / source, tmp_path / out, tmp_path / key)
    after = contents(tmp_path)
    after.pop("key", None)
    assert after == before


def test_another_key_does_not_write_into_the_same_folder(tmp_path: Path) -> None:
    source = hospital(tmp_path / "in" / "a", ["X"]).parent
    run(source, tmp_path)
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="another key"):
        deidentify_folder(source, tmp_path / "out", tmp_path / "second")
    assert contents(tmp_path / "out") == before


def test_links_are_not_followed(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "x.dcm", film(ramp(), BitsStored=12))
    save(tmp_path / "in" / "a.dcm", film(ramp(), BitsStored=12))
    try:
        (tmp_path / "in" / "link.dcm").symlink_to(tmp_path / "elsewhere" / "x.dcm")
        (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    except OSError:
        pytest.skip("no links here")
    assert run(tmp_path / "in", tmp_path).films == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions that bind")
def test_a_file_without_permission_is_counted(tmp_path: Path) -> None:
    place = hospital(tmp_path / "in" / "a", ["X", "Y"])
    (place / "film1.dcm").chmod(0)
    result = run(place.parent, tmp_path)
    assert result.films == 1
    assert "cannot be read" in str(result.problems[0])


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (apt-get install dicom3tools)")
@pytest.mark.parametrize("dates", [True, False])
def test_what_was_a_valid_film_stays_one(tmp_path: Path, dates: bool) -> None:
    for name in ("hospital_a", "hospital_b", "hospital_c"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(SAMPLE / name / "film_001.dcm", tmp_path / "in" / name)
    result = deidentify_folder(tmp_path / "in", tmp_path / "out", tmp_path / "key", Options(shift_dates=dates))
    assert result.films == 3
    for path in (tmp_path / "out").rglob("*.dcm"):
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace")
        assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []
        assert "DX" in done.stderr or "CR" in done.stderr  # it did look at it
