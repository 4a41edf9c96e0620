"""What hospitals and server send each other: bytes of one strict form, never a pickle.

    "fedbone PURPOSE 1", line feed | length of the header, 4 bytes, big endian | header | body | 64 bytes of signature

The header is a flat JSON object in its one canonical form: sorted keys, no spaces, ASCII, no NaN. The signature, which
not every message has, covers all that stands before it.
"""

from __future__ import annotations

import json

from fedbone.encryption.signing import SIGNATURE_BYTES, SigningKey, verify
from fedbone.errors import UserError

MAX_HEADER_BYTES = 4096

Fields = dict[str, type]  # of a header, exactly


def canonical(value: object) -> bytes:
    """The one form of a JSON value. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def write(purpose: str, header: dict, body: bytes = b"") -> bytes:
    """A message that nobody signs. Raises UserError for names so long that the header passes MAX_HEADER_BYTES."""
    text = canonical(header)
    if len(text) > MAX_HEADER_BYTES:
        problem = f"the header has {len(text)} bytes, and {MAX_HEADER_BYTES} are allowed"
        raise UserError(purpose, problem, "Choose shorter names for the run and the hospital")
    return _begin(purpose) + len(text).to_bytes(4, "big") + text + body


def write_signed(purpose: str, header: dict, body: bytes, key: SigningKey) -> bytes:
    """As ``write``, with the signature of ``key`` over the whole."""
    message = write(purpose, header, body)
    return message + key.sign(purpose, message)


def read(purpose: str, message: bytes, fields: Fields, body_bytes: int) -> tuple[dict, bytes]:
    """(header with exactly ``fields``, body of ``body_bytes``). Raises UserError for anything else."""
    begin = _begin(purpose)
    if not message.startswith(begin):
        raise _malformed(purpose, "it does not begin like one")
    at = len(begin) + 4
    length = int.from_bytes(message[len(begin) : at], "big")
    if length > MAX_HEADER_BYTES or len(message) != at + length + body_bytes:
        raise _malformed(purpose, f"its {len(message)} bytes are not what its header and {body_bytes} of content take")
    return _header(purpose, message[at : at + length], fields), message[at + length :]


def read_signed(
    purpose: str, message: bytes, fields: Fields, body_bytes: int, directory: dict[str, bytes]
) -> tuple[str, dict, bytes]:
    """(the hospital that signed it, the other fields, body).

    directory: public keys by hospital. Raises UserError, with a message of its own for each, for what ``read`` refuses,
    a hospital that is not in the directory, and a signature that is not that hospital's for this purpose.
    """
    content, signature = message[:-SIGNATURE_BYTES], message[-SIGNATURE_BYTES:]
    header, body = read(purpose, content, {"hospital": str, **fields}, body_bytes)
    hospital = header.pop("hospital")
    if hospital not in directory:
        problem = f"{hospital!r} is not in the directory of hospitals"
        raise UserError(purpose, problem, "Only hospitals agreed on before the run take part: check who sent it")
    if not verify(directory[hospital], purpose, content, signature):
        problem = f"the signature of its {purpose} does not hold: it was changed on its way, or somebody else made it"
        raise UserError(hospital, problem, "Have the hospital send it again, and find out who changed it")
    return hospital, header, body


def _begin(purpose: str) -> bytes:
    return f"fedbone {purpose} 1\n".encode()  # 1: this form


def _header(purpose: str, text: bytes, fields: Fields) -> dict:
    try:
        header = json.loads(text.decode("ascii"))
        sound = canonical(header) == text  # no second way to write it, no key twice, no NaN
    except (ValueError, RecursionError) as error:
        raise _malformed(purpose, "its header is not JSON") from error
    if not sound or not isinstance(header, dict):
        raise _malformed(purpose, "its header is not in canonical form")
    found = {name: type(value) for name, value in header.items()}
    if found != fields:
        wrong = sorted(name for name in found.keys() | fields if found.get(name) is not fields.get(name))
        raise _malformed(purpose, f"its header has missing, unknown or ill-typed fields: {', '.join(wrong)!r}")
    return header


def _malformed(purpose: str, problem: str) -> UserError:
    remedy = "It was damaged on its way, or is something else: have it sent again, by the same version of fedbone"
    return UserError(purpose, f"the message is not sound: {problem}", remedy)
