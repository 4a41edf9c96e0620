"""``python -m fedbone federate`` and notebook 05: train the arms on a folder of hospitals and write the results."""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from fedbone.config import COARSEST_PX, Profile, get_profile, is_full_run
from fedbone.errors import UserError
from fedbone.federation.arms import Arm, ArmResult, Folders, OnRow, Progress, presentations, rounds_for, run_arms
from fedbone.federation.evaluation import evaluate, paired_difference, worst_joint
from fedbone.federation.history import history_rows
from fedbone.files import write_atomic, write_json
from fedbone.imaging.dataset import HospitalData
from fedbone.imaging.folder import load_hospitals
from fedbone.imaging.hospitals import training_hospitals
from fedbone.imaging.quality import report as quality_report
from fedbone.model.hrnet import build_for, save_model
from fedbone.model.metrics import DETECTED_MM, worst_first
from fedbone.model.pace import forecast
from fedbone.progress import Bar
from fedbone.vectors import load_vector, sha256

SCHEMA_VERSION = 2
STATE = "state"  # folder of the arms' state files


def results(
    arms: dict[str, ArmResult], hospitals: list[HospitalData], profile: Profile, seed: int, data: str, seconds: float
) -> dict:
    """The content of results.json; every key is always there, null where an arm was not run.

    data: sample, generated or own. seconds: wall time of the training.
    """
    scored = {name: evaluate(arm.predictions, hospitals) for name, arm in arms.items()}
    local = {h.name: _own(scored.get(h.name), h.name) for h in hospitals}
    federated = arms.get("federated")
    return {
        "schema_version": SCHEMA_VERSION,
        "profile": profile.name,
        "data": data,
        "seed": seed,
        "rounds": profile.rounds,
        "presentations": presentations(hospitals, profile),
        "joints": list(hospitals[0].joints),
        "size_px": int(hospitals[0].train.images.shape[-1]),
        "n_train": {h.name: len(h.train) for h in hospitals},
        "n_test": {h.name: len(h.test) for h in hospitals},
        "pooled": scored.get("pooled"),
        "federated": scored.get("federated"),
        "local": local,
        "federated_minus_local": {h.name: _gain(arms, h) for h in hospitals},
        "vector_sha256": sha256(federated.vector) if federated else None,
        "torch": torch.__version__,
        "device": gpu_name(profile) or "cpu",
        "seconds": round(seconds, 1),
    }


def gpu_name(profile: Profile) -> str:
    """The GPU that ``profile`` trains on; empty for the CPU."""
    return torch.cuda.get_device_name() if profile.device == "cuda" else ""


def _own(metrics: dict | None, hospital: str) -> dict | None:
    """A local-only model is judged by its own hospital's films: it never saw the other joints."""
    if metrics is None:
        return None
    own = metrics["per_hospital"][hospital]
    readings = {hospital: metrics["readings"][hospital]}
    return {**own, "pck_0_05_unlabelled": None, "readings": readings, "per_hospital": {hospital: own}}


def _gain(arms: dict[str, ArmResult], hospital: HospitalData) -> dict | None:
    """Error of the federated minus the local-only model on the hospital's own test films, with its interval."""
    name = hospital.name
    if "federated" not in arms or name not in arms:
        return None
    first, second = (arms[arm].predictions[name] for arm in ("federated", name))
    return paired_difference(first, second, hospital.test)


def history_csv(arm: ArmResult) -> bytes:
    """What ``history_rows`` gives, one row per round and hospital, and the fingerprint of the model after the round."""
    prints = [record.vector_sha256 for record in arm.history for _ in record.hospitals]
    rows = [{**row, "vector_sha256": sha} for row, sha in zip(history_rows(arm.history), prints, strict=True)]
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def standard_arms(hospitals: list[HospitalData], profile: Profile) -> dict[str, Arm]:
    """The comparison that every claim about federation needs: federated, pooled, and each hospital alone.

    Raises UserError for a hospital that has the name of another arm.
    """
    for h in hospitals:
        if h.name.casefold() in ("federated", "pooled"):
            raise UserError(h.name, "a hospital's folder has the name of a training arm", "Rename the folder")
    return dict.fromkeys(["federated", "pooled", *(h.name for h in hospitals)], Arm(profile))


def federate(
    hospitals: list[HospitalData],
    profile: Profile,
    out: Path,
    *,
    seed: int = 0,
    data: str = "own",
    arms: dict[str, Arm] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    on_row: OnRow | None = None,
    processes: int = 1,
) -> tuple[dict, dict[str, ArmResult]]:
    """Train, and write model.safetensors, history.csv and results.json into ``out``; returns (results, arms).

    arms: see ``standard_arms``; the default is the federated arm alone. resume: keep each arm's state in ``out``/state,
    and go on from what an interrupted call left there. The rest: see ``run_arms``.
    """
    if arms and arms["federated"].strategy.local_norm:
        raise ValueError("FedBN leaves no one model to write: use run_arms, whose predictions are each hospital's own")
    started = time.monotonic()
    folders = Folders(out / "tensorboard", out / STATE if resume else None)
    done = run_arms(arms or {"federated": Arm(profile)}, hospitals, seed, folders, progress, on_row, processes)
    summary = results(done, hospitals, profile, seed, data, time.monotonic() - started)
    model = build_for(profile, len(hospitals[0].joints))
    load_vector(model, done["federated"].vector)
    meta = {name: summary[name] for name in ("joints", "size_px", "rounds", "seed")}
    save_model(out / "model.safetensors", model, sigma_px=profile.sigma_px, **meta)
    write_atomic(out / "history.csv", history_csv(done["federated"]))
    write_json(out / "results.json", summary)
    return summary, done


def own_profile(hospitals: list[HospitalData], profile: Profile, rounds: int | None) -> Profile:
    """Rounds for a reader's own films: as asked, else enough for a small collection."""
    return profile if rounds or not is_full_run() else rounds_for(sum(len(h.train) for h in hospitals), profile)


def chosen_profile(args: argparse.Namespace) -> Profile:
    """The profile with what the command line changes. Raises UserError for a size the network cannot halve."""
    names = ("preset", "rounds", "micro_batch", "checkpointing", "norm")
    asked = {name: getattr(args, name, None) for name in names}  # federate has no norm
    profile = get_profile(args.profile, **{name: value for name, value in asked.items() if value})
    if args.size and args.size % COARSEST_PX:
        remedy = f"Give a multiple of {COARSEST_PX}, for example 128, 256 or 512"
        raise UserError("--size", f"{args.size} pixels do not divide into the network's coarsest grid", remedy)
    return profile


def at_size_of(hospitals: list[HospitalData], profile: Profile) -> Profile:
    """The profile with the size that the films have, which for own films is not its own."""
    return replace(profile, size_px=hospitals[0].train.images.shape[-1])


def main(args: argparse.Namespace) -> int:
    """The ``federate`` command: 0 when the results were written. Films that were left out are named on stderr."""
    profile = chosen_profile(args)
    hospitals, problems, profile = load(args, profile)
    profile = at_size_of(hospitals, profile)
    arms = standard_arms(hospitals, profile) if args.compare else None
    shown = presentations(hospitals, profile) * (3 if args.compare else 1)  # federated, pooled, and all local ones
    time_needed = forecast(profile, shown, gpu_name(profile))
    print(f"{describe(hospitals)}; rounds: {profile.rounds}; training takes {time_needed}", file=sys.stderr)
    data = "own" if args.data else "generated"
    with Bar("training", "film") as bar:
        options = {"seed": args.seed, "data": data, "arms": arms, "resume": True, "processes": os.cpu_count() or 1}
        summary, _ = federate(hospitals, profile, args.out, progress=bar, **options)
    print(report(summary, len(problems), args.out))
    return 0


def load(args: argparse.Namespace, profile: Profile) -> tuple[list[HospitalData], list[UserError], Profile]:
    """The hospitals that the command line asks for, what had to be left out, and the profile with its rounds."""
    if args.data is None:
        with Bar("generating films", "film") as bar:
            return training_hospitals(args.size or profile.size_px, args.seed, progress=bar), [], profile
    size_px = args.size or profile.own_size_px
    with Bar("reading films", "film") as bar:
        whole = getattr(args, "all_films", False)  # of ``evaluate``: a model from elsewhere has seen none of them
        hospitals, problems = load_hospitals(
            args.data, size_px, args.seed, args.split_by_file, progress=bar, split=not whole
        )
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    with Bar("checking labels", "film") as bar:
        findings = quality_report(args.data, progress=bar)
    for finding in findings:
        if finding.kind != "unusable":  # those are left out, and named above
            print(f"check: {finding}", file=sys.stderr)
    return hospitals, problems, own_profile(hospitals, profile, args.rounds)


def describe(hospitals: list[HospitalData]) -> str:
    """One line: who has how many films."""
    return ", ".join(f"{h.name}: {len(h.train)} training and {len(h.test)} test films" for h in hospitals)


def interval_text(gain: dict) -> str:
    """The interval of a paired difference in words."""
    if gain["interval_95"] is None:
        return "one test patient: no interval"
    return "95 % {:+.2f} to {:+.2f}".format(*gain["interval_95"])


def score_lines(name: str, arm: dict) -> list[str]:
    """An arm's scores in words: over all films, the hospital and the joint that fare worst, and clinical readings."""
    hospital, there = next(iter(worst_first(arm["per_hospital"]).items()))
    joint, share = worst_joint(arm)
    return [
        f"{name}: PCK@0.05 {arm['pck_0_05']:.3f}, mean radial error {arm['mre_px']:.2f} px{_millimetres(arm)}",
        f"  worst hospital {hospital}: PCK@0.05 {there['pck_0_05']:.3f}, {there['mre_px']:.2f} px; "
        f"worst joint {joint}: {share:.3f}, {arm['per_joint'][joint]['mre_px']:.2f} px",
        *(f"  {line}" for place, entries in arm["readings"].items() for line in _reading_lines(place, entries)),
    ]


def _millimetres(arm: dict) -> str:
    if arm["mre_mm"] is None:
        return ""
    kinds = ", ".join(f"{kind} {mean:.2f}" for kind, mean in arm["mre_mm_by_kind"].items())
    limits, found = zip(*((str(mm), f"{arm[f'sdr_{mm}_mm']:.2f}") for mm in DETECTED_MM), strict=True)
    return f", {arm['mre_mm']:.2f} mm ({kinds}); share within {' / '.join(limits)} mm: {' / '.join(found)}"


def _reading_lines(hospital: str, readings: dict[str, dict | None]) -> list[str]:
    return [
        f"{hospital}, {name}: bias {entry['bias']:+.2f}, 95 % limits of agreement "
        f"{entry['limits'][0]:+.2f} to {entry['limits'][1]:+.2f} {entry['unit']}, {entry['n_patients']} patients"
        for name, entry in readings.items()
        if entry and entry["limits"]
    ]


def report(summary: dict, left_out: int, out: Path) -> str:
    """The end of a run in words: error of each arm, films left out, where the files are."""
    lines = [line for name in ("federated", "pooled") if summary[name] for line in score_lines(name, summary[name])]
    for name, gain in summary["federated_minus_local"].items():
        if gain:
            lines.append(f"{name}: federated minus local-only {gain['mre_px']:+.2f} px ({interval_text(gain)})")
    if left_out:
        lines.append(f"{left_out} films or annotations were left out; each is named above")
    return "\n".join([*lines, f"written to {out}: model.safetensors, history.csv, results.json"])
