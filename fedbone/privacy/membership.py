"""Was this patient among the training films? Membership inference by loss and by likelihood ratio, with its error.

Many small models are trained side by side, each on its own coin-flipped half of the patients: they serve as targets and
as each other's shadows. Carlini et al., Membership Inference Attacks From First Principles, IEEE S&P 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedbone.model.training import reproducible

HIDDEN = 48
ADAM = (0.9, 0.999, 1e-8)


@dataclass(frozen=True)
class Shadows:
    """M models' losses (M, N) on N patients, and which patients each of them was trained on: included (M, N) bool."""

    losses: np.ndarray
    included: np.ndarray


def train_shadows(
    films: np.ndarray,
    labels: np.ndarray,
    *,
    models: int,
    seed: int,
    steps: int = 200,
    rate: float = 0.02,
    sampling_rate: float = 0.5,
    clip_norm: float | None = None,
    noise_multiplier: float = 0.0,
) -> Shadows:
    """Train ``models`` one-hidden-layer regressors at once, by Adam on private or plain sums of gradients.

    films (N, D), labels (N, O): one row a patient, scaled by public constants. Each model holds each patient by a coin
    of its own, and each step draws each held patient with ``sampling_rate``. A clip bounds a patient's gradient over
    all parameters (Abadi et al., CCS 2016, algorithm 1); the noise is ``noise_multiplier`` clips; the denominator is
    fixed. Raises ValueError for noise without a clip.
    """
    if noise_multiplier and clip_norm is None:
        raise ValueError("noise_multiplier counts in clip norms: give a clip_norm")
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.from_numpy(np.c_[films, np.ones(len(films))]).float()
    wanted = torch.from_numpy(labels).float()
    shapes = (inputs.shape[1], HIDDEN), (HIDDEN + 1, wanted.shape[1])
    weights = [torch.randn(models, *shape, generator=rng) / math.sqrt(shape[0]) for shape in shapes]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    included = torch.rand(models, len(films), generator=rng) < 0.5
    with reproducible("cpu"):
        for step in range(1, steps + 1):
            drawn = included & (torch.rand(included.shape, generator=rng) < sampling_rate)
            sums = _gradient_sums(weights, inputs, wanted, drawn.float(), clip_norm)
            if noise_multiplier:
                deviation = noise_multiplier * clip_norm
                sums = [total + deviation * torch.randn(total.shape, generator=rng) for total in sums]
            for parameter, moment, total in zip(weights, moments, sums, strict=True):
                _adam(parameter, moment, total / (0.5 * sampling_rate * len(films)), step, rate)
        losses = (_forward(weights, inputs)[1] - wanted).square().mean(dim=2)
    return Shadows(losses.double().numpy(), included.numpy())


def _forward(weights: list[Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden layer with its constant (M, N, HIDDEN + 1), and output (M, N, O)."""
    hidden = torch.tanh(inputs @ weights[0])
    hidden = torch.cat([hidden, torch.ones_like(hidden[..., :1])], dim=2)
    return hidden, hidden @ weights[1]


def _gradient_sums(
    weights: list[Tensor], inputs: Tensor, wanted: Tensor, share: Tensor, clip_norm: float | None
) -> list[Tensor]:
    """Sums over patients of the gradients of half the squared error, each times ``share`` (M, N) and clipped.

    A patient's gradient of a layer is an outer product, so its norm is the product of two norms (Goodfellow, 2015,
    arXiv 1510.01799): no gradient of a single patient is ever built.
    """
    hidden, found = _forward(weights, inputs)
    error = found - wanted
    back = (error @ weights[1][:, :-1].transpose(1, 2)) * (1 - hidden[..., :-1].square())
    if clip_norm is not None:
        first = inputs.square().sum(dim=1) * back.square().sum(dim=2)
        norm = (first + hidden.square().sum(dim=2) * error.square().sum(dim=2)).sqrt()
        share = share * (clip_norm / norm.clamp_min(1e-30)).clamp_max(1)
    return [inputs.T @ (back * share[..., None]), hidden.transpose(1, 2) @ (error * share[..., None])]


def _adam(parameter: Tensor, moment: tuple[Tensor, Tensor], gradient: Tensor, step: int, rate: float) -> None:
    """One step in place (Kingma and Ba, ICLR 2015, algorithm 1)."""
    keep, keep_square, tiny = ADAM
    moment[0].mul_(keep).add_(gradient, alpha=1 - keep)
    moment[1].mul_(keep_square).addcmul_(gradient, gradient, value=1 - keep_square)
    spread = (moment[1] / (1 - keep_square**step)).sqrt()
    parameter.sub_(rate / (1 - keep**step) * moment[0] / (spread + tiny))


def lira(shadows: Shadows) -> np.ndarray:
    """(M, N) log likelihood ratios: how much likelier each model's loss is if it was trained on the patient.

    Section V, online, with pooled variances: for each model all others are the shadows, a Gaussian of the log loss with
    the patient and one without. Raises ValueError when a patient is in none or all of the other models.
    """
    score, included = np.log(shadows.losses + 1e-12), shadows.included
    ratios = np.empty_like(score)
    for target in range(len(score)):
        others, inside = np.delete(score, target, axis=0), np.delete(included, target, axis=0)
        if not (inside.any(axis=0) & ~inside.all(axis=0)).all():
            raise ValueError("a patient is in none or in all of the shadow models: train more of them")
        ratios[target] = _log_density(score[target], others, inside) - _log_density(score[target], others, ~inside)
    return ratios


def _log_density(at: np.ndarray, sample: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Log density of a Gaussian, its mean over ``where`` by column, one variance for all; the constant is left out."""
    mean = sample.mean(axis=0, where=where)
    degrees = where.sum() - where.shape[1]
    spread = math.sqrt(((sample - mean) ** 2).sum(where=where) / max(degrees, 1)) + 1e-12
    return -0.5 * ((at - mean) / spread) ** 2 - math.log(spread)


@dataclass(frozen=True)
class Roc:
    """Right and false alarms of an attack as its threshold falls. fpr, tpr: (T,) rising; members, strangers: counts."""

    fpr: np.ndarray
    tpr: np.ndarray
    members: int
    strangers: int

    @property
    def auc(self) -> float:
        """Area under the curve: 0.5 for guessing, 1 for certainty."""
        return float(np.trapezoid(self.tpr, self.fpr))

    def tpr_at(self, fpr: float) -> float:
        """The share of members found with at most a share ``fpr`` of false alarms among strangers."""
        return float(self.tpr[np.searchsorted(self.fpr, fpr, side="right") - 1])

    def upper_limit(self, fpr: float, confidence: float = 0.95) -> float:
        """The one-sided Clopper-Pearson limit (Biometrika 1934) of ``tpr_at``.

        Each pair of a model and a member is one trial, independent of the others, and the threshold is given.
        """
        from scipy.stats import beta

        found = round(self.tpr_at(fpr) * self.members)
        return float(beta.ppf(confidence, found + 1, self.members - found)) if found < self.members else 1.0


def roc(scores: np.ndarray, included: np.ndarray) -> Roc:
    """The curve of ``scores`` (M, N), high for members; equal scores are taken together."""
    order = np.argsort(-scores, axis=None, kind="stable")
    ranked, member = scores.ravel()[order], included.ravel()[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits, alarms = np.cumsum(member)[ends], np.cumsum(~member)[ends]
    members, strangers = int(hits[-1]), int(alarms[-1])
    return Roc(np.append(0, alarms) / strangers, np.append(0, hits) / members, members, strangers)


def upper_limit_over_models(
    scores: np.ndarray, included: np.ndarray, fpr: float, seed: int = 0, confidence: float = 0.95, repeats: int = 1000
) -> float:
    """The upper limit of the share found at ``fpr`` by drawing whole models again, thresholds included (bootstrap).

    The patients of one model share its noise, so pairs are not independent; models are, given the patients.
    """
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(repeats):
        drawn = rng.integers(0, len(scores), len(scores))
        rates.append(roc(scores[drawn], included[drawn]).tpr_at(fpr))
    return float(np.quantile(rates, confidence))


def largest_tpr(fpr: float, epsilon: float, dp_delta: float) -> float:
    """The most that any attack may find at ``fpr`` under (epsilon, dp_delta)-DP.

    Kairouz, Oh and Viswanath, ICML 2015, theorem 2.1.
    """
    return min(math.exp(epsilon) * fpr + dp_delta, 1 - math.exp(-epsilon) * (1 - dp_delta - fpr), 1.0)
