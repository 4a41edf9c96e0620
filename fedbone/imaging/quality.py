"""What goes wrong in real label sets: films twice, sides swapped, impossible points, placeholder spacings.

Everything is looked at where the films are. Between hospitals only blind tags travel: see ``matching.blind_tags``.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedbone.errors import UserError
from fedbone.imaging import readings
from fedbone.imaging.coco import Annotations, Record, outside_message, read_annotations
from fedbone.imaging.dicom import read_stored
from fedbone.imaging.folder import LABELS
from fedbone.imaging.frame import Spacing
from fedbone.imaging.matching import KEY_BYTES, blind_tags, match, pixel_hash
from fedbone.imaging.readings import SECOND_READER, Points
from fedbone.imaging.refusal import AGAIN
from fedbone.imaging.spacing import read_spacing

PITCHES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
KINDS = ("duplicate", "sides", "points", "unusable", "spacing")  # gravest first: a lost film comes late
Progress = Callable[[int, int, str], None] | None


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a hospital's films or labels; films: file names, () where the hospital as a whole is meant.

    kind: one of KINDS. ``str()`` is one line. Patients are never named.
    """

    kind: str
    hospital: str
    films: tuple[str, ...]
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{'/'.join((self.hospital, *self.films[:1]))}: {self.what}. {self.remedy}"


@dataclass(frozen=True)
class _Film:
    """A readable film with its labels; second: the other reader's; facing: +1, -1 or 0, see ``readings.facing_of``."""

    name: str
    patient: str
    points: Points
    second: Points
    rows: int
    cols: int
    reference: float
    spacing: Spacing
    spacing_given: bool
    facing: int
    pixels: str


@dataclass(frozen=True)
class _Part:
    """The labels of a hospital's folder or of its test folder; prefix: '' or test/, before a film's name."""

    hospital: str
    folder: Path
    prefix: str
    labels: Annotations
    second: dict[str, Points]


def report(folder: Path, progress: Progress = None) -> list[Finding]:
    """Everything found in ``folder``, gravest first: one hospital's folder, or a folder with one for each hospital.

    A film or file that cannot be read becomes a finding and the others are looked at. ``progress(done, total, text)``
    is called after each film. Raises UserError where no labels are found.
    """
    findings: list[Finding] = []
    parts = [part for place in _places(Path(folder)) for part in _parts(place, findings)]
    hospitals: dict[str, list[_Film]] = {part.hospital: [] for part in parts}
    todo = [(part, record) for part in parts for record in part.labels.records]
    for done, (part, record) in enumerate(todo, start=1):
        name = part.prefix + record.file_name
        try:
            hospitals[part.hospital].append(_film(part, name, record))
        except UserError as error:
            findings.append(Finding("unusable", part.hospital, (name,), error.problem, error.remedy))
        except Exception as error:  # one element of a header that makes no sense can make pydicom raise anything
            what = f"its header is damaged ({type(error).__name__})"
            findings.append(Finding("unusable", part.hospital, (name,), what, AGAIN))
        if progress:
            progress(done, len(todo), part.hospital)
    for name, films in hospitals.items():
        for check in (_duplicates, _sides, _pairs, _reader_sides, _points, _spacings):
            findings.extend(check(name, films))
    findings += [*_shared_films(hospitals), *_one_spacing(hospitals)]
    return sorted(findings, key=lambda found: (KINDS.index(found.kind), found.hospital, found.films))


def _places(folder: Path) -> list[Path]:
    inside = sorted(path for path in folder.glob("*/") if not path.name.startswith(".")) if folder.is_dir() else []
    places = [place for place in [folder, *inside] if (place / LABELS).is_file()]
    if not places:
        raise UserError(folder, f"neither it nor a folder in it holds {LABELS}", "Name a folder with labelled films")
    return places[:1] if places[0] == folder else places


def _parts(place: Path, findings: list[Finding]) -> list[_Part]:
    hospital, parts = place.resolve().name, []
    for folder, prefix in ((place, ""), (place / "test", "test/")):
        labels, others = (_labels(folder / name, hospital, prefix, findings) for name in (LABELS, SECOND_READER))
        second = {record.file_name: readings.labelled(others.joints, record.keypoints) for record in others.records}
        parts.append(_Part(hospital, folder, prefix, labels, second))
    return parts


def _labels(path: Path, hospital: str, prefix: str, findings: list[Finding]) -> Annotations:
    """The labels of one file, empty where there are none; what is wrong with it goes to ``findings``."""
    try:
        labels = read_annotations(path) if path.is_file() else Annotations((), [], [])
    except UserError as error:
        labels = Annotations((), [], [error])
    for error in labels.problems:
        entry = error.where.removeprefix(f"{path}").removeprefix(", ")
        what = f"{prefix}{path.name}: {entry}{': ' if entry else ''}{error.problem}"
        findings.append(Finding("unusable", hospital, (), what, error.remedy))
    return labels


def _film(part: _Part, name: str, record: Record) -> _Film:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's quote values of the header
        dataset, stored = read_stored(part.folder / record.file_name)
        if message := outside_message(record.keypoints, *stored.shape[::-1]):
            raise UserError(name, *message)
        patient = record.patient_id or str(dataset.get("PatientID") or "")
        given = any(keyword in dataset and dataset.get_item(keyword).value for keyword in PITCHES)
        spacing, facing = read_spacing(dataset), readings.facing_of(dataset)
    points, second = readings.labelled(part.labels.joints, record.keypoints), part.second.get(record.file_name, {})
    reference = readings.reference_px(points, *stored.shape)
    return _Film(name, patient, points, second, *stored.shape, reference, spacing, given, facing, pixel_hash(stored))


def _duplicates(hospital: str, films: list[_Film]) -> list[Finding]:
    groups: dict[str, list[_Film]] = {}
    for film in films:
        groups.setdefault(film.pixels, []).append(film)
    return [_duplicate(hospital, *group) for group in groups.values() if len(group) > 1]


def _duplicate(hospital: str, first: _Film, *others: _Film) -> Finding:
    """One finding for films with the same pixels: whose they are, and how far apart their labels lie."""
    turned = [readings.swapped(first.points, other.points, first.reference) for other in others]
    again = [readings.exchange_sides(o.points) if turn else o.points for o, turn in zip(others, turned, strict=True)]
    apart = np.concatenate([readings.distances_px(first.points, points) for points in again])
    patients = {film.patient for film in (first, *others)}
    two = len(patients - {""}) > 1
    whose = "different patient ids" if two else "one patient id" if "" not in patients else "unknown patients"
    what = f"its pixels are those of {', '.join(other.name for other in others)} too ({whose})"
    what += f"; labels {apart.min():.1f} to {apart.max():.1f} px apart" if len(apart) else "; no joint labelled in both"
    what += ", after left and right, exchanged between them, are put right" if any(turned) else ""
    remedy = "Find out whose film it is, keep it once" if two else "Keep it once"
    return Finding("duplicate", hospital, (first.name, *(o.name for o in others)), what, f"{remedy}, with one reading")


def _sides(hospital: str, films: list[_Film]) -> list[Finding]:
    """Films whose left and right differ from the hospital's other films; one finding where it is all of them."""
    order = {film.name: toward for film in films if (toward := readings.side(film.points, film.facing, film.reference))}
    usual = -1 if sum(order.values()) < 0 else 1
    findings = []
    if usual < 0:
        wrong = list(order.values()).count(-1)
        what = f"on {wrong} of {len(order)} films left joints lie to the patient's right"
        remedy = "The films are mirrored or left and right exchanged: look at a lead marker, correct all of them"
        findings.append(Finding("sides", hospital, (), what, remedy))
    what = "left and right joints lie the other way round than on this hospital's other films"
    remedy = "Look at the film's lead marker; exchange left and right, or turn the film"
    odd = [name for name, toward in order.items() if toward != usual]
    return findings + [Finding("sides", hospital, (name,), what, remedy) for name in odd]


def _pairs(hospital: str, films: list[_Film]) -> list[Finding]:
    """Single pairs that lie the other way round than the rest of their own film."""
    what, remedy = "and {} lie the other way round than its other joints", "Exchange them, unless the limbs are crossed"
    return [
        Finding("sides", hospital, (film.name,), f"{left} {what.format(right)}", remedy)
        for film in films
        for left, right in readings.odd_pairs(film.points, film.facing, film.reference)
    ]


def _reader_sides(hospital: str, films: list[_Film]) -> list[Finding]:
    what, remedy = "its two readers exchange left and right", "Look at the film's lead marker, correct one of the two"
    return [
        Finding("sides", hospital, (film.name,), what, remedy)
        for film in films
        if readings.swapped(film.points, film.second, film.reference)
    ]


def _points(hospital: str, films: list[_Film]) -> list[Finding]:
    """Points that nobody set: in a corner, or two joints on the very same place."""
    findings = []
    for film in films:
        corner, places = np.array([film.cols - 1, film.rows - 1]), {}
        for joint, xy in film.points.items():
            places.setdefault(tuple(xy), []).append(joint)
            if (np.minimum(abs(xy), abs(xy - corner)) <= 0.5).all():
                what, remedy = f"{joint} lies in a corner of the film", "Set it, or give it visibility 0"
                findings.append(Finding("points", hospital, (film.name,), what, remedy))
        for joints in (names for names in places.values() if len(names) > 1):
            what, remedy = f"{' and '.join(joints)} have the same point", "Set each, or give one visibility 0"
            findings.append(Finding("points", hospital, (film.name,), what, remedy))
    return findings


def _spacings(hospital: str, films: list[_Film]) -> list[Finding]:
    """One finding for films without a pixel spacing, one for those with a placeholder."""
    kinds = {film.name: _spacing_kind(film) for film in films}
    findings = []
    for kind in ("no pixel spacing", "a placeholder for a pixel spacing"):
        named = tuple(name for name in kinds if kinds[name] == kind)
        if named:
            what = f"{len(named)} of {len(films)} films have {kind}, {named[0]} for one"
            remedy = "Ask the archive for the detector's pitch; errors in mm leave these films out"
            findings.append(Finding("spacing", hospital, named, what, remedy))
    return findings


def _spacing_kind(film: _Film) -> str:
    if not film.spacing_given:
        return "no pixel spacing"
    return "a placeholder for a pixel spacing" if film.spacing.kind == "unknown" else "known"


def _shared_films(hospitals: dict[str, list[_Film]]) -> list[Finding]:
    """Films that two hospitals of one folder both have, found as a server would."""
    key = secrets.token_bytes(KEY_BYTES)
    groups = match({name: blind_tags([film.pixels for film in films], key) for name, films in hospitals.items()})
    findings = []
    for (first, index), *others in groups:
        places = ", ".join(f"{name}/{hospitals[name][number].name}" for name, number in others)
        what, remedy = f"its pixels are those of {places} too", "Keep the film at one hospital"
        findings.append(Finding("duplicate", first, (hospitals[first][index].name,), what, remedy))
    return findings


def _one_spacing(hospitals: dict[str, list[_Film]]) -> list[Finding]:
    """One finding where all films of several hospitals have the same spacing."""
    pitches = {(film.spacing.row_mm, film.spacing.col_mm) for films in hospitals.values() for film in films}
    if len(hospitals) < 2 or len(pitches) != 1 or np.isnan(next(iter(pitches))).any():
        return []
    what = "every film of every hospital has the same pixel spacing, {:g} x {:g} mm".format(*pitches.pop())
    remedy = "Unless all have the same detector, some program has written it in"
    return [Finding("spacing", ", ".join(hospitals), (), what, remedy)]
