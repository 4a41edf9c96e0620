"""A model is one flat float32 vector: everything a federation does happens to it.

Copies in both directions. Sharing memory between the vector and the parameters (as torch's ``vector_to_parameters``
does) would let training change the caller's vector, and every update would be exactly zero.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from fedbone.errors import UserError
from fedbone.files import write_atomic

HEAD = "final_layer"  # the module whose rows belong to one joint each
Array = np.ndarray | Tensor


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter's place in the vector. kind: body, norm, or head (row j belongs to joint j)."""

    name: str
    start: int
    shape: tuple[int, ...]
    kind: str

    @property
    def stop(self) -> int:
        return self.start + int(np.prod(self.shape))


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """Names, slices and kinds of the parameters of one architecture, in the order of ``model.named_parameters()``."""

    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        return self.slots[-1].stop

    def is_kind(self, kind: str) -> np.ndarray:
        """(size,) bool: which places of the vector belong to parameters of ``kind`` (body, norm or head)."""
        return np.repeat([slot.kind == kind for slot in self.slots], [slot.stop - slot.start for slot in self.slots])

    def row_factor(self, factor: np.ndarray) -> np.ndarray:
        """(size,) float64: ``factor[j]`` (K,) on the head row and bias of joint j, 1 everywhere else."""
        full = np.ones(self.size)
        for slot in self.slots:
            if slot.kind == "head":
                per_row = np.asarray(factor, dtype=np.float64).reshape(-1, *[1] * (len(slot.shape) - 1))
                full[slot.start : slot.stop] = np.broadcast_to(per_row, slot.shape).ravel()
        return full


def layout_of(model: nn.Module, *, local_norm: bool = False) -> VectorLayout:
    """The layout of ``model``. Raises ValueError when it holds running buffers, which a vector cannot carry.

    local_norm: BatchNorm's running statistics are allowed, because they stay where they were made (FedBN).
    """
    norms = {name for name, module in model.named_modules() if isinstance(module, (nn.GroupNorm, nn.BatchNorm2d))}
    staying = norms if local_norm else ()
    buffers = [name for name, _ in model.named_buffers() if name.rsplit(".", 1)[0] not in staying]
    if buffers:
        raise ValueError(f"the model keeps buffers outside its parameters ({buffers[0]}, ...): use GroupNorm")
    slots, start = [], 0
    for name, parameter in model.named_parameters():
        owner = name.rsplit(".", 1)[0]
        kind = "head" if owner == HEAD else "norm" if owner in norms else "body"
        slots.append(Slot(name, start, tuple(parameter.shape), kind))
        start = slots[-1].stop
    return VectorLayout(tuple(slots))


def to_vector(model: nn.Module) -> np.ndarray:
    """(size,) float32 copy of every parameter, whatever its memory format or device."""
    return np.concatenate([p.detach().cpu().float().contiguous().numpy().ravel() for p in model.parameters()])


def load_vector(model: nn.Module, vector: np.ndarray) -> None:
    """Copy ``vector`` (size,) into the parameters. Raises ValueError on a wrong length, type or value (NaN)."""
    parameters = list(model.parameters())
    expected = sum(p.numel() for p in parameters)
    if vector.shape != (expected,) or vector.dtype != np.float32:
        raise ValueError(f"the vector is {vector.dtype} {vector.shape}, the model needs float32 ({expected},)")
    if not np.isfinite(vector).all():
        raise ValueError("the vector holds NaN or infinity")
    start = 0
    with torch.no_grad():
        for p in parameters:
            piece = np.array(vector[start : start + p.numel()], dtype=np.float32)
            p.copy_(torch.from_numpy(piece).view(p.shape))
            start += p.numel()


def l2_norm(vector: np.ndarray) -> float:
    """The Euclidean length of ``vector`` (P,), summed in float64.

    By numpy's own sum: BLAS, behind ``numpy.linalg.norm``, adds in an order that depends on its threads.
    """
    return float(np.sqrt(np.square(vector, dtype=np.float64).sum()))


def sha256(vector: np.ndarray) -> str:
    """Hex digest of the vector's little-endian float32 bytes: the fingerprint that engines compare."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").tobytes()).hexdigest()


def state_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Named copies of everything a checkpoint needs: the parameters, and running statistics where a model has them."""
    return {name: tensor.detach().cpu().contiguous().numpy().copy() for name, tensor in model.state_dict().items()}


def differences(expected: Mapping[str, Array], found: Mapping[str, Array]) -> str:
    """What keeps the tensors ``found`` from filling ``expected``, in words; empty when names and shapes agree."""
    groups = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [n for n in expected if n in found and found[n].shape != expected[n].shape],
    }
    return ", ".join(f"{len(names)} {what}: {names[0]}" for what, names in groups.items() if names)


def save_checkpoint(path: Path, tensors: dict[str, np.ndarray], metadata: dict, *, private: bool = False) -> Path:
    """Write named tensors in safetensors form (no pickle), with ``metadata`` as JSON in its header.

    private: for this account only, see ``write_atomic``.
    """
    dense = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}  # safetensors reads raw memory
    return write_atomic(Path(path), save(dense, {"fedbone": json.dumps(metadata, sort_keys=True)}), private=private)


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """(named arrays, metadata) of a checkpoint. Raises UserError when it is missing, damaged or not ours."""
    remedy = "Give a .safetensors file written by fedbone, or run the chapter that writes it again"
    try:
        with safe_open(str(path), framework="np") as file:
            header = (file.metadata() or {}).get("fedbone")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(path, f"not a readable checkpoint ({error})", remedy) from error
    if header is None:
        raise UserError(path, "it carries no fedbone metadata", remedy)
    try:
        return tensors, json.loads(header)
    except json.JSONDecodeError as error:
        raise UserError(path, f"its fedbone metadata is not JSON ({error})", remedy) from error
