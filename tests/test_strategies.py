import math
import pickle
import statistics
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedbone.federation.strategies import (
    BLOCK,
    COMPATIBLE,
    CoordinateMedian,
    FedAdam,
    FedAvgM,
    Strategy,
    TrimmedMean,
    WeightedMean,
    equal_weights,
    joint_factor,
    weighted_mean,
)
from fedbone.model.hrnet import build
from fedbone.vectors import layout_of

SIZE = 6


def updates(smallest: int, largest: int = 9, limit: float = 4096.0):
    """Lists of updates (SIZE,) float32 with values of any size up to ``limit``, zeros and repeats among them."""
    values = st.one_of(
        st.floats(-limit, limit, width=32),
        st.sampled_from([0.0, -0.0, 2.0**-41, -(2.0**-41), 3 * 2.0**-41, 1e-3]),  # half units: where ties are
    )
    return st.lists(arrays(np.float32, SIZE, elements=values), min_size=smallest, max_size=largest)


def combined(combiner, deltas, weights):
    for delta, weight in zip(deltas, weights, strict=True):
        combiner.add(delta, weight)
    return combiner.result()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_the_mean_is_numpys_average_and_keeps_equal_updates(n, seed):
    rng = np.random.default_rng(seed)
    deltas = list(rng.normal(size=(n, 50)).astype(np.float32))
    weights = rng.dirichlet(np.ones(n))
    assert weighted_mean(deltas, weights) == pytest.approx(np.average(np.float64(deltas), axis=0, weights=weights))
    same = weighted_mean([deltas[0]] * n, equal_weights(n))
    assert same == pytest.approx(np.float64(deltas[0]))  # E01: dividing by n again would shrink it


@settings(max_examples=150, deadline=None)
@given(updates(1), st.integers(0, 2**31))
def test_every_order_of_arrival_gives_the_same_bytes(deltas, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(deltas))
    for weights in (rng.dirichlet(np.ones(len(deltas))), equal_weights(len(deltas))):
        forward = weighted_mean(deltas, weights)
        assert forward.tobytes() == weighted_mean([deltas[i] for i in order], weights[order]).tobytes()
    for combiner in (CoordinateMedian, partial(TrimmedMean, (len(deltas) - 1) // 2)):
        forward = combined(combiner(), deltas, weights)
        assert forward.tobytes() == combined(combiner(), [deltas[i] for i in order], weights).tobytes()


@settings(max_examples=100, deadline=None)
@given(updates(1), st.integers(0, 2**31))
def test_the_mean_is_the_exact_sum_up_to_half_a_unit_each(deltas, seed):
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(deltas)))
    mean = weighted_mean(deltas, weights)
    for place in range(SIZE):
        exact = math.fsum(float(w) * float(delta[place]) for w, delta in zip(weights, deltas, strict=True))
        assert abs(mean[place] - exact) <= len(deltas) * 2.0**-40


def test_sums_over_several_blocks_and_far_more_hospitals():
    rng = np.random.default_rng(0)
    deltas = rng.normal(0, 1e-3, (40, 2 * BLOCK + 7)).astype(np.float32)
    weights = rng.dirichlet(np.ones(40))
    mean = weighted_mean(list(deltas), weights)
    assert np.abs(mean - weights @ deltas.astype(np.float64)).max() < 40 * 2.0**-40
    assert mean.tobytes() == weighted_mean(list(deltas[::-1]), weights[::-1]).tobytes()
    naive = [sum(w * d for w, d in zip(weights[::s], np.float64(deltas[::s]), strict=True)) for s in (1, -1)]
    assert not np.array_equal(*naive)  # what the rounding to units is for


def test_memory_does_not_grow_with_the_number_of_hospitals():
    def peak(hospitals):
        tracemalloc.start()
        mean, delta = WeightedMean(), np.ones(4 * BLOCK, np.float32)
        for _ in range(hospitals):
            mean.add(delta, 1 / hospitals)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(40) < 1.01 * peak(2)


def test_weights_that_do_not_sum_to_one_are_refused():
    delta = np.ones(3, np.float32)
    for weights in (np.full(2, 1 / 4), np.ones(2), np.ones(1), [1.5, -0.5], [0.5, math.nan]):
        with pytest.raises(ValueError, match=r"^2 updates need as many weights that sum to 1, got "):
            weighted_mean([delta, delta], weights)
    with pytest.raises(ValueError, match=r"^0 updates need"):
        WeightedMean().result()
    mean = WeightedMean()
    mean.add(delta, 0.5)
    with pytest.raises(ValueError, match=r"^1 updates need as many weights that sum to 1, got \[0\.5\]"):
        mean.result()


@pytest.mark.parametrize("combiner", [WeightedMean, TrimmedMean, CoordinateMedian])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.ones(4, np.float32), "shapes"),
        (np.ones((3, 1), np.float32), "shapes"),
        (np.ones(3, np.int64), "int64"),
        (np.array([0, np.nan, 0], np.float32), "nan"),
        (np.array([0, 0, np.inf], np.float32), "inf"),
    ],
)
def test_updates_that_cannot_be_combined_are_refused(combiner, bad, words):
    filled = combiner()
    for _ in range(3):
        filled.add(np.ones(3, np.float32), 1 / 3)
    with pytest.raises(ValueError, match=rf"(?i){words}"):
        filled.add(bad, 1 / 3)
    assert filled.result() == pytest.approx(np.ones(3))
    if bad.shape != (4,):  # a fresh combiner does not know the length yet
        fresh = combiner()
        with pytest.raises(ValueError, match=rf"(?i){words}"):
            fresh.add(bad, 1.0)
        assert combined(fresh, [np.ones(3, np.float32)] * 3, equal_weights(3)) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("value", [4097.0, -4097.0, 1e30, np.nan])
def test_an_update_that_is_too_large_leaves_no_trace(value):
    """Found in its second block, when its first is in the sum already."""
    rng = np.random.default_rng(0)
    good = list(rng.normal(size=(3, BLOCK + 5)).astype(np.float32))
    bad = rng.normal(size=BLOCK + 5).astype(np.float32)
    bad[BLOCK + 2] = value
    mean = WeightedMean()
    mean.add(good[0], 1 / 3)
    with pytest.raises(ValueError, match="summed exactly"):
        mean.add(bad, 1 / 3)
    for delta in good[1:]:
        mean.add(delta, 1 / 3)
    assert mean.result().tobytes() == weighted_mean(good, equal_weights(3)).tobytes()


@settings(max_examples=60, deadline=None)
@given(updates(3))
def test_median_and_trimmed_mean_are_pythons(deltas):
    weights = equal_weights(len(deltas))
    columns = [[float(delta[place]) for delta in deltas] for place in range(SIZE)]
    near = partial(pytest.approx, rel=1e-12, abs=1e-12)
    assert combined(CoordinateMedian(), deltas, weights) == near([statistics.median(c) for c in columns])
    trimmed = [statistics.fmean(sorted(c)[1:-1]) for c in columns]
    assert combined(TrimmedMean(1), deltas, weights) == near(trimmed, rel=1e-9)


def test_medians_of_several_blocks():
    deltas = np.random.default_rng(0).normal(size=(4, 2 * BLOCK + 7)).astype(np.float32)
    np.testing.assert_allclose(combined(CoordinateMedian(), deltas, equal_weights(4)), np.median(deltas, 0), rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(updates(2, 8), arrays(np.float32, SIZE, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_one_liar_moves_no_weight_beyond_what_the_others_say(honest, lie):
    low, high = np.min(honest, axis=0), np.max(honest, axis=0)
    slack = 1e-12 * np.maximum(np.abs(low), np.abs(high))  # of the rounding of a mean
    weights = equal_weights(len(honest) + 1)
    for combiner in (CoordinateMedian(), TrimmedMean(1)):
        result = combined(combiner, [lie, *honest], weights)
        assert (result >= low - slack).all()
        assert (result <= high + slack).all()


def test_two_liars_beat_a_trim_of_one_and_a_mean_needs_only_one():
    honest = [np.zeros(3, np.float32)] * 3
    lies = [np.full(3, 1000, np.float32)] * 2
    assert combined(TrimmedMean(1), [*honest, *lies], equal_weights(5)).max() > 100
    assert combined(TrimmedMean(2), [*honest, *lies], equal_weights(5)).max() == 0
    assert combined(CoordinateMedian(), [*honest, *lies], equal_weights(5)).max() == 0
    assert weighted_mean([*honest, lies[0]], equal_weights(4)).max() == 250


def test_robust_combiners_refuse_weights_and_too_few_updates():
    delta = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="equal"):
        combined(CoordinateMedian(), [delta, delta], [0.4, 0.6])
    with pytest.raises(ValueError, match="2 updates are too few to leave out 1 at each end"):
        combined(TrimmedMean(1), [delta, delta], [0.5, 0.5])
    with pytest.raises(ValueError, match="0 updates"):
        CoordinateMedian().result()


def test_what_a_combiner_keeps_is_a_copy():
    delta, median = np.ones(3, np.float32), CoordinateMedian()
    median.add(delta, 1.0)
    delta[:] = 7
    assert median.result().tolist() == [1, 1, 1]


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


def test_a_joint_whose_hospitals_are_absent_stays_where_it_is():
    """The third of three hospitals labels the third joint alone, and drops out."""
    present = [np.array([1, 1, 0], bool), np.array([1, 0, 0], bool)]
    assert joint_factor(present, equal_weights(2)) == pytest.approx([1, 2, 0])


def run(server, means, start=None, state=None):
    vector, state = np.zeros(means.shape[1], np.float32) if start is None else start, {} if state is None else state
    for mean in means:
        vector = server.step(vector, mean, state)
    return vector, state


MEANS = np.random.default_rng(0).normal(size=(6, 20))


def test_momentum_equals_torchs_sgd_with_momentum():
    parameter = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    oracle = torch.optim.SGD([parameter], lr=1.0, momentum=0.6)
    for mean in MEANS:
        parameter.grad = -torch.from_numpy(mean)
        oracle.step()
    vector, _ = run(FedAvgM(0.6), MEANS)
    assert vector == pytest.approx(parameter.detach().numpy(), abs=1e-5)
    assert vector.dtype == np.float32


def test_without_momentum_the_server_adds_the_mean_and_remembers_nothing():
    vector, state = run(FedAvgM(0.0), MEANS)
    assert vector == pytest.approx(MEANS.sum(axis=0), abs=1e-5)
    assert state == {}


def test_adam_equals_torchs_adam_without_its_bias_correction():
    """torch divides both moments by 1 - beta**t; its rate and epsilon are set so that this cancels."""
    rate, beta1, beta2, tau = 0.05, 0.8, 0.95, 0.01
    parameter = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    oracle = torch.optim.Adam([parameter], betas=(beta1, beta2))
    for t, mean in enumerate(MEANS, start=1):
        root = math.sqrt(1 - beta2**t)
        oracle.param_groups[0].update(lr=rate * (1 - beta1**t) / root, eps=tau / root)
        parameter.grad = -torch.from_numpy(mean)
        if t == 1:  # Reddi's second moment starts at tau squared
            start = {"exp_avg": torch.zeros(20).double(), "exp_avg_sq": torch.full((20,), tau**2).double()}
            oracle.state[parameter] = {"step": torch.tensor(0.0), **start}
        oracle.step()
    vector, _ = run(FedAdam(rate, beta1, beta2, tau), MEANS)
    assert vector == pytest.approx(parameter.detach().numpy(), abs=1e-6)
    assert vector.dtype == np.float32


def test_adams_first_step_by_hand():
    """m = 0.1 * 0.5, v = 0.99 * 0.1**2 + 0.01 * 0.5**2 = 0.0124, step = 0.2 * 0.05 / (sqrt(0.0124) + 0.1)."""
    vector, _ = run(FedAdam(0.2, 0.9, 0.99, tau=0.1), np.array([[0.5, 0.0]]))
    assert vector == pytest.approx([0.01 / (0.11135528725660043 + 0.1), 0], rel=1e-6)


@pytest.mark.parametrize("server", [FedAvgM(0.6), FedAdam()], ids=lambda s: type(s).__name__)
def test_the_state_is_all_that_a_server_needs_to_go_on(server):
    whole, _ = run(server, MEANS)
    half, state = run(server, MEANS[:3])
    saved = {name: array.copy() for name, array in state.items()}
    again, _ = run(pickle.loads(pickle.dumps(server)), MEANS[3:], half, saved)
    assert again.tobytes() == whole.tobytes()


def test_a_mean_is_not_changed_by_what_the_server_does_with_it():
    for server in (FedAvgM(0.0), FedAvgM(0.6), FedAdam()):
        means = MEANS.copy()
        run(server, means)
        assert np.array_equal(means, MEANS)


def test_a_strategy_crosses_to_another_process():
    strategy = Strategy(partial(TrimmedMean, 2), FedAdam(0.1), joint_rows=False, proximal_mu=0.01)
    again = pickle.loads(pickle.dumps(strategy))
    assert again.combine().trim == 2
    assert again.server == FedAdam(0.1)


def test_joint_rows_need_a_mean():
    """Two hospitals do not label the joint and send zeros: the median is zero, and no factor changes that."""
    with pytest.raises(ValueError, match="joint_rows=False"):
        Strategy(CoordinateMedian)
    deltas = [np.ones(1, np.float32), np.zeros(1, np.float32), np.zeros(1, np.float32)]
    assert combined(CoordinateMedian(), deltas, equal_weights(3)) == 0


def test_the_table_gives_a_reason_for_every_no():
    names = [row.strategy for row in COMPATIBLE]
    assert len(set(names)) == len(names)
    for row in COMPATIBLE:
        for cell in row[1:]:
            answer, _, why = cell.partition(": ")
            assert answer in ("yes", "no")
            assert why or answer == "yes"


def test_one_hospital_moves_a_median_by_more_than_its_share():
    """Why the table refuses central differential privacy: clip 1, three hospitals, and one of them changes its mind."""
    others = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    yes, no = np.ones(1, np.float32), np.zeros(1, np.float32)
    moved = [
        combined(make(), [*others, yes], equal_weights(3)) - combined(make(), [*others, no], equal_weights(3))
        for make in (CoordinateMedian, TrimmedMean, WeightedMean)
    ]
    assert np.ravel(moved) == pytest.approx([1, 1, 1 / 3])
