"""The generated hospitals: own labels only, disjoint patients, films independent of order, sample files as promised."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fedbone.imaging.coco import COCO_JOINTS, read_annotations
from fedbone.imaging.dicom import read_film
from fedbone.imaging.hospitals import public_films, simulate_film, training_hospitals, write_sample
from fedbone.imaging.site_table import ARCHIVE, SITES
from fedbone.imaging.sites import patient_number

LABELS = {
    "hospital_a": {"left_hip", "right_hip"},
    "hospital_b": {"left_knee", "right_knee", "left_ankle", "right_ankle"},
    "hospital_c": {
        "nose", "left_eye", "right_eye", "left_ear", "right_ear",
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_hip", "right_hip",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("with a space") / "sample"
    write_sample(out, films=2, seed=4)
    return out


def test_a_film_depends_on_its_index_alone() -> None:
    alone = simulate_film("hospital_c", 1, 7, 96)
    for name in SITES:
        simulate_film(name, 1, 8, 96)
    again = simulate_film("hospital_c", 1, 7, 96)
    assert (alone.image == again.image).all()
    assert (alone.truth == again.truth).all()
    assert alone.cobb_deg == again.cobb_deg
    assert (alone.image != simulate_film("hospital_c", 1, 6, 96).image).any()
    assert (alone.image != simulate_film("hospital_c", 2, 7, 96).image).any()


def test_joints_do_not_depend_on_the_size() -> None:
    small, large = (simulate_film("hospital_b", 0, 2, size) for size in (64, 256))
    seen = small.truth[:, 2] > 0
    assert (seen == (large.truth[:, 2] > 0)).all()
    scaled = (small.truth[seen, :2] + 0.5) * 4 - 0.5
    assert np.abs(scaled - large.truth[seen, :2]).max() < 0.01


def test_training_sets(tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    hospitals = training_hospitals(64, n_train=6, n_test=5, cache_dir=tmp_path, progress=lambda *s: steps.append(s))
    assert [h.name for h in hospitals] == list(LABELS)
    people: list[set[str]] = []
    for hospital in hospitals:
        assert hospital.joints == COCO_JOINTS
        for films, count in ((hospital.train, 6), (hospital.test, 5)):
            assert films.images.shape == (count, 64, 64)
            assert films.images.dtype == np.uint8
            assert films.keypoints.shape == films.truth.shape == (count, 17, 3)
            labelled = films.keypoints[..., 2] > 0
            assert {COCO_JOINTS[j] for j in np.flatnonzero(labelled.any(axis=0))} <= LABELS[hospital.name]
            off = np.linalg.norm(films.keypoints[labelled][:, :2] - films.truth[labelled][:, :2], axis=1)
            assert 0 < off.mean() < 1  # pixels of the 64: what readers are off by
            assert (films.truth[..., 2] > 0).sum() >= labelled.sum()
            shown = films.truth[films.truth[..., 2] > 0][:, :2]
            assert (shown >= 0).all()
            assert (shown <= 63).all()
            assert np.isfinite(films.spacing_mm).all()
            assert films.spacing_kind == (SITES[hospital.name].kind,) * count
            people.append(set(films.patients))
        assert len(set(hospital.train.patients)) < len(hospital.train)  # some patients come twice
        assert {COCO_JOINTS[j] for j in np.flatnonzero(hospital.labelled)} == LABELS[hospital.name]
    assert len(set().union(*people)) == sum(len(p) for p in people)
    assert steps[-1][:2] == (33, 33)


def test_cache_is_used_and_made_again_when_damaged(tmp_path: Path) -> None:
    def digest() -> list[str]:
        hospitals = training_hospitals(32, n_train=2, n_test=1, cache_dir=tmp_path)
        return [hashlib.sha256(h.train.images.tobytes() + h.train.truth.tobytes()).hexdigest() for h in hospitals]

    first = digest()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    stamp = files[0].stat().st_mtime_ns
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(files[2].read_bytes())
    flipped[len(flipped) // 2] ^= 255
    files[2].write_bytes(bytes(flipped))
    assert digest() == first
    assert files[0].stat().st_mtime_ns == stamp
    assert files[1].read_bytes() == whole
    files[0].write_bytes(b"")
    assert digest() == first


def test_patients_sometimes_have_two_films_and_never_cross_the_sets() -> None:
    assert [patient_number(i) for i in range(5)] == [0, 1, 2, 2, 4]
    train, test = ({patient_number(i) for i in r} for r in (range(200), range(100_000, 100_100)))
    assert not train & test


def test_sample_is_the_same_bytes_again(sample: Path, tmp_path: Path) -> None:
    write_sample(tmp_path, films=2, seed=4)
    files = sorted(p.relative_to(sample) for p in sample.rglob("*") if p.is_file())
    assert len(files) == 12
    for file in files:
        assert (sample / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_sample_films_read_back_as_the_simulated_film(sample: Path) -> None:
    for name in SITES:
        film, drawn = read_film(sample / name / "film_001.dcm", 128), simulate_film(name, 4, 200_000, 128)
        difference = np.abs(film.image.astype(int) - drawn.image)
        assert difference.mean() < 8, name
        assert film.frame.array_spacing_mm() == pytest.approx(drawn.spacing_mm, rel=1e-4)
        record = read_annotations(sample / name / "annotations.json").records[0]
        seen = record.keypoints[:, 2] > 0
        assert (seen == (drawn.keypoints[:, 2] > 0)).all()
        assert film.frame.to_array(record.keypoints[seen, :2]) == pytest.approx(drawn.keypoints[seen, :2], abs=0.01)


def test_sample_hospitals_differ_and_labels_carry_no_identity(sample: Path) -> None:
    seen = []
    for name in SITES:
        text = (sample / name / "annotations.json").read_text()
        for path in sorted((sample / name).glob("*.dcm")):
            dataset = pydicom.dcmread(path)
            assert dataset.PatientName
            assert dataset.PatientBirthDate
            assert dataset.InstitutionName
            assert dataset.PatientID not in text
            assert str(dataset.PatientName.family_name) not in text
            pitch = "PixelSpacing" in dataset
            seen.append((dataset.Manufacturer, dataset.BitsStored, dataset.file_meta.TransferSyntaxUID, pitch))
        content = json.loads(text)
        assert all(len(image["patient_id"]) == 12 for image in content["images"])
    makers, bits, _, pitches = zip(*seen, strict=False)
    assert len(set(makers)) == 3
    assert len(set(bits)) == 3
    assert set(pitches) == {True, False}
    assert {pydicom.dcmread(p).PhotometricInterpretation for p in sample.rglob("*.dcm")} == {
        "MONOCHROME1",
        "MONOCHROME2",
    }


def test_an_unknown_hospital_is_refused() -> None:
    with pytest.raises(KeyError):
        simulate_film("hospital_x", 0, 0, 64)


@pytest.mark.slow
def test_the_public_archive_is_other_people_in_the_textbooks_pose(tmp_path: Path) -> None:
    first, again = (public_films(64, n=40, cache_dir=tmp_path) for _ in range(2))  # the second from the cache
    assert [(a.images == b.images).all() for a, b in zip(first, again, strict=True)] == [True] * 3
    hospitals = training_hospitals(64, n_train=40, n_test=1, cache_dir=tmp_path)
    for films, hospital in zip(first, hospitals, strict=True):
        assert films.labelled.tolist() == hospital.labelled.tolist()
        assert not set(films.patients) & set(hospital.train.patients)
        seen = films.keypoints[..., 2] > 0
        assert np.abs(films.keypoints[seen] - films.truth[seen]).max() < 1e-3  # labelled without an error of the hand
    legs = [films.truth[:, 13:17] for films in (first[1], hospitals[1].train)]  # knees and ankles
    spread = [np.nanstd(np.where(points[..., 2] > 0, points[..., 0], np.nan), axis=0) for points in legs]
    assert (spread[0] < spread[1]).all()  # the archive's patients stand still


def test_the_archive_shows_no_scoliosis_and_no_special_view() -> None:
    for place in ARCHIVE:
        films = [simulate_film(place, 3, index, 32) for index in range(25)]
        assert {film.view for film in films} == {"AP"}
        assert {film.cobb_deg for film in films} == {None}
