"""Heatmap cross-entropy, and the Wing loss as its refiner.

Wing: Feng et al., Wing Loss for Robust Facial Landmark Localisation with CNNs, CVPR 2018, equation 5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedbone.model.decoding import array_to_heatmap, soft_argmax

WING_WIDTH = 10.0
WING_EPSILON = 2.0
WING_REFERENCE_PX = 256.0  # our unit: the authors chose w in pixels of small face pictures; errors are rescaled first


def wing(distance: Tensor, width: float = WING_WIDTH, epsilon: float = WING_EPSILON) -> Tensor:
    """Wing loss of |error| in pixels: w ln(1 + d / epsilon) below w, d - C above; C makes it continuous at d = w."""
    constant = width - width * math.log(1 + width / epsilon)
    return torch.where(distance < width, width * torch.log1p(distance / epsilon), distance - constant)


def gaussian_targets(xy: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """(B, K, H, W) Gaussians of spread ``sigma`` around ``xy`` (B, K, 2), all in heatmap pixels, each summing to 1."""
    x = torch.exp(-((torch.arange(width, device=xy.device) - xy[..., :1]) ** 2) / (2 * sigma**2))
    y = torch.exp(-((torch.arange(height, device=xy.device) - xy[..., 1:]) ** 2) / (2 * sigma**2))
    target = y[..., :, None] * x[..., None, :]
    return target / target.sum((-1, -2), keepdim=True).clamp_min(1e-9)


def keypoint_loss(logits: Tensor, keypoints: Tensor, size_px: int, sigma: float, wing_weight: float) -> Tensor:
    """Mean loss over labelled joints of ``logits`` (B, K, H, W) against ``keypoints`` (B, K, 3) in array pixels.

    Cross-entropy between the softmax of each heatmap and a Gaussian of ``sigma`` heatmap pixels, plus ``wing_weight``
    times the Wing loss of the soft-argmax, its error in 256-equivalent pixels. Visibility 0 contributes nothing; a
    batch without any label gives 0 with a zero gradient.
    """
    height, width = logits.shape[-2:]
    stride = size_px / width
    xy = array_to_heatmap(keypoints[..., :2], stride)
    labelled = (keypoints[..., 2] > 0).float()
    target = gaussian_targets(xy, height, width, sigma).flatten(2)
    per_joint = -(target * logits.float().flatten(2).log_softmax(-1)).sum(-1)
    if wing_weight:
        error = (soft_argmax(logits) - xy).abs() * stride * (WING_REFERENCE_PX / size_px)
        per_joint = per_joint + wing_weight * wing(error).sum(-1)
    return (per_joint * labelled).sum() / labelled.sum().clamp_min(1)
