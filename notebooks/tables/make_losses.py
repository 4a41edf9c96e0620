"""Measures notebooks/tables/losses.csv: what each loss of notebook 03 is worth, over several seeds.

    .venv/bin/python -m notebooks.tables.make_losses [SEED ...]      (about 9 CPU minutes a seed)

All arms train the CPU profile's network on the pooled films of the workbook's three hospitals, with the same order of
films, schedule and number of film presentations; only the loss differs. Every model is read in two ways, because a
loss and a decoder belong together: the soft-argmax of the whole heatmap, and of the 5 x 5 pixels around its peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from fedbone.config import Profile, get_profile
from fedbone.federation.evaluation import worst_joint
from fedbone.imaging.dataset import FilmSet, pool
from fedbone.imaging.hospitals import GENERATOR_VERSION, training_hospitals
from fedbone.model.decoding import array_to_heatmap, heatmap_to_array, soft_argmax
from fedbone.model.hrnet import build
from fedbone.model.losses import WING_EPSILON, WING_REFERENCE_PX, WING_WIDTH, gaussian_targets, keypoint_loss, wing
from fedbone.model.metrics import radial_errors, summarise
from fedbone.model.training import Trainer, as_batch, reproducible, train_round
from notebooks.tables.table import ONE_PLACE, processor, save, seeds

WINDOW = 5  # heatmap pixels around the peak that the second decoder reads
COLUMNS = "loss seed decoder pck_0_05 pck_0_02 mre_px worst_joint_pck_0_05 processor torch generator".split()
Loss = Callable[[Tensor, Tensor, int, float, float], Tensor]


def over_labelled(per_joint: Tensor, keypoints: Tensor) -> Tensor:
    """Mean of ``per_joint`` (B, K) over joints with a label."""
    labelled = (keypoints[..., 2] > 0).float()
    return (per_joint * labelled).sum() / labelled.sum().clamp_min(1)


def distance(logits: Tensor, keypoints: Tensor, size_px: int) -> Tensor:
    """(B, K, 2) absolute error of the soft-argmax in 256-equivalent pixels."""
    stride = size_px / logits.shape[-1]
    target = array_to_heatmap(keypoints[..., :2], stride)
    return (soft_argmax(logits) - target).abs() * stride * (WING_REFERENCE_PX / size_px)


def cross_entropy(logits: Tensor, keypoints: Tensor, size_px: int, sigma: float, wing_weight: float) -> Tensor:
    """The module's loss without its refiner."""
    return keypoint_loss(logits, keypoints, size_px, sigma, 0.0)


def with_l1(logits: Tensor, keypoints: Tensor, size_px: int, sigma: float, wing_weight: float) -> Tensor:
    """The module's loss with the plain distance in Wing's place, as steep as Wing is where it starts (w / epsilon)."""
    steep = WING_WIDTH / WING_EPSILON
    refined = over_labelled(distance(logits, keypoints, size_px).sum(-1), keypoints)
    return cross_entropy(logits, keypoints, size_px, sigma, 0.0) + wing_weight * steep * refined


def wing_alone(logits: Tensor, keypoints: Tensor, size_px: int, sigma: float, wing_weight: float) -> Tensor:
    """Wing on the decoded position, from the first step on."""
    return over_labelled(wing(distance(logits, keypoints, size_px)).sum(-1), keypoints)


def wing_tutorial(logits: Tensor, keypoints: Tensor, size_px: int, sigma: float, wing_weight: float) -> Tensor:
    """The tutorial's formula: no constant, and slope 1 / epsilon beyond w (E02)."""
    d = distance(logits, keypoints, size_px)
    value = torch.where(d < WING_WIDTH, WING_WIDTH * torch.log1p(d / WING_EPSILON), d / WING_EPSILON)
    return over_labelled(value.sum(-1), keypoints)


def mean_squares(logits: Tensor, keypoints: Tensor, size_px: int, sigma: float, wing_weight: float) -> Tensor:
    """Squared difference from a Gaussian of height 1, the loss of the HRNet paper (section 3)."""
    height, width = logits.shape[-2:]
    target = gaussian_targets(array_to_heatmap(keypoints[..., :2], size_px / width), height, width, sigma)
    target = target * (2 * math.pi * sigma**2)  # from volume 1 to height 1
    return over_labelled(((logits.float() - target) ** 2).mean((-1, -2)), keypoints)


LOSSES: dict[str, Loss] = {
    "cross-entropy, then + Wing": keypoint_loss,
    "cross-entropy, then + L1": with_l1,
    "cross-entropy": cross_entropy,
    "Wing alone": wing_alone,
    "Wing of the tutorial": wing_tutorial,
    "mean squared error": mean_squares,
}


def around_peak(logits: Tensor) -> Tensor:
    """(B, K, 2) x, y: mean position under the softmax of the WINDOW x WINDOW heatmap pixels around the peak."""
    height, width = logits.shape[-2:]
    peak = logits.flatten(2).argmax(-1)
    rows = (torch.arange(height).view(-1, 1) - (peak // width)[..., None, None]).abs() <= WINDOW // 2
    cols = (torch.arange(width).view(1, -1) - (peak % width)[..., None, None]).abs() <= WINDOW // 2
    return soft_argmax(logits.float().masked_fill(~(rows & cols), -math.inf))


def around_highest(values: Tensor) -> Tensor:
    """The same for heatmaps of height 1: their positive values are the weights."""
    return around_peak(values.clamp_min(1e-9).log())


def decoders(loss: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """The two ways of reading heatmaps trained with ``loss``."""
    return {"whole": soft_argmax, "around the peak": around_highest if loss == "mean squared error" else around_peak}


def locate(model: torch.nn.Module, films: FilmSet, decode: Callable[[Tensor], Tensor]) -> np.ndarray:
    """(N, K, 2) array pixels."""
    found = []
    with torch.inference_mode(), reproducible("cpu"):
        for part in np.array_split(np.arange(len(films)), -(-len(films) // 32)):
            logits = model.eval()(as_batch(films.images[part, None].astype(np.float32) / 255))
            found.append(heatmap_to_array(decode(logits), films.images.shape[-1] / logits.shape[-1]).numpy())
    return np.concatenate(found)


def measure(name: str, seed: int, profile: Profile) -> list[dict]:
    """One arm: a row for each decoder."""
    hospitals = training_hospitals(profile.size_px)
    train, test = pool([h.train for h in hospitals]), pool([h.test for h in hospitals])
    joints = hospitals[0].joints
    trainer = Trainer(build(profile.preset, len(joints), seed), profile, LOSSES[name])
    for index in range(profile.rounds):
        train_round(trainer, train, index, [seed])
    rows = []
    for decoder, decode in decoders(name).items():
        found = summarise(radial_errors(locate(trainer.model, test, decode), test), joints)
        _, worst = worst_joint(found)
        figures = [round(v, 4) for v in (found["pck_0_05"], found["pck_0_02"], found["mre_px"], worst)]
        values = [name, seed, decoder, *figures, processor(), torch.__version__]
        rows.append(dict(zip(COLUMNS, [*values, GENERATOR_VERSION], strict=True)))
    return rows


def main() -> None:
    """All losses and seeds, as many at a time as there are processors."""
    profile = get_profile("cpu", **ONE_PLACE)
    training_hospitals(profile.size_px)  # drawn once, before the workers ask for them
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as executor:
        runs = [executor.submit(measure, name, seed, profile) for seed in seeds() for name in LOSSES]
        save("losses.csv", COLUMNS, [row for run in runs for row in run.result()])


if __name__ == "__main__":
    main()
