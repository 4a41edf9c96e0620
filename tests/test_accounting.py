"""epsilon against closed forms, numerical integration and an independent accountant (Opacus' PRV)."""

import logging
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.privacy.accounting import (
    NoisyRounds,
    calibrate,
    composed_epsilon,
    epsilon,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_group_bound,
    group_bound,
    group_epsilon,
    log_normal_cdf,
)

D = 1e-5
GRID = np.linspace(-60, 60, 2_400_001)  # standard deviations: the mass beyond is below 1e-700


def bell(mean: float) -> np.ndarray:
    return np.exp(-((GRID - mean) ** 2) / 2) / math.sqrt(2 * math.pi)


def integrated_delta(epsilon: float, with_unit: np.ndarray, without: np.ndarray) -> float:
    """delta by its definition, the larger of both directions: the oracle for one round."""
    step, gain = GRID[1] - GRID[0], math.exp(epsilon)
    both = (with_unit - gain * without, without - gain * with_unit)
    return max(np.maximum(difference, 0).sum() * step for difference in both)


def prv(*parts: tuple[float, float, int], error: float = 0.01) -> float:
    """epsilon by Opacus' accountant of privacy random variables, which adds its own ``error`` bound."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(parts)
    return accountant.get_epsilon(D, eps_error=error)


# --- everybody takes part in every round


@pytest.mark.parametrize(
    ("noise_multiplier", "rounds", "published"),
    [(3, 10, 4.65), (0.3, 10, 99.7), (30, 10, 0.361), (1.5, 50, 30.5), (100, 100, 0.341), (11.8, 10, 1.0)],
)
def test_published_values_at_delta_1e_5(noise_multiplier, rounds, published):
    assert epsilon(noise_multiplier=noise_multiplier, rounds=rounds, dp_delta=D) == pytest.approx(published, rel=0.006)


def test_epsilon_agrees_with_the_closed_form():
    assert epsilon(noise_multiplier=12, rounds=10, dp_delta=D) == pytest.approx(0.9815, abs=5e-5)
    assert epsilon(noise_multiplier=1, rounds=1, dp_delta=D) == pytest.approx(4.3772, abs=5e-5)


@pytest.mark.parametrize(("at", "mu"), [(0.5, 0.3), (1.0, 1.0), (4.65, math.sqrt(10) / 3)])
def test_delta_against_numerical_integration_of_the_definition(at, mu):
    assert gaussian_delta(at, mu) == pytest.approx(integrated_delta(at, bell(mu), bell(0)), rel=1e-4)


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-300, 1e300), st.floats(1e-12, 0.999))
def test_every_mu_has_an_epsilon(mu, dp_delta):
    assert gaussian_epsilon(mu, dp_delta) >= 0


def test_log_cdf_where_the_cdf_underflows():
    assert log_normal_cdf(-5) == pytest.approx(math.log(NormalDist().cdf(-5)), rel=1e-9)
    assert log_normal_cdf(-30.0001) == pytest.approx(log_normal_cdf(-29.9999), rel=1e-4)
    assert math.isfinite(log_normal_cdf(-1e4))


# --- a random sample of the patients in every step

SAMPLED = [(1.0, 0.1, 100), (1.0, 0.01, 1000), (1.0, 0.0064, 7800), (0.6, 0.00064, 78125), (1.1, 0.16, 310)]


@pytest.mark.parametrize(("noise_multiplier", "rate", "steps"), SAMPLED)
def test_epsilon_agrees_with_an_independent_accountant(noise_multiplier, rate, steps):
    found = epsilon(noise_multiplier=noise_multiplier, sampling_rate=rate, rounds=steps, dp_delta=D)
    independent = prv((noise_multiplier, rate, steps))
    assert abs(found - independent) < 0.011
    assert found < independent  # its own error is on the safe side


@pytest.mark.parametrize(
    ("noise_multiplier", "rate", "steps", "published"),
    [(1.0, 0.0064, 7800, 3.231), (1.0, 0.1, 100, 7.0466), (1.1, 0.16, 310, 18.242), (1.0, 0.00064, 78125, 0.8765)],
)
def test_published_values_with_sampling(noise_multiplier, rate, steps, published):
    found = epsilon(noise_multiplier=noise_multiplier, sampling_rate=rate, rounds=steps, dp_delta=D)
    assert found == pytest.approx(published, rel=5e-4)


@pytest.mark.parametrize(("noise_multiplier", "rate"), [(1.0, 0.3), (0.5, 0.02), (4.0, 0.7)])
def test_one_sampled_round_against_numerical_integration(noise_multiplier, rate):
    found = epsilon(noise_multiplier=noise_multiplier, sampling_rate=rate, rounds=1, dp_delta=D)
    with_unit = (1 - rate) * bell(0) + rate * bell(1 / noise_multiplier)
    assert integrated_delta(found, with_unit, bell(0)) == pytest.approx(D, rel=0.01)


@pytest.mark.parametrize(("noise_multiplier", "rate", "steps"), [(0.1, 0.01, 10), (0.25, 0.1, 300)])
def test_where_the_exact_sum_takes_too_long_a_bound_above_it_is_given(noise_multiplier, rate, steps):
    """Far from any protection: 161 and 333 by Opacus with an error bound of 0.5."""
    found = epsilon(noise_multiplier=noise_multiplier, sampling_rate=rate, rounds=steps, dp_delta=D)
    exact = prv((noise_multiplier, rate, steps), error=0.5)
    assert exact - 1 < found < 2.5 * exact


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.05, 50),
    st.sampled_from([0.001, 0.03, 0.3, 1.0]),
    st.sampled_from([1, 20, 300]),
    st.floats(1.01, 3.0),
    st.sampled_from(["noise", "rate", "rounds"]),
)
def test_epsilon_is_monotone_in_noise_rate_and_rounds(noise_multiplier, rate, rounds, factor, which):
    """Also across the borders between the closed form, the loss distribution and the Renyi bound."""
    base = {"noise_multiplier": noise_multiplier, "sampling_rate": rate, "rounds": rounds}
    worse = {
        "noise": {**base, "noise_multiplier": noise_multiplier / factor},
        "rate": {**base, "sampling_rate": min(1.0, rate * factor)},
        "rounds": {**base, "rounds": math.ceil(rounds * factor)},
    }[which]
    assert epsilon(**base, dp_delta=D) <= epsilon(**worse, dp_delta=D) * (1 + 1e-6)


def test_sampling_never_costs_more_than_taking_part_each_time():
    """Also where the loss grid is coarser than one round's loss, and where only the Renyi bound is left."""
    for noise_multiplier, rounds in ((0.01, 10), (1000.0, 100_000)):
        everybody = epsilon(noise_multiplier=noise_multiplier, rounds=rounds, dp_delta=D)
        most = epsilon(noise_multiplier=noise_multiplier, sampling_rate=0.999, rounds=rounds, dp_delta=D)
        assert most <= everybody


def test_the_accountant_says_nothing_of_orders_it_leaves_out(caplog):
    level = logging.getLogger("absl").level
    epsilon(noise_multiplier=1.0, sampling_rate=0.1, rounds=100, dp_delta=D)
    assert not caplog.records
    assert logging.getLogger("absl").level == level


# --- several kinds of rounds on the same patients


def test_equal_halves_cost_what_the_whole_costs():
    for rate in (1.0, 0.05):
        whole = composed_epsilon([NoisyRounds(2.0, rate, 100)], D)
        assert composed_epsilon([NoisyRounds(2.0, rate, 50)] * 2, D) == pytest.approx(whole, rel=1e-6)
    assert composed_epsilon([], D) == 0.0


def test_different_full_rounds_add_their_squared_mu():
    spent = [NoisyRounds(3.0, 1.0, 1), NoisyRounds(4.0, 1.0, 1)]
    assert composed_epsilon(spent, D) == pytest.approx(epsilon(noise_multiplier=2.4, rounds=1, dp_delta=D))


def test_a_mixture_of_kinds_agrees_with_an_independent_accountant():
    spent = [(1.0, 0.01, 500), (2.0, 0.1, 50), (8.0, 1.0, 4)]
    found = composed_epsilon([NoisyRounds(*part) for part in spent], D)
    assert abs(found - prv(*spent)) < 0.011


# --- how much noise a budget takes


@pytest.mark.parametrize(
    ("target", "rate", "rounds"),
    [
        *[(1.0, 1.0, 10), (0.5, 1.0, 1), (8.0, 1.0, 100), (1.0, 0.0064, 7800)],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in ((3.0, 0.05, 200), (6.0, 0.1, 100))],
    ],
)
def test_calibrate_is_the_inverse_of_epsilon(target, rate, rounds):
    setting = {"sampling_rate": rate, "rounds": rounds, "dp_delta": D}
    noise_multiplier = calibrate(epsilon=target, **setting)
    assert epsilon(noise_multiplier=noise_multiplier, **setting) <= target
    assert epsilon(noise_multiplier=noise_multiplier / 1.003, **setting) > target


def test_published_noise_multipliers():
    for target, rounds, published in ((0.5, 10, 22.24), (1.0, 1, 3.73), (8.0, 50, 4.24)):
        assert calibrate(epsilon=target, rounds=rounds, dp_delta=D) == pytest.approx(published, abs=0.005)


def test_no_limit_takes_no_noise():
    assert calibrate(epsilon=math.inf, sampling_rate=0.1, rounds=5, dp_delta=D) == 0.0


# --- several units at once


@pytest.mark.parametrize(("size", "published"), [(1, 1.0), (2, 2.15), (4, 4.75), (8, 10.9)])
def test_a_patient_with_several_films_that_count_as_units_of_their_own(size, published):
    found = group_epsilon(noise_multiplier=3.7304, rounds=1, dp_delta=D, size=size)
    assert found == pytest.approx(published, abs=0.01)


def test_a_group_of_one_is_one_unit():
    setting = {"noise_multiplier": 4.0, "sampling_rate": 0.1, "rounds": 100, "dp_delta": D}
    assert group_epsilon(**setting, size=1) == pytest.approx(epsilon(**setting), rel=1e-3)


def test_a_sampled_group_against_numerical_integration():
    found = group_epsilon(noise_multiplier=4.0, sampling_rate=0.2, rounds=1, dp_delta=D, size=3)
    chances = [0.512, 0.384, 0.096, 0.008]
    with_group = sum(chance * bell(drawn / 4.0) for drawn, chance in enumerate(chances))
    assert integrated_delta(found, with_group, bell(0)) == pytest.approx(D, rel=0.01)


def test_a_group_that_the_noise_hardly_hides_gets_the_bound_without_sampling():
    found = group_epsilon(noise_multiplier=0.5, sampling_rate=0.01, rounds=4, dp_delta=D, size=8)
    assert found == pytest.approx(epsilon(noise_multiplier=0.5 / 8, rounds=4, dp_delta=D))


def test_three_hospitals_cannot_learn_at_epsilon_1():
    assert group_bound(without=1e-6, epsilon=1, dp_delta=D, hospitals=3) <= 1.4e-4
    assert group_bound(without=1e-6, epsilon=1, dp_delta=D, hospitals=3) == pytest.approx(1.31e-4, rel=5e-3)
    assert gaussian_group_bound(without=1e-6, mu=0.268, hospitals=3) == pytest.approx(3.92e-5, rel=5e-3)


def test_the_bound_by_hand():
    """exp(1) p + d, and the same once more."""
    once = math.e * 0.01 + 0.001
    assert group_bound(without=0.01, epsilon=1, dp_delta=0.001, hospitals=1) == pytest.approx(once)
    assert group_bound(without=0.01, epsilon=1, dp_delta=0.001, hospitals=2) == pytest.approx(math.e * once + 0.001)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-9, 1), st.floats(0.01, 3), st.integers(1, 200))
def test_the_gaussian_bound_is_the_tighter_one(without, mu, hospitals):
    generic = group_bound(without=without, epsilon=gaussian_epsilon(mu, D), dp_delta=D, hospitals=hospitals)
    assert without <= gaussian_group_bound(without=without, mu=mu, hospitals=hospitals) + 1e-12
    assert gaussian_group_bound(without=without, mu=mu, hospitals=hospitals) <= generic + 1e-9 <= 1 + 1e-9


def test_bounds_at_the_ends():
    assert group_bound(without=1e-6, epsilon=math.inf, dp_delta=D, hospitals=1) == 1.0
    assert group_bound(without=1e-6, epsilon=1e4, dp_delta=D, hospitals=3) == 1.0
    assert group_bound(without=0.3, epsilon=0, dp_delta=0, hospitals=5) == pytest.approx(0.3)
    assert group_bound(without=0, epsilon=5, dp_delta=0, hospitals=5) == 0.0
    assert gaussian_group_bound(without=0.2, mu=0, hospitals=3) == pytest.approx(0.2)
    assert gaussian_group_bound(without=0.2, mu=math.inf, hospitals=3) == 1.0
    assert gaussian_group_bound(without=0.0, mu=1, hospitals=3) == 0.0


# --- what makes no sense


def test_without_noise_there_is_no_privacy():
    for rate in (1.0, 0.01):
        assert epsilon(noise_multiplier=0, sampling_rate=rate, rounds=1, dp_delta=D) == math.inf
        assert group_epsilon(noise_multiplier=0, sampling_rate=rate, rounds=1, dp_delta=D, size=2) == math.inf


BAD = [
    {"noise_multiplier": -0.1},
    {"noise_multiplier": math.nan},
    {"noise_multiplier": math.inf},
    {"sampling_rate": 0.0},
    {"sampling_rate": 1.01},
    {"rounds": 0},
    {"rounds": 2.5},
    {"dp_delta": 0},
    {"dp_delta": 1},
    {"dp_delta": math.nan},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_arguments_out_of_range_are_refused_with_the_number(change):
    setting = {"noise_multiplier": 1.0, "sampling_rate": 0.5, "rounds": 3, "dp_delta": D, **change}
    (name, value), *_ = change.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        epsilon(**setting)
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        group_epsilon(**setting, size=2)
    if name != "noise_multiplier":
        del setting["noise_multiplier"]
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            calibrate(**setting, epsilon=1.0)


def test_budgets_and_groups_out_of_range_are_refused():
    for target in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="epsilon must be positive"):
            calibrate(epsilon=target, rounds=1, dp_delta=D)
    with pytest.raises(ValueError, match="size must be at least 1"):
        group_epsilon(noise_multiplier=1, rounds=1, dp_delta=D, size=0)
    for bad in ({"without": 1.1}, {"epsilon": -1}, {"epsilon": math.nan}, {"hospitals": 0}):
        with pytest.raises(ValueError, match="at least one hospital"):
            group_bound(**{"without": 0.1, "epsilon": 1, "dp_delta": D, "hospitals": 3, **bad})
