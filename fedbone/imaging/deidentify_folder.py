"""A hospital's folder of films and labels, de-identified into a new folder that may leave the hospital.

Written are DICOM films, the label files beside them and report.json, nothing else. No name in the new folder follows
from a name in the old one: names are keyed hashes. Messages count files and never name them, because names of files and
folders are where patients' names turn up.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedbone.errors import UserError
from fedbone.files import write_atomic, write_json
from fedbone.imaging.coco import Record, read_annotations, write_annotations
from fedbone.imaging.confidentiality import Options
from fedbone.imaging.deidentify import deidentify, is_dicom
from fedbone.imaging.dicom import read_stored
from fedbone.imaging.folder import LABELS
from fedbone.imaging.pseudonyms import Key, open_key
from fedbone.imaging.readings import SECOND_READER

REPORT = "report.json"
LABEL_FILES = (LABELS, SECOND_READER)
ORDER = "Files are counted in the order of: find IN -type f | LC_ALL=C sort"
_OURS = re.compile(r"film_[0-9a-f]{16}\.dcm")
_NAMED = ("DICOMDIR", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".txt", ".csv", ".json", ".xml", ".pdf", ".zip")
_JOINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+-]{0,39}")
Progress = Callable[[int, int, str], None] | None


@dataclass
class Result:
    """What one run did. films, labels: files written; problems: one error for each file or label file left undone."""

    films: int = 0
    labels: int = 0
    left_out: Counter = field(default_factory=Counter)
    fates: Counter = field(default_factory=Counter)
    burned_in: Counter = field(default_factory=Counter)
    problems: list[UserError] = field(default_factory=list)


def deidentify_folder(
    source: Path, out: Path, key_file: Path, options: Options | None = None, progress: Progress = None
) -> Result:
    """De-identify every film and label file under ``source`` into ``out``, with the key in ``key_file``.

    The same key gives the same names, UIDs and dates in every run; a key file that is not there is made. Films that
    cannot be done are in ``problems`` of the result and the others are written. An earlier output of the same key is
    brought up to date: films that are no longer in ``source`` are deleted from it. Raises UserError where there is
    nothing to do, or where the folders or the key do not fit.
    """
    source, out, options = Path(source), Path(out), options or Options()
    files = _files(source)
    _require_apart(source, out, Path(key_file))
    key = open_key(key_file)
    _require_own(out, key)
    write_json(out / REPORT, {"key_check": key.check, "finished": False})  # a run that is killed can be repeated
    run = _Run(source, out, key, options, files)
    for count, file in enumerate(files, start=1):
        run.film(count, file)
        if progress:
            progress(count, len(files), f"{run.result.films} written")
    for count, file in enumerate(files, start=1):
        if file.name in LABEL_FILES:
            run.labels(count, file)
    run.finish()
    return run.result


class _Run:
    """One pass over a folder; ``new`` maps an old path to the film written for it."""

    def __init__(self, source: Path, out: Path, key: Key, options: Options, files: list[Path]) -> None:
        self.source, self.out, self.key, self.options = source, out, key, options
        self.total, self.result = len(files), Result()
        self.labelled = {file.parent for file in files if file.name in LABEL_FILES}
        self.new: dict[str, Path] = {}
        self.written: set[Path] = set()

    def film(self, count: int, file: Path) -> None:
        """De-identify one file if it is DICOM; other files stay behind."""
        if file.name in LABEL_FILES:
            return
        try:
            if not is_dicom(file):
                kind = file.suffix.lower() or file.name.upper()
                self.result.left_out[kind if kind in _NAMED else "other"] += 1
                return
            target, content = self._film(file)
        except UserError as error:
            self._report(count, error.problem, error.remedy)
        except OSError as error:
            self._report(count, f"it cannot be read ({error.strerror})", "Check its permissions")
        except Exception as error:  # its message may quote the header
            remedy = "Export it again from its source"
            self._report(count, f"it cannot be de-identified ({type(error).__name__})", remedy)
        else:
            write_atomic(target, content)
            self.written.add(target)
            self.new[os.path.normpath(file)] = target
            self.result.films += 1

    def _film(self, file: Path) -> tuple[Path, bytes]:
        """Where the new film goes, and the whole of its file."""
        dataset, stored = read_stored(file)
        new, fates = deidentify(dataset, self.key, self.options, stored)
        name = f"film_{self.key.digest('file', new.SOPInstanceUID).hex()[:16]}.dcm"
        target = self._place(self._labels_of(file)) / name
        if target in self.written:
            problem = "it has the SOP Instance UID of an earlier file in the folder"
            raise UserError(file, problem, "Keep one of the two; if the films differ, export them again")
        buffer = io.BytesIO()
        new.save_as(buffer, enforce_file_format=True)
        self.result.fates += fates
        said = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
        said = said if said in ("YES", "NO") else "unknown"
        self.result.burned_in[f"{said}, margins blanked" if self.options.blank_percent else said] += 1
        return target, buffer.getvalue()

    def labels(self, count: int, file: Path) -> None:
        """Write the labels of the films that were written, with their new names and pseudonyms."""
        try:
            found = read_annotations(file)
        except UserError:  # its problem quotes the file
            remedy = "Mend them: python -m fedbone federate says why"
            self._report(count, "its labels cannot be read", remedy)
            return
        strange = [joint for joint in found.joints if not _JOINT.fullmatch(joint)]
        if strange:
            problem = f"{len(strange)} keypoint names are no plain names of at most 40 letters, digits and _ . + -"
            self._report(count, problem, "Rename them")
            return
        place = self._place(file.parent)
        pairs = [(record, self.new.get(os.path.normpath(file.parent / record.file_name))) for record in found.records]
        done = [(record, film) for record, film in pairs if film and film.is_relative_to(place)]
        done.sort(key=lambda pair: pair[1])  # the old order may be that of the patients' names
        lost = len(pairs) - len(done) + len(found.problems)
        if lost:
            problem = f"labels left out: {lost}, as they are damaged or their film was not written"
            self._report(count, problem, "See the other messages; python -m fedbone federate names damaged labels")
        if done:
            images = [self._image(record, film.relative_to(place)) for record, film in done]
            target = place / file.name
            write_annotations(target, found.joints, images, [record.keypoints for record, _ in done])
            self.written.add(target)
            self.result.labels += 1

    def _image(self, record: Record, name: Path) -> dict[str, object]:
        entries = {"file_name": name.as_posix(), "width": record.width, "height": record.height}
        entries["patient_id"] = self.key.pseudonym(record.patient_id or "") or None
        return {word: value for word, value in entries.items() if value is not None}

    def _labels_of(self, file: Path) -> Path:
        """The nearest folder above a file with labels, else the source itself."""
        return next((folder for folder in file.parents if folder in self.labelled), self.source)

    def _place(self, folder: Path) -> Path:
        """The new folder for an old one that holds labels; "test" keeps its name, as it has a meaning."""
        if folder == self.source:
            return self.out
        if folder.name == "test" and folder.parent in self.labelled:
            return self._place(folder.parent) / "test"
        return self.out / f"hospital_{self.key.digest('folder', folder.relative_to(self.source).as_posix()).hex()[:8]}"

    def _report(self, count: int, problem: str, remedy: str) -> None:
        self.result.problems.append(UserError(f"file {count} of {self.total}", problem, remedy))

    def finish(self) -> None:
        """Delete what an earlier run wrote and this one did not, then write the report."""
        for path in list(self.out.rglob("*")):
            if path not in self.written and (path.name in LABEL_FILES or _OURS.fullmatch(path.name)):
                path.unlink()
        result, fates = self.result, {}
        for (keyword, fate), count in sorted(result.fates.items()):
            fates.setdefault(keyword, {})[fate] = count
        write_json(
            self.out / REPORT,
            {
                "method": [" ".join(code) for code in self.options.codes()],
                "options": asdict(self.options),
                "key_check": self.key.check,
                "finished": True,
                "films_written": result.films,
                "label_files_written": result.labels,
                "not_written": [f"{p.where}: {p.problem}" for p in result.problems],
                "order": ORDER,
                "other_files_left_out": dict(sorted(result.left_out.items())),
                "burned_in_annotation": dict(sorted(result.burned_in.items())),
                "attributes": fates,
            },
        )


def _files(source: Path) -> list[Path]:
    """Every file below ``source`` in byte order of the paths; links are not followed."""
    if not source.is_dir():
        raise UserError(source, "no such folder", "Name the folder with the DICOM files")
    found = [Path(top) / name for top, _, names in os.walk(source) for name in names]
    found = [path for path in found if path.is_file() and not path.is_symlink()]
    if not found:
        raise UserError(source, "the folder holds no files", "Put DICOM files (.dcm) in it")
    return sorted(found, key=lambda path: os.fsencode(path.relative_to(source).as_posix()))


def _require_apart(source: Path, out: Path, key_file: Path) -> None:
    old, new, key = source.resolve(), out.resolve(), key_file.resolve()
    if new.is_relative_to(old) or old.is_relative_to(new):
        raise UserError(out, "the new folder and the old one lie inside each other", "Name a folder elsewhere")
    if key.is_relative_to(new):
        problem = "the key lies in the folder that is to leave the hospital"
        raise UserError(key_file, problem, "Keep it elsewhere: whoever has it can tell which patient is which")


def _require_own(out: Path, key: Key) -> None:
    """Raise UserError unless ``out`` is new, empty or an earlier output of the same key."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        earlier = json.loads((out / REPORT).read_text(encoding="utf-8"))["key_check"]
    except (OSError, ValueError, KeyError, TypeError):
        problem = "it is there already, and not as an output of this command"
        raise UserError(out, problem, "Name a new folder, or empty this one") from None
    if earlier != key.check:
        problem = "it was written with another key, so its pseudonyms would not fit the new ones"
        raise UserError(out, problem, "Give the key of that run, or name a new folder")
