"""Which end of a film is bone: how the header says whether bright and dark must be exchanged."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import (
    DigitalIntraOralXRayImageStorageForProcessing,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForProcessing,
)

from fedbone.imaging.spacing import number

_RAW_CLASSES = (
    DigitalXRayImageStorageForProcessing,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalIntraOralXRayImageStorageForProcessing,
)


def is_raw(dataset: Dataset) -> bool:
    """Whether the pixels are a detector's, FOR PROCESSING, and not yet a picture (PS3.3 C.8.11.1.1.1)."""
    kind = dataset.get("PresentationIntentType")
    return kind == "FOR PROCESSING" or (not kind and dataset.get("SOPClassUID") in _RAW_CLASSES)


def is_intensity(dataset: Dataset) -> bool:
    """Whether raw pixels count beam intensity, so that only their logarithm is thickness (PS3.3 C.8.11.3.1.2)."""
    sign = number(dataset, "PixelIntensityRelationshipSign")
    return is_raw(dataset) and dataset.get("PixelIntensityRelationship") == "LIN" and sign == 1


def is_inverted(dataset: Dataset) -> tuple[bool, list[str]]:
    """Whether the grey scale must be inverted for bone to be bright, and what about that is doubtful.

    MONOCHROME1 and PresentationLUTShape INVERSE say the same thing twice: one inversion (PS3.3 C.8.11.3.1.2). Raw
    pixels have no intended presentation: there the sign of the intensity relationship decides, where it is given.
    """
    photometric, shape = dataset.PhotometricInterpretation, dataset.get("PresentationLUTShape")
    inverted = photometric == "MONOCHROME1" or shape == "INVERSE"
    if not is_raw(dataset):
        doubtful = shape in ("INVERSE", "IDENTITY") and (shape == "INVERSE") != (photometric == "MONOCHROME1")
        return inverted, [f"{photometric} contradicts PresentationLUTShape {shape}: check its polarity"] * doubtful
    sign = number(dataset, "PixelIntensityRelationshipSign")
    if sign not in (1, -1):
        return inverted, [f"FOR PROCESSING, polarity by {photometric} alone: check it"]
    falling = (number(dataset, "RescaleSlope") or 1) < 0
    less_beam_is_low = (sign == 1) != falling  # less beam is where bone is
    note = "FOR PROCESSING, polarity by PixelIntensityRelationshipSign"
    return less_beam_is_low, [note + (f" against {photometric}" if less_beam_is_low != inverted else "")]
