"""Stored pixel values of a film to 8-bit grey with bone bright: the DICOM greyscale chain, resized first where it can.

Where the chain is one straight line, resizing the stored values first gives the same picture in a fraction of the
time. A table or a sigmoid is worked out once for each stored value and applied at full resolution.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from pydicom.dataset import Dataset

from fedbone.imaging import polarity, shutter, voi
from fedbone.imaging.frame import Frame
from fedbone.imaging.refusal import Refusal
from fedbone.imaging.spacing import number

SAMPLE_PIXELS = 250_000  # enough for the percentiles of a film, and 20 times faster than all pixels


class Grey(NamedTuple):
    """Picture uint8 (S, S), the name of the view that made it, and what is doubtful about it."""

    image: np.ndarray
    view: str
    warnings: list[str]


def to_grey(stored: np.ndarray, dataset: Dataset, frame: Frame) -> Grey:
    """Stored values (rows, cols) to a picture: windowed, bone bright, centred on black.

    Pixel padding (PS3.3 C.7.5.1.1.2) and what the display shutter covers (C.7.6.11) become black. Raises Refusal for
    tables and slopes that make no sense and for films that are all padding.
    """
    hidden = _hidden(stored, dataset, frame)
    view, warnings = voi.choose(dataset, _content(stored, hidden))
    inverted, doubts = polarity.is_inverted(dataset)
    if view.line:
        black, white = view.line[::-1] if inverted else view.line
        values = stored.astype(np.float32)
        if hidden is not None:
            values[hidden] = black
        small = (resize(values, frame) - black) / (white - black)
    else:
        lowest = int(stored.min())
        table = view.curve(np.arange(lowest, int(stored.max()) + 1)).astype(np.float32)
        grey = (1 - table if inverted else table)[stored.astype(np.int32) - lowest]
        if hidden is not None:
            grey[hidden] = 0
        small = resize(grey, frame)
    (rows, cols), (top, left) = frame.inner, frame.offset
    image = np.zeros((frame.size_px, frame.size_px), np.uint8)
    image[top : top + rows, left : left + cols] = np.rint(np.clip(small, 0, 1) * 255)
    return Grey(image, view.name, [*doubts, *warnings])


def resize(values: np.ndarray, frame: Frame) -> np.ndarray:
    """(rows, cols) float32 to ``frame.inner``: area mean when shrinking (no aliasing), bilinear when enlarging."""
    rows, cols = frame.inner
    shrinks = rows < values.shape[0] or cols < values.shape[1]
    return cv2.resize(values, (cols, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _content(stored: np.ndarray, hidden: np.ndarray | None) -> np.ndarray:
    """(P,) a sample of the pixels that belong to the picture."""
    step = max(1, int((stored.size / SAMPLE_PIXELS) ** 0.5))
    sample = stored[::step, ::step]
    content = sample.ravel() if hidden is None else sample[~hidden[::step, ::step]]
    if not content.size:
        raise Refusal("every pixel of it is padding or behind the shutter", "Export the film again from its source")
    return content


def _hidden(stored: np.ndarray, dataset: Dataset, frame: Frame) -> np.ndarray | None:
    """(rows, cols) bool: padding, or outside the display shutter; None where the whole film counts."""
    hidden = shutter.visible(dataset, *stored.shape, frame.pixel_aspect)
    hidden = None if hidden is None else ~hidden
    value, limit = number(dataset, "PixelPaddingValue"), number(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return hidden
    ends = [_as_stored(end, stored) for end in (value, value if limit is None else limit)]
    padding = (stored >= min(ends)) & (stored <= max(ends))
    if hidden is None:
        return padding if padding.any() else None
    return hidden | padding


def _as_stored(value: float, stored: np.ndarray) -> float:
    """A padding value written with the wrong VR, 63536 for -2000 or the reverse, in the sign of the pixels."""
    span = 256**stored.dtype.itemsize
    if stored.dtype.kind == "i":
        return value - span if value >= span / 2 else value
    return value + span if value < 0 else value
