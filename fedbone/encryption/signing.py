"""Who wrote a message: Ed25519 signatures (RFC 8032, by the package ``cryptography``), each for one purpose."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedbone.errors import UserError
from fedbone.files import read_secret, write_secret

PUBLIC_BYTES, SIGNATURE_BYTES = 32, 64


class SigningKey:
    """The private key a hospital signs with, for as long as its entry in the public directory holds."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def create(cls) -> SigningKey:
        """A fresh key from the randomness of the operating system."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """The key that ``save`` wrote. Raises UserError for another file, or one that others may read."""
        content = read_secret(path)
        if len(content) != PUBLIC_BYTES:  # the private key has the same length
            problem = f"it holds {len(content)} bytes, and a signing key has {PUBLIC_BYTES}"
            raise UserError(path, problem, "Name the file that SigningKey.save wrote")
        return cls(Ed25519PrivateKey.from_private_bytes(content))

    def save(self, path: Path) -> Path:
        """Write the key to a new file that only this account may read. Raises UserError when there is one."""
        return write_secret(path, self._key.private_bytes_raw())

    @property
    def public(self) -> bytes:
        """(32) bytes, for the directory."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, purpose: str, message: bytes) -> bytes:
        """(64) bytes; ``purpose`` keeps a signature for one kind of message from being used for another."""
        return self._key.sign(_statement(purpose, message))


def verify(public: bytes, purpose: str, message: bytes, signature: bytes) -> bool:
    """Whether the owner of ``public`` (32 bytes) signed ``message`` for ``purpose``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _statement(purpose, message))
    except InvalidSignature:
        return False
    return True


def checked_directory(directory: dict[str, bytes]) -> dict[str, bytes]:
    """A copy of the hospitals' public keys by name.

    Raises UserError for a key that is none, and for one under two names: whoever owns it would count as two hospitals.
    """
    owners: dict[bytes, str] = {}
    for name, public in directory.items():
        if not isinstance(public, bytes) or len(public) != PUBLIC_BYTES:
            problem = f"its public key in the directory is not {PUBLIC_BYTES} bytes"
            raise UserError(name, problem, "Enter SigningKey.public of this hospital")
        if public in owners:
            problem = f"the directory holds its public key under the name {owners[public]!r} too"
            raise UserError(name, problem, "Enter each hospital once, with a key of its own")
        owners[public] = name
    return dict(directory)


def _statement(purpose: str, message: bytes) -> bytes:
    """The length in front keeps the end of a purpose and the beginning of a message apart."""
    label = purpose.encode()
    return len(label).to_bytes(2, "big") + label + message
