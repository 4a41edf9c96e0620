"""The header of a film as a hospital's archive sends it: person, study, machine, geometry (PS3.3 A.2 CR, A.26 DX).

Names, numbers and dates are made up from the seed. They are here so that de-identification has something to remove.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid
from pydicom.valuerep import format_number_as_ds

from fedbone.imaging.sites import Exposure, stream

_FAMILY = "Ahlgren Brandt Castel Dumont Eriksen Fontana Gruber Hollis Ivarsson Jansen Keller Moreau Novak".split()
_GIVEN = {
    "F": "Anna Berta Clara Doris Elena Frida Greta".split(),
    "M": "Anton Bruno Carl David Emil Frank Georg".split(),
}
_UID_ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's own root, free for generated identifiers

# (view, marker): ViewPosition, view code (PS3.16 CID 4010), what lies to the right of the film as the tube sees it. The
# marker of a lateral film names the side next to the detector. CR has no term for a plain oblique view.
_AP = "AP", Code("399348003", "SCT", "antero-posterior"), "L"
_OBLIQUE = "", Code("399182000", "SCT", "oblique"), "L"
_VIEWS = {
    ("AP", "R"): _AP,
    ("AP", "L"): _AP,
    ("OBLIQUE", "R"): _OBLIQUE,
    ("OBLIQUE", "L"): _OBLIQUE,
    ("LATERAL", "R"): ("RL", Code("399198007", "SCT", "right lateral"), "P"),
    ("LATERAL", "L"): ("LL", Code("399173006", "SCT", "left lateral"), "A"),
}

_KNOWN = {
    "modality": ("CR", "DX"),
    "bits": range(8, 17),
    "photometric": ("MONOCHROME1", "MONOCHROME2"),
    "syntax": (ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless),
    "spacing": ("calibrated", "object", "detector"),
    "window": ("LINEAR", "LINEAR_EXACT", "SIGMOID", "TABLE"),
    "intent": ("FOR PRESENTATION", "FOR PROCESSING"),
}


@dataclass(frozen=True)
class Archive:
    """How a hospital's machine writes its films.

    photometric: MONOCHROME1 or MONOCHROME2; window: LINEAR, LINEAR_EXACT, SIGMOID or TABLE (a VOI LUT sequence);
    explanations: names of one or two windows, bone first, or none for one window without a name; region: PS3.16 CID
    4009; spacing: what the pitch refers to, calibrated, object or detector; intent: FOR PRESENTATION or FOR PROCESSING,
    the latter without a window. Raises ValueError for other values, and for a CR film with what only DX has.
    """

    modality: str
    institution: str
    maker: str
    model: str
    bits: int
    photometric: str
    syntax: str
    body_part: str
    region: Code
    laterality: str
    description: str
    spacing: str
    window: str
    explanations: tuple[str, ...] = ()
    intent: str = "FOR PRESENTATION"

    def __post_init__(self) -> None:
        wrong = [name for name, known in _KNOWN.items() if getattr(self, name) not in known]
        if wrong or len(self.explanations) > 2:
            raise ValueError(f"unknown {', '.join(wrong) or 'third window'} of an archive; known: {_KNOWN}")
        if self.modality == "CR" and (self.intent != "FOR PRESENTATION" or self.spacing != "detector"):
            raise ValueError("a CR film states no intent, calibration or magnification: take modality DX")


def new_uid(hospital: str, seed: int, number: int, what: str) -> str:
    """The unique identifier of one thing of a film, the same for the same seed."""
    return generate_uid(prefix=_UID_ROOT, entropy_srcs=["fedbone", hospital, str(seed), str(number), what])


def add_person(dataset: Dataset, hospital: str, seed: int, number: int) -> None:
    """The patient (PS3.3 C.7.1.1), the same for all films of one; address and telephone are extensions of the IOD."""
    rng = stream(hospital, seed, number, 2)
    sex = "FM"[rng.integers(2)]
    dataset.PatientName = f"{_FAMILY[rng.integers(len(_FAMILY))]}^{_GIVEN[sex][rng.integers(7)]}"
    dataset.PatientID = f"{hospital[-1].upper()}{rng.integers(10**6, 10**7)}"
    years = (11, 18) if hospital == "hospital_c" else (35, 85)
    born = date(2026, 3, 1) - timedelta(days=int(rng.integers(years[0] * 365, years[1] * 365)))
    dataset.PatientBirthDate, dataset.PatientSex = born.strftime("%Y%m%d"), sex
    dataset.PatientAddress = f"{rng.integers(1, 90)} Sample Street, Exampletown"
    dataset.PatientTelephoneNumbers = f"555-01{rng.integers(10, 100)}"


def add_study(dataset: Dataset, archive: Archive, hospital: str, seed: int, number: int) -> None:
    """Study and series (PS3.3 C.7.2.1, C.7.3.1, C.8.11.1); every film is a study of its own."""
    rng = stream(hospital, seed, number, 3)
    day = (date(2026, 3, 2) + timedelta(days=int(rng.integers(0, 180)))).strftime("%Y%m%d")
    clock = f"{rng.integers(7, 19):02d}{rng.integers(60):02d}{rng.integers(60):02d}"
    for kind in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{kind}Date", day)
        setattr(dataset, f"{kind}Time", clock)
    dataset.StudyInstanceUID = new_uid(hospital, seed, number, "study")
    dataset.SeriesInstanceUID = new_uid(hospital, seed, number, "series")
    dataset.StudyID, dataset.AccessionNumber = str(rng.integers(1000, 9999)), f"ACC{rng.integers(10**6, 10**7)}"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.ReferringPhysicianName = f"{_FAMILY[rng.integers(len(_FAMILY))]}^Dr"
    dataset.OperatorsName = f"{_FAMILY[rng.integers(len(_FAMILY))]}^R"
    dataset.Modality = archive.modality
    if archive.modality == "DX":
        dataset.PresentationIntentType = archive.intent
        dataset.FrameOfReferenceUID = new_uid(hospital, seed, number, "frame")
        dataset.PositionReferenceIndicator = ""


def add_machine(dataset: Dataset, archive: Archive, exposure: Exposure) -> None:
    """Equipment, tube and detector (PS3.3 C.7.5.1, C.8.7.8, C.8.11.4), and a private element with the name."""
    dataset.Manufacturer, dataset.ManufacturerModelName = archive.maker, archive.model
    dataset.InstitutionName, dataset.StationName = archive.institution, f"{archive.modality}ROOM1"
    dataset.InstitutionAddress = "1 Hospital Road, Exampletown"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "000123", "4.2"
    dataset.KVP, dataset.Exposure = _ds(exposure.kvp), 20
    dataset.DistanceSourceToDetector = _ds(exposure.distance_mm)
    if archive.modality == "DX":
        dataset.DetectorType, dataset.PositionerType = "SCINTILLATOR", "COLUMN"
        dataset.AcquisitionContextSequence = []
    else:
        dataset.PlateType = "Storage phosphor"
    block = dataset.private_block(0x0019, f"{archive.maker.upper()} 1.0", create=True)
    block.add_new(0x01, "LO", f"{dataset.PatientName} {dataset.PatientID}")  # makers do put names into private tags


def add_view(dataset: Dataset, archive: Archive, exposure: Exposure) -> None:
    """Body part, view and the patient's directions on the film (PS3.3 C.8.11.2, C.8.11.5, C.7.6.1.1.1)."""
    position, code, right = _VIEWS[exposure.view, exposure.marker]
    view = "AP" if exposure.view == "AP" else code.meaning
    dataset.StudyDescription = dataset.SeriesDescription = f"{archive.description} {view}"
    dataset.BodyPartExamined, dataset.ViewPosition = archive.body_part, position
    dataset.PatientOrientation = [right, "F"]
    dataset.ImageLaterality = archive.laterality
    dataset.AnatomicRegionSequence = [_coded(archive.region)]
    if archive.modality == "DX":
        dataset.ViewCodeSequence = [_coded(code)]
        dataset.ViewCodeSequence[0].ViewModifierCodeSequence = []


def add_spacing(dataset: Dataset, archive: Archive, exposure: Exposure) -> None:
    """The pixel pitch at the detector and, where the machine knows it, at the bone (PS3.3 10.7.1.3, C.8.11.5)."""
    pitch = exposure.pitch_mm[::-1]  # row spacing first
    dataset.ImagerPixelSpacing = [_ds(value) for value in pitch]
    if archive.spacing in ("calibrated", "object"):
        dataset.EstimatedRadiographicMagnificationFactor = _ds(exposure.magnification)
    if archive.spacing == "calibrated":
        dataset.PixelSpacing = [_ds(value / exposure.magnification) for value in pitch]
        dataset.PixelSpacingCalibrationType = "GEOMETRY"
        dataset.PixelSpacingCalibrationDescription = "In the plane of the joints"


def _coded(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    return format_number_as_ds(float(value))
