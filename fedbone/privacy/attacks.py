"""What an update gives away: a film found again from a gradient, a film hidden in an update, and what both must beat.

Zhu, Liu and Han, Deep Leakage from Gradients, NeurIPS 2019; Geiping et al., Inverting Gradients, NeurIPS 2020,
equation 4. Films are float (S, S) in [0, 1]. A picture counts for nothing until it is more like its film than the
``controls`` are: films of one hospital look alike. An attack that fails shows the limits of the attacker only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedbone.imaging.dataset import FilmSet
from fedbone.model.training import reproducible

Gradient = Callable[[Tensor], Tensor]  # films (n, 1, S, S) float64 -> what they would have sent (P,), differentiable
WINDOW_PX, WINDOW_SPREAD_PX = 11, 1.5
STABLE = (0.01**2, 0.03**2)  # SSIM's K1 and K2, squared, for a range of 1
FINE_STEP = 1e-6  # the grid of the fine print in an update
FINE_SHARE = 0.8  # of a step of the grid, from black to white


def coordinate_net(joints: int, size_px: int, seed: int, reach: float = 0.5) -> nn.Sequential:
    """A small regressor of joint coordinates, float64: three convolutions with sigmoids, one fully connected layer.

    (n, 1, S, S) -> (n, 2 joints) as shares of the film's side. Weights are uniform in +-``reach``, as in the code of
    Deep Leakage from Gradients: the server, here the attacker, chooses the first model.
    """
    rng, last = torch.Generator().manual_seed(seed), 12 * math.ceil(math.ceil(size_px / 2) / 2) ** 2
    net = nn.Sequential(
        nn.Conv2d(1, 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 2, 2), nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, 1, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(last, 2 * joints),
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-reach, reach, generator=rng)
    return net


def coordinate_loss(found: Tensor, keypoints: Tensor, size_px: int) -> Tensor:
    """Mean squared error of ``found`` (n, 2K) over the labelled joints of ``keypoints`` (n, K, 3), array pixels."""
    labelled = (keypoints[..., 2:] > 0).to(found)
    error = (found.view(len(found), -1, 2) - keypoints[..., :2].to(found) / (size_px - 1)) * labelled
    return error.square().sum() / (2 * labelled.sum())


def flat_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """The gradient (P,) of ``loss`` in the order of the model's parameters, itself differentiable."""
    parts = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return torch.cat([part.reshape(-1) for part in parts])


@dataclass(frozen=True)
class Inversion:
    """Films (n, S, S) found from an update, the first of them at some steps on the way, and the last mismatch.

    frames: pairs (step, picture (S, S)), from the noise at step 0 to the end; mismatch: 1 - cosine, 0 for a fit.
    """

    films: np.ndarray
    frames: list[tuple[int, np.ndarray]]
    mismatch: float


def invert(
    gradient: Gradient,
    seen: np.ndarray,
    size_px: int,
    *,
    films: int = 1,
    steps: int = 500,
    smoothness: float = 1e-3,
    rate: float = 0.1,
    seed: int = 0,
    start: np.ndarray | None = None,
    frames: int = 6,
    progress: Callable[[int, int, str], None] | None = None,
) -> Inversion:
    """Search ``films`` films whose gradient points where ``seen`` (P,) points; the same seed, the same pictures.

    Adam on 1 - cosine plus ``smoothness`` times the total variation (Geiping et al., equation 4), with a learning rate
    that falls to zero. The length of ``seen`` does not matter, so a clip changes nothing. start (S, S): the picture to
    begin with, otherwise grey noise. ``progress(done, steps, text)`` is called after each step.
    """
    rng, target = torch.Generator().manual_seed(seed), torch.as_tensor(np.asarray(seen, np.float64))
    grey = 0.5 if start is None else torch.from_numpy(np.asarray(start, np.float64))
    guess = (grey + 0.1 * torch.randn(films, 1, size_px, size_px, generator=rng, dtype=torch.float64)).clamp(0, 1)
    guess.requires_grad_()
    optimiser = torch.optim.Adam([guess], lr=rate, foreach=False)  # made for many tensors, slower for one
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    shown, kept = {round(share * steps) for share in np.linspace(0, 1, frames) ** 2}, []
    with reproducible("cpu"):
        for step in range(steps + 1):
            if step in shown:
                kept.append((step, _pictures(guess)[0]))
            mismatch = 1 - functional.cosine_similarity(gradient(guess), target, dim=0, eps=1e-300)
            if step == steps:
                break
            optimiser.zero_grad()
            (mismatch + smoothness * _total_variation(guess)).backward(inputs=[guess])
            optimiser.step()
            falling.step()
            with torch.no_grad():
                guess.clamp_(0, 1)
            if progress:
                progress(step + 1, steps, f"mismatch {mismatch.item():.1e}")
    return Inversion(_pictures(guess), kept, mismatch.item())


def _pictures(guess: Tensor) -> np.ndarray:
    return guess.detach()[:, 0].numpy().astype(np.float32)


def _total_variation(films: Tensor) -> Tensor:
    return films.diff(dim=-1).abs().mean() + films.diff(dim=-2).abs().mean()


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two films (H, W) in [0, 1]: 1 for the same, near 0 for unrelated ones.

    Wang et al., IEEE Transactions on Image Processing 2004, equation 13, mean over all whole Gaussian windows of 11
    pixels. Raises ValueError for shapes that differ or are smaller than the window.
    """
    if first.shape != second.shape or min(first.shape) < WINDOW_PX:
        given = f"{first.shape} and {second.shape}"
        raise ValueError(f"SSIM needs two films of one shape, {WINDOW_PX} pixels or more, and got {given}")
    offset = torch.arange(WINDOW_PX, dtype=torch.float64) - WINDOW_PX // 2
    bell = torch.exp(-(offset**2) / (2 * WINDOW_SPREAD_PX**2))
    window = torch.outer(bell, bell) / bell.sum() ** 2
    a, b = (torch.from_numpy(np.asarray(film, np.float64)) for film in (first, second))
    stack = torch.stack([a, b, a * a, b * b, a * b])[:, None]
    mean_a, mean_b, aa, bb, ab = functional.conv2d(stack, window[None, None])
    variances, product = aa - mean_a**2 + bb - mean_b**2, mean_a * mean_b
    light = (2 * product + STABLE[0]) / (mean_a**2 + mean_b**2 + STABLE[0])
    return float((light * (2 * (ab - product) + STABLE[1]) / (variances + STABLE[1])).mean())


def one_per_patient(films: FilmSet) -> np.ndarray:
    """Indices of each patient's first film, without films that repeat an earlier picture under another name."""
    patients, pictures, kept = set(), set(), []
    for index, (patient, image) in enumerate(zip(films.patients, films.images, strict=True)):
        if patient not in patients and image.tobytes() not in pictures:
            kept.append(index)
        patients.add(patient)
        pictures.add(image.tobytes())
    return np.array(kept)


def controls(film: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """SSIM that an attacker reaches without any update; ``others`` (N, S, S): films of other patients."""
    alike = [ssim(other, film) for other in others]
    return {
        "even grey": ssim(np.full_like(film, film.mean()), film),
        "mean film": ssim(others.mean(axis=0), film),
        "another patient": float(np.median(alike)),
        "nearest other": max(alike),
    }


def recognised(picture: np.ndarray, film: np.ndarray, others: np.ndarray) -> bool:
    """Whether ``picture`` is more like its film than like any film of ``others`` (N, S, S), by SSIM."""
    return ssim(picture, film) > max(ssim(picture, other) for other in others)


def write_fine(update: np.ndarray, film: np.ndarray) -> np.ndarray:
    """``update`` (P,) rounded to a fine grid, with the film in the digits below it: the job of notebook 04.

    float32, as an update travels.
    """
    hidden = update.astype(np.float64)
    hidden[: film.size] = (np.round(hidden[: film.size] / FINE_STEP) + FINE_SHARE * (film.ravel() - 0.5)) * FINE_STEP
    return hidden.astype(np.float32)


def read_fine(update: np.ndarray, size_px: int) -> np.ndarray:
    """The film (S, S) in the fine print of ``update``, or noise where there is none."""
    grid = update[: size_px**2].astype(np.float64) / FINE_STEP
    return ((grid - np.round(grid)) / FINE_SHARE + 0.5).reshape(size_px, size_px).clip(0, 1)


def write_loud(film: np.ndarray, length: float, size: int) -> np.ndarray:
    """An update (size,) float32 that is nothing but the film, as loud as a clip norm of ``length`` lets it be."""
    update = np.zeros(size, np.float32)
    contrast = film.ravel() - film.mean()
    update[: film.size] = length * contrast / np.linalg.norm(contrast)
    return update


def read_loud(update: np.ndarray, film: np.ndarray) -> np.ndarray:
    """The film (S, S) that ``update`` shouts; its mean and spread, two numbers, the reader is told from ``film``."""
    seen = update[: film.size].astype(np.float64)
    scaled = (seen - seen.mean()) / max(seen.std(), 1e-300) * film.std() + film.mean()
    return scaled.reshape(film.shape).clip(0, 1)


def smuggled_bits(mu: float) -> float:
    """The most that all published models of a mu-GDP Gaussian mechanism can tell of one unit's message, in bits.

    A Gaussian channel whose signal has mu times the noise's standard deviation as its length carries at most
    mu^2 / (2 ln 2) bits, however many numbers share it (Cover and Thomas, Elements of Information Theory, 2006,
    section 9.1).
    """
    return mu**2 / (2 * math.log(2))
