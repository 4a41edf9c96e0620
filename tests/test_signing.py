"""Signatures hold for one key, one purpose and one message."""

import os
import pickle

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.encryption.signing import SigningKey, checked_directory, verify
from fedbone.errors import UserError
from fedbone.files import write_secret

SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")  # RFC 8032, 7.1, test 1
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the group: RFC 8032, 5.1


@pytest.fixture
def key(tmp_path):
    return SigningKey.load(write_secret(tmp_path / "rfc.key", SECRET))


def test_the_public_key_is_that_of_the_rfc(key):
    assert key.public == PUBLIC


def test_what_is_signed_is_the_purpose_with_its_length_and_then_the_message(key):
    statement = b"\x00\x06upload" + b"hello"
    assert key.sign("upload", b"hello") == Ed25519PrivateKey.from_private_bytes(SECRET).sign(statement)
    Ed25519PublicKey.from_public_bytes(PUBLIC).verify(key.sign("upload", b"hello"), statement)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(max_size=20), st.binary(max_size=50), st.text(max_size=20), st.binary(max_size=50))
def test_a_signature_holds_for_its_own_purpose_and_message_only(purpose, message, other_purpose, other):
    key = SigningKey.create()
    signature = key.sign(purpose, message)
    assert verify(key.public, purpose, message, signature)
    assert verify(key.public, other_purpose, other, signature) is ((purpose, message) == (other_purpose, other))
    assert not verify(SigningKey.create().public, purpose, message, signature)


def test_nothing_can_be_moved_from_the_purpose_into_the_message(key):
    assert not verify(PUBLIC, "offe", b"rx", key.sign("offer", b"x"))


def test_every_flipped_bit_is_found(key):
    message, signature = b"an update", key.sign("upload", b"an update")
    for byte in range(64):
        for bit in range(8):
            forged = bytearray(signature)
            forged[byte] ^= 1 << bit
            assert not verify(PUBLIC, "upload", message, bytes(forged))


def test_a_second_signature_cannot_be_made_from_the_first(key):
    """s + order satisfies the equation too, and RFC 8032, 5.1.7 demands that it is refused."""
    signature = key.sign("upload", b"x")
    s = int.from_bytes(signature[32:], "little") + ORDER
    assert not verify(PUBLIC, "upload", b"x", signature[:32] + s.to_bytes(32, "little"))


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_of_another_length_does_not_hold(key, size):
    assert not verify(PUBLIC, "upload", b"x", key.sign("upload", b"x").ljust(65, b"\0")[:size])


def test_a_key_comes_back_from_its_file(tmp_path):
    key = SigningKey.create()
    path = key.save(tmp_path / "a folder" / "signing.key")
    assert SigningKey.load(path).public == key.public
    if os.name != "nt":
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="never overwritten"):
        SigningKey.create().save(path)
    assert SigningKey.load(path).public == key.public


@pytest.mark.parametrize("content", [b"", SECRET[:31], SECRET + b"\n"], ids=["empty", "short", "long"])
def test_another_file_is_refused_and_not_quoted(tmp_path, content):
    path = write_secret(tmp_path / "some.key", content)
    with pytest.raises(UserError, match="signing key") as refusal:
        SigningKey.load(path)
    assert content.hex()[:20] not in str(refusal.value) or not content


def test_neither_repr_nor_pickle_shows_the_key(key):
    assert SECRET.hex() not in repr(key)
    assert repr(SECRET) not in repr(vars(key))
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(key)


def test_every_key_is_fresh():
    assert len({SigningKey.create().public for _ in range(50)}) == 50


def test_a_directory_is_copied_and_holds_each_key_once():
    entries = {"a": SigningKey.create().public, "b": SigningKey.create().public}
    directory = checked_directory(entries)
    entries["c"] = entries["a"]
    assert list(directory) == ["a", "b"]
    with pytest.raises(UserError, match="'a' too") as refusal:
        checked_directory(entries)
    assert refusal.value.where == "c"


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33), "0" * 32, None], ids=["0", "31", "33", "text", "None"])
def test_a_directory_holds_public_keys(public):
    with pytest.raises(UserError, match="32 bytes"):
        checked_directory({"a": public})
