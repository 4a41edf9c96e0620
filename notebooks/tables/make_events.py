"""Measures notebooks/tables/events.csv: hospitals that come late, leave, miss rounds, or send what harms the others.

The run in which nothing happens is in gains.csv.

    .venv/bin/python -m notebooks.tables.make_events [SEED ...]      (about 8 minutes a seed on two free cores)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fedbone.config import get_profile
from fedbone.federation.evaluation import evaluate, worst_joint
from fedbone.federation.hospital import Hospital, RoundTask, Update
from fedbone.federation.rounds import RoundRules, run_rounds
from fedbone.federation.strategies import CoordinateMedian, Strategy, TrimmedMean, WeightedMean
from fedbone.imaging.hospitals import GENERATOR_VERSION, training_hospitals
from fedbone.model.training import predict
from notebooks.tables.make_heterogeneity import dealt
from notebooks.tables.table import fill, seeds

COLUMNS = ["event", "seed", "pck_0_05", "mre_px", "hospital_a_mre_px", "hospital_b_mre_px", "hospital_c_mre_px"]
COLUMNS += ["worst_joint", "worst_joint_pck_0_05", "rounds_taken_part", "generator"]
FIFTHS = (0.2,) * 5


class Liar(Hospital):
    """A hospital that sends the opposite of what it learnt, five times as long."""

    def local_update(self, global_vector: np.ndarray, task: RoundTask) -> Update:
        """Its honest update times -5."""
        honest = super().local_update(global_vector, task)
        return replace(honest, delta=honest.delta * np.float32(-5))


@dataclass(frozen=True)
class Event:
    """What happens: who can be reached when, how updates are combined, who lies, and among whom.

    five: all films are dealt to five alike hospitals, since three with a joint each give a median nothing to compare.
    """

    available: Callable[..., bool] | None = None
    combine: Callable = WeightedMean
    participation: float = 1.0
    liar: bool = False
    five: bool = False


def missing(absent: str, first: float, last: float, rounds: int, index: int, name: str) -> bool:
    """False for the hospital ``absent`` in the rounds from ``first`` to ``last``, as shares of all rounds."""
    return name != absent or not first * rounds <= index < last * rounds


def at_random(share: float, rounds: int, index: int, name: str) -> bool:
    """False in a random ``share`` of a hospital's rounds."""
    return np.random.default_rng([index, *name.encode()]).random() >= share


EVENTS = {
    "C joins at half-time": Event(partial(missing, "hospital_c", 0.0, 0.5)),
    "C leaves at half-time": Event(partial(missing, "hospital_c", 0.5, 1.0)),
    "each misses 3 rounds in 10": Event(partial(at_random, 0.3)),
    "two of three asked": Event(participation=2 / 3),
    "B lies, mean": Event(liar=True),
    "five alike, nobody lies, mean": Event(five=True),
    "five alike, one lies, mean": Event(five=True, liar=True),
    "five alike, nobody lies, trimmed mean": Event(five=True, combine=TrimmedMean),
    "five alike, one lies, trimmed mean": Event(five=True, liar=True, combine=TrimmedMean),
    "five alike, one lies, median": Event(five=True, liar=True, combine=CoordinateMedian),
}


def measure(name: str, seed: int) -> list[dict]:
    """The row of one event and seed; errors are those on the films of hospitals A, B and C in every case."""
    profile, event = get_profile("cpu"), EVENTS[name]
    data = training_hospitals(profile.size_px)
    members = dealt(data, FIFTHS, seed, scanners=False) if event.five else data
    hospitals = [Liar(h, profile) if event.liar and n == 1 else Hospital(h, profile) for n, h in enumerate(members)]
    available = partial(event.available, profile.rounds) if event.available else None
    rules = RoundRules(event.participation, min_hospitals=1)
    strategy = Strategy(combine=event.combine, joint_rows=event.combine is WeightedMean)
    done = run_rounds(hospitals, profile, seed, strategy=strategy, rules=rules, available=available)
    honest = next(h for h in hospitals if not isinstance(h, Liar)).model_for(done.vector)
    found = evaluate({h.name: predict(honest, h.test.images, profile) for h in data}, data)
    joint, worst = worst_joint(found)
    figures = [found["pck_0_05"], found["mre_px"], *(found["per_hospital"][h.name]["mre_px"] for h in data)]
    took = sum(row.weight > 0 for record in done.history for row in record.hospitals.values())
    row = [name, seed, *(round(v, 4) for v in figures), joint, round(worst, 4), took, GENERATOR_VERSION]
    return [dict(zip(COLUMNS, row, strict=True))]


if __name__ == "__main__":
    fill("events.csv", COLUMNS, [(name, seed) for seed in seeds() for name in EVENTS], measure)
