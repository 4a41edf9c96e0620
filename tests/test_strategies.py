import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.federation.strategies import ServerMomentum, equal_weights, joint_factor, weighted_mean
from fedbone.model.hrnet import build
from fedbone.vectors import layout_of


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_the_mean_is_numpys_average_and_keeps_equal_updates(n, seed):
    rng = np.random.default_rng(seed)
    deltas = list(rng.normal(size=(n, 50)).astype(np.float32))
    weights = rng.dirichlet(np.ones(n))
    assert weighted_mean(deltas, weights) == pytest.approx(np.average(np.float64(deltas), axis=0, weights=weights))
    same = weighted_mean([deltas[0]] * n, equal_weights(n))
    assert same == pytest.approx(np.float64(deltas[0]))  # E01: dividing by n again would shrink it


def test_weights_that_do_not_sum_to_one_are_refused():
    delta = np.ones(3, np.float32)
    for weights in (np.full(2, 1 / 4), np.ones(2), np.ones(1)):
        with pytest.raises(ValueError, match="sum to 1"):
            weighted_mean([delta, delta], weights)
    with pytest.raises(ValueError, match="shapes"):
        weighted_mean([delta, np.ones(4, np.float32)], equal_weights(2))


def test_a_joint_is_averaged_over_the_hospitals_that_label_it():
    labelled = [np.array([1, 0, 1, 0], bool), np.array([0, 0, 1, 0], bool), np.array([0, 1, 1, 0], bool)]
    assert joint_factor(labelled, equal_weights(3)) == pytest.approx([3, 3, 1, 0])
    layout = layout_of(build("w8n", 4))
    head = layout.row_factor(np.zeros(4)) == 0
    deltas = [np.ones(layout.size, np.float32) for _ in labelled]
    for delta, mask in zip(deltas, labelled, strict=True):
        delta[layout.row_factor(np.where(mask, 1, 0)) == 0] = 0  # what an unlabelled row's update is
    mean = weighted_mean(deltas, equal_weights(3))
    result = mean * layout.row_factor(joint_factor(labelled, equal_weights(3)))
    expected = np.ones(layout.size)
    expected[layout.row_factor(np.array([1, 1, 1, 0])) == 0] = 0
    assert result == pytest.approx(expected)
    assert head.sum() == 4 * 9


def test_momentum_equals_torchs_sgd_with_momentum():
    means = np.random.default_rng(0).normal(size=(5, 20)).astype(np.float32)
    parameter = torch.zeros(20, requires_grad=True)
    oracle = torch.optim.SGD([parameter], lr=1.0, momentum=0.6)
    server, vector = ServerMomentum(0.6), np.zeros(20, np.float32)
    for mean in means:
        vector = server.step(vector, mean)
        parameter.grad = -torch.from_numpy(mean)
        oracle.step()
    assert vector == pytest.approx(parameter.detach().numpy(), abs=1e-5)
    assert vector.dtype == np.float32
