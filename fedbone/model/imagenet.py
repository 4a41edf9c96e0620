"""A warm start: timm's ImageNet weights in our HRNet, tensor by tensor.

The weights are those of Sun et al. (CVPR 2019) as the timm project publishes them. They expect BatchNorm; with
GroupNorm only the convolutions can be taken over. The first convolution saw three colours: its filters are summed, so
that a grey film gives what the film on three equal channels would.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedbone.errors import UserError
from fedbone.model.hrnet import PRESETS, HRNet, HRNetConfig
from fedbone.vectors import HEAD, differences

PUBLISHED = {"w32": "hrnet_w32.ms_in1k", "w18": "hrnet_w18.ms_aug_in1k", "w18s": "hrnet_w18_small.ms_in1k"}
FILE = "model.safetensors"
FIRST = "conv1.weight"  # the filters that look at colours
CLASSIFIER = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")  # what timm has above the branches
COUNTER = ".num_batches_tracked"  # BatchNorm reads it only without a momentum, and some files lack it


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Which tensors of the model were ``loaded`` and which stay ``new``; which of the file's are ``unused``."""

    source: Path
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    convolutions_only: bool

    def __str__(self) -> str:
        only = ", convolutions only (GroupNorm cannot take BatchNorm's statistics)" if self.convolutions_only else ""
        return f"{len(self.loaded)} tensors loaded{only}; {len(self.new)} new; {len(self.unused)} of the file unused"


def warm_start(model: HRNet, weights: Path | None = None) -> WarmStart:
    """Copy ImageNet weights into ``model``; its head stays as it is, and with GroupNorm its norms as well.

    weights: a .safetensors file, or a folder with model.safetensors (default: the local Hugging Face cache, else a
    download). Raises UserError when there are none, when the file is of another network or damaged, and when nothing
    is published for the model's preset; the model is then unchanged.
    """
    name = published_name(model.config)
    path = hub_file(name) if weights is None else given_file(Path(weights))
    tensors = read_trunk(path, model.config, name)
    state = model.state_dict()  # shares its memory with the model
    convolutions_only = model.config.norm == "group"
    shared = {ours: timm_name(ours) for ours in state if not ours.startswith(HEAD)}
    loaded = {
        ours: theirs
        for ours, theirs in shared.items()
        if theirs in tensors and not (convolutions_only and state[ours].ndim != 4)
    }
    with torch.no_grad():
        for ours, theirs in loaded.items():
            grey = theirs == FIRST and model.config.in_channels == 1
            state[ours].copy_(tensors[theirs].sum(1, keepdim=True) if grey else tensors[theirs])
    new = tuple(ours for ours in state if ours not in loaded)
    unused = tuple(theirs for theirs in tensors if theirs not in set(loaded.values()))
    return WarmStart(path, tuple(loaded), new, unused, convolutions_only)


def published_name(config: HRNetConfig) -> str:
    """The name of timm's ImageNet weights for this network. Raises UserError when there are none."""
    task = {"joints": config.joints, "in_channels": config.in_channels, "norm": config.norm, "outputs": config.outputs}
    for preset, name in PUBLISHED.items():
        if replace(PRESETS[preset], **task) == config and config.in_channels in (1, 3):
            return name
    remedy = f"Use one of {', '.join(PUBLISHED)} with one or three input channels, or train from scratch"
    raise UserError("ImageNet weights", f"none are published for an HRNet of width {config.width}", remedy)


def given_file(path: Path) -> Path:
    """The weights file that the user named. Raises UserError when it is not there or could run code."""
    path = path.expanduser()
    path = path / FILE if path.is_dir() else path
    if path.suffix != ".safetensors":
        problem = "only .safetensors files are read: a .pth or .bin file is a pickle, and opening one can run any code"
        raise UserError(path, problem, f"Take {FILE} of the same model from https://huggingface.co/timm")
    if not path.is_file():
        raise UserError(path, "there is no such file", f"Give the path of {FILE}, or none to download it")
    return path


def hub_file(name: str) -> Path:
    """The weights in the local Hugging Face cache, else downloaded into it. Raises UserError when neither works."""
    repository = f"timm/{name}"
    url = f"https://huggingface.co/{repository}/resolve/main/{FILE}"
    remedy = f"Download {url} on a machine with a connection, and give the file (train --start imagenet=FILE)"
    try:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.utils import logging as hub_logging
    except ImportError as error:
        problem = "huggingface_hub, which keeps and downloads weights, is not installed"
        raise UserError(repository, problem, f"{remedy}, or: pip install huggingface_hub") from error
    try:
        return Path(hf_hub_download(repository, FILE, local_files_only=True))
    except OSError:  # not in the cache
        pass
    hub_logging.set_verbosity_error()  # its retries would hide the one message that helps
    try:
        return Path(hf_hub_download(repository, FILE))
    except OSError as error:
        problem = f"neither in the cache {constants.HF_HUB_CACHE} nor to be downloaded ({type(error).__name__})"
        raise UserError(repository, problem, remedy) from error


def read_trunk(path: Path, config: HRNetConfig, name: str) -> dict[str, Tensor]:
    """Every tensor of ``path``. Raises UserError unless below the classifier it is exactly the network ``name``."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(path, f"not a readable safetensors file ({error})", "Download it again") from error
    with torch.device("meta"):  # names and shapes without memory
        published = HRNet(replace(config, in_channels=3, norm="batch", outputs=4)).state_dict()
    trunk = {n: tensor for n, tensor in tensors.items() if not n.startswith(CLASSIFIER) and not n.endswith(COUNTER)}
    expected = {timm_name(n): t for n, t in published.items() if not n.startswith(HEAD) and not n.endswith(COUNTER)}
    if wrong := differences(expected, trunk):
        raise UserError(path, f"these are not the weights of timm's {name} ({wrong})", f"Give {FILE} of timm/{name}")
    return tensors


def timm_name(ours: str) -> str:
    """The name in timm's HighResolutionNet of our tensor below the head: the same layers in other containers."""
    name = ours.replace("shortcut", "downsample")
    # conv, norm, ReLU in turn: 0 conv1, 1 bn1, 3 conv2, 4 bn2, 6 conv3, 7 bn3
    name = re.sub(r"\b(?:stem|path)\.(\d)", lambda m: f"{('conv', 'bn')[int(m[1]) % 3]}{int(m[1]) // 3 + 1}", name)
    name = re.sub(r"^stages\.(\d)", lambda m: f"stage{int(m[1]) + 2}", name)
    name = re.sub(r"^transitions\.(\d)\.(\d)", _timm_transition, name)
    return re.sub(r"\bfuse\.(\d)\.(\d)\.(\d)", _timm_fuse, name)


def _timm_transition(match: re.Match) -> str:
    """A branch that the stage opens sits in one more container."""
    stage, branch = int(match[1]), int(match[2])
    return f"transition{stage + 1}.{branch}" + (".0" if branch == stage + 1 else "")


def _timm_fuse(match: re.Match) -> str:
    """From fine to coarse, each halving step sits in a container of its own."""
    target, source, position = (int(group) for group in match.groups())
    place = f"{position // 3}.{position % 3}" if source < target else position
    return f"fuse_layers.{target}.{source}.{place}"
