"""The loop of a federation: ask hospitals, let them train, aggregate, repeat.

Not every hospital takes part in every round: some are not asked, are absent or late, fail, or send what cannot be used.
The result depends on who took part, and on nothing else: neither on the order of the hospitals or of their answers, nor
on the number of processes, nor on interruptions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from fedbone.config import Profile
from fedbone.errors import UserError
from fedbone.federation.aggregation import Aggregation, Server
from fedbone.federation.checkpoint import Place, belongs, read, write
from fedbone.federation.history import ABSENT, FAILED, NOT_ASKED, REFUSED, TOOK_PART, HospitalRow, RoundRecord
from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.federation.processes import Answer, Ask, States, at_work, left_out
from fedbone.federation.secure import Asked, SecureSums
from fedbone.federation.strategies import Strategy
from fedbone.model.hrnet import build_for
from fedbone.privacy.dp import GaussianNoise
from fedbone.vectors import l2_norm, layout_of, sha256, to_vector

OnRound = Callable[[RoundRecord, np.ndarray], None]
Available = Callable[[int, str], bool]


@dataclass(frozen=True)
class RoundRules:
    """Who is asked, and when a round counts.

    participation: share of the hospitals that is asked each round, in (0, 1]; min_hospitals: that many must take part,
    None: all that were asked; deadline_s: wall seconds a round, None: as long as it takes. Raises ValueError for other
    values.
    """

    participation: float = 1.0
    min_hospitals: int | None = None
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.participation <= 1:
            raise ValueError(f"participation is {self.participation}; give a share above 0, at most 1")
        if self.min_hospitals is not None and self.min_hospitals < 1:
            raise ValueError(f"min_hospitals is {self.min_hospitals}; give 1 or more, or None for all that are asked")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ValueError(f"deadline_s is {self.deadline_s}; give seconds above 0, or None")


@dataclass(frozen=True)
class Outcome:
    """The global vector (P,) float32 after the last round, the history, and what stays in each hospital (FedBN)."""

    vector: np.ndarray
    history: list[RoundRecord]
    hospital_states: States


def initial_vector(profile: Profile, joints: int, seed: int, *, local_norm: bool = False) -> np.ndarray:
    """The model that the server sends out first.

    Raises UserError for a profile with BatchNorm, whose running statistics a vector does not carry, unless they stay
    where they were made (``local_norm``, FedBN).
    """
    if profile.norm != "group" and not local_norm:
        remedy = "Use norm='group', or Strategy(local_norm=True), which leaves the normalisation in the hospitals"
        raise UserError(f"profile {profile.name}", f"norm={profile.norm!r} cannot be federated", remedy)
    return to_vector(build_for(profile, joints, seed))


def asked_in(index: int, names: list[str], rules: RoundRules, seed: int) -> list[str]:
    """The hospitals asked in round ``index``: a fixed share of ``names``, drawn without replacement from [seed, round].

    McMahan et al., AISTATS 2017, algorithm 1. The share is rounded to whole hospitals; at least ``min_hospitals``.
    """
    count = max(round(rules.participation * len(names)), rules.min_hospitals or 1)
    drawn = np.random.default_rng([seed, index]).choice(len(names), count, replace=False)
    return [names[i] for i in sorted(drawn)]


def run_rounds(
    hospitals: list[Hospital],
    profile: Profile,
    seed: int = 0,
    *,
    strategy: Strategy = Strategy(),  # noqa: B008 (frozen)
    rules: RoundRules = RoundRules(),
    noise: GaussianNoise | None = None,
    state: Path | None = None,
    on_round: OnRound | None = None,
    processes: int = 1,
    available: Available | None = None,
    start: np.ndarray | None = None,
    secure: SecureSums | None = None,
) -> Outcome:
    """``profile.rounds`` rounds with ``hospitals``, in as many processes; their order does not matter.

    state: a file that is written after each round and read at the start where it exists: the same call goes on after
    the last finished round, with the same bytes. ``on_round(record, vector)`` is called after each round of this call,
    when its state is on the disk: a noisy model that was shown is never drawn again. ``available(round, name)`` says
    who can be reached. start: the first global vector (P,), such as a model of public films; None: a new one. With
    ``noise`` the mean's denominator and the joints' factors are those of all hospitals whoever takes part, as its
    accounting assumes. secure: nobody sees a single update; all that is public then is the mean, and every hospital
    could make the server's step itself. Afterwards each hospital holds its final state.

    Raises UserError when too few took part, naming who is missing and why, and for the state of another run; without
    ``rules.min_hospitals`` the first hospital that does not take part raises its own error.
    """
    roster = _roster(hospitals, rules)
    federation = _Federation(roster, profile, seed, strategy, rules, noise, start, secure)
    server = federation.server
    run = belongs(profile, seed, server, rules.participation, roster.values(), federation.at) if state else {}
    if state and (found := read(state, run, roster)):
        federation.at = found
    if state:
        federation.keep = lambda: write(state, federation.at, run)
    federation.restore()
    at = federation.at
    with at_work(list(roster.values()), processes, rules.deadline_s) as ask:
        while len(at.history) < profile.rounds:
            record = federation.round(ask, available)
            federation.keep()
            if on_round:
                on_round(record, at.vector)
    return Outcome(at.vector, at.history, at.hospitals)


def _roster(hospitals: list[Hospital], rules: RoundRules) -> dict[str, Hospital]:
    """The hospitals by name, sorted. Raises ValueError for a name that is there twice, and for too few of them."""
    roster = {hospital.name: hospital for hospital in sorted(hospitals, key=lambda h: h.name)}
    if len(roster) < len(hospitals):
        raise ValueError(f"every hospital needs a name of its own, got {sorted(h.name for h in hospitals)}")
    if len(roster) < (rules.min_hospitals or 1):
        raise ValueError(f"min_hospitals is {rules.min_hospitals or 1}, and there are {len(roster)} hospitals")
    return roster


class _Federation:
    """The hospitals, the server, where the run stands (``at``), and what puts that on the disk (``keep``)."""

    def __init__(
        self,
        roster: dict[str, Hospital],
        profile: Profile,
        seed: int,
        strategy: Strategy,
        rules: RoundRules,
        noise: GaussianNoise | None,
        start: np.ndarray | None,
        secure: SecureSums | None,
    ) -> None:
        self.roster, self.seed, self.rules = roster, seed, rules
        labelled = {name: hospital.labelled for name, hospital in roster.items()}
        joints, local_norm = len(next(iter(labelled.values()))), strategy.local_norm
        layout = layout_of(build_for(profile, joints), local_norm=local_norm)
        many = len(asked_in(0, list(roster), rules, seed))
        run = secure and secure.begin(roster, layout.size, many)
        self.server, self.keep = Server(layout, labelled, strategy, noise, run), lambda: None
        first = initial_vector(profile, joints, seed, local_norm=local_norm) if start is None else start
        self.at = Place(first, {name: {} for name in roster})

    def restore(self) -> None:
        """Give every hospital object what stays in its hospital; another process may have done the work."""
        for name, hospital in self.roster.items():
            hospital.restore(self.at.hospitals[name])

    def round(self, ask: Ask, available: Available | None) -> RoundRecord:
        """One round: ``self.at`` moves on when it is complete, and stays where it was when it is not."""
        at, index = self.at, len(self.at.history)
        asked = asked_in(index, list(self.roster), self.rules, self.seed)
        absent = [name for name in asked if available and not available(index, name)]
        task = RoundTask(index, self.seed, self.server.strategy.proximal_mu)
        missing = (Answer(name, ABSENT, error=left_out(name, "it cannot be reached")) for name in absent)
        answers = ask([name for name in asked if name not in absent], at.vector, task, at.hospitals)
        rows, states = dict.fromkeys(self.roster, HospitalRow(NOT_ASKED)), {}
        sums = Aggregation(self.server, len(asked))
        for answer in chain(missing, answers):
            answer = self._added(answer, sums)
            rows[answer.name] = self._row(answer, index)
            if answer.status == TOOK_PART:
                states[answer.name] = answer.state
        self._require_enough(index, rows)
        at_least = self.rules.min_hospitals or len(asked)
        for name, error in sums.close(Asked(index, sha256(at.vector), at_least, at.rosters, self.keep)).items():
            rows[name] = self._row(Answer(name, FAILED, error=error), index)
            del states[name]
        self._require_enough(index, rows)
        rows |= {name: replace(rows[name], weight=sums.weight) for name in states}
        try:
            at.vector, mean = sums.step(at.vector, at.server)
        except ValueError as error:  # a trimmed mean needs more updates than came
            raise UserError(f"round {index}", str(error), "Run it again when more hospitals are back") from error
        at.hospitals |= states
        at.rosters.clear()
        self.restore()
        at.history.append(RoundRecord(index, sha256(at.vector), l2_norm(mean), rows))
        return at.history[-1]

    def _added(self, answer: Answer, sums: Aggregation) -> Answer:
        """The answer, its update added; the refusal of one that must not reach the model."""
        if answer.update is None:
            return answer
        try:
            sums.add(answer.name, answer.update)
        except ValueError as error:
            return Answer(answer.name, REFUSED, error=error)
        return answer

    def _row(self, answer: Answer, index: int) -> HospitalRow:
        """What the history says of an answer. Raises the error of a hospital that all rounds need."""
        if answer.error is None:
            if self.server.noise:  # its guarantee is for the noisy mean: nothing exact of one hospital is published
                return HospitalRow(TOOK_PART)
            if self.server.secure:  # nobody but the hospital has seen its update
                return HospitalRow(TOOK_PART, loss=answer.loss)
            return HospitalRow(TOOK_PART, update_norm=l2_norm(answer.update.delta), loss=answer.loss)
        if self.rules.min_hospitals is None:
            answer.error.add_note(f"hospital {answer.name}, round {index}: {answer.status}")
            raise answer.error
        if self.server.noise or getattr(self.roster[answer.name], "privacy", None):  # an error may quote its films
            return HospitalRow(answer.status, "why is not published: the noise does not cover it")
        return HospitalRow(answer.status, getattr(answer.error, "problem", None) or _words(answer.error))

    def _require_enough(self, index: int, rows: dict[str, HospitalRow]) -> None:
        """Raises UserError, naming who is missing and why, when fewer than ``min_hospitals`` took part."""
        took_part = [name for name, row in rows.items() if row.status == TOOK_PART]
        if len(took_part) >= (self.rules.min_hospitals or 1):
            return
        missing = [f"{name} {row.status} ({row.reason})" for name, row in rows.items() if row.reason]
        problem = (
            f"{len(took_part)} of the {self.rules.min_hospitals} hospitals it needs took part: {'; '.join(missing)}"
        )
        raise UserError(f"round {index}", problem, "Run it again when they are back, or lower min_hospitals")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
