"""How many films of a training batch fit into a GPU's memory, planned without a GPU.

Almost all memory goes to the activations that autograd keeps for the backward pass. They are counted on the CPU with
saved-tensor hooks (PyTorch, torch.autograd.graph) on small films, and grow with the films' area.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor, nn

from fedbone.errors import UserError
from fedbone.model.hrnet import HRNet, build

PROBE_PX = 128  # a multiple of 32, so that every branch has an exact fraction of the side
JOINTS = 17
# float32 tensors of the size of the heatmaps that the loss holds at its fullest; measured on an H100: the peak of W32
# and W18 at 512 px, batch 16, is 8.1 to 9.1 MB a film above what the network keeps, and one such tensor has 1.1 MB
LOSS_HEATMAPS = 8
PRECISIONS = ("fp32", "fp16", "bf16")


def saved_bytes(forward: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of ``forward()``: each storage once, those of ``known`` not."""
    elsewhere = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, torch.UntypedStorage] = {}  # holds the storages, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in elsewhere)


def activation_bytes(preset: str, size_px: int, precision: str, *, checkpointing: bool = False) -> int:
    """Bytes of activations that one film of ``size_px`` adds to the fullest moment of a training step.

    fp16 is counted as bf16, which the CPU computes too: both take two bytes. Raises UserError for an unknown name.
    """
    network = activation_bytes_at(preset, PROBE_PX, precision, checkpointing=checkpointing)
    loss = LOSS_HEATMAPS * JOINTS * (PROBE_PX // 4) ** 2 * torch.float32.itemsize
    return round((network + loss) * (size_px / PROBE_PX) ** 2)


@cache
def activation_bytes_at(preset: str, size_px: int, precision: str, *, checkpointing: bool = False) -> int:
    """The network's share of it, counted at just this size: what a second film in the batch adds to the first.

    The difference leaves out what does not grow with the batch, such as autocast's copies of the weights.
    """
    if precision not in PRECISIONS:
        raise UserError("precision", f"unknown precision {precision!r}", f"Use one of {', '.join(PRECISIONS)}")
    model = build(preset, JOINTS, checkpointing=checkpointing)
    (kept_one, units_one), (kept_two, units_two) = (_probe(model, films, size_px, precision) for films in (1, 2))
    again = [two - one for one, two in zip(units_one, units_two, strict=True)]
    return kept_two - kept_one + max(again, default=0)  # on the way back one unit at a time is there in full


def _probe(model: HRNet, films: int, size_px: int, precision: str) -> tuple[int, list[int]]:
    """(bytes saved by a forward pass, bytes that each unit saves when checkpointing computes it again)."""
    units: list[int] = []

    def measure(unit: nn.Module, inputs: tuple) -> None:
        given = inputs[0] if isinstance(inputs[0], list) else inputs
        units.append(saved_bytes(lambda: unit.forward(*inputs), [*model.parameters(), *given]))

    batch = torch.zeros(films, 1, size_px, size_px).contiguous(memory_format=torch.channels_last)
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32")
    with contextlib.ExitStack() as stack, half:
        for unit in model.units() if model.checkpointing else ():
            stack.callback(unit.register_forward_pre_hook(measure).remove)
        return saved_bytes(lambda: model(batch), model.parameters()), units


@cache
def fixed_bytes(preset: str, precision: str = "fp32") -> int:
    """Bytes that training needs whatever the batch: float32 weights, gradients and Adam's two moments.

    With fp16 or bf16 also autocast's copy of the weights. Raises UserError for an unknown preset.
    """
    parameters = sum(p.numel() for p in build(preset, JOINTS).parameters())
    return parameters * (4 * 4 + (0 if precision == "fp32" else 2))


def largest_batch(preset: str, size_px: int, precision: str, memory_gb: float, *, checkpointing: bool = False) -> int:
    """The most films a batch can have in ``memory_gb`` (1e9 bytes) of GPU memory; 0 when not even one fits."""
    film = activation_bytes(preset, size_px, precision, checkpointing=checkpointing)
    return max(0, int((memory_gb * 1e9 - fixed_bytes(preset, precision)) // film))
