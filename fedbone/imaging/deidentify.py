"""One film without its patient: the Basic Profile of DICOM PS3.15 Annex E, tightened to an allow-list.

The new data set is built, not cleaned: what is not on the list of confidentiality.py never gets in, at any depth.
Text that gets in is a term of a closed list or made here; the rest are numbers and pixels.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement, empty_value_for_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless

from fedbone.errors import UserError
from fedbone.imaging import polarity
from fedbone.imaging.confidentiality import CHARACTERISTICS, CODED, CONCEPTS, TERMS, Options, fate, table_code
from fedbone.imaging.pixels import stored_values
from fedbone.imaging.pseudonyms import Key
from fedbone.imaging.spacing import number

_OLDEST = 89  # years; older people are so few that the age points at them (45 CFR 164.514 (b)(2)(i)(C))
_TEXT = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT")


def deidentify(
    dataset: Dataset, key: Key, options: Options | None = None, stored: np.ndarray | None = None
) -> tuple[Dataset, Counter]:
    """A new data set without the patient, and how often each (keyword, fate) occurred; ``dataset`` stays as it is.

    Pixel data are decoded (or given as ``stored``, rows x cols) and written again without loss, so that neither the
    comments of a compressed stream nor overlays in the unused bits survive; a header alone is fine too. Raises
    UserError where the film itself shows who it is (BurnedInAnnotation without margins to blank,
    RecognizableVisualFeatures) and for an object that is not one of the standard's. Source: PS3.15 E.1 to E.3.
    """
    options = options or Options()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values
        _require_clean(dataset, options)
        work = _Work(dataset, key, options)
        new = work.copy(dataset)
        new.SOPInstanceUID = key.uid(str(dataset.get("SOPInstanceUID") or "") or _content_hash(dataset))
        _declare(new, options)
        if "PixelData" in dataset:
            _write_pixels(new, dataset, stored_values(dataset) if stored is None else stored, options)
            work.fates["PixelData", "blanked at the margins" if options.blank_percent else "written again"] += 1
    return new, work.fates


class _Work:
    """One film on its way: what is done to each element, counted."""

    def __init__(self, dataset: Dataset, key: Key, options: Options) -> None:
        self.key, self.options, self.fates = key, options, Counter()
        self.big_endian = dataset.original_encoding[1] is False
        self.patient = str(dataset.get("PatientID") or "")
        names = (self.patient, *(str(dataset.get(uid) or "") for uid in ("StudyInstanceUID", "SOPInstanceUID")))
        self.days = key.days(next((name for name in names if name.strip()), ""))

    def copy(self, source: Dataset) -> Dataset:
        """The elements of ``source`` that may stay, each with its new value; pixel data are left to _write_pixels."""
        new = Dataset()
        for tag in source.keys():  # noqa: SIM118 - iterating over the data set itself decodes, and may raise
            try:
                element = source[tag]
            except Exception:  # a value that does not fit its VR
                self.fates["unreadable", "removed"] += 1
                continue
            if element.keyword == "PixelData":
                continue
            code = table_code(element.tag.group, element.tag.element)
            what = fate(element.keyword, code, self.options)
            value = self._value(element, what)
            if value is not None:
                new[tag] = DataElement(tag, element.VR, empty_value_for_VR(element.VR) if value == [] else value)
            word = "private" if element.tag.is_private else element.keyword or "unknown"
            done = _done(what, value, bool(_values(element)))
            self.fates[word, f"{done} (table: {code})" if code else done] += 1
        return new

    def _value(self, element: DataElement, what: str) -> object:
        """The new value; [] empties the element, None leaves it out."""
        if what == "pseudonym":
            return self.key.pseudonym(self.patient)
        if what == "replace UID":
            return [self.key.uid(str(uid)) for uid in _values(element) if str(uid)]
        if what == "shift":
            return [_shifted(str(day), self.days) for day in _values(element)]
        if what == "empty":
            return []
        if what == "keep" and element.keyword in CODED:
            return [item for item in map(_coded, element.value) if item]
        if what == "keep" and element.VR == "SQ":
            return Sequence([self.copy(item) for item in element.value])
        if what == "keep":
            return self._kept(element)
        return "ANONYMIZED" if what == "dummy" and element.VR in _TEXT else None

    def _kept(self, element: DataElement) -> object:
        """The values of an element on the list where they are numbers or terms of the list, else []."""
        word, values = element.keyword, _values(element)
        if word == "SOPClassUID":
            return element.value
        if word == "LUTData" and isinstance(element.value, bytes):
            return np.frombuffer(element.value, ">u2" if self.big_endian else "<u2").astype("<u2").tobytes()
        pattern = TERMS.get(word) or CHARACTERISTICS.get(word)
        if not pattern:
            numbers = all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
            return values if numbers else []
        terms = [str(value).strip() for value in values]
        good = [term for term in terms if re.fullmatch(pattern, term)]
        if word == "PatientAge":
            return [_at_most(age) for age in good]
        return good if word == "ImageType" or len(good) == len(terms) else []  # makers add values of their own there


def _coded(item: Dataset) -> Dataset | None:
    """A code of the list in the list's own words, None for any other (PS3.3 8.8)."""
    given = Code(str(item.get("CodeValue") or ""), str(item.get("CodingSchemeDesignator") or ""), "")
    known = next((code for code in CONCEPTS if code == given), None)
    if known is None:
        return None
    new = Dataset()
    new.CodeValue, new.CodingSchemeDesignator, new.CodeMeaning = known.value, known.scheme_designator, known.meaning
    if "ViewModifierCodeSequence" in item:
        new.ViewModifierCodeSequence = [code for code in map(_coded, item.ViewModifierCodeSequence) if code]
    return new


def _done(what: str, value: object, was_there: bool) -> str:
    """One word for the report."""
    if value is None:
        return "removed"
    if what in ("pseudonym", "replace UID", "dummy"):
        return "replaced"
    lost = value in ([], [""]) and was_there
    return "emptied" if what == "empty" or lost else "shifted" if what == "shift" else "kept"


def _values(element: DataElement) -> list:
    value = element.value
    if value is None or value == "" or value == b"":
        return []
    return list(value) if element.VM > 1 or element.VR == "SQ" else [value]


def _shifted(text: str, days: int) -> str:
    """A DA or DT as a date ``days`` earlier; '' for what is no date. The time of day goes."""
    try:
        return (datetime.strptime(text.replace(".", "")[:8], "%Y%m%d") - timedelta(days)).strftime("%Y%m%d").zfill(8)
    except (ValueError, OverflowError):
        return ""


def _at_most(age: str) -> str:
    return f"{_OLDEST + 1:03d}Y" if age[3] == "Y" and int(age[:3]) > _OLDEST else age


def _content_hash(dataset: Dataset) -> str:
    """What stands for a missing SOP Instance UID: the same film gets the same new UID."""
    return hashlib.sha256(dataset.get("PixelData") or b"").hexdigest()


def _require_clean(dataset: Dataset, options: Options) -> None:
    kind = UID(str(dataset.get("SOPClassUID") or ""))
    if kind.type != "SOP Class":
        problem = "its SOP Class UID is not one of the standard's"
        raise UserError("SOPClassUID", problem, "Export it as a standard CR or DX image")
    if str(dataset.get("RecognizableVisualFeatures") or "").strip().upper() == "YES":
        problem = "the picture may show a face (RecognizableVisualFeatures is YES)"
        raise UserError("RecognizableVisualFeatures", problem, "Leave it out: no margin can hide that")
    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES" and not options.blank_percent:
        problem = "text is burned into the picture (BurnedInAnnotation is YES)"
        remedy = "Look where it stands and blank these margins with --blank-margins, or leave the film out"
        raise UserError("BurnedInAnnotation", problem, remedy)


def _declare(new: Dataset, options: Options) -> None:
    """Say in the header what was done (PS3.3 C.12.1.1 and C.7.1.1, PS3.15 E.1.1)."""
    new.PatientIdentityRemoved = "YES"
    new.DeidentificationMethod = ["PS3.15 E.1 Basic Profile, allow-list of attributes", "fedbone"]
    items = []
    for value, meaning in options.codes():
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    new.DeidentificationMethodCodeSequence = Sequence(items)
    new.LongitudinalTemporalInformationModified = "MODIFIED" if options.shift_dates else "REMOVED"
    if options.blank_percent:
        new.BurnedInAnnotation = "NO"
    new.file_meta = FileMetaDataset()
    new.file_meta.MediaStorageSOPClassUID = new.SOPClassUID
    new.file_meta.MediaStorageSOPInstanceUID = new.SOPInstanceUID
    new.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _write_pixels(new: Dataset, source: Dataset, values: np.ndarray, options: Options) -> None:
    """The stored values, margins blanked: native films stay native, compressed ones become JPEG 2000 lossless."""
    if options.blank_percent:
        values = blank(values, source, options.blank_percent)
    new.HighBit, new.SamplesPerPixel = new.BitsStored - 1, 1
    kind = f"<{'i' if new.get('PixelRepresentation') else 'u'}{new.BitsAllocated // 8}"
    data = values.astype(kind).tobytes()
    data += b"\0" * (len(data) % 2)

    def native() -> None:
        new.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        new["PixelData"] = DataElement("PixelData", "OB" if new.BitsAllocated == 8 else "OW", data)

    native()
    if source.file_meta.TransferSyntaxUID.is_encapsulated:
        try:
            new.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
            same = np.array_equal(stored_values(new), values)
        except Exception:  # some depths the encoder does not know
            same = False
        if not same:
            native()


def is_dicom(file: Path) -> bool:
    """Whether a file calls itself DICOM, by its name, its preamble or its first group. Raises OSError."""
    with file.open("rb") as stream:
        head = stream.read(132)
    if file.name.upper() == "DICOMDIR":
        return False
    bare = head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # no preamble, either byte order
    return bare or head[128:] == b"DICM" or file.suffix.lower() in (".dcm", ".dicom", ".ima")


def blank(values: np.ndarray, dataset: Dataset, percent: tuple[float, float, float, float]) -> np.ndarray:
    """Stored values (rows, cols) with the margins (top, right, bottom, left in % of the side) as the film's black."""
    rows, cols = values.shape
    top, right, bottom, left = (
        math.ceil(share * side / 100) for share, side in zip(percent, (rows, cols, rows, cols), strict=True)
    )
    inside = (slice(top, rows - bottom), slice(left, cols - right))
    if not values[inside].size:
        raise UserError("--blank-margins", "nothing of the film would remain", "Blank less")
    inverted, _ = polarity.is_inverted(dataset)
    falling = (number(dataset, "RescaleSlope") or 1) < 0
    kept = values[inside]
    blanked = np.full_like(values, kept.max() if inverted != falling else kept.min())
    blanked[inside] = kept
    return blanked
