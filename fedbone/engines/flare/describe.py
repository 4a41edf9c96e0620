"""What others know of a hospital before there are kits: it describes its films itself, and no film leaves it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from fedbone.config import COARSEST_PX
from fedbone.engines.flare.kit import NAME, hospital_kit, read_json
from fedbone.errors import UserError
from fedbone.files import write_json
from fedbone.imaging.dataset import HospitalData
from fedbone.imaging.folder import load_hospitals
from fedbone.progress import Bar

FORM = 'expected {"hospitals": {NAME: {"labels": [...], "joints": [...]}}} as `deploy describe` writes it'


@dataclass(frozen=True)
class Described:
    """A hospital for ``kits``. patients, data: only where its films are at hand; never in what others are told."""

    labels: tuple[str, ...]
    joints: tuple[str, ...]
    patients: int | None = None
    data: Path | None = None

    @classmethod
    def of(cls, films: HospitalData, data: Path) -> Described:
        """What the films in the folder ``data`` say."""
        labels = tuple(joint for joint, labelled in zip(films.joints, films.labelled, strict=True) if labelled)
        return cls(labels, films.joints, len(set(films.train.patients)), Path(data).resolve())

    def entry(self) -> dict:
        """The public part."""
        return {"labels": list(self.labels), "joints": list(self.joints)}


def read_described(paths: Iterable[Path]) -> dict[str, Described]:
    """The hospitals of all these files, by name. Raises UserError for what is no such file or does not fit."""
    found: dict[str, Described] = {}
    for path in paths:
        entries = read_json(path).get("hospitals")
        if not isinstance(entries, dict) or not entries:
            raise UserError(path, "it lists no hospitals", FORM)
        for name, entry in entries.items():
            if name in found:
                raise UserError(path, f"the hospital {name!r:.60} is listed twice", "Give each hospital's file once")
            found[name] = _checked(path, name, entry)
            if found[name].joints != next(iter(found.values())).joints:
                remedy = "List the same joints in the same order in every hospital's annotations"
                raise UserError(path, f"the joints of {name!r:.60} are not those of the others", remedy)
    return found


def _checked(path: Path, name: str, entry: object) -> Described:
    lists = [entry.get(key) for key in ("labels", "joints")] if isinstance(entry, dict) else [None]
    if not all(isinstance(names, list) and names and all(isinstance(n, str) for n in names) for names in lists):
        raise UserError(path, f"the entry of {name!r:.60} has no lists of labels and joints", FORM)
    labels, joints = map(tuple, lists)
    if not set(labels) <= set(joints) or len(set(joints)) < len(joints):
        raise UserError(path, f"labels and joints of {name!r:.60} do not go together", FORM)
    return Described(labels, joints)


def look_at(folder: Path) -> Described:
    """The films of one hospital. Raises UserError when they cannot be used; those left out are printed."""
    folder = Path(folder).resolve()
    with Bar("reading films", "film") as bar:
        found, problems = load_hospitals(folder.parent, COARSEST_PX, progress=bar, only=folder.name)
    for problem in problems:
        print(problem)
    return Described.of(found[0], folder)


def run_describe(args: argparse.Namespace) -> int:
    """At a hospital, before there are kits: write what the administrator needs."""
    if not NAME.fullmatch(args.name):
        raise UserError(f"{args.name!r:.60}", "it cannot be a hospital's name", "Give 1 to 40 of a-z, 0-9, - and _")
    described = look_at(args.data)
    write_json(args.out, {"hospitals": {args.name: described.entry()}})
    print(f"{args.out}: {args.name} labels {len(described.labels)} of {len(described.joints)} joints. Send this file")
    print("to the administrator (`deploy init --directory`); it says nothing about films or patients")
    return 0


def run_films(args: argparse.Namespace) -> int:
    """At a hospital, when its kit has come: name its films in it, and count its patients for DP-SGD."""
    kit = hospital_kit(args.kit)
    described, known = look_at(args.data), kit.directory()[kit.name]
    if described.entry() != {key: known[key] for key in ("labels", "joints")}:
        remedy = "Give the films that were described; for others, make the kits again"
        raise UserError(args.data, "its labels and joints are not those of directory.json", remedy)
    budget = kit.own / "privacy_budget.json"
    write_json(budget, {**read_json(budget), "patients": described.patients})
    replace(kit, data=described.data).write_settings()
    print(f"{kit.name}: trains on the films in {described.data}, of {described.patients} patients.")
    print(f"Its staff decide on epsilon_limit and dp_delta in {budget}; its officer signs: `deploy consent`")
    return 0
