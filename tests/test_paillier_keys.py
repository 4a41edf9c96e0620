"""Keys: how they are drawn, kept and checked, with numbers that somebody could send instead of a key."""

import json
import os
from dataclasses import replace
from math import gcd

import gmpy2
import pytest

from fedbone.encryption import paillier_keys
from fedbone.encryption.paillier_keys import PrivateKey, PublicKey, generate, insecure_test_key
from fedbone.errors import UserError

KEY = insecure_test_key()
PUBLIC = KEY.public
N, H, P = int(PUBLIC.n), int(PUBLIC.h), int(KEY.p)


def require_djn(key):
    """What section 6 of Damgard, Jurik and Nielsen asks for, in Python's integers."""
    p, q, n, h = int(key.p), int(key.q), int(key.public.n), int(key.public.h)
    assert gmpy2.is_prime(p)
    assert gmpy2.is_prime(q)
    assert p * q == n
    assert p % 4 == q % 4 == 3
    assert gcd(p - 1, q - 1) == 2
    assert gcd(n, (p - 1) * (q - 1)) == 1
    for prime in (p, q):  # -h is a square modulo each prime, and h is none: -1 is a non-residue
        assert pow(-h, (prime - 1) // 2, prime) == 1
    assert int(key.public.h_n) == pow(h, n, n * n)
    assert int(key.public.n_squared) == n * n


@pytest.mark.parametrize("bits", [512, 528, 1024])
def test_a_test_key_has_the_size_asked_for(bits):
    key = insecure_test_key(bits)
    require_djn(key)
    assert key.public.bits == bits


def test_3072_bits_are_the_default(capsys, tmp_path):
    key = generate()
    require_djn(key)
    assert key.public.bits == 3072
    assert capsys.readouterr().out == ""
    assert PublicKey.from_json(key.public.to_json()) == key.public
    assert PrivateKey.load(key.save(tmp_path / "a new folder" / "hospital.key")) == key


def test_2048_bits_are_announced(capsys):
    key = generate(2048)
    require_djn(key)
    assert key.public.bits == 2048
    assert "2048 have 112 bits of security, 3072 have 128" in capsys.readouterr().out


@pytest.mark.parametrize("bits", [0, 512, 1024, 2047, 2056, 8208])
def test_no_key_of_another_size(bits):
    with pytest.raises(UserError, match="from 2048 to 8192"):
        generate(bits)


def test_two_keys_share_nothing():
    other = insecure_test_key()
    assert gcd(N, int(other.public.n)) == 1
    assert PUBLIC.id != other.public.id


def test_the_id_depends_on_both_numbers():
    assert len(bytes.fromhex(PUBLIC.id)) == 8
    assert replace(PUBLIC, h=PUBLIC.n - PUBLIC.h).id != PUBLIC.id
    assert PublicKey(PUBLIC.n, PUBLIC.h).id == PUBLIC.id


def test_no_text_of_a_private_key_shows_a_prime():
    texts = [repr(KEY), str(KEY), f"{KEY}", repr([KEY]), repr(PUBLIC), str(vars(PUBLIC)), PUBLIC.to_json()]
    for prime in (KEY.p, KEY.q):
        for secret in (str(prime), f"{prime:x}", f"{prime:X}"):
            assert not [text for text in texts if secret in text]
    assert PUBLIC.id in repr(KEY)


def test_a_public_key_on_its_way():
    text = PUBLIC.to_json()
    assert set(json.loads(text)) == {"kind", "n", "h"}
    assert PublicKey.from_json(text, least_bits=512) == PUBLIC
    assert PublicKey.from_json(text, least_bits=512).id == PUBLIC.id


def test_a_key_that_is_too_short_to_use_is_refused():
    with pytest.raises(UserError, match="512 bits, where a multiple of 16 from 2048"):
        PublicKey.from_json(PUBLIC.to_json())
    with pytest.raises(UserError, match="1024 bits"):
        PublicKey.from_json(insecure_test_key(1024).public.to_json())


PRIME = int(gmpy2.next_prime(3 << 510))
SQUARE = int(KEY.p) ** 2
BASE, MODULUS = "its base hides nothing", "not a product of two large primes"


@pytest.mark.parametrize(
    ("n", "h", "problem"),
    [
        (PRIME, 5, MODULUS),
        (SQUARE, 5, MODULUS),
        (N - 1, 5, MODULUS),
        (N + (3 - N % 3), 5, MODULUS),
        (N, 0, BASE),
        (N, 1, BASE),
        (N, N - 1, BASE),
        (N, N + 5, BASE),
        (N, N, BASE),
        (N, 6 * P, BASE),
        (N, 6 * P + 1, BASE),
        (N, 6 * P - 1, BASE),
        (N << 16, H, MODULUS),
        (N << 8, H, "520 bits"),
        (N << 7808, H, "8320 bits"),
        (0, 0, "0 bits"),
    ],
    ids="prime square even three h0 h1 h-1 h-high hn hp hp+1 hp-1 shifted size long nothing".split(),
)
def test_numbers_that_are_no_key(n, h, problem):
    size = max(64, (n.bit_length() + 7) // 8)
    text = json.dumps({"kind": paillier_keys.PUBLIC_KIND, "n": n.to_bytes(size).hex(), "h": h.to_bytes(size).hex()})
    with pytest.raises(UserError, match=problem):
        PublicKey.from_json(text, least_bits=512)


GOOD = json.loads(PUBLIC.to_json())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 5000,
        json.dumps(GOOD | {"extra": 1}),
        json.dumps({"kind": GOOD["kind"], "n": GOOD["n"]}),
        json.dumps(GOOD | {"kind": "fedbone Paillier public key 2"}),
        json.dumps(GOOD | {"n": N}),
        json.dumps(GOOD | {"n": GOOD["n"].upper()}),
        json.dumps(GOOD | {"n": " " + GOOD["n"]}),
        json.dumps(GOOD | {"n": "00" + GOOD["n"]}),
        json.dumps(GOOD | {"n": "-" + GOOD["n"]}),
        json.dumps(GOOD, indent=1),
        PUBLIC.to_json() + "\n",
        PUBLIC.to_json()[:-1] + f', "n": "{GOOD["n"]}"}}',
        json.dumps(GOOD | {"h": GOOD["h"] + "00"}),
        json.dumps(GOOD | {"n": "f" * 8000, "h": "f" * 8000}),
    ],
    ids="empty list null deep extra lacks kind number upper space zeros minus indent newline twice longer huge".split(),
)
def test_text_that_is_no_key(text):
    with pytest.raises(UserError, match="it is not a fedbone Paillier public key 1"):
        PublicKey.from_json(text, least_bits=512)


def test_a_private_key_in_its_file(tmp_path):
    path = KEY.save(tmp_path / "hospital.key")
    assert PrivateKey.load(path, least_bits=512) == KEY
    json.loads(path.read_bytes())  # and not a pickle, which would run what it likes
    with pytest.raises(UserError, match="never overwritten"):
        insecure_test_key().save(path)
    with pytest.raises(UserError, match="512 bits"):
        PrivateKey.load(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_its_owner_may_read_it(tmp_path):
    path = KEY.save(tmp_path / "hospital.key")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(UserError, match="640"):
        PrivateKey.load(path, least_bits=512)


Q = int(KEY.q)


def first(bits, suits):
    """The first prime with so many bits, of which the highest two are ones, that ``suits``."""
    prime = gmpy2.next_prime(3 << (bits - 2))
    while not suits(int(prime)):
        prime = gmpy2.next_prime(prime)
    return int(prime)


def fits(p, q=Q):
    return p % 4 == 3 and gcd(p - 1, q - 1) == 2


FACTOR = first(128, lambda a: a % 4 == 1)
COMPOSITE = FACTOR * first(128, lambda b: fits(FACTOR * b))
NOT_3_MOD_4 = first(256, lambda p: p % 4 == 1)
LARGER_GCD = first(256, lambda p: p % 4 == 3 and (p - 1) % 7 == 0)
FOR_LARGER_GCD = first(256, lambda q: q != LARGER_GCD and q % 4 == 3 and gcd(LARGER_GCD - 1, q - 1) == 14)
UNSUITABLE = "its two numbers are not primes that suit each other"
LOPSIDED = first(320, lambda p: fits(p, first(192, lambda q: q % 4 == 3)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"p": COMPOSITE}, UNSUITABLE),
        ({"q": COMPOSITE, "p": first(256, lambda p: fits(p, COMPOSITE))}, UNSUITABLE),
        ({"p": Q}, UNSUITABLE),
        ({"p": NOT_3_MOD_4}, UNSUITABLE),
        ({"p": LARGER_GCD, "q": FOR_LARGER_GCD}, UNSUITABLE),
        ({"p": LOPSIDED, "q": first(192, lambda q: q % 4 == 3)}, UNSUITABLE),
        ({"h": 1}, BASE),
        ({"h": N + 5}, BASE),
        ({"kind": paillier_keys.PUBLIC_KIND}, "it is not a fedbone Paillier private key 1"),
    ],
    ids="p-composite q-composite same 1-mod-4 gcd lopsided h1 h-high kind".split(),
)
def test_a_damaged_private_key_is_refused_and_not_quoted(change, problem, tmp_path):
    path = KEY.save(tmp_path / "hospital.key")
    fields = {"kind": paillier_keys.PRIVATE_KIND, "p": P, "q": Q, "h": 5} | change
    hexadecimal = {name: value.to_bytes(64).hex() for name, value in fields.items() if name != "kind"}
    path.write_text(json.dumps(fields | hexadecimal))
    with pytest.raises(UserError, match=rf"hospital\.key: {problem}") as caught:
        PrivateKey.load(path, least_bits=512)
    assert f"{Q:x}" not in str(caught.value)


def test_a_file_that_is_no_key(tmp_path):
    path = KEY.save(tmp_path / "hospital.key")
    path.write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match="it is not a fedbone Paillier private key 1"):
        PrivateKey.load(path, least_bits=512)
