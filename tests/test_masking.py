"""Masks cancel over the roster, look random by themselves, and serve once."""

import gc
import hashlib
import hmac
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from fedbone.encryption import masking
from fedbone.encryption.masking import MaskKey, Masks
from fedbone.errors import UserError

WORD = np.dtype("<u4")
N = mpz(3) << 510 | 1  # 512 bits, and far from a power of two
RARE = 1e-13  # chance that a test of fresh randomness fails although all is well


def all_masks(names, contexts=None) -> list[Masks]:
    keys = {name: MaskKey() for name in names}
    publics = {name: key.public for name, key in keys.items()}
    return [key.masks(name, publics, (contexts or {}).get(name, b"sum 1")) for name, key in keys.items()]


def sum_of_integers(masks, count) -> list:
    return [sum(numbers) % N for numbers in zip(*(own.integers(count, N) for own in masks), strict=True)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sets(st.text(max_size=8), min_size=3, max_size=7),
    st.sampled_from([0, 1, 3, 4, 5, 20]),
    st.sampled_from([WORD, np.dtype("<u8")]),
)
def test_masks_of_a_whole_roster_cancel_exactly(names, count, word):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "BLOCK", 4)
        assert sum_of_integers(all_masks(names), count) == [0] * count
        words = np.sum([own.words(count, word) for own in all_masks(names)], axis=0, dtype=word)
    assert not words.any()
    assert words.shape == (count,)


def test_the_keystream_goes_on_from_block_to_block(monkeypatch):
    seeds = [(True, bytes(32)), (False, b"\1" * 32)]
    whole = Masks(seeds).integers(10, N), Masks(seeds).words(10, WORD).tolist()
    monkeypatch.setattr(masking, "BLOCK", 3)
    assert (Masks(seeds).integers(10, N), Masks(seeds).words(10, WORD).tolist()) == whole


@pytest.mark.parametrize("missing", range(4))
def test_without_one_hospital_nothing_cancels(missing):
    for take in (sum_of_integers, lambda masks, count: sum(own.words(count, WORD) for own in masks).tolist()):
        masks = all_masks("abcd")
        del masks[missing]
        assert any(take(masks, 8))


@pytest.mark.parametrize("other", [b"sum 2", b"", b"sum 1 "], ids=["other", "empty", "longer"])
def test_hospitals_that_disagree_on_the_context_get_no_sum(other):
    assert 0 not in sum_of_integers(all_masks("abc", {"b": other}), 3)


def test_names_belong_to_the_secret():
    """Who copies another's key takes part in that hospital's secrets under no other name."""
    keys = {name: MaskKey() for name in "abc"}
    publics = {name: key.public for name, key in keys.items()} | {"b": keys["a"].public}
    (_, to_a), (_, to_b) = [(own, masking._seed(keys["c"]._key, "c", own, publics[own], b"")) for own in "ab"]
    assert to_a != to_b


def hkdf_by_hand(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256 and no salt; one block is enough."""
    return hmac.digest(hmac.digest(bytes(32), secret, hashlib.sha256), info + b"\x01", hashlib.sha256)


def keystream_by_hand(key: bytes, size: int) -> bytes:
    """Counter mode from the block cipher: the counters 0, 1, 2, ... encrypted."""
    counters = b"".join(number.to_bytes(16, "big") for number in range(-(-size // 16)))
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)[:size]


def test_masks_are_those_of_the_standards():
    """The key pairs and their secret are in RFC 7748, section 6.1."""
    alice, carol = MaskKey(), X25519PrivateKey.generate()
    alice._key = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    publics = {
        "alice": bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"),
        "Bob": bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"),
        "carol": carol.public_key().public_bytes_raw(),
    }
    with_bob = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    with_carol = carol.exchange(alice._key.public_key())
    prefix = b"\0\0\0\x0efedbone mask 1" + b"\0\0\0\x04here"
    bob_first = hkdf_by_hand(with_bob, prefix + b"\0\0\0\x03Bob" + b"\0\0\0\x05alice")
    carol_last = hkdf_by_hand(with_carol, prefix + b"\0\0\0\x05alice" + b"\0\0\0\x05carol")
    minus, plus = (np.frombuffer(keystream_by_hand(seed, 400), "<u4") for seed in (bob_first, carol_last))
    assert alice.masks("alice", publics, b"here").words(100, WORD).tolist() == (plus - minus).tolist()


def test_integers_are_the_keystream_modulo_n():
    """512 bits and 16 bytes more: 80 bytes of keystream each."""
    stream = keystream_by_hand(b"k" * 32, 160)
    expected = [int.from_bytes(stream[:80], "little") % int(N), int.from_bytes(stream[80:], "little") % int(N)]
    assert Masks([(True, b"k" * 32)]).integers(2, N) == expected
    assert Masks([(False, b"k" * 32)]).integers(2, N) == [int(N) - number for number in expected]


def look_uniform(shares: np.ndarray) -> bool:
    """Whether numbers in [0, 1) fill 256 boxes alike (chi-squared; a fresh sample of them fails once in 1 / RARE)."""
    boxes = np.bincount((shares * 256).astype(int), minlength=256)
    expected = len(shares) / 256
    return ((boxes - expected) ** 2 / expected).sum() < chi2.isf(RARE, 255)


def test_one_hospitals_masks_look_uniform():
    for own in all_masks("abc"):
        integers = own.integers(10_000, N)
        assert look_uniform(np.array([float(number / N) for number in integers]))
        assert look_uniform(np.array([int(number & 0xFFFF) / 65536 for number in integers]))
        assert len(set(integers)) == len(integers)
    for own in all_masks("abc"):
        words = own.words(100_000, WORD)
        for low_bit in (0, 8, 16, 24):
            assert look_uniform((words >> low_bit & 0xFF) / 256)


def test_the_check_of_uniformity_finds_what_is_not():
    """Numbers below 2**511 are 2/3 of those below N."""
    assert not look_uniform(np.random.default_rng(0).random(10_000) * 2 / 3)


def test_masks_are_taken_once():
    masks = [*all_masks("abc"), *all_masks("abc")]
    for first in (lambda own: own.integers(2, N), lambda own: own.words(2, WORD)):
        for second in (lambda own: own.integers(2, N), lambda own: own.words(2, WORD)):
            own = masks.pop()
            first(own)
            with pytest.raises(ValueError, match="used up"):
                second(own)


def test_a_key_makes_masks_once_and_is_gone():
    keys = {name: MaskKey() for name in "abc"}
    publics = {name: key.public for name, key in keys.items()}
    keys["a"].masks("a", publics, b"")
    assert not any(isinstance(held, X25519PrivateKey) for held in gc.get_referents(vars(keys["a"])))
    with pytest.raises(ValueError, match="once"):
        keys["a"].masks("a", publics, b"another")


def test_no_key_is_used_for_two_sums():
    assert len({MaskKey().public for _ in range(50)}) == 50


def test_a_key_cannot_be_pickled_and_its_repr_shows_nothing():
    key = MaskKey()
    secret = key._key.private_bytes_raw()
    assert secret.hex() not in repr(key)
    assert repr(secret) not in repr(vars(key))
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(key)


@pytest.mark.parametrize("others", ["", "b"], ids=["alone", "two"])
def test_fewer_than_three_hospitals_are_refused(others):
    key = MaskKey()
    with pytest.raises(UserError, match="at least 3") as refusal:
        key.masks("a", {"a": key.public} | {name: MaskKey().public for name in others}, b"")
    assert refusal.value.where == "a"


P = 2**255 - 19
SMALL_ORDER = {  # every u of a point of small order below 2**255: the secret is 0 with any private key
    "0": 0,
    "1": 1,
    "order 8": 325606250916557431795983626356110631294008115727848805560023387167927233504,
    "also order 8": 39382357235489614581723060781553021112529911719440698176882885853963445705823,
    "-1": P - 1,
    "p": P,
    "p + 1": P + 1,
}


@pytest.mark.parametrize("u", SMALL_ORDER.values(), ids=SMALL_ORDER)
def test_a_public_key_that_gives_a_known_secret_is_refused(u):
    key = MaskKey()
    publics = {"a": key.public, "b": MaskKey().public, "c": u.to_bytes(32, "little")}
    with pytest.raises(UserError, match="not a sound X25519 key") as refusal:
        key.masks("a", publics, b"")
    assert refusal.value.where == "c"
