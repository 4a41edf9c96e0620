"""Stored pixel values of a film to 8-bit grey with bone bright: the DICOM greyscale chain, resized first where it can.

Chain (PS3.3 C.11.1 and C.11.2, PS3.4 N.2): stored value -> Modality LUT or rescale -> VOI LUT or window -> inversion.
Where both steps are straight lines, resizing the stored values first gives the same picture in a fifth of the time.
"""

from __future__ import annotations

import cv2
import numpy as np
from pydicom.dataset import Dataset

from fedbone.imaging.frame import Frame
from fedbone.imaging.spacing import number

ROBUST_PERCENTILES = (0.5, 99.5)  # a film without a window: markers and dead pixels must not set the range
SAMPLE_PIXELS = 250_000  # enough for the percentiles of a film, and 20 times faster than all pixels


def to_grey(stored: np.ndarray, dataset: Dataset, frame: Frame) -> np.ndarray:
    """Stored values (rows, cols) to uint8 (S, S): windowed, bone bright, aspect kept, centred on black.

    Pixel padding becomes black (PS3.3 C.7.5.1.1.2). Raises ValueError for tables and slopes that make no sense.
    """
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"
    padding = _padding(stored, dataset)
    if dataset.get("ModalityLUTSequence") or dataset.get("VOILUTSequence") or _function(dataset) == "SIGMOID":
        grey = _curve(stored, padding, dataset)
        grey = (1 - grey if inverted else grey).astype(np.float32)
        grey[padding] = 0
        small = resize(grey, frame)
    else:
        black, white = _line(stored, padding, dataset)
        black, white = (white, black) if inverted else (black, white)
        values = stored.astype(np.float32)
        if padding.any():
            values[padding] = black
        small = (resize(values, frame) - black) / (white - black)
    (rows, cols), (top, left) = frame.inner, frame.offset
    image = np.zeros((frame.size_px, frame.size_px), np.uint8)
    image[top : top + rows, left : left + cols] = np.rint(np.clip(small, 0, 1) * 255)
    return image


def resize(values: np.ndarray, frame: Frame) -> np.ndarray:
    """(rows, cols) float32 to ``frame.inner``: area mean when shrinking (no aliasing), bilinear when enlarging."""
    rows, cols = frame.inner
    shrinks = rows < values.shape[0] or cols < values.shape[1]
    return cv2.resize(values, (cols, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _line(stored: np.ndarray, padding: np.ndarray, dataset: Dataset) -> tuple[float, float]:
    """The stored values that become black and white, before inversion."""
    slope, intercept = _rescale(dataset)
    low, high = _window_edges(dataset) or _content_range(stored, padding, slope, intercept)
    black, white = (low - intercept) / slope, (high - intercept) / slope
    # a window of one value is a step (PS3.3 C.11.2.1.2.1): keep the division finite
    return black, white if white != black else black + np.copysign(1e-3, slope)


def _curve(stored: np.ndarray, padding: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Grey in [0, 1] at full resolution, where a table or a sigmoid forbids resizing first."""
    big_endian = dataset.original_encoding[1] is False
    if dataset.get("ModalityLUTSequence"):
        values = _look_up(stored, dataset.ModalityLUTSequence[0], big_endian)[0]
    else:
        slope, intercept = _rescale(dataset)
        values = stored * slope + intercept
    if dataset.get("VOILUTSequence"):
        values, bits = _look_up(values, dataset.VOILUTSequence[0], big_endian)
        return values / (2.0**bits - 1)
    centre, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    if _function(dataset) == "SIGMOID" and centre is not None and width:
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50)))
    low, high = _window_edges(dataset) or _content_range(values, padding, 1.0, 0.0)
    return np.clip((values - low) / max(high - low, 1e-3), 0, 1)


def _window_edges(dataset: Dataset) -> tuple[float, float] | None:
    """Values at the two ends of the first window, None without a usable one (PS3.3 C.11.2.1.2.1 and C.11.2.1.3.2)."""
    centre, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    if centre is None or width is None or width <= 0:
        return None
    if _function(dataset) == "LINEAR" and width >= 1:  # below 1 LINEAR has no meaning, writers mean LINEAR_EXACT
        centre, width = centre - 0.5, width - 1
    return centre - width / 2, centre + width / 2


def _function(dataset: Dataset) -> str:
    name = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    return name if name in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"


def _rescale(dataset: Dataset) -> tuple[float, float]:
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if slope == 0:
        raise ValueError("RescaleSlope is 0, which makes every pixel the same")
    return 1.0 if slope is None else slope, intercept or 0.0


def _content_range(values: np.ndarray, padding: np.ndarray, slope: float, intercept: float) -> tuple[float, float]:
    """Robust low and high of the rescaled values that are not padding."""
    step = max(1, int((values.size / SAMPLE_PIXELS) ** 0.5))
    content = values[::step, ::step][~padding[::step, ::step]]
    if not content.size:
        raise ValueError("every pixel is padding")
    low, high = np.percentile(content * slope + intercept, ROBUST_PERCENTILES)
    return float(low), float(high)


def _padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """(rows, cols) bool: pixels with PixelPaddingValue, or between it and PixelPaddingRangeLimit."""
    value, limit = number(dataset, "PixelPaddingValue"), number(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = value if limit is None else limit
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _look_up(values: np.ndarray, item: Dataset, big_endian: bool) -> tuple[np.ndarray, int]:
    """Values through one LUT item, and the bits of its entries (PS3.3 C.11.1.1.1, C.11.2.1.1).

    pydicom's apply_voi is not used: with 8-bit entries it also wraps the index at 256.
    """
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries or 2**16  # 65536 does not fit the descriptor
    data = item.LUTData
    words = np.frombuffer(data, ">u2" if big_endian else "<u2") if isinstance(data, bytes) else np.array(data, "<u2")
    table = words.astype("<u2").view(np.uint8) if bits == 8 and len(words) == (entries + 1) // 2 else words
    if len(table) < entries or not 8 <= bits <= 16:
        raise ValueError(f"a lookup table of {entries} entries of {bits} bits holds {len(table)}")
    return table[np.clip(np.rint(values) - first, 0, entries - 1).astype(np.intp)].astype(np.float64), bits
