"""The one training loop: every arm, every engine and every hospital calls it.

Augmentation is OpenCV on uint8 films held in memory. A rotation about the centre of the array moves pixels and
keypoints by the same matrix; a joint that leaves the array loses its label.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from fedbone.config import Profile
from fedbone.errors import UserError
from fedbone.imaging.dataset import FilmSet
from fedbone.model import schedule
from fedbone.model.decoding import confidence, heatmap_to_array, soft_argmax
from fedbone.model.losses import keypoint_loss
from fedbone.model.out_of_memory import out_of_memory

LOSS_SCALE = 1024.0
EPOCH = 1  # last seed word of the order of an epoch that several rounds share
Loss = Callable[[Tensor, Tensor, int, float, float], Tensor]
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def rotate(image: np.ndarray, keypoints: np.ndarray, angle_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """Film (S, S) uint8 and keypoints (K, 3) turned by ``angle_deg`` about the centre of the array ((S - 1) / 2)."""
    side = image.shape[0]
    centre = (side - 1) / 2  # index coordinates: S / 2 would shift every label by half a pixel
    matrix = cv2.getRotationMatrix2D((centre, centre), angle_deg, 1.0)
    turned = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR)
    moved = keypoints.copy()
    moved[:, :2] = keypoints[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    outside = ((moved[:, :2] < 0) | (moved[:, :2] > side - 1)).any(axis=1)  # not a whole pixel any more
    moved[outside, 2] = 0
    return turned, moved


def augment(films: FilmSet, index: np.ndarray, rng: np.random.Generator, profile: Profile) -> tuple[Tensor, Tensor]:
    """A training batch: films (B, 1, S, S) float32 in [0, 1] and keypoints (B, K, 3), rotated and re-lit at random."""
    images = np.empty((len(index), 1, *films.images.shape[1:]), np.float32)
    keypoints = np.empty((len(index), *films.keypoints.shape[1:]), np.float32)
    for slot, film in enumerate(index):
        angle = rng.uniform(-profile.rotation_deg, profile.rotation_deg)
        turned, keypoints[slot] = rotate(films.images[film], films.keypoints[film], angle)
        gain = rng.uniform(1 - profile.brightness, 1 + profile.brightness) / 255
        images[slot, 0] = np.minimum(turned * np.float32(gain), 1)
    return as_batch(images), torch.from_numpy(keypoints)


def as_batch(images: np.ndarray) -> Tensor:
    """(B, 1, S, S) float32 array as a channels_last tensor."""
    return torch.from_numpy(images).contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def reproducible(device: str) -> Iterator[None]:
    """One thread and deterministic algorithms on the CPU, so that a seed gives the same bytes; restored afterwards.

    OpenCV is held to one thread as well. On a GPU the fast kernels stay: repeats agree to rounding, not to the byte.
    """
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    if device == "cpu":
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        cv2.setNumThreads(cv_threads)


class Trainer:
    """A model with its optimiser and its loss. Adam's moments are kept as long as the object lives.

    loss: called as ``keypoint_loss`` is; a mean over the labelled joints of the films it gets. proximal_mu: mu of
    FedProx, the pull of every step towards the weights as they are now (Li et al., MLSys 2020, equation 2).
    """

    def __init__(
        self, model: nn.Module, profile: Profile, loss: Loss = keypoint_loss, proximal_mu: float = 0.0
    ) -> None:
        self.profile, self.loss, self.proximal_mu = profile, loss, proximal_mu
        self.model = model.to(profile.device)
        self.start = [p.detach().clone() for p in self.model.parameters()] if proximal_mu else []
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=profile.learning_rate)
        # PyTorch starts at 65536 and halves on overflow, which skips steps: a short local epoch could lose all of them
        self.scaler = torch.amp.GradScaler(profile.device, LOSS_SCALE, enabled=profile.precision == "fp16")

    def step(self, images: Tensor, keypoints: Tensor, learning_rate: float, wing_weight: float) -> float:
        """One optimiser step on films (B, 1, S, S) and keypoints (B, K, 3); returns the mean loss.

        A batch whose scaled gradients overflow fp16 is repeated at half the scale, not lost.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        while True:
            loss = self.gradient(images, keypoints, wing_weight)
            self.scaler.step(self.optimiser)
            scale = self.scaler.get_scale()
            self.scaler.update()
            if self.scaler.get_scale() >= scale or scale < 1:  # below 1 the weights, not the scale, are at fault
                return loss

    def gradient(self, images: Tensor, keypoints: Tensor, wing_weight: float) -> float:
        """Leave the (scaled) gradient of the batch's mean loss in the parameters; returns that loss.

        With ``profile.micro_batch`` the batch goes through the network in passes. The mean is over labelled joints, so
        a pass weighs as much as it has of them. GroupNorm looks at each film alone, BatchNorm at the films of a pass.
        FedProx's pull is in the gradient, not in the loss that is returned.
        """
        profile, losses = self.profile, []
        labels = _labels(keypoints)
        films = profile.micro_batch or len(images)
        self.optimiser.zero_grad(set_to_none=True)
        for some, points in zip(images.split(films), keypoints.split(films), strict=True):
            share = _labels(points) / max(labels, 1)
            some, points = some.to(profile.device), points.to(profile.device)
            with autocast(profile):
                logits = self.model(some)
            loss = self.loss(logits, points, some.shape[-1], profile.sigma_px, wing_weight) * share
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        self._pull_towards_start()
        return float(sum(losses))

    def _pull_towards_start(self) -> None:
        """Add mu (w - w_start), the gradient of mu / 2 ||w - w_start||^2, to the gradient: once a step, not a pass."""
        if not self.start:
            return
        mu = self.proximal_mu * self.scaler.get_scale()  # the loss's gradients are scaled too
        for parameter, start in zip(self.model.parameters(), self.start, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=mu)


def _labels(keypoints: Tensor) -> int:
    return int((keypoints[..., 2] > 0).sum())


def autocast(profile: Profile) -> contextlib.AbstractContextManager:
    """Mixed precision where the profile asks for it; losses and decoding stay in float32."""
    if profile.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(profile.device, dtype=HALF[profile.precision])


@dataclass
class Position:
    """Where the training of a round stands: with the trainer's state, all that the next step depends on.

    words: seed words of whoever trains, the round apart; losses: mean loss of each finished pass; order (n,): the films
    as this pass shows them, None before it starts; step_losses: one per optimiser step of this pass.
    """

    round: int
    words: list[int]
    losses: list[float] = field(default_factory=list)
    order: np.ndarray | None = None
    step_losses: list[float] = field(default_factory=list)
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([*self.words, self.round])


def steps(trainer: Trainer, films: FilmSet, at: Position, who: str) -> Iterator[float]:
    """Train the rest of a round: yields the loss after each optimiser step, and ``at`` moves along.

    The first epoch is cross-entropy alone, later ones add Wing. The batches of a pass are near-equal. Raises UserError
    when memory does not suffice, or, naming ``who`` trains, when training diverged.
    """
    profile = trainer.profile
    rate = schedule.learning_rate(profile, at.round)
    wing_weight = profile.wing_weight if at.round * profile.local_epochs >= 1 else 0.0
    while len(at.losses) < schedule.passes(profile):
        if at.order is None:
            at.order = _films_of_pass(at, len(films), profile)
        batches = np.array_split(at.order, -(-len(at.order) // profile.batch))
        for index in batches[len(at.step_losses) :]:
            batch = augment(films, index, at.rng, profile)
            loss = _step_or_explain(trainer, batch, rate, wing_weight)
            if not math.isfinite(loss):  # in half precision the scaler would skip every further step in silence
                raise diverged(who, at.round, "its loss is not finite")
            at.step_losses.append(loss)
            yield loss
        at.losses.append(float(np.average(at.step_losses, weights=[len(index) for index in batches])))
        at.order, at.step_losses = None, []
    if not all(bool(p.isfinite().all()) for p in trainer.model.parameters()):
        raise diverged(who, at.round, "the model holds NaN or infinity")


def diverged(who: str, round_index: int, how: str) -> UserError:
    """The error for a training that no longer leads anywhere; not raised here."""
    problem = f"training diverged in round {round_index}: {how}"
    return UserError(who, problem, "Lower the learning rate of the profile, and look at the films")


def _films_of_pass(at: Position, films: int, profile: Profile) -> np.ndarray:
    """Which of ``films`` films the pass shows, in order: all, or this round's part of an epoch's permutation."""
    parts = schedule.parts_of_epoch(films, profile)
    if parts == 1:
        return at.rng.permutation(films)
    epoch, part = divmod(at.round, parts)
    order = np.random.default_rng([*at.words, epoch, EPOCH]).permutation(films)  # the same in all rounds of an epoch
    return np.array_split(order, parts)[part]


def _step_or_explain(trainer: Trainer, batch: tuple[Tensor, Tensor], rate: float, wing_weight: float) -> float:
    try:
        return trainer.step(*batch, rate, wing_weight)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        # explained outside of this block: the error's frames keep the activations in memory until it is left
    raise out_of_memory(trainer.profile, batch[0].shape[-1])


def train_round(
    trainer: Trainer, films: FilmSet, round_index: int, seed_words: list[int], who: str = "training"
) -> list[float]:
    """The local epochs of one round, or its part of one; returns the losses.

    ``seed_words`` (for example [seed, hospital]) and the round fix order and augmentation. Raises UserError as
    ``steps`` does.
    """
    at = Position(round_index, seed_words)
    with reproducible(trainer.profile.device):
        for _ in steps(trainer, films, at, who):
            pass
    return at.losses


def predict(model: nn.Module, images: np.ndarray, profile: Profile) -> np.ndarray:
    """(N, K, 3) float32 for films (N, S, S) uint8: x and y in array pixels, and the confidence in [0, 1]."""
    model = model.to(profile.device).eval()
    found, films = [], profile.micro_batch or profile.batch
    with torch.inference_mode(), reproducible(profile.device):
        for start in range(0, len(images), films):
            batch = as_batch(images[start : start + films, None].astype(np.float32) / 255)
            with autocast(profile):
                logits = model(batch.to(profile.device))
            stride = images.shape[-1] / logits.shape[-1]
            xy = heatmap_to_array(soft_argmax(logits), stride)
            found.append(torch.cat([xy, confidence(logits)[..., None]], dim=-1).cpu().numpy())
    return np.concatenate(found)
