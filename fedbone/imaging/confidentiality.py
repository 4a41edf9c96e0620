"""What may happen to an attribute of a film: the Basic Profile of DICOM PS3.15 table E.1-1, and a short allow-list.

The table comes from the package dicom-anonymizer, edition 2026c. It says what identifies people; it cannot list what a
maker or a tired hand writes elsewhere. Hence of all other attributes only those named here go through.
"""

from __future__ import annotations

from dataclasses import dataclass

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.sr.codedict import codes

_LISTS = ("D", "Z", "X", "U", "Z_D", "X_Z", "X_D", "X_Z_D", "X_Z_U_STAR")  # the package's names, all its rows
ACTIONS = {tag: name.replace("_", "/") for name in _LISTS for tag in getattr(table, f"{name}_TAGS") if len(tag) == 2}
_FATES = {"U": "replace UID", "Z": "empty", "Z/D": "empty", "X/Z": "empty", "D": "dummy"}  # the rest: remove

# what a film needs to be read, and nothing that names anyone; none of it is in table E.1-1
NUMBERS = frozenset(
    """
    Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel NumberOfFrames PixelAspectRatio
    PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing EstimatedRadiographicMagnificationFactor
    DistanceSourceToDetector DistanceSourceToPatient KVP Exposure ExposureInuAs ExposureTime XRayTubeCurrent
    ExposureIndex TargetExposureIndex DeviationIndex WindowCenter WindowWidth RescaleSlope RescaleIntercept
    PixelPaddingValue PixelPaddingRangeLimit PixelIntensityRelationshipSign SeriesNumber InstanceNumber
    LossyImageCompressionRatio LUTDescriptor LUTData ShutterLeftVerticalEdge ShutterRightVerticalEdge
    ShutterUpperHorizontalEdge ShutterLowerHorizontalEdge CenterOfCircularShutter RadiusOfCircularShutter
    VerticesOfThePolygonalShutter
""".split()
)
_BODY_PARTS = """ABDOMEN ANKLE ARM CALCANEUS CERVICALSPINE CHEST CLAVICLE COCCYX CSPINE CTSPINE ELBOW EXTREMITY FEMUR
    FINGER FOOT FOREARM HAND HEAD HIP HUMERUS JAW KNEE LEG LSPINE LSSPINE LUMBARSPINE NECK PATELLA PELVIS RADIUS RIB
    SACRUM SCAPULA SHOULDER SIJOINT SKULL SPINE SSPINE STERNUM THIGH THORACICSPINE THUMB TIBFIBULA TIBIA TLSPINE TOE
    TSPINE ULNA WHOLEBODY WHOLELEG WHOLESPINE WRIST"""
_UNITS = "OD|HU|US|MGML|Z_EFF|ED|EDW|HU_MOD|PCT|UNSPECIFIED"
TERMS = {  # keyword: what each of its values must match as a whole
    "Modality": "CR|DX|DR|RG|RF|XA|PX|IO|OT|SC",
    "ImageType": "ORIGINAL|DERIVED|PRIMARY|SECONDARY|",
    "PhotometricInterpretation": "MONOCHROME[12]",
    "PresentationIntentType": "FOR PRESENTATION|FOR PROCESSING",
    "PresentationLUTShape": "IDENTITY|INVERSE",
    "VOILUTFunction": "LINEAR|LINEAR_EXACT|SIGMOID",
    "PixelIntensityRelationship": "LIN|LOG|DISP",
    "RescaleType": _UNITS,
    "ModalityLUTType": _UNITS,
    "PixelSpacingCalibrationType": "GEOMETRY|FIDUCIAL",
    "LossyImageCompression": "00|01",
    "LossyImageCompressionMethod": "ISO_10918_1|ISO_14495_1|ISO_15444_1",
    "BurnedInAnnotation": "YES|NO",
    "BodyPartExamined": "|".join(_BODY_PARTS.split()),
    "ViewPosition": "AP|PA|LL|RL|LLD|RLD|LLO|RLO|LATERAL|OBLIQUE",
    "Laterality": "[LR]",
    "ImageLaterality": "[LRUB]",
    "PatientOrientation": "[APRLHF]{1,3}|",
    "ShutterShape": "RECTANGULAR|CIRCULAR|POLYGONAL",
    "PositionerType": "CARM|COLUMN|CEPHALOSTAT|PANORAMIC|RIGID|NONE",
    "DetectorType": "DIRECT|SCINTILLATOR|STORAGE|FILM",
    "ConversionType": "DV|DI|DF|WSD|SD|SI|DRW|SYN",
}
SEQUENCES = frozenset({"ModalityLUTSequence", "VOILUTSequence"})
CODED = frozenset({"AnatomicRegionSequence", "ViewCodeSequence", "ViewModifierCodeSequence"})
# the only codes that go through: DX Anatomy Imaged, DX View, DX View Modifier (PS3.16 CID 4009 to 4011)
CONCEPTS = [code for cid in (codes.cid4009, codes.cid4010, codes.cid4011) for code in cid.concepts.values()]
# not in the table, but free text that a film must have: a place for it (type 2), or a value (type 1C)
EMPTIED = frozenset({"Manufacturer", "PositionReferenceIndicator"})
FILLED = frozenset({"PixelSpacingCalibrationDescription"})
DATES = frozenset({"StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime"})
CHARACTERISTICS = {"PatientSex": "[FMO]", "PatientAge": r"\d{3}[DWMY]", "PatientSize": "", "PatientWeight": ""}
_MADE_UP = ("PatientName", "PatientID")


@dataclass(frozen=True)
class Options:
    """Options of PS3.15 E.3 beside the Basic Profile. blank_percent: top, right, bottom, left share of the film.

    shift_dates keeps the five dates of an image, all of one patient moved by the same number of days (times are always
    emptied); keep_characteristics keeps sex, age up to 89, size and weight.
    """

    shift_dates: bool = True
    keep_characteristics: bool = False
    blank_percent: tuple[float, float, float, float] | None = None

    def codes(self) -> list[tuple[str, str]]:
        """Code value and meaning of what was done (PS3.16 CID 7050)."""
        done = [
            (True, "113100", "Basic Application Confidentiality Profile"),
            (self.blank_percent, "113101", "Clean Pixel Data Option"),
            (self.shift_dates, "113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
            (self.keep_characteristics, "113108", "Retain Patient Characteristics Option"),
        ]
        return [(code, meaning) for used, code, meaning in done if used]


def table_code(group: int, element: int) -> str:
    """Action code of an attribute in table E.1-1 (X, Z, D, U and their combinations), '' for one that is not in it."""
    repeating = group & 0xFF00 in (0x5000, 0x6000)  # curves and overlays
    return ACTIONS.get((group, element), "X" if repeating else "")


def fate(keyword: str, code: str, options: Options) -> str:
    """What to do with an attribute: keep, shift, pseudonym, replace UID, empty, dummy or remove.

    Private and unknown attributes have no keyword of the list, hence go.
    """
    if keyword in _MADE_UP:
        return "pseudonym"
    if keyword in DATES and options.shift_dates:
        return "shift"
    if keyword in CHARACTERISTICS and options.keep_characteristics:
        return "keep"
    if code:
        return _FATES.get(code, "remove")
    if keyword in FILLED:
        return "dummy"
    known = any(keyword in names for names in (NUMBERS, TERMS, SEQUENCES, CODED, ("SOPClassUID",)))
    return "keep" if known else "empty" if keyword in EMPTIED else "remove"
