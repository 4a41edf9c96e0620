"""Of a job's files only the agreed values get through, always in the same bytes; none of them breaks the check."""

from __future__ import annotations

import json
import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from fedbone.engines.release import Arrays, NotReleased, Numbers, released

EXPECTED = {"delta": ("float32", (3,)), "labelled": ("bool", (2,)), "count": ("int64", ())}
ARRAYS = Arrays(EXPECTED)
NUMBERS = Numbers(("loss", "films"))
POLICY = {"update.safetensors": ARRAYS, "report.json": NUMBERS}
DELTA, LABELLED, COUNT = struct.pack("<3f", 1.5, -0.0, 1e-40), b"\x01\x00", struct.pack("<q", -7)
VALUES = {
    "delta": np.array([1.5, -0.0, 1e-40], np.float32),
    "labelled": np.array([True, False]),
    "count": np.array(-7, np.int64),
}
CODES = ["F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64", "F4", "X", ""]


def tensors(header: object, body: bytes = b"", padding: int = 0) -> bytes:
    """A safetensors file, written from its description: 8 bytes of length, the header in JSON, the values."""
    text = (header if isinstance(header, bytes) else json.dumps(header).encode()) + b" " * padding
    return struct.pack("<Q", len(text)) + text + body


def entry(code: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": code, "shape": shape, "data_offsets": [begin, end]}


PLAIN = {
    "delta": entry("F32", [3], 0, 12),
    "labelled": entry("BOOL", [2], 12, 14),
    "count": entry("I64", [], 14, 22),
}
BODY = DELTA + LABELLED + COUNT
OTHER_ORDER = {
    "count": entry("I64", [], 0, 8),
    "labelled": entry("BOOL", [2], 8, 10),
    "delta": entry("F32", [3], 10, 22),
}


def ends(rule: Arrays | Numbers, content: bytes) -> bytes | None:
    """What is released of ``content``, None where it is refused; any other exception fails the test."""
    try:
        return released({"file": rule}, {"file": content})["file"]
    except NotReleased:
        return None


SAME = {
    "as safetensors writes it": save(VALUES),
    "entries in another order": tensors(dict(reversed(PLAIN.items())), BODY),
    "values in another order": tensors(OTHER_ORDER, COUNT + LABELLED + DELTA),
    "metadata": tensors({"__metadata__": {"patient": "private"}, **PLAIN}, BODY),
    "spaces after the header": tensors(PLAIN, BODY, padding=999),
    "spaces in the header": tensors(json.dumps(PLAIN, indent=3).encode(), BODY),
    "escapes in the header": tensors(json.dumps(PLAIN).replace("delta", "\\u0064elta").encode(), BODY),
    "another byte for true": tensors(PLAIN, DELTA + b"\xd7\x00" + COUNT),
}


@pytest.mark.parametrize("how", SAME)
def test_arrays_are_rewritten_in_the_same_bytes_however_the_job_wrote_them(how: str) -> None:
    result = ends(ARRAYS, SAME[how])
    assert result == save(VALUES)
    assert b"private" not in result
    found = load(result)
    for name, values in VALUES.items():
        assert found[name].tobytes() == values.tobytes()
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)


def with_value(code: str, number: float) -> bytes:
    return tensors(PLAIN, struct.pack(f"<{code}", number) + BODY[struct.calcsize(code) :])


REFUSED = {
    "empty": b"",
    "bytes after the values": save(VALUES) + b"x",
    "a gap before the values": tensors({**PLAIN, "delta": entry("F32", [3], 4, 16)}, BODY),
    "the same values twice": tensors({**PLAIN, "count": entry("I64", [], 0, 8)}, BODY),
    "an array missing": save({name: VALUES[name] for name in ("delta", "labelled")}),
    "an array more": save({**VALUES, "films": np.zeros(1)}),
    "an empty array more": save({**VALUES, "Ward 7": np.zeros(0)}),
    "none at all": tensors({}),
    "nan": with_value("f", math.nan),
    "infinity": with_value("f", math.inf),
    "minus infinity": with_value("f", -math.inf),
    "float64": save({**VALUES, "delta": np.zeros(3)}),
    "int32 instead of float32": save({**VALUES, "delta": np.zeros(3, np.int32)}),
    "uint8 instead of bool": save({**VALUES, "labelled": np.zeros(2, np.uint8)}),
    "bfloat16": tensors({"delta": entry("BF16", [3], 0, 6)}, bytes(6)),
    "float8": tensors({**PLAIN, "delta": entry("F8_E4M3", [12], 0, 12)}, BODY),
    "transposed": save({**VALUES, "delta": np.zeros((1, 3), np.float32)}),
    "too short": save({**VALUES, "delta": np.zeros(2, np.float32)}),
    "a scalar as a vector": save({**VALUES, "count": np.zeros(1, np.int64)}),
    "100 axes": tensors({"delta": entry("F32", [1] * 100, 0, 4)}, bytes(4)),
    "an endless empty axis": tensors({"delta": entry("F32", [0, 2**62], 0, 0)}),
    "an axis beyond 64 bits": tensors({"delta": entry("F32", [0, 2**64 - 1], 0, 0)}),
    "nested without end": tensors(b"[" * 4000),
    "a long header": struct.pack("<Q", 2**63),
}


@pytest.mark.parametrize("how", REFUSED)
def test_other_arrays_are_refused(how: str) -> None:
    assert ends(ARRAYS, REFUSED[how]) is None


@pytest.mark.parametrize("code", CODES)
def test_a_dtype_is_that_of_the_policy_or_refused(code: str) -> None:
    width = {"F64": 8, "I64": 8, "C64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(code, 1)
    content = tensors({"x": entry(code, [4], 0, 4 * width)}, bytes(4 * width))
    expected = save({"x": np.zeros(4, np.float32)}) if code == "F32" else None
    assert ends(Arrays({"x": ("float32", (4,))}), content) == expected


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=3, max_size=3), st.binary(min_size=2, max_size=2), st.integers(-(2**63), 2**63 - 1))
def test_every_finite_value_gets_through_unchanged(delta: list[float], labelled: bytes, count: int) -> None:
    body = struct.pack("<3f", *delta) + labelled + struct.pack("<q", count)
    found = load(ends(ARRAYS, tensors(PLAIN, body)))
    assert found["delta"].tobytes() == body[:12]
    assert found["labelled"].tolist() == [byte != 0 for byte in labelled]
    assert found["count"] == count


@given(st.binary(max_size=80), st.integers(0, 400), st.binary(max_size=5))
def test_arrays_of_damaged_files_are_released_or_refused(noise: bytes, place: int, cut: bytes) -> None:
    good = save(VALUES)
    for content in (noise, good[:place], good[:place] + cut + good[place + len(cut) :], good[:place] + noise):
        if (result := ends(ARRAYS, content)) is not None:
            found = load(result)
            assert result == save({name: found[name] for name in VALUES})  # nothing but the values
            assert np.isfinite(found["delta"]).all()
            assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == EXPECTED


names = st.sampled_from(["delta", "labelled", "count", "__metadata__", "x"])
sizes = st.integers(0, 40) | st.integers(2**31, 2**64)
entries = st.builds(entry, st.sampled_from(CODES), st.lists(sizes, max_size=3), sizes, sizes) | st.none() | st.text()


@given(st.dictionaries(names, entries), st.binary(max_size=60))
def test_arrays_of_any_header_are_released_or_refused(header: dict, body: bytes) -> None:
    result = ends(ARRAYS, tensors(header, body))
    assert result is None or result == save(load(result))


NUMBERS_SAME = {
    "plain": b'{"loss": 0.25, "films": 8}',
    "reordered": b'{"films": 8, "loss": 0.25}',
    "spaces": b'\n{ "loss" :\t0.25 ,"films":8.0}   \n',
    "another spelling": b'{"loss": 2500e-4, "films": 0.8E1}',
    "digits beyond the sixth": b'{"loss": 0.250000499, "films": 8.0000000001}',
    "twice": b'{"loss": "private", "loss": 0.25, "films": 8}',
    "escapes": b'{"\\u006coss": 0.25, "films": 8}',
    "mark of UTF-8": b'\xef\xbb\xbf{"loss": 0.25, "films": 8}',
}


@pytest.mark.parametrize("how", NUMBERS_SAME)
def test_numbers_are_rewritten_in_the_same_bytes_however_the_job_wrote_them(how: str) -> None:
    assert ends(NUMBERS, NUMBERS_SAME[how]) == b'{"loss": 0.25, "films": 8.0}'


NUMBERS_REFUSED = """
    {} [] 3 null {"loss":1} {"loss":1,"films":2,"ward":3} {"loss":true,"films":1} {"loss":"1","films":1}
    {"loss":null,"films":1} {"loss":[1],"films":1} {"loss":{"a":{"b":1}},"films":1} {"loss":NaN,"films":1}
    {"loss":Infinity,"films":1} {"loss":-Infinity,"films":1} {"loss":1e400,"films":1} {"loss":-1e301,"films":1}
    {"loss":1,"films":1}x {"loss":1,"films":01} {loss:1,films:1} {"LOSS":1,"films":1}
    {"loss":1e9999999999,"films":1} {"\\ud800":1,"films":1}""".split()


@pytest.mark.parametrize("text", NUMBERS_REFUSED)
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(NotReleased):
        NUMBERS.rewritten(text.encode())


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"loss":' * 20_000, b"9" * 100_000, b'{"loss":' + b"9" * 5000])
def test_deep_and_long_json_is_refused_whatever_its_size(content: bytes) -> None:
    many = Numbers(tuple(f"number {place}" for place in range(5000)))
    assert many.most_bytes > len(content)
    assert ends(many, content) is None


def test_an_integer_is_rounded_like_any_number_and_zero_has_no_sign() -> None:
    assert ends(NUMBERS, b'{"loss": 123456789012345678901234567890, "films": -0.0}') == (
        b'{"loss": 1.23457e+29, "films": 0.0}'
    )
    assert ends(NUMBERS, b'{"loss": -1e-400, "films": -0}') == b'{"loss": 0.0, "films": 0.0}'


@given(st.floats(-1e299, 1e299) | st.integers(-(10**15), 10**15))
@example(5e-324)
@example(999999.5)
def test_a_number_is_released_to_six_digits(number: float) -> None:
    result = ends(NUMBERS, json.dumps({"loss": number, "films": 1}).encode())
    loss = json.loads(result)["loss"]
    assert isinstance(loss, float)
    error = abs(Fraction(loss) - Fraction(number))
    assert error <= abs(Fraction(number)) * Fraction(501, 10**8) or abs(number) < 1e-300  # half of the sixth digit
    assert result == ends(NUMBERS, result)  # its own form does not change again


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["loss", "films", "x"]), inner),
    max_leaves=8,
)


@given(json_values, st.sampled_from(["utf-8", "utf-16", "utf-32"]), st.binary(max_size=30))
def test_numbers_of_any_json_and_of_any_bytes_are_released_or_refused(value: object, code: str, noise: bytes) -> None:
    for content in (json.dumps(value).encode(code), noise, json.dumps(value).encode() + noise):
        if (result := ends(NUMBERS, content)) is not None:
            found = json.loads(result)
            assert list(found) == ["loss", "films"]
            assert all(type(number) is float and math.isfinite(number) for number in found.values())


GOOD = {"update.safetensors": save(VALUES), "report.json": b'{"loss": 1, "films": 2}'}


def test_all_files_of_the_policy_are_released_together() -> None:
    assert released(POLICY, GOOD) == {"update.safetensors": save(VALUES), "report.json": b'{"loss": 1.0, "films": 2.0}'}


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"report.json": GOOD["report.json"]},
        {**GOOD, "films.npz": b""},
        {"update.safetensors": GOOD["update.safetensors"], "Report.json": GOOD["report.json"]},
        {"update.safetensors": GOOD["report.json"], "report.json": GOOD["update.safetensors"]},
    ],
)
def test_nothing_is_released_of_other_files(outputs: dict[str, bytes]) -> None:
    with pytest.raises(NotReleased):
        released(POLICY, outputs)


@pytest.mark.parametrize("rule", [ARRAYS, NUMBERS])
def test_a_file_that_is_larger_than_its_values_need_is_refused(rule: Arrays | Numbers) -> None:
    content = tensors(PLAIN, BODY) if rule is ARRAYS else GOOD["report.json"]
    room = rule.most_bytes - len(content)
    for more, gets_through in ((room, True), (room + 1, False)):
        padded = tensors(PLAIN, BODY, padding=more) if rule is ARRAYS else content + b" " * more
        assert (ends(rule, padded) is not None) == gets_through


def test_a_large_update_fits_with_any_plain_header() -> None:
    rule = Arrays({"delta": ("float32", (100_000,)), "labelled_joints": ("bool", (17,))})
    assert 0 < rule.most_bytes - (400_000 + 17) < 10_000  # room for a header, not for films


@given(st.text(min_size=1, max_size=20), st.binary(max_size=20))
def test_the_refusal_says_no_word_that_the_job_chose(secret: str, noise: bytes) -> None:
    extra = {secret: np.zeros(1, np.float32)}
    header = json.dumps({secret: entry("Q" + secret, [1], 0, 4)}).encode()
    for outputs in (
        {**GOOD, "update.safetensors": save({**VALUES, **extra})},
        {**GOOD, "update.safetensors": tensors(header, bytes(4))},
        {**GOOD, "report.json": json.dumps({secret: secret}).encode()},
        {**GOOD, "report.json": b'{"loss": ' + json.dumps(secret).encode() + b', "films": 1}'},
        {**GOOD, f"{secret}.x": noise},
    ):
        with pytest.raises(NotReleased) as refused:
            released(POLICY, outputs)
        assert str(refused.value) in {
            "update.safetensors: it does not hold exactly the arrays count, delta, labelled",
            "update.safetensors: it is no safetensors file",
            "report.json: it does not hold exactly the numbers loss, films",
            "report.json: loss is not one finite number",
            f"report.json is larger than {NUMBERS.most_bytes} bytes",
            "it did not leave exactly the files report.json, update.safetensors",
        }


@pytest.mark.parametrize("dtype", ["complex64", "object", "U4", "datetime64[s]"])
def test_a_policy_takes_booleans_and_real_numbers(dtype) -> None:
    with pytest.raises(ValueError, match="give bool, an integer or a floating type"):
        Arrays({"a": (dtype, (2,))})
