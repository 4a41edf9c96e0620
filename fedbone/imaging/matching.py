"""The same film twice: a hash of its pixels, and how hospitals compare theirs without showing them to the server."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedbone.errors import UserError
from fedbone.imaging.dicom import read_stored

KEY_BYTES = 32


def pixel_hash(stored: np.ndarray) -> str:
    """SHA-256 (hex) of what ``stored`` (rows, cols) shows, from integer values of up to 16 bits.

    Values count from the smallest one, as 16-bit integers, and of the picture and its negative the smaller digest is
    taken: neither header, packing, sign offset, lossless compression nor MONOCHROME1 against MONOCHROME2 alters it. A
    lossy, cropped, rescaled or turned copy has another hash.
    """
    values = stored.astype(np.int32)
    low, high = values.min(), values.max()
    shape = np.array(stored.shape, "<u4").tobytes()
    views = (np.ascontiguousarray(view, "<u2") for view in (values - low, high - values))
    return min(hashlib.sha256(shape + view.tobytes()).hexdigest() for view in views)


def film_hash(path: Path) -> str:
    """The pixel hash of a DICOM film. Raises UserError as ``read_film`` does."""
    return pixel_hash(read_stored(Path(path))[1])


def blind_tags(hashes: Sequence[str], key: bytes) -> list[str]:
    """HMAC-SHA256 (hex, RFC 2104) of pixel hashes: what a hospital sends to the server that looks for shared films.

    key: at least 32 bytes of ``secrets.token_bytes``, made by one hospital and given to the others, never to the
    server. A plain hash, or one with a salt the server knows, would not do: whoever holds a film could hash it and ask
    whether a hospital has it. Whoever holds the key still can, so tags go to the server alone. Raises UserError.
    """
    if not isinstance(key, bytes) or len(key) < KEY_BYTES:
        problem = f"expected at least {KEY_BYTES} bytes, got {len(key) if isinstance(key, bytes) else 'no bytes'}"
        raise UserError("key", problem, f"Make one with secrets.token_bytes({KEY_BYTES})")
    return [hmac.digest(key, bytes.fromhex(value), "sha256").hex() for value in hashes]


def match(tags: Mapping[str, Sequence[str]]) -> list[tuple[tuple[str, int], ...]]:
    """The server's part: groups of (hospital, index of the tag there) with one tag, at two hospitals or more."""
    groups: dict[str, list[tuple[str, int]]] = {}
    for hospital, values in tags.items():
        for index, value in enumerate(values):
            groups.setdefault(value, []).append((hospital, index))
    return [tuple(group) for group in groups.values() if len({hospital for hospital, _ in group}) > 1]
