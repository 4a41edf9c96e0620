"""Checkpoints and optimiser state on a disk that others can read or write: sealed with AES-256-GCM.

A sealed file is two lines of text (what it is, and where it belongs) and then Tink's AES256_GCM_HKDF_1MB stream of a
safetensors file: segments of 1 MiB, each bound to its place and to both lines. Every file has a data key of its own;
the second line carries it, wrapped by a key-encryption key that never enters the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import tink
from safetensors.numpy import load, save
from tink import aead, core, proto_keyset_format, secret_key_access, streaming_aead
from tink.proto import aes_gcm_pb2, tink_pb2

from fedbone.errors import UserError
from fedbone.files import read_secret, write_atomic, write_secret

if TYPE_CHECKING:  # sealing needs no torch
    from fedbone.vectors import VectorLayout

KEY_BYTES = 32
FIRST_LINE = b"fedbone sealed file, version 1\n"
HEADER = {"site": str, "run": str, "round": int, "architecture": str, "bytes": int, "key": str}  # the second line
TEMPLATE = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
SEGMENT_BYTES, SALT_BYTES, TAG_BYTES = 1 << 20, 40, 16  # of the stream: the first segment begins with the salt
aead.register()
streaming_aead.register()


@dataclass(frozen=True)
class Context:
    """Where a sealed file belongs. All of it stands in the file in clear, and a file for another place is refused."""

    site: str
    run: str
    round: int
    architecture: str  # as ``architecture_of`` says

    def __post_init__(self) -> None:
        if {type(self.site), type(self.run), type(self.architecture)} != {str} or type(self.round) is not int:
            raise ValueError(f"site, run and architecture must be text and round a whole number, got {self}")


def architecture_of(layout: VectorLayout) -> str:
    """Hex sha256 over the names, shapes and kinds of a model's parameters."""
    slots = [(slot.name, slot.shape, slot.kind) for slot in layout.slots]
    return hashlib.sha256(json.dumps(slots).encode()).hexdigest()


def create_key(path: Path) -> Path:
    """Write a new key-encryption key (32 random bytes, mode 0600). Raises UserError when there is a file already."""
    return write_secret(path, secrets.token_bytes(KEY_BYTES))


@dataclass(frozen=True)
class Vault:
    """Seals and opens files; ``wrap`` and ``unwrap`` are a key service's: (bytes, associated data) -> bytes.

    ``Vault(kms.encrypt, kms.decrypt)`` takes Tink's client of a key service. One without associated data may leave it
    out: the stream is bound to it as well.
    """

    wrap: Callable[[bytes, bytes], bytes] = field(repr=False)
    unwrap: Callable[[bytes, bytes], bytes] = field(repr=False)

    @classmethod
    def from_key_file(cls, path: Path) -> Vault:
        """With the key of ``create_key``, by AES-256-GCM. Raises UserError as ``read_secret`` does."""
        key = read_secret(path)
        if len(key) != KEY_BYTES:
            remedy = "Give the file that fedbone.custody.vault.create_key wrote"
            raise UserError(path, f"the key-encryption key has {len(key)} bytes, and {KEY_BYTES} were expected", remedy)
        value = aes_gcm_pb2.AesGcmKey(key_value=key).SerializeToString()
        data = tink_pb2.KeyData(type_url="type.googleapis.com/google.crypto.tink.AesGcmKey", value=value)
        data.key_material_type = tink_pb2.KeyData.SYMMETRIC
        primitive = core.Registry.primitive(data, aead.Aead)
        return cls(primitive.encrypt, primitive.decrypt)

    def seal(self, path: Path, arrays: dict[str, np.ndarray], metadata: dict, context: Context) -> Path:
        """Write ``arrays`` and ``metadata`` (JSON values), whole or not at all; a kill leaves the old file.

        Raises ValueError for an array named __metadata__, which safetensors keeps for itself.
        """
        if "__metadata__" in arrays:
            raise ValueError("an array cannot be named __metadata__")
        dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # safetensors reads raw memory
        content = save(dense, {"fedbone": json.dumps(metadata, sort_keys=True, allow_nan=False)})
        handle = tink.new_keyset_handle(TEMPLATE)
        fields = {**asdict(context), "bytes": len(content)}
        data_key = proto_keyset_format.serialize(handle, secret_key_access.TOKEN)
        fields["key"] = self.wrap(data_key, _associated(fields)).hex()
        header = FIRST_LINE + _json(fields) + b"\n"
        return write_atomic(path, lambda file: _encrypt(handle, header, content, file))

    def open(self, path: Path, context: Context) -> tuple[dict[str, np.ndarray], dict]:
        """(arrays, metadata), once every byte was checked; ``context`` says where the file has to belong.

        The reader has to know the round: whoever can write to the disk can put back an older file with its own tags.
        Raises UserError for a file that is missing, damaged, changed, of another place or round, or of another key.
        """
        try:
            with Path(path).open("rb") as file:
                header, fields = _header(path, file)
                _require_context(path, fields, context)
                _require_length(path, fields["bytes"], os.fstat(file.fileno()).st_size - file.tell())
                content = _decrypted(path, self._data_key(path, fields), header, fields["bytes"], file)
        except OSError as error:
            remedy = "Check the name, and that this account may read the file"
            raise UserError(path, f"the sealed file cannot be read ({error.strerror})", remedy) from error
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["fedbone"]
        return load(content), json.loads(about)

    def _data_key(self, path: Path, fields: dict) -> tink.KeysetHandle:
        try:
            data_key = self.unwrap(bytes.fromhex(fields["key"]), _associated(fields))
            return proto_keyset_format.parse(data_key, secret_key_access.TOKEN)
        except Exception as error:  # a key service has its own errors, which may quote what they are about
            problem = f"its data key cannot be unwrapped ({type(error).__name__}): another key, or a changed header"
            remedy = "Give the key it was sealed with (does the key service answer?), or restore a backup"
            raise UserError(path, problem, remedy) from None


def _json(fields: dict) -> bytes:
    return json.dumps(fields, sort_keys=True).encode()


def _associated(fields: dict) -> bytes:
    """What the wrapped key is bound to: the header without itself."""
    return FIRST_LINE + _json({name: value for name, value in fields.items() if name != "key"})


def _header(path: Path, file: BinaryIO) -> tuple[bytes, dict]:
    """(both lines, the second one read)."""
    first = file.read(len(FIRST_LINE))
    if not first:
        raise UserError(path, "the sealed file is empty", "Restore a backup")
    if first != FIRST_LINE:
        remedy = "Give a file that fedbone.custody.vault wrote; if it is one, restore a backup"
        raise UserError(path, "its first line is not that of a sealed file", remedy)
    second = file.readline()
    try:
        fields = json.loads(second)
        if {name: type(value) for name, value in fields.items()} != HEADER:
            raise ValueError("other fields")
    except (ValueError, AttributeError, RecursionError):
        problem = "its second line, which says where it belongs, is damaged or cut off"
        raise UserError(path, problem, "Restore a backup") from None
    return first + second, fields


def _require_context(path: Path, fields: dict, context: Context) -> None:
    for name in ("site", "run", "architecture"):
        found, expected = fields[name], getattr(context, name)
        if found != expected:
            problem = f"it was sealed for {name} {found!r:.80}, and {expected!r:.80} was expected"
            raise UserError(path, problem, "Give the file of this place: somebody may have exchanged them")
    found, expected = fields["round"], context.round
    if found < expected:
        problem = f"it is of round {found}, older than round {expected}, which was expected"
        raise UserError(path, problem, "Find out who put it back; ask for its round if you mean to resume from there")
    if found > expected:
        problem = f"it is of round {found}, later than round {expected}, which was expected"
        raise UserError(path, problem, "Check which round is wanted")


def _require_length(path: Path, content_bytes: int, found: int) -> None:
    """A file that was cut off is an accident more often than not, and has its own message."""
    segments = max(1, -(-(content_bytes + SALT_BYTES) // (SEGMENT_BYTES - TAG_BYTES)))
    missing = SALT_BYTES + content_bytes + segments * TAG_BYTES - found
    if missing > 0:
        raise UserError(path, f"it was cut off: {missing} bytes are missing", "Copy it again, or restore a backup")
    if missing < 0:
        raise UserError(path, f"{-missing} bytes were appended to it", "Copy it again, or restore a backup")


def _encrypt(handle: tink.KeysetHandle, header: bytes, content: bytes, file: BinaryIO) -> None:
    file.write(header)
    target, view = _File(file), memoryview(content)
    try:
        with handle.primitive(streaming_aead.StreamingAead).new_encrypting_stream(target, header) as stream:
            for start in range(0, len(view), SEGMENT_BYTES):  # Tink copies what it is given
                stream.write(view[start : start + SEGMENT_BYTES])
    except tink.TinkError as error:
        raise target.error or error from None


def _decrypted(path: Path, handle: tink.KeysetHandle, header: bytes, content_bytes: int, file: BinaryIO) -> bytes:
    """All of the stream; nothing is handed out before the last segment has said that it is the last."""
    source = _File(file)
    try:
        stream = handle.primitive(streaming_aead.StreamingAead).new_decrypting_stream(source, header)
        content = stream.read(content_bytes)
        if len(content) == content_bytes and not stream.read(1):
            return content
    except tink.TinkError:
        if source.error:
            raise source.error from None
    problem = "it was changed: a segment or the header fails its check"
    raise UserError(path, problem, "Restore a backup, and find out who can write to this folder") from None


class _File:
    """A file for Tink, which would close it, and hides why a read or write failed."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.error = file, None

    def read(self, size: int) -> bytes:
        return self._kept(self._file.read, size)

    def write(self, data: bytes) -> int:
        return self._kept(self._file.write, data)

    def readable(self) -> bool:
        return True

    writable = readable

    def close(self) -> None:
        pass

    def _kept(self, action: Callable, argument: int | bytes) -> int | bytes:
        try:
            return action(argument)
        except BaseException as error:
            self.error = error
            raise
