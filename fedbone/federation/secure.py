"""Secure sums of a federation in one process: every party has keys of its own, and only bytes pass between them.

The protocol is ``fedbone.encryption.secure_sum``; a deployment runs its two sides on different machines, and there the
hospitals make the server's step, each for itself: whoever holds every round's model holds every round's sum.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fedbone.encryption.lanes import Lanes
from fedbone.encryption.masking import MIN_HOSPITALS
from fedbone.encryption.paillier import CipherWorkers, Progress
from fedbone.encryption.secure_sum import (
    MAX_RECOMPUTED,
    Attempt,
    Collector,
    Contributor,
    MaskedSum,
    PaillierSum,
    most_hospitals,
)
from fedbone.encryption.signing import SigningKey
from fedbone.errors import UserError
from fedbone.federation.strategies import UNITS

EXACT_BITS = 36  # of a level: 35 for the number and one for its sign


def exact_lanes(hospitals: int) -> Lanes:
    """Lanes in which the mean of ``hospitals`` updates is that of ``WeightedMean`` to the last bit.

    Both round a hospital's share to multiples of 2**-40. Updates may reach +-hospitals / 32.
    """
    return Lanes((2 ** (EXACT_BITS - 1) - 1) * hospitals / UNITS, hospitals, EXACT_BITS)


@dataclass(frozen=True)
class SecureSums:
    """How the hospitals of a run add their updates, so that nobody sees a single one.

    workers: with the private key that the hospitals share (Paillier over masks), None: masks alone. recompute: each sum
    is checked against the signed uploads. repeats: how often hospitals begin a round's sum again after a drop-out; a
    server that only claims one learns that hospital's update, see ``fedbone.encryption.secure_sum``.
    ``on_step(done, total, what)`` hears how far a sum is. Raises ValueError for workers that cannot decrypt, and for
    repeats below 0.
    """

    lanes: Lanes
    workers: CipherWorkers | None = None
    recompute: bool = False
    repeats: int = 0
    on_step: Callable[[int, int, str], None] | None = None

    def __post_init__(self) -> None:
        if self.workers and not self.workers.can_decrypt:
            raise ValueError("workers have the public key only: the hospitals need the private one to open the sum")
        if self.repeats < 0:
            raise ValueError(f"repeats is {self.repeats}; give 0 or more")

    def begin(self, names: Iterable[str], parameters: int, asked: int) -> SecureRun:
        """One run of the hospitals ``names``, ``asked`` of them a round, with updates (parameters,) and new keys.

        Raises UserError when so many hospitals cannot hide each other, or do not fit.
        """
        most = most_hospitals(self.lanes, self.recompute)
        if not MIN_HOSPITALS <= asked <= most:
            problem = f"{asked} hospitals are asked each round, and these sums are of {MIN_HOSPITALS} to {most}"
            remedy = f"Of two, each could subtract its own; lanes have room for so many, recompute for {MAX_RECOMPUTED}"
            raise UserError("secure sums", problem, remedy)
        return SecureRun(self, names, parameters)


@dataclass(frozen=True)
class Asked:
    """What hospitals are asked to add up: their updates to ``model`` (sha256 of the global vector) in ``round``.

    at_least: with fewer the round does not count, and nothing is repeated. rosters: to which hospitals have uploaded in
    this round, also before an interruption; ``keep()`` puts it on the disk when it has grown, before the first upload.
    """

    round: int
    model: str
    at_least: int
    rosters: list[list[str]]
    keep: Callable[[], None]


class SecureRun:
    """The hospitals, each with its own keys, and a server with public ones."""

    def __init__(self, plan: SecureSums, names: Iterable[str], parameters: int) -> None:
        self.lanes, self._plan, self._run = plan.lanes, plan, secrets.token_hex(8)
        if plan.workers:  # the server gets the public half, and never encrypts
            scheme = PaillierSum(plan.lanes, parameters, plan.workers)
            self._server = PaillierSum(plan.lanes, parameters, CipherWorkers(plan.workers.public))
        else:
            scheme = self._server = MaskedSum(plan.lanes, parameters)
        keys = {name: SigningKey.create() for name in names}
        self._directory = {name: key.public for name, key in keys.items()}
        rules = {"recompute": plan.recompute, "repeats": plan.repeats}
        self.hospitals = {name: Contributor(name, key, self._directory, scheme, **rules) for name, key in keys.items()}

    def mean(self, asked: Asked, updates: dict[str, np.ndarray]) -> tuple[np.ndarray | None, dict[str, Exception]]:
        """((P,) float64 mean over the hospitals that stayed, why the others did not); None when too few stayed.

        updates: (P,) float32 by hospital. After a drop-out the others' masks no longer cancel, so that they begin again
        with the new roster, if they may. Raises UserError when fewer than MIN_HOSPITALS are left or may not repeat it.
        """
        left, dropped, attempt = dict(updates), {}, 0
        while True:
            self._require_roster(asked, sorted(left), dropped)
            mean, failed = self._attempt(Attempt(self._run, asked.round, attempt, asked.model), left)
            dropped |= failed
            left = {name: update for name, update in left.items() if name not in failed}
            if not failed or len(left) < asked.at_least:
                return mean, dropped
            attempt += 1

    def _require_roster(self, asked: Asked, roster: list[str], dropped: dict[str, Exception]) -> None:
        """Before anybody uploads: ``roster`` is large enough and, if it is one more, allowed and noted.

        The same roster again is no other sum: after an interruption the hospitals come to the same updates.
        """
        left = f"{', '.join(dropped)} dropped out, and " if dropped else ""
        if len(roster) < MIN_HOSPITALS:
            problem = f"round {asked.round}: {left}{len(roster)} hospitals cannot hide each other"
            remedy = f"Of two, each could subtract its own update: wait until {MIN_HOSPITALS} are there"
            raise UserError("secure sum", problem, remedy)
        if roster in asked.rosters:
            return
        if len(asked.rosters) > self._plan.repeats:
            problem = f"round {asked.round}: {left}a sum was begun with {', '.join(asked.rosters[-1])}"
            remedy = f"Wait for them, or let the hospitals repeat sums (repeats={self._plan.repeats}): who holds both "
            raise UserError("secure sum", problem, remedy + "reads the missing hospital's update")
        asked.rosters.append(roster)
        asked.keep()

    def _attempt(
        self, attempt: Attempt, updates: dict[str, np.ndarray]
    ) -> tuple[np.ndarray | None, dict[str, Exception]]:
        """(the mean, or None after a drop-out; who dropped out, and why)."""
        offers = [self.hospitals[name].offer(attempt) for name in updates]
        collector, failed = Collector(self._directory, self._server, attempt, offers), {}
        for name, update in updates.items():
            try:
                collector.add(self.hospitals[name].upload(update, offers, self._progress(f"{name} encrypts")))
            except Exception as error:  # whatever happens to a hospital, the others go on
                failed[name] = error
        if failed:
            return None, failed
        opener = self.hospitals[next(iter(updates))]  # once here: each hospital would come to the same numbers
        uploads = collector.uploads if self._plan.recompute else None
        return opener.open(collector.total(), uploads, self._progress("the sum is opened")), {}

    def _progress(self, what: str) -> Progress | None:
        on_step = self._plan.on_step
        return (lambda done, total: on_step(done, total, what)) if on_step else None
