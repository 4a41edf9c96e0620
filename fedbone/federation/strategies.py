"""From the hospitals' updates to the next global model, on flat vectors (P,): combiners and the server's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

UNITS = 2.0**40  # a contribution is a whole number of units of 9e-13: a float32 weight near 0.1 is rounded to 7e-9
LARGEST = 4096.0  # of an update, at any place: float64 holds every whole number of units up to twice as much
BLOCK = 65_536  # numbers at a time: half a megabyte of float64, which stays in the cache


def equal_weights(hospitals: int) -> np.ndarray:
    """(n,) weights 1 / n: a public constant. Weighting by films would publish each hospital's size every round."""
    return np.full(hospitals, 1 / hospitals)


class WeightedMean:
    """FedAvg's mean of the updates, in memory for one vector however many hospitals there are.

    McMahan et al., AISTATS 2017, algorithm 1. Contributions are rounded to multiples of 2**-40 and summed as whole
    numbers, which float64 holds exactly: the result is the same to the bit in any order of arrival.
    """

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None
        self._weights: list[float] = []

    def add(self, delta: np.ndarray, weight: float) -> None:
        """Add the update ``delta`` (P,), float32 or float64, with its share of the mean.

        Raises ValueError for another shape or type, and for NaN and numbers beyond LARGEST: sums would not be exact. Of
        a refused update nothing stays in the sum.
        """
        _require_vector(delta, delta.shape if self._sum is None else self._sum.shape)
        if self._sum is None:
            self._sum, self._scaled = np.zeros(delta.size), np.empty(min(BLOCK, delta.size))
        scale = np.float64(weight) * UNITS
        for start in range(0, delta.size, BLOCK):
            block = delta[start : start + BLOCK]
            low, high = block.min(), block.max()
            if not (low >= -LARGEST and high <= LARGEST):  # also for NaN, which no comparison lets through
                for earlier in range(0, start, BLOCK):
                    self._add_block(earlier, delta[earlier : earlier + BLOCK], -scale)
                raise ValueError(f"an update goes from {low:.3g} to {high:.3g}; at most {LARGEST:g} is summed exactly")
            self._add_block(start, block, scale)
        self._weights.append(float(weight))

    def _add_block(self, start: int, block: np.ndarray, scale: np.float64) -> None:
        scaled, total = self._scaled[: block.size], self._sum[start : start + block.size]
        np.copyto(scaled, block)
        np.multiply(scaled, scale, out=scaled)
        np.rint(scaled, out=scaled)
        np.add(total, scaled, out=total)

    def result(self) -> np.ndarray:
        """(P,) float64. Raises ValueError unless the weights sum to 1: the share is applied once, and once only."""
        _require_shares(len(self._weights), self._weights)
        return self._sum * (1 / UNITS)


def weighted_mean(deltas: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """(P,) float64 mean of ``deltas`` with ``weights`` that sum to 1. Raises ValueError as ``WeightedMean`` does."""
    _require_shares(len(deltas), weights)
    mean = WeightedMean()
    for delta, weight in zip(deltas, weights, strict=True):
        mean.add(delta, weight)
    return mean.result()


def _require_vector(delta: np.ndarray, shape: tuple[int, ...]) -> None:
    if delta.shape != shape or delta.ndim != 1:
        raise ValueError(f"updates have shapes {shape} and {delta.shape}; they must be vectors of one length")
    if delta.dtype not in (np.float32, np.float64):
        raise ValueError(f"an update is {delta.dtype}; it must be float32 or float64")


def _require_shares(updates: int, weights: Sequence[float]) -> None:
    shares = [float(weight) for weight in weights]
    if len(shares) != updates or not abs(math.fsum(shares) - 1) <= 1e-9 or min(shares) < 0:
        raise ValueError(f"{updates} updates need as many weights that sum to 1, got {shares}")


class TrimmedMean:
    """The mean of each coordinate without its ``trim`` largest and ``trim`` smallest values.

    Yin et al., ICML 2018, definition 2: as many hospitals as are trimmed may send anything at all. Every update is
    kept until the result. The weights must be equal and have no effect. trim None: as many as leave one value or two.
    """

    def __init__(self, trim: int | None = 1) -> None:
        self.trim = trim
        self._deltas: list[np.ndarray] = []
        self._weights: list[float] = []

    def add(self, delta: np.ndarray, weight: float) -> None:
        """Keep a copy of ``delta`` (P,). Raises ValueError for NaN or infinity, another shape or type."""
        _require_vector(delta, self._deltas[0].shape if self._deltas else delta.shape)
        if not np.isfinite(delta).all():
            raise ValueError("an update holds NaN or infinity")
        self._deltas.append(delta.copy())
        self._weights.append(float(weight))

    def result(self) -> np.ndarray:
        """(P,) float64. Raises ValueError unless the weights are equal, and when too few updates came."""
        count = len(self._deltas)
        trim = max(count - 1, 0) // 2 if self.trim is None else self.trim
        if count <= 2 * trim:
            raise ValueError(f"{count} updates are too few to leave out {trim} at each end")
        if max(self._weights) - min(self._weights) > 1e-9:
            raise ValueError(f"every hospital counts once: the weights must be equal, got {self._weights}")
        result = np.empty(self._deltas[0].size)
        for start in range(0, result.size, BLOCK):
            ordered = _sorted([delta[start : start + BLOCK] for delta in self._deltas])
            result[start : start + BLOCK] = ordered[trim : count - trim].mean(axis=0, dtype=np.float64)
        return result


def _sorted(rows: list[np.ndarray]) -> np.ndarray:
    """(n, B): every column in order. Whole rows trade places: numpy sorts such short columns far more slowly."""
    rows = np.stack(rows)
    for turn in range(len(rows)):
        for upper, lower in zip(rows[turn % 2 :: 2], rows[turn % 2 + 1 :: 2], strict=False):
            smaller = np.minimum(upper, lower)
            np.maximum(upper, lower, out=lower)
            upper[:] = smaller
    return rows


class CoordinateMedian(TrimmedMean):
    """The median of each coordinate: all but the middle value, or the middle two, are trimmed.

    Yin et al., ICML 2018, definition 1: fewer than half of the hospitals may send anything at all.
    """

    def __init__(self) -> None:
        super().__init__(None)


def joint_factor(labelled: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(K,) public factor 1 / (weight of the hospitals that label joint j), and 0 for a joint nobody labels.

    A hospital without labels for joint j returns zero for that head row, so the plain mean divides the others' step by
    hospitals that had nothing to say. ``VectorLayout.row_factor`` spreads the factor over the vector.

    When hospitals drop out, give the booleans and the weights, renormalised, of those who took part; a joint whose
    hospitals are all absent then stays where it is. Under differential privacy give those of the whole fixed roster
    instead: they were published before the run, so the factor is post-processing of the noisy mean (and scales the
    noise of those rows too), whereas one that follows who took part would show it.
    """
    share = np.asarray(labelled, dtype=np.float64).T @ weights
    return np.divide(1.0, share, out=np.zeros_like(share), where=share > 0)


@dataclass(frozen=True, slots=True)
class FedAvgM:
    """Server momentum: v <- momentum v + mean, global <- global + v; with momentum 0 plain FedAvg.

    Hsu, Qi and Brown, 2019, section 4.3. Makes up for the few sequential steps of a federation.
    """

    momentum: float = 0.6

    def step(self, global_vector: np.ndarray, mean: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
        """The next global vector (P,) float32. ``state`` starts empty, is changed in place and is all to be saved."""
        velocity = self.momentum * state.get("velocity", 0.0) + mean
        if self.momentum:
            state["velocity"] = velocity
        return (global_vector + velocity).astype(np.float32)


@dataclass(frozen=True, slots=True)
class FedAdam:
    """Adam at the server, with the mean update as its step: every weight moves by about ``learning_rate`` a round.

    Reddi et al., ICLR 2021, algorithm 2: without bias correction, and the second moment starts at tau squared.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def step(self, global_vector: np.ndarray, mean: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
        """The next global vector (P,) float32. ``state`` starts empty, is changed in place and is all to be saved."""
        first = self.beta1 * state.get("first_moment", 0.0) + (1 - self.beta1) * mean
        second = self.beta2 * state.get("second_moment", self.tau**2) + (1 - self.beta2) * np.square(mean)
        state.update(first_moment=first, second_moment=second)
        return (global_vector + self.learning_rate * first / (np.sqrt(second) + self.tau)).astype(np.float32)


@dataclass(frozen=True)
class Strategy:
    """The choices that make one federated algorithm.

    combine: makes the combiner of one round; joint_rows: ``joint_factor`` on the head's rows; proximal_mu: FedProx (Li
    et al., MLSys 2020); local_norm: FedBN (Li et al., ICLR 2021), for a profile with norm="batch". Raises ValueError
    for joint rows without a mean: a hospital's zeros count in a median, and no factor takes them out.
    """

    combine: Callable[[], WeightedMean | TrimmedMean] = WeightedMean
    server: FedAvgM | FedAdam = FedAvgM()
    joint_rows: bool = True
    proximal_mu: float = 0.0
    local_norm: bool = False

    def __post_init__(self) -> None:
        if self.joint_rows and self.combine is not WeightedMean:
            raise ValueError("joint rows are a factor on the mean: with another combiner set joint_rows=False")


class Compatibility(NamedTuple):
    """One row of ``COMPATIBLE``: a strategy, and whether each kind of protection can be added to it."""

    strategy: str
    plain: str
    masks: str
    paillier: str
    central_dp: str
    dp_sgd: str


_SUM_ONLY, _OPENED, _NOISY = "yes: it sees the sum only", "yes: after decryption", "yes: it sees the noisy mean only"
_MEASURED = "its second moment measures the noise too"
_ROBUST = (
    "yes: without joint-aware rows",
    "no: it compares single updates, and the server sees their sum only",
    "no: ciphertexts can be added, not sorted",
    "no: one hospital can move it by more than 1/n of the clip, so the mean's noise does not cover it",
    "yes: each update is private before it is compared",
)
COMPATIBLE = (
    Compatibility("FedAvg", "yes", "yes", "yes", "yes: weights and roster are fixed", "yes"),
    Compatibility(
        "joint-aware rows",
        "yes",
        "yes: a public factor on the sum",
        "yes: a public factor after decryption",
        "yes: after the noise, which it scales too, and over the fixed roster",
        "yes: if a hospital sets the rows it does not label to zero, where the noise has filled them",
    ),
    Compatibility("FedProx", "yes", "yes: local", "yes: local", "yes: local", "yes: added after clip and noise"),
    Compatibility("FedAvgM", "yes", _SUM_ONLY, _OPENED, _NOISY, "yes"),
    Compatibility("FedAdam", "yes", _SUM_ONLY, _OPENED, f"{_NOISY}, and {_MEASURED}", f"yes: {_MEASURED}"),
    Compatibility(
        "FedBN",
        "yes",
        "yes: the norm's places are zero",
        "yes: the norm's places are zero",
        "yes: the norm stays local",
        "no: BatchNorm mixes the patients of a batch, so none has a gradient of their own to clip",
    ),
    Compatibility("coordinate median", *_ROBUST),
    Compatibility("trimmed mean", *_ROBUST),
)
