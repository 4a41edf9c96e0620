"""A DICOM file to a data set that holds one film: parsed whatever its form, flattened, and everything else refused."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from fedbone.imaging.refusal import AGAIN, Refusal
from fedbone.imaging.spacing import number

MOST_PIXELS = 100_000_000  # three times a stitched whole-leg film: more is a damaged header
MOST_BYTES = 2**29  # of a file, and of what a deflated one inflates to
MOST_ELEMENTS = 50_000  # a film has some hundreds; millions of empty ones keep a parser busy for minutes
MOST_READS = 500_000  # the same for elements inside others, and for a file of zeros
GREY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# functional groups whose contents a single frame may have at its top level (PS3.3 C.7.6.16.2, C.8.19.6)
FRAME_GROUPS = ("PixelMeasures", "FrameVOILUT", "PixelValueTransformation", "FrameDisplayShutter")
FRAME_GROUPS += ("FramePixelDataProperties", "PixelIntensityRelationshipLUT", "ProjectionPixelCalibration")


def parse(path: Path) -> Dataset:
    """The data set of a file, with or without preamble and file meta group. Raises Refusal where it is not DICOM."""
    if path.is_dir():
        raise Refusal("it is a folder, expected one DICOM file", "Name a file in it")
    try:
        size = path.stat().st_size
        if not size:
            raise Refusal("the file is empty", AGAIN)
        if size > MOST_BYTES:
            raise Refusal(f"it has {size >> 20} MiB, more than any film", "Give single films, not volumes or series")
        _bound_inflated(path)
        dataset = _read_elements(path)
    except InvalidDicomError:
        dataset = _parse_bare(path)
    except OSError as error:
        raise Refusal(f"it cannot be read ({error.strerror})", "Check the path and its permissions") from None
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


class _CountedReads(io.BufferedReader):
    """A file that gives up on a parser that reads it in tiny pieces."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.count += 1
        if self.count > MOST_READS:
            raise _too_many()
        return super().read(size)


def _too_many() -> Refusal:
    return Refusal(f"it has more than {MOST_ELEMENTS} elements, more than any film", "Give the film itself")


def _read_elements(path: Path, force: bool = False) -> Dataset:
    count = 0

    def stop(*_: object) -> bool:
        nonlocal count
        count += 1
        return count > MOST_ELEMENTS

    with _CountedReads(io.FileIO(str(path))) as stream:
        dataset = read_partial(stream, stop, force=force)
    if count > MOST_ELEMENTS:
        raise _too_many()
    return dataset


def _bound_inflated(path: Path) -> None:
    """Refuse a deflated file that would fill the memory: 1 MB can hold 1 GB of zeros."""
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    with path.open("rb") as stream:
        stream.seek(144 + meta.get("FileMetaInformationGroupLength", 0))  # preamble, prefix and the length itself
        inflater, data, total = zlib.decompressobj(-zlib.MAX_WBITS), stream.read(), 0
    try:
        while data and total <= MOST_BYTES:
            total += len(inflater.decompress(data, 2**20))
            data = inflater.unconsumed_tail
    except zlib.error:
        raise Refusal("it is damaged: its deflated data cannot be read", AGAIN) from None
    if total > MOST_BYTES:
        raise Refusal(f"it inflates to more than {MOST_BYTES >> 20} MiB, more than any film", AGAIN)


def _parse_bare(path: Path) -> Dataset:
    """A data set without preamble and file meta group, as old systems and raw network dumps leave it."""
    refusal = Refusal("it is not a DICOM file", "Give DICOM films (.dcm); convert other pictures to DICOM first")
    try:
        dataset = _read_elements(path, force=True)
        is_image = all(keyword in dataset for keyword in ("Rows", "Columns", "BitsAllocated", "PixelData"))
    except Exception:  # forced reading of arbitrary bytes can fail in any way
        raise refusal from None
    if not is_image:
        raise refusal
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    return dataset


def flatten(dataset: Dataset) -> None:
    """Copy what an enhanced object of one frame keeps in its functional groups to the top level (PS3.3 C.7.6.16)."""
    for groups in ("PerFrameFunctionalGroups", "SharedFunctionalGroups"):
        for group in dataset.get(f"{groups}Sequence") or ():
            for name in FRAME_GROUPS:
                for item in group.get(f"{name}Sequence") or ():
                    dataset.update({element.tag: element for element in item if element.tag not in dataset})


def require_film(dataset: Dataset, cut_short: bool) -> None:
    """Raise Refusal unless the data set holds one frame of 8 or 16 bits a pixel, grey or a colour copy of grey."""
    if "PixelData" not in dataset:
        raise _without_pixels(dataset, cut_short)
    frames, samples = number(dataset, "NumberOfFrames") or 1, number(dataset, "SamplesPerPixel") or 1
    rows, cols = number(dataset, "Rows") or 0, number(dataset, "Columns") or 0
    allocated, stored = number(dataset, "BitsAllocated") or 0, number(dataset, "BitsStored") or 0
    high, colour = number(dataset, "HighBit"), str(dataset.get("PhotometricInterpretation") or "")
    problem, remedy = "", AGAIN
    if frames > 1:
        problem, remedy = f"it has {frames:g} frames, expected a single film", "Export one frame as a film of its own"
    elif colour == "PALETTE COLOR":
        problem, remedy = "its pixels are PALETTE COLOR, false colours", "Export the original film"
    elif (colour not in GREY or samples != 1) and (colour not in COLOUR or samples != 3):
        name = colour if colour in GREY + COLOUR else "of an unknown kind" if colour else "of no stated kind"
        problem = f"its pixels are {name} with {samples:g} samples, expected MONOCHROME1 or MONOCHROME2"
        remedy = "Convert it to greyscale, or export the original film"
    elif not rows or not cols or rows * cols > MOST_PIXELS:
        problem = f"it has {rows:g} rows and {cols:g} columns"
    elif allocated not in (8, 16) or not 1 <= stored <= allocated:
        problem = f"it has {allocated:g} bits allocated and {stored:g} stored, expected up to 8 or 16: "
        problem += "no radiograph, but a mask, a dose or a map"
        remedy = "Give the film itself, exported with 8 or 16 bits"
    elif high is not None and not stored - 1 <= high < allocated:
        problem = f"its HighBit {high:g} does not fit {stored:g} bits in {allocated:g}"
    if problem:
        raise Refusal(problem, remedy)


def _without_pixels(dataset: Dataset, cut_short: bool) -> Refusal:
    meta_kind = getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID")
    uid = dataset.get("SOPClassUID") or meta_kind
    name = getattr(uid, "name", uid)
    kind = name if name and name != uid else "unknown"  # a private UID can point to its owner
    if cut_short:
        return Refusal("the file is cut short: it ends before the pixel data do", AGAIN)
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        return Refusal(f"its pixels are floating point numbers, a map and no film ({kind})", "Give the film itself")
    if "Rows" in dataset:
        return Refusal("it has no pixel data", AGAIN)
    return Refusal(f"it holds no image (DICOM object: {kind})", "Give the film itself")
