"""The one training loop: every arm, every engine and every hospital calls it.

Augmentation is OpenCV on uint8 films held in memory. A rotation about the centre of the array moves pixels and
keypoints by the same matrix; a joint that leaves the array loses its label.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from fedbone.config import Profile
from fedbone.errors import UserError
from fedbone.imaging.dataset import FilmSet
from fedbone.model.decoding import heatmap_to_array, soft_argmax
from fedbone.model.hrnet import HRNet
from fedbone.model.losses import keypoint_loss

LOSS_SCALE = 1024.0
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
    """A model with its optimiser. State beyond one round (Adam's moments) is kept as long as the object lives."""

    def __init__(self, model: HRNet, profile: Profile) -> None:
        self.profile = profile
        self.model = model.to(profile.device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=profile.learning_rate)
        # PyTorch starts at 65536 and halves on overflow, which skips steps: a short local epoch could lose all of them
        self.scaler = torch.amp.GradScaler(profile.device, LOSS_SCALE, enabled=profile.precision == "fp16")

    def epoch(self, films: FilmSet, learning_rate: float, wing_weight: float, rng: np.random.Generator) -> float:
        """One pass over ``films`` in random order; returns the mean loss. Batches are near-equal: no film is lost."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        batches = np.array_split(rng.permutation(len(films)), -(-len(films) // self.profile.batch))
        with reproducible(self.profile.device):
            losses = [self._step(*augment(films, index, rng, self.profile), wing_weight) for index in batches]
        return float(np.average(losses, weights=[len(index) for index in batches]))

    def _step(self, images: Tensor, keypoints: Tensor, wing_weight: float) -> float:
        """One optimiser step; a batch whose scaled gradients overflow fp16 is repeated at half the scale, not lost."""
        profile = self.profile
        images, keypoints = images.to(profile.device), keypoints.to(profile.device)
        while True:
            with autocast(profile):
                logits = self.model(images)
            loss = keypoint_loss(logits, keypoints, images.shape[-1], profile.sigma_px, wing_weight)
            self.optimiser.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimiser)
            scale = self.scaler.get_scale()
            self.scaler.update()
            if self.scaler.get_scale() >= scale or scale < 1:  # below 1 the weights, not the scale, are at fault
                return float(loss.detach())


def autocast(profile: Profile) -> contextlib.AbstractContextManager:
    """Mixed precision where the profile asks for it; losses and decoding stay in float32."""
    if profile.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(profile.device, dtype=HALF[profile.precision])


def train_round(
    trainer: Trainer, films: FilmSet, round_index: int, seed_words: list[int], who: str = "training"
) -> list[float]:
    """The local epochs of one round; returns their losses. Round 0 is cross-entropy alone, later rounds add Wing.

    ``seed_words`` (for example [seed, hospital, round]) fix order and augmentation. Raises UserError, naming ``who``
    trains, when a parameter is no longer finite.
    """
    profile = trainer.profile
    rate = profile.learning_rate * profile.round_decay**round_index
    wing_weight = profile.wing_weight if round_index > 0 else 0.0
    rng = np.random.default_rng(seed_words)
    losses = [trainer.epoch(films, rate, wing_weight, rng) for _ in range(profile.local_epochs)]
    if not all(bool(p.isfinite().all()) for p in trainer.model.parameters()):
        problem = f"training diverged in round {round_index}: the model holds NaN or infinity"
        raise UserError(who, problem, "Lower the learning rate of the profile, and look at the films")
    return losses


def predict(model: HRNet, images: np.ndarray, profile: Profile) -> np.ndarray:
    """Keypoints (N, K, 2) float32 in array pixels for films (N, S, S) uint8."""
    model = model.to(profile.device).eval()
    found = []
    with torch.inference_mode(), reproducible(profile.device):
        for start in range(0, len(images), profile.batch):
            batch = as_batch(images[start : start + profile.batch, None].astype(np.float32) / 255)
            with autocast(profile):
                logits = model(batch.to(profile.device))
            stride = images.shape[-1] / logits.shape[-1]
            found.append(heatmap_to_array(soft_argmax(logits), stride).cpu().numpy())
    return np.concatenate(found)
