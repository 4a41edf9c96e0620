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

# gdcm is pydicom's first choice, but a damaged stream makes it end the process: it only ever runs in one of its own
GDCM_ONLY = (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
PLUGINS = {JPEGBaseline8Bit: "pillow", JPEGExtended12Bit: "pillow", RLELossless: "pydicom"}  # else pylibjpeg
GDCM_SECONDS = 120
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

    Raises whatever the decoder does, ValueError among it, where the stream is damaged or not supported.
    """
    syntax: UID = dataset.file_meta.TransferSyntaxUID
    if syntax in GDCM_ONLY:
        values = _decode_apart(dataset, syntax)
    elif syntax.is_encapsulated:
        values = pixel_array(dataset, decoding_plugin=PLUGINS.get(syntax, "pylibjpeg"), correct_unused_bits=False)
    else:
        values = pixel_array(dataset, correct_unused_bits=False)
    if values.shape != (dataset.Rows, dataset.Columns):
        raise ValueError(f"expected {dataset.Rows} x {dataset.Columns} pixels, decoded {values.shape}")
    unused = 8 * values.dtype.itemsize - dataset.BitsStored
    if unused <= 0:
        return values
    # pydicom takes the lowest BitsStored bits whatever HighBit says; codecs other than RLE always put them there
    packed = syntax.is_encapsulated and syntax != RLELossless
    above = unused if packed else dataset.BitsAllocated - 1 - dataset.get("HighBit", dataset.BitsStored - 1)
    return (values << above) >> unused


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
