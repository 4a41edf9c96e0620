"""A hospital's secret key, and the UIDs, pseudonyms and date shifts that follow from it.

The map from a patient to a pseudonym is never written anywhere: whoever has the key can compute it again from the
original films, and nobody else can. The key file stays at the hospital, apart from the films that leave.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import uuid
from pathlib import Path

from pydicom.uid import UID

from fedbone.errors import UserError

_BYTES = 32
_LONGEST_SHIFT_DAYS = 3650


class Key:
    """A hospital's secret (32 bytes) and all that follows from it: nothing else has to be kept to repeat a run."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _BYTES:
            raise ValueError(f"expected {_BYTES} bytes, got {len(secret)}")
        self._secret = secret

    def digest(self, purpose: str, text: str) -> bytes:
        """HMAC-SHA256 (RFC 2104) of a text; each purpose has values of its own."""
        return hmac.new(self._secret, f"{purpose}\0{text}".encode(errors="surrogatepass"), hashlib.sha256).digest()

    @property
    def check(self) -> str:
        """Tells two keys apart and says nothing about either."""
        return self.digest("check", "").hex()[:16]

    def uid(self, old: str) -> UID:
        """The UID that takes the place of ``old``, of the form 2.25.UUID (PS3.5 B.2)."""
        return UID(f"2.25.{uuid.UUID(bytes=self.digest('uid', old)[:16], version=4).int}")

    def pseudonym(self, identity: str) -> str:
        """The name and number of a patient from now on; '' for an empty identity."""
        identity = identity.strip()
        return f"P{self.digest('patient', identity).hex()[:15].upper()}" if identity else ""

    def days(self, identity: str) -> int:
        """How many days all dates of a patient go back: 1 to 3650."""
        return 1 + int.from_bytes(self.digest("days", identity.strip())[:8]) % _LONGEST_SHIFT_DAYS


def open_key(path: Path) -> Key:
    """The key in a file; a file that is not there is made with a new key, readable by its owner only.

    Raises UserError where the file is not a key or where others can read it.
    """
    path = Path(path)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        problem = f"the key cannot be written ({error.strerror})"
        raise UserError(path, problem, "Name a file in a folder that only you can read") from None
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(_BYTES) + "\n")
    return _read(path)


def _read(path: Path) -> Key:
    try:
        text, mode = path.read_text(encoding="ascii").strip(), path.stat().st_mode
        secret = bytes.fromhex(text)
    except OSError as error:
        problem = f"the key cannot be read ({error.strerror})"
        raise UserError(path, problem, "Check the path and its permissions") from None
    except ValueError:  # its text would quote what may be half a key
        secret, mode = b"", 0
    if len(secret) != _BYTES:
        problem = f"it is no key: expected {2 * _BYTES} hexadecimal digits on one line"
        raise UserError(path, problem, "Name the key file of the earlier runs, or a file that does not exist yet")
    if os.name == "posix" and mode & 0o077:
        raise UserError(path, "others on this machine can read the key", f"Run chmod 600 {path}")
    return Key(secret)
