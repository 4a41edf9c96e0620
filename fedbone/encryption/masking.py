"""Masks that cancel in the sum of all hospitals, and hide every smaller sum.

Each pair of hospitals agrees on a secret that nobody else knows; the one whose name comes first adds a keystream made
of it, the other subtracts the same. What is left of one upload, or of some, is uniformly random to whoever lacks one
pair's secret (Bonawitz et al., CCS 2017, section 4, without the recovery of drop-outs: a sum somebody is missing from
is repeated). X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) and AES-256-CTR (NIST SP 800-38A) by ``cryptography``.

Key and masks serve once and are then forgotten; Python cannot overwrite the memory they were in.
"""

from __future__ import annotations

import gmpy2
import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedbone.errors import UserError

MIN_HOSPITALS = 3  # of two, each could subtract its own update from the sum
BLOCK = 1 << 14  # numbers of keystream in memory at a time
SPARE_BYTES = 16  # so many more than n has, and the residue mod n is uniform up to 2**-128


class MaskKey:
    """A fresh X25519 key for one sum. ``public``: (32) bytes, for the other hospitals."""

    def __init__(self) -> None:
        self._key: X25519PrivateKey | None = X25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()

    def masks(self, name: str, publics: dict[str, bytes], context: bytes) -> Masks:
        """The masks of hospital ``name``; the private key is gone afterwards.

        publics: (32) bytes by hospital, ``name`` among them. context: all that the hospitals must agree on; masks made
        with another one do not cancel. Raises UserError for fewer than MIN_HOSPITALS or a public key that would give a
        secret everybody knows, ValueError for a second call.
        """
        if len(publics) < MIN_HOSPITALS:
            problem = f"{len(publics)} hospitals cannot hide anything from one another"
            raise UserError(name, problem, f"Wait until at least {MIN_HOSPITALS} take part")
        key, self._key = self._key, None
        if key is None:
            raise ValueError("this key has made its masks, and serves once")
        others = {other: public for other, public in publics.items() if other != name}
        return Masks([(name < other, _seed(key, name, other, public, context)) for other, public in others.items()])


def _seed(key: X25519PrivateKey, name: str, other: str, public: bytes, context: bytes) -> bytes:
    """(32) bytes that both hospitals of the pair come to."""
    try:
        secret = key.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # a point of small order: the secret would be zero whatever the private key is
        raise UserError(other, "its mask key is not a sound X25519 key", "Leave it out of the sum") from error
    first, second = (part.encode() for part in sorted((name, other)))
    info = b"".join(len(part).to_bytes(4, "big") + part for part in (b"fedbone mask 1", context, first, second))
    return HKDF(SHA256(), length=32, salt=None, info=info).derive(secret)


class Masks:
    """The sum of one hospital's masks, as whole numbers or as words; it can be taken once.

    pairs: (whether this hospital adds, AES-256 key) of each pair.
    """

    def __init__(self, pairs: list[tuple[bool, bytes]]) -> None:
        # the counter begins at zero: each key encrypts one stream only
        self._streams: list[tuple[bool, CipherContext]] | None = [
            (adds, Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()) for adds, seed in pairs
        ]

    def integers(self, count: int, n: gmpy2.mpz) -> list[gmpy2.mpz]:
        """``count`` numbers, each uniform mod ``n``. Raises ValueError when the masks are used up."""
        size = (n.bit_length() + 7) // 8 + SPARE_BYTES
        total = [gmpy2.mpz(0)] * count
        for adds, stream in self._take():
            for start in range(0, count, BLOCK):
                numbers = min(BLOCK, count - start)
                keystream = stream.update(bytes(size * numbers))
                for index in range(numbers):
                    mask = gmpy2.mpz.from_bytes(keystream[index * size : (index + 1) * size], "little")
                    total[start + index] += mask if adds else -mask
        return [number % n for number in total]

    def words(self, count: int, word: np.dtype) -> np.ndarray:
        """(count,) unsigned ``word``, each uniform over all values. Raises ValueError when the masks are used up."""
        total = np.zeros(count, word)
        for adds, stream in self._take():
            for start in range(0, count, BLOCK):
                part = total[start : start + BLOCK]
                keystream = np.frombuffer(stream.update(bytes(part.nbytes)), word)
                (np.add if adds else np.subtract)(part, keystream, out=part)
        return total

    def _take(self) -> list[tuple[bool, CipherContext]]:
        streams, self._streams = self._streams, None
        if streams is None:
            raise ValueError("these masks are used up: a second plaintext under them would show the difference")
        return streams
