"""Films as DICOM objects: an independent validator for each hospital, view and archive; pixels and millimetres back."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydicom.pixels import apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.dicom import read_film
from fedbone.imaging.film_files import ARCHIVES, film_bytes
from fedbone.imaging.film_header import Archive
from fedbone.imaging.radiograph import to_grey
from fedbone.imaging.sites import VIEWS, Exposure, render
from fedbone.imaging.spacing import read_spacing

needs_validator = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian, Ubuntu: apt-get install dicom3tools)"
)
OWN_WARNINGS = ("PatientAddress", "PatientTelephoneNumbers", "(0019,1001")  # there for de-identification to remove
KINDS = {"hospital_a": "calibrated", "hospital_b": "detector", "hospital_c": "object"}
WINDOWS = {
    "linear": {"window": "LINEAR", "explanations": ()},
    "two": {"window": "LINEAR", "explanations": ("BONE", "SOFT TISSUE")},
    "exact": {"window": "LINEAR_EXACT", "explanations": ("BONE", "SOFT TISSUE")},
    "sigmoid": {"window": "SIGMOID", "explanations": ()},
    "table": {"window": "TABLE", "explanations": ()},
}
SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless)
ROWS, COLS = 61, 47


def exposure(**changes: object) -> Exposure:
    """A bone of 4 nepers on noise; odd sides, pixels not quite square, and a magnification."""
    y, x = np.mgrid[:ROWS, :COLS]
    noise = np.random.default_rng(0).normal(0, 0.03, (ROWS, COLS))
    film = (-0.6 + 5 * np.exp(-(((x - 23) / 14) ** 2)) * y / ROWS + noise).astype(np.float32)
    truth = np.zeros((17, 3), np.float32)
    made = Exposure(film, (-0.31, 4.17), truth, np.array([0.7, 0.703]), 1.12, "AP", 77.5, 1150.0, "R", 3, None)
    return replace(made, **changes)


def matrix() -> list[Archive]:
    """Every bit depth, polarity, window, compression and intent, as DX and, for presentation, as CR."""
    found = []
    for bits, photometric, window, syntax in product(
        (8, 10, 12, 14, 16), ("MONOCHROME1", "MONOCHROME2"), WINDOWS.values(), SYNTAXES
    ):
        changes = {"bits": bits, "photometric": photometric, "syntax": syntax, **window}
        found += [replace(ARCHIVES[name], **changes) for name in ("hospital_a", "hospital_b")]
        found.append(replace(ARCHIVES["hospital_a"], intent="FOR PROCESSING", **changes))
    return found


def read(hospital: str, archive: Archive | None = None, number: int = 1, **changes: object) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(film_bytes(hospital, 5, number, exposure(**changes), archive)))


def write(path: Path, *arguments: object) -> Path:
    path.write_bytes(film_bytes(*arguments))
    return path


def complaints(path: Path) -> list[str]:
    """What dciodvfy says of a file beyond the object's name and the warnings that the films are meant to give."""
    run = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, timeout=60)
    lines = (run.stdout + run.stderr).splitlines()
    assert len([line for line in lines if line.endswith(("CRImage", "Presentation", "Processing"))]) == 1, lines
    found = [line for line in lines if line.startswith(("Error", "Abort", "Warning"))]
    assert run.returncode == any(line.startswith("Error") for line in found)
    return [line for line in found if not any(known in line for known in OWN_WARNINGS)]


def film_area(path: Path) -> np.ndarray:
    """The film in its array at its own size, without the padding."""
    film = read_film(path, max(ROWS, COLS))
    (rows, cols), (top, left) = film.frame.inner, film.frame.offset
    assert (rows, cols) == (ROWS, COLS)
    return film.image[top : top + rows, left : left + cols].astype(int)


@needs_validator
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("hospital", ARCHIVES)
def test_every_hospitals_film_is_valid(tmp_path: Path, hospital: str, view: str) -> None:
    for marker, magnification in product("RL", (1.0, 1.0731)):
        film = exposure(view=view, marker=marker, magnification=magnification)
        assert not complaints(write(tmp_path / "film.dcm", hospital, 0, 1, film))


@pytest.mark.slow
@needs_validator
def test_every_archive_is_valid(tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    archives = matrix()
    assert len(archives) == 450
    for archive in archives:
        found.update(complaints(write(tmp_path / "film.dcm", "hospital_a", 0, 1, exposure(), archive)))
    assert not found


@needs_validator
@pytest.mark.parametrize(
    ("hospital", "keyword"),
    [
        ("hospital_a", "PresentationIntentType"),
        ("hospital_a", "AnatomicRegionSequence"),
        ("hospital_a", "ImageLaterality"),
        ("hospital_a", "ImagerPixelSpacing"),
        ("hospital_a", "DetectorType"),
        ("hospital_a", "PositionerType"),
        ("hospital_a", "AcquisitionContextSequence"),
        ("hospital_a", "PixelIntensityRelationship"),
        ("hospital_a", "PresentationLUTShape"),
        ("hospital_a", "WindowCenter"),
        ("hospital_a", "PixelSpacingCalibrationDescription"),
        ("hospital_a", "PatientOrientation"),
        ("hospital_b", "ViewPosition"),
        ("hospital_b", "BodyPartExamined"),
        ("hospital_b", "PhotometricInterpretation"),
        ("hospital_c", "ViewCodeSequence"),
    ],
)
def test_control_a_missing_attribute_is_reported(tmp_path: Path, hospital: str, keyword: str) -> None:
    path = write(tmp_path / "film.dcm", hospital, 0, 1, exposure())
    dataset = pydicom.dcmread(path)
    del dataset[keyword]
    dataset.save_as(path)
    assert any(keyword in line for line in complaints(path))


@pytest.mark.parametrize("hospital", ARCHIVES)
def test_pixels_of_the_hospitals_are_the_generators(tmp_path: Path, hospital: str) -> None:
    film = exposure()
    difference = film_area(write(tmp_path / "film.dcm", hospital, 0, 1, film)) - to_grey(film.film, film.limits)
    assert np.abs(difference).max() <= 1
    assert abs(difference.mean()) < 0.1


@pytest.mark.slow
def test_pixels_of_every_archive(tmp_path: Path) -> None:
    """Straight lines give the generator's picture; every window gives what pydicom makes of it."""
    film = exposure()
    drawn = to_grey(film.film, film.limits).astype(int)
    for archive in matrix():
        path = write(tmp_path / "film.dcm", "hospital_a", 0, 1, film, archive)
        dataset = pydicom.dcmread(path)
        if archive.intent == "FOR PROCESSING":
            assert not {"WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"} & set(dataset.dir())
            assert np.corrcoef(film_area(path).ravel(), drawn.ravel())[0, 1] > 0.98  # the reader finds a window itself
            continue
        assert np.abs(film_area(path) - by_pydicom(dataset)).max() <= 1, archive
        if archive.window != "SIGMOID":
            assert np.abs(film_area(path) - drawn).max() <= (2 if archive.bits == 8 else 1), archive


def by_pydicom(dataset: pydicom.Dataset) -> np.ndarray:
    """Grey 0 to 255 with bone bright by pydicom's own VOI step, scaled over its output range."""
    values = apply_voi_lut(dataset.pixel_array, dataset).astype(float)
    grey = values / (65535 if "VOILUTSequence" in dataset else 2**dataset.BitsStored - 1) * 255
    return np.rint(255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey).astype(int)


@example(low=-0.2, high=1.2, bits=16, photometric="MONOCHROME2", window="TABLE")  # one entry for every stored value
@given(
    low=st.floats(-0.3, 0.3),
    high=st.floats(0.4, 1.3),
    bits=st.sampled_from((8, 10, 12, 14, 16)),
    photometric=st.sampled_from(("MONOCHROME1", "MONOCHROME2")),
    window=st.sampled_from(("LINEAR", "LINEAR_EXACT", "TABLE")),
)
def test_any_console_window_survives(
    tmp_path_factory: pytest.TempPathFactory, low: float, high: float, bits: int, photometric: str, window: str
) -> None:
    """Windows as parts of the film's range. Bound: half a stored step in grey levels, and the rounding of both."""
    path, film = tmp_path_factory.getbasetemp() / "any.dcm", exposure()
    least, span = film.film.min(), np.ptp(film.film)
    film = replace(film, limits=(float(least + low * span), float(least + high * span)))
    archive = replace(ARCHIVES["hospital_a"], bits=bits, photometric=photometric, window=window)
    difference = film_area(write(path, "hospital_a", 0, 1, film, archive)) - to_grey(film.film, film.limits)
    step = 255 / (high - low) / (2**bits - 1)
    assert np.abs(difference).max() <= np.floor(step / 2 + 1.01)


def test_a_wide_range_is_not_clipped(tmp_path: Path) -> None:
    """A lateral film through the pelvis spans 14 nepers, three times an AP film of the leg."""
    film = exposure(film=exposure().film * np.float32(3), limits=(-1.0, 12.5))
    for hospital in ARCHIVES:
        difference = film_area(write(tmp_path / "film.dcm", hospital, 0, 1, film)) - to_grey(film.film, film.limits)
        assert np.abs(difference).max() <= 1


def test_the_first_of_two_windows_shows_bone_and_the_second_soft_tissue() -> None:
    dataset = read("hospital_b")
    assert dataset.WindowCenterWidthExplanation == ["BONE", "SOFT TISSUE"]
    bone, soft = (apply_voi_lut(dataset.pixel_array, dataset, index=index) for index in (0, 1))
    top = 2**dataset.BitsStored - 1  # of a MONOCHROME1 film: bone is low
    assert (soft == 0).sum() > 2 * (bone == 0).sum()
    assert (soft >= top - 1).sum() == pytest.approx((bone >= top - 1).sum(), abs=20)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_sign_tells_where_less_beam_arrived(photometric: str) -> None:
    """PS3.3 C.8.11.3: +1 where lower stored values mean less beam."""
    dataset = read("hospital_a", replace(ARCHIVES["hospital_a"], photometric=photometric))
    rising = np.corrcoef(dataset.pixel_array.ravel(), -exposure().film.ravel())[0, 1]
    assert np.sign(rising) == dataset.PixelIntensityRelationshipSign
    assert (dataset.PresentationLUTShape == "INVERSE") == (photometric == "MONOCHROME1")


@pytest.mark.parametrize("marker", ["R", "L"])
@pytest.mark.parametrize(("view", "turns_deg"), [("AP", (0,)), ("OBLIQUE", (-40, 40)), ("LATERAL", (90,))])
def test_directions_of_the_patient(marker: str, view: str, turns_deg: tuple[int, ...]) -> None:
    """Turn a patient who faces the tube, and see what points to the right of the film: the header names the most of it.

    x: to the right of the film, y: away from the tube; before the turn left is +x and anterior is -y. A positive turn
    brings the left side to the detector. An oblique film's header does not tell the way of the turn.
    """
    dataset = read("hospital_a", view=view, marker=marker)
    for turn_deg in turns_deg:
        angle = np.deg2rad(-turn_deg if view == "LATERAL" and marker == "R" else turn_deg)
        to_right = {"L": np.cos(angle), "A": np.sin(angle)}
        to_right |= {"R": -to_right["L"], "P": -to_right["A"]}
        assert list(dataset.PatientOrientation) == [max(to_right, key=lambda side: to_right[side]), "F"]
    side = {"R": "right ", "L": "left "}[marker] if view == "LATERAL" else ""
    assert dataset.ViewCodeSequence[0].CodeMeaning == side + {"AP": "antero-posterior"}.get(view, view.lower())
    assert dataset.SeriesDescription.startswith("Pelvis ")


@pytest.mark.parametrize("view", VIEWS)
def test_directions_are_those_of_the_rendered_patient(view: str) -> None:
    """The nose lies in front of the ears, and the left hip to the left of the right one."""
    shape = (60, 54)
    film = render("hospital_c", 0, 1, shape, shape, view=view)
    points = dict(zip(COCO_JOINTS, film.truth, strict=True))
    dataset = pydicom.dcmread(io.BytesIO(film_bytes("hospital_c", 0, 1, film)))
    front, back = ("nose", "left_ear") if view == "LATERAL" else ("left_hip", "right_hip")
    assert points[front][2] > 0 < points[back][2]
    to_right = points[front][0] > points[back][0]
    assert dataset.PatientOrientation[0] == ({True: "A", False: "P"} if view == "LATERAL" else {True: "L"})[to_right]


@given(
    magnification=st.floats(1.01, 1.6),
    pitch=st.tuples(st.floats(0.1, 2), st.floats(0.3, 3)).map(lambda pair: (pair[0], pair[0] * pair[1])),
    move_mm=st.tuples(st.floats(20, 200), st.floats(20, 200)),
)
def test_distances_between_joints_by_the_kind_of_spacing(
    magnification: float, pitch: tuple[float, float], move_mm: tuple[float, float]
) -> None:
    """Two joints of known distance in their plane, magnified onto the detector: what each header measures."""
    assume(pitch != (1.0, 1.0))  # a reader takes it for a placeholder
    on_film = np.array(move_mm) * magnification / pitch  # pixels x, y
    for hospital, kind in KINDS.items():
        spacing = read_spacing(read(hospital, magnification=magnification, pitch_mm=np.array(pitch)))
        assert spacing.kind == kind
        measured = np.hypot(*(on_film * [spacing.col_mm, spacing.row_mm]))
        larger = magnification if kind == "detector" else 1
        assert measured == pytest.approx(np.hypot(*move_mm) * larger, rel=1e-9)


def test_the_header_tells_one_geometry() -> None:
    """PS3.3 C.8.11.5, 10.7.1.3: the factor leads from one pitch to the other; without it no distance hints at one."""
    north, south, spine = (read(name) for name in ARCHIVES)
    for dataset in (north, spine):
        assert dataset.EstimatedRadiographicMagnificationFactor == 1.12
        assert [float(v) for v in dataset.ImagerPixelSpacing] == pytest.approx([0.703, 0.7])  # rows first
    assert np.array(north.PixelSpacing, float) * 1.12 == pytest.approx(np.array(north.ImagerPixelSpacing, float))
    assert north.PixelSpacingCalibrationType == "GEOMETRY"
    assert "PixelSpacing" not in spine
    told = {"PixelSpacing", "EstimatedRadiographicMagnificationFactor", "DistanceSourceToPatient"}
    assert not told & set(south.dir())
    assert {float(d.KVP) for d in (north, south, spine)} == {77.5}
    assert {float(d.DistanceSourceToDetector) for d in (north, south, spine)} == {1150.0}


def test_the_hospitals_archives_differ() -> None:
    datasets = [read(name) for name in ARCHIVES]
    said = [
        (d.Modality, d.BitsStored, d.PhotometricInterpretation, d.file_meta.TransferSyntaxUID, d.VOILUTFunction)
        for d in datasets
    ]
    assert said == [
        ("DX", 12, "MONOCHROME2", JPEG2000Lossless, "LINEAR"),
        ("CR", 10, "MONOCHROME1", RLELossless, "LINEAR"),
        ("DX", 14, "MONOCHROME1", JPEG2000Lossless, "LINEAR_EXACT"),
    ]
    assert [list(d.ImageType[2:]) for d in datasets] == [[""], [], [""]]  # PS3.3 C.8.11.3.1.1; dciodvfy does not look


def test_a_film_carries_a_person_to_remove_and_is_the_same_again() -> None:
    for hospital in ARCHIVES:
        assert film_bytes(hospital, 5, 7, exposure()) == film_bytes(hospital, 5, 7, exposure())
        dataset, next_film = (read(hospital, number=number) for number in (7, 8))
        assert dataset.PatientID == next_film.PatientID  # the same patient number
        assert dataset.SOPInstanceUID != next_film.SOPInstanceUID
        assert dataset.PatientBirthDate
        assert dataset.PatientAddress
        assert str(dataset.PatientName) in dataset[0x0019, 0x1001].value
        assert read(hospital, number=7, patient_number=4).PatientID != dataset.PatientID


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 7},
        {"photometric": "RGB"},
        {"window": "SIGMOIDAL"},
        {"spacing": "unknown"},
        {"explanations": ("A", "B", "C")},
        {"modality": "CR"},
        {"modality": "CR", "spacing": "detector", "intent": "FOR PROCESSING"},
    ],
)
def test_an_archive_that_dicom_has_no_place_for_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"archive|CR film"):
        replace(ARCHIVES["hospital_a"], **changes)
