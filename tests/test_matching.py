"""The same film twice: which copies have one hash, and what a server can and cannot find out from tags."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from fedbone.errors import UserError
from fedbone.imaging.matching import blind_tags, film_hash, match, pixel_hash
from tests.dicom_cases import GDCM_SYNTAXES, film, ramp, save

LOSSLESS = ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"]
IMAGES = arrays.arrays(np.uint16, st.tuples(st.integers(2, 6), st.integers(2, 6)), elements=st.integers(0, 4095))


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_compression_keeps_the_hash(tmp_path: Path, syntax: str) -> None:
    assert syntax in GDCM_SYNTAXES
    plain = save(tmp_path / "plain.dcm", film(ramp(), BitsStored=12))
    packed = save(tmp_path / "packed.dcm", film(ramp(), BitsStored=12), syntax)
    assert plain.read_bytes() != packed.read_bytes()
    assert film_hash(plain) == film_hash(packed) == pixel_hash(ramp())


def test_header_encoding_and_packing_keep_the_hash(tmp_path: Path) -> None:
    values = ramp(high=250)
    expected = pixel_hash(values)
    cases = {
        "other header": film(values, PatientID="B", WindowCenter=3, WindowWidth=9, RescaleSlope="2", Rows=60),
        "8 bits": film(values.astype(np.uint8)),
        "signed": film(values.astype(np.int16)),
        "signed, other zero": film((values.astype(np.int32) - 1024).astype(np.int16)),
        "left-aligned": film(values << 4, BitsStored=12, HighBit=15),
        "noise in unused bits": film(values | 0xF000, BitsStored=12),
        "negative": film(4095 - values, BitsStored=12, PhotometricInterpretation="MONOCHROME1"),
        "negative, without a word of it": film(4095 - values, BitsStored=12),
    }
    for name, dataset in cases.items():
        assert film_hash(save(tmp_path / f"{name}.dcm", dataset)) == expected, name
    for name, syntax in (("implicit", ImplicitVRLittleEndian), ("j2k", JPEG2000Lossless)):
        dataset = film(values, BitsStored=12)
        if syntax == JPEG2000Lossless:
            dataset.compress(syntax)
        dataset.file_meta.TransferSyntaxUID = syntax
        assert film_hash(save(tmp_path / f"{name}.dcm", dataset)) == expected, name
    big = film(values, BitsStored=12)
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    big.PixelData = values.astype(">u2").tobytes()
    big.save_as(tmp_path / "big.dcm", implicit_vr=False, little_endian=False, enforce_file_format=True)
    assert film_hash(tmp_path / "big.dcm") == expected


def test_hash_is_fixed_for_ever() -> None:
    """Hospitals with different versions must agree; worked out from the words of the docstring alone."""
    values = np.array([[7, 5], [6, 9], [5, 5]], np.uint8)
    digests = [
        hashlib.sha256(bytes([3, 0, 0, 0, 2, 0, 0, 0]) + bytes(byte for v in flat for byte in (v, 0))).hexdigest()
        for flat in ([2, 0, 1, 4, 0, 0], [2, 4, 3, 0, 4, 4])
    ]
    assert pixel_hash(values) == min(digests)
    assert pixel_hash(np.array([[0, 65535]], np.uint16)) == pixel_hash(np.array([[-32768, 32767]], np.int16))


@given(IMAGES, st.data())
def test_any_pixel_changes_the_hash(values: np.ndarray, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, values.size - 1))
    other = values.copy()
    other.flat[index] = data.draw(st.integers(0, 4095).filter(lambda value: value != values.flat[index]))
    assume(len(np.unique(np.delete(values.ravel(), index))) > 1)  # else the change can make it its own negative
    assert pixel_hash(other) != pixel_hash(values)
    assert pixel_hash(4095 - values) == pixel_hash(values)


@given(IMAGES)
def test_shape_and_order_count(values: np.ndarray) -> None:
    turned = [values.reshape(1, -1), values.reshape(-1, 1), values[::-1], values[:, ::-1], values.T, values[:-1]]
    for other in turned:
        same = other.shape == values.shape and (
            np.array_equal(other - other.min(), values - values.min())
            or np.array_equal(other.max() - other, values - values.min())
        )
        assert (pixel_hash(other) == pixel_hash(values)) == same


@pytest.mark.parametrize("content", [b"", b"a text file", None])
def test_a_file_that_is_no_film_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.dcm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.dcm"):
        film_hash(path)


def test_a_damaged_stream_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.dcm", film(ramp()), LOSSLESS[0])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"x\.dcm"):
        film_hash(path)


def test_match_finds_shared_films_and_nothing_else() -> None:
    a, b, c = ([pixel_hash(ramp() + number) for number in range(3)] for _ in range(3))  # offsets: one picture
    assert len({*a, *b, *c}) == 1
    films = [pixel_hash(np.random.default_rng(number).integers(0, 99, (4, 4))) for number in range(6)]
    key = secrets.token_bytes(32)
    sent = {"north": films[:3], "south": [films[4], films[1], films[1]], "west": [films[5], films[2], films[1]]}
    tags = {name: blind_tags(hashes, key) for name, hashes in sent.items()}
    assert match(tags) == [
        (("north", 1), ("south", 1), ("south", 2), ("west", 2)),
        (("north", 2), ("west", 1)),
    ]
    assert match({"south": tags["south"]}) == []  # its own business
    assert match({}) == []


def test_tags_are_hmac_of_the_hash() -> None:
    """RFC 4231, test case 6: a key longer than the block; and the definition through the standard library."""
    text = b"Test Using Larger Than Block-Size Key - Hash Key First"
    expected = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
    assert blind_tags([text.hex()], b"\xaa" * 131) == [expected]
    key, value = bytes(range(32)), pixel_hash(ramp())
    assert blind_tags([value], key) == [hmac.new(key, bytes.fromhex(value), hashlib.sha256).hexdigest()]


@pytest.mark.parametrize("key", [b"", b"hospital", bytes(range(31)), "x" * 32, None, 32])
def test_weak_keys_are_refused(key: object) -> None:
    with pytest.raises(UserError, match=r"at least 32 bytes.*secrets\.token_bytes\(32\)"):
        blind_tags([pixel_hash(ramp())], key)


def test_only_a_secret_key_stops_a_dictionary_attack() -> None:
    """The server holds one film, from a leaked archive say, and asks which hospital has that patient."""
    films = [np.random.default_rng(number).integers(0, 4096, (8, 8)).astype(np.uint16) for number in range(8)]
    hashes = [pixel_hash(values) for values in films]
    guess = pixel_hash(films[5].copy())

    assert hashes.index(guess) == 5  # plain hashes: the server reads off whose film it is
    salt = secrets.token_bytes(32)  # so they are with a salt that the server must know to compare
    salted = [hashlib.sha256(salt + bytes.fromhex(value)).hexdigest() for value in hashes]
    assert salted.index(hashlib.sha256(salt + bytes.fromhex(guess)).hexdigest()) == 5

    key = secrets.token_bytes(32)
    tags = blind_tags(hashes, key)
    attempts = [guess, hashlib.sha256(salt + bytes.fromhex(guess)).hexdigest()]
    attempts += blind_tags([guess], secrets.token_bytes(32)) + blind_tags([guess], bytes(32))
    assert not set(attempts) & set(tags)
    assert match({"server": attempts, "north": tags}) == []
    assert match({"south": blind_tags([guess], key), "north": tags}) == [(("south", 0), ("north", 5))]
