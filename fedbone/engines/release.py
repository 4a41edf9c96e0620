"""What a job may hand out: named arrays or numbers of agreed shapes, and nothing else.

A hospital does not pass a job's file on. It reads the values, checks them and writes a file of its own, so that nothing
travels in headers, padding, names or dates. What the values themselves say is beyond any such check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

HEADER_BYTES = 4096
LARGEST = 1e300


class NotReleased(ValueError):
    """An output outside the policy. The message holds the policy's words alone: the job's could carry data."""


@dataclass(frozen=True)
class Arrays:
    """A safetensors file with exactly these arrays: name -> (dtype, shape), all finite."""

    expected: Mapping[str, tuple[str, tuple[int, ...]]]

    def __post_init__(self) -> None:
        for name, (dtype, _) in self.expected.items():
            if np.dtype(dtype).kind not in "biuf":
                raise ValueError(f"{name} is {dtype}; give bool, an integer or a floating type")

    @property
    def most_bytes(self) -> int:
        sizes = (np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in self.expected.values())
        return sum(sizes) + HEADER_BYTES

    def rewritten(self, content: bytes) -> bytes:
        """The same values in a file of our own. Raises NotReleased."""
        try:
            arrays = load(content)
        except Exception as error:  # of many kinds: KeyError for a dtype that numpy lacks, ValueError for 100 axes
            raise NotReleased("it is no safetensors file") from error
        if set(arrays) != set(self.expected):
            raise NotReleased(f"it does not hold exactly the arrays {', '.join(sorted(self.expected))}")
        for name, (dtype, shape) in self.expected.items():
            array = arrays[name]
            if (array.dtype, array.shape) != (np.dtype(dtype), tuple(shape)):
                raise NotReleased(f"{name} is not {dtype} of shape {tuple(shape)}")
            if not np.isfinite(array).all():
                raise NotReleased(f"{name} holds NaN or infinity")
        return save({name: _plain(arrays[name]) for name in self.expected})


def _plain(array: np.ndarray) -> np.ndarray:
    """The same array; a bool of a file is a byte, true in 255 ways, and becomes 1."""
    return array.view(np.uint8) != 0 if array.dtype.kind == "b" else array


@dataclass(frozen=True)
class Numbers:
    """A JSON object with exactly these keys, each a finite number."""

    names: tuple[str, ...]

    @property
    def most_bytes(self) -> int:
        return sum(len(name) + 40 for name in self.names) + 2

    def rewritten(self, content: bytes) -> bytes:
        """The same numbers, to six significant digits, in a file of our own. Raises NotReleased."""
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise NotReleased("it is no JSON") from error
        if not isinstance(values, dict) or set(values) != set(self.names):
            raise NotReleased(f"it does not hold exactly the numbers {', '.join(self.names)}")
        for name in self.names:
            if type(values[name]) not in (int, float) or not abs(values[name]) < LARGEST:  # NaN is not smaller either
                raise NotReleased(f"{name} is not one finite number")
        rounded = {name: float(f"{values[name]:.6g}") for name in self.names}
        return json.dumps({name: number + 0.0 for name, number in rounded.items()}).encode()  # 0.0 also for -0.0


Policy = Mapping[str, Arrays | Numbers]  # by file name in outputs/


def released(policy: Policy, outputs: Mapping[str, bytes]) -> dict[str, bytes]:
    """What may leave of a job's ``outputs``, written anew. Raises NotReleased, naming the file of the policy."""
    if set(outputs) != set(policy):
        raise NotReleased(f"it did not leave exactly the files {', '.join(sorted(policy))}")
    result = {}
    for name, rule in policy.items():
        if len(outputs[name]) > rule.most_bytes:
            raise NotReleased(f"{name} is larger than {rule.most_bytes:,} bytes")
        try:
            result[name] = rule.rewritten(outputs[name])
        except NotReleased as error:
            raise NotReleased(f"{name}: {error}") from error
    return result
