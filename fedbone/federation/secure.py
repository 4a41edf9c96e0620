"""Secure sums of a federation in one process: every party has keys of its own, and only bytes pass between them.

The protocol is ``fedbone.encryption.secure_sum``; a deployment runs its two sides on different machines.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fedbone.encryption.lanes import Lanes
from fedbone.encryption.masking import MIN_HOSPITALS
from fedbone.encryption.paillier import CipherWorkers, Progress
from fedbone.encryption.secure_sum import Attempt, Collector, Contributor, MaskedSum, PaillierSum
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
    ``on_step(done, total, what)`` hears how far a sum is.
    """

    lanes: Lanes
    workers: CipherWorkers | None = None
    recompute: bool = False
    repeats: int = 1
    on_step: Callable[[int, int, str], None] | None = None

    def begin(self, names: Iterable[str], parameters: int) -> SecureRun:
        """One run of the hospitals ``names``, with updates (parameters,) and new signing keys."""
        return SecureRun(self, names, parameters)


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

    def mean(self, index: int, updates: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Exception]]:
        """((P,) float64 mean of round ``index`` over the hospitals that stayed, why the others did not).

        updates: (P,) float32 by hospital. After a drop-out the others' masks no longer cancel, so that they begin again
        with the new roster. Raises UserError when fewer than MIN_HOSPITALS are left or may not repeat it.
        """
        left, dropped = dict(updates), {}
        for attempt in range(self._plan.repeats + 1):
            self._require_enough(index, left, dropped)
            mean, failed = self._attempt(Attempt(self._run, index, attempt), left)
            if not failed:
                return mean, dropped
            dropped |= failed
            left = {name: update for name, update in left.items() if name not in failed}
        problem = f"round {index}: {', '.join(dropped)} dropped out, and the hospitals repeat a sum {attempt} times"
        raise UserError("secure sum", problem, "Run the round again, or let the hospitals decide on `repeats`")

    def _require_enough(self, index: int, left: dict, dropped: dict[str, Exception]) -> None:
        if len(left) < MIN_HOSPITALS:
            why = "".join(f"; {name} dropped out ({error})" for name, error in dropped.items())
            problem = f"round {index} has {len(left)} hospitals, and {MIN_HOSPITALS} hide each other{why}"
            raise UserError("secure sum", problem, "Of two, each could subtract its own update: wait for the others")

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
