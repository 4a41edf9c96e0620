"""The three hospitals' films: training and test sets for a model, and sample folders of DICOM files.

Patients never appear at two hospitals, and training, test and sample films come from different patients.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedbone.config import build_dir
from fedbone.files import write_atomic
from fedbone.imaging.coco import COCO_JOINTS, write_annotations
from fedbone.imaging.dataset import FilmSet, HospitalData
from fedbone.imaging.film_files import film_bytes
from fedbone.imaging.frame import Frame, Spacing
from fedbone.imaging.radiograph import to_grey
from fedbone.imaging.readings import SECOND_READER
from fedbone.imaging.site_table import ARCHIVE, PLACES, SITES
from fedbone.imaging.sites import (
    SAMPLE_FROM,
    TEST_FROM,
    Exposure,
    pseudonym,
    read_labels,
    render,
    training_labels,
)

Progress = Callable[[int, int, str], None]
PARTS = ("train", "test")  # of a cache file
GENERATOR_VERSION = 6  # raise it with every change that alters a pixel or a label: caches carry it in their name


@dataclass(frozen=True)
class SimulatedFilm:
    """One generated film as a model reads it.

    image (S, S) uint8, bone bright, padded; keypoints (17, 3) float32: the hospital's own labels; truth (17, 3): every
    joint inside the film; spacing_mm (2,): x and y per array pixel; patient: pseudonym; cobb_deg: hospital C only;
    view: AP, LATERAL or OBLIQUE.
    """

    image: np.ndarray
    keypoints: np.ndarray
    truth: np.ndarray
    spacing_mm: np.ndarray
    patient: str
    cobb_deg: float | None
    view: str


def simulate_film(hospital: str, seed: int, index: int, size_px: int) -> SimulatedFilm:
    """Film ``index`` of a hospital, scaled and padded to (size_px, size_px) as reading its DICOM file would.

    ``hospital`` may be a place of the public archive too. Raises KeyError for an unknown one.
    """
    site = PLACES[hospital]
    frame = Frame(*site.film, size_px)
    exposure = render(hospital, seed, index, frame.inner, site.film)
    frame = Frame(*site.film, size_px, _spacing(site.kind, exposure))
    (rows, cols), (top, left) = frame.inner, frame.offset
    image = np.zeros((size_px, size_px), np.uint8)
    image[top : top + rows, left : left + cols] = to_grey(exposure.film, exposure.limits)
    keypoints, truth = training_labels(hospital, seed, index, exposure), exposure.truth.copy()
    for points in (keypoints, truth):
        seen = points[:, 2] > 0
        points[seen, :2] = frame.to_array(points[seen, :2])
    patient = pseudonym(hospital, seed, exposure.patient_number)
    spacing = frame.array_spacing_mm().astype(np.float32)
    return SimulatedFilm(image, keypoints, truth, spacing, patient, exposure.cobb_deg, exposure.view)


def _spacing(kind: str, exposure: Exposure) -> Spacing:
    """The pitch that the hospital's headers give: at the joints where they know the magnification."""
    pitch = exposure.pitch_mm if kind == "detector" else exposure.pitch_mm / exposure.magnification
    return Spacing(*pitch[::-1], kind)


def training_hospitals(
    size_px: int,
    seed: int = 0,
    n_train: int = 200,
    n_test: int = 100,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    test_from: int = TEST_FROM,
) -> list[HospitalData]:
    """The three hospitals' training and test films, generated once and kept as one .npz a hospital.

    test_from: index of the first test film; VALIDATION_FROM gives other patients' films, by which to choose settings.
    The cache (default: build_dir()/cache) is made again when it is missing, damaged or of another generator.
    ``progress(done, total, text)`` is called after each film.
    """
    folder = Path(cache_dir) if cache_dir else build_dir() / "cache"
    total, hospitals = len(SITES) * (n_train + n_test), []
    for number, name in enumerate(SITES):
        part = "" if test_from == TEST_FROM else f"_from{test_from}"
        path = folder / f"{name}_v{GENERATOR_VERSION}_s{seed}_px{size_px}_n{n_train}_t{n_test}{part}.npz"
        sets = _read_cache(path)
        if sets is None:
            sets = []
            for first, count, done in ((0, n_train, 0), (test_from, n_test, n_train)):
                before = number * (n_train + n_test) + done
                sets.append(_film_set(name, seed, range(first, first + count), size_px, before, total, progress))
            _write_cache(path, sets)
        labels = tuple(COCO_JOINTS[joint] for joint in SITES[name].labels)
        hospitals.append(HospitalData(name, COCO_JOINTS, *sets, labels))
        if progress:
            progress((number + 1) * (n_train + n_test), total, f"{name} ready")
    return hospitals


def public_films(size_px: int, seed: int = 0, n: int = 200, cache_dir: Path | None = None) -> list[FilmSet]:
    """``n`` films of each place of the public archive, generated once and kept as the hospitals' are.

    They show the hospitals' regions on other machines, other people and the textbook's pose: nothing in them needs
    protection, and a model trained on them alone has seen no patient of a hospital.
    """
    folder, sets = Path(cache_dir) if cache_dir else build_dir() / "cache", []
    for name in ARCHIVE:
        path = folder / f"{name}_v{GENERATOR_VERSION}_s{seed}_px{size_px}_n{n}.npz"
        found = _read_cache(path, ("train",))
        if found is None:
            found = [_film_set(name, seed, range(n), size_px, 0, n, None)]
            _write_cache(path, found)
        sets += found
    return sets


def _film_set(
    name: str, seed: int, indices: range, size_px: int, before: int, total: int, progress: Progress | None
) -> FilmSet:
    films = []
    for index in indices:
        films.append(simulate_film(name, seed, index, size_px))
        if progress:
            progress(before + len(films), total, f"{name}: drawing films")
    return FilmSet(
        np.stack([f.image for f in films]),
        np.stack([f.keypoints for f in films]),
        np.stack([f.spacing_mm for f in films]),
        tuple(f.patient for f in films),
        np.stack([f.truth for f in films]),
        (PLACES[name].kind,) * len(films),
    )


def _write_cache(path: Path, sets: list[FilmSet]) -> None:
    parts = zip(PARTS, sets, strict=False)
    buffer = io.BytesIO()
    np.savez(buffer, **{f"{part}_{name}": array for part, films in parts for name, array in films.to_arrays().items()})
    write_atomic(path, buffer.getvalue())


def _read_cache(path: Path, names: tuple[str, ...] = PARTS) -> list[FilmSet] | None:
    """The sets in a cache file, or None if there is none or it is damaged (zip keeps a checksum of each array)."""
    try:
        with np.load(path) as file:
            parts: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
            for name in file.files:
                part, _, array = name.partition("_")
                parts[part][array] = file[name]
        return [FilmSet.from_arrays(arrays) for arrays in parts.values()]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_sample(out: Path, films: int = 12, seed: int = 0, progress: Progress | None = None) -> list[Path]:
    """Folders hospital_a, _b and _c in ``out``, each with DICOM films and annotations.json; returns the films' paths.

    The same seed gives the same bytes on the same machine and packages. ``patient_id`` of the labels is a pseudonym;
    second_reader.json holds the labels of another reader of the same films.
    """
    written: list[Path] = []
    for name, site in SITES.items():
        images, labels = [], []
        for number in range(films):
            index = SAMPLE_FROM + number
            exposure = render(name, seed, index, site.film, site.film)
            file_name = f"film_{number + 1:03d}.dcm"
            written.append(write_atomic(Path(out) / name / file_name, film_bytes(name, seed, number, exposure)))
            patient = pseudonym(name, seed, exposure.patient_number)
            rows, cols = site.film
            images.append({"file_name": file_name, "width": cols, "height": rows, "patient_id": patient})
            labels.append(read_labels(name, seed, index, exposure))
            if progress:
                progress(len(written), films * len(SITES), f"{name}/{file_name}")
        for reader, file_name in enumerate(("annotations.json", SECOND_READER)):
            write_annotations(Path(out) / name / file_name, COCO_JOINTS, images, [both[reader] for both in labels])
    return written
