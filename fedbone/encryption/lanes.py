"""Many small numbers side by side in one large one, so that adding the large ones adds each of the small ones.

An update becomes whole levels above zero (offset coding: no lane ever borrows from its neighbour), and each level gets
a lane with room for the sum of all hospitals' levels, so that no lane ever carries into the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import numpy as np
from gmpy2 import mpz

from fedbone.errors import UserError

MOST_BITS, WIDEST = 40, 48  # of a level and of a lane: float64 holds every whole number up to 2**53
BLOCK = 1 << 18  # numbers at a time, which keeps 30 million parameters within little memory


@dataclass(frozen=True, slots=True)
class Lanes:
    """How an update becomes whole numbers, side by side in a large one.

    update_range: public; numbers beyond +-update_range are cut off. hospitals: at most so many may be added. bits: of
    one hospital's level. Raises ValueError for what no lane can hold.
    """

    update_range: float
    hospitals: int
    bits: int = 16

    def __post_init__(self) -> None:
        if not 1e-30 <= self.update_range <= 1e30:
            raise ValueError(f"update_range must be from 1e-30 to 1e30, got {self.update_range}")
        if not (isinstance(self.hospitals, Integral) and isinstance(self.bits, Integral)):
            raise ValueError(f"hospitals and bits must be whole numbers, got {self.hospitals} and {self.bits}")
        if self.hospitals < 1 or not 2 <= self.bits <= MOST_BITS or self.width > WIDEST:
            raise ValueError(
                f"a lane has at most {WIDEST} bits, 2 to {MOST_BITS} of them a level's: {self.bits} bits for each of "
                f"{self.hospitals} hospitals do not fit"
            )

    @property
    def width(self) -> int:
        """Bits of a lane: hospitals * (2**bits - 1) < 2**width."""
        return self.bits + (int(self.hospitals) - 1).bit_length()

    @property
    def word(self) -> np.dtype:
        """The unsigned words, little endian, that hold a lane."""
        return np.dtype("<u4" if self.width <= 32 else "<u8")

    @property
    def offset(self) -> int:
        """The level of zero."""
        return 1 << (self.bits - 1)

    @property
    def step(self) -> float:
        """What one level is worth, in units of the update."""
        return self.update_range / (self.offset - 1)

    def quantise(self, update: np.ndarray) -> tuple[np.ndarray, int]:
        """(levels (P,) int64 in [1, 2**bits - 1], how many numbers were cut off), of the update (P,).

        Raises UserError for NaN and infinity.
        """
        update = np.asarray(update)  # a mask would hide numbers, and they are sent all the same
        if update.dtype.kind not in "fiu":
            raise UserError("the update", f"its numbers are {update.dtype}", "Give real numbers, such as float32")
        levels, cut_off, levels_per_unit = np.empty(len(update), np.int64), 0, (self.offset - 1) / self.update_range
        for start in range(0, len(update), BLOCK):
            block = update[start : start + BLOCK].astype(np.float64)
            if not np.isfinite(block).all():
                problem = "it holds NaN or infinity, which no sum of whole numbers can carry"
                raise UserError("the update", problem, "Look at the learning rate and at the films")
            cut_off += int(np.count_nonzero(np.abs(block) > self.update_range))
            inside = np.clip(block, -self.update_range, self.update_range)
            levels[start : start + BLOCK] = np.rint(inside * levels_per_unit) + self.offset
        return levels, cut_off

    def mean(self, sums: np.ndarray, contributors: int) -> np.ndarray:
        """(P,) float64: the mean update from the summed levels (P,) int64 of ``contributors`` hospitals.

        Each number is within step / 2 = update_range / (2**bits - 2) of the mean of what was not cut off.
        """
        mean = sums - np.float64(contributors * self.offset)  # exact: both are far below 2**53
        mean *= self.step / contributors
        return mean

    def per_plaintext(self, key_bits: int) -> int:
        """Lanes, the contributor counter included, that stay below a key's modulus. Raises UserError below two."""
        lanes = (key_bits - 1) // self.width
        if lanes < 2:
            problem = f"a key of {key_bits} bits has no room for a counter and a level of {self.width} bits each"
            raise UserError("lanes", problem, "Use a longer key, or fewer bits or hospitals")
        return lanes

    def plaintexts(self, parameters: int, key_bits: int) -> int:
        """How many plaintexts ``parameters`` levels take; none at all take one, for its counter."""
        return max(1, -(-parameters // (self.per_plaintext(key_bits) - 1)))

    def can_be(self, sums: np.ndarray, contributors: int) -> bool:
        """Whether ``sums`` (P,), whole numbers, can be of the levels of so many hospitals."""
        highest = contributors * ((1 << self.bits) - 1)
        return not len(sums) or (int(sums.min()) >= contributors and int(sums.max()) <= highest)

    def pack(self, levels: np.ndarray, key_bits: int) -> list[mpz]:
        """Plaintexts below 2**(lanes * width), from the levels (P,); the lowest lane of each is the counter, 1.

        Nothing carries into the lowest lane. No levels are one plaintext too. Raises ValueError for levels outside
        [1, 2**bits - 1].
        """
        if len(levels) and not (levels.min() >= 1 and levels.max() < 1 << self.bits):
            raise ValueError(f"levels of {self.bits} bits must be in [1, {(1 << self.bits) - 1}]: use quantise")
        columns = self.per_plaintext(key_bits) - 1
        rows_a_block, plaintexts = max(1, BLOCK // columns), []
        for start in range(0, max(1, len(levels)), rows_a_block * columns):
            block = levels[start : start + rows_a_block * columns]
            rows = np.zeros((max(1, -(-len(block) // columns)), columns), self.word)
            rows.ravel()[: len(block)] = block
            plaintexts += self._joined(np.insert(rows, 0, 1, axis=1))
        return plaintexts

    def unpack(self, plaintexts: list[mpz], parameters: int, key_bits: int) -> tuple[np.ndarray, int]:
        """(sums (parameters,) int64, contributors): what ``pack`` made, after any number of additions.

        Raises UserError for what cannot be a sum of at most ``hospitals`` updates of so many parameters: another
        number of plaintexts, or a plaintext, counter, sum or padding beyond what they can reach.
        """
        if len(plaintexts) != self.plaintexts(parameters, key_bits):
            raise _unreadable(f"{len(plaintexts)} plaintexts are not those of {parameters} parameters")
        columns = self.per_plaintext(key_bits) - 1
        rows_a_block, sums, counters = max(1, BLOCK // columns), np.empty(len(plaintexts) * columns, np.int64), set()
        for start in range(0, len(plaintexts), rows_a_block):
            rows = self._cut(plaintexts[start : start + rows_a_block], columns + 1)
            counters |= set(rows[:, 0].tolist())
            sums[start * columns : start * columns + rows[:, 1:].size] = rows[:, 1:].ravel()
        contributors = counters.pop()
        if counters or not 1 <= contributors <= self.hospitals:
            raise _unreadable(f"the counters do not say, all alike, that 1 to {self.hospitals} hospitals were added")
        sums, padding = sums[:parameters], sums[parameters:]
        if padding.any() or not self.can_be(sums, contributors):
            raise _unreadable(f"there are numbers that the updates of {contributors} hospitals cannot add up to")
        return sums, contributors

    def _joined(self, rows: np.ndarray) -> list[mpz]:
        """One number for each row of ``rows`` (N, lanes) of words, of the lowest ``width`` bits of each lane."""
        octets = rows.view(np.uint8).reshape(*rows.shape, self.word.itemsize)
        bits = np.unpackbits(octets, axis=2, count=self.width, bitorder="little")
        packed = np.packbits(bits.reshape(len(rows), -1), axis=1, bitorder="little")
        return [mpz.from_bytes(row.tobytes(), "little") for row in packed]

    def _cut(self, plaintexts: list[mpz], lanes: int) -> np.ndarray:
        """(N, lanes) words, the inverse of ``_joined``."""
        bits = lanes * self.width
        if any(plaintext >> bits for plaintext in plaintexts):
            raise _unreadable("a plaintext is larger than all its lanes")
        size = -(-bits // 8)
        packed = np.frombuffer(b"".join(p.to_bytes(size, "little") for p in plaintexts), np.uint8)
        single = np.unpackbits(packed.reshape(-1, size), axis=1, count=bits, bitorder="little")
        words = np.packbits(single.reshape(-1, lanes, self.width), axis=2, bitorder="little")
        rows = np.zeros((len(plaintexts), lanes, self.word.itemsize), np.uint8)
        rows[..., : words.shape[2]] = words
        return rows.view(self.word)[..., 0]


def _unreadable(problem: str) -> UserError:
    remedy = "Nothing of it can be used: it was changed on its way, or it is for another key or was not fully unmasked"
    return UserError("the decrypted sum", problem, remedy)
