"""What hospitals and server say to each other: safetensors with a JSON header, never a pickle."""

from __future__ import annotations

import json

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedbone.errors import UserError

MAX_HEADER_BYTES = 1 << 20  # of safetensors' own header, which holds ours
Arrays = dict[str, np.ndarray]


def pack(header: dict, arrays: Arrays) -> bytes:
    """One message: a header of JSON values and named arrays."""
    dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # safetensors reads raw memory
    return save(dense, {"fedbone": json.dumps(header, sort_keys=True, allow_nan=False)})


def unpack(where: str, message: object, kinds: dict[str, type]) -> tuple[dict, Arrays]:
    """(header with exactly the names and types of ``kinds``, arrays). Raises UserError, naming ``where``, for the rest.

    A float may be None. Sizes and types of the arrays are the caller's to check.
    """
    if not isinstance(message, bytes):
        raise _unreadable(where, f"it is {type(message).__name__}, and bytes were expected")
    length = int.from_bytes(message[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(message)):
        raise _unreadable(where, "it is cut off, or no message at all")
    try:
        header = json.loads(json.loads(message[8 : 8 + length])["__metadata__"]["fedbone"])
        arrays = load(message)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _unreadable(where, "its content is damaged") from None
    if not isinstance(header, dict) or header.keys() != kinds.keys():
        raise _unreadable(where, "its header has other entries")
    for name, kind in kinds.items():
        value = header[name]
        if not (type(value) is kind or (kind is float and value is None)):
            raise _unreadable(where, f"{name} in its header is {type(value).__name__}, not {kind.__name__}")
    return header, arrays


def only(where: str, arrays: Arrays, *names: str) -> list[np.ndarray]:
    """The arrays ``names``. Raises UserError when others are there, or one is missing."""
    if arrays.keys() != set(names):
        raise _unreadable(where, f"it holds the arrays {', '.join(sorted(arrays)) or 'none'}")
    return [arrays[name] for name in names]


def raw(content: bytes) -> np.ndarray:
    """Bytes as an array (n,) uint8, which a message can carry."""
    return np.frombuffer(content, np.uint8)


def _unreadable(where: str, problem: str) -> UserError:
    return UserError(where, f"the message cannot be read: {problem}", "Give both sides the same version of fedbone")
