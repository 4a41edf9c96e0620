"""Paillier key pairs as Damgard, Jurik and Nielsen draw them: made, kept in files, and checked when they arrive.

P. Paillier, EUROCRYPT 1999; I. Damgard, M. Jurik and J. B. Nielsen, "A generalization of Paillier's public-key system",
International Journal of Information Security 9 (2010).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gmpy2
from cryptography.hazmat.primitives.asymmetric import rsa
from gmpy2 import mpz

from fedbone.errors import UserError
from fedbone.files import read_secret, write_secret

BITS, LEAST_BITS, MOST_BITS = 3072, 2048, 8192  # 128 and 112 bits of security: NIST SP 800-57 part 1, table 2
PUBLIC_KIND, PRIVATE_KIND = "fedbone Paillier public key 1", "fedbone Paillier private key 1"


@dataclass(frozen=True, repr=False)
class PublicKey:
    """What encrypts and adds: the modulus n, and h = -y^2 mod n for a random y, whose n-th powers hide plaintexts."""

    n: mpz
    h: mpz

    @property
    def bits(self) -> int:
        """Of n: the size of the key."""
        return self.n.bit_length()

    @cached_property
    def n_squared(self) -> mpz:
        """What ciphertexts are multiplied modulo."""
        return self.n * self.n

    @cached_property
    def h_n(self) -> mpz:
        """h^n mod n^2: an encryption of zero, and so is each of its powers."""
        return gmpy2.powmod(self.h, self.n, self.n_squared)

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that name the key in messages."""
        size = self.bits // 8
        return hashlib.sha256(self.n.to_bytes(size) + self.h_n.to_bytes(2 * size)).hexdigest()[:16]

    def to_json(self) -> str:
        """One line of JSON for the server and the other hospitals."""
        return _to_json(PUBLIC_KIND, self.bits // 8, n=self.n, h=self.h)

    @classmethod
    def from_json(cls, text: str, least_bits: int = LEAST_BITS) -> PublicKey:
        """The key of ``to_json``. Raises UserError for anything else, and for a modulus or base that hides nothing."""
        key = cls(**_from_json("the Paillier public key", text, PUBLIC_KIND, ("n", "h")))
        if problem := _weakness(key, least_bits):
            raise UserError("the Paillier public key", problem, "Get it again from the hospital that made it")
        return key

    def __repr__(self) -> str:
        return f"PublicKey(bits={self.bits}, id={self.id!r})"


@dataclass(frozen=True, repr=False)
class PrivateKey:
    """What decrypts: the primes p and q of ``public.n``. It stays in the hospitals; its repr shows neither."""

    p: mpz
    q: mpz
    public: PublicKey

    def save(self, path: Path) -> Path:
        """Write a new file that only its owner may read; raises UserError as ``fedbone.files.write_secret`` does."""
        text = _to_json(PRIVATE_KIND, self.public.bits // 8, p=self.p, q=self.q, h=self.public.h)
        return write_secret(path, text.encode())

    @classmethod
    def load(cls, path: Path, least_bits: int = LEAST_BITS) -> PrivateKey:
        """The key of ``save``. Raises UserError as ``read_secret`` does, and for a file that holds no sound key."""
        numbers = _from_json(path, read_secret(path).decode(errors="replace"), PRIVATE_KIND, ("p", "q", "h"))
        p, q, public = numbers["p"], numbers["q"], PublicKey(numbers["p"] * numbers["q"], numbers["h"])
        sound = p.is_prime() and q.is_prime() and _suit(p, q)
        if problem := _weakness(public, least_bits) if sound else "its two numbers are not primes that suit each other":
            raise UserError(path, problem, "Restore the file from a backup")
        return cls(p, q, public)

    def __repr__(self) -> str:
        return f"PrivateKey(bits={self.public.bits}, id={self.public.id!r})"


def generate(bits: int = BITS) -> PrivateKey:
    """A new key pair, in seconds; fewer than 3072 bits are announced, and fewer than 2048 raise UserError."""
    if not LEAST_BITS <= bits <= MOST_BITS or bits % 16:
        problem = f"{bits} bits, where a multiple of 16 from {LEAST_BITS} to {MOST_BITS} is expected"
        raise UserError("the Paillier key's size", problem, f"{BITS} is the size for patients' data")
    if bits < BITS:
        print(f"Note: a Paillier key of {bits} bits. 2048 have 112 bits of security, 3072 have 128 (NIST SP 800-57)")
    while True:  # one in about six
        numbers = rsa.generate_private_key(public_exponent=65537, key_size=bits).private_numbers()
        p, q = mpz(numbers.p), mpz(numbers.q)
        if _suit(p, q):
            return _key(p, q)


def insecure_test_key(bits: int = 512) -> PrivateKey:
    """A key that can be broken, in milliseconds: for tests and small demonstrations only."""
    while True:
        p, q = (gmpy2.next_prime(mpz(3) << bits // 2 - 2 | secrets.randbits(bits // 2 - 2)) for _ in range(2))
        if _suit(p, q):
            return _key(p, q)


def _key(p: mpz, q: mpz) -> PrivateKey:
    n = p * q
    y = mpz(secrets.randbelow(int(n)))
    return PrivateKey(p, q, PublicKey(n, -y * y % n))


def _suit(p: mpz, q: mpz) -> bool:
    """Whether -y^2 generates what it must (Damgard, Jurik and Nielsen, section 6), for primes of the same size."""
    return p.bit_length() == q.bit_length() and p % 4 == q % 4 == 3 and gmpy2.gcd(p - 1, q - 1) == 2


def _weakness(key: PublicKey, least_bits: int) -> str:
    """Why nobody should encrypt with ``key``, as far as can be seen without its primes; empty for a sound one."""
    n, h = key.n, key.h
    if not least_bits <= key.bits <= MOST_BITS or key.bits % 16:
        return f"it has {key.bits} bits, where a multiple of 16 from {least_bits} to {MOST_BITS} is expected"
    if gmpy2.gcd(n, gmpy2.primorial(1 << 16)) != 1 or n.is_prime() or n.is_power():
        return "its modulus is not a product of two large primes"
    if not h < n or gmpy2.gcd(h * (h * h - 1), n) != 1:
        return "its base hides nothing: it is 0, 1 or -1 modulo one of the primes, or out of range"
    return ""


def _to_json(kind: str, size: int, **numbers: mpz) -> str:
    return json.dumps({"kind": kind} | {name: number.to_bytes(size).hex() for name, number in numbers.items()})


def _from_json(where: str | Path, text: str, kind: str, names: tuple[str, ...]) -> dict[str, mpz]:
    """The numbers of ``_to_json``, which must be what it would write. Its text is never quoted: it can be secret."""
    try:
        if len(text) > MOST_BITS:  # three numbers of MOST_BITS / 8 bytes
            raise ValueError
        fields = json.loads(text)
        numbers = {name: mpz.from_bytes(bytes.fromhex(fields[name])) for name in names}
        if _to_json(kind, len(fields[names[0]]) // 2, **numbers) != text:
            raise ValueError
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise UserError(where, f"it is not a {kind}", "Get it again from where it was made") from None
    return numbers
