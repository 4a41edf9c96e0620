"""Seven ways to get private averaging wrong, each one step away from the correct mechanism, and what finds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedbone.federation.strategies import equal_weights
from fedbone.privacy.accounting import calibrate
from fedbone.privacy.auditing import Mechanism, audit, largest_move
from fedbone.privacy.dp import GaussianNoise, clip, sensitivity

Updates = Sequence[np.ndarray | None]  # None: the hospital is absent
HOSPITALS, LAYERS = 3, 4
FILMS = np.array([500, 300, 200])


def weighted_sum(updates: Updates, weights: np.ndarray) -> np.ndarray:
    """The sum of the updates that came, each times its hospital's weight: (d,) float64."""
    pairs = zip(updates, weights, strict=True)
    return np.sum([weight * update.astype(np.float64) for update, weight in pairs if update is not None], axis=0)


def fixed_mean(updates: Updates) -> np.ndarray:
    """The mean over all hospitals, whoever came."""
    return weighted_sum(updates, equal_weights(HOSPITALS))


def fresh_noise(mean: np.ndarray, sigma: float) -> np.ndarray:
    """Noise from the operating system's randomness on every coordinate."""
    return GaussianNoise(sigma).add(mean)


class Variant(NamedTuple):
    """A mechanism in three steps, of which the defaults are the correct ones; ``sentence`` says what is wrong."""

    name: str
    sentence: str
    clip: Callable[[np.ndarray, float], np.ndarray] = clip
    mean: Callable[[Updates], np.ndarray] = fixed_mean
    noise: Callable[[np.ndarray, float], np.ndarray] = fresh_noise

    def mechanism(self, sigma: float, clip_norm: float) -> Mechanism:
        """What publishes a noisy mean of three hospitals' updates; ``sigma``: of the noise on the mean."""

        def publish(updates: Updates) -> np.ndarray:
            clipped = [None if update is None else self.clip(update, clip_norm) for update in updates]
            return self.noise(self.mean(clipped), sigma)

        return publish


def _clip_each_layer(update: np.ndarray, clip_norm: float) -> np.ndarray:
    return np.concatenate([clip(layer, clip_norm) for layer in np.array_split(update, LAYERS)])


def _mean_of_who_came(updates: Updates) -> np.ndarray:
    came = np.array([update is not None for update in updates])
    return weighted_sum(updates, came / came.sum())


def _noise_but_for_buffers(mean: np.ndarray, sigma: float) -> np.ndarray:
    return np.concatenate([fresh_noise(mean[:-2], sigma), mean[-2:]])


CORRECT = Variant("correct", "Clip, divide by a fixed number, add fresh noise everywhere, once.")
MISTAKES = (
    Variant(
        "noise divided twice",
        "The noise of the mean is divided by the number of hospitals once more.",
        noise=lambda mean, sigma: fresh_noise(mean, sigma / HOSPITALS),
    ),
    Variant("no clip", "One hospital may send an update of any length.", clip=lambda update, clip_norm: update),
    Variant(
        "data-size weights",
        "The largest hospital has half of the weight, and the noise was made for a third.",
        mean=lambda updates: weighted_sum(updates, FILMS / FILMS.sum()),
    ),
    Variant(
        "per-layer clip",
        "Each of four layers is clipped to the norm that the whole may have: together they are twice as long.",
        clip=_clip_each_layer,
    ),
    Variant(
        "fixed seed",
        "The noise comes from a seed in the configuration: whoever knows it subtracts the noise.",
        noise=lambda mean, sigma: GaussianNoise(sigma, rng=np.random.default_rng(0)).add(mean),
    ),
    Variant(
        "un-noised buffers",
        "Running statistics travel with the weights and get no noise.",
        noise=_noise_but_for_buffers,
    ),
    Variant(
        "dividing by who came",
        "The mean is over the hospitals that took part: one that leaves makes the others count for more.",
        mean=_mean_of_who_came,
    ),
)


class Verdict(NamedTuple):
    """One row of the table. claimed and audited: epsilon; moved: the largest move in units of the sensitivity."""

    name: str
    claimed: float
    audited: float
    moved: float

    @property
    def caught_by(self) -> str:
        """Which of the two tests refutes the claim: a lower bound above it, or a move beyond the sensitivity."""
        tests = {"audit": self.audited > self.claimed, "sensitivity test": self.moved > 1 + 1e-6}
        return " and ".join(name for name, caught in tests.items() if caught) or "neither"


def verdict(variant: Variant, epsilon: float, dp_delta: float = 1e-5, calls: int = 20_000) -> Verdict:
    """Both tests of a ``variant`` that claims ``epsilon`` for one round with a clip of 1."""
    noise_multiplier = calibrate(epsilon=epsilon, rounds=1, dp_delta=dp_delta)
    allowed = sensitivity(equal_weights(HOSPITALS), 1.0)
    audited = audit(variant.mechanism(noise_multiplier * allowed, 1.0), 1.0, dp_delta, calls=calls)
    return Verdict(variant.name, epsilon, audited, largest_move(variant.mechanism(0.0, 1.0), 1.0) / allowed)


def verdicts(epsilon: float = 1.0, dp_delta: float = 1e-5, calls: int = 20_000) -> list[Verdict]:
    """The table: the correct mechanism first, then every mistake."""
    return [verdict(variant, epsilon, dp_delta, calls) for variant in (CORRECT, *MISTAKES)]
