"""CPU time of training steps and augmentation: ``python tests/benchmarks/model.py`` (or -m, from the root).

One thread. The sides of a ratio are timed in turn, so that a busy machine slows both, and their medians compared.

- step_vs_timm: forward and backward of our HRNet with BatchNorm and three channels over timm's feature extractor of the
  same network; float32, channels_last. The larger of two: W18-small at 256 px, batch 2 (what the T4's film size costs
  on a CPU), and W32 at 128 px, batch 1 (the article's network at the CPU's film size). Both compute the finest branch
  alone; ours adds its 1x1 head.
- channels_last_vs_contiguous: a step of the cpu profile (W8n, 128 px, batch 8) in one layout over the other.
- bf16_vs_fp32_w32: W32 at 256 px, batch 1, bfloat16 over float32; null where the processor has no bfloat16 unit.
- augment_vs_torchvision: torchvision v2 with KeyPoints over ours: 512 px uint8 films, rotated, re-lit, made float.
- rotation_error_px: a disc's centre after a rotation against its rotated keypoint; the worst of many.
- share_of_peak: operations a second of the cpu profile's step over those of a float32 matrix product.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import tv_tensors
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only its own folder is there

from fedbone.config import PROFILES
from fedbone.imaging.dataset import FilmSet
from fedbone.model.hrnet import build
from fedbone.model.training import augment, reproducible, rotate
from tests.benchmarks.timing import Work, medians

AGAINST_TIMM = [("w18s", "hrnet_w18_small", 256, 2), ("w32", "hrnet_w32", 128, 1)]
JOINTS, LARGE_PX, PRODUCT = 17, 512, 1024
LAYOUTS = (torch.channels_last, torch.contiguous_format)
PROFILE = PROFILES["cpu"]


def step(model: nn.Module, films: Tensor, dtype: torch.dtype = torch.float32) -> Work:
    """Forward and backward, without loss and optimiser."""

    def work() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = model(films)
        out.float().square().mean().backward()

    return work


def noise(batch: int, side: int, channels: int = 1, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """Films (batch, channels, side, side); the layout holds for one channel too, where strides are ambiguous."""
    return torch.rand(batch, channels, side, side).clone(memory_format=layout)


class Finest(nn.Module):
    """timm's feature extractor, less the coarser outputs of its last exchange, which a keypoint network never reads."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = timm.create_model(name, features_only=True, feature_location="", out_indices=(1,), in_chans=3)
        last = self.network.stage4[-1]
        last.fuse_layers = last.fuse_layers[:1]

    def forward(self, films: Tensor) -> Tensor:
        return self.network(films)[0]


def step_vs_timm(repeats: int) -> float:
    """The largest of our times over timm's."""
    ratios = []
    for preset, name, side, batch in AGAINST_TIMM:
        ours = build(preset, JOINTS, in_channels=3, norm="batch")
        theirs = Finest(name).to(memory_format=torch.channels_last)
        films = noise(batch, side, channels=3)
        ours_s, theirs_s = medians(repeats, step(ours, films), step(theirs, films))
        print(f"{preset} at {side} px, batch {batch}, a step: {ours_s:.3f} CPU s, timm's {name} {theirs_s:.3f}")
        ratios.append(ours_s / theirs_s)
    return max(ratios)


def layouts(repeats: int) -> float:
    """The cpu profile's step, channels_last over contiguous."""
    works = []
    for layout in LAYOUTS:
        model = build(PROFILE.preset, JOINTS).to(memory_format=layout)
        works.append(step(model, noise(PROFILE.batch, PROFILE.size_px, layout=layout)))
    last, contiguous = medians(repeats, *works)
    print(f"cpu profile, a step: channels_last {last:.3f} CPU s, contiguous {contiguous:.3f}")
    return last / contiguous


def bf16_vs_fp32(repeats: int) -> float | None:
    """W32 at 256 px, batch 1, both channels_last; None without a bfloat16 unit, where autocast is only slower."""
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        return None
    model, films = build("w32", JOINTS), noise(1, 256)
    half, full = medians(repeats, step(model, films, torch.bfloat16), step(model, films))
    print(f"w32 at 256 px, batch 1, a step: bf16 {half:.2f} CPU s, fp32 {full:.2f}")
    return half / full


def augment_vs_torchvision(repeats: int) -> float:
    """torchvision's time over ours for one batch, from uint8 films to float32 in [0, 1]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (PROFILE.batch, LARGE_PX, LARGE_PX), np.uint8)
    keypoints = rng.uniform(0, LARGE_PX, (PROFILE.batch, JOINTS, 3)).astype(np.float32)
    films = FilmSet(images, keypoints, np.ones((len(images), 2), np.float32), tuple(map(str, range(len(images)))))
    rotation = v2.RandomRotation(PROFILE.rotation_deg, v2.InterpolationMode.BILINEAR)
    transform = v2.Compose([rotation, v2.ColorJitter(PROFILE.brightness), v2.ToDtype(torch.float32, scale=True)])
    pairs = [
        (
            tv_tensors.Image(torch.from_numpy(image[None])),
            tv_tensors.KeyPoints(torch.from_numpy(points[:, :2]), canvas_size=(LARGE_PX, LARGE_PX)),
        )
        for image, points in zip(images, keypoints, strict=True)
    ]
    theirs, ours = medians(
        repeats,
        lambda: [transform(image, points) for image, points in pairs],
        lambda: augment(films, np.arange(len(films)), rng, PROFILE),
    )
    ours_ms, theirs_ms = (seconds / len(films) * 1000 for seconds in (ours, theirs))
    print(f"augment a film of {LARGE_PX} px: {ours_ms:.2f} CPU ms, torchvision {theirs_ms:.2f}")
    return theirs / ours


def rotation_error_px(places: int) -> float:
    """Largest distance of a rotated disc's centroid from its rotated keypoint, over random places and angles."""
    rng, side, worst = np.random.default_rng(0), 128, 0.0
    grid = np.arange(side)
    for _ in range(places):
        x, y = rng.uniform(45, side - 46, 2)  # the disc, 36 px wide, stays on the film at any angle
        # soft edges of few pixels: a blob soft throughout would measure the rounding to 255 grey levels instead
        disc = np.clip((16 - np.hypot(grid - x, grid[:, None] - y)) / 4 + 0.5, 0, 1)
        film, keypoint = np.rint(255 * disc).astype(np.uint8), np.array([[x, y, 2.0]])
        turned, point = rotate(film, keypoint, rng.uniform(-180, 180))
        mass = turned.astype(np.float64)
        centroid = np.array([mass.sum(0) @ grid, mass.sum(1) @ grid]) / mass.sum()
        worst = max(worst, float(np.hypot(*(centroid - point[0, :2]))))
    print(f"rotation: a disc and its keypoint end at most {worst:.4f} px apart, over {places} places and angles")
    return worst


def share_of_peak(repeats: int) -> float:
    """The cpu profile's step against a matrix product, in operations a second of one thread."""
    work = step(build(PROFILE.preset, JOINTS), noise(PROFILE.batch, PROFILE.size_px))
    with FlopCounterMode(display=False) as counter:
        work()
    a, b = torch.rand(PRODUCT, PRODUCT), torch.rand(PRODUCT, PRODUCT)
    step_s, product_s = medians(repeats, work, lambda: a @ b)
    speed, peak = counter.get_total_flops() / step_s, 2 * PRODUCT**3 / product_s
    print(f"cpu profile: {speed / 1e9:.1f} GFLOP/s in a step, {peak / 1e9:.1f} GFLOP/s in a matrix product")
    return speed / peak


def main() -> None:
    """Measure, print what was found, then the results as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="of each side of a ratio (default 9)")
    parser.add_argument("--places", type=int, default=300, help="and angles of the rotation (default 300)")
    args = parser.parse_args()
    torch.manual_seed(0)
    with reproducible("cpu"):
        figures = {
            "step_vs_timm": step_vs_timm(args.repeats),
            "channels_last_vs_contiguous": layouts(args.repeats),
            "bf16_vs_fp32_w32": bf16_vs_fp32(args.repeats),
            "augment_vs_torchvision": augment_vs_torchvision(args.repeats),
            "rotation_error_px": rotation_error_px(args.places),
            "share_of_peak": share_of_peak(args.repeats),
        }
    print(json.dumps({name: value and round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
