"""A rendered film as a DICOM file: of its own hospital, or as any other archive would store the same film."""

from __future__ import annotations

import io

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from pydicom.valuerep import format_number_as_ds

from fedbone.imaging.film_header import Archive, add_machine, add_person, add_spacing, add_study, add_view, new_uid
from fedbone.imaging.sites import Exposure

_TABLE_BITS = 16  # the only length that CR and DX both allow besides 8
_SOFT_PART = 0.5  # the second window shows soft tissue: the lower part of the first

ARCHIVES = {
    "hospital_a": Archive(
        "DX", "Example Hospital North", "Musterwerk", "Flat 43", 12, "MONOCHROME2", JPEG2000Lossless,
        "PELVIS", Code("816092008", "SCT", "Pelvis"), "U", "Pelvis", "calibrated", "LINEAR",
    ),
    "hospital_b": Archive(
        "CR", "Example Hospital South", "Specimen Imaging", "CR-250", 10, "MONOCHROME1", RLELossless,
        "LEG", Code("30021000", "SCT", "Lower leg"), "B", "Lower legs", "detector", "LINEAR",
        ("BONE", "SOFT TISSUE"),
    ),
    "hospital_c": Archive(
        "DX", "Example Spine Centre", "Beispiel Medical", "Long Panel", 14, "MONOCHROME1", JPEG2000Lossless,
        "SPINE", Code("421060004", "SCT", "Spine"), "U", "Whole spine, standing,", "object", "LINEAR_EXACT",
    ),
}  # fmt: skip


def film_bytes(hospital: str, seed: int, number: int, exposure: Exposure, archive: Archive | None = None) -> bytes:
    """The DICOM file of film ``number`` (PS3.3 A.2 for CR, A.26 for DX), in the form of ``archive`` if one is given.

    Raises KeyError for an unknown hospital.
    """
    archive = archive or ARCHIVES[hospital]
    sop_class = DigitalXRayImageStorageForPresentation
    if archive.intent == "FOR PROCESSING":
        sop_class = DigitalXRayImageStorageForProcessing
    elif archive.modality == "CR":
        sop_class = ComputedRadiographyImageStorage
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = new_uid(hospital, seed, number, "instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    add_person(dataset, hospital, seed, exposure.patient_number)
    add_study(dataset, archive, hospital, seed, number)
    add_machine(dataset, archive, exposure)
    add_view(dataset, archive, exposure)
    add_spacing(dataset, archive, exposure)
    black_white = _add_pixels(dataset, archive, exposure)
    if archive.intent == "FOR PRESENTATION":
        _add_window(dataset, archive, *black_white)
    if archive.syntax != ExplicitVRLittleEndian:
        # pydicom prefers gdcm for RLE, whose exception on an 8-bit film of odd size ended the process
        dataset.compress(archive.syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _add_pixels(dataset: Dataset, archive: Archive, exposure: Exposure) -> tuple[float, float]:
    """Pixels (PS3.3 C.7.6.3, C.8.11.3): the film's range of log attenuation over all stored values, nothing clipped.

    Returns the stored values of the window's least and most attenuation.
    """
    base, top = float(exposure.film.min()), 2**archive.bits - 1
    allocated = 8 if archive.bits == 8 else 16
    steps = top / float(np.ptp(exposure.film))
    stored = np.rint((exposure.film.astype(np.float64) - base) * steps)
    ends = (np.array(exposure.limits) - base) * steps
    negative = archive.photometric == "MONOCHROME1"
    if negative:
        stored, ends = top - stored, top - ends
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, archive.photometric
    dataset.PresentationLUTShape = "INVERSE" if negative else "IDENTITY"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, archive.bits, archive.bits - 1
    dataset.PixelRepresentation = 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "0", "US"
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    if archive.modality == "DX":
        dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]  # the third value is there and empty (C.8.11.3.1.1)
        dataset.PixelIntensityRelationship = "LOG"
        dataset.PixelIntensityRelationshipSign = 1 if negative else -1  # -1: higher values, less beam
    data = stored.astype(f"<u{allocated // 8}").tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
    return float(ends[0]), float(ends[1])


def _add_window(dataset: Dataset, archive: Archive, black: float, white: float) -> None:
    """The VOI stage (PS3.3 C.11.2): windows from the end that becomes black, or a table that is the same straight line.

    Windows map the low stored values to black; a MONOCHROME1 film is inverted after them.
    """
    if archive.window == "TABLE":
        dataset.VOILUTSequence = [_table(*sorted((black, white)), 2**archive.bits - 1)]
        return
    parts = (1.0, _SOFT_PART)[: max(1, len(archive.explanations))]
    linear = archive.window == "LINEAR"  # C.11.2.1.2.1: the window holds width - 1 steps around centre - 0.5
    ends = [(black, black + part * (white - black)) for part in parts]
    dataset.WindowCenter = [format_number_as_ds(sum(pair) / 2 + 0.5 * linear) for pair in ends]
    dataset.WindowWidth = [format_number_as_ds(abs(pair[1] - pair[0]) + linear) for pair in ends]
    dataset.VOILUTFunction = archive.window
    if archive.explanations:
        dataset.WindowCenterWidthExplanation = list(archive.explanations)


def _table(low: float, high: float, top: int) -> Dataset:
    """A lookup table (PS3.3 C.11.2.1.1) from stored value ``low`` (0) to ``high`` (all bits of the entries)."""
    first, last = max(0, int(np.floor(low))), min(top, int(np.ceil(high)))
    entries = np.clip((np.arange(first, last + 1) - low) / (high - low), 0, 1) * (2**_TABLE_BITS - 1)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 2**16, first, _TABLE_BITS])  # 65536 is written 0
    item.LUTExplanation = "BONE"
    item.add_new("LUTData", "OW", np.rint(entries).astype("<u2").tobytes())
    return item
