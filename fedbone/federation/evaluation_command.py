"""``python -m fedbone evaluate``: what trained models can do, for whom, on films that they have not seen."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from fedbone.config import Profile, get_profile
from fedbone.errors import UserError
from fedbone.federation.command import load
from fedbone.federation.evaluation import Predictions, ensemble
from fedbone.federation.evaluation_report import ENSEMBLE, report, results, write
from fedbone.imaging.dataset import HospitalData, pool
from fedbone.model.predict import Network, load_network
from fedbone.model.training import predict
from fedbone.progress import Bar
from fedbone.vectors import load_checkpoint

Progress = Callable[[int, int, str], None]


def main(args: argparse.Namespace) -> int:
    """The ``evaluate`` command: 0 when the files are written. Films that were left out are named on stderr."""
    profile, paths = get_profile(args.profile), named_weights(args.weights)
    require_usable(args)
    networks = load_networks(paths)
    seed = seed_of(paths, args)
    hospitals, left_out = load_films(args, next(iter(networks.values())), seed, profile)
    with Bar("predicting", "film") as bar:
        predictions = predict_films(networks, hospitals, profile, bar)
    if len(networks) > 1 and set(networks) == {h.name for h in hospitals}:
        predictions[ENSEMBLE] = together(predictions, hospitals)
    about = {
        "data": "own" if args.data else "generated",
        "films": "all" if args.all_films else "test",
        "seed": seed,
        "left_out": left_out,
    }
    summary = results(networks, predictions, hospitals, profile) | about
    write(args.out, summary, networks, predictions, hospitals)
    print(report(summary, args.out))
    return 0


def named_weights(given: Sequence[str]) -> dict[str, Path]:
    """The files of ``--weights PATH`` or ``--weights NAME=PATH``, by name; a file's own name where none is given.

    Raises UserError for an empty name or path, and for two models of one name.
    """
    paths: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or "/" in name or "\\" in name:  # the sign is inside the path
            name, path = Path(text).stem, text
        if not name or not path or name in paths or name == ENSEMBLE:
            problem = (
                f"two models are called {name!r}" if name in paths else f"{text!r} does not give a name and a file"
            )
            raise UserError(
                "--weights", problem, "Give each model a name of its own: --weights north=model.safetensors"
            )
        paths[name] = Path(path).expanduser()
    return paths


def require_usable(args: argparse.Namespace) -> None:
    """Raises UserError, before any work, for an ``--out`` that is no folder and for options that make no sense."""
    if args.out.exists() and not args.out.is_dir():
        raise UserError(args.out, "it is a file, expected a folder", "Name a folder for the results")
    if args.all_films and args.data is None:
        problem = "the generated training films are those that models are trained on"
        raise UserError("--all-films", problem, "Leave it out, or name films of your own with --data")


def load_networks(paths: dict[str, Path]) -> dict[str, Network]:
    """The models by name. Raises UserError for one that cannot be used or does not fit the first: joints, film size."""
    networks = {name: load_network(path) for name, path in paths.items()}
    first, *others = networks
    for name in others:
        require_same_joints(paths[name], networks[name].joints, first, networks[first].joints)
        if networks[name].size_px != networks[first].size_px:
            problem = f"it takes films of {networks[name].size_px} px, {first} of {networks[first].size_px}"
            raise UserError(paths[name], problem, "Evaluate models of different sizes one by one")
    return networks


def require_same_joints(where: str | Path, found: Sequence[str], who: str, expected: Sequence[str]) -> None:
    """Raises UserError, with the first joint that differs."""
    for number, (a, b) in enumerate(zip_longest(found, expected, fillvalue="none"), start=1):
        if a != b:
            problem = f"it has {len(found)} joints, {who} {len(expected)}; joint {number} is {a!r} here and {b!r} there"
            remedy = "A model finds the joints that it was trained on, in their order: give films labelled with these"
            raise UserError(where, problem, remedy)


def seed_of(paths: dict[str, Path], args: argparse.Namespace) -> int:
    """``--seed``, else the one the models were trained with: it says which patients of a folder they have not seen.

    Raises UserError where the films have to be split and the models do not agree on a seed.
    """
    if args.seed is not None:
        return args.seed
    seeds = {name: load_checkpoint(path)[1].get("seed") for name, path in paths.items()}
    known = {seed for seed in seeds.values() if isinstance(seed, int) and seed >= 0}
    if args.data and not args.all_films and (len(known) != 1 or None in seeds.values()):
        told = ", ".join(f"{name}: {seed}" for name, seed in seeds.items())
        problem = f"which patients were set apart for testing depends on the training's seed, and they say {told}"
        raise UserError("--weights", problem, "Give --seed, or --all-films if no film was used for training")
    return min(known, default=0)


def load_films(
    args: argparse.Namespace, network: Network, seed: int, profile: Profile
) -> tuple[list[HospitalData], int]:
    """The hospitals with the films to test on as ``test``, at the model's size, and how many were left out.

    Raises UserError where the films are labelled with other joints than the model's, or a hospital's not at all.
    """
    asked = argparse.Namespace(**{**vars(args), "size": network.size_px, "seed": seed, "rounds": None})
    hospitals, problems, _ = load(asked, profile)
    require_same_joints(args.data or "generated films", hospitals[0].joints, "the model", network.joints)
    if args.all_films:
        hospitals = [replace(h, test=pool([h.train, h.test])) for h in hospitals]
    for h in hospitals:
        if not (h.test.keypoints[..., 2] > 0).any():
            remedy = "Label them, give --all-films if no film was used for training, or move the folder away"
            raise UserError(h.name, f"none of its {len(h.test)} test films has a label", remedy)
    return hospitals, len(problems)


def predict_films(
    networks: dict[str, Network], hospitals: list[HospitalData], profile: Profile, progress: Progress
) -> dict[str, Predictions]:
    """What each model finds on every hospital's test films. Raises UserError where that is not finite."""
    total = len(networks) * sum(len(h.test) for h in hospitals)
    done, step = 0, 4 * (profile.micro_batch or profile.batch)
    predictions: dict[str, Predictions] = {}
    for name, network in networks.items():
        predictions[name] = {}
        for h in hospitals:
            parts = []
            for start in range(0, len(h.test), step):
                parts.append(predict(network.model, h.test.images[start : start + step], profile))
                done += len(parts[-1])
                progress(done, total, f"{name} at {h.name}")
            predictions[name][h.name] = np.concatenate(parts)
            if not np.isfinite(predictions[name][h.name]).all():
                raise UserError(f"--weights {name}", "its output is not finite", "Its training diverged: train again")
    return predictions


def together(predictions: dict[str, Predictions], hospitals: list[HospitalData]) -> Predictions:
    """The ensemble of models that were each trained at the hospital of their name, which vouches for its joints."""
    labelled = [h.labelled for h in hospitals]
    return {h.name: ensemble([predictions[o.name][h.name] for o in hospitals], labelled) for h in hospitals}
