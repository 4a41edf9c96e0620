"""From the updates of one round to the next global model; the updates are added one by one and dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedbone.errors import UserError
from fedbone.federation.hospital import Update
from fedbone.federation.secure import Asked, SecureRun
from fedbone.federation.strategies import Strategy, WeightedMean, equal_weights, joint_factor
from fedbone.privacy.dp import GaussianNoise
from fedbone.vectors import VectorLayout


@dataclass(frozen=True)
class Server:
    """What the server knows before the run: labelled has every hospital's public list of joints, (K,) bool each.

    secure: the mean comes from sums in which nobody can read a single update. Raises ValueError for noise or secure
    sums without a mean, and for both together: whoever opened the sum would see it without the noise.
    """

    layout: VectorLayout
    labelled: dict[str, np.ndarray]
    strategy: Strategy
    noise: GaussianNoise | None
    secure: SecureRun | None = None

    def __post_init__(self) -> None:
        if self.noise and self.strategy.combine is not WeightedMean:
            raise ValueError("noise is calibrated for a mean: one hospital can move another combiner by more")
        if self.secure and self.strategy.combine is not WeightedMean:
            raise ValueError("secure sums can be added, not sorted: no median or trimmed mean without single updates")
        if self.secure and self.noise:
            raise ValueError("who opens a secure sum sees it without the server's noise: use DP-SGD in the hospitals")

    def require_sound(self, hospital: str, update: Update) -> None:
        """Raises UserError, naming the hospital, for an update that must not reach the model."""
        require_sound(hospital, update.delta, self.layout.size)
        if not np.array_equal(update.labelled_joints, self.labelled[hospital]):
            problem = "its update is for other joints than it announced before the run"
            raise UserError(hospital, problem, "Start a new run when a hospital's labels change")


class Aggregation:
    """One round with ``asked`` hospitals, of which not all may take part.

    Without noise the equal weights are those of the hospitals that took part. Under differential privacy they stay
    1 / n, and the joints' factors those of all n hospitals: the noise is calibrated for that.
    """

    def __init__(self, server: Server, asked: int) -> None:
        self.server, self.combiner = server, server.strategy.combine()
        self.of = len(server.labelled) if server.noise else asked  # the mean's denominator, until it is known who came
        self.took_part: list[str] = []
        self._kept: dict[str, np.ndarray] = {}  # for a secure sum: the updates, each still in its hospital
        self._opened: np.ndarray | None = None

    @property
    def weight(self) -> float:
        """Of each update in the mean, for those who have taken part so far."""
        return 1 / self.of if self.server.noise else 1 / len(self.took_part)

    def add(self, hospital: str, update: Update) -> None:
        """Take an update. Raises UserError or ValueError for one that must not reach the model; it leaves no trace."""
        self.server.require_sound(hospital, update)
        noise = self.server.noise
        if self.server.secure:
            self._kept[hospital] = update.delta
        else:
            self.combiner.add(noise.prepare(update.delta) if noise else update.delta, 1 / self.of)
        self.took_part.append(hospital)

    def close(self, asked: Asked) -> dict[str, Exception]:
        """All have answered: form the secure sum, if there is one. Who dropped out while it was formed, and why.

        Raises UserError as ``SecureRun.mean`` does.
        """
        if not self.server.secure:
            return {}
        mean, dropped = self.server.secure.mean(asked, self._kept)
        self.opened(mean, [name for name in self.took_part if name not in dropped])
        return dropped

    def opened(self, mean: np.ndarray | None, took_part: list[str]) -> None:
        """``mean`` (P,) of the updates of ``took_part``, from a sum that was opened elsewhere; None: too few stayed."""
        self._opened, self.took_part = mean, took_part

    def step(self, vector: np.ndarray, state: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(the next global vector, the mean update), both (P,); ``state`` of the server's optimiser changes in place.

        With joint rows, a joint that nobody who took part labels has no round at all: its rows, and the optimiser's
        memory of them, stay as they are. Otherwise momentum would go on moving them in a direction that nobody checks.
        """
        mean, rest = self._mean(), np.zeros(len(vector), bool)
        if self.server.strategy.joint_rows:
            factor = self._row_factor()
            mean, rest = mean * factor, factor == 0
        held = {key: array[rest] for key, array in state.items() if array.shape == vector.shape}
        after = self.server.strategy.server.step(vector, mean, state)
        after[rest] = vector[rest]
        for key, array in held.items():
            state[key][rest] = array
        return after, mean

    def _mean(self) -> np.ndarray:
        """(P,) float64, with noise if there is any."""
        if self._opened is not None:
            return self._opened
        taken, is_mean = len(self.took_part), isinstance(self.combiner, WeightedMean)
        if is_mean and taken < self.of:  # who is missing counts as an update of zero
            self.combiner.add(np.zeros(self.server.layout.size, np.float32), 1 - taken / self.of)
        mean = self.combiner.result()
        if self.server.noise:
            noisy = self.server.noise.add(mean)
            if self.server.strategy.local_norm:
                noisy[self.server.layout.is_kind("norm")] = 0  # it stays in the hospitals, and so has nothing to hide
            return noisy
        return mean * (self.of / taken) if is_mean and taken < self.of else mean

    def _row_factor(self) -> np.ndarray:
        """(P,) float64: ``joint_factor`` on the head's rows, 0 where none of the hospitals labels the joint."""
        names = self.server.labelled if self.server.noise else self.took_part
        labelled = [self.server.labelled[name] for name in names]
        return self.server.layout.row_factor(joint_factor(labelled, equal_weights(len(labelled))))


def require_sound(hospital: str, delta: np.ndarray, size: int) -> None:
    """Raises UserError, naming the hospital, unless ``delta`` is a finite float32 vector (size,).

    One NaN in one update would turn the whole global model into NaN in a single round.
    """
    if delta.dtype != np.float32 or delta.shape != (size,):
        problem = f"its update is {delta.dtype} {delta.shape}, the model needs float32 ({size},)"
        raise UserError(hospital, problem, "Give every hospital the same version of fedbone and the same profile")
    if not np.isfinite(delta).all():
        raise UserError(hospital, "its update holds NaN or infinity", "Leave it out of the round, and look at its log")
