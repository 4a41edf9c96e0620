"""Is a mechanism as private as it claims? Two tests that call it as a black box, and that only together are enough.

``audit`` measures what an attacker can tell from one published result: it finds noise that is too small, missing in
places or always the same, not noise that repeats from one round to the next. ``largest_move`` turns the noise off and
searches for inputs on which one hospital has more influence than the sensitivity says. Neither proves privacy: they
find mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import numpy as np

from fedbone.privacy.accounting import gaussian_epsilon

Mechanism = Callable[[Sequence[np.ndarray | None]], np.ndarray]  # updates (n of (d,), None: absent) -> published (d,)
FAR = 10.0  # an update of that many clip norms shows whether there is a clip
LENGTHS = (1.0, 1.5, 2.5, FAR, 1e3)  # of updates, in clip norms: a clip may begin too late


def audit(
    mechanism: Mechanism,
    clip_norm: float,
    dp_delta: float,
    *,
    hospitals: int = 3,
    size: int = 8,
    calls: int = 20_000,
    confidence: float = 0.99,
) -> float:
    """A lower bound on the mechanism's epsilon at ``dp_delta``, for one call and the first of the hospitals.

    Half of the ``calls`` have the hospital's update (10 clips long, unequal in its two or more coordinates), in half it
    is absent; the others send zeros. A tenth of the calls shows where there is little noise, and with it how to tell
    the two apart best (Fisher's discriminant). On the rest the attacker's hits and false alarms, by Clopper-Pearson
    intervals, bound mu of Gaussian differential privacy from below (Nasr et al., USENIX Security 2023). Valid where the
    noise is Gaussian; a mechanism that keeps its promise is then accused in less than 1 - ``confidence`` of the audits.
    Where there is no noise at all the bound is the most that so many calls can show.
    """
    uneven = np.linspace(-1, 2, size)  # noise that is one number for all coordinates would hide an even one
    canary = (FAR * clip_norm * uneven / np.linalg.norm(uneven)).astype(np.float32)
    others = [np.zeros_like(canary)] * (hospitals - 1)
    present, absent = [canary, *others], [None, *others]
    pilot, rest = calls // 20, calls // 2 - calls // 20
    direction, threshold = _discriminant(_draw(mechanism, present, pilot), _draw(mechanism, absent, pilot), canary)
    hits = int((_draw(mechanism, present, rest) @ direction > threshold).sum())
    alarms = int((_draw(mechanism, absent, rest) @ direction > threshold).sum())
    miss = (1 - confidence) / 2
    hit_rate, alarm_rate = _lower(hits, rest, miss), 1 - _lower(rest - alarms, rest, miss)
    if hit_rate <= alarm_rate:
        return 0.0
    return gaussian_epsilon(NormalDist().inv_cdf(hit_rate) - NormalDist().inv_cdf(alarm_rate), dp_delta)


def largest_move(noiseless: Mechanism, clip_norm: float, *, hospitals: int = 3, size: int = 8, seed: int = 0) -> float:
    """How far (L2) one hospital moved the published vector at most, by coming or going, with the noise turned off.

    Each hospital in turn is absent, sends zeros, or sends an update of LENGTHS clips, while the others send zeros, the
    same, the opposite, or something short in another direction: the guarantee must hold whatever they do. A correct
    mechanism stays at its sensitivity. Public factors after the noise are none of its business: measure before them.
    """
    rng, largest = np.random.default_rng(seed), 0.0
    for own in _directions(size, rng):
        for length in LENGTHS:
            update = (own * length * clip_norm).astype(np.float32)
            short = (np.roll(own, 1) * 1e-3 * clip_norm).astype(np.float32)
            for peer in (np.zeros_like(update), update, -update, short):
                for hospital in range(hospitals):
                    around = [peer] * hospitals
                    with_it, zero, gone = (
                        noiseless([*around[:hospital], mine, *around[hospital + 1 :]])
                        for mine in (update, np.zeros_like(update), None)
                    )
                    moves = (np.linalg.norm(with_it - without) for without in (zero, gone))
                    largest = max(largest, *map(float, moves))
    return largest


def _directions(size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Unit vectors: all coordinates alike, the first and the last alone, and four at random."""
    yield np.full(size, 1 / np.sqrt(size))
    yield from np.eye(size)[[0, -1]]
    for drawn in rng.normal(size=(4, size)):
        yield drawn / np.linalg.norm(drawn)


def _draw(mechanism: Mechanism, updates: Sequence[np.ndarray | None], calls: int) -> np.ndarray:
    return np.array([mechanism(updates) for _ in range(calls)])


def _discriminant(present: np.ndarray, absent: np.ndarray, canary: np.ndarray) -> tuple[np.ndarray, float]:
    """(direction (d,), threshold) that separate the rows of two samples, which lie apart in the canary's direction."""
    middle, difference = (present.mean(axis=0) + absent.mean(axis=0)) / 2, present.mean(axis=0) - absent.mean(axis=0)
    spread = np.cov(present.T) + np.cov(absent.T)
    # where there is no noise at all any difference tells: the ridge keeps the weight of such directions finite
    ridge = 1e-9 * (np.trace(spread) + difference @ difference) + 1e-300
    direction = np.linalg.solve(spread + ridge * np.eye(len(canary)), canary.astype(np.float64))
    return direction, float(middle @ direction)


def _lower(successes: int, trials: int, miss: float) -> float:
    """The lower Clopper-Pearson limit of a rate, too high with probability ``miss`` at most (Biometrika 1934)."""
    from scipy.stats import beta

    return float(beta.ppf(miss, successes, trials - successes + 1)) if successes else 0.0
