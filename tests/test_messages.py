"""A message is read as it was written, or refused."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.encryption.messages import MAX_HEADER_BYTES, canonical, read, read_signed, write, write_signed
from fedbone.encryption.signing import SigningKey
from fedbone.errors import UserError
from tests.edits import edit_of

KEY, OTHER = SigningKey.create(), SigningKey.create()
DIRECTORY = {"Süd": KEY.public, "north": OTHER.public}
FIELDS = {"round": int, "run": str, "spec": dict}
HEADER = {"round": 3, "run": "r", "spec": {"bits": 16, "range": 0.5}}
BODY = bytes(range(40))


def framed(text: bytes, body: bytes = BODY, purpose: bytes = b"up") -> bytes:
    return b"fedbone " + purpose + b" 1\n" + len(text).to_bytes(4, "big") + text + body


def signed(header=HEADER, body=BODY, purpose="up", hospital="Süd", key=KEY) -> bytes:
    return write_signed(purpose, {**header, "hospital": hospital}, body, key)


def opened(message: bytes):
    return read_signed("up", message, FIELDS, len(BODY), DIRECTORY)


def test_the_bytes_are_those_of_the_description():
    text = b'{"round":3,"run":"r","spec":{"bits":16,"range":0.5}}'
    assert write("up", HEADER, BODY) == framed(text)
    with_name = text.replace(b'{"round', b'{"hospital":"S\\u00fcd","round')
    assert signed()[:-64] == framed(with_name)
    assert signed()[-64:] == KEY.sign("up", framed(with_name))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(), st.text(max_size=20), st.dictionaries(st.text(max_size=5), json_values, max_size=4), st.binary())
def test_what_is_written_is_read(number, run, spec, body):
    header = {"round": number, "run": run, "spec": spec}
    assert read("up", write("up", header, body), FIELDS, len(body)) == (header, body)
    message = write_signed("up", {**header, "hospital": "Süd"}, body, KEY)
    assert read_signed("up", message, FIELDS, len(body), DIRECTORY) == ("Süd", header, body)


TEXT = canonical(HEADER)
UNSOUND = {
    "empty": b"",
    "another purpose": framed(TEXT, purpose=b"offer"),
    "no line feed": framed(TEXT).replace(b"\n", b" ", 1),
    "the beginning only": b"fedbone up 1\n",
    "half a length": b"fedbone up 1\n\0\0",
    "body too short": framed(TEXT, BODY[:-1]),
    "body too long": framed(TEXT, BODY + b"\0"),
    "a length beyond the end": b"fedbone up 1\n\xff\xff\xff\xff" + TEXT + BODY,
    "a length of one more": b"fedbone up 1\n" + (len(TEXT) + 1).to_bytes(4, "big") + TEXT + BODY,
    "a header that is too long": framed(canonical({**HEADER, "run": "x" * MAX_HEADER_BYTES})),
    "a space": framed(TEXT.replace(b":", b": ", 1)),
    "another order": framed(json.dumps(dict(reversed(HEADER.items())), separators=(",", ":")).encode()),
    "a field twice": framed(TEXT.replace(b'"round":3', b'"round":2,"round":3')),
    "a missing field": framed(canonical({k: v for k, v in HEADER.items() if k != "run"})),
    "a field too many": framed(canonical({**HEADER, "more": 1})),
    "a number as text": framed(canonical({**HEADER, "round": "3"})),
    "a number with a point": framed(TEXT.replace(b'"round":3', b'"round":3.0')),
    "true for one": framed(canonical({**HEADER, "round": True})),
    "null": framed(canonical({**HEADER, "round": None})),
    "a list": framed(canonical([1, 2])),
    "nothing in the header": framed(b""),
    "NaN": framed(TEXT.replace(b"0.5", b"NaN")),
    "infinity": framed(TEXT.replace(b"0.5", b"Infinity")),
    "a number beyond float64": framed(TEXT.replace(b"0.5", b"1e999")),
    "a number of 4,000 digits": framed(TEXT.replace(b"0.5", b"9" * 4000 + b".5")),
    "UTF-8 as it is": framed(TEXT.replace(b'"r"', '"ü"'.encode())),
    "UTF-16": framed(TEXT.decode().encode("utf-16")),
    "a byte that is no text": framed(TEXT.replace(b'"r"', b'"\xff"')),
    "2,000 brackets": framed(b"[" * 2000 + b"]" * 2000),
    "a pickle": framed(pickle.dumps(HEADER)),
}


@pytest.mark.parametrize("message", UNSOUND.values(), ids=UNSOUND)
def test_an_unsound_message_is_refused(message):
    with pytest.raises(UserError, match="not sound"):
        read("up", message, FIELDS, len(BODY))
    with pytest.raises(UserError, match="not sound"):
        opened(message + KEY.sign("up", message))


def test_nothing_but_json_comes_out_of_a_pickle(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "it went off"), "w")

    for message in (pickle.dumps(Bomb()), framed(pickle.dumps(Bomb()))):
        with pytest.raises(UserError):
            read("up", message, FIELDS, len(BODY))
    assert not list(tmp_path.iterdir())


def test_a_header_that_nobody_would_read_is_not_written():
    with pytest.raises(UserError, match="shorter names"):
        write("up", {"run": "x" * MAX_HEADER_BYTES})


@pytest.mark.parametrize(
    ("message", "where", "problem"),
    [
        (signed(hospital="west"), "up", "not in the directory"),
        (signed(hospital="\ud800"), "up", "not in the directory"),
        (signed(hospital="north"), "north", "signature"),
        (signed(key=OTHER), "Süd", "signature"),
        (signed()[:-64] + KEY.sign("down 1", signed()[:-64]), "Süd", "signature"),
        (signed()[:-64] + signed(body=BODY[::-1])[-64:], "Süd", "signature"),
        (signed()[:-64] + bytes(64), "Süd", "signature"),
        (signed()[:-64], "up", "not sound"),
    ],
    ids="a-stranger half-a-character anothers-name anothers-key purpose another-body zeros unsigned".split(),
)
def test_a_message_of_somebody_else_is_refused(message, where, problem):
    with pytest.raises(UserError, match=problem) as refusal:
        opened(message)
    assert refusal.value.where == where


def test_every_flipped_bit_is_refused():
    message = signed()
    assert opened(message)[1:] == (HEADER, BODY)
    for byte in range(len(message)):
        for bit in range(8):
            edited = bytearray(message)
            edited[byte] ^= 1 << bit
            with pytest.raises(UserError):
                opened(bytes(edited))


def test_every_cut_and_every_longer_message_is_refused():
    message = signed()
    for size in range(len(message)):
        for edited in (message[:size], message[len(message) - size :], message + message[:size][-1:] + b"\0"):
            with pytest.raises(UserError):
                opened(edited)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_no_edit_is_accepted(data):
    message = signed()
    edited = edit_of(data, message, 8)
    if edited != message:
        with pytest.raises(UserError):
            opened(edited)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,0123456789.eE+-truefalsn\\ud8x ', max_size=60).map(str.encode))
def test_no_header_raises_anything_but_a_user_error(text):
    message = framed(text, b"")
    for sealed in (message + KEY.sign("up", message), text + KEY.sign("up", text)):
        with pytest.raises(UserError):
            opened(sealed)
