"""Millimetres of a film: which of DICOM's pixel pitches to believe, and what it refers to."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import XRayAngiographicImageStorage, XRayRadiofluoroscopicImageStorage

from fedbone.imaging.frame import UNKNOWN_SPACING, Spacing

PIXEL_MM = (0.01, 10.0)  # plausible pitch: mammography 0.05, a coarse copy of a whole-body film some mm
LONGEST_FILM_MM = 2500.0  # beyond this the pitch is no pitch
PLACEHOLDER_MM = [1.0, 1.0]  # what toolkits write that know none
MAGNIFICATION = (1.0, 10.0)  # 1.0 is what systems write that do not know the distances
DISTANCE_MM = (200.0, 5000.0)  # from the tube: a dental unit to a chest stand, and longer
PIXEL_ASPECT = (0.25, 4.0)  # height of a pixel over its width
SQUARE = 0.01  # pixels whose sides differ by less are square: two roundings of one pitch
FLUOROSCOPY = (XRayRadiofluoroscopicImageStorage, XRayAngiographicImageStorage)


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The values of a numeric element, [] where it is absent, empty or any value is not a finite number."""
    try:
        value = dataset.get(keyword)
        if value is None:
            return []
        values = [float(value)] if isinstance(value, (int, float, str, bytes)) else [float(single) for single in value]
    except (TypeError, ValueError, OverflowError):
        return []
    return values if np.isfinite(values).all() else []


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of a numeric element, None where ``numbers`` finds none."""
    return next(iter(numbers(dataset, keyword)), None)


def read_spacing(dataset: Dataset) -> Spacing:
    """Pixel pitch and what it refers to (PS3.3 10.7.1.3 and C.8.11.7).

    PixelSpacing with a calibration type is calibrated; one that differs from ImagerPixelSpacing was corrected to the
    object. Equal to it, or alone, PixelSpacing is taken for the detector's, as is ImagerPixelSpacing alone, unless a
    magnification leads from the detector to the object. A scanned film's pitch counts as its detector's.
    """
    patient, imager = _pair(dataset, "PixelSpacing"), _pair(dataset, "ImagerPixelSpacing")
    if patient and dataset.get("PixelSpacingCalibrationType") in ("GEOMETRY", "FIDUCIAL"):
        return Spacing(*patient, "calibrated")
    if patient and imager and not np.allclose(patient, imager, rtol=1e-4):
        return Spacing(*patient, "object")
    factor = _magnification(dataset)
    if imager and factor:
        return Spacing(imager[0] / factor, imager[1] / factor, "object")
    detector = imager or patient or _pair(dataset, "NominalScannedPixelSpacing")
    return Spacing(*detector, "detector") if detector else UNKNOWN_SPACING


def read_pixel_aspect(dataset: Dataset, spacing: Spacing) -> float:
    """Height of a pixel over its width, by the spacing, else by PixelAspectRatio (PS3.3 C.7.6.3.1.7); 1 if square."""
    aspect = spacing.row_mm / spacing.col_mm
    ratio = numbers(dataset, "PixelAspectRatio")
    if np.isnan(aspect) and len(ratio) == 2 and ratio[1] > 0:
        aspect = ratio[0] / ratio[1]
    usable = PIXEL_ASPECT[0] <= aspect <= PIXEL_ASPECT[1] and abs(aspect - 1) > SQUARE
    return aspect if usable else 1.0


def _magnification(dataset: Dataset) -> float | None:
    """Detector over object, None where unknown.

    Without the factor it is the ratio of two distances in fluoroscopy only: there DistanceSourceToPatient ends at the
    centre of the field of view, the object (PS3.3 C.8.7.5, C.8.7.6). For DX it ends at the table or bucky (C.8.11.5),
    beside which the bone does not lie: that ratio is too small by some tenths, and would call itself corrected.
    """
    factor = number(dataset, "EstimatedRadiographicMagnificationFactor")
    if factor is None and dataset.get("SOPClassUID") in FLUOROSCOPY:
        ends = [number(dataset, f"DistanceSourceTo{end}") for end in ("Detector", "Patient")]
        if all(end is not None and DISTANCE_MM[0] <= end <= DISTANCE_MM[1] for end in ends):
            factor = ends[0] / ends[1]
    return factor if factor is not None and MAGNIFICATION[0] < factor < MAGNIFICATION[1] else None


def _pair(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    """(row_mm, col_mm), None where absent or implausible (placeholders such as 0.000, or 1, which no detector has)."""
    pair = numbers(dataset, keyword)
    if len(pair) != 2 or pair == PLACEHOLDER_MM or not all(PIXEL_MM[0] <= value <= PIXEL_MM[1] for value in pair):
        return None
    row_mm, col_mm = pair
    longest_mm = max(number(dataset, "Rows") * row_mm, number(dataset, "Columns") * col_mm)
    plausible = longest_mm <= LONGEST_FILM_MM and PIXEL_ASPECT[0] <= row_mm / col_mm <= PIXEL_ASPECT[1]
    return (row_mm, col_mm) if plausible else None
