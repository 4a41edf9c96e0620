"""ResNet-50 with a keypoint head: the baseline that HRNet is measured against.

Xiao, Wu and Wei, Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018, section 2: three transposed
convolutions (256 channels, kernel 4, stride 2) bring the last features back from 1/32 to 1/4 of the input side. With
BatchNorm, three input channels and 17 joints it has the published 34.0 M parameters.

Shape letters: B films, H x W the input, K joints.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from fedbone.errors import UserError
from fedbone.model.layers import NORMS, group_norm, use_batch_norm

FEATURES, HEAD_CHANNELS, UPSAMPLINGS = 2048, 256, 3


class PoseResNet(nn.Module):
    """Film (B, in_channels, H, W) float32 in [0, 1] to heatmap logits (B, K, H/4, W/4); H and W multiples of 32."""

    def __init__(self, joints: int, in_channels: int) -> None:
        super().__init__()
        network = resnet50(weights=None, norm_layer=group_norm)
        if in_channels != 3:
            network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        # torchvision's names without the classifier, so that its state dict fits
        self.backbone = nn.Sequential(OrderedDict(list(network.named_children())[:-2]))
        sources = [FEATURES] + [HEAD_CHANNELS] * (UPSAMPLINGS - 1)
        self.upsample = nn.Sequential(*[layer for c_in in sources for layer in doubling(c_in)])
        self.final_layer = nn.Conv2d(HEAD_CHANNELS, joints, 1)

    def forward(self, film: Tensor) -> Tensor:
        features = self.backbone(film)  # (B, 2048, H/32, W/32)
        return self.final_layer(self.upsample(features))  # (B, K, H/4, W/4)


def doubling(c_in: int) -> list[nn.Module]:
    """A transposed convolution that doubles the side, norm and ReLU."""
    upward = nn.ConvTranspose2d(c_in, HEAD_CHANNELS, kernel_size=4, stride=2, padding=1, bias=False)
    return [upward, group_norm(HEAD_CHANNELS), nn.ReLU(inplace=True)]


def build_resnet50(joints: int, seed: int = 0, *, in_channels: int = 1, norm: str = "group") -> PoseResNet:
    """A new model: torchvision's initialisation of the body, the paper's of the head, the same numbers for a seed.

    norm: group, so that a vector of parameters is the whole model, or batch as published. Raises UserError for another.
    The caller's random state is left as it was.
    """
    if norm not in NORMS:
        raise UserError("norm", f"unknown normalisation {norm!r}", f"Use one of {', '.join(NORMS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PoseResNet(joints, in_channels)
        nn.init.kaiming_normal_(model.backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        for module in [*model.upsample.children(), model.final_layer]:
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, std=0.001)
        nn.init.zeros_(model.final_layer.bias)
    if norm == "batch":
        use_batch_norm(model)
    return model.to(memory_format=torch.channels_last)
