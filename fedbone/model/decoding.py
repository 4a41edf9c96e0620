"""From heatmap logits to coordinates.

Soft-argmax: Sun et al., Integral Human Pose Regression, ECCV 2018, equation 2. All sums in float32, also under AMP.
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_argmax(logits: Tensor) -> Tensor:
    """Mean position (B, K, 2) = x, y in heatmap pixels of the softmax of ``logits`` (B, K, H, W)."""
    height, width = logits.shape[-2:]
    mass = logits.float().flatten(2).softmax(-1).view(logits.shape)
    x = (mass.sum(-2) * torch.arange(width, device=logits.device)).sum(-1)
    y = (mass.sum(-1) * torch.arange(height, device=logits.device)).sum(-1)
    return torch.stack([x, y], dim=-1)


def confidence(logits: Tensor) -> Tensor:
    """(B, K): share of the softmax mass in the 3 x 3 heatmap pixels around its peak; 1: certain, 9 / (H W): lost."""
    mass = logits.float().flatten(2).softmax(-1).view(logits.shape)
    return torch.nn.functional.avg_pool2d(mass, 3, 1, 1).flatten(2).amax(-1) * 9


def heatmap_to_array(xy: Tensor, stride: float) -> Tensor:
    """Heatmap pixels to pixels of the input array: the centre of heatmap pixel 0 covers input pixels 0..stride-1."""
    return (xy + 0.5) * stride - 0.5


def array_to_heatmap(xy: Tensor, stride: float) -> Tensor:
    """The inverse of ``heatmap_to_array``."""
    return (xy + 0.5) / stride - 0.5
