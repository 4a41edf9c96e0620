"""A folder of one's own films as hospitals: one sub-folder each, with DICOM files and annotations.json.

    my_films/hospital_north/annotations.json, *.dcm     all films, split by patient 80 : 20
    my_films/hospital_south/annotations.json, *.dcm     training films
    my_films/hospital_south/test/annotations.json, *.dcm    its own test films

One patient never stands on both sides of a split: two films of one knee would make any model look good.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from fedbone.errors import UserError
from fedbone.imaging.coco import Annotations, Record, outside_message, read_annotations
from fedbone.imaging.dataset import FilmSet, HospitalData
from fedbone.imaging.dicom import Film, pseudonym, read_film

LABELS = "annotations.json"
TEST_SHARE = 0.2  # of the patients, where a hospital brings no test folder
BY_FILE = "or give --split-by-file if every film is of another patient"
Progress = Callable[[int, int, str], None] | None


@dataclass(frozen=True)
class _Labelled:
    """A film, its keypoints (K, 3) float32 in array pixels, its patient ('' = not known) and its file."""

    film: Film
    keypoints: np.ndarray
    patient: str
    path: Path


def load_hospitals(
    folder: Path,
    size_px: int,
    seed: int = 0,
    split_by_file: bool = False,
    progress: Progress = None,
    *,
    split: bool = True,
    only: str | None = None,
) -> tuple[list[HospitalData], list[UserError]]:
    """The hospitals of ``folder`` in order of name, and one error for each film or record that had to be left out.

    Without a test folder, a fifth of the patients are drawn for testing; the draw depends on ``seed`` and file names
    only. Without ``split`` no film is for testing. only: the one sub-folder that is looked at.

    Raises UserError where a hospital as a whole cannot be used (its labels are unreadable, its joints differ
    from the others', patients are unknown or on both sides of the split, a set is empty); all hospitals are looked at
    first, and the errors of the other films are attached to it as notes.
    """
    folder = Path(folder)
    problems: list[UserError] = []
    fatal: list[UserError] = []
    sets = _read_labels(folder, problems, fatal, only)
    count = _Count(sum(len(labels.records) for labels in sets.values()), progress)
    hospitals = []
    for place in (path for path in sets if path.parent == folder):
        try:
            films = _read_films(place, sets[place], size_px, count, problems)
            test = place / "test"
            test_films = _read_films(test, sets[test], size_px, count, problems) if test in sets else None
            hospitals.append(_hospital(place, sets[place].joints, films, test_films, seed, split_by_file, split))
        except UserError as error:
            fatal.append(error)
    if fatal:
        for other in [*fatal[1:], *problems]:
            fatal[0].add_note(str(other))
        raise fatal[0]
    return hospitals, problems


class _Count:
    """Films done so far, over all hospitals."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.done, self.progress = total, 0, progress

    def step(self, text: str) -> None:
        """One film more."""
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total, text)


def _read_labels(
    folder: Path, problems: list[UserError], fatal: list[UserError], only: str | None
) -> dict[Path, Annotations]:
    """The labels of each hospital folder and of each test folder, all with the joints of the first."""
    sets: dict[Path, Annotations] = {}
    for place in _places(folder, problems, only):
        try:
            labels = read_annotations(place / LABELS)
            problems.extend([*labels.problems, *_without_label(place, labels)])
            sets[place] = labels
            _require_same_joints(next(iter(sets)), place, sets)
        except UserError as error:
            fatal.append(error)
    if fatal:
        return {place: labels for place, labels in sets.items() if labels.joints == next(iter(sets.values())).joints}
    return sets


def _without_label(place: Path, labels: Annotations) -> list[UserError]:
    """One message for the DICOM files that no usable record names and no other message explains."""
    named = {record.file_name for record in labels.records}
    told = " ".join(str(problem) for problem in labels.problems)
    idle = sorted(file.name for file in place.glob("*.dcm") if file.name not in named and file.name not in told)
    if not idle:
        return []
    problem = f"{len(idle)} DICOM files have no label in {LABELS}, {idle[0]} for one"
    return [UserError(place, problem, "Label them, or leave them out: they are not used")]


def _places(folder: Path, problems: list[UserError], only: str | None) -> list[Path]:
    """Hospital folders in order of name, each followed by its test folder."""
    if not folder.is_dir():
        raise UserError(folder, "no such folder", f"Name a folder with one sub-folder per hospital, each with {LABELS}")
    remedy = f"Make one sub-folder per hospital, with its DICOM films and {LABELS}"
    if (folder / LABELS).is_file():
        raise UserError(folder, f"it holds {LABELS} itself, expected sub-folders that do", remedy)
    places = []
    for hospital in sorted(path for path in folder.iterdir() if path.is_dir()):
        if hospital.name.startswith(".") or hospital.name == "weights" or hospital.name != (only or hospital.name):
            continue
        for place in (hospital, hospital / "test"):
            if (place / LABELS).is_file():
                places.append(place)
            elif place.is_dir():
                problems.append(UserError(place, f"it has no {LABELS}", "Add the labels, or move the folder away"))
    if not any(place.parent == folder for place in places):
        raise UserError(folder, f"no sub-folder holds {LABELS}", remedy)
    return [place for place in places if place.parent == folder or place.parent in places]


def _require_same_joints(first: Path, place: Path, sets: dict[Path, Annotations]) -> None:
    ours, theirs = sets[first].joints, sets[place].joints
    for number, (a, b) in enumerate(zip_longest(ours, theirs, fillvalue="none"), start=1):
        if a != b:
            problem = (
                f"it lists {len(theirs)} joints and {first / LABELS} {len(ours)}; "
                f"the first difference is joint {number}: {b!r} here, {a!r} there"
            )
            remedy = "List the same joints in the same order everywhere, visibility 0 where a hospital has no label"
            raise UserError(place / LABELS, problem, remedy)


def _read_films(
    place: Path, labels: Annotations, size_px: int, count: _Count, problems: list[UserError]
) -> list[_Labelled]:
    """The labelled films of one folder that can be read, by file name."""
    films = []
    for record in sorted(labels.records, key=lambda record: record.file_name):
        try:
            films.append(_labelled(place, record, size_px))
        except UserError as error:
            problems.append(error)
        count.step(place.name)
    return films


def _labelled(place: Path, record: Record, size_px: int) -> _Labelled:
    path = place / record.file_name
    if not os.path.isfile(path):  # unlike Path.is_file, it takes a name that no file system takes
        raise UserError(path, f"the film named in {LABELS} is missing", "Add the file, or correct file_name")
    film = read_film(path, size_px)
    rows, cols = film.frame.rows, film.frame.cols
    if (record.width or cols, record.height or rows) != (cols, rows):
        problem = f"{LABELS} says {record.width} x {record.height} pixels, the film has {cols} x {rows}"
        raise UserError(path, problem, "Label the film at its full size, in its own pixels")
    message = outside_message(record.keypoints, cols, rows)
    if message:
        raise UserError(path, *message)
    keypoints = record.keypoints.copy()
    keypoints[:, :2] = np.where(keypoints[:, 2:] > 0, film.frame.to_array(keypoints[:, :2]), 0.0)
    patient = pseudonym(record.patient_id) if record.patient_id else film.patient
    return _Labelled(film, keypoints, patient, path)


def _hospital(
    place: Path,
    joints: tuple[str, ...],
    films: list[_Labelled],
    test_films: list[_Labelled] | None,
    seed: int,
    split_by_file: bool,
    split: bool,
) -> HospitalData:
    everything = films + (test_films or [])
    if not films or test_films == []:
        empty = place / "test" if films else place
        raise UserError(empty, "none of its films can be used", "See the other messages, mend the films, start again")
    names = _patients(place, everything, split_by_file, needed=split and test_films is None)
    if not split:
        both = _film_set(everything, names)
        return HospitalData(place.name, joints, both, both.take(np.arange(0)))
    train = np.arange(len(everything)) < len(films)
    if test_films is None:
        train = ~np.isin(names, _draw_test(place, names, seed))
    else:
        _require_apart(place, everything, names, train)
    both = _film_set(everything, names)
    return HospitalData(place.name, joints, both.take(np.flatnonzero(train)), both.take(np.flatnonzero(~train)))


def _patients(place: Path, films: list[_Labelled], split_by_file: bool, needed: bool) -> list[str]:
    """A name per film, numbered by first file: the same in every run, unlike the pseudonyms, which only group."""
    unknown = [film for film in films if not film.patient]
    known = {film.patient for film in films if film.patient}
    if unknown and needed and not split_by_file:
        problem = f"{len(unknown)} of {len(films)} films do not say whose they are, {unknown[0].path.name} for one"
        raise UserError(place / LABELS, problem, f"Add a pseudonymous patient_id to each image, {BY_FILE}")
    numbers: dict[str, int] = {}
    by_file = split_by_file and len(known) == 1  # one id for everybody is no id: an anonymiser wrote it
    groups = [str(film.path) if by_file or not film.patient else film.patient for film in films]
    return [f"{place.name}-{numbers.setdefault(group, len(numbers) + 1):04d}" for group in groups]


def _draw_test(place: Path, names: list[str], seed: int) -> list[str]:
    patients = list(dict.fromkeys(names))
    if len(patients) < 2:
        problem = f"all {len(names)} films are of one patient, so they cannot be split into training and test"
        raise UserError(place / LABELS, problem, f"Add films of another patient, or correct patient_id, {BY_FILE}")
    drawn = np.random.default_rng(seed).permutation(len(patients))[: max(1, round(TEST_SHARE * len(patients)))]
    return [patients[index] for index in drawn]


def _require_apart(place: Path, films: list[_Labelled], names: list[str], train: np.ndarray) -> None:
    trained = {name for name, side in zip(names, train, strict=True) if side}
    shared = [
        film.path.name for film, name, side in zip(films, names, train, strict=True) if not side and name in trained
    ]
    if shared:
        problem = f"{len(shared)} test films are of patients who also have training films, {shared[0]} for one"
        raise UserError(place / "test" / LABELS, problem, "Move all films of a patient to one side")


def _film_set(films: list[_Labelled], names: list[str]) -> FilmSet:
    return FilmSet(
        images=np.stack([item.film.image for item in films]),
        keypoints=np.stack([item.keypoints for item in films]),
        spacing_mm=np.stack([item.film.frame.array_spacing_mm() for item in films]).astype(np.float32),
        patients=tuple(names),
        spacing_kind=tuple(item.film.frame.spacing.kind for item in films),
    )
