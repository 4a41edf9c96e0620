"""Central differential privacy for a federation: clip each hospital's update, add Gaussian noise to their mean once.

McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018, algorithm 1. Adversary: whoever
sees the published global models. The server adds the noise and is trusted to do so; it sees each clipped update.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedbone.errors import UserError
from fedbone.privacy.accounting import epsilon
from fedbone.vectors import l2_norm


def clip(delta: np.ndarray, clip_norm: float) -> np.ndarray:
    """``delta`` scaled down to an L2 norm of at most ``clip_norm`` over the whole vector (norm in float64).

    Raises ValueError when a value is NaN or infinite: no scaling would bound it.
    """
    norm = l2_norm(delta)
    if not math.isfinite(norm):
        raise ValueError("the update holds NaN or infinity and cannot be clipped")
    factor = min(1.0, clip_norm / norm) if norm > 0 else 1.0
    # rounding to float32 may lift the norm by 1 part in 1e7; shrink by as much so that the bound really holds
    return (delta.astype(np.float64) * (factor * (1 - 1e-6) if factor < 1 else 1.0)).astype(np.float32)


def sensitivity(weights: Sequence[float], clip_norm: float, films: Sequence[int] | None = None) -> float:
    """The most that one hospital, added or removed, moves the weighted mean (L2): max(weights) * clip_norm.

    weights: the public aggregation weights (n,), which sum to 1 and do not follow who takes part. Raises UserError for
    film counts in place of weights, for weights that are the hospitals' shares of their ``films`` where these are
    given (rounded or altered shares cannot be told from other constants), and for others that are no weights of a mean.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if np.any(shares > 1):
        _refuse_sizes("they are counts, not shares")
    if not (np.all(shares > 0) and abs(math.fsum(shares) - 1) < 1e-6):
        problem = f"{shares.tolist()} are not positive numbers that sum to 1"
        raise UserError("weights", problem, "Use 1 / n for each of n hospitals")
    if films is not None and np.ptp(shares) > 1e-9 and np.allclose(shares, np.divide(films, sum(films)), rtol=1e-6):
        _refuse_sizes("they are the hospitals' shares of the films")
    return float(shares.max()) * clip_norm


def _refuse_sizes(problem: str) -> None:
    why = "a hospital's size is private, and the weights change with a single patient: the noise covers neither"
    raise UserError("weights", f"{problem}; {why}", "Use 1 / n for each of n hospitals, fixed before the run")


@dataclass(frozen=True)
class GaussianNoise:
    """The mechanism of one run: ``clip_norm`` of each update (None: no clipping) and ``sigma``, the noise's standard
    deviation per coordinate of the mean update. Unit of privacy: one hospital, added or removed; the mean's
    denominator is fixed. Who takes part, n and the joint lists are fixed and public before the run: the guarantee does
    not cover them. ``rng`` is for tests; otherwise a generator seeded by the operating system is drawn from. Its
    floating-point sampler is not hardened against the attack on low-order bits (Mironov, CCS 2012).

    Raises ValueError for a negative sigma or a clip that is not positive.
    """

    unit: ClassVar[str] = "hospital"  # a patient is hidden too, as a part of one; PatientPrivacy's unit is the patient

    sigma: float
    clip_norm: float | None = None
    rng: np.random.Generator | None = None

    def __post_init__(self) -> None:
        if not self.sigma >= 0 or not (self.clip_norm is None or self.clip_norm > 0):
            raise ValueError(f"sigma must be at least 0 and clip_norm positive, got {self.sigma} and {self.clip_norm}")

    @classmethod
    def from_multiplier(cls, noise_multiplier: float, clip_norm: float, weights: Sequence[float]) -> GaussianNoise:
        """Noise of ``noise_multiplier`` sensitivities of the mean with public ``weights``.

        Raises UserError as ``sensitivity`` does.
        """
        return cls(noise_multiplier * sensitivity(weights, clip_norm), clip_norm)

    def prepare(self, delta: np.ndarray) -> np.ndarray:
        """What the hospital contributes."""
        return delta if self.clip_norm is None else clip(delta, self.clip_norm)

    def add(self, mean: np.ndarray) -> np.ndarray:
        """The mean update (float64) with fresh noise."""
        rng = self.rng or np.random.Generator(np.random.PCG64(secrets.randbits(256)))
        return mean + rng.normal(0.0, self.sigma, mean.shape)

    def deviation(self, factor: np.ndarray) -> np.ndarray:
        """Standard deviation of the noise on coordinates that a public ``factor`` scales after the noise was added.

        Signal and noise of a joint's head row grow alike, so that its sensitivity in units of the noise, and with it
        epsilon, stay as they are: the factor is post-processing.
        """
        return self.sigma * np.asarray(factor, dtype=np.float64)

    def epsilon(self, weights: Sequence[float], rounds: int, dp_delta: float) -> float:
        """epsilon at ``dp_delta`` after ``rounds``; infinity without a clip, since the sensitivity is then unbounded.

        ``weights``: the public aggregation weights of all hospitals. Raises UserError as ``sensitivity`` does.
        """
        if self.clip_norm is None:
            return math.inf
        noise_multiplier = self.sigma / sensitivity(weights, self.clip_norm)
        return epsilon(noise_multiplier=noise_multiplier, rounds=rounds, dp_delta=dp_delta)
