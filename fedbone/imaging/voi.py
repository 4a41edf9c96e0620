"""The ways a film's header offers to turn stored values into grey: Modality LUT, VOI LUT, windows, or none at all.

Chain (PS3.3 C.11.1 and C.11.2, PS3.4 N.2): stored value -> Modality LUT or rescale -> VOI LUT or window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

from fedbone.imaging.polarity import is_intensity
from fedbone.imaging.refusal import Refusal
from fedbone.imaging.spacing import number, numbers

ROBUST_PERCENTILES = (0.5, 99.5)  # markers and dead pixels must not set the range
FEWEST_LEVELS = 2 / 255  # content that spans less grey than this is a black, white or flat picture
_TABLES = "Export the film again, without its lookup tables if the system offers that"


@dataclass(frozen=True)
class View:
    """One way to grey: its name, ``curve`` from stored values (integers, any shape) to grey in [0, 1], and ``line``.

    line: the stored values that become black and white where the whole chain is one straight line, else None.
    """

    name: str
    curve: Callable[[np.ndarray], np.ndarray]
    line: tuple[float, float] | None = None


def choose(dataset: Dataset, content: np.ndarray) -> tuple[View, list[str]]:
    """The first view that shows something of ``content`` (P,), the film's stored values without padding.

    Order: VOI LUTs, windows, then the robust range of the content. A view that lies off the content is passed over,
    with a warning. Raises Refusal for tables and slopes that make no sense.
    """
    ends = np.percentile(content, ROBUST_PERCENTILES, method="nearest")
    points = np.linspace(*ends, 65).astype(np.int64)
    offered = list(views(dataset, ends))
    for number_of, view in enumerate(offered):
        last = number_of == len(offered) - 1 or ends[0] == ends[1]  # nothing shows more of an even picture
        if last or np.ptp(view.curve(points)) >= FEWEST_LEVELS:
            break
    return view, [f"{offered[0].name} lies off the pixel values: {view.name} used instead"] * (number_of > 0)


def views(dataset: Dataset, ends: np.ndarray) -> Iterator[View]:
    """Every view of the header in its order, then the range between ``ends``, low and high stored values."""
    slope, intercept = _rescale(dataset)

    def modality(stored: np.ndarray) -> np.ndarray:
        if dataset.get("ModalityLUTSequence"):
            return _look_up(stored, dataset, "ModalityLUTSequence", 0)[0]
        return stored * slope + intercept

    def line(low: float, high: float) -> tuple[float, float]:
        black, white = (low - intercept) / slope, (high - intercept) / slope
        # a window of one value is a step (PS3.3 C.11.2.1.2.1): keep the division finite
        return black, white if white != black else black + np.copysign(1e-3, slope)

    def voi_lut(stored: np.ndarray, index: int) -> np.ndarray:
        values, bits = _look_up(modality(stored), dataset, "VOILUTSequence", index)
        return values / (2.0**bits - 1)

    straight = not dataset.get("ModalityLUTSequence")
    tables, straights = len(dataset.get("VOILUTSequence") or ()), list(windows(dataset))
    for index in range(tables):
        yield View(_name("VOI LUT", index, tables), lambda stored, index=index: voi_lut(stored, index))
    for index, (function, centre, width) in enumerate(straights):
        window = _window(function, centre, width)
        edges = None if function == "SIGMOID" or not straight else line(*_edges(function, centre, width))
        name = _name(f"window {function}", index, len(straights))
        yield View(name, lambda stored, window=window: apply_windowing(modality(stored), window), edges)
    if is_intensity(dataset):
        yield _range("content range of the logarithm", lambda stored: np.log(np.maximum(modality(stored), 1)), ends)
    else:
        low, high = sorted(modality(ends))
        yield _range("content range", modality, ends, line(low, high) if straight else None)


def _name(kind: str, index: int, count: int) -> str:
    return kind if count == 1 else f"{kind} {index + 1} of {count}"


def windows(dataset: Dataset) -> Iterator[tuple[str, float, float]]:
    """VOI LUT Function, centre and width of every usable window (PS3.3 C.11.2)."""
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    function = function if function in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
    for centre, width in zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False):
        if width > 0:  # below 1 LINEAR has no meaning, writers mean LINEAR_EXACT
            yield "LINEAR_EXACT" if function == "LINEAR" and width < 1 else function, centre, width


def _window(function: str, centre: float, width: float) -> Dataset:
    """A header for pydicom's windowing whose one stored bit makes its output run from 0 to 1."""
    header = Dataset()
    header.PhotometricInterpretation, header.PixelRepresentation, header.BitsStored = "MONOCHROME2", 0, 1
    header.VOILUTFunction = function
    header.add_new("WindowCenter", "FD", centre)
    header.add_new("WindowWidth", "FD", width)
    return header


def _edges(function: str, centre: float, width: float) -> tuple[float, float]:
    """Values at the two ends of a straight window (PS3.3 C.11.2.1.2.1 and C.11.2.1.3.2)."""
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return centre - width / 2, centre + width / 2


def _range(
    name: str, values: Callable[[np.ndarray], np.ndarray], ends: np.ndarray, line: tuple[float, float] | None = None
) -> View:
    low, high = sorted(values(ends))
    return View(name, lambda stored: np.clip((values(stored) - low) / max(high - low, 1e-3), 0, 1), line)


def _rescale(dataset: Dataset) -> tuple[float, float]:
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if slope == 0:
        raise Refusal("its RescaleSlope is 0, which makes every pixel the same", "Export it again with its rescale")
    return 1.0 if slope is None else slope, intercept or 0.0


def _look_up(values: np.ndarray, dataset: Dataset, keyword: str, index: int) -> tuple[np.ndarray, int]:
    """Values through one LUT item, and the bits of its entries (PS3.3 C.11.1.1.1, C.11.2.1.1)."""
    item = dataset[keyword].value[index]
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries or 2**16  # 65536 does not fit the descriptor
    data = item.LUTData
    count = len(data) // 2 if isinstance(data, bytes) else np.size(data)
    packed = bits == 8 and count == (entries + 1) // 2  # two entries of 8 bits in a word
    if (count < entries and not packed) or not 8 <= bits <= 16:
        raise Refusal(f"its lookup table of {entries} entries of {bits} bits holds {count}", _TABLES)
    inside = np.clip(np.rint(values), first, first + entries - 1).astype(np.int64)
    if keyword == "VOILUTSequence" and bits >= 10:
        return apply_voi(inside, dataset, index).astype(np.float64), bits
    if keyword == "ModalityLUTSequence" and bits == 16:
        return apply_modality_lut(inside, dataset).astype(np.float64), bits
    # pydicom 3.0 wraps the index of 8-bit entries at 256, cannot unpack them, and refuses 9 to 15 bits of modality
    big_endian = dataset.original_encoding[1] is False
    words = np.frombuffer(data, ">u2" if big_endian else "<u2") if isinstance(data, bytes) else np.array(data, "<u2")
    table = words.astype("<u2").view(np.uint8) if packed else words
    return table[inside - first].astype(np.float64), bits
