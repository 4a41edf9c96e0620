"""A rendered film as a DICOM file of its hospital, with the header a real archive would send: invented people included.

Names, numbers and dates are made up from the seed. They are here so that de-identification has something to remove.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from fedbone.imaging.sites import Exposure, stream

_FAMILY = "Ahlgren Brandt Castel Dumont Eriksen Fontana Gruber Hollis Ivarsson Jansen Keller Moreau Novak".split()
_GIVEN = {
    "F": "Anna Berta Clara Doris Elena Frida Greta".split(),
    "M": "Anton Bruno Carl David Emil Frank Georg".split(),
}
_UID_ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's own root, free for generated identifiers


@dataclass(frozen=True)
class Archive:
    """How a hospital's machine writes its films. per_od: stored steps per unit of log attenuation."""

    modality: str
    institution: str
    maker: str
    model: str
    bits: int
    photometric: str
    per_od: float
    syntax: str
    body_part: str
    description: str
    kvp: int
    distance_mm: int
    calibrated: bool
    window: str  # VOILUTFunction


ARCHIVES = {
    "hospital_a": Archive(
        "DX", "Example Hospital North", "Musterwerk", "Flat 43", 12, "MONOCHROME2", 500.0, JPEG2000Lossless,
        "PELVIS", "Pelvis AP", 75, 1150, True, "LINEAR",
    ),
    "hospital_b": Archive(
        "CR", "Example Hospital South", "Specimen Imaging", "CR-250", 10, "MONOCHROME1", 180.0, RLELossless,
        "LEG", "Lower legs AP", 60, 1300, False, "LINEAR",
    ),
    "hospital_c": Archive(
        "DX", "Example Spine Centre", "Beispiel Medical", "Long Panel", 14, "MONOCHROME1", 1200.0, JPEG2000Lossless,
        "WHOLESPINE", "Whole spine AP, standing", 85, 1800, True, "LINEAR_EXACT",
    ),
}  # fmt: skip


def film_bytes(hospital: str, seed: int, number: int, exposure: Exposure) -> bytes:
    """The DICOM file of film ``number`` (PS3.3 A.2 for CR, A.26 for DX)."""
    archive = ARCHIVES[hospital]
    sop_class = ComputedRadiographyImageStorage if archive.modality == "CR" else DigitalXRayImageStorageForPresentation
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = _uid(hospital, seed, number, "instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    _add_person(dataset, hospital, seed, exposure.patient_number)
    _add_study(dataset, archive, hospital, seed, number)
    _add_machine(dataset, archive, exposure)
    _add_image(dataset, archive, exposure)
    if archive.syntax != ExplicitVRLittleEndian:
        dataset.compress(archive.syntax, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uid(hospital: str, seed: int, number: int, what: str) -> str:
    return generate_uid(prefix=_UID_ROOT, entropy_srcs=["fedbone", hospital, str(seed), str(number), what])


def _add_person(dataset: Dataset, hospital: str, seed: int, number: int) -> None:
    """The patient module (PS3.3 C.7.1.1), the same for all films of one patient."""
    rng = stream(hospital, seed, number, 2)
    sex = "FM"[rng.integers(2)]
    dataset.PatientName = f"{_FAMILY[rng.integers(len(_FAMILY))]}^{_GIVEN[sex][rng.integers(7)]}"
    dataset.PatientID = f"{hospital[-1].upper()}{rng.integers(10**6, 10**7)}"
    years = (11, 18) if hospital == "hospital_c" else (35, 85)
    born = date(2026, 3, 1) - timedelta(days=int(rng.integers(years[0] * 365, years[1] * 365)))
    dataset.PatientBirthDate, dataset.PatientSex = born.strftime("%Y%m%d"), sex
    dataset.PatientAddress = f"{rng.integers(1, 90)} Sample Street, Exampletown"
    dataset.PatientTelephoneNumbers = f"555-01{rng.integers(10, 100)}"


def _add_study(dataset: Dataset, archive: Archive, hospital: str, seed: int, number: int) -> None:
    """Study and series (PS3.3 C.7.2.1, C.7.3.1); every film is a study of its own."""
    rng = stream(hospital, seed, number, 3)
    day = (date(2026, 3, 2) + timedelta(days=int(rng.integers(0, 180)))).strftime("%Y%m%d")
    clock = f"{rng.integers(7, 19):02d}{rng.integers(60):02d}{rng.integers(60):02d}"
    for kind in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{kind}Date", day)
        setattr(dataset, f"{kind}Time", clock)
    dataset.StudyInstanceUID = _uid(hospital, seed, number, "study")
    dataset.SeriesInstanceUID = _uid(hospital, seed, number, "series")
    dataset.FrameOfReferenceUID = _uid(hospital, seed, number, "frame")
    dataset.StudyID, dataset.AccessionNumber = str(rng.integers(1000, 9999)), f"ACC{rng.integers(10**6, 10**7)}"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.StudyDescription = dataset.SeriesDescription = archive.description
    dataset.ReferringPhysicianName = f"{_FAMILY[rng.integers(len(_FAMILY))]}^Dr"
    dataset.OperatorsName = f"{_FAMILY[rng.integers(len(_FAMILY))]}^R"
    dataset.Modality = archive.modality


def _add_machine(dataset: Dataset, archive: Archive, exposure: Exposure) -> None:
    """Equipment and acquisition, with the pixel pitch as this maker gives it (PS3.3 C.7.5.1, 10.7.1.3)."""
    dataset.Manufacturer, dataset.ManufacturerModelName = archive.maker, archive.model
    dataset.InstitutionName, dataset.StationName = archive.institution, f"{archive.modality}ROOM1"
    dataset.InstitutionAddress = "1 Hospital Road, Exampletown"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "000123", "4.2"
    dataset.BodyPartExamined, dataset.ViewPosition = archive.body_part, "AP"
    dataset.PatientOrientation = ["L", "F"]
    dataset.KVP, dataset.DistanceSourceToDetector = archive.kvp, archive.distance_mm
    dataset.Exposure, dataset.ImageLaterality = 20, "B"
    pitch = [f"{value:.6f}" for value in exposure.pitch_mm[::-1]]  # row spacing first
    dataset.ImagerPixelSpacing = pitch
    if archive.calibrated:
        dataset.PixelSpacing = pitch
        dataset.PixelSpacingCalibrationType = "GEOMETRY"
        dataset.PixelSpacingCalibrationDescription = "At the plane of the spine or hips"
    block = dataset.private_block(0x0019, f"{archive.maker.upper()} 1.0", create=True)
    block.add_new(0x01, "LO", f"{dataset.PatientName} {dataset.PatientID}")  # makers do put names into private tags


def _add_image(dataset: Dataset, archive: Archive, exposure: Exposure) -> None:
    """Pixels and window (PS3.3 C.7.6.3, C.11.2): stored = steps of log attenuation, from 0 where the beam is free."""
    low, high = exposure.limits
    base, top = float(exposure.film.min()), 2**archive.bits - 1
    stored = np.clip(np.rint((exposure.film - base) * archive.per_od), 0, top).astype(np.uint16)
    edges = np.array([low - base, high - base]) * archive.per_od
    if archive.photometric == "MONOCHROME1":
        stored, edges = (top - stored).astype(np.uint16), top - edges[::-1]
    linear = archive.window == "LINEAR"  # PS3.3 C.11.2.1.2.1: the window holds width - 1 steps around centre - 0.5
    dataset.WindowCenter = f"{edges.mean() + 0.5 * linear:.2f}"
    dataset.WindowWidth = f"{edges[1] - edges[0] + linear:.2f}"
    dataset.VOILUTFunction = archive.window
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, archive.photometric
    dataset.PresentationLUTShape = "INVERSE" if archive.photometric == "MONOCHROME1" else "IDENTITY"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, archive.bits, archive.bits - 1
    dataset.PixelRepresentation = 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "0", "US"
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.PixelData = stored.tobytes()
