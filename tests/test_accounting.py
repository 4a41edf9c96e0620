import math
from statistics import NormalDist

import numpy as np
import pytest

from fedbone.privacy.accounting import gaussian_delta, gaussian_epsilon, log_normal_cdf


@pytest.mark.parametrize(
    ("noise_multiplier", "rounds", "epsilon"),
    [(3, 10, 4.65), (0.3, 10, 99.7), (30, 10, 0.361), (1.5, 50, 30.5), (100, 100, 0.341), (11.8, 10, 1.0)],
)
def test_published_values_at_delta_1e_5(noise_multiplier, rounds, epsilon):
    assert gaussian_epsilon(noise_multiplier, rounds, 1e-5) == pytest.approx(epsilon, rel=0.006)


@pytest.mark.parametrize(("epsilon", "mu"), [(0.5, 0.3), (1.0, 1.0), (4.65, math.sqrt(10) / 3)])
def test_delta_against_numerical_integration_of_the_definition(epsilon, mu):
    x = np.linspace(-40, 40, 2_000_001)
    p = np.exp(-((x - mu) ** 2) / 2) / math.sqrt(2 * math.pi)
    q = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    oracle = np.maximum(p - math.exp(epsilon) * q, 0).sum() * (x[1] - x[0])
    assert gaussian_delta(epsilon, mu) == pytest.approx(oracle, rel=1e-4)


def test_more_noise_or_fewer_rounds_cost_less():
    values = [gaussian_epsilon(z, 10, 1e-5) for z in (0.01, 0.1, 1, 10, 100)]
    assert values == sorted(values, reverse=True)
    assert gaussian_epsilon(1, 5, 1e-5) < gaussian_epsilon(1, 6, 1e-5)


def test_no_noise_is_no_privacy_and_bad_arguments_are_refused():
    assert gaussian_epsilon(0, 1, 1e-5) == math.inf
    for bad in (0, 1, -0.1):
        with pytest.raises(ValueError, match="dp_delta"):
            gaussian_epsilon(1, 1, bad)


def test_log_cdf_where_the_cdf_underflows():
    assert log_normal_cdf(-5) == pytest.approx(math.log(NormalDist().cdf(-5)), rel=1e-9)
    assert log_normal_cdf(-30.0001) == pytest.approx(log_normal_cdf(-29.9999), rel=1e-4)
    assert math.isfinite(log_normal_cdf(-1e4))
