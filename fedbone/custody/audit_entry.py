"""A line of an audit log: one JSON object in one form only, with fixed fields that leave a person's name no place.

Free text is where names slip in, so that there is one such field, ``detail``, for our own messages; paths are taken out
of it, because folders and films may be named after a patient. What a stranger sent (a name that is not registered, a
token) belongs into ``detail`` too: it is made to fit, whereas every other value that does not fit is refused, and an
intruder could keep his refusal out of the log by sending such a one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re

LINE_BYTES = 1 << 14  # no line is longer: the longest values that are allowed make 10 KiB
TEXT_LENGTH = 300  # characters
PURPOSE = "fedbone audit head, version 1"  # of a head's signature
COMMON = {"run": "", "round": None, "model": "", "outcome": "ok"}  # in every entry
HEX, TEXT = "|[0-9a-f]{64}", f"[ -~]{{0,{TEXT_LENGTH}}}"  # of ASCII alone: no line feed, no terminal's commands
OWN = {  # the fields that the log writes itself: form of a text, or None for a whole number
    "n": None,
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",
    "who": TEXT,
    "previous": "[0-9a-f]{64}",
    "log": "[0-9a-f]{32}",  # these are of heads only
    "key": "[0-9a-f]{64}",
    "every": None,
    "signature": "[0-9a-f]{128}",
}
GIVEN = {  # the fields that a caller may give; ``seconds`` may have a fraction, and ``round`` be None
    "event": "[a-z][a-z_]{0,39}",
    "run": TEXT,
    "round": None,
    "model": HEX,  # sha256
    "outcome": TEXT,
    "site": TEXT,
    "detail": TEXT,
    "job": TEXT,
    "token_id": TEXT,
    "kid": TEXT,  # which key of a hospital (RFC 7517, section 4.5)
    "head_n": None,  # the head of another party's log that this party was shown
    "head_sha256": HEX,
    "hospitals": "[a-z0-9_,-]{0,4200}",  # a hundred names
    "seconds": None,
    "k": None,
    "count": None,
    "bytes": None,
    "sha256": HEX,
}
_FORMS = {name: form and re.compile(form) for name, form in {**OWN, **GIVEN}.items()}
_ALWAYS = {"n", "time", "who", "previous", "event", *COMMON}
_PATH = re.compile(r"""[^\s:'"]*[/\\](?:[^:'"]|[:'"](?=\w))*""")  # with the spaces in it: rather too much than a name


def canonical(entry: dict) -> bytes:
    """The one line of ``entry``: names sorted, no spaces, ASCII, a line feed at the end."""
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _entry_of(line: bytes) -> dict:
    """The entry of a whole line. Raises ValueError for one that ``canonical`` would not have written."""
    try:
        entry = json.loads(line)
        if canonical(entry) != line:
            raise ValueError("it is not in the one form that a log has")
    except RecursionError:
        raise ValueError("it is nested") from None
    if type(entry) is not dict or not entry.keys() >= _ALWAYS:
        raise ValueError("fields are missing")
    require_fields(entry)
    return entry


def entry_or_none(line: bytes) -> dict | None:
    """The entry of a line; None where it is none, such as a torn one."""
    try:
        return _entry_of(line)
    except ValueError:
        return None


def require_fields(fields: dict) -> None:
    """Raise ValueError for a name or a value that no entry has; it names the field, not the value."""
    for name, value in fields.items():
        if name not in _FORMS:
            raise ValueError(f"an audit log has no field {name!r:.60}; it has {', '.join(GIVEN)}")
        if not _fits(name, value):
            raise ValueError(f"{name} of an audit entry must be {_expected(name)}")


def fitting(detail: str) -> str:
    """``detail`` without paths, in printable ASCII ("?" for anything else), and cut to ``TEXT_LENGTH`` characters."""
    text = "".join(c if " " <= c <= "~" else "?" for c in _PATH.sub("(path)", detail))
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 3] + "..."


def digest(line: bytes) -> str:
    """Hex sha256, by which the next line is chained to this one."""
    return hashlib.sha256(line).hexdigest()


def before_the_first(public: bytes, log: str) -> str:
    """What the first line is chained to: the writer's key and the log's own random number, so that it fits no other."""
    return digest(b"fedbone audit log, version 1\n" + public + log.encode())


def _fits(name: str, value: object) -> bool:
    form = _FORMS[name]
    if form:
        return type(value) is str and form.fullmatch(value) is not None
    if name == "seconds" and type(value) is float:
        return math.isfinite(value) and value >= 0
    return (name == "round" and value is None) or (type(value) is int and 0 <= value < 1 << 63)


def _expected(name: str) -> str:
    form = {**OWN, **GIVEN}[name]
    if form is None:
        return "a number, 0 or more" if name == "seconds" else "a whole number, 0 or more"
    if form == TEXT:
        return f"text of at most {TEXT_LENGTH} printable ASCII characters"
    return "a sha256 of 64 lower-case hexadecimal digits, or empty" if form == HEX else f"text of the form {form}"
