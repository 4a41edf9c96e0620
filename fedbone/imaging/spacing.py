"""Millimetres of a film: which of DICOM's pixel pitches to believe, and what it refers to."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from fedbone.imaging.frame import UNKNOWN_SPACING, Spacing

PIXEL_MM = (0.01, 10.0)  # plausible pitch: mammography 0.05, a coarse copy of a whole-body film some mm
LONGEST_FILM_MM = 2500.0  # beyond this the pitch is a placeholder such as 1\1
MAGNIFICATION = (1.0, 10.0)  # 1.0 is what systems write that do not know the distances


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first finite value of a numeric element, None where it is absent, empty or not a number."""
    try:
        value = dataset.get(keyword)
        single = value is None or isinstance(value, (int, float, str, bytes))
        value = float(value if single else value[0])
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return value if np.isfinite(value) else None


def read_spacing(dataset: Dataset) -> Spacing:
    """Pixel pitch and what it refers to (PS3.3 10.7.1.3 and C.8.11.7).

    PixelSpacing with a calibration type is calibrated; one that differs from ImagerPixelSpacing was corrected to the
    object. Equal to it, or alone, PixelSpacing is taken for the detector's, as is ImagerPixelSpacing alone, unless a
    magnification factor leads from the detector to the object.
    """
    patient, imager = _pair(dataset, "PixelSpacing"), _pair(dataset, "ImagerPixelSpacing")
    if patient and dataset.get("PixelSpacingCalibrationType") in ("GEOMETRY", "FIDUCIAL"):
        return Spacing(*patient, "calibrated")
    if patient and imager and not np.allclose(patient, imager, rtol=1e-4):
        return Spacing(*patient, "object")
    factor = number(dataset, "EstimatedRadiographicMagnificationFactor")
    if imager and factor and MAGNIFICATION[0] < factor < MAGNIFICATION[1]:
        return Spacing(imager[0] / factor, imager[1] / factor, "object")
    detector = imager or patient
    return Spacing(*detector, "detector") if detector else UNKNOWN_SPACING


def _pair(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    """(row_mm, col_mm), None where absent or implausible (placeholders such as 0.000, or 1 on a large film)."""
    try:
        row_mm, col_mm = (float(value) for value in dataset.get(keyword) or ())
    except (TypeError, ValueError):
        return None
    if not all(PIXEL_MM[0] <= value <= PIXEL_MM[1] for value in (row_mm, col_mm)):
        return None
    longest_mm = max(number(dataset, "Rows") * row_mm, number(dataset, "Columns") * col_mm)
    return (row_mm, col_mm) if longest_mm <= LONGEST_FILM_MM else None
