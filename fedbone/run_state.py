"""The file from which an interrupted run goes on: named arrays, what the run belongs to, a digest over every byte.

A run is continued by the same call alone. The file of another run, or a damaged one, is refused by name and kept.
"""

from __future__ import annotations

import glob
import hashlib
import json
from pathlib import Path

import numpy as np

from fedbone.errors import UserError
from fedbone.vectors import load_checkpoint, save_checkpoint

SHA256_DIGITS = 64


def digest(arrays: dict[str, np.ndarray], header: object) -> str:
    """sha256 of arrays with their names, types and shapes, and of a JSON value."""
    result = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        result.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        result.update(np.ascontiguousarray(arrays[name]).data)
    return result.hexdigest()


def save_state(path: Path, kind: str, belongs: dict, arrays: dict[str, np.ndarray], header: dict) -> None:
    """Write the state of a ``kind`` of run (training, federation): the old or the new file is there whatever happens.

    belongs: what two runs must share for one to go on where the other stopped, as JSON values.
    """
    header = {kind: belongs, **header}
    save_checkpoint(path, arrays, {**header, "digest": digest(arrays, header)})


def load_state(path: Path, kind: str, belongs: dict) -> tuple[dict[str, np.ndarray], dict] | None:
    """(arrays, header) as ``save_state`` got them, or None where there is no file yet.

    What a kill in the middle of a save left beside it is removed. Raises UserError unless every byte is as it was
    written, by a run of the same ``kind`` that ``belongs`` to the same things.
    """
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*"):
        left_over.unlink()
    if not path.exists():
        return None
    arrays, header = _read(path, kind)
    if wrong := _difference(header[kind], json.loads(json.dumps(belongs))):
        remedy = "Delete it to train from the start, or name another folder (--out) to keep it"
        raise UserError(path, f"it is the state of another {kind}: {wrong}", remedy)
    return arrays, header


def _read(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict]:
    remedy = "Delete it to train from the start, or name another folder (--out)"
    try:
        arrays, header = load_checkpoint(path)
    except UserError as error:
        raise UserError(path, f"the state of the {kind} cannot be read: {error.problem}", remedy) from error
    written = header.pop("digest", None)
    if written is None:
        raise UserError(path, f"it is a checkpoint, but not the state of a {kind}", remedy)
    if written != digest(arrays, header):
        raise UserError(path, f"the state of the {kind} is damaged: its checksum does not fit", remedy)
    if kind not in header:
        raise UserError(path, f"it is the state of a run, but not of a {kind}", remedy)
    return arrays, header


def _difference(theirs: dict, ours: dict) -> str:
    """In words, what differs; empty when nothing does. A digest says nothing to a reader and is not shown."""
    pairs = [(name, theirs.get(name), ours.get(name)) for name in {**theirs, **ours}]
    changed = [pair for pair in pairs if pair[1] != pair[2]]
    plain = [f"{name} {old}, now {new}" for name, old, new in changed if not (_is_digest(old) or _is_digest(new))]
    # last: other films often follow from another seed
    return ", ".join([*plain, *(f"other {name}" for name, old, new in changed if _is_digest(old) or _is_digest(new))])


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == SHA256_DIGITS
