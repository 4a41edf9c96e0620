"""Messages between hospitals and server: what was said arrives, and everything else is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fedbone.engines.flare.wire import only, pack, raw, unpack
from fedbone.errors import UserError

KINDS = {"run": str, "round": int, "loss": float}
HEADER = {"run": "first", "round": 3, "loss": 0.5}
ARRAYS = {"delta": np.arange(6, dtype=np.float32), "labelled": np.array([True, False])}
MESSAGE = pack(HEADER, ARRAYS)


def test_what_was_said_arrives():
    header, arrays = unpack("hospital_a", MESSAGE, KINDS)
    assert header == HEADER
    assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)


def test_a_transposed_or_sliced_array_arrives_as_it_is_seen():
    seen = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    _, arrays = unpack("x", pack({}, {"a": seen}), {})
    assert np.array_equal(arrays["a"], seen)


def test_a_loss_may_be_kept():
    header, _ = unpack("x", pack({**HEADER, "loss": None}, ARRAYS), KINDS)
    assert header["loss"] is None


def test_bytes_arrive():
    _, arrays = unpack("x", pack({}, {"content": raw(b"any bytes")}), {})
    assert only("x", arrays, "content")[0].tobytes() == b"any bytes"


def with_header(text: str) -> bytes:
    return save(ARRAYS, {"fedbone": text})


BAD = {
    "nothing": b"",
    "no bytes": "text",
    "None": None,
    "a pickle": pickle.dumps(HEADER),
    "without our header": save(ARRAYS),
    "a header that is no JSON": with_header("{"),
    "a deep header": with_header("[" * 5000),
    "a header that is a list": with_header("[]"),
    "an entry less": pack({"run": "first", "round": 3}, ARRAYS),
    "an entry more": pack({**HEADER, "more": 1}, ARRAYS),
    "a bool for a number": pack({**HEADER, "round": True}, ARRAYS),
    "a float for a whole number": pack({**HEADER, "round": 3.0}, ARRAYS),
    "a whole number for a float": pack({**HEADER, "loss": 1}, ARRAYS),
    "a type that numpy has not": MESSAGE.replace(b'"F32"', b'"F8_E4M3"'),
    "a length beyond the end": (1 << 40).to_bytes(8, "little") + MESSAGE[8:],
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD)
def test_everything_else_is_refused(message):
    with pytest.raises(UserError, match="hospital_a: the message cannot be read"):
        unpack("hospital_a", message, KINDS)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.integers(0, len(MESSAGE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_read_as_another_message(at, change):
    """The signature over the whole message is what protects it; reading must never do worse than refuse."""
    edited = MESSAGE[:at] + bytes([MESSAGE[at] ^ change]) + MESSAGE[at + 1 :]
    try:
        header, _ = unpack("x", edited, KINDS)
    except UserError:
        return
    assert header.keys() == KINDS.keys()


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(0, len(MESSAGE) - 1))
def test_what_is_cut_off_is_refused(length):
    with pytest.raises(UserError):
        unpack("x", MESSAGE[:length], KINDS)


def test_other_arrays_are_refused():
    for names in (("delta",), ("delta", "labelled", "more")):
        with pytest.raises(UserError, match="it holds the arrays delta, labelled"):
            only("x", ARRAYS, *names)


def test_nothing_is_said_that_json_cannot_hold():
    with pytest.raises(ValueError, match="JSON"):
        pack({"loss": float("nan")}, {})
