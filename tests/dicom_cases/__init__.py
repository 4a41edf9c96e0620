"""Small films for the tests: any pixel format, any tag, any transfer syntax, written as a scanner would."""

from __future__ import annotations

import zlib  # noqa: F401 (loaded before gdcm, whose own copy would serve whatever comes later, and crash OpenCV's PNG)
from pathlib import Path

import gdcm
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

GDCM_SYNTAXES = {
    "1.2.840.10008.1.2.4.51": gdcm.TransferSyntax.JPEGExtendedProcess2_4,
    "1.2.840.10008.1.2.4.57": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "1.2.840.10008.1.2.4.70": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "1.2.840.10008.1.2.4.80": gdcm.TransferSyntax.JPEGLSLossless,
    "1.2.840.10008.1.2.5": gdcm.TransferSyntax.RLELossless,
}


def ramp(rows: int = 60, cols: int = 44, high: int = 4095) -> np.ndarray:
    """uint16 (rows, cols): a diagonal ramp from 0 to ``high``, so that every grey level occurs."""
    y, x = np.mgrid[:rows, :cols]
    return np.round((x / (cols - 1) + y / (rows - 1)) / 2 * high).astype(np.uint16)


def film(values: np.ndarray, **tags: object) -> Dataset:
    """A DX film of ``values``; tags replace or add elements by keyword, None removes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    dataset.PatientID, dataset.PatientName = "SECRET-4711", "Doe^Jane"
    dataset.Modality = "DX"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored = tags.pop("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    data = values.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
        if value is None:
            delattr(dataset, keyword)
    return dataset


def save(path: Path, dataset: Dataset, syntax: str | None = None) -> Path:
    """Write the data set, with gdcm's encoder for a compressed ``syntax``; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    if syntax is not None:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(GDCM_SYNTAXES[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change(), f"gdcm cannot encode {syntax}"
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()
    return path


def lut(values: np.ndarray, first: int, bits: int) -> Sequence:
    """A one-item LUT sequence: ``values`` of ``bits`` bits, the first for input ``first``."""
    item = Dataset()
    item.LUTDescriptor = [len(values) % 2**16, first, bits]
    item.LUTData = [int(value) for value in values]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item["LUTData"].VR = "US"
    return Sequence([item])
