"""Membership inference: gradients, clip and noise of the shadows, scores by hand, the curve, its limits, and DP."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedbone.privacy import membership
from fedbone.privacy.accounting import calibrate
from fedbone.privacy.membership import Shadows, lira, roc, train_shadows

PATIENTS, STEPS, RATE = 60, 100, 0.5


def people(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random films and labels: nothing to learn, so that whatever is learnt is memory."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(PATIENTS, 64)), rng.normal(size=(PATIENTS, 8))


# the shadow models


def by_autograd(weights, film, label) -> list[torch.Tensor]:
    leaves = [w.clone().requires_grad_() for w in weights]
    hidden = torch.cat([torch.tanh(film @ leaves[0]), torch.ones(1)])
    return list(torch.autograd.grad(((hidden @ leaves[1] - label) ** 2).sum() / 2, leaves))


@pytest.mark.parametrize("clip_norm", [None, 0.7])
def test_sums_of_clipped_gradients_are_those_of_autograd(clip_norm):
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(2, *shape, generator=rng) for shape in ((4, membership.HIDDEN), (membership.HIDDEN + 1, 3))]
    films, labels = torch.randn(5, 4, generator=rng), torch.randn(5, 3, generator=rng)
    share = torch.tensor([[1.0, 0, 1, 1, 0], [0, 1, 1, 0, 1]])
    found = membership._gradient_sums(weights, films, labels, share, clip_norm)
    for model in range(2):
        sums = [torch.zeros_like(w[model]) for w in weights]
        for patient in torch.nonzero(share[model]).ravel():
            gradients = by_autograd([w[model] for w in weights], films[patient], labels[patient])
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            factor = 1.0 if clip_norm is None else min(1.0, clip_norm / norm)
            sums = [total + factor * g for total, g in zip(sums, gradients, strict=True)]
        for ours, theirs in zip(found, sums, strict=True):
            torch.testing.assert_close(ours[model], theirs, rtol=1e-4, atol=1e-5)


def test_the_optimiser_is_adam():
    ours, theirs = torch.ones(3), torch.ones(3, requires_grad=True)
    adam, moment = torch.optim.Adam([theirs], lr=0.1), (torch.zeros(3), torch.zeros(3))
    for step in range(1, 6):
        gradient = torch.tensor([1.0, -2.0, 0.01]) * step
        membership._adam(ours, moment, gradient, step, 0.1)
        theirs.grad = gradient
        adam.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_a_seed_repeats_and_a_wide_clip_is_none():
    films, labels = people()
    first, again = (train_shadows(films, labels, models=4, seed=3, steps=20) for _ in range(2))
    np.testing.assert_array_equal(first.losses, again.losses)
    wide = train_shadows(films, labels, models=4, seed=3, steps=20, clip_norm=1e9)
    np.testing.assert_allclose(wide.losses, first.losses, rtol=1e-5)
    noisy = train_shadows(films, labels, models=4, seed=3, steps=20, clip_norm=1.0, noise_multiplier=1.0)
    assert noisy.losses[noisy.included].mean() > 1.2 * first.losses[first.included].mean()
    with pytest.raises(ValueError, match="clip_norm"):
        train_shadows(films, labels, models=4, seed=3, noise_multiplier=1.0)


def test_the_noise_has_the_promised_size(monkeypatch):
    """Adam sees sums of clipped gradients plus noise of z C: here the sums are zero, since nobody is ever drawn."""
    seen = []
    monkeypatch.setattr(membership, "_adam", lambda _, __, gradient, *rest: seen.append(gradient))
    films, labels = people()
    train_shadows(films, labels, models=8, seed=0, steps=3, sampling_rate=1e-12, clip_norm=0.5, noise_multiplier=3.0)
    sums = torch.cat([gradient.ravel() for gradient in seen]) * 0.5 * 1e-12 * PATIENTS
    assert float(sums.std()) == pytest.approx(1.5, rel=0.02)
    assert abs(float(sums.mean())) < 0.02
    assert not torch.equal(seen[0], seen[2])


# scores and curves


def planted(gap: float, seed: int = 0, models: int = 16, patients: int = 50) -> Shadows:
    """Log losses that differ from patient to patient, and by ``gap`` spreads between members and strangers."""
    rng = np.random.default_rng(seed)
    included = rng.random((models, patients)) < 0.5
    log_loss = 20 * rng.normal(size=patients) + rng.normal(size=included.shape) - gap * included
    return Shadows(np.exp(log_loss), included)


def test_lira_finds_members_where_a_threshold_on_the_loss_cannot():
    shadows = planted(gap=8.0)
    ratio, loss = roc(lira(shadows), shadows.included), roc(-shadows.losses, shadows.included)
    assert ratio.tpr_at(0.01) > 0.95
    assert loss.tpr_at(0.01) < 0.5


def test_where_nothing_tells_members_apart_lira_guesses():
    shadows = planted(gap=0.0)
    curve = roc(lira(shadows), shadows.included)
    assert abs(curve.auc - 0.5) < 0.06
    assert curve.tpr_at(0.01) < 0.05


def test_lira_is_the_ratio_of_two_gaussians_with_pooled_spread():
    shadows = planted(gap=1.0, models=6, patients=3)
    score, target = np.log(shadows.losses), 2
    rest = [model for model in range(6) if model != target]
    residuals, means = {True: [], False: []}, {}
    for patient in range(3):
        for inside in (True, False):
            own = [score[model, patient] for model in rest if shadows.included[model, patient] == inside]
            means[patient, inside] = np.mean(own)
            residuals[inside] += [value - np.mean(own) for value in own]
    spread = {inside: math.sqrt(np.sum(np.square(found)) / (len(found) - 3)) for inside, found in residuals.items()}
    for patient in range(3):
        at = score[target, patient]
        log_in, log_out = (stats.norm.logpdf(at, means[patient, side], spread[side]) for side in (True, False))
        assert lira(shadows)[target, patient] == pytest.approx(log_in - log_out, abs=1e-6)


def test_lira_refuses_a_patient_of_whom_it_knows_one_side_only():
    with pytest.raises(ValueError, match="shadow models"):
        lira(Shadows(np.ones((3, 2)), np.array([[True, False], [True, True], [True, False]])))


def test_a_curve_by_hand():
    scores, included = np.array([[4.0, 3, 3, 1]]), np.array([[True, True, False, False]])
    curve = roc(scores, included)
    assert curve.fpr.tolist() == [0, 0, 0.5, 1]
    assert curve.tpr.tolist() == [0, 0.5, 1, 1]
    assert (curve.members, curve.strangers) == (2, 2)
    assert [curve.tpr_at(fpr) for fpr in (0, 0.49, 0.5, 1)] == [0.5, 0.5, 1, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_area_is_the_mann_whitney_statistic(seed):
    rng = np.random.default_rng(seed)
    scores, included = rng.integers(0, 9, (3, 10)), rng.random((3, 10)) < 0.5
    included[0, :2] = True, False
    found = stats.mannwhitneyu(scores[included], scores[~included]).statistic / included.sum() / (~included).sum()
    assert roc(scores, included).auc == pytest.approx(found)


def test_limits_of_the_share_found():
    shadows = planted(gap=1.0, models=20)
    curve = roc(lira(shadows), shadows.included)
    found = round(curve.tpr_at(0.1) * curve.members)
    oracle = stats.binomtest(found, curve.members, alternative="less").proportion_ci(0.95, method="exact")
    assert curve.upper_limit(0.1) == pytest.approx(oracle.high)
    over_models = membership.upper_limit_over_models(lira(shadows), shadows.included, 0.1)
    assert curve.tpr_at(0.1) < over_models < 1
    assert roc(np.array([[2.0, 1]]), np.array([[True, False]])).upper_limit(0) == 1.0


@given(st.floats(0, 1), st.floats(0.01, 3))
def test_no_attack_on_gaussian_noise_passes_the_limit(fpr, mu):
    """The best attack on a mu-GDP mechanism finds Phi(Phi^-1(fpr) + mu), and the limit of each epsilon is a tangent."""
    best = stats.norm.cdf(stats.norm.ppf(fpr) + mu)
    for epsilon in (0.0, 0.5, 2.0):
        dp_delta = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
        assert best <= membership.largest_tpr(fpr, epsilon, dp_delta) + 1e-9
    touching = stats.norm.cdf(-mu / 2)
    at_zero = stats.norm.cdf(mu / 2) - stats.norm.cdf(-mu / 2)
    assert membership.largest_tpr(touching, 0.0, at_zero) == pytest.approx(stats.norm.cdf(mu / 2))


# the whole attack


def attacked(**defence) -> tuple[membership.Roc, float]:
    films, labels = people()
    options = {"models": 48, "seed": 1, "steps": STEPS, "sampling_rate": RATE, "rate": 0.02}
    shadows = train_shadows(films, labels, **options, **defence)
    scores = lira(shadows)
    return roc(scores, shadows.included), membership.upper_limit_over_models(scores, shadows.included, 0.01)


def test_undefended_and_only_clipped_models_betray_their_members():
    for defence in ({}, {"clip_norm": 1.0}):
        assert attacked(**defence)[0].tpr_at(0.01) > 0.9


@pytest.mark.parametrize("epsilon", [1.0, pytest.param(3.0, marks=pytest.mark.slow)])
def test_under_patient_level_dp_the_attack_stays_below_its_limit(epsilon):
    z = calibrate(epsilon=epsilon, sampling_rate=RATE, rounds=STEPS, dp_delta=1e-5)
    curve, over_models = attacked(clip_norm=1.0, noise_multiplier=z)
    limit = membership.largest_tpr(0.01, epsilon, 1e-5)
    assert curve.upper_limit(0.01) < limit
    assert over_models < limit
    weaker, _ = attacked(clip_norm=1.0, noise_multiplier=z / 40)
    assert weaker.tpr_at(0.01) > 2 * limit  # the same test sees a mistake in the noise
