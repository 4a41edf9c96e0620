"""What a noise multiplier buys: epsilon of the Gaussian mechanism, repeated with everybody taking part each round.

Dong, Roth and Su, Gaussian Differential Privacy, JRSS B 2022, corollary 1: T rounds of noise multiplier z are exactly
mu-GDP with mu = sqrt(T) / z. Balle and Wang, ICML 2018, theorem 8: delta(epsilon) of such a mechanism in closed form.
"""

from __future__ import annotations

import math


def log_normal_cdf(x: float) -> float:
    """log Phi(x), also where Phi(x) underflows (asymptotic series, relative error below 1e-6 for x < -30)."""
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    return -0.5 * x * x - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-1 / x**2 + 3 / x**4)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta(epsilon) of a mu-GDP mechanism."""
    first = log_normal_cdf(mu / 2 - epsilon / mu)
    second = epsilon + log_normal_cdf(-mu / 2 - epsilon / mu)
    return math.exp(first) * -math.expm1(min(second - first, 0.0))


def gaussian_epsilon(noise_multiplier: float, rounds: int, dp_delta: float) -> float:
    """epsilon after ``rounds`` releases with noise of ``noise_multiplier`` sensitivities; infinity without noise.

    Unit and neighbourhood are those of the sensitivity (here: add or remove one hospital, fixed denominator); every
    hospital takes part in every round, so there is no amplification by sampling.
    Raises ValueError for a delta outside (0, 1) or fewer than one round.
    """
    if not 0 < dp_delta < 1 or rounds < 1:
        raise ValueError(f"dp_delta must lie in (0, 1) and rounds be at least 1, got {dp_delta} and {rounds}")
    if noise_multiplier <= 0:
        return math.inf
    mu = math.sqrt(rounds) / noise_multiplier
    low, high = 0.0, 1.0
    while gaussian_delta(high, mu) > dp_delta:
        low, high = high, high * 2
    for _ in range(100):  # bisection to the last bit: delta falls with epsilon
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, mu) > dp_delta else (low, middle)
    return high
