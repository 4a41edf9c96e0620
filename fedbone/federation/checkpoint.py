"""Where a federation stands after a round, and the file from which it goes on after an interruption."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fedbone.config import Profile
from fedbone.errors import UserError
from fedbone.federation.aggregation import Server
from fedbone.federation.history import RoundRecord, from_json, to_json
from fedbone.federation.hospital import Hospital
from fedbone.federation.processes import States
from fedbone.model.fit import FREE
from fedbone.run_state import load_state, save_state
from fedbone.vectors import sha256

KIND = "federation"


@dataclass
class Place:
    """All that the next round depends on.

    vector (P,): the global model; server: the server optimiser's arrays; hospitals: what stays in each between rounds;
    rosters: the hospitals that have uploaded to a secure sum of the round that is not finished.
    """

    vector: np.ndarray
    hospitals: States
    server: dict[str, np.ndarray] = field(default_factory=dict)
    history: list[RoundRecord] = field(default_factory=list)
    rosters: list[list[str]] = field(default_factory=list)


def belongs(
    profile: Profile,
    seed: int,
    server: Server,
    participation: float,
    hospitals: Collection[Hospital],
    first: Place,
) -> dict:
    """What two calls must share for one to go on where the other stopped, as JSON values.

    Not min_hospitals and the deadline: when a hospital has left for good, the others may go on with fewer.
    """
    strategy, noise, secure = server.strategy, server.noise, server.secure
    if " at 0x" in repr(strategy):
        problem = f"{strategy} would not be known again by the next process"
        raise UserError("state", problem, "Use functools.partial(TrimmedMean, 2) in place of a lambda, and dataclasses")
    return {
        **{name: value for name, value in asdict(profile).items() if name not in FREE},
        "seed": seed,
        "strategy": repr(strategy),
        "participation": participation,
        "noise": noise and {"sigma": noise.sigma, "clip_norm": noise.clip_norm},
        "levels": secure and f"{secure.lanes.bits} bits over {float(secure.lanes.update_range)!r}",
        "joints": len(next(iter(hospitals)).joints),
        **{f"films of {hospital.name}": hospital.films_digest() for hospital in hospitals},
        "first model": sha256(first.vector),
    }


def write(path: Path, place: Place, run: dict) -> None:
    """Write the state file of a ``run`` (see ``belongs``): the old or the new one is there whatever happens."""
    arrays = {"vector": place.vector}
    arrays |= {f"server.{key}": array for key, array in place.server.items()}
    for index, name in enumerate(sorted(place.hospitals)):  # a number: names may hold anything
        arrays |= {f"hospital.{index}.{key}": array for key, array in place.hospitals[name].items()}
    save_state(path, KIND, run, arrays, {"history": to_json(place.history), "rosters": place.rosters})


def read(path: Path, run: dict, names: Iterable[str]) -> Place | None:
    """The place that ``write`` left, None where there is no file yet. Raises UserError as ``load_state`` does."""
    found = load_state(path, KIND, run)
    if found is None:
        return None
    arrays, header = found
    hospitals = {name: _part(arrays, f"hospital.{index}.") for index, name in enumerate(sorted(names))}
    history, rosters = from_json(header["history"]), header.get("rosters", [])  # older files have none
    return Place(arrays["vector"], hospitals, _part(arrays, "server."), history, rosters)


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
