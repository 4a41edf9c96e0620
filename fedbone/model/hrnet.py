"""HRNet: a network that keeps a high-resolution branch from the first layer to the last.

Sun et al., Deep High-Resolution Representation Learning for Human Pose Estimation, CVPR 2019 (figure 1, section 3).
GroupNorm (Wu and He, ECCV 2018) in place of BatchNorm: no running statistics, so the model is its parameters and
nothing else. With three input channels W32 has the published 28.5 M parameters. ``norm="batch"`` is the published
network; with the same weights its branches equal those of timm's hrnet_w32, hrnet_w18 and hrnet_w18_small to the bit.

Shape letters: B films, C channels of the finest branch, H x W a quarter of the input side, K joints.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedbone.config import Profile
from fedbone.errors import UserError
from fedbone.model.layers import NORMS, Enlarge, group_norm, statistics_held, use_batch_norm
from fedbone.vectors import differences, load_checkpoint, save_checkpoint, state_arrays


@dataclass(frozen=True, slots=True)
class HRNetConfig:
    """Sizes of one HRNet. ``width`` is C: branch b has C * 2**b channels at 1 / 2**b of the resolution."""

    width: int = 32
    modules: tuple[int, int, int] = (1, 4, 3)  # exchange modules in stages 2, 3, 4
    blocks: int = 4  # basic blocks of each branch between two exchanges
    stem: int = 64
    layer1_planes: int = 64
    layer1_blocks: int = 4
    layer1_bottleneck: bool = True
    joints: int = 17
    in_channels: int = 1  # a radiograph has one; 3 gives the published parameter count
    norm: str = "group"  # group | batch
    outputs: int = 1  # branches that the last exchange builds, finest first: the head reads one


PRESETS = {
    "w32": HRNetConfig(),
    "w18": HRNetConfig(18),
    # timm's hrnet_w18_small, whose width is 16 in spite of its name
    "w18s": HRNetConfig(16, (1, 1, 1), 2, layer1_planes=32, layer1_blocks=1),
    # 0.30 M parameters: one exchange per stage is enough at 128 px, and one film costs about 10 ms on one core
    "w8n": HRNetConfig(8, (1, 1, 1), 2, stem=16, layer1_planes=16, layer1_blocks=1, layer1_bottleneck=False),
}


def conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1, *, relu: bool = False) -> list[nn.Module]:
    """Convolution without bias, norm, and ReLU where asked for."""
    layers = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), group_norm(c_out)]
    return [*layers, nn.ReLU(inplace=True)] if relu else layers


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the planes (bottleneck)."""

    def __init__(self, c_in: int, planes: int, *, bottleneck: bool = False) -> None:
        super().__init__()
        c_out = planes * 4 if bottleneck else planes
        widths = (
            [(c_in, planes, 1), (planes, planes, 3), (planes, c_out, 1)]
            if bottleneck
            else [(c_in, planes, 3), (planes, planes, 3)]
        )
        self.path = nn.Sequential(
            *[layer for i, (a, b, k) in enumerate(widths) for layer in conv_norm(a, b, k, relu=i < len(widths) - 1)]
        )
        self.shortcut = nn.Identity() if c_in == c_out else nn.Sequential(*conv_norm(c_in, c_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.path(x) + self.shortcut(x))


def layer(c_in: int, planes: int, blocks: int, *, bottleneck: bool = False) -> nn.Sequential:
    """``blocks`` residual blocks; only the first changes the number of channels."""
    c_out = planes * 4 if bottleneck else planes
    rest = [Block(c_out, planes, bottleneck=bottleneck) for _ in range(blocks - 1)]
    return nn.Sequential(Block(c_in, planes, bottleneck=bottleneck), *rest)


def resample(channels: list[int], source: int, target: int) -> nn.Module:
    """The path from branch ``source`` to branch ``target`` (0 is the finest) of an exchange."""
    c_in, c_out = channels[source], channels[target]
    if source == target:
        return nn.Identity()
    if source > target:  # coarse to fine: match channels, then repeat pixels
        return nn.Sequential(*conv_norm(c_in, c_out, 1), Enlarge(scale_factor=2 ** (source - target)))
    steps = target - source  # fine to coarse: halve with strided convolutions
    last = conv_norm(c_in, c_out, 3, 2)
    return nn.Sequential(*[m for _ in range(steps - 1) for m in conv_norm(c_in, c_in, 3, 2, relu=True)], *last)


class Exchange(nn.Module):
    """Parallel branches, then every branch receives the sum of all, resampled to its own resolution (figure 3)."""

    def __init__(self, channels: list[int], blocks: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([layer(c, c, blocks) for c in channels])
        sources = range(len(channels))
        self.fuse = nn.ModuleList([nn.ModuleList([resample(channels, j, i) for j in sources]) for i in range(outputs)])

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        ys = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        # from fine to coarse, one after the other: another order of the sum rounds differently
        return [
            torch.relu(functools.reduce(operator.add, (path(y) for path, y in zip(row, ys, strict=True))))
            for row in self.fuse
        ]


class HRNet(nn.Module):
    """Film (B, in_channels, 4H, 4W) float32 in [0, 1] to heatmap logits (B, K, H, W).

    ``checkpointing`` may be switched at any time: it changes memory and time, neither outputs nor gradients.
    """

    def __init__(self, config: HRNetConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.config, self.checkpointing = config, checkpointing
        stem = config.stem
        self.stem = nn.Sequential(
            *conv_norm(config.in_channels, stem, 3, 2, relu=True), *conv_norm(stem, stem, 3, 2, relu=True)
        )
        bottleneck = config.layer1_bottleneck
        self.layer1 = layer(stem, config.layer1_planes, config.layer1_blocks, bottleneck=bottleneck)
        previous = [config.layer1_planes * (4 if bottleneck else 1)]
        self.transitions, self.stages = nn.ModuleList(), nn.ModuleList()
        for branches, modules in zip((2, 3, 4), config.modules, strict=True):
            channels = [config.width * 2**b for b in range(branches)]
            self.transitions.append(transition(previous, channels))
            outputs = [branches] * (modules - 1) + [config.outputs if branches == 4 else branches]
            self.stages.append(nn.ModuleList([Exchange(channels, config.blocks, n) for n in outputs]))
            previous = channels
        self.final_layer = nn.Conv2d(config.width, config.joints, 1)
        if config.norm == "batch":
            use_batch_norm(self)

    def forward(self, film: Tensor) -> Tensor:
        return self.final_layer(self.stage_outputs(film)[-1][0])  # (B, K, H, W)

    def stage_outputs(self, film: Tensor) -> list[list[Tensor]]:
        """What every branch holds after stages 1 to 4: ``[stage][branch]``, (B, C * 2**b, H / 2**b, W / 2**b) for b.

        Stage 1 is the one branch of layer1, with channels of its own. Stage 4 has ``config.outputs`` branches.
        """
        x = self._run(self.stem, film)
        for block in self.layer1:
            x = self._run(block, x)
        found = [[x]]
        for widen, exchanges in zip(self.transitions, self.stages, strict=True):
            before = found[-1]
            xs = [path(before[min(i, len(before) - 1)]) for i, path in enumerate(widen)]
            for exchange in exchanges:
                xs = self._run(exchange, xs)
            found.append(xs)
        return found

    def units(self) -> list[nn.Module]:
        """The parts that checkpointing computes again, each as a whole."""
        return [self.stem, *self.layer1, *(exchange for exchanges in self.stages for exchange in exchanges)]

    def _run(self, unit: nn.Module, x: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """``unit(x)``; with checkpointing only ``x`` is kept for the way back (Chen et al., arXiv 1604.06174)."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return unit(x)
        many = isinstance(x, list)  # checkpoint keeps tensors, but not lists of them, where autograd sees them
        return checkpoint(
            (lambda *xs: unit(list(xs))) if many else unit,
            *(x if many else [x]),
            use_reentrant=False,
            preserve_rng_state=False,  # nothing here is drawn at random
            context_fn=lambda: (contextlib.nullcontext(), statistics_held(unit)),
        )


def transition(previous: list[int], channels: list[int]) -> nn.ModuleList:
    """Carry the branches of one stage into the next and open one new, coarser branch from the coarsest."""
    paths: list[nn.Module] = []
    for i, c in enumerate(channels):
        if i >= len(previous):
            paths.append(nn.Sequential(*conv_norm(previous[-1], c, 3, 2, relu=True)))
        elif previous[i] != c:
            paths.append(nn.Sequential(*conv_norm(previous[i], c, 3, relu=True)))
        else:
            paths.append(nn.Identity())
    return nn.ModuleList(paths)


def build(
    preset: str,
    joints: int,
    seed: int = 0,
    *,
    in_channels: int = 1,
    norm: str = "group",
    checkpointing: bool = False,
) -> HRNet:
    """A new model: He initialisation (fan out), head near zero, the same numbers for the same seed on any machine.

    Raises UserError for an unknown preset or norm. The caller's random state is left as it was.
    """
    if preset not in PRESETS:
        raise UserError("preset", f"unknown HRNet preset {preset!r}", f"Use one of {', '.join(PRESETS)}")
    if norm not in NORMS:
        raise UserError("norm", f"unknown normalisation {norm!r}", f"Use one of {', '.join(NORMS)}")
    config = replace(PRESETS[preset], joints=joints, in_channels=in_channels, norm=norm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HRNet(config, checkpointing=checkpointing)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(model.final_layer.weight, std=0.001)
        nn.init.zeros_(model.final_layer.bias)
    return model.to(memory_format=torch.channels_last)


def build_for(profile: Profile, joints: int, seed: int = 0) -> HRNet:
    """``build`` with the preset, the norm and the checkpointing of ``profile``."""
    return build(profile.preset, joints, seed, norm=profile.norm, checkpointing=profile.checkpointing)


def save_model(path: Path, model: HRNet, *, private: bool = False, **metadata: object) -> Path:
    """One safetensors file: weights, BatchNorm's statistics, the configuration and ``metadata`` (JSON values).

    private: for this account only, see ``write_atomic``.
    """
    return save_checkpoint(path, state_arrays(model), {"config": asdict(model.config), **metadata}, private=private)


def load_model(path: Path) -> tuple[HRNet, dict]:
    """(model in evaluation mode, metadata). Raises UserError when the file is not a checkpoint of this architecture."""
    tensors, metadata = load_checkpoint(path)
    remedy = "Give a file written by save_model, or use the fedbone version that wrote it"
    try:
        described = metadata["config"]
        model = HRNet(HRNetConfig(**{**described, "modules": tuple(described["modules"])}))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(path, f"its header describes no HRNet ({type(error).__name__}: {error})", remedy) from error
    if wrong := differences(state_arrays(model), tensors):
        raise UserError(path, f"its tensors do not fit the HRNet it describes ({wrong})", remedy)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, strict=True)
    return model.to(memory_format=torch.channels_last).eval(), metadata
