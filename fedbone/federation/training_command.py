"""``python -m fedbone train``: one model on the training films of all hospitals together, in one place.

A run that was killed continues when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from fedbone.config import Profile
from fedbone.errors import UserError
from fedbone.federation.arms import presentations
from fedbone.federation.command import at_size_of, chosen_profile, describe, gpu_name, load, score_lines
from fedbone.federation.evaluation import evaluate, predict_all
from fedbone.files import write_json
from fedbone.imaging.dataset import HospitalData, pool
from fedbone.model.fit import Fit, OnStep, fit
from fedbone.model.hrnet import HRNet, build_for, load_model, save_model
from fedbone.model.imagenet import warm_start
from fedbone.model.pace import MEASURED_STEPS, Pace, duration, forecast
from fedbone.model.schedule import steps_in_all
from fedbone.progress import Bar
from fedbone.vectors import HEAD, sha256, to_vector

SCHEMA_VERSION = 1
STATE, MODEL, RESULTS = "training.safetensors", "model.safetensors", "results.json"


def main(args: argparse.Namespace) -> int:
    """The ``train`` command: 0 when the results are written. Films that were left out are named on stderr."""
    profile = chosen_profile(args)
    require_own_folder(args.out)
    hospitals, problems, profile = load(args, profile)
    profile = at_size_of(hospitals, profile)
    model, start = first_model(args.start, profile, hospitals[0].joints, args.seed)
    print(plan(hospitals, profile, start), file=sys.stderr)
    films = pool([h.train for h in hospitals])
    with Bar("training", "step") as bar:
        done = fit(model, films, profile, args.seed, args.out / STATE, on_step=shown(bar))
    if done.new_steps == 0:
        print(f"{args.out}: this training is finished; nothing was trained. Give another --out to train again")
    summary = results(model, done, hospitals, profile, args, start)  # of the present test films, in any case
    meta = {name: summary[name] for name in ("joints", "size_px", "rounds", "seed", "start")}
    save_model(args.out / MODEL, model, sigma_px=profile.sigma_px, **meta)
    write_json(args.out / RESULTS, summary)
    print(report(summary, len(problems), args.out))
    return 0


def require_own_folder(out: Path) -> None:
    """Raises UserError where ``out`` has results of something else, such as a federation: they would be overwritten."""
    path = out / RESULTS
    if not path.exists():
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        earlier = None
    if not isinstance(earlier, dict) or earlier.get("command") != "train":
        raise UserError(path, "these are not the results of a training of one model", "Give another --out")


def first_model(start: str | None, profile: Profile, joints: tuple[str, ...], seed: int) -> tuple[HRNet, str]:
    """The model that training starts with, and where its weights are from: nowhere, ImageNet or a checkpoint.

    start: None, ``imagenet``, ``imagenet=FILE`` with timm's weights on disk, or a checkpoint of fedbone, whose head is
    taken over if it was trained on the same ``joints``. Raises UserError when the weights cannot be had, and when they
    are of another network.
    """
    model = build_for(profile, len(joints), seed)
    if start is None:
        return model, "random weights"
    kind, _, given = start.partition("=")
    if kind == "imagenet":
        if not given:  # without a connection the library tries for half a minute
            print("ImageNet weights: from the cache, else from huggingface.co", file=sys.stderr)
        return model, f"ImageNet, {warm_start(model, Path(given) if given else None)}"
    path = Path(start).expanduser()
    other, metadata = load_model(path)
    _require_same_network(path, model, other)
    same = tuple(metadata.get("joints", ())) == joints
    kept = {name: tensor for name, tensor in other.state_dict().items() if same or not name.startswith(HEAD)}
    model.load_state_dict(kept, strict=False)
    return model, f"{path}, {'head included' if same else 'with a new head, for its joints are others'}"


def _require_same_network(path: Path, model: HRNet, other: HRNet) -> None:
    ours, theirs = asdict(model.config), asdict(replace(other.config, joints=model.config.joints))
    wrong = [f"{name} {theirs[name]}, expected {ours[name]}" for name in ours if ours[name] != theirs[name]]
    if wrong:
        remedy = "Give the --profile and --preset that it was trained with, or another file"
        raise UserError(path, f"it is of another network: {'; '.join(wrong)}", remedy)


def plan(hospitals: list[HospitalData], profile: Profile, start: str) -> str:
    """What is about to happen: films, presentations, optimiser steps, and how long it should take."""
    shown_films = presentations(hospitals, profile, pooled=True)
    films = sum(len(h.train) for h in hospitals)
    time_needed = forecast(profile, shown_films, gpu_name(profile), cores=1)
    return (
        f"{describe(hospitals)}\n"
        f"start: {start}\n"
        f"{films} training films, {profile.rounds} rounds: {shown_films} presentations of a film "
        f"in {steps_in_all(films, profile)} steps\n"
        f"expected time: {time_needed}; measured after {MEASURED_STEPS} steps"
    )


def shown(bar: Bar) -> OnStep:
    """The loss and, as soon as the pace is known, the time left beside ``bar``."""
    pace = Pace(MEASURED_STEPS)

    def on_step(done: int, total: int, loss: float) -> None:
        left = pace.remaining_s(done, total, time.monotonic())
        bar(done, total, f"loss {loss:.2f}" + ("" if left is None else f", {duration(left)} left"))

    return on_step


def results(
    model: HRNet, done: Fit, hospitals: list[HospitalData], profile: Profile, args: argparse.Namespace, start: str
) -> dict:
    """The content of results.json. seconds and cpu_seconds: of the training, all its runs together."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "train",
        "profile": profile.name,
        "settings": asdict(profile),
        "data": "own" if args.data else "generated",
        "start": start,
        "seed": args.seed,
        "rounds": profile.rounds,
        "presentations": presentations(hospitals, profile, pooled=True),
        "joints": list(hospitals[0].joints),
        "size_px": profile.size_px,
        "n_train": {h.name: len(h.train) for h in hospitals},
        "n_test": {h.name: len(h.test) for h in hospitals},
        "losses": done.losses,
        "metrics": evaluate(predict_all(model, hospitals, profile), hospitals),
        "vector_sha256": sha256(to_vector(model)),
        "torch": torch.__version__,
        "device": gpu_name(profile) or "cpu",
        "seconds": round(done.seconds, 1),
        "cpu_seconds": round(done.cpu_seconds, 1),
    }


def report(summary: dict, left_out: int, out: Path) -> str:
    """The end of a run in words: errors, time, films left out, where the files are."""
    lines = [
        *score_lines("trained", summary["metrics"]),
        f"training took {summary['seconds']:.0f} s, {summary['cpu_seconds']:.0f} s of processor time",
    ]
    if left_out:
        lines.append(f"{left_out} films or annotations were left out; each is named above")
    return "\n".join([*lines, f"written to {out}: {MODEL}, {RESULTS}, and {STATE} to continue from"])
