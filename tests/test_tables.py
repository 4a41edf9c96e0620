"""The scripts behind notebooks/tables: their losses and decoders, and one row of each table measured again."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from fedbone.config import get_profile
from fedbone.model.decoding import array_to_heatmap, soft_argmax
from fedbone.model.losses import gaussian_targets
from notebooks.tables import make_losses
from notebooks.tables.table import FOLDER

SIZE_PX, SIGMA = 128, 1.5


def keypoints(*points: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor([points])


def heatmaps(points: torch.Tensor) -> torch.Tensor:
    """Gaussians of height 1 (B, K, 32, 32) around each keypoint."""
    target = gaussian_targets(array_to_heatmap(points[..., :2], 4), 32, 32, SIGMA)
    return target * 2 * math.pi * SIGMA**2


def peaked(points: torch.Tensor) -> torch.Tensor:
    """Logits whose softmax is such a Gaussian."""
    return heatmaps(points).clamp_min(1e-12).log()


@pytest.mark.parametrize("name", make_losses.LOSSES)
def test_every_loss_is_lower_at_the_joint_and_ignores_joints_without_a_label(name):
    loss, label = make_losses.LOSSES[name], keypoints((40.0, 60.0, 2.0), (90.0, 20.0, 0.0))
    output = heatmaps if name == "mean squared error" else peaked
    right, wrong = output(label), output(label + torch.tensor([8.0, 0.0, 0.0]))
    assert loss(right, label, SIZE_PX, SIGMA, 0.02) < loss(wrong, label, SIZE_PX, SIGMA, 0.02)
    other = right.clone()
    other[:, 1] = torch.randn(32, 32)
    assert loss(other, label, SIZE_PX, SIGMA, 0.02) == loss(right, label, SIZE_PX, SIGMA, 0.02)


def test_the_tutorials_wing_loss_rewards_a_larger_miss():
    label = keypoints((40.0, 60.0, 2.0))
    near, far = (peaked(label + torch.tensor([px, 0.0, 0.0])) for px in (4.5, 6.0))  # 9 and 12 in 256-equivalent pixels

    def value(loss, logits):
        return loss(logits, label, SIZE_PX, SIGMA, 0)

    assert value(make_losses.wing_tutorial, far) < value(make_losses.wing_tutorial, near)
    assert value(make_losses.wing_alone, far) > value(make_losses.wing_alone, near)


def test_squares_vanish_on_the_target_itself():
    label = keypoints((41.5, 61.5, 2.0))  # a heatmap pixel's centre
    assert make_losses.mean_squares(heatmaps(label), label, SIZE_PX, SIGMA, 0) < 1e-8


def test_the_second_decoder_reads_the_surroundings_of_the_peak_only():
    label = keypoints((40.0, 60.0, 2.0))
    logits = peaked(label)
    logits[0, 0, 2, 2] = -0.1  # a second bright spot far away draws the whole heatmap's mean to it
    xy = array_to_heatmap(label[0, 0, :2], 4)
    assert (make_losses.around_peak(logits)[0, 0] - xy).abs().max() < 0.15
    assert (soft_argmax(logits)[0, 0] - xy).abs().max() > 0.5
    assert (make_losses.around_highest(heatmaps(label))[0, 0] - xy).abs().max() < 0.2


@pytest.mark.slow
def test_a_row_of_the_losses_table_comes_out_again():
    """Other processors round differently, so the bar is the spread over the table's seeds."""
    with (FOLDER / "losses.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["loss"] == "mean squared error" and r["decoder"] == "whole"]
    again = make_losses.measure("mean squared error", 0, get_profile("cpu"))[0]
    old = [float(r["mre_px"]) for r in rows]
    assert again["mre_px"] == pytest.approx(old[0], rel=0.02, abs=2 * (max(old) - min(old)))
