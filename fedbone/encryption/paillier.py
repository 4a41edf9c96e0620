"""Encrypting, adding and decrypting whole numbers below n, fast enough for a network's millions of parameters.

A ciphertext is (1 + m n) * r^x mod n^2, where r = h^n and x is secret, random and half as long as n (Damgard, Jurik
and Nielsen, International Journal of Information Security 2010, section 6). Whoever knows the primes decrypts modulo
each of them (Paillier, EUROCRYPT 1999, section 7). Running times depend on the secrets: keep others off the machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from multiprocessing import get_context

import gmpy2
from gmpy2 import mpz

from fedbone.encryption.paillier_keys import PrivateKey, PublicKey
from fedbone.errors import UserError
from fedbone.workers import begin_worker

CHUNK = 32  # ciphertexts between two reports of progress
Progress = Callable[[int, int], None]  # progress(done, total)


def add(total: list[mpz], ciphertexts: list[mpz], public: PublicKey) -> list[mpz]:
    """Ciphertexts of the sums: the products mod n^2. Raises ValueError for lists of different lengths."""
    return [a * b % public.n_squared for a, b in zip(total, ciphertexts, strict=True)]


def ciphertexts_to_bytes(ciphertexts: list[mpz], public: PublicKey) -> bytes:
    """2 * bits / 8 bytes each, big endian."""
    size = 2 * public.bits // 8
    return b"".join(ciphertext.to_bytes(size) for ciphertext in ciphertexts)


def ciphertexts_from_bytes(data: bytes, public: PublicKey) -> list[mpz]:
    """What ``ciphertexts_to_bytes`` wrote. Raises UserError for what is not whole or cannot be a ciphertext.

    A multiple of p or q is none: its decryption would show the primes.
    """
    size = 2 * public.bits // 8
    if len(data) % size:
        raise _not_ciphertexts(f"{len(data)} bytes are not a multiple of {size}")
    ciphertexts = [mpz.from_bytes(data[start : start + size]) for start in range(0, len(data), size)]
    product = mpz(1)
    for ciphertext in ciphertexts:
        if not 1 < ciphertext < public.n_squared:
            raise _not_ciphertexts("one is out of range")
        product = product * ciphertext % public.n
    if gmpy2.gcd(product, public.n) != 1:
        raise _not_ciphertexts("one shares a factor with the key")
    return ciphertexts


def _not_ciphertexts(problem: str) -> UserError:
    return UserError("the ciphertexts", problem, "They were damaged, or made for another key: ask for them again")


class FixedBase:
    """Powers of one number: a table once, then one product for every byte of the exponent.

    E. Brickell, D. Gordon, K. McCurley and D. Wilson, EUROCRYPT 1992, with windows of 8 bits: 38 MB at 3072 bits.
    """

    def __init__(self, base: mpz, modulus: mpz, exponent_bytes: int) -> None:
        self._modulus, self._rows = modulus, []
        for _ in range(exponent_bytes):  # row i holds base^(digit * 256^i) for each digit
            row = [mpz(1)]
            for _ in range(255):
                row.append(row[-1] * base % modulus)
            self._rows.append(row)
            base = row[-1] * base % modulus

    def powers(self, exponents: list[bytes]) -> list[mpz]:
        """base^exponent for each of the exponents, little endian; row by row, which stay in the processor's cache."""
        products = [mpz(1)] * len(exponents)
        for row, digits in zip(self._rows, zip(*exponents, strict=True), strict=True):
            products = [product * row[digit] % self._modulus for product, digit in zip(products, digits, strict=True)]
        return products


class _Cipher:
    """What one process computes with."""

    def __init__(self, key: PublicKey | PrivateKey) -> None:
        self.key, self.public = key, key.public if isinstance(key, PrivateKey) else key
        self._exponent_bytes = self.public.bits // 16  # half as long as n

    @cached_property
    def _table(self) -> FixedBase:
        return FixedBase(self.public.h_n, self.public.n_squared, self._exponent_bytes)

    def encrypt(self, plaintexts: list[mpz]) -> list[mpz]:
        n, n_squared = self.public.n, self.public.n_squared
        hiding = self._table.powers([secrets.token_bytes(self._exponent_bytes) for _ in plaintexts])
        return [(1 + m * n) * hidden % n_squared for m, hidden in zip(plaintexts, hiding, strict=True)]

    def decrypt(self, ciphertexts: list[mpz]) -> list[mpz]:
        p, q = self.key.p, self.key.q
        p_inverse = gmpy2.invert(p, q)
        pairs = zip(_decrypt_modulo(p, q, ciphertexts), _decrypt_modulo(q, p, ciphertexts), strict=True)
        return [at_p + p * ((at_q - at_p) * p_inverse % q) for at_p, at_q in pairs]


def _decrypt_modulo(prime: mpz, other: mpz, ciphertexts: list[mpz]) -> list[mpz]:
    """The plaintexts modulo ``prime``: c^(prime - 1) is 1 - m n mod prime^2, which is 1 - (m * other) * prime."""
    square = prime * prime
    factor = gmpy2.invert(-other, prime)
    powers = gmpy2.powmod_base_list(ciphertexts, prime - 1, square)
    return [(power - 1) // prime * factor % prime for power in powers]


class CipherWorkers:
    """Encrypts and decrypts in this process, or in ``processes`` others; a context manager, which ends them.

    With the public key only, it cannot decrypt. Workers end with this process. Raises ValueError for no process at all.
    """

    def __init__(self, key: PublicKey | PrivateKey, processes: int = 1) -> None:
        if processes < 1:
            raise ValueError(f"processes must be at least 1, got {processes}")
        self._cipher, self._processes = _Cipher(key), processes
        self._pool, self._ended = self._new_pool() if processes > 1 else None, False

    @property
    def can_decrypt(self) -> bool:
        """Whether the private key is here."""
        return isinstance(self._cipher.key, PrivateKey)

    @property
    def public(self) -> PublicKey:
        """The key that the ciphertexts are for."""
        return self._cipher.public

    def __enter__(self) -> CipherWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._ended = True

    def encrypt(self, plaintexts: list[mpz], progress: Progress | None = None) -> list[mpz]:
        """A ciphertext for each plaintext, never the same twice. Raises UserError for plaintexts outside [0, n)."""
        if not all(0 <= plaintext < self.public.n for plaintext in plaintexts):
            raise UserError("encryption", "a plaintext is not in [0, n)", "Pack it for the size of this key")
        return self._in_chunks("encrypt", plaintexts, progress)

    def decrypt(self, ciphertexts: list[mpz], progress: Progress | None = None) -> list[mpz]:
        """The plaintext of each ciphertext, in [0, n). Raises UserError without the private key."""
        if not self.can_decrypt:
            raise UserError("decryption", "only the public key is here", "Decrypt in a hospital, with the private key")
        return self._in_chunks("decrypt", ciphertexts, progress)

    def _in_chunks(self, task: str, numbers: list[mpz], progress: Progress | None) -> list[mpz]:
        if self._ended:
            raise UserError(f"processes that {task}", "they were ended", "Work inside the `with` that began them")
        chunks, done = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)], []
        try:
            for part in self._answers(task, chunks):
                done += part
                if progress:
                    progress(len(done), len(numbers))
        except BrokenProcessPool as error:
            self._pool = self._new_pool()
            remedy = "Run it again, or with processes=1. Scripts need `if __name__ == '__main__':`"
            raise UserError(f"processes that {task}", "one of them was ended", remedy) from error
        return done

    def _answers(self, task: str, chunks: list[list[mpz]]) -> Iterator[list[mpz]]:
        if self._pool:
            return self._pool.map(_in_worker, [task] * len(chunks), chunks)
        return map(getattr(self._cipher, task), chunks)

    def _new_pool(self) -> ProcessPoolExecutor:
        start = {"mp_context": get_context("spawn"), "initializer": _begin, "initargs": (self._cipher.key,)}
        return ProcessPoolExecutor(self._processes, **start)


def _begin(key: PublicKey | PrivateKey) -> None:
    """The first thing that a worker does; its table is made when it is needed."""
    begin_worker()
    global _own
    _own = _Cipher(key)


def _in_worker(task: str, numbers: list[mpz]) -> list[mpz]:
    return getattr(_own, task)(numbers)
