import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from fedbone.errors import UserError
from fedbone.federation.aggregation import Aggregation, Server
from fedbone.federation.hospital import Update
from fedbone.federation.strategies import FedAvgM, Strategy, equal_weights, joint_factor
from fedbone.privacy.accounting import epsilon
from fedbone.privacy.dp import GaussianNoise, clip, sensitivity
from fedbone.vectors import Slot, VectorLayout

THIRDS = equal_weights(3)
LAYOUT = VectorLayout((Slot("body", 0, (4,), "body"), Slot("final_layer.weight", 4, (2, 3), "head")))
LABELLED = {"a": np.array([True, True]), "b": np.array([True, False]), "c": np.array([True, False])}
AWARE, PLAIN = (Strategy(server=FedAvgM(0.0), joint_rows=rows) for rows in (True, False))


def released(updates: dict[str, np.ndarray], noise: GaussianNoise, strategy: Strategy = AWARE) -> np.ndarray:
    """The mean update that the real server publishes; who is not in ``updates`` is absent."""
    server = Server(LAYOUT, LABELLED, strategy, noise)
    round_ = Aggregation(server, 3)
    for name, delta in updates.items():
        round_.add(name, Update(delta.astype(np.float32), LABELLED[name], {}))
    return round_.step(np.zeros(LAYOUT.size, np.float32), {})[1]


# --- the clip


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.floats(1e-3, 1e3), st.floats(1e-6, 5e37), st.integers(0, 2**31))
def test_the_clipped_norm_never_exceeds_the_bound(size, bound, scale, seed):
    delta = (np.random.default_rng(seed).normal(size=size) * scale).astype(np.float32)
    assert np.linalg.norm(clip(delta, bound).astype(np.float64)) <= bound


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.floats(1e-3, 1e3), st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_clipping_keeps_the_direction_and_leaves_what_is_short_enough(size, bound, scale, seed):
    delta = (np.random.default_rng(seed).normal(size=size) * scale).astype(np.float32)
    clipped = clip(delta, bound)
    if np.linalg.norm(delta.astype(np.float64)) <= bound:
        assert np.array_equal(clipped, delta)
    else:
        assert np.allclose(clipped / np.linalg.norm(clipped), delta / np.linalg.norm(delta), atol=1e-4)
        assert np.linalg.norm(clipped.astype(np.float64)) == pytest.approx(bound, rel=1e-5)


def test_values_that_no_scaling_bounds_are_refused():
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN"):
            clip(np.array([1, bad], np.float32), 1.0)
    assert not clip(np.zeros(4, np.float32), 1.0).any()


# --- the sensitivity


def test_the_sensitivity_is_that_of_the_largest_weight():
    assert sensitivity(THIRDS, 1.5) == pytest.approx(0.5)
    assert sensitivity([0.5, 0.25, 0.25], 2.0) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 100), st.floats(1e-3, 1e3))
def test_no_hospital_moves_the_mean_by_more_than_its_share_of_the_clip(seed, bound, scale):
    """Whatever it and the others send, and whether it is absent or sends zeros; with adversarial peers above all."""
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=LAYOUT.size) * scale for _ in range(2))
    for peers in ({"b": b, "c": -b}, {"b": -a, "c": -a}, {"b": a}, {}):
        noise = GaussianNoise(0.0, bound)
        moved = released({"a": a, **peers}, noise, PLAIN) - released(peers, noise, PLAIN)
        assert np.linalg.norm(moved) <= sensitivity(THIRDS, bound) * (1 + 1e-9)
        zero = released({"a": np.zeros(LAYOUT.size), **peers}, noise, PLAIN)
        assert np.array_equal(zero, released(peers, noise, PLAIN))


def test_film_counts_are_no_weights():
    with pytest.raises(UserError, match=r"counts, not shares.*a hospital's size is private") as refused:
        sensitivity([500, 300, 200], 1.0)
    assert "1 / n" in refused.value.remedy
    with pytest.raises(UserError, match="counts"):
        GaussianNoise(1.0, 1.0).epsilon([2000, 2000, 2000], 10, 1e-5)


def test_shares_of_the_films_are_no_weights():
    """Equal weights are a constant, also where the hospitals happen to be of one size."""
    with pytest.raises(UserError, match=r"shares of the films.*change with a single patient"):
        sensitivity([0.5, 0.3, 0.2], 1.0, films=[500, 300, 200])
    assert sensitivity(THIRDS, 1.0, films=[40, 40, 40]) == pytest.approx(1 / 3)
    assert sensitivity([0.5, 0.3, 0.2], 1.0, films=[200, 300, 500]) == 0.5


@pytest.mark.parametrize("weights", [[0.5, 0.4], [0.7, 0.5], [1.0, 0.0], [1.5, -0.5], [np.nan, 1.0], []], ids=str)
def test_what_is_no_mean_is_refused(weights):
    with pytest.raises(UserError, match="weights"):
        sensitivity(weights, 1.0)


def test_a_noise_multiplier_becomes_the_deviation_of_the_mean():
    noise = GaussianNoise.from_multiplier(12.0, 1.5, THIRDS)
    assert noise.sigma == pytest.approx(12 * 1.5 / 3)
    assert noise.epsilon(THIRDS, 10, 1e-5) == pytest.approx(0.9815, abs=1e-4)
    assert noise.unit == "hospital"


# --- the noise


def test_each_part_of_the_vector_gets_noise_of_the_stated_spread_and_none_of_it_twice():
    """Within the 1 - 1e-6 interval of chi squared, with mean zero, uncorrelated from round to round."""
    noise, rounds = GaussianNoise.from_multiplier(2.0, 1.0, THIRDS), 4000
    drawn = np.array([released({}, noise, PLAIN) for _ in range(rounds)])
    low, high = chi2.ppf([5e-7, 1 - 5e-7], rounds) / rounds
    for coordinate in drawn.T:
        assert low < np.mean(coordinate**2) / noise.sigma**2 < high
    assert np.abs(drawn.mean(axis=0)).max() < 5.5 * noise.sigma / math.sqrt(rounds)
    apart = np.corrcoef(np.hstack([drawn[:-1], drawn[1:]]).T) - np.eye(2 * LAYOUT.size)
    assert np.abs(apart).max() < 5.5 / math.sqrt(rounds - 1)


def test_two_runs_get_different_noise_unless_a_test_gives_the_generator():
    zeros = np.zeros(50)
    assert not np.array_equal(GaussianNoise(1.0).add(zeros), GaussianNoise(1.0).add(zeros))
    first, second = (GaussianNoise(1.0, rng=np.random.default_rng(7)).add(zeros) for _ in range(2))
    assert np.array_equal(first, second)


def test_the_noise_is_seeded_by_the_operating_system(monkeypatch):
    """Global seeds, which a reader or a configuration may set, have no say."""
    asked = []
    monkeypatch.setattr("fedbone.privacy.dp.secrets.randbits", lambda bits: asked.append(bits) or os.getpid())
    GaussianNoise(1.0).add(np.zeros(3))
    assert asked == [256]


def test_the_factor_of_joint_rows_scales_noise_and_signal_alike():
    """Joint 1 is labelled by one hospital of three: its row's noise is three times as large, and so is its move."""
    noise = GaussianNoise(0.2, 1.0)
    factor = joint_factor(list(LABELLED.values()), THIRDS)
    assert noise.deviation(factor) == pytest.approx([0.2, 0.6])
    expected = noise.deviation(LAYOUT.row_factor(factor))
    drawn = np.array([released({}, noise) for _ in range(4000)])
    assert drawn.std(axis=0) == pytest.approx(expected, rel=0.08)
    rng = np.random.default_rng(0)
    for _ in range(20):
        delta = rng.normal(size=LAYOUT.size) * 10
        moved = released({"a": delta}, GaussianNoise(0.0, 1.0))
        in_units_of_the_noise = np.linalg.norm(moved / expected)
        assert in_units_of_the_noise == pytest.approx(sensitivity(THIRDS, 1.0) / noise.sigma, rel=1e-5)


# --- epsilon


def test_noise_without_a_clip_gives_no_privacy():
    for sigma in (0.01, 0.05, 1e6):
        assert GaussianNoise(sigma).epsilon(THIRDS, 10, 1e-5) == math.inf


def test_a_clip_without_noise_gives_no_privacy():
    assert GaussianNoise(0.0, 1.0).epsilon(THIRDS, 10, 1e-5) == math.inf


def test_a_clip_or_noise_that_means_nothing_is_refused():
    for sigma, clip_norm in ((1.0, 0.0), (1.0, -1.0), (-1.0, None), (math.nan, 1.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match="clip_norm positive"):
            GaussianNoise(sigma, clip_norm)


def test_epsilon_uses_the_largest_weight():
    noise = GaussianNoise(sigma=1.0, clip_norm=1.0)
    for weights, noise_multiplier in ((THIRDS, 3), ([0.5, 0.25, 0.25], 2)):
        expected = epsilon(noise_multiplier=noise_multiplier, rounds=10, dp_delta=1e-5)
        assert noise.epsilon(weights, 10, 1e-5) == pytest.approx(expected)
