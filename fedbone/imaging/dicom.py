"""DICOM films in, 8-bit pictures and an invertible frame out; nothing that names the patient leaves this module.

Reads single-frame greyscale objects (CR, DX, RF and the like) of 8 to 16 bits, native, deflated, RLE, JPEG, JPEG-LS
and JPEG 2000.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import secrets
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from fedbone.errors import UserError
from fedbone.files import write_atomic
from fedbone.imaging.frame import Frame
from fedbone.imaging.grey import to_grey
from fedbone.imaging.pixels import stored_values
from fedbone.imaging.spacing import number, read_spacing

MOST_PIXELS = 400_000_000  # ten times the largest detector: more is a damaged header, not a film
AGAIN = "Copy or export it again from its source"
_KEY = secrets.token_bytes(32)  # pseudonyms group films within one run and cannot be looked up afterwards
CSV_COLUMNS = ["png", "source_sha256", "rows", "cols", "size_px"]
CSV_COLUMNS += ["scale_x", "scale_y", "left", "top", "row_mm", "col_mm", "kind"]


@dataclass(frozen=True)
class Film:
    """One film: image uint8 (S, S), bone bright; its frame; patient: a pseudonym of this run, '' without PatientID."""

    image: np.ndarray
    frame: Frame
    patient: str


def read_film(path: Path, size_px: int) -> Film:
    """The film in a DICOM file as a picture of size_px x size_px, aspect kept and padded with black.

    Raises UserError, naming the file and the remedy, for whatever is not one readable greyscale film.
    """
    path = Path(path)
    with warnings.catch_warnings(record=True) as caught:  # pydicom warns of every odd value of a vendor
        warnings.simplefilter("always")
        try:
            return _read(path, size_px, caught)
        except UserError:
            raise
        except Exception as error:  # a damaged header or stream can make decoders raise nearly anything
            problem = f"it is damaged, or no film that fedbone can interpret ({type(error).__name__})"
            raise UserError(path, problem, AGAIN) from None  # the cause may quote the patient's data


def _read(path: Path, size_px: int, caught: list[warnings.WarningMessage]) -> Film:
    dataset = _parse(path)
    _require_film(path, dataset, cut_short=any("nd of" in str(warning.message) for warning in caught))
    stored = _decode(path, dataset)
    frame = Frame(*stored.shape, size_px, read_spacing(dataset))
    try:
        image = to_grey(stored, dataset, frame)
    except ValueError as error:
        remedy = "Export the film again, without its lookup tables if the system offers that"
        raise UserError(path, f"its grey values cannot be interpreted ({error})", remedy) from None
    return Film(image, frame, pseudonym(str(dataset.get("PatientID") or "")))


def pseudonym(identity: str) -> str:
    """Keyed hash of a patient's identity, '' for an empty one; the key lives only as long as the process."""
    identity = identity.strip()
    return hmac.new(_KEY, identity.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:16] if identity else ""


def _parse(path: Path) -> Dataset:
    if path.is_dir():
        raise UserError(path, "it is a folder, expected one DICOM file", "Name a file in it")
    try:
        if not path.stat().st_size:
            raise UserError(path, "the file is empty", AGAIN)
        return pydicom.dcmread(path)
    except InvalidDicomError:
        return _parse_bare(path)
    except OSError as error:
        raise UserError(path, f"it cannot be read ({error.strerror})", "Check the path and its permissions") from None


def _parse_bare(path: Path) -> Dataset:
    """A data set without preamble and file meta group, as old systems and raw network dumps leave it."""
    problem, remedy = "it is not a DICOM file", "Give DICOM films (.dcm); convert other pictures to DICOM first"
    try:
        dataset = pydicom.dcmread(path, force=True)
        is_image = all(keyword in dataset for keyword in ("SOPClassUID", "Rows", "Columns", "PixelData"))
    except Exception:  # forced reading of arbitrary bytes can fail in any way
        raise UserError(path, problem, remedy) from None
    if not is_image:
        raise UserError(path, problem, remedy)
    if "TransferSyntaxUID" not in getattr(dataset, "file_meta", {}):
        implicit, little = dataset.original_encoding
        dataset.file_meta = FileMetaDataset()
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _require_film(path: Path, dataset: Dataset, cut_short: bool) -> None:
    """Raise UserError unless the data set holds one greyscale frame of 8 or 16 bits a pixel."""
    meta_kind = getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID")
    kind = getattr(dataset.get("SOPClassUID") or meta_kind, "name", "unknown")
    frames, samples = number(dataset, "NumberOfFrames") or 1, number(dataset, "SamplesPerPixel") or 1
    colour = str(dataset.get("PhotometricInterpretation") or "missing")
    rows, cols = number(dataset, "Rows"), number(dataset, "Columns")
    allocated, stored = number(dataset, "BitsAllocated"), number(dataset, "BitsStored")
    high = number(dataset, "HighBit")
    problem = remedy = ""
    if cut_short and "PixelData" not in dataset:
        problem, remedy = "the file is cut short: it ends before the pixel data do", AGAIN
    elif "Rows" not in dataset and "PixelData" not in dataset:
        problem, remedy = f"it holds no image (DICOM object: {kind})", "Give the film itself"
    elif "PixelData" not in dataset:
        problem, remedy = "it has no pixel data", AGAIN
    elif frames > 1:
        problem, remedy = f"it has {frames:g} frames, expected a single film", "Export one frame as a film of its own"
    elif samples > 1 or colour not in ("MONOCHROME1", "MONOCHROME2"):
        problem = f"its pixels are {colour} with {samples:g} samples, expected MONOCHROME1 or MONOCHROME2"
        remedy = "Convert it to greyscale, or export the original film in place of a colour copy"
    elif not rows or not cols or rows * cols > MOST_PIXELS:
        problem, remedy = f"it has {rows or 0:g} rows and {cols or 0:g} columns", AGAIN
    elif allocated not in (8, 16) or not stored or not 1 <= stored <= allocated:
        problem = f"it has {allocated or 0:g} bits allocated and {stored or 0:g} stored, expected up to 8 or 16"
        remedy = "Export it as an 8 or 16 bit film"
    elif high is not None and not stored - 1 <= high < allocated:
        problem, remedy = f"HighBit {high:g} does not fit {stored:g} bits in {allocated:g}", AGAIN
    if problem:
        raise UserError(path, problem, remedy)


def _decode(path: Path, dataset: Dataset) -> np.ndarray:
    """Stored values (rows, cols), or a UserError that names the transfer syntax."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise UserError(path, "its transfer syntax is not given", "Export it again, with the file meta group")
    expected = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if not syntax.is_encapsulated and len(dataset.PixelData) < expected:
        problem = f"it is cut short: {len(dataset.PixelData)} bytes of pixel data, expected {expected}"
        raise UserError(path, problem, AGAIN)
    try:
        return stored_values(dataset)
    except Exception as error:  # each decoder has its own exceptions
        problem = f"its pixel data ({syntax.name}) cannot be decoded ({type(error).__name__})"
        remedy = "If it opens elsewhere, export it uncompressed or as JPEG 2000; 12-bit JPEG Extended is not supported"
        raise UserError(path, problem, remedy) from None


def write_png(path: Path, image: np.ndarray) -> None:
    """Write uint8 (H, W) as an 8-bit greyscale PNG without any text (atomic)."""
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError(f"expected uint8 (H, W), got {image.dtype} {image.shape}")
    write_atomic(Path(path), cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes())


def convert(
    source: Path, out_dir: Path, size_px: int = 512, progress: Callable[[int, int, str], None] | None = None
) -> tuple[list[Path], list[UserError]]:
    """Write film_0001.png ... and frames.csv into ``out_dir``: the films of a DICOM file or of a folder, recursively.

    Names never come from the patient or the source; frames.csv ties a picture to its source by SHA-256 of the file and
    maps film pixels to it: x_png = (x_film + 0.5) * scale_x - 0.5 + left. Files that cannot be read are returned as
    errors. Raises UserError where there is nothing to read.
    """
    files = _candidates(Path(source))
    written: list[Path] = []
    rows: list[list[object]] = []
    problems: list[UserError] = []
    for done, file in enumerate(files, start=1):
        try:
            film = read_film(file, size_px)
            target = Path(out_dir) / f"film_{len(written) + 1:04d}.png"
            write_png(target, film.image)
            rows.append(_csv_row(target.name, file, film.frame))
            written.append(target)
        except UserError as error:
            problems.append(error)
        if progress:
            progress(done, len(files), f"{len(written)} written")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([CSV_COLUMNS, *rows])
    write_atomic(Path(out_dir) / "frames.csv", text.getvalue().encode())
    return written, problems


def _csv_row(name: str, file: Path, frame: Frame) -> list[object]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    (rows, cols), (top, left), mm = frame.inner, frame.offset, frame.spacing
    scale = (cols / frame.cols, rows / frame.rows)
    return [name, digest, frame.rows, frame.cols, frame.size_px, *scale, left, top, mm.row_mm, mm.col_mm, mm.kind]


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
