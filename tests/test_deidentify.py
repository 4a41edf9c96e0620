"""One film without its patient: against table E.1-1, the whole DICOM dictionary, and the pictures before and after."""

from __future__ import annotations

import io
import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.datadict import DicomDictionary, dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from fedbone.errors import UserError
from fedbone.imaging.confidentiality import CHARACTERISTICS, CODED, EMPTIED, FILLED, NUMBERS, SEQUENCES, TERMS, Options
from fedbone.imaging.deidentify import deidentify
from fedbone.imaging.dicom import read_film, read_stored
from fedbone.imaging.pseudonyms import Key
from tests.dicom_cases import film, lut, ramp, save
from tests.planted import write_words

ROOT = Path(__file__).resolve().parents[1]
KEY = Key(bytes(range(32)))
WORD = "ZQWORD7"
TEXTS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
VALUES = dict.fromkeys(TEXTS, WORD) | {
    "AS": "077Y", "DA": "19370428", "DT": "19370428101112", "TM": "101112.5", "UI": "1.2.3.4.5.77", "DS": "7.5",
    "IS": "7", "FD": 7.5, "FL": 7.5, "SL": 7, "SS": 7, "SV": 7, "UL": 7, "US": 7, "UV": 7, "AT": 0x00100010,
    "OB": b"ZQWORD7\0", "OW": b"ZQWORD7\0", "OD": b"ZQWORD7\0", "OF": b"ZQWORD7\0", "OL": b"ZQWORD7\0",
    "OV": b"ZQWORD7\0", "UN": b"ZQWORD7\0",
}  # fmt: skip


DECLARED = {"PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"}
DECLARED |= {"LongitudinalTemporalInformationModified", "CodeValue", "CodingSchemeDesignator", "CodeMeaning"}


def element(tag: int, vr: str) -> DataElement:
    vr = {"US or SS": "US", "US or OW": "US", "US or SS or OW": "US", "OB or OW": "OB"}.get(vr, vr)
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.ReferencedSOPInstanceUID = WORD, "1.2.3.4.5.77"
        return DataElement(tag, vr, Sequence([item]))
    return DataElement(tag, vr, VALUES[vr])


def header(**elements: object) -> Dataset:
    """A film's header without pixels."""
    dataset = film(ramp(), BitsStored=12, **elements)
    del dataset.PixelData
    return dataset


def written(dataset: Dataset) -> Dataset:
    """The data set as it comes back from its file: what is judged is the file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def every_tag() -> list[tuple[int, str]]:
    skipped = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    needed = {e.tag for e in header()}
    return [
        (tag, vr)
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items()
        if tag >> 16 > 2 and vr != "NONE" and keyword and keyword not in skipped and tag not in needed
        and vr in VALUES.keys() | {"SQ", "US or SS", "US or OW", "US or SS or OW", "OB or OW"}
    ]  # fmt: skip


# ---- which attributes


@pytest.mark.filterwarnings("ignore:Unknown encoding")  # SpecificCharacterSet holds a word, too
def test_no_attribute_of_the_dictionary_brings_words_dates_or_bytes_along() -> None:
    """All of PS3.6 in one header, and once more in an item of a sequence that a film keeps."""
    dataset, item = header(), lut(np.arange(300), 0, 16)[0]
    for tag, vr in every_tag():
        dataset[tag] = element(tag, vr)
        if not item.get(tag):
            item[tag] = element(tag, vr)
    dataset.VOILUTSequence = Sequence([item])
    assert len(dataset) > 4500
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    forbidden = [b"ZQWORD7", b"19370428", b"101112", b"1.2.3.4.5.77", b"077Y"]
    assert all(word in buffer.getvalue() for word in forbidden)
    new, _ = deidentify(dataset, KEY)
    file = io.BytesIO()
    new.save_as(file, enforce_file_format=True)
    assert not [word for word in forbidden if word in file.getvalue()]
    known = NUMBERS | set(TERMS) | SEQUENCES | CODED | EMPTIED | FILLED | {"SOPClassUID"} | DECLARED
    in_table = {row[0] << 16 | row[1] for row in table.ALL_TAGS}
    assert not {e.keyword for e in new.iterall() if e.tag not in in_table} - known


ROWS = {  # action code of PS3.15: the package's name for it
    "X": "X", "Z": "Z", "D": "D", "U": "U", "Z/D": "Z_D", "X/Z": "X_Z", "X/D": "X_D", "X/Z/D": "X_Z_D",
    "X/Z/U*": "X_Z_U_STAR",
}  # fmt: skip
ALLOWED = {  # PS3.15 table E.1-1a
    "X": {"gone"}, "Z": {"empty", "other"}, "D": {"other", "gone"}, "U": {"other"}, "Z/D": {"empty", "other"},
    "X/Z": {"gone", "empty"}, "X/D": {"gone", "other"}, "X/Z/D": {"gone", "empty", "other"},
    "X/Z/U*": {"gone", "empty"},
}  # fmt: skip
SHIFTED = {"StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime"}


@pytest.mark.parametrize("shift_dates", [True, False])
@pytest.mark.parametrize("code", ROWS)
def test_every_row_of_the_table_gets_its_action(code: str, shift_dates: bool) -> None:
    """D may also be "gone": outside the modules of a film there is no conformance to keep."""
    rows = [tag for tag in getattr(table, f"{ROWS[code]}_TAGS") if tag[0] > 2]
    assert rows
    for row in rows:
        tag = row[0] << 16 | row[1] | (0x3000 if len(row) == 4 and row[1] == 0 else 0)
        if row in ((0x0010, 0x0010), (0x0010, 0x0020)):
            continue  # the pseudonym: see below
        vr = "OB" if len(row) == 4 else dictionary_VR(tag) if dictionary_has_tag(tag) else "LO"
        dataset = header()
        dataset[tag] = old = element(tag, vr)
        new, _ = deidentify(dataset, KEY, Options(shift_dates=shift_dates))
        new = written(new)
        now = "gone" if tag not in new else "empty" if not new[tag].value else "other" if new[tag] != old else "same"
        allowed = {"other"} if len(row) == 2 and shift_dates and keyword_for_tag(tag) in SHIFTED else ALLOWED[code]
        assert now in allowed, f"{row}: {now}, expected {allowed}"


def test_nothing_that_is_kept_stands_in_the_table() -> None:
    kept = NUMBERS | set(TERMS) | SEQUENCES | CODED
    rows = {keyword_for_tag(row[0] << 16 | row[1]) for row in table.ALL_TAGS if len(row) == 2}
    assert not kept & rows
    assert set(CHARACTERISTICS) <= rows
    assert all(dictionary_VR(word) in ("DS", "IS", "US", "US or SS", "SS", "US or OW", "FD") for word in NUMBERS)


@pytest.mark.parametrize("word", sorted(TERMS))
def test_terms_are_a_closed_list(word: str) -> None:
    for value in (WORD, "DOE JOHN", "A1063558", "AP SMITH"):
        dataset = header(**{word: value})
        dataset.PhotometricInterpretation = dataset.get("PhotometricInterpretation") or "MONOCHROME2"
        assert not deidentify(dataset, KEY)[0].get(word)


def raw(keyword: str, vr: str, value: bytes) -> RawDataElement:
    return RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)


def test_what_a_film_must_have_a_place_for_stays_in_place() -> None:
    """Type 2 attributes of CR and DX (PS3.3 A.2 and A.26) are emptied or replaced, never removed."""
    words = "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID"
    words += " AccessionNumber Manufacturer ContentDate ContentTime AcquisitionContextSequence AnatomicRegionSequence"
    words += " ViewCodeSequence PositionerType DetectorType SeriesNumber InstanceNumber"
    dataset = header()
    for word in words.split():
        dataset[Tag(word)] = element(Tag(word), dictionary_VR(word))
    for shift_dates in (True, False):
        new = written(deidentify(dataset, KEY, Options(shift_dates=shift_dates))[0])
        assert [word for word in words.split() if word not in new] == []


def test_numbers_must_be_numbers() -> None:
    dataset = header()
    dataset[Tag("KVP")] = raw("KVP", "DS", b"ZQWORD7 ")
    dataset[Tag("PixelPaddingValue")] = raw("PixelPaddingValue", "US", b"ZQWORD7")
    dataset.add_new("ExposureIndex", "LO", WORD)
    new, fates = deidentify(dataset, KEY)
    assert fates["unreadable", "removed"] == 1
    assert "PixelPaddingValue" not in new
    assert fates["ExposureIndex", "emptied"] == fates["KVP", "emptied"] == 1
    assert not new.get("KVP")
    assert not new.get("ExposureIndex")


def test_codes_are_a_closed_list_in_its_own_words() -> None:
    known, old_form, strange, wrong_scheme = Dataset(), Dataset(), Dataset(), Dataset()
    known.CodeValue, known.CodingSchemeDesignator, known.CodeMeaning = "399348003", "SCT", WORD
    old_form.CodeValue, old_form.CodingSchemeDesignator, old_form.CodeMeaning = "R-10206", "SRT", WORD
    strange.CodeValue, strange.CodingSchemeDesignator, strange.CodeMeaning = WORD, "SCT", "x"
    wrong_scheme.CodeValue, wrong_scheme.CodingSchemeDesignator, wrong_scheme.CodeMeaning = "399348003", "99X", "x"
    known.ViewModifierCodeSequence = Sequence([strange])
    known.PatientName = WORD
    new, _ = deidentify(header(ViewCodeSequence=Sequence([known, old_form, strange, wrong_scheme])), KEY)
    items = written(new).ViewCodeSequence
    assert [(i.CodeValue, i.CodingSchemeDesignator, i.CodeMeaning) for i in items] == [
        ("399348003", "SCT", "antero-posterior")
    ] * 2
    assert not items[0].ViewModifierCodeSequence
    assert "PatientName" not in items[0]


# ---- patients, UIDs, dates


def test_pseudonym_and_uids_hold_a_study_together() -> None:
    first, second = header(StudyInstanceUID="1.2.3"), header(StudyInstanceUID="1.2.3", PatientID="SECRET-4711 ")
    other = header(StudyInstanceUID="1.2.4", PatientID="B")
    a, b, c = (written(deidentify(dataset, KEY)[0]) for dataset in (first, second, other))
    assert a.StudyInstanceUID == b.StudyInstanceUID != c.StudyInstanceUID
    assert a.PatientID == b.PatientID == a.PatientName == KEY.pseudonym("SECRET-4711") != c.PatientID
    assert a.SOPInstanceUID != b.SOPInstanceUID
    in_memory = deidentify(first, KEY)[0]
    assert in_memory.file_meta.MediaStorageSOPInstanceUID == in_memory.SOPInstanceUID
    assert a.SOPInstanceUID == a.file_meta.MediaStorageSOPInstanceUID == KEY.uid(first.SOPInstanceUID)
    assert deidentify(first, Key(bytes(32)))[0].StudyInstanceUID != a.StudyInstanceUID


def test_the_given_data_set_stays_as_it_is() -> None:
    dataset = film(ramp(), BitsStored=12)
    before = dataset.to_json()
    deidentify(dataset, KEY, Options(blank_percent=(10, 10, 10, 10)))
    assert dataset.to_json() == before


def test_a_film_without_patient_stays_without() -> None:
    assert deidentify(header(PatientID=None, StudyInstanceUID="1.2"), KEY)[0].get("PatientID") is None
    assert deidentify(header(PatientID=""), KEY)[0].PatientID == ""


days = st.dates(date(1900, 1, 1), date(2100, 12, 31))


@given(days, days)
@settings(max_examples=50)
def test_dates_of_one_patient_keep_their_distance(first: date, second: date) -> None:
    texts = [day.strftime("%Y%m%d") for day in (first, second)]
    new, _ = deidentify(header(StudyDate=texts[0], AcquisitionDateTime=f"{texts[1]}101112.25+0100"), KEY)
    moved = [date.fromisoformat(text) for text in (new.StudyDate, new.AcquisitionDateTime)]
    assert moved[1] - moved[0] == second - first
    assert moved[0] == first - timedelta(KEY.days("SECRET-4711")) != first


def test_two_patients_are_shifted_differently() -> None:
    one, two = (deidentify(header(PatientID=name, StudyDate="20260302"), KEY)[0].StudyDate for name in ("A", "B"))
    assert one != two


@pytest.mark.parametrize("text", ["2026", "20261399", "19000101-20260101", "tomorrow", ""])
def test_what_is_no_date_is_emptied(text: str) -> None:
    dataset = header()
    dataset.add_new("StudyDate", "LO", text)
    new, _ = deidentify(dataset, KEY)
    assert not new.StudyDate or new.StudyDate.isdigit()
    assert text == "" or text not in str(new.StudyDate)


def test_times_go_and_dates_go_on_demand() -> None:
    dataset = header(
        StudyDate="20260302", SeriesDate="20260302", StudyTime="101112", AcquisitionDateTime="20260302101112"
    )
    new = deidentify(dataset, KEY)[0]
    assert (new.StudyTime, len(new.AcquisitionDateTime)) == ("", 8)
    assert new.LongitudinalTemporalInformationModified == "MODIFIED"
    bare = deidentify(dataset, KEY, Options(shift_dates=False))[0]
    assert bare.StudyDate == ""
    assert "SeriesDate" not in bare
    assert bare.LongitudinalTemporalInformationModified == "REMOVED"


@pytest.mark.parametrize(
    ("age", "expected"), [("089Y", "089Y"), ("090Y", "090Y"), ("091Y", "090Y"), ("103Y", "090Y"), ("011M", "011M")]
)
def test_characteristics_stay_on_demand_only(age: str, expected: str) -> None:
    dataset = header(PatientAge=age, PatientSex="F", PatientSize="1.7", PatientWeight="61", EthnicGroup=WORD)
    new = deidentify(dataset, KEY, Options(keep_characteristics=True))[0]
    assert (new.PatientAge, new.PatientSex, new.PatientSize, new.PatientWeight) == (expected, "F", 1.7, 61)
    assert "EthnicGroup" not in new
    plain = deidentify(dataset, KEY)[0]
    assert plain.PatientSex == ""
    assert not {"PatientAge", "PatientSize", "PatientWeight"} & set(plain.dir())


# ---- what the header says was done


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options(), {"113100", "113107"}),
        (Options(shift_dates=False), {"113100"}),
        (Options(False, True, (5, 0, 0, 0)), {"113100", "113108", "113101"}),
    ],
)
def test_the_method_is_declared_in_codes(options: Options, expected: set[str]) -> None:
    new = written(deidentify(film(ramp(), BitsStored=12), KEY, options)[0])
    assert new.PatientIdentityRemoved == "YES"
    assert new.DeidentificationMethod
    items = new.DeidentificationMethodCodeSequence
    assert {item.CodeValue for item in items} == expected
    known = {code.value: code.meaning for code in codes.cid7050.concepts.values()}
    assert all(item.CodeMeaning == known[item.CodeValue] for item in items)  # pydicom's copy of PS3.16
    assert all(item.CodingSchemeDesignator == "DCM" for item in items)


def test_no_text_breaks_its_vr() -> None:
    with pydicom.config.disable_value_validation():
        new = deidentify(film(ramp(), BitsStored=12), KEY)[0]
    for e in written(new).iterall():
        if e.VR in ("SH", "CS", "LO", "UI"):
            for value in [e.value] if e.VM < 2 else e.value:
                pydicom.valuerep.validate_value(e.VR, value, pydicom.config.RAISE)


# ---- pixels


def picture_pair(path: Path, tmp_path: Path, options: Options | None = None) -> tuple[np.ndarray, np.ndarray, Dataset]:
    before = read_film(path, 128)
    dataset, stored = read_stored(path)
    new, _ = deidentify(dataset, KEY, options, stored)
    new.save_as(tmp_path / "new.dcm", enforce_file_format=True)
    after = read_film(tmp_path / "new.dcm", 128)
    assert after.frame.spacing == before.frame.spacing or before.frame.spacing.kind == "unknown"
    assert after.frame.pixel_aspect == before.frame.pixel_aspect
    return before.image, after.image, pydicom.dcmread(tmp_path / "new.dcm")


SIGNED = (ramp().astype(np.int32) - 2048).astype(np.int16)
FILMS = {
    "native": (film(ramp(), BitsStored=12, WindowCenter=2000, WindowWidth=3000), None),
    "monochrome1": (film(ramp(), BitsStored=12, PhotometricInterpretation="MONOCHROME1"), None),
    "16 bit": (film(ramp(high=65535)), None),
    "8 bit, odd": (film(ramp(59, 43, 255).astype(np.uint8)), None),
    "8 in 16": (film(ramp(high=255), BitsStored=8), None),
    "signed": (film(SIGNED, BitsStored=12, PixelPaddingValue=-2048, RescaleSlope="-2", RescaleIntercept="5"), None),
    "voi lut": (film(ramp(), BitsStored=12, VOILUTSequence=lut(np.linspace(0, 1, 2000) ** 2 * 1023, 1000, 10)), None),
    "modality lut": (film(ramp(), BitsStored=12, ModalityLUTSequence=lut(np.arange(4096) ** 2 / 256, 0, 16)), None),
    "sigmoid": (film(ramp(), BitsStored=12, WindowCenter=2000, WindowWidth=800, VOILUTFunction="SIGMOID"), None),
    "windows": (film(ramp(), BitsStored=12, WindowCenter=[2000, 9], WindowWidth=[800, 9]), None),
    "spacing": (film(ramp(), BitsStored=12, PixelSpacing=["0.2", "0.1"], ImagerPixelSpacing=["0.25", "0.125"]), None),
    "aspect": (film(ramp(), BitsStored=12, PixelAspectRatio=["2", "1"]), None),
    "raw": (
        film(ramp(high=60000), PresentationIntentType="FOR PROCESSING", PixelIntensityRelationship="LIN",
             PixelIntensityRelationshipSign=1),
        None,
    ),
    "shutter": (
        film(ramp(), BitsStored=12, ShutterShape=["CIRCULAR", "POLYGONAL"], CenterOfCircularShutter=[30, 22],
             RadiusOfCircularShutter=20, VerticesOfThePolygonalShutter=[5, 5, 50, 5, 50, 40, 5, 40]),
        None,
    ),
    "implicit": (
        film(SIGNED, BitsStored=12, PixelPaddingValue=-2048, VOILUTSequence=lut(np.arange(4096), -2048, 12)),
        ImplicitVRLittleEndian,
    ),
    "deflated": (film(ramp(), BitsStored=12), DeflatedExplicitVRLittleEndian),
    "big endian": (film(ramp(), BitsStored=12, VOILUTSequence=lut(np.arange(4096)[::-1], 0, 12)), ExplicitVRBigEndian),
    "rle": (film(ramp(), BitsStored=12), RLELossless),
    "jpeg 2000": (film(SIGNED, BitsStored=12), JPEG2000Lossless),
    "jpeg lossless": (film(ramp(), BitsStored=12), JPEGLosslessSV1),
    "jpeg-ls": (film(ramp(high=65535)), JPEGLSLossless),
}  # fmt: skip


@pytest.mark.parametrize("name", FILMS)
def test_the_picture_and_the_stored_values_stay_exactly(tmp_path: Path, name: str) -> None:
    dataset, syntax = FILMS[name]
    path = tmp_path / "old.dcm"
    if syntax in (JPEGLosslessSV1, JPEGLSLossless):
        save(path, dataset, syntax)
    elif syntax in (RLELossless, JPEG2000Lossless):
        dataset.compress(syntax, generate_instance_uid=False)
        save(path, dataset)
    else:
        if syntax:
            dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            words = np.frombuffer(dataset.PixelData, "<u2")
            dataset.PixelData = words.astype(">u2").tobytes()
            pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
        else:
            save(path, dataset)
    before, after, _ = picture_pair(path, tmp_path)
    assert np.ptp(before) > 100
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(read_stored(path)[1], read_stored(tmp_path / "new.dcm")[1])


def test_a_big_endian_table_of_bytes_is_turned_round(tmp_path: Path) -> None:
    values = np.linspace(0, 1023, 4096).astype(np.uint16)
    dataset = film(ramp(), BitsStored=12, VOILUTSequence=lut(values, 0, 10))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.VOILUTSequence[0].add_new("LUTData", "OW", values.astype(">u2").tobytes())
    dataset.PixelData = ramp().astype(">u2").tobytes()
    pydicom.dcmwrite(tmp_path / "old.dcm", dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
    before, after, _ = picture_pair(tmp_path / "old.dcm", tmp_path)
    np.testing.assert_array_equal(before, after)
    assert np.ptp(before) > 100


def test_a_grey_copy_in_colour_becomes_grey(tmp_path: Path) -> None:
    dataset = film(ramp(high=255).astype(np.uint8), PhotometricInterpretation="RGB", SamplesPerPixel=3)
    dataset.PlanarConfiguration = 0
    dataset.PixelData = np.repeat(ramp(high=255).astype(np.uint8)[..., None], 3, axis=2).tobytes()
    before, after, new = picture_pair(save(tmp_path / "old.dcm", dataset), tmp_path)
    np.testing.assert_array_equal(before, after)
    assert (new.SamplesPerPixel, new.PhotometricInterpretation) == (1, "MONOCHROME2")


@pytest.mark.parametrize("name", ["RG1_UNCI.dcm", "RG3_J2KR.dcm"])
def test_real_films_stay_exactly(tmp_path: Path, name: str) -> None:
    path = Path(get_testdata_file(name))
    before, after, new = picture_pair(path, tmp_path)
    np.testing.assert_array_equal(before, after)
    old = pydicom.dcmread(path)
    assert new.file_meta.TransferSyntaxUID.is_encapsulated == old.file_meta.TransferSyntaxUID.is_encapsulated
    for word in ("PatientName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert not old.get(word) or new[word].value != old[word].value


def test_a_film_for_the_encoder_unknown_stays_native(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = film(ramp(), BitsStored=12)
    dataset.compress(RLELossless, generate_instance_uid=False)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such depth")

    monkeypatch.setattr(Dataset, "compress", fail)
    new, _ = deidentify(dataset, KEY)
    np.testing.assert_array_equal(written(new).pixel_array, ramp())


def test_an_encoder_that_alters_pixels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, real = film(ramp(), BitsStored=12), Dataset.compress
    dataset.compress(RLELossless, generate_instance_uid=False)

    def alter(self: Dataset, *args: object, **kwargs: object) -> None:
        values = ramp()
        values[3, 3] ^= 1
        self.PixelData = values.tobytes()
        real(self, *args, **kwargs)

    monkeypatch.setattr(Dataset, "compress", alter)
    new, _ = deidentify(dataset, KEY)
    np.testing.assert_array_equal(written(new).pixel_array, ramp())


# ---- what the picture itself shows


@pytest.mark.parametrize("value", ["YES", "yes ", " Yes"])
def test_burned_in_words_need_margins(value: str) -> None:
    dataset = film(ramp(), BitsStored=12)
    dataset.add_new("BurnedInAnnotation", "LO", value)
    with pytest.raises(UserError, match="burned into the picture"):
        deidentify(dataset, KEY)
    assert written(deidentify(dataset, KEY, Options(blank_percent=(30, 0, 0, 0)))[0]).BurnedInAnnotation == "NO"


def test_a_face_is_refused_whatever_the_margins() -> None:
    dataset = film(ramp(), BitsStored=12, RecognizableVisualFeatures="YES")
    with pytest.raises(UserError, match="face"):
        deidentify(dataset, KEY, Options(blank_percent=(30, 30, 30, 30)))


@pytest.mark.parametrize(("value", "expected"), [("NO", "NO"), (None, None), ("MAYBE", None)])
def test_what_is_said_of_burned_in_words_is_not_made_up(value: str | None, expected: str | None) -> None:
    dataset = film(ramp(), BitsStored=12, **({"BurnedInAnnotation": value} if value else {}))
    assert (deidentify(dataset, KEY)[0].get("BurnedInAnnotation") or None) == expected


@pytest.mark.parametrize("slope", ["1", "-1"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_margins_become_the_films_black(tmp_path: Path, photometric: str, slope: str) -> None:
    """By the reader's picture: margins as dark as its darkest, inside untouched."""
    values = write_words(ramp(128, 128), "DOE JOHN")
    dataset = film(
        values, BitsStored=12, PhotometricInterpretation=photometric, RescaleSlope=slope, RescaleIntercept="0"
    )
    dataset.WindowCenter, dataset.WindowWidth = (2048 if slope == "1" else -2048), 4096
    options = Options(blank_percent=(12, 5, 3, 7))
    before, after, _ = picture_pair(save(tmp_path / "old.dcm", dataset), tmp_path, options)
    inside = (slice(16, 128 - 4), slice(9, 128 - 7))  # per cent of 128, rounded up
    np.testing.assert_array_equal(before[inside], after[inside])
    margin = np.ones_like(after, bool)
    margin[inside] = False
    assert (after[margin] == after[inside].min()).all()
    assert np.ptp(before[margin]) > 100


def test_margins_that_leave_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="nothing of the film"):
        deidentify(film(ramp(), BitsStored=12), KEY, Options(blank_percent=(50, 0, 50, 0)))


def test_an_object_of_nobodys_standard_is_refused() -> None:
    with pytest.raises(UserError, match="SOP Class") as stop:
        deidentify(film(ramp(), SOPClassUID="1.2.3.4.5.77"), KEY)
    assert "1.2.3.4" not in str(stop.value)


# ---- notebooks


def shown(path: Path, known: set[str]) -> list[str]:
    """The cells of a notebook whose stored output holds an identifier."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [json.dumps(cell.get("outputs", []), ensure_ascii=False) for cell in cells]
    return [f"{path.name}, cell {number}" for number, text in enumerate(texts) if any(word in text for word in known)]


def sample_identifiers() -> set[str]:
    words = "PatientName PatientID PatientAddress AccessionNumber SOPInstanceUID StudyInstanceUID SeriesInstanceUID"
    known = set()
    for path in (ROOT / "data" / "sample").rglob("*.dcm"):
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        known |= {str(dataset[word].value) for word in words.split() if dataset.get(word)}
    return known


def test_only_the_lesson_on_headers_shows_a_sample_patient() -> None:
    """One cell of chapter 01 prints one made-up header; no other cell of any notebook may."""
    known = sample_identifiers()
    assert len(known) > 100
    notebooks = sorted((ROOT / "notebooks").rglob("*.ipynb"))
    assert notebooks
    cells = [cell for path in notebooks for cell in shown(path, known)]
    assert len(cells) <= 1, cells
    assert all(cell.startswith("01_dicom.ipynb") for cell in cells), cells


def test_the_search_in_notebooks_finds_what_is_there(tmp_path: Path) -> None:
    name = sample_identifiers().pop()
    output = {"output_type": "stream", "text": ["nothing\n", f"patient {name}\n"]}
    cells = [{"source": ["1"], "outputs": []}, {"source": ["2"], "outputs": [output]}]
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": cells}))
    assert shown(tmp_path / "x.ipynb", {name, "y"}) == ["x.ipynb, cell 1"]
