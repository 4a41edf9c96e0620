import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.privacy.accounting import gaussian_epsilon
from fedbone.privacy.dp import GaussianNoise, clip


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.floats(1e-3, 1e3), st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_the_clipped_norm_never_exceeds_the_bound(size, bound, scale, seed):
    delta = (np.random.default_rng(seed).normal(size=size) * scale).astype(np.float32)
    clipped = clip(delta, bound)
    assert np.linalg.norm(clipped.astype(np.float64)) <= bound
    if np.linalg.norm(delta.astype(np.float64)) <= bound:
        assert np.array_equal(clipped, delta)
    else:
        assert np.allclose(clipped / np.linalg.norm(clipped), delta / np.linalg.norm(delta), atol=1e-4)


def test_values_that_no_scaling_bounds_are_refused():
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN"):
            clip(np.array([1, bad], np.float32), 1.0)
    assert not clip(np.zeros(4, np.float32), 1.0).any()


def test_noise_without_a_clip_gives_no_privacy():
    weights = np.full(3, 1 / 3)
    assert GaussianNoise(sigma=0.05).epsilon(weights, 10, 1e-5) == math.inf


def test_a_clip_or_noise_that_means_nothing_is_refused():
    for sigma, clip_norm in ((1.0, 0.0), (1.0, -1.0), (-1.0, None)):
        with pytest.raises(ValueError, match="clip_norm positive"):
            GaussianNoise(sigma, clip_norm)


def test_epsilon_uses_the_largest_weight():
    noise = GaussianNoise(sigma=1.0, clip_norm=1.0)
    assert noise.epsilon(np.full(3, 1 / 3), 10, 1e-5) == pytest.approx(gaussian_epsilon(3, 10, 1e-5))
    assert noise.epsilon(np.array([0.5, 0.25, 0.25]), 10, 1e-5) == pytest.approx(gaussian_epsilon(2, 10, 1e-5))


def test_the_noise_has_the_stated_spread_and_is_fresh():
    noise = GaussianNoise(sigma=0.3, clip_norm=1.0)
    first, second = noise.add(np.zeros(200_000)), noise.add(np.zeros(200_000))
    assert first.std() == pytest.approx(0.3, rel=0.02)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
