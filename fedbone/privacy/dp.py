"""Central differential privacy for a federation: clip each hospital's update, add Gaussian noise to their mean once.

McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018, algorithm 1. Adversary: whoever
sees the published global models. The server adds the noise and is trusted to do so; it sees each clipped update.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np

from fedbone.privacy.accounting import gaussian_epsilon
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
    return (delta * (factor * (1 - 1e-6) if factor < 1 else 1.0)).astype(np.float32)


@dataclass(frozen=True)
class GaussianNoise:
    """The mechanism of one run: ``clip_norm`` of each update (None: no clipping) and ``sigma``, the noise's standard
    deviation per coordinate of the mean update. Unit of privacy: one hospital, added or removed; the mean's
    denominator is fixed. Who takes part, n and the joint lists are fixed and public before the run: the guarantee does
    not cover them. ``rng`` is for tests; otherwise a generator seeded by the operating system is drawn from. Its
    floating-point sampler is not hardened against the attack on low-order bits (Mironov, CCS 2012).

    Raises ValueError for a negative sigma or a clip that is not positive.
    """

    sigma: float
    clip_norm: float | None = None
    rng: np.random.Generator | None = None

    def __post_init__(self) -> None:
        if self.sigma < 0 or (self.clip_norm is not None and self.clip_norm <= 0):
            raise ValueError(f"sigma must be at least 0 and clip_norm positive, got {self.sigma} and {self.clip_norm}")

    def prepare(self, delta: np.ndarray) -> np.ndarray:
        """What the hospital contributes."""
        return delta if self.clip_norm is None else clip(delta, self.clip_norm)

    def add(self, mean: np.ndarray) -> np.ndarray:
        """The mean update (float64) with fresh noise."""
        rng = self.rng or np.random.Generator(np.random.PCG64(secrets.randbits(256)))
        return mean + rng.normal(0.0, self.sigma, mean.shape)

    def epsilon(self, weights: np.ndarray, rounds: int, dp_delta: float) -> float:
        """epsilon at ``dp_delta`` after ``rounds``; infinity without a clip, since the sensitivity is then unbounded.

        ``weights``: the public aggregation weights; one hospital moves the mean by at most max(weights) * clip_norm.
        """
        if self.clip_norm is None:
            return math.inf
        sensitivity = float(np.max(weights)) * self.clip_norm
        return gaussian_epsilon(self.sigma / sensitivity, rounds, dp_delta)
