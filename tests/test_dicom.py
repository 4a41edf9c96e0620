"""Films in: the greyscale chain against pydicom's own at full resolution, real CR films, and every bad file."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import re
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut, apply_voi
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    XRayRadiofluoroscopicImageStorage,
)

from fedbone.errors import UserError
from fedbone.imaging import dicom_file
from fedbone.imaging.codestream import require_match
from fedbone.imaging.dicom import convert, printable, read_film, read_stored, write_png
from fedbone.imaging.frame import Frame
from fedbone.imaging.refusal import Refusal
from fedbone.imaging.spacing import read_pixel_aspect, read_spacing
from tests.dicom_cases import GDCM_SYNTAXES, film, lut, ramp, save
from tests.dicom_cases.make import SIZE_PX, all_cases, by_pydicom
from tests.dicom_cases.make import write as write_cases


def full_size(path: Path) -> np.ndarray:
    """Oracle: pydicom's modality and VOI steps at full resolution."""
    return by_pydicom(pydicom.dcmread(path))


WHOLE = {"WindowCenter": 2000, "WindowWidth": 4000}
CASES = Path(__file__).parent / "dicom_cases"
FACTS = json.loads((CASES / "cases.json").read_text())


@pytest.mark.parametrize("name", FACTS)
def test_conformance_films(name: str) -> None:
    """Every committed film: the picture that make.py worked out without fedbone, or the error that says why."""
    facts, path = FACTS[name], CASES / f"{name}.dcm"
    if "error" in facts:
        with pytest.raises(UserError, match=facts["error"]) as caught:
            read_film(path, SIZE_PX)
        assert "Jane" not in str(caught.value)
        assert "SECRET" not in str(caught.value)
        return
    found = read_film(path, SIZE_PX)
    expected = cv2.imread(str(CASES / f"{name}.png"), cv2.IMREAD_UNCHANGED).astype(int)
    assert np.abs(found.image - expected).max() <= max(facts["tolerance"], 1)
    assert np.mean(np.abs(found.image - expected)) < (0.02 if facts["tolerance"] < 1 else 2.5)
    assert facts["warning"] in "; ".join(found.warnings)
    assert bool(facts["warning"]) == bool(found.warnings)


def test_conformance_films_are_bone_bright() -> None:
    """The knee against the air beside it, in every film that shows it whole."""
    for name in FACTS:
        picture = CASES / f"{name}.png"
        if picture.exists():
            grey = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED).astype(float)
            falls = name in ("voi_lut_two", "rescale_falling")  # a falling table and slope: dark is meant
            assert falls or grey[30:50, 35:50].mean() > grey[30:50, 75:80].mean() + 30, name


def test_the_committed_films_are_what_make_writes(tmp_path: Path) -> None:
    write_cases(tmp_path)
    assert json.loads((tmp_path / "cases.json").read_text()) == FACTS
    assert set(FACTS) == {path.stem for path in CASES.glob("*.dcm")} == set(all_cases())
    assert (tmp_path / "README.md").read_text() == (CASES / "README.md").read_text()
    for path in tmp_path.glob("*.png"):
        again, stored = (cv2.imread(str(p), cv2.IMREAD_UNCHANGED).astype(int) for p in (path, CASES / path.name))
        assert np.abs(again - stored).max() <= 1, path.name
    assert sum(path.stat().st_size for path in CASES.iterdir() if path.is_file()) < 3_000_000


def check(path: Path, size_px: int = 60, tolerance: float = 0.51) -> np.ndarray:
    """At the film's own size no pixel is averaged, so every one must equal the oracle up to rounding."""
    image = read_film(path, size_px).image
    rows, cols = (expected := full_size(path)).shape
    left, top = (size_px - cols) // 2, (size_px - rows) // 2
    np.testing.assert_allclose(image[top : top + rows, left : left + cols], expected, atol=tolerance)
    return image


WINDOWS = {
    "linear": {"WindowCenter": 2000, "WindowWidth": 3000},
    "several": {"WindowCenter": [1500, 3000], "WindowWidth": [1200, 50]},
    "fractional": {"WindowCenter": "1999.75", "WindowWidth": "1000.5"},
    "exact": {"WindowCenter": 2000, "WindowWidth": 3000, "VOILUTFunction": "LINEAR_EXACT"},
    "narrow": {"WindowCenter": 2000, "WindowWidth": 40},
    "one value": {"WindowCenter": 2000, "WindowWidth": 1},
    "sigmoid": {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
    "rescale": {"WindowCenter": 500, "WindowWidth": 900, "RescaleSlope": "0.25", "RescaleIntercept": "-24"},
    "falling": {"WindowCenter": 500, "WindowWidth": 900, "RescaleSlope": "-0.25", "RescaleIntercept": "1024"},
    "modality lut": {
        "ModalityLUTSequence": lut(np.linspace(0, 1, 4096) ** 0.5 * 65535, 0, 16),
        "WindowCenter": 32000,
        "WindowWidth": 50000,
    },
    "voi lut": {"VOILUTSequence": lut(np.linspace(0, 1, 2000) ** 2 * 1023, 1000, 10)},
    "voi lut and window": {
        "VOILUTSequence": lut(np.linspace(1023, 0, 4096), 0, 10),
        "WindowCenter": 2000,
        "WindowWidth": 10,
    },
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_equal_pydicom_at_full_resolution(tmp_path: Path, name: str, photometric: str) -> None:
    dataset = film(ramp(), BitsStored=12, PhotometricInterpretation=photometric, **WINDOWS[name])
    image = check(save(tmp_path / "film.dcm", dataset))
    assert image.max() - image.min() > 100


FORMATS = {
    "8 bit": (np.uint8, 8, 255, 0),
    "10 bit": (np.uint16, 10, 1023, 0),
    "15 bit": (np.uint16, 15, 32767, 0),
    "16 bit": (np.uint16, 16, 65535, 0),
    "8 in 16": (np.uint16, 8, 255, 0),
    "12 bit signed": (np.int16, 12, 4095, -2048),
    "16 bit signed": (np.int16, 16, 65535, -32768),
    "8 bit signed": (np.int8, 8, 255, -128),
}


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("name", FORMATS)
def test_pixel_formats(tmp_path: Path, name: str, syntax: str | None) -> None:
    dtype, bits, span, low = FORMATS[name]
    values = (ramp(high=span).astype(np.int32) + low).astype(dtype)
    window = {"WindowCenter": low + span / 2, "WindowWidth": span * 0.8}
    dataset = film(values.astype(values.dtype.newbyteorder("<")), BitsStored=bits, **window)
    if syntax == ExplicitVRBigEndian:
        if values.dtype.itemsize == 2:
            dataset.PixelData = values.astype(values.dtype.newbyteorder(">")).tobytes()
        dataset["PixelData"].VR = "OW" if values.dtype.itemsize == 2 else "OB"
    if syntax is not None:
        dataset.file_meta.TransferSyntaxUID = syntax
    check(save(tmp_path / "film.dcm", dataset))


def test_bits_above_and_below_the_stored_ones_are_ignored(tmp_path: Path) -> None:
    values = ramp()
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    plain = read_film(save(tmp_path / "plain.dcm", film(values, BitsStored=12, **window)), 60)
    shifted = film(values << 4 | 9, BitsStored=12, HighBit=15, **window)
    overlay = film(values | 0xA000, BitsStored=12, **window)
    signed = film(((values.astype(np.int32) - 2048) << 4).astype(np.int16), BitsStored=12, HighBit=15)
    signed.WindowCenter, signed.WindowWidth = 2000 - 2048, 3000
    for name, dataset in {"shifted": shifted, "overlay": overlay, "signed": signed}.items():
        image = read_film(save(tmp_path / f"{name}.dcm", dataset), 60).image
        np.testing.assert_array_equal(image, plain.image, err_msg=name)


def test_lookup_tables_that_pydicom_gets_wrong(tmp_path: Path) -> None:
    """8-bit entries: pydicom wraps the index at 256; two entries packed in a word; input below and above the table."""
    table = np.linspace(0, 255, 1000).round().astype(np.uint8)
    values = np.clip(ramp(high=2400).astype(int) - 200, 0, None).astype(np.uint16)
    expected = table[np.clip(values.astype(int) - 600, 0, 999)]
    packed = lut(table.view("<u2"), 600, 8)
    packed[0].LUTDescriptor[0] = 1000
    for name, sequence in {"plain": lut(table, 600, 8), "packed": packed}.items():
        path = save(tmp_path / f"{name}.dcm", film(values, BitsStored=12, VOILUTSequence=sequence))
        np.testing.assert_array_equal(read_film(path, 60).image[:, 8:52], expected, err_msg=name)
    pydicoms = apply_voi(values, film(values, VOILUTSequence=lut(table, 600, 8)))
    assert np.abs(pydicoms.astype(int) - expected).max() > 100  # once this fails, pydicom's own can be used
    with pytest.raises((TypeError, ValueError)):
        apply_modality_lut(values, film(values, ModalityLUTSequence=lut(np.arange(1000), 600, 10)))
    ten_bits = film(values, BitsStored=12, ModalityLUTSequence=lut(np.arange(1000), 600, 10), WindowCenter=500)
    ten_bits.WindowWidth = 1001
    found = read_film(save(tmp_path / "ten.dcm", ten_bits), 60).image[:, 8:52]
    by_hand = np.clip((np.clip(values.astype(float) - 600, 0, 999) - 499.5) / 1000 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(found, by_hand, atol=0.51)


def test_values_outside_a_table_do_not_wrap(tmp_path: Path) -> None:
    """Rescaled values beyond 16 bits, below and above a VOI LUT, take its ends (C.11.2.1.1)."""
    tags = {"RescaleSlope": 40, "RescaleIntercept": -20000, "VOILUTSequence": lut(np.arange(1000), 40000, 10)}
    tags["VOILUTSequence"][0]["LUTDescriptor"].VR = "US"
    path = save(tmp_path / "film.dcm", film(ramp(), BitsStored=12, **tags))
    entry = np.clip(ramp().astype(int) * 40 - 20000 - 40000, 0, 999)
    np.testing.assert_allclose(read_film(path, 60).image[:, 8:52], entry / 1023 * 255, atol=0.51)


def test_no_window_uses_the_robust_range_of_the_content(tmp_path: Path) -> None:
    values = ramp(200, 200, high=1000) + np.uint16(1000)
    values[:, :60] = 0  # padding
    values[5, 100:104] = 65535  # a marker
    image = read_film(save(tmp_path / "film.dcm", film(values, PixelPaddingValue=0)), 200).image
    low, high = np.percentile(values[:, 60:], (0.5, 99.5))
    expected = np.clip((values[:, 60:] - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(image[:, 60:], expected, atol=0.51)
    assert not image[:, :60].any()
    for empty in ({"WindowCenter": None}, {"WindowCenter": "", "WindowWidth": ""}, {"WindowWidth": 0}):
        again = film(values, PixelPaddingValue=0, **{"WindowCenter": 5, "WindowWidth": 3, **empty})
        np.testing.assert_array_equal(read_film(save(tmp_path / "film.dcm", again), 200).image, image)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
@pytest.mark.parametrize("implicit", [False, True])
def test_padding_is_black(tmp_path: Path, photometric: str, function: str, implicit: bool) -> None:
    values = ramp().astype(np.int16)
    values[:20], values[20:25] = -2000, -1990
    tags = {"WindowCenter": 2000, "WindowWidth": 3000, "VOILUTFunction": function}
    dataset = film(values, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990, **tags)
    dataset["PixelPaddingValue"].VR = dataset["PixelPaddingRangeLimit"].VR = "SS"
    dataset.PhotometricInterpretation = photometric
    if implicit:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    image = read_film(save(tmp_path / "film.dcm", dataset), 60).image
    assert not image[:25].any()
    assert image[25:, 8:52].max() > 100


def test_bone_is_bright_in_every_polarity(tmp_path: Path) -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    cases = [("MONOCHROME2", "IDENTITY"), ("MONOCHROME1", "IDENTITY"), ("MONOCHROME1", "INVERSE")]
    cases.append(("MONOCHROME2", "INVERSE"))
    images = []
    for photometric, shape in cases:
        tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
        images.append(read_film(save(tmp_path / "f.dcm", film(ramp(), BitsStored=12, **tags, **window)), 60).image)
    content = (slice(None), slice(8, 52))  # MONOCHROME1 films carry INVERSE (C.8.11.3): one inversion, not two
    assert (images[1] == images[2]).all()
    assert (images[2] == images[3]).all()
    assert abs(images[0][content].astype(int) + images[1][content] - 255).max() <= 1


def slow_path(path: Path, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """pydicom at full resolution, then resized; and which resized pixels saw no clipped one."""
    grey = full_size(path)
    clipped = ((grey <= 0) | (grey >= 255)).astype(np.float32)
    small = cv2.resize(np.clip(grey, 0, 255), frame.inner[::-1], interpolation=cv2.INTER_AREA)
    return small, cv2.resize(clipped, frame.inner[::-1], interpolation=cv2.INTER_AREA) == 0


def anatomy(rows: int, cols: int, seed: int) -> np.ndarray:
    """(rows, cols) in 0..1: soft shapes with edges and a little noise, as on a film."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.random((7, 5)), (cols, rows), interpolation=cv2.INTER_CUBIC)
    cv2.line(coarse, (cols // 3, 0), (cols // 2, rows), 1.0, cols // 20)
    return np.clip(coarse + rng.normal(0, 0.01, (rows, cols)), 0, 1)


@pytest.mark.parametrize("size_px", [128, 512])
@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG3_UNCR.dcm", "RG3_J2KI.dcm"])
def test_resizing_first_equals_windowing_first_on_real_films(name: str, size_px: int) -> None:
    """The fast path: within 1 grey level of the slow one wherever the window does not clip."""
    path = Path(get_testdata_file(name))
    found = read_film(path, size_px)
    (top, left), (rows, cols) = found.frame.offset, found.frame.inner
    slow, open_range = slow_path(path, found.frame)
    assert open_range.mean() > 0.4
    assert np.abs(found.image[top : top + rows, left : left + cols] - slow)[open_range].max() <= 1


@pytest.mark.parametrize("name", ["8 bit", "10 bit", "16 bit", "12 bit signed", "16 bit signed"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_resizing_first_equals_windowing_first(tmp_path: Path, name: str, photometric: str, function: str) -> None:
    dtype, bits, span, low = FORMATS[name]
    values = np.rint(anatomy(431, 350, bits) * span + low).astype(dtype)
    slope, intercept = ("0.5", "-7") if bits > 8 else ("1", "0")
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept, "VOILUTFunction": function}
    tags |= {"WindowCenter": (low + span / 2) * float(slope), "WindowWidth": span * float(slope) * 0.8}
    path = save(tmp_path / "film.dcm", film(values, BitsStored=bits, PhotometricInterpretation=photometric, **tags))
    found = read_film(path, 96)
    (top, left), (rows, cols) = found.frame.offset, found.frame.inner
    slow, open_range = slow_path(path, found.frame)
    assert open_range.mean() > 0.25
    assert np.abs(found.image[top : top + rows, left : left + cols] - slow)[open_range].max() <= 1


@pytest.mark.parametrize("syntax", [*list(GDCM_SYNTAXES)[1:], JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["u2", "u1", "i2"])
def test_lossless_compression_changes_nothing(tmp_path: Path, syntax: str, kind: str) -> None:
    values = (ramp() if kind == "u2" else ramp(high=255)).astype(kind) - (100 if kind == "i2" else 0)
    dataset = film(values, BitsStored=8 if kind == "u1" else 12)
    plain = read_film(save(tmp_path / "plain.dcm", dataset), 60).image
    if syntax == JPEG2000Lossless:
        dataset.compress(JPEG2000Lossless)
        path = save(tmp_path / "packed.dcm", dataset)
    else:
        path = save(tmp_path / "packed.dcm", dataset, syntax)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_film(path, 60).image, plain)


@pytest.mark.parametrize("name", ["RG1", "RG3"])
def test_real_films(name: str) -> None:
    """CR chest and lower leg of NEMA WG-04: lossless JPEG 2000 equals the original, lossy is close, no millimetres."""
    films = {kind: read_film(Path(get_testdata_file(f"{name}_{kind}.dcm")), 512) for kind in ("UNCR", "J2KR", "J2KI")}
    np.testing.assert_array_equal(films["J2KR"].image, films["UNCR"].image)
    assert np.mean(abs(films["J2KI"].image.astype(int) - films["UNCR"].image)) < 0.5
    assert films["UNCR"].frame.spacing.kind == "unknown"  # RG1 says 0.000, RG3 nothing
    image = films["UNCR"].image
    if name == "RG1":  # spine and abdomen against lung, in a portrait film
        assert image[300:420, 230:290].mean() > image[150:230, 190:205].mean() + 40
        assert films["UNCR"].frame.offset == (0, 15)
    else:  # tibia against the air beside the leg
        assert image[100:200, 235:260].mean() > image[100:200, 145:170].mean() + 100


SPACINGS = {
    "nothing": ({}, None, "unknown"),
    "zero": ({"PixelSpacing": ["0.000", "0.000"]}, None, "unknown"),
    "one zero": ({"PixelSpacing": ["0.1", "0"]}, None, "unknown"),
    "negative": ({"PixelSpacing": ["-0.1", "-0.1"]}, None, "unknown"),
    "metres": ({"PixelSpacing": ["143", "143"]}, None, "unknown"),
    "single": ({"PixelSpacing": "0.14"}, None, "unknown"),
    "empty": ({"PixelSpacing": ""}, None, "unknown"),
    "imager": ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "detector"),
    "equal": ({"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "detector"),
    "alone": ({"PixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "detector"),
    "corrected": ({"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.16, 0.16]}, (0.16, 0.16), "object"),
    "fiducial": ({"PixelSpacing": [0.16, 0.16], "PixelSpacingCalibrationType": "FIDUCIAL"}, (0.16, 0.16), "calibrated"),
    "geometry": ({"PixelSpacing": [0.16, 0.16], "PixelSpacingCalibrationType": "GEOMETRY"}, (0.16, 0.16), "calibrated"),
    "magnified": (
        {"ImagerPixelSpacing": [0.2, 0.1], "EstimatedRadiographicMagnificationFactor": "1.25"},
        (0.16, 0.08),
        "object",
    ),
    "factor 1": (
        {"ImagerPixelSpacing": [0.2, 0.1], "EstimatedRadiographicMagnificationFactor": "1"},
        (0.2, 0.1),
        "detector",
    ),
    "placeholder": ({"PixelSpacing": ["1", "1"]}, None, "unknown"),
    "needle": ({"PixelSpacing": ["0.1", "1.2"]}, None, "unknown"),
    "scanned": ({"NominalScannedPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "detector"),
    "distances": (  # of DX: the source-to-patient distance ends at the table, not at the bone (C.8.11.5)
        {"ImagerPixelSpacing": [0.2, 0.1], "DistanceSourceToDetector": 1000, "DistanceSourceToPatient": 800},
        (0.2, 0.1),
        "detector",
    ),
    "distances of fluoroscopy": (
        {
            "SOPClassUID": XRayRadiofluoroscopicImageStorage,
            "ImagerPixelSpacing": [0.2, 0.1],
            "DistanceSourceToDetector": 1000,
            "DistanceSourceToPatient": 800,
        },
        (0.16, 0.08),
        "object",
    ),
    "implausible distances": (
        {
            "SOPClassUID": XRayRadiofluoroscopicImageStorage,
            "ImagerPixelSpacing": [0.2, 0.1],
            "DistanceSourceToDetector": 1000,
            "DistanceSourceToPatient": 0.8,
        },
        (0.2, 0.1),
        "detector",
    ),
    "zero, imager": ({"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0, 0]}, (0.2, 0.1), "detector"),
}


@pytest.mark.parametrize("name", SPACINGS)
def test_spacing(tmp_path: Path, name: str) -> None:
    tags, expected, kind = SPACINGS[name]
    spacing = read_film(save(tmp_path / "film.dcm", film(ramp(), **tags)), 30).frame.spacing
    assert spacing.kind == kind
    assert (math.isnan(spacing.row_mm) and math.isnan(spacing.col_mm)) if expected is None else True
    assert expected is None or (spacing.row_mm, spacing.col_mm) == pytest.approx(expected)


def test_spacing_placeholder_on_a_large_film(tmp_path: Path) -> None:
    large = film(np.zeros((2600, 8), np.uint8), PixelSpacing=["1", "1"])
    assert read_film(save(tmp_path / "film.dcm", large), 64).frame.spacing.kind == "unknown"


def test_pixels_that_are_not_square_keep_their_millimetres(tmp_path: Path) -> None:
    """A round ball on a film with pixels twice as high as wide is round in the picture, and as large in millimetres."""
    y, x = np.mgrid[:100, :160]
    ball = (((y - 40) * 0.4) ** 2 + ((x - 90) * 0.2) ** 2 <= 10**2) * np.uint16(4000)  # radius 10 mm
    found = read_film(save(tmp_path / "ball.dcm", film(ball, ImagerPixelSpacing=[0.4, 0.2], **WHOLE)), 200)
    assert found.frame.inner == (200, 160)
    np.testing.assert_allclose(found.frame.array_spacing_mm(), 0.2)
    rows, cols = np.nonzero(found.image > 127)
    np.testing.assert_allclose(found.frame.to_array(np.array([90, 40])), [cols.mean(), rows.mean()], atol=0.5)
    assert abs(np.ptp(rows) - 100) <= 2 >= abs(np.ptp(cols) - 100)
    across = np.array([[70, 40], [110, 40]]), np.array([[90, 30], [90, 50]])
    for ends in across:
        in_film = np.hypot(*(np.diff(ends, axis=0)[0] * [0.2, 0.4]))
        in_array = np.hypot(*(np.diff(found.frame.to_array(ends), axis=0)[0] * found.frame.array_spacing_mm()))
        np.testing.assert_allclose(in_array, in_film)


@pytest.mark.parametrize(
    ("tags", "aspect"),
    [
        ({}, 1.0),
        ({"PixelAspectRatio": [2, 1]}, 2.0),
        ({"PixelAspectRatio": [1, 0]}, 1.0),
        ({"PixelAspectRatio": [1, 90]}, 1.0),
        ({"PixelAspectRatio": [3, 1], "PixelSpacing": [0.1, 0.2]}, 0.5),
        ({"PixelSpacing": [0.143, 0.1431]}, 1.0),
    ],
)
def test_pixel_aspect(tags: dict, aspect: float) -> None:
    dataset = film(ramp(), **tags)
    assert read_pixel_aspect(dataset, read_spacing(dataset)) == aspect


sides = st.integers(1, 5000)
coordinates = st.floats(-100, 6000)


@given(sides, sides, st.integers(16, 1024), coordinates, coordinates, st.floats(0.25, 4))
def test_frame_maps_there_and_back(rows: int, cols: int, size_px: int, x: float, y: float, aspect: float) -> None:
    frame = Frame(rows, cols, size_px, pixel_aspect=aspect)
    assert max(frame.inner) == size_px
    np.testing.assert_allclose(frame.to_film(frame.to_array(np.array([x, y]))), [x, y], rtol=0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(90, 400), st.integers(90, 400), st.integers(48, 500), st.floats(0.3, 0.7), st.floats(0.3, 0.7))
def test_a_dot_is_found_where_the_frame_says(
    tmp_path_factory: pytest.TempPathFactory, rows: int, cols: int, size_px: int, u: float, v: float
) -> None:
    x, y = round(u * cols), round(v * rows)
    values = np.zeros((rows, cols), np.uint16)
    values[y - 8 : y + 9, x - 8 : x + 9] = 4000
    path = tmp_path_factory.getbasetemp() / "dot.dcm"
    found = read_film(save(path, film(values, WindowCenter=2000, WindowWidth=4000)), size_px)
    weight = found.image.astype(float)
    centre = [(weight * axis).sum() / weight.sum() for axis in np.mgrid[:size_px, :size_px][::-1]]
    np.testing.assert_allclose(centre, found.frame.to_array(np.array([x, y])), atol=0.5)


def test_small_films_are_enlarged(tmp_path: Path) -> None:
    small = read_film(save(tmp_path / "film.dcm", film(ramp(30, 20, 255).astype(np.uint8))), 96)
    assert small.frame.inner == (96, 64)
    steps = np.diff(small.image[:, 16:80].astype(int), axis=1)
    assert steps.min() >= 0  # bilinear: no blocks, no overshoot
    assert steps.max() < 12


def test_bare_data_set_without_preamble(tmp_path: Path) -> None:
    for implicit in (True, False):
        dataset = film(ramp(), BitsStored=12)
        whole = read_film(save(tmp_path / "whole.dcm", dataset), 60)
        bare = Dataset({key: dataset[key] for key in list(dataset.keys())})
        bare.save_as(tmp_path / "bare.dcm", implicit_vr=implicit, little_endian=True)
        np.testing.assert_array_equal(read_film(tmp_path / "bare.dcm", 60).image, whole.image)


def test_only_a_pseudonym_leaves(tmp_path: Path) -> None:
    one = read_film(save(tmp_path / "1.dcm", film(ramp())), 30)
    same = read_film(save(tmp_path / "2.dcm", film(ramp() // 2, PatientID="SECRET-4711 ")), 30)
    other = read_film(save(tmp_path / "3.dcm", film(ramp(), PatientID="other")), 30)
    assert one.patient == same.patient != other.patient
    assert "SECRET" not in repr(one)
    assert [read_film(save(tmp_path / "4.dcm", film(ramp(), PatientID=v)), 30).patient for v in ("", " ")] == ["", ""]


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Each file that is no usable film, and words its error must have."""
    good = save(folder / "good.dcm", film(ramp())).read_bytes()
    cases: dict[str, tuple[bytes | Dataset, str]] = {
        "text": (b"hello, I am a text file\n" * 100, "not a DICOM file"),
        "empty": (b"", "is empty"),
        "zeros": (b"\0" * 1000, "not a DICOM file"),
        "truncated": (good[:-3000], "cut short"),
        "header only": (good[:300], "no image|cut short"),
        "no pixels": (film(ramp(), PixelData=None), "no pixel data"),
        "frames": (film(np.stack([ramp()] * 2).reshape(120, 44), NumberOfFrames=2, Rows=60), "2 frames"),
        "rgb": (film(ramp(), SamplesPerPixel=3, PhotometricInterpretation="RGB"), "cut short"),
        "samples": (film(ramp(), SamplesPerPixel=2), "MONOCHROME2 with 2 samples"),
        "name as colour": (film(ramp(), PhotometricInterpretation="DOE JANE"), "of an unknown kind"),
        "palette": (film(ramp(), PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR"),
        "no photometric": (film(ramp(), PhotometricInterpretation=None), "of no stated kind"),
        "32 bit": (film(ramp().astype(np.uint32)), "32 bits allocated"),
        "high bit": (film(ramp(), BitsStored=12, HighBit=3), "HighBit"),
        "no rows": (film(ramp(), Rows=0), "0 rows"),
        "huge": (film(ramp(), Rows=65000, Columns=65000), "65000 rows"),
        "slope": (film(ramp(), RescaleSlope=0, RescaleIntercept=0), "RescaleSlope is 0"),
        "short table": (film(ramp(), VOILUTSequence=lut(np.arange(99), 0, 33)), "lookup table"),
        "all padding": (film(np.zeros((60, 44), np.uint16), PixelPaddingValue=0), "padding"),
    }
    report = film(ramp(), SOPClassUID=BasicTextSRStorage, PixelData=None, Rows=None, Columns=None)
    cases["report"] = (report, "no image .*Basic Text SR")
    paths = {}
    for name, (content, words) in cases.items():
        path = folder / f"{name}.dcm"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save(path, content)
        paths[name] = (path, words)
    extended = save(folder / "extended.dcm", film(ramp(), BitsStored=12), next(iter(GDCM_SYNTAXES)))
    packed = save(folder / "packed.dcm", film(ramp(), BitsStored=12), list(GDCM_SYNTAXES)[3]).read_bytes()
    (folder / "cut jpeg.dcm").write_bytes(packed[:-200])
    paths["cut jpeg"] = (folder / "cut jpeg.dcm", "cut short|cannot be decoded")
    paths["extended"] = (extended, r"JPEG Extended \(Process 2 and 4\).*12-bit JPEG Extended is not supported")
    paths["folder"] = (folder, "is a folder")
    paths["absent"] = (folder / "absent.dcm", "No such file")
    return paths


def test_bad_files_say_what_and_how(tmp_path: Path) -> None:
    for name, (path, words) in bad_files(tmp_path / "bad films").items():
        with pytest.raises(UserError, match=words) as caught:
            read_film(path, 64)
        error = caught.value
        assert error.where == str(path), name
        assert len(error.remedy) > 10, name
        assert not re.search("Jane|JANE", str(error)), name
        assert "SECRET" not in str(error), name


def test_damage_is_an_error_or_a_film_never_a_crash(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every 97th truncation and 150 times four random bytes of a film: UserError or a picture of the right form."""
    rng = np.random.default_rng(0)
    path = tmp_path / "film.dcm"
    for syntax in (None, RLELossless, JPEG2000Lossless):
        dataset = film(ramp(), BitsStored=12, WindowCenter=2000, WindowWidth=3000)
        if syntax:
            dataset.compress(syntax)
        whole = save(path, dataset).read_bytes()
        damaged = [whole[:end] for end in range(0, len(whole), 97)]
        for _ in range(150):
            changed = bytearray(whole)
            for place in rng.integers(128, min(len(whole), 1100), 4):
                changed[place] = rng.integers(256)
            damaged.append(bytes(changed))
        for content in damaged:
            path.write_bytes(content)
            with contextlib.suppress(UserError):
                assert read_film(path, 32).image.shape == (32, 32)
    assert capfd.readouterr().out == ""


def test_a_decoder_that_dies_does_not_take_us_with_it(tmp_path: Path) -> None:
    """gdcm 3.2 ends its process (signals 6 and 11) on these one-byte changes of a JPEG lossless header."""
    path = save(tmp_path / "film.dcm", film(ramp(), BitsStored=12), JPEGLosslessSV1)
    whole = path.read_bytes()
    start = whole.index(b"\xff\xd8\xff\xc3")
    for place in (6, 15):
        changed = bytearray(whole)
        changed[start + place] ^= 0x5A
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"JPEG Lossless.*cannot be decoded"):
            read_film(path, 32)


MOST_BYTES, MOST_ELEMENTS, MOST_READS = 2**24, 2000, 10_000


def hostile_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that go beyond each limit, here lowered to MOST_BYTES, and words of their refusal."""
    bomb = film(ramp())
    bomb.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(folder / "deflated.dcm", bomb)
    head = 144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = b"".join(squeeze.compress(bytes(2**24)) for _ in range(MOST_BYTES // 2**24 + 1)) + squeeze.flush()
    path.write_bytes(path.read_bytes()[:head] + zeros)
    found = {"deflated": (path, "inflates to more than 16 MiB")}
    large = film(ramp(), BitsStored=12)
    large.compress(JPEG2000Lossless)
    stream = bytearray(get_frame(large.PixelData, 0, number_of_frames=1))
    for place in (8, 12, 24, 28):  # the picture and its tile (SIZ marker)
        stream[place : place + 4] = (60000).to_bytes(4)
    large.PixelData = encapsulate([bytes(stream)])
    found["j2k"] = (save(folder / "j2k.dcm", large), "60000 x 60000 pixels .* the header says 60 x 44")
    runs = film(ramp(), BitsStored=12)
    runs.compress(RLELossless)
    segment = b"\x81\0" * 10**5
    header = b"".join(value.to_bytes(4, "little") for value in (2, 64, 64 + len(segment), *[0] * 13))
    runs.PixelData = encapsulate([header + segment + segment])
    found["rle"] = (save(folder / "rle.dcm", runs), "RLE stream is longer")
    path = folder / "many.dcm"
    whole = save(path, film(ramp())).read_bytes()
    elements = (b"\x11\0" + (0x1000 + i).to_bytes(2, "little") + b"LO\0\0" for i in range(MOST_ELEMENTS))
    path.write_bytes(whole[: whole.index(b"\x10\0\x10\0PN")] + b"".join(elements))
    found["many"] = (path, "more than 2000 elements")
    path = folder / "zeros.dcm"
    path.write_bytes(whole[:132] + bytes(200_000))
    found["zeros"] = (path, "more than 2000 elements")
    path = folder / "zeros without preamble.dcm"
    path.write_bytes(bytes(200_000))
    found["bare zeros"] = (path, "not a DICOM file")
    path = folder / "long.dcm"
    with path.open("wb") as sparse:
        sparse.truncate(MOST_BYTES + 1)
    found["long"] = (path, "16 MiB, more than any film")
    return found


def test_hostile_files_are_refused_before_they_cost_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOST_BYTES", "MOST_ELEMENTS", "MOST_READS"):
        assert getattr(dicom_file, name) > globals()[name]
        monkeypatch.setattr(dicom_file, name, globals()[name])
    for path, words in hostile_files(tmp_path).values():
        tracemalloc.start()
        with pytest.raises(UserError, match=words):
            read_film(path, 32)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10e6, path.name


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless, "1.2.840.10008.1.2.4.80"])
def test_a_stream_says_what_it_holds(tmp_path: Path, syntax: str) -> None:
    """Size and bits in the codestream's own header; a stream cut anywhere behind it is refused, not half shown."""
    dataset = film(ramp(61, 44), BitsStored=12)
    if syntax == JPEG2000Lossless:
        dataset.compress(syntax)
        path = save(tmp_path / "film.dcm", dataset)
    else:
        path = save(tmp_path / "film.dcm", dataset, syntax)
    stream = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    rows, cols, bits, samples = require_match(stream, 61, 44, 1)
    assert (rows, cols, samples) == (61, 44, 1)
    assert bits in (12, 16)  # gdcm declares those allocated
    with pytest.raises(Refusal, match="61 x 44 pixels of 1 samples, the header says 44 x 61"):
        require_match(stream, 44, 61, 1)
    for end in range(200, len(stream.rstrip(b"\0")) - 2, 50):
        with pytest.raises(Refusal, match="no end"):
            require_match(stream[:end], 61, 44, 1)
    assert require_match(b"nothing known", 61, 44, 1) is None


def test_png_is_grey_without_text_and_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    path = tmp_path / "a folder" / "film.png"
    write_png(path, image)
    content = path.read_bytes()
    assert set(re.findall(rb"IHDR|IDAT|IEND|tEXt|zTXt|iTXt|eXIf|tIME|pHYs", content)) == {b"IHDR", b"IDAT", b"IEND"}
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), image)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_png(path, 255 - image)
    assert [p.name for p in path.parent.iterdir()] == ["film.png"]
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match="uint8"):
        write_png(path, image[None])


def test_convert_a_folder(tmp_path: Path) -> None:
    source, out = tmp_path / "my films", tmp_path / "out dir"
    bad = bad_files(source)
    spaced = film(ramp(80, 40), PixelSpacing=["0.2", "0.2"])
    second = save(source / "sub" / "Doe_Jane.dcm", spaced)
    for junk in ("annotations.json", ".DS_Store", "DICOMDIR", ".hidden/x.dcm"):
        (source / junk).parent.mkdir(exist_ok=True)
        (source / junk).write_text("{}")
    seen: list[tuple[int, int]] = []
    written, problems = convert(source, out, 64, lambda done, total, text: seen.append((done, total)))
    expected_bad = {str(path) for name, (path, _) in bad.items() if name not in ("folder", "absent")}
    assert {problem.where for problem in problems} == expected_bad
    assert len(written) == 3  # good.dcm, packed.dcm and the one below
    assert [path.name for path in written] == ["film_0001.png", "film_0002.png", "film_0003.png"]
    assert seen[-1] == (len(seen), len(seen)) == (len(expected_bad) + 3,) * 2
    everything = b"".join(path.read_bytes() for path in out.iterdir())
    assert not re.search(rb"Doe|Jane|SECRET|4711|my films", everything)
    rows = list(csv.DictReader((out / "frames.csv").read_text().splitlines()))
    row = next(row for row in rows if row["source_sha256"] == hashlib.sha256(second.read_bytes()).hexdigest())
    assert (row["rows"], row["cols"], row["row_mm"], row["kind"]) == ("80", "40", "0.2", "detector")
    frame = Frame(80, 40, 64)
    x = (10 + 0.5) * float(row["scale_x"]) - 0.5 + int(row["left"])
    y = (70 + 0.5) * float(row["scale_y"]) - 0.5 + int(row["top"])
    np.testing.assert_allclose(frame.to_array(np.array([10, 70])), [x, y])


def test_convert_reports_each_file_and_keeps_warnings(tmp_path: Path) -> None:
    """One line a file, in the order of the files; what a person must check is in frames.csv as well."""
    source = tmp_path / "in"
    save(source / "b.dcm", film(ramp(), BurnedInAnnotation="YES", LossyImageCompression="01", **WHOLE))
    save(source / "sub" / "a\u202egpj.dcm", film(ramp(), ImagerPixelSpacing=[0.143, 0.143], BitsStored=12, **WHOLE))
    (source / "c.dcm").write_text("text")
    lines: list[str] = []
    convert(source, tmp_path / "out", 64, report=lines.append)
    assert len(lines) == 3
    assert lines[0].startswith("b.dcm -> film_0001.png  60 x 44, 16 bit MONOCHROME2, uncompressed (lossy), window LI")
    assert lines[1] == "c.dcm: refused, it is not a DICOM file. Give DICOM films (.dcm); " + (
        "convert other pictures to DICOM first"
    )
    facts = "60 x 44, 12 bit MONOCHROME2, uncompressed, window LINEAR, 0.143 mm detector"
    assert lines[2] == f"{Path('sub') / 'a'}\\u202egpj.dcm -> film_0002.png  {facts}"
    rows = list(csv.DictReader((tmp_path / "out" / "frames.csv").read_text().splitlines()))
    assert [bool(row["warnings"]) for row in rows] == [True, False]
    assert "BurnedInAnnotation" in rows[0]["warnings"]


def test_names_are_printable() -> None:
    assert printable("knee 1 é.dcm") == "knee 1 é.dcm"
    assert printable("a\x1b[2J\n\r\x07\u2028\udcffb") == r"a\x1b[2J\n\r\x07\u2028\udcffb"


def test_read_stored_gives_header_and_pixels(tmp_path: Path) -> None:
    dataset, stored = read_stored(save(tmp_path / "film.dcm", film(ramp() | 0xA000, BitsStored=12)))
    np.testing.assert_array_equal(stored, ramp())
    assert dataset.BitsStored == 12
    with pytest.raises(UserError, match="No such file"):
        read_stored(tmp_path / "absent.dcm")


def test_convert_one_file_twice_and_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "in" / "film.dcm", film(ramp()))
    first = convert(path, tmp_path / "out")[0][0].read_bytes()
    assert convert(tmp_path, tmp_path / "out")[0][0].read_bytes() == first  # its own output is no input
    assert cv2.imread(str(tmp_path / "out" / "film_0001.png"), cv2.IMREAD_UNCHANGED).shape == (512, 512)
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "absent"):
        with pytest.raises(UserError, match=r"no films|no such"):
            convert(tmp_path / nothing, tmp_path / "out")
