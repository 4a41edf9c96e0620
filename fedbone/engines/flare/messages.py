"""The messages of a run: their content, and what is checked before any of it is used."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from fedbone.engines.flare.wire import only, pack, raw, unpack
from fedbone.errors import UserError
from fedbone.federation.hospital import Update

SERVER = "server"
ROOM_BYTES = 1 << 16  # of an update beyond its numbers: header, joints


@dataclass(frozen=True)
class TrainTask:
    """What the server asks of a hospital in a round.

    head_n, head_sha256: the head of the server's audit log, which the hospital notes in its own: a server's log that
    does not contain it any more was cut or rewritten.
    """

    run: str
    round: int
    seed: int
    proximal_mu: float
    head_n: int = -1
    head_sha256: str = ""


TASK_FIELDS = {"run": str, "round": int, "seed": int, "proximal_mu": float, "head_n": int, "head_sha256": str}
FINAL_FIELDS = {"run": str, "round": int}


def train_task(task: TrainTask, vector: np.ndarray) -> bytes:
    """The question of one round with the model (P,) float32."""
    return pack(asdict(task), {"vector": vector})


def read_train_task(message: bytes, parameters: int) -> tuple[TrainTask, np.ndarray]:
    """(task, model (P,)). Raises UserError for anything else."""
    header, arrays = unpack(SERVER, message, TASK_FIELDS)
    return TrainTask(**header), _vector(SERVER, only(SERVER, arrays, "vector")[0], parameters)


def update_message(update: Update, loss: float | None) -> bytes:
    """What leaves a hospital: the difference, which joints it labels, and the loss that its policy releases."""
    return pack({"loss": loss}, {"delta": update.delta, "labelled_joints": update.labelled_joints})


def read_update(name: str, message: bytes, parameters: int, joints: int) -> Update:
    """The update of hospital ``name``. Raises UserError for one that is too long or cannot be read.

    Whether its numbers may reach the model is for ``fedbone.federation.aggregation`` to say.
    """
    if len(message) > 8 * parameters + joints + ROOM_BYTES:  # float64 may come, to be refused by its own message
        raise UserError(name, f"its update has {len(message)} bytes, more than any update of this model", "Look at it")
    header, arrays = unpack(name, message, {"loss": float})
    delta, labelled = only(name, arrays, "delta", "labelled_joints")
    return Update(delta, labelled, {"losses": [header["loss"]]})


def final_model(run: str, index: int, vector: np.ndarray) -> bytes:
    """The model (P,) after the last round, for every hospital to keep."""
    return pack({"run": run, "round": index}, {"vector": vector})


def read_final_model(message: bytes, parameters: int) -> tuple[int, np.ndarray]:
    """(the last round, the model (P,)). Raises UserError for anything else."""
    header, arrays = unpack(SERVER, message, FINAL_FIELDS)
    return header["round"], _vector(SERVER, only(SERVER, arrays, "vector")[0], parameters)


def hidden_task(task: TrainTask, sealed: bytes) -> bytes:
    """The question of one round of a hidden run; ``sealed``: the model, which the server cannot open."""
    return pack(asdict(task), {"sealed": raw(sealed)})


def read_hidden_task(message: bytes) -> tuple[TrainTask, bytes]:
    """(task, the sealed model). Raises UserError for anything else."""
    header, arrays = unpack(SERVER, message, TASK_FIELDS)
    return TrainTask(**header), _content(SERVER, only(SERVER, arrays, "sealed")[0])


def sum_task(run: str, index: int, parts: list[bytes]) -> bytes:
    """A question about the sum of round ``index``, with what it needs: offers, or the total."""
    return pack({"run": run, "round": index}, {f"part_{number:04d}": raw(part) for number, part in enumerate(parts)})


def read_sum_task(message: bytes, run: str) -> tuple[int, list[bytes]]:
    """(round, parts in order). Raises UserError for anything else, and for another run."""
    header, arrays = unpack(SERVER, message, FINAL_FIELDS)
    if header["run"] != run:
        raise UserError(SERVER, f"it asks about run {header['run']!r} in the job of {run!r}", "Stop the run")
    return header["round"], [_content(SERVER, arrays[name]) for name in sorted(arrays)]


def bytes_message(content: bytes) -> bytes:
    """An answer that is a message of another protocol."""
    return pack({}, {"content": raw(content)})


def read_bytes(name: str, message: bytes) -> bytes:
    """What ``bytes_message`` got. Raises UserError for anything else."""
    _, arrays = unpack(name, message, {})
    return _content(name, only(name, arrays, "content")[0])


def opened(model: str) -> bytes:
    """A hospital's answer that it opened the sum and came to ``model`` (sha256)."""
    return pack({"model": model}, {"done": np.ones(1, np.uint8)})


def read_opened(name: str, message: bytes) -> str:
    """The sha256 of ``opened``. Raises UserError for anything else."""
    header, _ = unpack(name, message, {"model": str})
    return header["model"]


def done() -> bytes:
    """An answer that says nothing but that the task is done."""
    return pack({}, {"done": np.ones(1, np.uint8)})


def _content(where: str, array: np.ndarray) -> bytes:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise UserError(where, "a part of its message is no bytes", "Give both sides the same version of fedbone")
    return array.tobytes()


def _vector(where: str, vector: np.ndarray, parameters: int) -> np.ndarray:
    if vector.dtype != np.float32 or vector.shape != (parameters,):
        problem = f"its model is {vector.dtype} {vector.shape}, and float32 ({parameters},) was expected"
        raise UserError(where, problem, "Give both sides the same version of fedbone and the same plan")
    return vector
