"""DP-SGD inside one hospital: what leaves it hides whether any one patient was among its films.

Abadi et al., Deep Learning with Differential Privacy, CCS 2016, algorithm 1. Unit: one patient with all of their films,
added or removed. Each step draws every patient independently with the same probability (Poisson sampling) from secret
randomness; a patient's gradient is the mean over their films and the films' augmented copies, taken before the clip
(De et al., arXiv 2204.13650, section 3.2); the noisy sum is divided by a constant, not by how many were drawn.
Adversary: whoever sees the hospital's updates, the server and the other hospitals included. Gradients are float32.

Shape letters: F films (each copy counts), B patients, P parameters that are trained.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedbone.config import Profile
from fedbone.imaging.dataset import FilmSet
from fedbone.model.losses import keypoint_loss
from fedbone.model.training import augment, reproducible
from fedbone.privacy.accounting import epsilon
from fedbone.vectors import HEAD, layout_of

PARTS = {"head": ("head",), "norm and head": ("norm", "head"), "all": ("body", "norm", "head")}
VMAP_BELOW_PX = 128  # a CPU needs no longer for larger films one patient at a time, in a tenth of the memory
FILMS_AT_ONCE = {"cpu": 32, "cuda": 256}  # of vmap, which holds a gradient each: 1.2 MB for the CPU preset
FilmLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PatientPrivacy:
    """The private training of one hospital, all of it public.

    clip_norm: L2 bound of one patient's gradient; noise_multiplier: standard deviation of the noise in clip norms;
    patients: how many the hospital says it has (a round figure: the true number is as private as a patient); batch:
    patients drawn a step, on average; steps: a round; learning_rate: of plain SGD; part: the parameters that are
    trained, one of PARTS; copies: augmented copies of each film; rng: for tests, otherwise the operating system's
    randomness seeds the sampling and the noise. Raises ValueError for values that mean nothing.
    """

    unit: ClassVar[str] = "patient"  # with all of their films; GaussianNoise's unit is the hospital

    clip_norm: float
    noise_multiplier: float
    patients: int
    batch: int
    steps: int = 1
    learning_rate: float = 1.0
    part: str = "head"
    copies: int = 1
    rng: np.random.Generator | None = None

    def __post_init__(self) -> None:
        if not (0 < self.clip_norm < inf and 0 <= self.noise_multiplier < inf and 0 < self.learning_rate < inf):
            given = f"{self.clip_norm}, {self.noise_multiplier} and {self.learning_rate}"
            raise ValueError(f"clip_norm, noise_multiplier and learning_rate are {given}: above 0, at least 0, above 0")
        counts = (self.patients, self.batch, self.steps, self.copies)
        if any(isinstance(count, bool) or count != int(count) for count in counts):
            raise ValueError(f"patients, batch, steps and copies are {counts}: give whole numbers")
        if not (1 <= self.batch <= self.patients and self.steps >= 1 and self.copies >= 1):
            given = f"{self.batch} of {self.patients}, {self.steps} and {self.copies}"
            raise ValueError(f"batch of patients, steps and copies are {given}: 1 to patients, at least 1, at least 1")
        if self.part not in PARTS:
            raise ValueError(f"part is {self.part!r}; use one of {', '.join(PARTS)}")

    @property
    def sampling_rate(self) -> float:
        """Each patient's chance to be drawn in a step."""
        return self.batch / self.patients

    def epsilon(self, rounds: int, dp_delta: float) -> float:
        """epsilon of a patient at ``dp_delta`` after ``rounds`` rounds of this hospital."""
        z, steps = self.noise_multiplier, rounds * self.steps
        return epsilon(noise_multiplier=z, sampling_rate=self.sampling_rate, rounds=steps, dp_delta=dp_delta)


def films_of_patients(films: FilmSet) -> list[np.ndarray]:
    """For each patient, in the order of their first film, the indices of their films."""
    groups: dict[str, list[int]] = {}
    for index, patient in enumerate(films.patients):
        groups.setdefault(patient, []).append(index)
    return [np.array(group) for group in groups.values()]


def draw_patients(patients: int, sampling_rate: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of the patients of one step: each drawn on its own with ``sampling_rate``; there may be none."""
    return np.flatnonzero(rng.random(patients) < sampling_rate)


def clipped_sum(
    model: nn.Module,
    images: Tensor,
    keypoints: Tensor,
    owners: np.ndarray,
    clip_norm: float,
    loss: FilmLoss,
    part: str = "all",
) -> tuple[Tensor, np.ndarray]:
    """(sum (P,) of the patients' clipped gradients, their norms (B,) before the clip).

    images (F, 1, S, S), keypoints (F, K, 3); owners (F,): each film's patient, the films of one behind each other;
    ``loss(logits (1, K, H, W), keypoints (1, K, 3))`` of one film. A patient's gradient is the mean over their films,
    its norm is over all P parameters of ``part``. vmap or a loop over patients, whichever is cheaper: the sum is the
    same. A patient whose gradient holds NaN or infinity, which no scaling would bound, counts as zero: an error
    would tell that they were drawn.
    """
    trained = {name: parameter.detach() for name, parameter in trained_parameters(model, part)}
    total = torch.zeros(sum(p.numel() for p in trained.values()), device=images.device)
    cheap = images.is_cuda or images.shape[-1] < VMAP_BELOW_PX or part == "head"  # a head's gradients are small
    gradients = _by_vmap if cheap else _by_loop
    norms = []
    for rows in gradients(model, trained, images, keypoints, np.asarray(owners), loss):
        norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        finite = norm.isfinite()
        rows, norm = torch.where(finite[:, None], rows, 0), torch.where(finite, norm, 0)
        factor = (clip_norm / norm.clamp_min(1e-300)).clamp_max(1)
        factor = torch.where(factor < 1, factor * (1 - 2.5e-7), factor)  # float32 may round the norm up by 1.2e-7
        total += factor.float() @ rows
        norms.append(norm.cpu().numpy())
    return total, np.concatenate(norms) if norms else np.empty(0)


def trained_parameters(model: nn.Module, part: str) -> list[tuple[str, nn.Parameter]]:
    """The named parameters of ``part`` (one of PARTS), in the order of the vector."""
    kinds = {slot.name: slot.kind for slot in layout_of(model).slots}
    return [(name, parameter) for name, parameter in model.named_parameters() if kinds[name] in PARTS[part]]


def _by_vmap(
    model: nn.Module,
    trained: dict[str, Tensor],
    images: Tensor,
    keypoints: Tensor,
    owners: np.ndarray,
    loss: FilmLoss,
) -> Iterator[Tensor]:
    """Gradients (b, P) of some patients at a time, all films of a part at once."""
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in trained}

    def film_loss(parameters: dict[str, Tensor], image: Tensor, points: Tensor) -> Tensor:
        return loss(functional_call(model, fixed | parameters, (image[None],)), points[None])

    gradients = vmap(grad(film_loss), in_dims=(None, 0, 0))
    for films in _whole_patients(owners, FILMS_AT_ONCE[images.device.type]):
        rows = gradients(trained, images[films], keypoints[films])
        flat = torch.cat([rows[name].flatten(1) for name in trained], dim=1)
        _, patient, count = np.unique(owners[films], return_inverse=True, return_counts=True)
        of = torch.from_numpy(patient).to(flat.device)
        share = torch.from_numpy(1 / count[patient]).to(flat)
        yield flat.new_zeros(len(count), flat.shape[1]).index_add_(0, of, flat * share[:, None])


def _by_loop(
    model: nn.Module,
    trained: dict[str, Tensor],
    images: Tensor,
    keypoints: Tensor,
    owners: np.ndarray,
    loss: FilmLoss,
) -> Iterator[Tensor]:
    """Gradients (1, P), one patient at a time: one gradient in memory, not one a film."""
    fixed = {name: p.detach() for name, p in model.named_parameters()}  # no graph for what is not trained
    leaves = {name: parameter.clone().requires_grad_() for name, parameter in trained.items()}
    for films in _whole_patients(owners, 1):
        logits = functional_call(model, fixed | leaves, (images[films],))
        points = keypoints[films]
        losses = [loss(logits[i : i + 1], points[i : i + 1]) for i in range(len(logits))]
        rows = torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()))
        yield torch.cat([row.reshape(1, -1) for row in rows], dim=1)


def _whole_patients(owners: np.ndarray, films: int) -> Iterator[slice]:
    """Slices of at most ``films`` films, or of one patient with more, that cut no patient in two."""
    if not len(owners):
        return
    first_films = [0, *(np.flatnonzero(np.diff(owners)) + 1), len(owners)]
    begin = 0
    for start, end in itertools.pairwise(first_films):
        if end - begin > films and start > begin:
            yield slice(begin, start)
            begin = start
    yield slice(begin, len(owners))


def private_steps(
    model: nn.Module,
    films: FilmSet,
    labelled: np.ndarray,
    privacy: PatientPrivacy,
    profile: Profile,
    rate: float,
    proximal_mu: float = 0.0,
) -> None:
    """Train ``model`` in place for ``privacy.steps`` steps of SGD at learning rate ``rate``.

    labelled (K,) bool: the public list of joints that the hospital labels; the head's rows of the others have no
    gradient and get no noise. proximal_mu: FedProx's pull towards the weights as they are now, which no film enters.
    The loss is the profile's, both terms from the first step: private training starts from a model that was trained on
    public films. Neither the number of steps nor an error follows from the films.
    """
    rng = privacy.rng or np.random.Generator(np.random.PCG64(secrets.randbits(256)))
    model = model.to(profile.device)
    groups, parameters = films_of_patients(films), dict(trained_parameters(model, privacy.part))
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    noisy = np.concatenate([_labelled_rows(name, p, labelled) for name, p in parameters.items()])
    size_px, deviation = films.images.shape[-1], privacy.noise_multiplier * privacy.clip_norm
    loss = partial(keypoint_loss, size_px=size_px, sigma=profile.sigma_px, wing_weight=profile.wing_weight)
    with reproducible(profile.device):
        for _ in range(privacy.steps):
            chosen = [groups[i] for i in draw_patients(len(groups), privacy.sampling_rate, rng)]
            index = np.repeat(np.concatenate([*chosen, np.empty(0, int)]), privacy.copies)
            owners = np.repeat(np.arange(len(chosen)), [len(group) * privacy.copies for group in chosen])
            images, keypoints = (tensor.to(profile.device) for tensor in augment(films, index, rng, profile))
            keypoints[:, ~torch.from_numpy(labelled)] = 0  # labels beyond the list that was announced
            keypoints[keypoints[..., 2] == 0] = 0  # where there is no label its place is of no use, and may be NaN
            total, _ = clipped_sum(model, images, keypoints, owners, privacy.clip_norm, loss, privacy.part)
            noise = rng.normal(0, deviation, noisy.size) * noisy
            step = (total.double().cpu().numpy() + noise) / privacy.batch
            _descend(parameters, step, start, rate, proximal_mu)


def _descend(
    parameters: dict[str, nn.Parameter], gradient: np.ndarray, start: dict[str, Tensor], rate: float, mu: float
) -> None:
    """Move ``parameters`` by -rate (gradient + mu (w - w_start))."""
    done = 0
    with torch.no_grad():
        for name, parameter in parameters.items():
            piece = torch.from_numpy(gradient[done : done + parameter.numel()]).view(parameter.shape)
            pull = mu * (parameter - start[name])
            parameter.sub_(rate * (piece.to(parameter) + pull))
            done += parameter.numel()


def _labelled_rows(name: str, parameter: Tensor, labelled: np.ndarray) -> np.ndarray:
    """Bool, one per number of the parameter: False in the head's rows of joints that the hospital does not label."""
    if name.rpartition(".")[0] != HEAD:
        return np.full(parameter.numel(), True)
    return np.repeat(labelled, parameter.numel() // len(labelled))

