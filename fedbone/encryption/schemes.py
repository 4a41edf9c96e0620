"""Two ways to add masked updates; a hospital seals and opens, the server adds without any key.

Under Paillier's encryption only hospitals can read the sum. With masks alone it takes hundreds of times less time and,
up to 32 bits a lane, the room of float32, but whoever has all uploads reads the sum, the server first.
"""

from __future__ import annotations

import numpy as np

from fedbone.encryption.lanes import Lanes
from fedbone.encryption.masking import Masks
from fedbone.encryption.paillier import (
    CipherWorkers,
    Progress,
    add,
    ciphertexts_from_bytes,
    ciphertexts_to_bytes,
)
from fedbone.errors import UserError


class PaillierSum:
    """Lanes of ``parameters`` levels, masked modulo n and then encrypted.

    ``spec``: what must be the same at all parties. ``body_bytes``: of an upload and of a sum. The server's ``workers``
    have the public key only. Raises UserError for a key without room for two lanes.
    """

    def __init__(self, lanes: Lanes, parameters: int, workers: CipherWorkers) -> None:
        self.lanes, self.parameters, self._workers = lanes, parameters, workers
        self._public = workers.public
        self.body_bytes = lanes.plaintexts(parameters, self._public.bits) * 2 * self._public.bits // 8
        self.spec = {
            "scheme": "masked Paillier",
            "key": self._public.id,
            "key_bits": self._public.bits,
            **_lane_spec(lanes, parameters),
        }

    def seal(self, levels: np.ndarray, masks: Masks, progress: Progress | None = None) -> bytes:
        """The upload of levels (P,) int64: (plaintext + mask) mod n, encrypted."""
        plaintexts, n = self.lanes.pack(levels, self._public.bits), self._public.n
        own = masks.integers(len(plaintexts), n)
        masked = [(plaintext + mask) % n for plaintext, mask in zip(plaintexts, own, strict=True)]
        return ciphertexts_to_bytes(self._workers.encrypt(masked, progress), self._public)

    def add(self, total: bytes | None, body: bytes) -> bytes:
        """The total with one more upload; None is the empty one. Raises UserError for what holds no ciphertexts."""
        ciphertexts = ciphertexts_from_bytes(body, self._public)
        if total is not None:
            ciphertexts = add(ciphertexts_from_bytes(total, self._public), ciphertexts, self._public)
        return ciphertexts_to_bytes(ciphertexts, self._public)

    def open(self, total: bytes, progress: Progress | None = None) -> tuple[np.ndarray, int]:
        """(sums of levels (P,) int64, contributors). Raises UserError without the private key, or if masks are left."""
        plaintexts = self._workers.decrypt(ciphertexts_from_bytes(total, self._public), progress)
        return self.lanes.unpack(plaintexts, self.parameters, self._public.bits)


class MaskedSum:
    """``parameters`` levels and a counter, each in a word of its own, masked modulo 2**32 (or 64) and not encrypted.

    The attributes are those of PaillierSum.
    """

    def __init__(self, lanes: Lanes, parameters: int) -> None:
        self.lanes, self.parameters = lanes, parameters
        self.body_bytes = lanes.word.itemsize * (parameters + 1)
        self.spec = {"scheme": "masks alone", **_lane_spec(lanes, parameters)}

    def seal(self, levels: np.ndarray, masks: Masks, progress: Progress | None = None) -> bytes:
        """The upload of levels (P,) int64: words of counter and levels + mask."""
        words = masks.words(self.parameters + 1, self.lanes.word)
        words[0] += self.lanes.word.type(1)
        words[1:] += levels.astype(self.lanes.word)
        return words.tobytes()

    def add(self, total: bytes | None, body: bytes) -> bytes:
        """The total with one more upload; None is the empty one."""
        word = self.lanes.word
        return body if total is None else (np.frombuffer(total, word) + np.frombuffer(body, word)).tobytes()

    def open(self, total: bytes, progress: Progress | None = None) -> tuple[np.ndarray, int]:
        """(sums of levels (P,) int64, contributors). Raises UserError if masks are left."""
        words = np.frombuffer(total, self.lanes.word)
        contributors, sums = int(words[0]), words[1:]
        if not 1 <= contributors <= self.lanes.hospitals:
            problem = f"its counter does not say that 1 to {self.lanes.hospitals} hospitals were added"
        elif not self.lanes.can_be(sums, contributors):
            problem = f"there are numbers that the updates of {contributors} hospitals cannot add up to"
        else:
            return sums.astype(np.int64), contributors
        raise UserError("the masked sum", problem, "It was changed on its way, or an upload is missing: repeat it")


def _lane_spec(lanes: Lanes, parameters: int) -> dict:
    return {
        "bits": int(lanes.bits),
        "hospitals": int(lanes.hospitals),
        "update_range": float(lanes.update_range),
        "parameters": int(parameters),
    }
