"""What ``python -m fedbone evaluate`` leaves behind: figures as JSON and CSV, a picture of films, and words."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import cv2
import torch

from fedbone.config import Profile
from fedbone.federation.command import gpu_name, score_lines
from fedbone.federation.evaluation import (
    Predictions,
    cross_matrix,
    evaluate,
    fairness,
    joint_rows,
    telling_films,
    unseen_miss_share,
)
from fedbone.files import write_atomic, write_json
from fedbone.imaging.dataset import HospitalData
from fedbone.model.gallery import Case, gallery
from fedbone.model.metrics import join, radial_errors, worst_first
from fedbone.model.overlay import NOTICE
from fedbone.model.predict import Network
from fedbone.vectors import sha256, to_vector

SCHEMA_VERSION = 1
RESULTS, JOINTS, MATRIX, GALLERY = "evaluation.json", "per_joint.csv", "matrix.csv", "gallery.jpg"
ENSEMBLE = "ensemble"  # all models together, where each was trained at one of the hospitals
LONGEST_TABLE = 20  # joints that are printed; all are in the files
FILMS = {
    ("generated", "test"): "the workbook's generated test films",
    ("own", "test"): "test films alone, unseen by models that were trained on this folder with this seed",
    ("own", "all"): "all films: right only if no film was used for training",
}


def results(
    networks: dict[str, Network], predictions: dict[str, Predictions], hospitals: list[HospitalData], profile: Profile
) -> dict:
    """The content of evaluation.json but for what the command line says; tests/evaluation.schema.json describes it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "evaluate",
        "notice": NOTICE.lower(),
        "joints": list(hospitals[0].joints),
        "size_px": int(hospitals[0].test.images.shape[-1]),
        "n_films": {h.name: len(h.test) for h in hospitals},
        "n_patients": {h.name: len(set(h.test.patients)) for h in hospitals},
        "models": {
            name: {
                "vector_sha256": sha256(to_vector(networks[name].model)) if name in networks else None,
                **_scores(found, hospitals),
            }
            for name, found in predictions.items()
        },
        "matrix": cross_matrix(predictions, hospitals) if len(networks) > 1 else None,
        "torch": torch.__version__,
        "device": gpu_name(profile) or "cpu",
    }


def _scores(found: Predictions, hospitals: list[HospitalData]) -> dict:
    """metrics (as in results.json), fairness, and rows per joint, worst first: over all hospitals and of each."""
    metrics, joints = evaluate(found, hospitals), hospitals[0].joints
    errors = {h.name: radial_errors(found[h.name], h.test) for h in hospitals}
    rows = [{"hospital": name, **row} for name, part in errors.items() for row in joint_rows(part, joints)]
    return {
        "metrics": metrics,
        "fairness": fairness(metrics),
        "joints": joint_rows(join(list(errors.values())), joints),
        "joints_by_hospital": sorted(rows, key=lambda row: (row["pck_0_05"], -row["mre_px"])),
    }


def write(
    out: Path,
    summary: dict,
    networks: dict[str, Network],
    predictions: dict[str, Predictions],
    hospitals: list[HospitalData],
) -> None:
    """All files into ``out``, each whole or not at all; evaluation.json comes last and says that the others are there.

    Tables: see ``joint_rows`` and ``cross_matrix``, with the interval as columns low_95 and high_95 (empty with one
    patient). The gallery shows the first model.
    """
    rows = [
        {"model": name, **row} for name, scores in summary["models"].items() for row in scores["joints_by_hospital"]
    ]
    first = next(iter(networks))
    picture = _gallery(networks[first], predictions[first], hospitals)
    for stale in (RESULTS, MATRIX):  # of an earlier run: the new files must not be read with them
        (out / stale).unlink(missing_ok=True)
    write_atomic(out / JOINTS, _csv(rows))
    write_atomic(out / GALLERY, picture)
    if summary["matrix"]:
        write_atomic(out / MATRIX, _csv(summary["matrix"]))
    write_json(out / RESULTS, summary)


def _csv(rows: list[dict]) -> bytes:
    text, flat = io.StringIO(), []
    for row in rows:
        low, high = row["interval_95"] or (None, None)
        flat.append({**{k: v for k, v in row.items() if k != "interval_95"}, "low_95": low, "high_95": high})
    table = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    return text.getvalue().encode()


def _gallery(network: Network, found: Predictions, hospitals: list[HospitalData]) -> bytes:
    """The worst films and some ordinary ones as JPEG; patients are numbers in order of file names, or pseudonyms."""
    by_name, cases = {h.name: h for h in hospitals}, []
    for row in telling_films(found, hospitals):
        h, i = by_name[row["hospital"]], row["film"]
        patient = h.test.patients[i].removeprefix(f"{h.name}-")
        title = f"{row['kind']}: {h.name}, patient {patient}, {row['mre_px']:.1f} px"
        film = h.test.images[i], h.test.keypoints[i], found[h.name][i]
        cases.append(Case(*film, h.joints, network.threshold, title))
    return cv2.imencode(".jpg", gallery(cases), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def report(summary: dict, out: Path) -> str:
    """The end of a run in words: per model the overall score, hospitals and joints worst first; the cross matrix."""
    lines = [f"films: {FILMS[summary['data'], summary['films']]}; seed {summary['seed']}"]
    for name, scores in summary["models"].items():
        lines += ["", *score_lines(name, scores["metrics"]), *_hospital_lines(scores["metrics"], summary)]
        lines += _joint_lines(scores["joints"])
    if summary["matrix"]:
        lines += ["", *_matrix_lines(summary["matrix"])]
    if summary["left_out"]:
        lines.append(f"{summary['left_out']} films or annotations were left out; each is named above")
    names = [JOINTS, *([MATRIX] if summary["matrix"] else []), GALLERY, RESULTS]
    return "\n".join([*lines, "", f"{NOTICE.lower()}; written to {out}: {', '.join(names)}"])


def _hospital_lines(metrics: dict, summary: dict) -> list[str]:
    """A row for all hospitals together, then one for each, worst first."""
    lines = [f"  {'hospital':20} films patients  PCK@0.05 (95 %)         error px (95 %)"]
    everywhere = ("all", metrics, *(sum(summary[key].values()) for key in ("n_films", "n_patients")))
    worst = worst_first(metrics["per_hospital"]).items()
    each = ((name, row, summary["n_films"][name], summary["n_patients"][name]) for name, row in worst)
    for name, row, films, patients in (everywhere, *each):
        pck, px = (_figure(row[key], row["interval_95"][key], d) for key, d in (("pck_0_05", 3), ("mre_px", 2)))
        lines.append(f"  {name:20} {films:5} {patients:8}  {pck:22}  {px}")
    return lines


def _joint_lines(rows: list[dict]) -> list[str]:
    """A row per joint over all hospitals, worst first, and what an interval without width hides."""
    lines = [f"  {'joint':20} films patients  PCK@0.05 (95 %)         error px, mm"]
    for row in rows[:LONGEST_TABLE]:
        pck = _figure(row["pck_0_05"], row["interval_95"], 3)
        mm = "-" if row["mre_mm"] is None else f"{row['mre_mm']:.1f}"
        lines.append(
            f"  {row['joint']:20} {row['n_labels']:5} {row['n_patients']:8}  {pck:22}  {row['mre_px']:.2f}, {mm}"
        )
    if len(rows) > LONGEST_TABLE:
        lines.append(f"  {len(rows) - LONGEST_TABLE} joints that do better are in {JOINTS}")
    if faultless := [row["n_patients"] for row in rows if row["pck_0_05"] == 1]:
        n = min(faultless)
        share = unseen_miss_share(n)
        lines.append(f"  no miss among {n} patients still leaves room for a miss in {share:.0%} of all patients")
    return lines


def _figure(value: float, interval: list[float] | None, digits: int) -> str:
    ends = "one patient" if interval is None else " to ".join(f"{end:.{digits}f}" for end in interval)
    return f"{value:.{digits}f} ({ends})"


def _matrix_lines(rows: list[dict]) -> list[str]:
    """PCK@0.05 and error of every model (rows) at every hospital (columns)."""
    places = list(dict.fromkeys(row["tested_at"] for row in rows))
    lines = [
        "PCK@0.05 (95 %) of the model, by row, at the hospital, by column",
        " " * 22 + "".join(f"{p:24}" for p in places),
    ]
    for name in dict.fromkeys(row["trained_at"] for row in rows):
        cells = [_figure(row["pck_0_05"], row["interval_95"], 2) for row in rows if row["trained_at"] == name]
        lines.append(f"  {name:20}" + "".join(f"{cell:24}" for cell in cells))
    return lines
