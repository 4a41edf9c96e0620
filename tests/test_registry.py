"""Each key is known once, by its thumbprint, for one hospital, until it is revoked."""

import json
import os
import pickle
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import PyJWK
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from fedbone.custody.registry import LoginKey, Registry, public_key, thumbprint
from fedbone.errors import UserError
from fedbone.files import write_secret

ROOT = Path(__file__).resolve().parents[1]
NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
DPOP = {  # RFC 9449, section 4.1; its thumbprint stands in section 6.1
    "kty": "EC",
    "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
    "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
    "crv": "P-256",
}
DPOP_THUMBPRINT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
A3 = {  # RFC 7515, appendix A.3.1
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}
A3_SECRET = "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path / "registry.json")


@pytest.fixture(scope="module")
def key() -> LoginKey:
    return LoginKey.create("hospital_a")


# the key of a hospital


def test_the_thumbprint_is_that_of_the_rfc():
    assert thumbprint(DPOP) == DPOP_THUMBPRINT


def test_the_public_part_is_that_of_the_rfc():
    key = LoginKey("hospital_a", PyJWK({**A3, "d": A3_SECRET}).key)
    assert key.public_entry() == {"site": "hospital_a", "public": A3}
    assert key.kid == thumbprint(A3)
    assert public_key(A3).public_numbers() == PyJWK(A3).key.public_numbers()


def test_a_key_comes_back_from_its_file(key, tmp_path):
    path = key.save(tmp_path / "a folder" / "login.key")
    again = LoginKey.load(path)
    assert (again.site, again.kid, again.public_entry()) == (key.site, key.kid, key.public_entry())
    if os.name != "nt":
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="never overwritten"):
        LoginKey.create("hospital_a").save(path)
    assert LoginKey.load(path).kid == key.kid


def test_openssl_reads_the_file_too(key, tmp_path):
    path = key.save(tmp_path / "login.key")
    try:
        done = subprocess.run(["openssl", "pkey", "-in", path, "-pubout"], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert ECAlgorithm.to_jwk(serialization.load_pem_public_key(done.stdout), as_dict=True) == DPOP | {
        name: key.public_entry()["public"][name] for name in ("x", "y")
    }


def pem(private) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


FIRST = b"fedbone login key of hospital_a\n"
SECRET = pem(ec.generate_private_key(ec.SECP256R1()))
OTHER_FILES = {
    "empty": b"",
    "no name": SECRET,
    "another name": b"fedbone login key of Hospital A\n" + SECRET,
    "cut": FIRST + SECRET[:-60],
    "public": FIRST
    + ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    "P-384": FIRST + pem(ec.generate_private_key(ec.SECP384R1())),
    "secp256k1": FIRST + pem(ec.generate_private_key(ec.SECP256K1())),
    "Ed25519": FIRST + pem(ed25519.Ed25519PrivateKey.generate()),
    "encrypted": FIRST
    + ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    ),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_another_file_is_refused_and_not_quoted(tmp_path, name):
    path = write_secret(tmp_path / "some.key", OTHER_FILES[name])
    with pytest.raises(UserError, match="no login key") as refusal:
        LoginKey.load(path)
    shown = "".join(traceback.format_exception(refusal.value))
    assert not [line for line in OTHER_FILES[name].decode().splitlines()[2:] if len(line) > 20 and line in shown]


@pytest.mark.skipif(os.name == "nt", reason="POSIX only")
def test_a_key_that_others_may_read_is_refused(key, tmp_path):
    path = key.save(tmp_path / "login.key")
    path.chmod(0o640)
    with pytest.raises(UserError, match="group or others"):
        LoginKey.load(path)


def test_neither_repr_nor_pickle_shows_the_key():
    key = LoginKey("hospital_a", PyJWK({**A3, "d": A3_SECRET}).key)
    number = key._key.private_numbers().private_value
    for shown in (repr(key), str(key), repr(vars(key)), json.dumps(key.public_entry())):
        assert not [secret for secret in (A3_SECRET, str(number), f"{number:x}") if secret in shown]
    assert repr(key) == f"LoginKey('hospital_a', kid='{key.kid}')"
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(key)


def test_every_key_is_fresh():
    assert len({LoginKey.create("a").kid for _ in range(20)}) == 20


BAD_NAMES = ["", "A", "1a", "_a", "a b", "a\n", "a/b", "\u00e4", "a" * 41, None, 7, b"a"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_names_that_no_hospital_can_have(registry, key, name):
    with pytest.raises(UserError, match="cannot be a hospital's name"):
        LoginKey.create(name)
    with pytest.raises(UserError, match="cannot be a hospital's name"):
        registry.add({**key.public_entry(), "site": name})
    assert not registry.path.exists()


@pytest.mark.parametrize("name", ["a", "a" * 40, "hospital-a_1"])
def test_names_that_a_hospital_can_have(registry, name):
    registry.add(LoginKey.create(name).public_entry())
    assert registry.active(name)


# the list


def test_a_key_is_registered_and_revoked(registry, key):
    assert registry.add(key.public_entry(), NOW) == key.kid
    entry = {**key.public_entry(), "state": "active", "since": "2027-01-15T08:00:00+00:00", "reason": ""}
    assert registry.entry(key.kid) == entry
    assert json.loads(registry.path.read_text()) == {"keys": {key.kid: entry}}
    assert registry.entry(DPOP_THUMBPRINT) is None
    assert registry.active("hospital_a")
    assert not registry.active("hospital_b")
    registry.revoke(key.kid, "laptop stolen", NOW + 60)
    revoked = {"state": "revoked", "since": "2027-01-15T08:01:00+00:00", "reason": "laptop stolen"}
    assert registry.entry(key.kid) == {**entry, **revoked}
    assert not registry.active("hospital_a")


def test_a_rotation_has_both_keys_for_a_while_and_others_see_it_at_once(registry, key):
    server = Registry(registry.path)
    new = LoginKey.create("hospital_a")
    registry.add(key.public_entry())
    assert server.active("hospital_a")
    registry.add(new.public_entry())
    assert {server.entry(kid)["state"] for kid in (key.kid, new.kid)} == {"active"}
    registry.revoke(key.kid, "rotation")
    assert (server.entry(key.kid)["state"], server.entry(new.kid)["state"]) == ("revoked", "active")
    assert server.active("hospital_a")


def test_a_key_is_registered_once(registry, key):
    registry.add(key.public_entry())
    before = registry.path.read_bytes()
    for site in ("hospital_a", "hospital_b"):
        with pytest.raises(UserError, match="registered already, for hospital_a"):
            registry.add({**key.public_entry(), "site": site})
    assert registry.path.read_bytes() == before


def test_a_revoked_key_never_comes_back_and_the_messages_say_when_and_why(registry, key):
    registry.add(key.public_entry(), NOW)
    registry.revoke(key.kid, "laptop stolen", NOW)
    before = registry.path.read_bytes()
    said = re.escape("was revoked on 2027-01-15T08:00:00+00:00 (laptop stolen)")
    for site in ("hospital_a", "hospital_b"):
        with pytest.raises(UserError, match=f"of hospital_a {said}"):
            registry.add({**key.public_entry(), "site": site})
    with pytest.raises(UserError, match=f"{said} already"):
        registry.revoke(key.kid, "another reason", NOW + 99)
    assert registry.path.read_bytes() == before


def test_what_was_never_registered_cannot_be_revoked(registry, key):
    with pytest.raises(UserError, match="no key with the id 'x' is registered"):
        registry.revoke("x", "lost")
    registry.add(key.public_entry())
    with pytest.raises(UserError, match="no key with the id 'x' is registered"):
        registry.revoke("x", "lost")
    assert registry.active("hospital_a")


@pytest.mark.parametrize("reason", ["", "a\nb", "\x1b[2J", "x" * 201, None, "\ud800"], ids=ascii)
def test_a_reason_is_one_line(registry, key, reason):
    registry.add(key.public_entry())
    with pytest.raises(UserError, match="reason"):
        registry.revoke(key.kid, reason)
    assert registry.active("hospital_a")


def edited(**changes) -> dict:
    return {name: value for name, value in {**DPOP, **changes}.items() if value is not None}


P384 = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
RSA = RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key(), as_dict=True)
NO_KEYS = {
    "private part": {**A3, "d": A3_SECRET},
    "P-384": P384,
    "secp256k1": edited(crv="secp256k1"),
    "RSA": RSA,
    "HMAC": {"kty": "oct", "k": "AAAA"},
    "off the curve": edited(y="9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDE"),
    "the origin": edited(x="A" * 43, y="A" * 43),
    "short": edited(x="AAAA"),
    "padded": edited(x=DPOP["x"] + "="),
    "other trailing bits": edited(x=DPOP["x"][:-1] + "t"),
    "with a use": edited(use="sig"),
    "no y": edited(y=None),
    "a number": edited(x=7),
    "PEM": "-----BEGIN PUBLIC KEY-----",
    "nothing": None,
}


def test_the_key_that_these_differ_from_is_accepted(registry):
    registry.add({"site": "hospital_a", "public": DPOP})
    assert registry.active("hospital_a")


@pytest.mark.parametrize("name", NO_KEYS)
def test_only_a_public_p256_key_in_its_one_form_is_registered(registry, name):
    with pytest.raises(UserError, match="no login key") as refusal:
        registry.add({"site": "hospital_a", "public": NO_KEYS[name]})
    assert A3_SECRET not in "".join(traceback.format_exception(refusal.value))
    assert not registry.path.exists()


@pytest.mark.parametrize("entry", [{}, {"site": "a"}, {"public": DPOP}, [], None, "a"], ids=repr)
def test_an_entry_has_a_site_and_a_key(registry, entry):
    with pytest.raises(UserError, match="no login key"):
        registry.add(entry)


def test_without_a_registry_nobody_is_known(registry):
    for ask in (lambda: registry.entry("x"), lambda: registry.active("hospital_a")):
        with pytest.raises(UserError, match="there is no registry"):
            ask()


def change(field: str, value: object):
    def damage(text: str) -> str:
        content = json.loads(text)
        (entry,) = content["keys"].values()
        entry[field] = value
        return json.dumps(content)

    return damage


def with_key(public: dict):
    """Another key under its own id, so that only its kind is wrong."""

    def damage(text: str) -> str:
        (entry,) = json.loads(text)["keys"].values()
        return json.dumps({"keys": {thumbprint(public): {**entry, "public": public}}})

    return damage


DAMAGES = {
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "other JSON": lambda text: "[]",
    "no keys": lambda text: "{}",
    "more": lambda text: text.replace('"keys"', '"more": 1, "keys"', 1),
    "a key twice": lambda text: json.dumps({"keys": 0}).replace("0", '{"a": {}, "a": {}}'),
    "a field twice": lambda text: text.replace('"state": "active"', '"state": "revoked", "state": "active"'),
    "another key": change("public", DPOP),
    "another kind of key": with_key(P384),
    "a private key": with_key({**A3, "d": A3_SECRET}),
    "another state": change("state", "Active"),
    "no site": change("site", "Hospital A"),
    "another type": change("reason", None),
    "another field": change("more", ""),
    "no entry": lambda text: re.sub(r"(?s)\{\n  .*\}\n \}", "7}", text),
    "keys in a list": lambda text: '{"keys": []}',
    "no text": lambda text: "\udcff\udcfe",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_registry_lets_nobody_in_and_is_left_as_it_is(registry, key, damage):
    registry.add(key.public_entry())
    assert registry.active("hospital_a")
    damaged = DAMAGES[damage](registry.path.read_text()).encode("utf-8", "surrogateescape")
    assert damaged != registry.path.read_bytes()
    registry.path.write_bytes(damaged)
    other = LoginKey.create("hospital_b").public_entry()
    calls = (
        lambda: registry.entry(key.kid),
        lambda: registry.active("hospital_a"),
        lambda: registry.add(other),
        lambda: registry.revoke(key.kid, "lost"),
    )
    for call in calls:
        with pytest.raises(UserError, match="registry of login keys is damaged") as refusal:
            call()
        assert refusal.value.where == str(registry.path)
    assert registry.path.read_bytes() == damaged


def test_a_registry_that_is_gone_is_not_begun_anew(registry, key):
    """A fresh one would have forgotten which keys were revoked."""
    registry.add(key.public_entry())
    registry.revoke(key.kid, "laptop stolen")
    registry.path.unlink()
    for call in (lambda: registry.add(key.public_entry()), lambda: registry.active("hospital_a")):
        with pytest.raises(UserError, match="is gone"):
            call()


ADDER = """
import sys
from pathlib import Path
from fedbone.custody.registry import LoginKey, Registry
registry, keys = Registry(Path(sys.argv[1])), [LoginKey.create("hospital_a") for _ in range(15)]
print("ready", flush=True)
sys.stdin.readline()
for key in keys:
    registry.add(key.public_entry())
    registry.revoke(key.kid, "a test")
"""


def test_two_processes_lose_no_key_and_no_revocation(registry):
    command = [sys.executable, "-c", ADDER, str(registry.path)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    entries = json.loads(registry.path.read_text())["keys"].values()
    assert [entry["state"] for entry in entries] == ["revoked"] * 30
