"""DICOM films in, 8-bit pictures and an invertible frame out; nothing that names the patient leaves this module.

Reads single-frame greyscale objects (CR, DX, RF and the like) of 8 to 16 bits, native, deflated, RLE, JPEG, JPEG-LS
and JPEG 2000. The table in tests/dicom_cases/README.md says what becomes of each unusual film.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from fedbone.errors import UserError
from fedbone.files import write_atomic
from fedbone.imaging.dicom_file import COLOUR, flatten, parse, require_film
from fedbone.imaging.frame import Frame
from fedbone.imaging.grey import to_grey
from fedbone.imaging.pixels import grey_of_colour, stored_values
from fedbone.imaging.refusal import AGAIN, Refusal
from fedbone.imaging.spacing import read_pixel_aspect, read_spacing

_KEY = secrets.token_bytes(32)  # pseudonyms group films within one run and cannot be looked up afterwards
CSV_COLUMNS = ["png", "source_sha256", "rows", "cols", "size_px"]
CSV_COLUMNS += ["scale_x", "scale_y", "left", "top", "row_mm", "col_mm", "kind", "warnings"]
CODINGS = {
    uid.DeflatedExplicitVRLittleEndian: "deflated",
    uid.RLELossless: "RLE",
    uid.JPEGBaseline8Bit: "JPEG baseline",
    uid.JPEGExtended12Bit: "JPEG Extended",
    uid.JPEGLossless: "JPEG lossless",
    uid.JPEGLosslessSV1: "JPEG lossless",
    uid.JPEGLSLossless: "JPEG-LS",
    uid.JPEGLSNearLossless: "JPEG-LS near-lossless",
    uid.JPEG2000Lossless: "JPEG 2000 lossless",
    uid.JPEG2000: "JPEG 2000",
}


@dataclass(frozen=True)
class Film:
    """One film: image uint8 (S, S), bone bright; its frame; patient: a pseudonym of this run, '' without PatientID.

    facts: size, bits, polarity, coding, view and spacing in words; warnings: what a person should check.
    """

    image: np.ndarray
    frame: Frame
    patient: str
    facts: str = ""
    warnings: tuple[str, ...] = ()


def read_film(path: Path, size_px: int) -> Film:
    """The film in a DICOM file as a picture of size_px x size_px, aspect kept and padded with black.

    Raises UserError, naming the file and the remedy, for whatever is not one readable greyscale film.
    """
    with _refusals_name(path) as caught:
        dataset, stored, notes = _read(Path(path), caught)
        spacing = read_spacing(dataset)
        frame = Frame(*stored.shape, size_px, spacing, read_pixel_aspect(dataset, spacing))
        grey = to_grey(stored, dataset, frame)
        facts = [f"{frame.rows} x {frame.cols}", f"{dataset.BitsStored} bit {dataset.PhotometricInterpretation}"]
        facts += [_coding(dataset), grey.view, _millimetres(frame)]
        patient = pseudonym(str(dataset.get("PatientID") or ""))
        return Film(grey.image, frame, patient, ", ".join(facts), (*notes, *grey.warnings))


def read_stored(path: Path) -> tuple[Dataset, np.ndarray]:
    """Header and stored values (rows, cols) of a DICOM film. Raises UserError as ``read_film`` does."""
    with _refusals_name(path) as caught:
        return _read(Path(path), caught)[:2]


@contextmanager
def _refusals_name(path: Path) -> Iterator[list[warnings.WarningMessage]]:
    """Whatever goes wrong inside becomes a UserError about ``path``; yields the list of pydicom's warnings."""
    with warnings.catch_warnings(record=True) as caught:  # pydicom warns of every odd value of a vendor
        warnings.simplefilter("always")
        try:
            yield caught
        except Refusal as refusal:
            raise UserError(path, refusal.problem, refusal.remedy) from None
        except Exception as error:  # a damaged header can make pydicom raise nearly anything
            problem = f"it is damaged, or no film that fedbone can interpret ({type(error).__name__})"
            raise UserError(path, problem, AGAIN) from None  # the cause may quote the patient's data


def _read(path: Path, caught: list[warnings.WarningMessage]) -> tuple[Dataset, np.ndarray, list[str]]:
    """Header, stored values, and what a person should check about them."""
    dataset = parse(path)
    require_film(dataset, cut_short=any("nd of" in str(warning.message) for warning in caught))
    flatten(dataset)
    notes = []
    if dataset.get("BurnedInAnnotation") == "YES":
        notes.append("BurnedInAnnotation is YES: names may be readable in the picture")
    stored = _decode(dataset)
    if dataset.PhotometricInterpretation in COLOUR:
        notes.append(f"a colour copy ({dataset.PhotometricInterpretation}) of a grey film: check its polarity")
        _present_as_stored(dataset)
    return dataset, stored, notes


def pseudonym(identity: str) -> str:
    """Keyed hash of a patient's identity, '' for an empty one; the key lives only as long as the process."""
    identity = identity.strip()
    return hmac.new(_KEY, identity.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:16] if identity else ""


def _decode(dataset: Dataset) -> np.ndarray:
    """Stored values (rows, cols), or a Refusal that names the transfer syntax."""
    try:
        return grey_of_colour(dataset) if dataset.PhotometricInterpretation in COLOUR else stored_values(dataset)
    except Refusal:
        raise
    except Exception as error:  # each decoder has its own exceptions
        syntax = dataset.file_meta.TransferSyntaxUID
        name = syntax.name if syntax.name != syntax else "an unknown transfer syntax"
        problem = f"its pixel data ({name}) cannot be decoded ({type(error).__name__})"
        raise Refusal(problem, "If it opens elsewhere, export it uncompressed or as JPEG 2000") from None


def _present_as_stored(dataset: Dataset) -> None:
    """Grey out of colour has been through a window already: 0 is black and 255 white."""
    for keyword in ("ModalityLUTSequence", "VOILUTSequence", "PresentationLUTShape", "RescaleSlope"):
        dataset.pop(keyword, None)
    dataset.PhotometricInterpretation, dataset.VOILUTFunction = "MONOCHROME2", "LINEAR"
    dataset.WindowCenter, dataset.WindowWidth, dataset.RescaleIntercept = 128, 256, 0


def _coding(dataset: Dataset) -> str:
    coding = CODINGS.get(dataset.file_meta.TransferSyntaxUID, "")
    if not coding:
        coding = "compressed" if dataset.file_meta.TransferSyntaxUID.is_compressed else "uncompressed"
    return coding + " (lossy)" * (dataset.get("LossyImageCompression") == "01")


def _millimetres(frame: Frame) -> str:
    mm = frame.spacing
    if mm.kind == "unknown":
        return "no millimetres"
    return (
        f"{mm.row_mm:.4g} mm {mm.kind}"
        if frame.pixel_aspect == 1
        else f"{mm.row_mm:.4g} x {mm.col_mm:.4g} mm {mm.kind}"
    )


def write_png(path: Path, image: np.ndarray) -> None:
    """Write uint8 (H, W) as an 8-bit greyscale PNG without any text (atomic)."""
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError(f"expected uint8 (H, W), got {image.dtype} {image.shape}")
    write_atomic(Path(path), cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes())


def convert(
    source: Path,
    out_dir: Path,
    size_px: int = 512,
    progress: Callable[[int, int, str], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> tuple[list[Path], list[UserError]]:
    """Write film_0001.png ... and frames.csv into ``out_dir``: the films of a DICOM file or of a folder, recursively.

    Names never come from the patient or the source; frames.csv ties a picture to its source by SHA-256 of the file and
    maps film pixels to it: x_png = (x_film + 0.5) * scale_x - 0.5 + left. ``report`` gets one line a file, with its
    name in ``source``. Files that cannot be read are returned as errors. Raises UserError where there is nothing to
    read.
    """
    source, say = Path(source), report or (lambda line: None)
    files = _candidates(source)
    written: list[Path] = []
    rows: list[list[object]] = []
    problems: list[UserError] = []
    for done, file in enumerate(files, start=1):
        name = printable(str(file.relative_to(source)) if file != source else file.name)
        try:
            film = read_film(file, size_px)
            target = Path(out_dir) / f"film_{len(written) + 1:04d}.png"
            write_png(target, film.image)
            rows.append(_csv_row(target.name, file, film))
            written.append(target)
            say("; ".join([f"{name} -> {target.name}  {film.facts}", *(f"warning: {w}" for w in film.warnings)]))
        except UserError as error:
            problems.append(error)
            say(f"{name}: refused, {printable(error.problem)}. {error.remedy}")
        if progress:
            progress(done, len(files), f"{len(written)} written")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([CSV_COLUMNS, *rows])
    write_atomic(Path(out_dir) / "frames.csv", text.getvalue().encode())
    return written, problems


def printable(name: str) -> str:
    """``name`` with control characters and undecodable bytes as escapes: a file name must not rule a screen."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _csv_row(name: str, file: Path, film: Film) -> list[object]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    frame, mm = film.frame, film.frame.spacing
    (rows, cols), (top, left) = frame.inner, frame.offset
    place = [frame.rows, frame.cols, frame.size_px, cols / frame.cols, rows / frame.rows, left, top]
    return [name, digest, *place, mm.row_mm, mm.col_mm, mm.kind, "; ".join(film.warnings)]


def _candidates(source: Path) -> list[Path]:
    """The files to try, sorted; hidden files, DICOMDIR, labels and earlier output are no films."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(source, "no such file or folder", "Give a DICOM file, or a folder with DICOM files")
    skipped = (".json", ".csv", ".png", ".safetensors")
    files = [
        file
        for file in sorted(source.rglob("*"))
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(source).parts)
        and file.name.upper() != "DICOMDIR"
        and file.suffix.lower() not in skipped
    ]
    if not files:
        raise UserError(source, "the folder holds no films", "Put DICOM files (.dcm) in it")
    return files
