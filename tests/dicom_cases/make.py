"""Writes the conformance films beside this file: ``python -m tests.dicom_cases.make``.

Each film is small and has one thing about it that readers get wrong. What it must look like is worked out here from
the pixels that went in, or by pydicom's own functions at full resolution, never by fedbone. README.md lists the cases.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    generate_uid,
)

from tests.dicom_cases import GDCM_SYNTAXES, film, lut, save

HERE = Path(__file__).parent
SIZE_PX = 96  # the side that the films are read at: their own longer side, so that no pixel is averaged
KNEE = cv2.imread(str(HERE / "knee.png"), cv2.IMREAD_UNCHANGED)  # (96, 72) 12 bit, bone bright, a simulated film
MIDDLE = {"WindowCenter": 2048, "WindowWidth": 4096}
RAW = {"SOPClassUID": DigitalXRayImageStorageForProcessing, "PresentationIntentType": "FOR PROCESSING"}
EXTENDED, LOSSLESS, LOSSLESS_1, LS, RLE = GDCM_SYNTAXES


@dataclass(frozen=True)
class Case:
    """special: what is unusual; dataset or bytes; expected: grey (96, 96) in 0..255, or words of the error (a pattern).

    warning: words of the warning the reader must give, '' for none; tolerance: grey levels, more than rounding only for
    lossy coding; syntax: coded by gdcm; write: how the file is written where not as usual.
    """

    special: str
    content: Dataset | bytes
    expected: np.ndarray | str | None = None
    warning: str = ""
    tolerance: float = 0.51
    syntax: str | None = None
    write: Callable[[Path, Dataset], object] | None = None


def by_pydicom(dataset: Dataset) -> np.ndarray:
    """Grey (rows, cols) float in 0..255: pydicom's modality and VOI steps, over their own output range."""
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(float)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    if dataset.get("VOILUTSequence"):
        low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif dataset.get("ModalityLUTSequence"):
        low, high = 0, 2 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    else:
        span, signed = 2**dataset.BitsStored, dataset.PixelRepresentation
        low, high = ((end - signed * span // 2) * slope + intercept for end in (0, span - 1))
    grey = (values - low) / (high - low) * 255
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Grey 0..255: ``low`` black, ``high`` white."""
    return np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255


def linear(values: np.ndarray, centre: float = 2048, width: float = 4096) -> np.ndarray:
    """Grey 0..255 by the formula of PS3.3 C.11.2.1.2.1, as it is printed there."""
    values = values.astype(float)
    grey = ((values - (centre - 0.5)) / (width - 1) + 0.5) * 255
    grey[values <= centre - 0.5 - (width - 1) / 2] = 0
    grey[values > centre - 0.5 + (width - 1) / 2] = 255
    return grey


def content_range(values: np.ndarray, content: np.ndarray | None = None) -> np.ndarray:
    """Grey 0..255 between the 0.5th and the 99.5th percentile of ``content``."""
    content = values if content is None else content
    return between(values, *np.percentile(content, (0.5, 99.5), method="nearest"))


def knee(values: np.ndarray = KNEE, **tags: object) -> Dataset:
    """A 12-bit DX film of the knee with a window over all of it; tags as for ``film``."""
    return film(values, **{"BitsStored": 12, **MIDDLE, **tags})


def square(grey: np.ndarray) -> np.ndarray:
    """uint8 (96, 96): the film in the middle of black."""
    rows, cols = grey.shape
    picture = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    top, left = (SIZE_PX - rows) // 2, (SIZE_PX - cols) // 2
    picture[top : top + rows, left : left + cols] = np.rint(np.clip(grey, 0, 255))
    return picture


def bits() -> dict[str, Case]:
    """Pixel formats: everything is read, the grey follows the window."""
    cases = {}
    for name, count, dtype, low in (
        ("bits_8", 8, np.uint8, 0), ("bits_8_in_16", 8, np.uint16, 0), ("bits_10", 10, np.uint16, 0),
        ("bits_12", 12, np.uint16, 0), ("bits_15", 15, np.uint16, 0), ("bits_16", 16, np.uint16, 0),
        ("signed_8", 8, np.int8, -128), ("signed_12", 12, np.int16, -2048), ("signed_16", 16, np.int16, -32768),
    ):  # fmt: skip
        values = (np.rint(KNEE / 4095 * (2**count - 1)) + low).astype(dtype)
        window = {"WindowCenter": low + 2 ** (count - 1), "WindowWidth": 2**count * 0.75}
        cases[name] = Case(f"{count} bits stored in {values.dtype.itemsize * 8}, {dtype.__name__}",
                           film(values, BitsStored=count, **window))  # fmt: skip
    cases["high_bit_15"] = Case("12 bits at the top of 16, noise below", knee(KNEE << 4 | 9, HighBit=15), linear(KNEE))
    cases["overlay_bits"] = Case("a retired overlay in the bits above the 12", knee(KNEE | 0xA000), linear(KNEE))
    plane = knee()
    plane.add_new(0x60000010, "US", KNEE.shape[0])
    plane.add_new(0x60000011, "US", KNEE.shape[1])
    plane.add_new(0x60000040, "CS", "G")
    plane.add_new(0x60000050, "SS", [1, 1])
    plane.add_new(0x60000100, "US", 1)
    plane.add_new(0x60000102, "US", 0)
    plane.add_new(0x60003000, "OW", b"\xff" * (KNEE.size // 8))
    cases["overlay_plane"] = Case("an overlay plane (60xx), which may hold text: never drawn", plane, linear(KNEE))
    cases["bits_32"] = Case("32-bit integers", knee(KNEE.astype(np.uint32), BitsStored=32), "32 bits allocated")
    floats = knee(PixelData=None, BitsAllocated=32)
    floats.FloatPixelData = KNEE.astype("<f4").tobytes()
    cases["float"] = Case("FloatPixelData", floats, "floating point")
    return cases


def _big(path: Path, dataset: Dataset) -> None:
    dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.save_as(path, enforce_file_format=True)


def _in(syntax: str) -> Callable[[Path, Dataset], None]:
    def write(path: Path, dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path, enforce_file_format=True)

    return write


def _bare(implicit: bool) -> Callable[[Path, Dataset], None]:
    def write(path: Path, dataset: Dataset) -> None:
        bare = Dataset({element.tag: element for element in dataset})
        bare.save_as(path, implicit_vr=implicit, little_endian=True)

    return write


def _packed(syntax: str, **options: object) -> Callable[[Path, Dataset], None]:
    def write(path: Path, dataset: Dataset) -> None:
        dataset.compress(syntax, generate_instance_uid=False, **options)
        dataset.save_as(path, enforce_file_format=True)

    return write


def _jpeg(mode: str, dataset: Dataset, pixels: np.ndarray) -> Dataset:
    """``dataset`` with ``pixels`` as 8-bit baseline JPEG, by Pillow."""
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, "JPEG", quality=95, subsampling=0)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData, dataset["PixelData"].is_undefined_length = encapsulate([stream.getvalue()]), True
    dataset["PixelData"].VR = "OB"
    dataset.LossyImageCompression = "01"
    return dataset


def coding() -> dict[str, Case]:
    """Transfer syntaxes: lossless ones give back every pixel; what cannot be decoded says so."""
    eight = (KNEE >> 4).astype(np.uint8)
    whole = {"WindowCenter": 128, "WindowWidth": 256}
    cases = {
        "big_endian": Case("Explicit VR Big Endian (retired)", knee(), linear(KNEE), write=_big),
        "implicit": Case("Implicit VR Little Endian", knee(), linear(KNEE), write=_in(ImplicitVRLittleEndian)),
        "bare_implicit": Case("no preamble, no file meta, implicit VR", knee(), linear(KNEE), write=_bare(True)),
        "bare_explicit": Case("no preamble, no file meta, explicit VR", knee(), linear(KNEE), write=_bare(False)),
        "deflated": Case("Deflated Explicit VR", knee(), linear(KNEE), write=_in(DeflatedExplicitVRLittleEndian)),
        "rle": Case("RLE Lossless", knee(), linear(KNEE), syntax=RLE),
        "jpeg_lossless": Case("JPEG Lossless, process 14", knee(), linear(KNEE), syntax=LOSSLESS),
        "jpeg_lossless_sv1": Case("JPEG Lossless, first order", knee(), linear(KNEE), syntax=LOSSLESS_1),
        "jpeg_ls": Case("JPEG-LS lossless", knee(), linear(KNEE), syntax=LS),
        "jpeg_ls_signed": Case(
            "JPEG-LS lossless, signed pixels", knee((KNEE.astype(int) - 2048).astype(np.int16), WindowCenter=0),
            linear(KNEE), syntax=LS,
        ),
        "j2k_lossless": Case("JPEG 2000 lossless", knee(), linear(KNEE), write=_packed(JPEG2000Lossless)),
        "j2k_lossy": Case(
            "JPEG 2000 at 8:1", knee(LossyImageCompression="01"), linear(KNEE), tolerance=8,
            write=_packed(JPEG2000, j2k_cr=[8]),
        ),
        "jpeg_baseline": Case(
            "JPEG baseline, 8 bits", _jpeg("L", film(eight, **whole), eight), eight.astype(float), tolerance=8
        ),
        "jpeg_extended_12": Case("JPEG Extended, 12 bits: no decoder", knee(), "12-bit JPEG Extended", write=_extended),
    }  # fmt: skip
    wrong = knee()
    _packed(JPEG2000Lossless)(HERE / "wrong.tmp", wrong)
    (HERE / "wrong.tmp").unlink()
    wrong.Rows = 48
    cases["j2k_other_size"] = Case("a JPEG 2000 picture larger than the header says", wrong, "the header says 48 x 72")
    return cases


def _cut_file(path: Path, dataset: Dataset) -> None:
    dataset.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes()[:-4000])


def _cut_stream(path: Path, dataset: Dataset) -> None:
    """The archive's connection broke while the picture was sent; the file around it is whole."""
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    stream = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([stream[: len(stream) // 2 // 2 * 2]])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)


def _extended(path: Path, dataset: Dataset) -> None:
    """gdcm's stream with the 12 bits that its frame header (SOF) ought to declare."""
    content = bytearray(save(path, dataset, EXTENDED).read_bytes())
    content[content.index(b"\xff\xc1") + 4] = 12
    path.write_bytes(content)


def objects() -> dict[str, Case]:
    """What is no single film, or not all of one."""
    report = Dataset()
    report.update(knee(PixelData=None, Rows=None, Columns=None, SOPClassUID=BasicTextSRStorage))
    report.file_meta = knee().file_meta
    rgb = np.repeat((KNEE >> 4).astype(np.uint8)[..., None], 3, axis=2)
    tinted = rgb.copy()
    tinted[20:30, 20:40, 0] = 255
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    ybr = {**colour, "PhotometricInterpretation": "YBR_FULL"}
    palette = film((KNEE >> 4).astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    enhanced = knee(WindowCenter=None, WindowWidth=None, NumberOfFrames=1)
    group, window, measures = Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 1500, 1500
    measures.PixelSpacing = [0.2, 0.2]
    group.FrameVOILUTSequence, group.PixelMeasuresSequence = Sequence([window]), Sequence([measures])
    enhanced.SharedFunctionalGroupsSequence = Sequence([group])
    twice = np.concatenate([KNEE, KNEE])
    copy = "a colour copy"
    return {
        "truncated": Case("the file ends inside the pixels", knee(), "cut short", write=_cut_file),
        "truncated_j2k": Case("a JPEG 2000 picture without its end", knee(), "cut short", write=_cut_stream),
        "multi_frame": Case("two frames", knee(twice, NumberOfFrames=2, Rows=96), "2 frames"),
        "enhanced_one_frame": Case(
            "one frame, window and spacing in functional groups", enhanced, linear(KNEE, 1500, 1500)
        ),
        "report": Case("a structured report", report, "no image .*Basic Text SR"),
        "no_pixel_data": Case("a header without pixels", knee(PixelData=None), "no pixel data"),
        "not_dicom": Case("a text file named .dcm", b"Please send the knees by Friday.\n" * 20, "not a DICOM file"),
        "rgb_grey": Case("RGB whose channels are equal", film(rgb, **colour), rgb[..., 0].astype(float), copy),
        "ybr_grey_jpeg": Case(
            "grey as a YBR_FULL JPEG", _jpeg("RGB", film(rgb, **ybr), rgb), rgb[..., 0].astype(float), copy, 8
        ),
        "rgb_tinted": Case("RGB with a red mark", film(tinted, **colour), "colour picture"),
        "palette": Case("PALETTE COLOR", palette, "PALETTE COLOR"),
        "burned_in": Case("BurnedInAnnotation YES", knee(BurnedInAnnotation="YES"), linear(KNEE), "BurnedInAnnotation"),
    }


def grey_chain() -> dict[str, Case]:
    """Modality and VOI steps."""
    root = lut(np.linspace(0, 1, 4096) ** 0.5 * 65535, 0, 16)
    two = Sequence([lut(np.linspace(0, 1, 2000) ** 2 * 1023, 1000, 10)[0], lut(np.linspace(1023, 0, 4096), 0, 10)[0]])
    table = np.linspace(0, 255, 1000).round().astype(np.uint8)
    packed = lut(table.view("<u2"), 1500, 8)
    packed[0].LUTDescriptor[0] = 1000
    by_table = table[np.clip(KNEE.astype(int) - 1500, 0, 999)].astype(float)
    off = "lies off the pixel values"
    sigmoid = 255 / (1 + np.exp(-4 * (KNEE.astype(float) - 2000) / 1500))
    names = {"WindowCenterWidthExplanation": ["BONE", "SOFT TISSUE"]}
    return {
        "rescale": Case("slope 0.25, intercept -24", knee(RescaleSlope="0.25", RescaleIntercept="-24",
                        WindowCenter=500, WindowWidth=900)),
        "rescale_falling": Case("a negative slope turns the values round", knee(RescaleSlope="-0.25",
                        RescaleIntercept="1024", WindowCenter=500, WindowWidth=900)),
        "rescale_zero": Case("slope 0", knee(RescaleSlope=0, RescaleIntercept=0), "RescaleSlope is 0"),
        "modality_lut": Case("Modality LUT of 16 bits, then a window",
                             knee(ModalityLUTSequence=root, WindowCenter=32000, WindowWidth=50000)),
        "voi_lut_two": Case("two VOI LUTs and a window: the first table counts", knee(VOILUTSequence=two)),
        "voi_lut_8_packed": Case("VOI LUT of 8 bits, two entries a word: pydicom cannot",
                                 knee(VOILUTSequence=packed), by_table),
        "voi_lut_8": Case("VOI LUT of 8 bits, 1000 entries: pydicom wraps at 256",
                          knee(VOILUTSequence=lut(table, 1500, 8)), by_table),
        "voi_lut_broken": Case("a table shorter than it says", knee(VOILUTSequence=lut(np.arange(99), 0, 33)),
                               "lookup table"),
        "sigmoid": Case("VOILUTFunction SIGMOID", knee(WindowCenter=2000, WindowWidth=1500, VOILUTFunction="SIGMOID"),
                        sigmoid),
        "linear_exact": Case("VOILUTFunction LINEAR_EXACT, a narrow window", knee(WindowCenter=2000, WindowWidth=20,
                             VOILUTFunction="LINEAR_EXACT"), between(KNEE, 1990, 2010)),
        "several_windows": Case("two windows with names: the first counts",
                                knee(WindowCenter=[2800, 1500], WindowWidth=[2400, 900], **names),
                                linear(KNEE, 2800, 2400)),
        "fractional_window": Case("centre 1999.75, width 1000.5", knee(WindowCenter="1999.75", WindowWidth="1000.5")),
        "one_value_window": Case("width 1: a step", knee(WindowCenter=2000, WindowWidth=1), (KNEE > 1999.5) * 255.0),
        "no_window": Case("no window at all", knee(WindowCenter=None, WindowWidth=None), content_range(KNEE)),
        "empty_window": Case("window elements without values", knee(WindowCenter="", WindowWidth=""),
                             content_range(KNEE)),
        "window_off_data": Case("a window above every pixel", knee(WindowCenter=20000, WindowWidth=100),
                                content_range(KNEE), off),
        "second_window": Case("the first window lies off the pixels, the second does not",
                              knee(WindowCenter=[20000, 2000], WindowWidth=[100, 3000]), linear(KNEE, 2000, 3000), off),
    }  # fmt: skip


def polarity() -> dict[str, Case]:
    """Bone must be bright: stored values that fall with thickness for MONOCHROME1 and for a raw detector."""
    upside = (4095 - KNEE).astype(np.uint16)
    beam = np.rint(4000 * np.exp(KNEE / -1200.0)).astype(np.uint16)  # Beer-Lambert: little beam behind bone
    none = {"WindowCenter": None, "WindowWidth": None}
    log = np.log(np.maximum(beam, 1.0))
    by_sign = "polarity by PixelIntensityRelationshipSign"
    lin = {**RAW, **none, "PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": 1}
    return {
        "monochrome1": Case("MONOCHROME1", knee(upside, PhotometricInterpretation="MONOCHROME1"), 255 - linear(upside)),
        "monochrome1_inverse": Case(
            "MONOCHROME1 and PresentationLUTShape INVERSE: one inversion, not two",
            knee(upside, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"), 255 - linear(upside),
        ),
        "monochrome2_inverse": Case(
            "MONOCHROME2 and INVERSE contradict each other", knee(upside, PresentationLUTShape="INVERSE"),
            255 - linear(upside), "contradicts",
        ),
        "processing_lin": Case(
            "FOR PROCESSING, counts of the beam, no window: logarithm, inverted by the sign", knee(beam, **lin),
            255 - content_range(log), by_sign,
        ),
        "processing_log": Case(
            "FOR PROCESSING, logarithm of the beam, MONOCHROME1 against the sign",
            knee(KNEE, **{**lin, "PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": -1},
                 PhotometricInterpretation="MONOCHROME1"),
            content_range(KNEE), by_sign + " against MONOCHROME1",
        ),
        "processing_unsigned": Case(
            "FOR PROCESSING without a sign: MONOCHROME1 decides",
            knee(upside, **RAW, **none, PhotometricInterpretation="MONOCHROME1"), 255 - content_range(upside),
            "by MONOCHROME1 alone",
        ),
    }  # fmt: skip


def geometry() -> dict[str, Case]:
    """Padding, shutters, and pixels that are not square."""
    border = KNEE.astype(np.int16)
    border[:, :10], border[:, 62:] = -2000, -1990
    inside = np.zeros(KNEE.shape, bool)
    inside[:, 10:62] = True
    padded = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990, "WindowCenter": None, "WindowWidth": None}
    row, col = np.mgrid[1:97, 1:73]
    edges = {"ShutterLeftVerticalEdge": 11, "ShutterRightVerticalEdge": 60, "ShutterUpperHorizontalEdge": 6,
             "ShutterLowerHorizontalEdge": 90}  # fmt: skip
    corners = [6, 11, 6, 60, 90, 60, 90, 11]
    box = (col >= 11) & (col <= 60) & (row >= 6) & (row <= 90)
    circle = (row - 48) ** 2 + (col - 36) ** 2 <= 30**2
    half = KNEE[::2]
    tall = np.stack([np.interp((np.arange(96) + 0.5) / 2 - 0.5, np.arange(48), half[:, x]) for x in range(72)], axis=1)
    upside = (4095 - KNEE).astype(np.uint16)
    cases = {
        "padding_range": Case("PixelPaddingValue to PixelPaddingRangeLimit, no window", film(border, **padded),
                              np.where(inside, content_range(border, border[inside]), 0)),
        "padding_monochrome1": Case(
            "padding in MONOCHROME1 is black too", knee(np.where(inside, upside, 0).astype(np.uint16),
            PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1"), np.where(inside, 255 - linear(upside), 0)),
        "padding_wrong_sign": Case("signed padding -2000 written as 63536", film(border, **{**MIDDLE, **padded,
                                   "PixelPaddingRangeLimit": 63546, "PixelPaddingValue": 63536}),
                                   np.where(inside, content_range(border, border[inside]), 0)),
        "all_padding": Case("nothing but padding", film(np.zeros((96, 72), np.uint16), PixelPaddingValue=0), "padding"),
        "shutter_rectangular": Case("rectangular display shutter", knee(ShutterShape="RECTANGULAR", **edges),
                                    np.where(box, linear(KNEE), 0)),
        "shutter_circular": Case("circular display shutter", knee(ShutterShape="CIRCULAR", CenterOfCircularShutter=
                                 [48, 36], RadiusOfCircularShutter=30), np.where(circle, linear(KNEE), 0)),
        "shutter_polygonal": Case("polygonal display shutter", knee(ShutterShape="POLYGONAL",
                                  VerticesOfThePolygonalShutter=corners), np.where(box, linear(KNEE), 0)),
        "shutter_monochrome1": Case(
            "two shutter shapes at once, MONOCHROME1", knee(upside, PhotometricInterpretation="MONOCHROME1",
            ShutterShape=["RECTANGULAR", "CIRCULAR"], CenterOfCircularShutter=[48, 36], RadiusOfCircularShutter=30,
            **edges), np.where(box & circle, 255 - linear(upside), 0)),
        "anisotropic": Case("pixels twice as high as wide, by ImagerPixelSpacing", knee(half, ImagerPixelSpacing=
                            [0.4, 0.2]), linear(tall)),
        "pixel_aspect": Case("pixels twice as high as wide, by PixelAspectRatio", knee(half, PixelAspectRatio=[2, 1]),
                             linear(tall)),
    }  # fmt: skip
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        cases["padding_range"].content[keyword].VR = "SS"
        cases["padding_wrong_sign"].content[keyword].VR = "US"
    return cases


def all_cases() -> dict[str, Case]:
    """Every case by the name of its file."""
    return {**bits(), **coding(), **objects(), **grey_chain(), **polarity(), **geometry()}


def write(folder: Path) -> None:
    """NAME.dcm, NAME.png where a picture is expected, cases.json for the test, and the table in README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    facts, lines = {}, []
    for name, case in all_cases().items():
        path = folder / f"{name}.dcm"
        if isinstance(case.content, bytes):
            path.write_bytes(case.content)
        else:
            case.content.SOPInstanceUID = generate_uid(entropy_srcs=[name])
            case.write(path, case.content) if case.write else save(path, case.content, case.syntax)
        fact = {"tolerance": case.tolerance, "warning": case.warning}
        if isinstance(case.expected, str):
            fact, shown = {"error": case.expected}, "refused"
        else:
            source = "pydicom" if case.expected is None else "by hand"
            grey = by_pydicom(pydicom.dcmread(path)) if case.expected is None else case.expected
            cv2.imwrite(str(folder / f"{name}.png"), square(grey))
            shown = f"read ({source})" + (", warning" if case.warning else "")
        facts[name] = fact
        lines.append(f"| `{name}` | {case.special} | {shown} |")
    (folder / "cases.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(HEAD.format(count=len(facts)) + "\n".join(lines) + "\n")


HEAD = """# {count} small DICOM films that readers get wrong

Written by `python -m tests.dicom_cases.make`, which also works out what each must look like: `NAME.png` is the picture
of 96 x 96, by pydicom's own functions at full resolution or by hand from the pixels that went in, never by fedbone.
`cases.json` holds the tolerance in grey levels, the warning or the error; `tests/test_dicom.py` runs all of them.
The picture in them, `knee.png`, is a crop of a simulated film, bone bright in 12 bits. The patient is made up.

| film | what is special | expected |
|---|---|---|
"""

if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
