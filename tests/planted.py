"""A hospital's folder full of planted identifiers, each a string that occurs once, and a search that finds them all."""

from __future__ import annotations

import io
import json
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pydicom
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

from tests.dicom_cases import film, lut, ramp, save

OWN_FORM = {  # what no word can be; the others are words of seven letters and digits that fit every text VR
    "birth_date": "19370428",
    "study_date": "20310717",
    "content_time": "070911.654321",
    "acquisition_datetime": "20310717134459",
    "patient_age": "093Y",
    "study_uid": "1.2.826.0.1.99.71.1",
    "sop_instance_uid": "1.2.826.0.1.99.71.2",
    "meta_private_creator_uid": "1.2.826.0.1.99.71.3",
    "nested_referenced_uid": "1.2.826.0.1.99.71.4",
    "person_name_ideographic": "山田隱藏",
    "coco_patient_number": 771177001,
    "stature": "1.83717",
}
PLANTS = """
    patient_name person_name_ideographic patient_id other_patient_id issuer_of_patient_id birth_date patient_age stature
    patient_address telephone military_rank patient_comments accession_number study_id study_date content_time
    acquisition_datetime study_description series_description protocol_name referring_physician operator
    institution_name station_name device_serial manufacturer model software detector_id
    study_uid sop_instance_uid frame_comments image_comments window_explanation calibration_description
    body_part view_position image_type body_part_code code_meaning nested_once nested_twice nested_referenced_uid
    private_creator private_value private_nested private_binary unknown_tag unknown_vr unlimited_characters
    unlimited_text resource_identifier application_entity overlay_data overlay_comment overlay_in_pixels curve_data
    graphic_annotation icon_pixels icon_private digital_signature original_attributes encrypted_attributes
    trailing_padding text_in_number group_length_bytes
    preamble meta_sending_ae meta_source_ae meta_private_creator_uid meta_private_information meta_version_name
    jpeg_comment jpeg_application jpeg2000_comment rle_trailer native_trailer deflated_comment
    file_name folder_name hidden_file_name coco_info coco_description coco_licence coco_caption coco_extra coco_category
    coco_patient coco_patient_number coco_lost_film labels_test_folder png_text png_compressed png_international
    text_file other_json dicomdir structured_report refused_name refused_file_name damaged_file unreadable_grey
    colour_kind broken_labels broken_labels_name""".split()
TOKENS = {name: str(OWN_FORM.get(name, f"QX{index:03d}ZJ")) for index, name in enumerate(PLANTS)}


def fill(dataset: Dataset) -> Dataset:
    """Put an identifier into every place of a header where one was ever seen, and some more."""
    t = TOKENS
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = f"{t['patient_name']}^A={t['person_name_ideographic']}"
    dataset.PatientID, dataset.OtherPatientIDs = t["patient_id"], t["other_patient_id"]
    dataset.IssuerOfPatientID, dataset.PatientBirthDate = t["issuer_of_patient_id"], t["birth_date"]
    dataset.PatientAge, dataset.PatientSize, dataset.MilitaryRank = t["patient_age"], t["stature"], t["military_rank"]
    dataset.PatientAddress, dataset.PatientTelephoneNumbers = t["patient_address"], t["telephone"]
    dataset.PatientComments, dataset.AccessionNumber = t["patient_comments"], t["accession_number"]
    dataset.StudyID, dataset.StudyDate = t["study_id"], t["study_date"]
    dataset.ContentTime, dataset.AcquisitionDateTime = t["content_time"], t["acquisition_datetime"]
    dataset.StudyDescription, dataset.SeriesDescription = t["study_description"], t["series_description"]
    dataset.ProtocolName, dataset.ReferringPhysicianName = t["protocol_name"], t["referring_physician"]
    dataset.OperatorsName, dataset.InstitutionName = t["operator"], t["institution_name"]
    dataset.StationName, dataset.DeviceSerialNumber = t["station_name"], t["device_serial"]
    dataset.Manufacturer, dataset.ManufacturerModelName = t["manufacturer"], t["model"]
    dataset.SoftwareVersions, dataset.DetectorID = t["software"], t["detector_id"]
    dataset.StudyInstanceUID, dataset.SOPInstanceUID = t["study_uid"], t["sop_instance_uid"]
    dataset.FrameComments, dataset.ImageComments = t["frame_comments"], t["image_comments"]
    dataset.WindowCenterWidthExplanation = t["window_explanation"]
    dataset.PixelSpacingCalibrationDescription = t["calibration_description"]
    dataset.BodyPartExamined, dataset.ViewPosition = t["body_part"], t["view_position"]
    dataset.ImageType = ["ORIGINAL", "PRIMARY", t["image_type"]]
    dataset.RetrieveAETitle = t["application_entity"]
    dataset.add_new("LongCodeValue", "UC", t["unlimited_characters"])
    dataset.add_new("TextValue", "UT", t["unlimited_text"])
    dataset.add_new("RetrieveURL", "UR", f"http://x.invalid/{t['resource_identifier']}")
    dataset.add_new(0x00081999, "LO", t["unknown_tag"])
    dataset.add_new(0x00091001, "UN", t["unknown_vr"].encode() + b"\0")
    dataset.DataSetTrailingPadding = t["trailing_padding"].encode() + b"\0"
    _fill_sequences(dataset)
    _fill_private_and_graphics(dataset)
    return dataset


def _item(**elements: object) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _fill_sequences(dataset: Dataset) -> None:
    t = TOKENS
    code = _item(CodeValue=t["body_part_code"], CodingSchemeDesignator="99LOCAL", CodeMeaning=t["code_meaning"])
    dataset.AnatomicRegionSequence = Sequence([code])
    inner = _item(PatientName=t["nested_twice"], ReferencedSOPInstanceUID=t["nested_referenced_uid"])
    outer = _item(RequestedProcedureDescription=t["nested_once"], ReferencedImageSequence=Sequence([inner]))
    outer.private_block(0x0019, "HIDE", create=True).add_new(1, "LO", t["private_nested"])
    # one in a sequence that goes anyway, one in a sequence that a film needs
    dataset.RequestAttributesSequence = Sequence([outer])
    tables = lut(np.linspace(0, 65535, 4096), 0, 16)
    table = tables[0]
    table.LUTExplanation = t["nested_once"]
    table.RequestAttributesSequence = Sequence([_item(PatientName=t["nested_twice"])])
    table.private_block(0x0019, "HIDE", create=True).add_new(1, "LO", t["private_nested"])
    dataset.VOILUTSequence = tables
    dataset.GraphicAnnotationSequence = Sequence(
        [_item(TextObjectSequence=Sequence([_item(UnformattedTextValue=t["graphic_annotation"])]))]
    )
    icon = _item(Rows=1, Columns=8, BitsAllocated=8, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    icon.PixelData = t["icon_pixels"].encode() + b"\0"
    icon["PixelData"].VR = "OB"
    icon.private_block(0x0029, "HIDE", create=True).add_new(1, "LO", t["icon_private"])
    dataset.IconImageSequence = Sequence([icon])
    dataset.DigitalSignaturesSequence = Sequence([_item(CertificateOfSigner=t["digital_signature"].encode() + b"\0")])
    modified = Sequence([_item(PatientID=t["original_attributes"])])
    dataset.OriginalAttributesSequence = Sequence([_item(ModifiedAttributesSequence=modified)])
    hidden = _item(EncryptedContent=t["encrypted_attributes"].encode() + b"\0")
    dataset.EncryptedAttributesSequence = Sequence([hidden])


def _fill_private_and_graphics(dataset: Dataset) -> None:
    t = TOKENS
    block = dataset.private_block(0x0011, t["private_creator"], create=True)
    block.add_new(1, "LO", t["private_value"])
    block.add_new(2, "OB", t["private_binary"].encode() + b"\0")
    dataset.add_new(0x60000010, "US", 8)
    dataset.add_new(0x60003000, "OW", t["overlay_data"].encode() + b"\0")
    dataset.add_new(0x60020022, "LO", t["overlay_comment"])
    dataset.add_new(0x50003000, "OW", t["curve_data"].encode() + b"\0")


def hide_in_unused_bits(values: np.ndarray, text: str) -> np.ndarray:
    """The text's bits as an overlay in bit 12 of 16-bit pixels (rows, cols), as old machines store overlays."""
    bits = np.unpackbits(np.frombuffer(text.encode(), np.uint8), bitorder="little")
    flat = values.ravel().copy()
    flat[: bits.size] |= bits.astype(flat.dtype) << 12
    return flat.reshape(values.shape)


def _write(path: Path, dataset: Dataset, syntax: str | None = None, **changes: object) -> None:
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    save(path, dataset, syntax)


def _rewrite_stream(path: Path, change: object) -> None:
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([change(get_frame(dataset.PixelData, 0, number_of_frames=1))])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)


def _segment(marker: bytes, text: str) -> bytes:
    body = text.encode()
    return marker + (len(body) + 2).to_bytes(2, "big") + body


def plant(folder: Path) -> Path:
    """Write the hospital into ``folder``: three films with everything, one a coding, bad files, labels, pictures."""
    t, place = TOKENS, folder / t_folder()
    first = fill(film(ramp(), BitsStored=12, WindowCenter=2000, WindowWidth=3000))
    first.PixelData = (
        hide_in_unused_bits(ramp(), t["overlay_in_pixels"]).tobytes() + t["native_trailer"].encode() + b"\0"
    )
    first.preamble = t["preamble"].encode().ljust(128, b"\0")
    meta = first.file_meta
    meta.SendingApplicationEntityTitle, meta.SourceApplicationEntityTitle = t["meta_sending_ae"], t["meta_source_ae"]
    meta.PrivateInformationCreatorUID = t["meta_private_creator_uid"]
    meta.PrivateInformation = t["meta_private_information"].encode() + b"\0"
    meta.ImplementationVersionName = t["meta_version_name"]
    _write(place / f"{t['file_name']}.dcm", first)
    _write(place / f".{t['hidden_file_name']}", film(ramp(), BitsStored=12, PatientID="other"))
    _plant_streams(place)
    _plant_bad_files(place)
    _plant_labels(folder, place)
    _plant_other_files(place)
    return folder


def t_folder() -> str:
    return TOKENS["folder_name"]


def _plant_streams(place: Path) -> None:
    t = TOKENS
    _write(place / "jpeg.dcm", film(ramp(), BitsStored=12), JPEGLosslessSV1)
    extra = _segment(b"\xff\xe5", t["jpeg_application"]) + _segment(b"\xff\xfe", t["jpeg_comment"])
    _rewrite_stream(place / "jpeg.dcm", lambda stream: stream[:2] + extra + stream[2:])
    jpeg2000 = film(ramp(), BitsStored=12)
    jpeg2000.compress(JPEG2000Lossless, generate_instance_uid=False)
    _write(place / "jpeg2000.dcm", jpeg2000)
    comment = _segment(b"\xff\x64", "\0\1" + t["jpeg2000_comment"])

    def after_size(stream: bytes) -> bytes:  # COM may follow SIZ, the first segment after SOC (ISO 15444-1 A.2)
        end = 4 + int.from_bytes(stream[4:6], "big")
        return stream[:end] + comment + stream[end:]

    _rewrite_stream(place / "jpeg2000.dcm", after_size)
    _write(place / "rle.dcm", film(ramp(), BitsStored=12), RLELossless)
    _rewrite_stream(place / "rle.dcm", lambda stream: stream + t["rle_trailer"].encode() + b"\0")
    deflated = film(ramp(), BitsStored=12, ImageComments=t["deflated_comment"])
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    _write(place / "deflated.dcm", deflated)
    implicit = film(ramp(), BitsStored=12)
    implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    implicit.add_new("KVP", "DS", "60")
    _write(place / "implicit.dcm", implicit)
    raw = (place / "implicit.dcm").read_bytes()  # a word where a number should be: 8 characters of DS
    old = b"\x18\x00\x60\x00\x02\x00\x00\x0060"
    assert old in raw
    number = f"{t['text_in_number']} ".encode()
    raw = raw.replace(old, b"\x18\x00\x60\x00" + len(number).to_bytes(4, "little") + number)
    group = t["group_length_bytes"].encode() + b"\0"  # a group length of eight bytes in place of four
    at = raw.index(b"\x18\x00\x60\x00")
    raw = raw[:at] + b"\x18\x00\x00\x00" + len(group).to_bytes(4, "little") + group + raw[at:]
    (place / "implicit.dcm").write_bytes(raw)


def _plant_bad_files(place: Path) -> None:
    t = TOKENS
    burned = film(ramp(), BitsStored=12, BurnedInAnnotation="YES", PatientName=t["refused_name"])
    _write(place / f"{t['refused_file_name']}.dcm", burned)
    report = film(ramp(), SOPClassUID=BasicTextSRStorage, PatientName=t["structured_report"], PixelData=None, Rows=None)
    _write(place / "report.dcm", report)
    (place / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + t["damaged_file"].encode() * 9)
    tables = lut(np.arange(9), 0, 16)
    tables[0].LUTDescriptor, tables[0].LUTExplanation = [9000, 0, 16], t["unreadable_grey"]
    _write(place / "grey.dcm", film(ramp(), BitsStored=12, VOILUTSequence=tables))
    _write(place / "colour.dcm", film(ramp(), BitsStored=12, PhotometricInterpretation=t["colour_kind"]))
    _write(place / "DICOMDIR", film(ramp(), PatientName=t["dicomdir"]))


def _labels(place: Path, names: list[str], **words: object) -> None:
    images = [{"id": n, "file_name": name, "width": 44, "height": 60} for n, name in enumerate(names, 1)]
    points = [
        {"id": n, "image_id": n, "category_id": 1, "keypoints": [9.25, 8, 2, 20, 41.5, 1]}
        for n, _ in enumerate(names, 1)
    ]
    category = {"id": 1, "name": TOKENS["coco_category"], "keypoints": ["left_hip", "left_knee"]}
    content = {"images": images, "annotations": points, "categories": [category], **words}
    place.mkdir(parents=True, exist_ok=True)
    (place / "annotations.json").write_text(json.dumps(content))


def _plant_labels(folder: Path, place: Path) -> None:
    t = TOKENS
    info = {"description": t["coco_description"], "contributor": t["coco_info"]}
    names = [
        f"{t['file_name']}.dcm",
        "rle.dcm",
        "jpeg.dcm",
        f"{t['coco_lost_film']}.dcm",
        f"{t['refused_file_name']}.dcm",
    ]
    _labels(place, names, info=info, licenses=[{"name": t["coco_licence"]}])
    content = json.loads((place / "annotations.json").read_text())
    content["images"][0] |= {
        "patient_id": t["coco_patient"],
        "date_captured": t["coco_extra"],
        "flickr_url": t["coco_extra"],
    }
    content["images"][1]["patient_id"] = int(t["coco_patient_number"])
    content["annotations"][0]["caption"] = t["coco_caption"]
    (place / "annotations.json").write_text(json.dumps(content))
    test = place / "test"
    _write(test / t["labels_test_folder"] / "a.dcm", film(ramp(), BitsStored=12))
    _labels(test, [f"{t['labels_test_folder']}/a.dcm"])
    broken = folder / "south"
    _write(broken / "b.dcm", film(ramp(), BitsStored=12))
    _labels(broken, ["b.dcm", f"{t['broken_labels_name']}.dcm"])
    content = json.loads((broken / "annotations.json").read_text())
    content["images"][1]["width"] = t["broken_labels"]
    (broken / "annotations.json").write_text(json.dumps(content))


def _plant_other_files(place: Path) -> None:
    t = TOKENS
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", t["png_text"])
    texts.add_text("Comment", t["png_compressed"], zip=True)
    texts.add_itxt("Title", t["png_international"], zip=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(place / "preview.png", pnginfo=texts)
    (place / "notes.txt").write_text(t["text_file"], encoding="utf-16")
    (place / "patients.json").write_text(json.dumps({"name": t["other_json"]}))


# ---- the search


def survivors(folder: Path) -> set[str]:
    """Names of the plants found anywhere in a folder: names, bytes in four encodings, and everything decoded."""
    heap = []
    for path in sorted(folder.rglob("*")):
        heap.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            heap += _contents(path)
    return found_in(heap)


def found_in(heap: list[bytes]) -> set[str]:
    """Names of the plants in any of some byte strings."""
    return {name for name, token in TOKENS.items() if any(form in part for form in _forms(token) for part in heap)}


def _forms(token: str) -> list[bytes]:
    encodings = ["utf-8", "utf-16-le", "utf-16-be"] + ["latin-1"] * token.isascii()
    return [token.encode(encoding) for encoding in encodings]


def _contents(path: Path) -> list[bytes]:
    raw = path.read_bytes()
    found = [raw]
    if path.suffix == ".json":
        found.append(json.dumps(json.loads(raw), ensure_ascii=False).encode())
    if raw[:4] == b"\x89PNG":
        found += _png_texts(raw)
    if raw[128:132] == b"DICM" or path.suffix == ".dcm":
        try:
            dataset = pydicom.dcmread(io.BytesIO(raw), force=True)
        except Exception:  # damaged on purpose: the raw bytes are searched
            return found
        found += [*_values(dataset), *_values(dataset.file_meta), *_bit_planes(dataset)]
    return found


def _png_texts(raw: bytes) -> list[bytes]:
    found, at = [], 8
    while at < len(raw):
        length, kind = int.from_bytes(raw[at : at + 4], "big"), raw[at + 4 : at + 8]
        body = raw[at + 8 : at + 8 + length]
        at += length + 12
        for start in range(len(body) if kind in (b"zTXt", b"iTXt") else 0):
            try:
                found.append(zlib.decompress(body[start:]))
            except zlib.error:
                continue
    return found


def _values(dataset: Dataset) -> list[bytes]:
    found = []
    for tag in dataset.keys():  # noqa: SIM118 - iterating decodes, and one of the values is no number
        try:
            element = dataset[tag]
        except Exception:
            found.append(bytes(dataset.get_item(tag).value))
            continue
        if element.VR == "SQ":
            for item in element.value:
                found += _values(item)
        else:
            found.append(element.value if isinstance(element.value, bytes) else str(element.value).encode())
    return found


def _bit_planes(dataset: Dataset) -> list[bytes]:
    """Every bit of the pixels as a plane of its own, where an overlay may hide; compressed pixels decoded first."""
    if "PixelData" not in dataset or "TransferSyntaxUID" not in dataset.file_meta:
        return []
    try:
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the trailer that was planted
                values = dataset.pixel_array
        else:
            values = np.frombuffer(dataset.PixelData[: dataset.Rows * dataset.Columns * 2], "<u2")
    except Exception:
        return []
    words = values.astype(np.int64).ravel()
    return [np.packbits((words >> bit & 1).astype(np.uint8), bitorder="little").tobytes() for bit in range(16)]


def write_words(values: np.ndarray, text: str) -> np.ndarray:
    """A film (rows, cols) with text burned into its upper left, as an old console does."""
    drawn = np.zeros(values.shape, np.uint8)
    cv2.putText(drawn, text, (2, 12), cv2.FONT_HERSHEY_PLAIN, 0.8, 255, 1)
    return np.where(drawn, values.max(), values).astype(values.dtype)
