"""What noise buys: epsilon of Gaussian noise, for rounds with everybody and for rounds with a random sample.

One unit (a patient, a hospital) is added or removed; ``noise_multiplier`` is the noise's standard deviation divided by
the most that one unit can move the released sum. With everybody in every round, T rounds of noise multiplier z are
exactly mu-GDP with mu = sqrt(T) / z: Dong, Roth and Su, Gaussian Differential Privacy, JRSS B 2022, corollary 1. Where
each unit is drawn by its own coin (Poisson sampling) the privacy loss distribution is composed numerically: Koskela et
al., AISTATS 2020; Doroshenko et al., PoPETs 2022, by Google's dp-accounting.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from statistics import NormalDist

LOSS_INTERVAL = 1e-4  # of the privacy loss grid: 1e-3 makes the result of 78,125 rounds up to half as large again
LEAST_NOISE = 0.3  # the grid reaches to 1 / z**2: below this it takes tens of seconds, and epsilon is large anyway
HOPELESS = 100.0  # a bound beyond which nobody needs the exact epsilon: exp(100) is no protection


@dataclass(frozen=True)
class NoisyRounds:
    """``rounds`` releases with the same noise, each unit in each of them with probability ``sampling_rate``.

    Raises ValueError for noise below 0, a rate outside (0, 1], or rounds that are no whole number from 1 on.
    """

    noise_multiplier: float
    sampling_rate: float
    rounds: int

    def __post_init__(self) -> None:
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be at least 0 and finite, got {self.noise_multiplier}")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must lie in (0, 1], got {self.sampling_rate}")
        if not isinstance(self.rounds, Integral) or self.rounds < 1:
            raise ValueError(f"rounds must be a whole number from 1 on, got {self.rounds}")
        for name, plain in (("noise_multiplier", float), ("sampling_rate", float), ("rounds", int)):
            object.__setattr__(self, name, plain(getattr(self, name)))  # dp-accounting refuses numpy's numbers


def log_normal_cdf(x: float) -> float:
    """log Phi(x), also where Phi(x) underflows (asymptotic series, relative error below 1e-6 for x < -30)."""
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    inverse = 1 / x
    return -0.5 * x * x - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-(inverse**2) + 3 * inverse**4)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta(epsilon) of a mu-GDP mechanism (Balle and Wang, ICML 2018, theorem 8)."""
    first = log_normal_cdf(mu / 2 - epsilon / mu)
    second = epsilon + log_normal_cdf(-mu / 2 - epsilon / mu)
    return math.exp(first) * -math.expm1(min(second - first, 0.0))


def gaussian_epsilon(mu: float, dp_delta: float) -> float:
    """epsilon at ``dp_delta`` of a mu-GDP mechanism, to the last bit; infinity for an infinite ``mu``."""
    _require_delta(dp_delta)
    if mu == math.inf:
        return math.inf
    low, high = 0.0, 1.0
    while gaussian_delta(high, mu) > dp_delta:
        low, high = high, high * 2
    for _ in range(100):  # bisection to the last bit: delta falls with epsilon
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, mu) > dp_delta else (low, middle)
    return high


def epsilon(*, noise_multiplier: float, sampling_rate: float = 1.0, rounds: int, dp_delta: float) -> float:
    """epsilon at ``dp_delta`` after ``rounds`` of Gaussian noise; infinity without noise.

    Exact where everybody takes part; with Poisson sampling an upper bound, which ``composed_epsilon`` describes.
    Raises ValueError as ``NoisyRounds`` does, and for a delta outside (0, 1).
    """
    return composed_epsilon([NoisyRounds(noise_multiplier, sampling_rate, rounds)], dp_delta)


def composed_epsilon(spent: Sequence[NoisyRounds], dp_delta: float) -> float:
    """epsilon at ``dp_delta`` of all that was ``spent`` on the same units, in any order; 0 for nothing.

    The closed form where all of it has sampling rate 1. Otherwise the least of three upper bounds: the closed form
    that ignores sampling; Renyi accounting (Mironov et al., 2019); and the composed privacy loss distribution, which is
    tight, but for rates below 1e-4 up to several times too high. It is left out below a noise multiplier of 0.3 and
    where the others exceed 100; the result may then be twice the exact one. Raises ValueError for a delta outside
    (0, 1).
    """
    _require_delta(dp_delta)
    if not spent:
        return 0.0
    if min(part.noise_multiplier for part in spent) == 0:
        return math.inf
    without_sampling = gaussian_epsilon(_mu(spent), dp_delta)
    sampled = [part for part in spent if part.sampling_rate < 1]
    if not sampled:
        return without_sampling
    if everybody := [part for part in spent if part.sampling_rate == 1]:
        sampled.append(NoisyRounds(1 / _mu(everybody), 1.0, 1))  # all of them together are one release
    bound = min(without_sampling, _renyi_epsilon(sampled, dp_delta))
    if bound > HOPELESS or min(part.noise_multiplier for part in sampled) < LEAST_NOISE:
        return bound
    return min(bound, _loss_epsilon(sampled, dp_delta))


def calibrate(*, epsilon: float, sampling_rate: float = 1.0, rounds: int, dp_delta: float) -> float:
    """The noise multiplier that gives at most ``epsilon``; 0 for infinity.

    Exact where everybody takes part; with sampling up to 0.3 % more noise than needed, found with about eight
    evaluations of ``composed_epsilon``. Raises ValueError unless epsilon is positive, and as ``epsilon`` does.
    """
    from scipy.optimize import brentq

    NoisyRounds(0.0, sampling_rate, rounds)
    _require_delta(dp_delta)
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if epsilon == math.inf:
        return 0.0

    def excess(log_noise: float) -> float:
        found = composed_epsilon([NoisyRounds(math.exp(log_noise), sampling_rate, rounds)], dp_delta)
        return math.log(max(found, 1e-300) / epsilon)

    tolerance = 1e-9 if sampling_rate == 1 else 1e-3
    low = high = math.log(2.0)
    while excess(high) > 0:
        low, high = high, high + math.log(2.0)
    while excess(low) <= 0:
        low, high = low - math.log(2.0), low
    return math.exp(brentq(excess, low, high, xtol=tolerance) + tolerance)


def group_epsilon(
    *, noise_multiplier: float, sampling_rate: float = 1.0, rounds: int, dp_delta: float, size: int
) -> float:
    """epsilon for a patient whose films count as ``size`` separate units, drawn independently of each other.

    Exact with everybody taking part: ``size`` units move the sum ``size`` times as far. With sampling a binomial number
    of them is drawn, and a mixture of Gaussians with these weights is tight (Ganesh, 2024, arXiv 2401.10294); it takes
    1 to 20 processor seconds. Below a noise multiplier of ``size`` / 10 the closed form that ignores sampling is
    returned. Raises ValueError as ``epsilon`` does and for a size below 1.
    """
    spent = NoisyRounds(noise_multiplier, sampling_rate, rounds)
    _require_delta(dp_delta)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if noise_multiplier == 0:
        return math.inf
    bound = gaussian_epsilon(size * _mu([spent]), dp_delta)
    if sampling_rate == 1 or noise_multiplier < size / 10:
        return bound
    from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism
    from scipy.stats import binom

    drawn = range(size + 1)
    chances = binom.pmf(drawn, size, sampling_rate).tolist()
    interval = max(LOSS_INTERVAL, min(1e-3, 1e-2 / math.sqrt(rounds)))  # slow to make: as coarse as is harmless
    one = from_mixture_gaussian_mechanism(noise_multiplier, drawn, chances, value_discretization_interval=interval)
    return min(bound, one.self_compose(rounds).get_epsilon_for_delta(dp_delta))


def group_bound(*, without: float, epsilon: float, dp_delta: float, hospitals: int) -> float:
    """The highest chance that any (epsilon, dp_delta) mechanism reaches what without data is reached with ``without``.

    Privacy is per hospital, and the mechanism may use all ``hospitals``: each of them multiplies the chance by at most
    exp(epsilon) and adds dp_delta. Dwork and Roth, 2014, section 2.3 (group privacy). Whatever the mechanism, and
    whatever reaching means: a PCK above a threshold, say. Raises ValueError as ``gaussian_group_bound`` does.
    """
    _require_group(without, epsilon, hospitals)
    chance = without
    for _ in range(hospitals):
        if chance == 0 and dp_delta == 0:
            return 0.0
        if epsilon + math.log(chance + dp_delta) >= 0:  # also where exp(epsilon) overflows
            return 1.0
        chance = min(1.0, math.exp(epsilon) * chance + dp_delta)
    return chance


def gaussian_group_bound(*, without: float, mu: float, hospitals: int) -> float:
    """As ``group_bound``, for a mechanism that is mu-GDP per hospital (Dong, Roth and Su, 2022, on groups).

    Raises ValueError for a chance outside [0, 1], a negative budget, or fewer than one hospital.
    """
    _require_group(without, mu, hospitals)
    if without in (0.0, 1.0) or mu == math.inf:
        return float(without > 0)
    return NormalDist().cdf(NormalDist().inv_cdf(without) + hospitals * mu)


def _require_delta(dp_delta: float) -> None:
    if not 0 < dp_delta < 1:
        raise ValueError(f"dp_delta must lie in (0, 1), got {dp_delta}")


def _require_group(without: float, budget: float, hospitals: int) -> None:
    if not 0 <= without <= 1 or not budget >= 0 or hospitals < 1:
        given = f"{without}, {budget} and {hospitals}"
        raise ValueError(f"a chance in [0, 1], a budget from 0 on and at least one hospital are needed, got {given}")


def _mu(spent: Sequence[NoisyRounds]) -> float:
    """mu of rounds that everybody takes part in; an upper bound for those with sampling."""
    return math.hypot(*(math.sqrt(part.rounds) / part.noise_multiplier for part in spent))


def _loss_epsilon(spent: Sequence[NoisyRounds], dp_delta: float) -> float:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, identity

    total = identity(LOSS_INTERVAL)
    for part in spent:
        one = from_gaussian_mechanism(
            part.noise_multiplier, value_discretization_interval=LOSS_INTERVAL, sampling_prob=part.sampling_rate
        )
        total = total.compose(one.self_compose(part.rounds))
    return total.get_epsilon_for_delta(dp_delta)


def _renyi_epsilon(spent: Sequence[NoisyRounds], dp_delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    with _quiet("absl"):  # it warns of every fractional order that it leaves out: the bound stays valid
        for part in spent:
            event = PoissonSampledDpEvent(part.sampling_rate, GaussianDpEvent(part.noise_multiplier))
            accountant.compose(event, part.rounds)
        return float(accountant.get_epsilon(dp_delta))


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
