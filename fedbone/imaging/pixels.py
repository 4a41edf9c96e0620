"""Stored pixel values out of a DICOM data set, whatever the transfer syntax, without risk to the running process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from fedbone.imaging.codestream import require_match
from fedbone.imaging.refusal import AGAIN, Refusal

# gdcm is pydicom's first choice, but a damaged stream makes it end the process: it only ever runs in one of its own
GDCM_ONLY = (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
PLUGINS = {JPEGBaseline8Bit: "pillow", JPEGExtended12Bit: "pillow", RLELossless: "pydicom"}  # else pylibjpeg
GDCM_SECONDS = 60
COLOUR_ROUNDING = 2  # grey levels that YBR and lossy JPEG may put between equal channels
COLOUR_REMEDY = "Export the original film in place of a colour copy"
GDCM_PROGRAM = """
import sys, gdcm
syntax, photometric, (rows, cols, allocated, stored, signed) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])
fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
fragment.SetByteStringValue(sys.stdin.buffer.read())
fragments.AddFragment(fragment)
element, image = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010)), gdcm.Image()
element.SetValue(fragments.__ref__())
image.SetNumberOfDimensions(2)
image.SetDimensions((cols, rows, 1))
image.SetDataElement(element)
kind = gdcm.PhotometricInterpretation.GetPIType(photometric)
image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
image.SetPixelFormat(gdcm.PixelFormat(1, allocated, stored, stored - 1, signed))
sys.stdout.buffer.write(image.GetBuffer().encode("utf-8", "surrogateescape"))
"""


def stored_values(dataset: Dataset) -> np.ndarray:
    """Stored values (rows, cols), unused bits removed and the sign extended (PS3.5 8.1.1).

    Raises Refusal where the reason is known, else whatever the decoder does, where a stream is damaged.
    """
    syntax = _check_stream(dataset)
    if syntax in GDCM_ONLY:
        values = _decode_apart(dataset, syntax)
    else:
        values = pixel_array(dataset, decoding_plugin=plugin(syntax), correct_unused_bits=False)
    if values.shape != (dataset.Rows, dataset.Columns):
        raise ValueError(f"expected {dataset.Rows} x {dataset.Columns} pixels, decoded {values.shape}")
    unused = 8 * values.dtype.itemsize - dataset.BitsStored
    if unused <= 0:
        return values
    # pydicom takes the lowest BitsStored bits whatever HighBit says; codecs other than RLE always put them there
    packed = syntax.is_encapsulated and syntax != RLELossless
    above = unused if packed else dataset.BitsAllocated - 1 - dataset.get("HighBit", dataset.BitsStored - 1)
    return (values << above) >> unused


def grey_of_colour(dataset: Dataset) -> np.ndarray:
    """The one channel uint8 (rows, cols) of a colour copy whose channels are equal: a grey film saved as colour.

    Raises Refusal where the picture has colour: which film lies under a tint or a drawing cannot be told.
    """
    syntax = _check_stream(dataset)
    if syntax in GDCM_ONLY or dataset.BitsAllocated != 8:
        problem = f"it is a colour picture of {dataset.BitsAllocated} bits ({syntax.name})"
        raise Refusal(problem, COLOUR_REMEDY)
    values = pixel_array(dataset, decoding_plugin=plugin(syntax))  # RGB, whatever was stored
    if values.shape != (dataset.Rows, dataset.Columns, 3):
        raise ValueError(f"expected {dataset.Rows} x {dataset.Columns} colour pixels, decoded {values.shape}")
    channels = [values[..., channel].astype(np.int16) for channel in range(3)]
    if max(np.abs(channels[1] - other).max() for other in channels) > COLOUR_ROUNDING:
        raise Refusal("it is a colour picture: its red, green and blue differ", COLOUR_REMEDY)
    return np.ascontiguousarray(values[..., 1])


def plugin(syntax: UID) -> str:
    """The decoder of a transfer syntax, '' where none is needed."""
    return PLUGINS.get(syntax, "pylibjpeg") if syntax.is_encapsulated else ""


def _check_stream(dataset: Dataset) -> UID:
    """The transfer syntax; raises Refusal where the pixel data cannot be what the header says."""
    syntax: UID = dataset.file_meta.TransferSyntaxUID
    samples, data = dataset.get("SamplesPerPixel", 1), dataset.PixelData
    chroma_halved = dataset.PhotometricInterpretation == "YBR_FULL_422" and not syntax.is_encapsulated
    size = dataset.Rows * dataset.Columns * (2 if chroma_halved else samples) * dataset.BitsAllocated // 8
    if not syntax.is_encapsulated:
        if len(data) < size:
            raise Refusal(f"it is cut short: {len(data)} bytes of pixel data, expected {size}", AGAIN)
    elif syntax == RLELossless:
        if len(data) > 2 * size + 4096:  # runs cannot double a film; a stream of zeros inflates 64 times
            raise Refusal("its RLE stream is longer than its picture", AGAIN)
    else:
        found = require_match(get_frame(data, 0, number_of_frames=1), dataset.Rows, dataset.Columns, samples)
        if syntax == JPEGExtended12Bit and found and found.bits > 8:
            problem = (
                f"its pixel data ({syntax.name}) have {found.bits} bits a pixel, and nothing here decodes more than 8"
            )
            raise Refusal(problem, "12-bit JPEG Extended is not supported: export it as JPEG 2000")
    return syntax


def _decode_apart(dataset: Dataset, syntax: UID) -> np.ndarray:
    """gdcm's decoding in a child process: 0.1 s more a film."""
    rows, cols, signed = dataset.Rows, dataset.Columns, dataset.get("PixelRepresentation", 0)
    numbers = (rows, cols, dataset.BitsAllocated, dataset.BitsStored, signed)
    command = [sys.executable, "-P", "-c", GDCM_PROGRAM, syntax, dataset.PhotometricInterpretation, *map(str, numbers)]
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    child = subprocess.run(command, input=frame, capture_output=True, timeout=GDCM_SECONDS, check=True)
    size = len(child.stdout) // (rows * cols)  # 8 bits stored in 16 come back as 8
    if size not in (1, 2) or len(child.stdout) != size * rows * cols:
        raise ValueError(f"expected {rows} x {cols} pixels, decoded {len(child.stdout)} bytes")
    return np.frombuffer(child.stdout, f"<{'i' if signed else 'u'}{size}").reshape(rows, cols)
