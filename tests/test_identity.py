"""Every way to get in, or to get an update accepted, without the hospital's key or a second time is refused."""

import base64
import hashlib
import hmac
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.custody.identity import LEEWAY_S, LOGIN, UPDATE, IdentityCheck, login_token, sign_update
from fedbone.custody.registry import LoginKey, Registry
from fedbone.errors import UserError
from tests.edits import edit_of

ROOT = Path(__file__).resolve().parents[1]
NOW, AUDIENCE, SITE = 1_800_000_000.0, "fedbone-0123abcd", "hospital_a"
DIGEST, OTHER_DIGEST = (hashlib.sha256(text).hexdigest() for text in (b"update", b"edited"))
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256: FIPS 186-4, D.1.2.3
PLACE = {"run": "run 7", "round": 3, "sha256": DIGEST}
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclass(frozen=True)
class Party:
    """A hospital whose private key the tests may use by other means than ours."""

    private: ec.EllipticCurvePrivateKey
    key: LoginKey


def party(site: str) -> Party:
    private = ec.generate_private_key(ec.SECP256R1())
    return Party(private, LoginKey(site, private))


A, B, STRANGER = party(SITE), party("hospital_b"), party(SITE)


@pytest.fixture
def check(tmp_path) -> IdentityCheck:
    return check_in(tmp_path)


def check_in(folder: Path) -> IdentityCheck:
    registry = Registry(folder / "registry.json")
    for known in (A, B):
        registry.add(known.key.public_entry())
    return IdentityCheck(registry, AUDIENCE, folder / "used_ids.json")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def es256(private: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """RFC 7518, section 3.4, by the package cryptography alone."""
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def signed(header: bytes, claims: bytes, private: ec.EllipticCurvePrivateKey = A.private) -> str:
    message = f"{b64(header)}.{b64(claims)}"
    return f"{message}.{b64(es256(private, message.encode()))}"


def header_of(purpose: str, **changes: object) -> dict:
    header = {"alg": "ES256", "typ": purpose, "kid": A.key.kid, **changes}
    return {name: value for name, value in header.items() if value != "LEFT OUT"}


def claims_of(purpose: str, **changes: object) -> dict:
    issued = int(NOW)
    claims = {"iss": SITE, "sub": SITE, "aud": AUDIENCE, "iat": issued, "exp": issued + 300, "jti": "a" * 22}
    claims |= (PLACE if purpose == UPDATE else {}) | changes
    return {name: value for name, value in claims.items() if value != "LEFT OUT"}


def made(purpose: str, header: dict | None = None, private=A.private, **changes: object) -> str:
    """A token by the rules but for ``changes`` of its claims and ``header``, signed all the same."""
    parts = header_of(purpose, **(header or {})), claims_of(purpose, **changes)
    return signed(*(json.dumps(part).encode() for part in parts), private)


def present(check: IdentityCheck, purpose: str, token: object, now: float = NOW, site: str = SITE) -> None:
    if purpose == LOGIN:
        check.login(token, site, now=now)
    else:
        check.update(token, site, **PLACE, now=now)


def ours(purpose: str, now: float = NOW, key: LoginKey = A.key) -> str:
    if purpose == LOGIN:
        return login_token(key, AUDIENCE, now)
    return sign_update(key, AUDIENCE, **PLACE, now=now)


def refused(check: IdentityCheck, purpose: str, token: object, match: str, **where: object) -> None:
    """Refused with these words, nothing noted, and none of the token quoted."""
    noted = check.used.read_bytes() if check.used.exists() else None
    with pytest.raises(UserError, match=match) as refusal:
        present(check, purpose, token, **where)
    assert refusal.value.where == f"{'login' if purpose == LOGIN else 'update'} of {where.get('site', SITE)}"
    assert (check.used.read_bytes() if check.used.exists() else None) == noted
    assert "\n" not in str(refusal.value)
    assert not [part for part in str(token).split(".") if len(part) > 80 and part[:40] in str(refusal.value)]


both = pytest.mark.parametrize("purpose", [LOGIN, UPDATE], ids=["login", "update"])


# a valid token passes, and others make and read the same tokens


@both
def test_a_valid_token_passes(check, purpose):
    present(check, purpose, ours(purpose))
    present(check, purpose, made(purpose))
    assert list(json.loads(check.used.read_text())["ids"]) == [SITE]


def test_by_the_clock_of_this_machine(check):
    check.login(login_token(A.key, AUDIENCE), SITE)
    check.update(sign_update(A.key, AUDIENCE, **PLACE), SITE, **PLACE)


@both
def test_pyjwt_alone_accepts_our_tokens(purpose):
    token = ours(purpose, now=NOW + 0.9)
    options = {"require": list(claims_of(purpose)), "verify_exp": False, "verify_iat": False}
    public = A.private.public_key()
    found = jwt.decode(token, public, algorithms=["ES256"], audience=AUDIENCE, issuer=SITE, options=options)
    lifetime_s = 300 if purpose == LOGIN else 600
    expected = claims_of(purpose, exp=int(NOW) + lifetime_s, jti=found["jti"])
    assert found == expected
    assert jwt.get_unverified_header(token) == header_of(purpose)


@both
def test_cryptography_alone_accepts_our_signatures(purpose):
    message, _, signature = ours(purpose).rpartition(".")
    r, s = (int.from_bytes(half, "big") for half in (unb64(signature)[:32], unb64(signature)[32:]))
    A.private.public_key().verify(encode_dss_signature(r, s), message.encode(), ec.ECDSA(hashes.SHA256()))


@both
def test_a_token_made_by_pyjwt_alone_passes(check, purpose):
    headers = {"typ": purpose, "kid": A.key.kid}
    present(check, purpose, jwt.encode(claims_of(purpose), A.private, algorithm="ES256", headers=headers))


def test_every_token_has_an_id_of_its_own():
    tokens = [ours(purpose) for purpose in (LOGIN, UPDATE) for _ in range(20)]
    assert len({jwt.decode(token, options={"verify_signature": False})["jti"] for token in tokens}) == 40


# no token, forged, another's


@both
@pytest.mark.parametrize("token", [None, b"a.b.c", 7, ["a"], {}], ids=["None", "bytes", "number", "list", "object"])
def test_no_token(check, purpose, token):
    refused(check, purpose, token, "there is no token" if token is None else "and text was expected")
    present(check, purpose, ours(purpose))


@both
@pytest.mark.parametrize("size", [4097, 10**6])
def test_a_token_that_is_too_long_is_not_even_read(check, purpose, size):
    refused(check, purpose, "[" * size, f"has {size} characters")
    long = made(purpose, jti="a" * 3500)
    assert len(long) > 4096
    refused(check, purpose, long, "characters, and at most 4096")


@both
def test_a_forged_token(check, purpose):
    refused(check, purpose, made(purpose, private=STRANGER.private), "signature of its token does not fit")
    refused(check, purpose, made(purpose, private=B.private), "signature of its token does not fit")
    refused(check, purpose, ours(purpose, key=STRANGER.key), "is not registered")
    present(check, purpose, made(purpose))


@both
def test_a_signature_of_another_token(check, purpose):
    one, two = made(purpose, jti="b" * 22), made(purpose)
    refused(check, purpose, two.rpartition(".")[0] + "." + one.rpartition(".")[2], "signature")
    present(check, purpose, two)


@both
def test_a_token_of_another_site(check, purpose):
    refused(check, purpose, ours(purpose, key=B.key), "its key belongs to hospital_b, and the connection to hospital_a")
    present(check, purpose, ours(purpose, key=B.key), site="hospital_b")


@both
@pytest.mark.parametrize("claim", ["iss", "sub"])
def test_a_hospital_that_speaks_for_another(check, purpose, claim):
    """With its own key, over the connection of either."""
    token = made(purpose, **{claim: "hospital_b"})
    refused(check, purpose, token, f"says {claim} 'hospital_b', and 'hospital_a' was expected")
    refused(check, purpose, token, "its key belongs to hospital_a", site="hospital_b")


@both
def test_the_key_id_of_another_site(check, purpose):
    refused(check, purpose, made(purpose, {"kid": B.key.kid}), "its key belongs to hospital_b")
    named = made(purpose, {"kid": B.key.kid}, iss="hospital_b", sub="hospital_b")
    refused(check, purpose, named, "signature", site="hospital_b")


@both
@pytest.mark.parametrize("kid", ["x", "", "../../etc/passwd", "a\nb"])
def test_an_unknown_key(check, purpose, kid):
    refused(check, purpose, made(purpose, {"kid": kid}), "is not registered")


@both
def test_a_revoked_key_and_its_successor_without_a_restart(check, purpose):
    """The same check goes on: it reads the registry anew each time."""
    new = party(SITE)
    waiting, edits = ours(purpose), Registry(check.registry.path)
    present(check, purpose, ours(purpose))
    refused(check, purpose, ours(purpose, key=new.key), "is not registered")
    edits.add(new.key.public_entry())
    for key in (A.key, new.key):
        present(check, purpose, ours(purpose, key=key))
    edits.revoke(A.key.kid, "laptop stolen", NOW)
    said = r"was revoked on 2027-01-15T08:00:00\+00:00 \(laptop stolen\)"
    refused(check, purpose, ours(purpose), said)
    refused(check, purpose, waiting, said)
    present(check, purpose, ours(purpose, key=new.key))


@both
@pytest.mark.parametrize("content", [None, b"", b"{}"], ids=["gone", "empty", "other"])
def test_with_a_damaged_registry_nobody_is_let_in(check, purpose, content):
    token = made(purpose)
    check.registry.path.unlink() if content is None else check.registry.path.write_bytes(content)
    with pytest.raises(UserError, match=r"gone|damaged") as refusal:
        present(check, purpose, token)
    assert refusal.value.where == str(check.registry.path)
    assert not check.used.exists()


@both
def test_without_a_registry_nobody_is_let_in(tmp_path, purpose):
    check = IdentityCheck(Registry(tmp_path / "none.json"), AUDIENCE, tmp_path / "used")
    with pytest.raises(UserError, match="there is no registry"):
        present(check, purpose, made(purpose))


# the header decides nothing


def hs256(header: dict, claims: dict, secret: bytes) -> str:
    message = ".".join(b64(json.dumps(part).encode()) for part in (header, claims))
    return f"{message}.{b64(hmac.digest(secret, message.encode(), 'sha256'))}"


PUBLIC = A.private.public_key()
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
AS_SECRET = {
    "PEM": PUBLIC.public_bytes(serialization.Encoding.PEM, SPKI),
    "DER": PUBLIC.public_bytes(serialization.Encoding.DER, SPKI),
    "point": PUBLIC.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint),
    "JWK": json.dumps(A.key.public_entry()["public"]).encode(),
    "empty": b"",
}


@both
@pytest.mark.parametrize("form", AS_SECRET)
def test_hs256_with_the_public_key(check, purpose, form):
    for alg, match in (("HS256", "algorithm 'HS256', and this server"), ("ES256", "signature of its token")):
        refused(check, purpose, hs256(header_of(purpose, alg=alg), claims_of(purpose), AS_SECRET[form]), match)


@both
def test_hs256_padded_to_the_length_of_a_signature(check, purpose):
    header = header_of(purpose, alg="HS256")
    message = ".".join(b64(json.dumps(part).encode()) for part in (header, claims_of(purpose)))
    mac = hmac.digest(AS_SECRET["PEM"], message.encode(), "sha512")
    assert len(mac) == 64
    refused(check, purpose, f"{message}.{b64(mac)}", "algorithm 'HS256', and this server takes ES256 only")


NO_ALGORITHM = [
    "none",
    "None",
    "NONE",
    "",
    None,
    "LEFT OUT",
    "es256",
    "ES256K",
    "ES384",
    "EdDSA",
    "HS512",
    ["ES256"],
    1,
]


@both
@pytest.mark.parametrize("alg", NO_ALGORITHM, ids=repr)
def test_alg_none_and_other_algorithms(check, purpose, alg):
    """With a signature that would be valid, with none, and with one of another length."""
    token = made(purpose, {"alg": alg})
    refused(check, purpose, token, "takes ES256 only")
    message = token.rpartition(".")[0]
    for signature in ("", "AA", "A" * 85, "A" * 87, "A" * 128):
        refused(check, purpose, f"{message}.{signature}", "takes ES256 only|canonical")
    refused(check, purpose, message, "three parts")
    refused(check, purpose, f"{message}.{'A' * 86}", "takes ES256 only")


@both
@pytest.mark.parametrize("size", [0, 1, 32, 63, 64, 65, 96, 128])
def test_an_empty_signature_under_es256_and_others_of_zeros(check, purpose, size):
    """r = s = 0 opened Java's ECDSA to everybody (CVE-2022-21449)."""
    message = made(purpose).rpartition(".")[0]
    refused(check, purpose, f"{message}.{b64(bytes(size))}", "signature of its token does not fit")


@both
def test_a_signature_in_der_and_with_numbers_over_the_order(check, purpose):
    message = made(purpose).rpartition(".")[0]
    der = A.private.sign(message.encode(), ec.ECDSA(hashes.SHA256()))
    refused(check, purpose, f"{message}.{b64(der)}", "signature of its token does not fit")
    refused(check, purpose, f"{message}.{b64(ORDER.to_bytes(32, 'big') * 2)}", "signature of its token does not fit")
    refused(check, purpose, f"{message}.{b64(bytes([255]) * 64)}", "signature of its token does not fit")


@both
def test_eddsa_with_a_key_of_its_own(check, purpose):
    private = ed25519.Ed25519PrivateKey.generate()
    headers = {"typ": purpose, "kid": A.key.kid}
    refused(check, purpose, jwt.encode(claims_of(purpose), private, "EdDSA", headers), "algorithm 'EdDSA'")


HEADERS = {
    "jwk": STRANGER.key.public_entry()["public"],
    "jku": "https://attacker.example/keys",
    "x5u": "https://attacker.example/chain",
    "x5c": ["MIIB"],
    "x5t": "AAAA",
    "x5t#S256": "AAAA",
    "crit": ["exp"],
    "b64": True,
    "cty": "JWT",
    "zip": "DEF",
    "more": None,
}


@both
@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_name_a_key_or_change_the_meaning(check, purpose, name):
    for private in (A.private, STRANGER.private):
        refused(check, purpose, made(purpose, {name: HEADERS[name]}, private), f"header of its token has .*{name}")


@both
@pytest.mark.parametrize("crit", [[], ["b64"], None], ids=repr)
def test_an_unencoded_payload(check, purpose, crit):
    header = json.dumps(header_of(purpose, b64=False, crit=crit)).encode()
    refused(check, purpose, signed(header, json.dumps(claims_of(purpose)).encode()), "header of its token has")
    message = b64(header) + "." + json.dumps(claims_of(purpose))
    token = f"{message}.{b64(es256(A.private, message.encode()))}"
    refused(check, purpose, token, "canonical base64url")


@both
@pytest.mark.parametrize("kid", ["LEFT OUT", None, 1, ["a"], {}], ids=repr)
def test_a_key_id_is_text(check, purpose, kid):
    refused(check, purpose, made(purpose, {"kid": kid}), "header of its token")


# a token for another purpose, deployment, run, round or update


def test_a_login_token_as_an_update_token_and_the_reverse(check):
    refused(check, UPDATE, ours(LOGIN), "kind 'fedbone-login.jwt', and 'fedbone-update.jws' was expected")
    refused(check, LOGIN, ours(UPDATE), "kind 'fedbone-update.jws', and 'fedbone-login.jwt' was expected")
    refused(check, UPDATE, made(LOGIN, {"typ": UPDATE}), "missing, unknown or of another type: 'round, run, sha256'")
    refused(check, LOGIN, made(UPDATE, {"typ": LOGIN}), "missing, unknown or of another type: 'round, run, sha256'")
    for purpose in (LOGIN, UPDATE):
        present(check, purpose, ours(purpose))


@both
@pytest.mark.parametrize("kind", ["JWT", "", None, "LEFT OUT", "FEDBONE-LOGIN+JWT", "application/fedbone-update+jws"])
def test_another_kind_of_token(check, purpose, kind):
    refused(check, purpose, made(purpose, {"typ": kind}), "is of the kind")


@both
def test_a_token_for_another_deployment(check, purpose):
    other = replace(check, audience="fedbone-ffffffff")
    token = ours(purpose)
    refused(other, purpose, token, "says aud 'fedbone-0123abcd', and 'fedbone-ffffffff' was expected")
    present(check, purpose, token)
    refused(check, purpose, made(purpose, aud=[AUDIENCE, "other"]), "another type: 'aud'")


@pytest.mark.parametrize(
    ("name", "value"),
    [("run", "run 8"), ("run", "run 7 "), ("round", 4), ("round", 2), ("sha256", OTHER_DIGEST)],
)
def test_a_token_for_another_run_round_or_update(check, name, value):
    token = ours(UPDATE)
    with pytest.raises(UserError, match=f"says {name} {PLACE[name]!r}, and {value!r} was expected") as refusal:
        check.update(token, SITE, **{**PLACE, name: value}, now=NOW)
    assert refusal.value.where == f"update of {SITE}"
    assert not check.used.exists()
    check.update(token, SITE, **PLACE, now=NOW)


def test_an_update_that_was_edited_after_signing(check):
    update = bytearray(b"weights of hospital a")
    token = sign_update(A.key, AUDIENCE, "run 7", 3, hashlib.sha256(update).hexdigest(), NOW)
    update[0] ^= 1
    with pytest.raises(UserError, match=r"says sha256 .*exchanged or edited"):
        check.update(token, SITE, "run 7", 3, hashlib.sha256(update).hexdigest(), NOW)
    update[0] ^= 1
    check.update(token, SITE, "run 7", 3, hashlib.sha256(update).hexdigest(), NOW)


@pytest.mark.parametrize(
    "value", [DIGEST.upper(), DIGEST[:-1], DIGEST + "\n", ""], ids=["upper", "cut", "line", "empty"]
)
def test_a_digest_in_another_form(check, value):
    refused(check, UPDATE, made(UPDATE, sha256=value), "says sha256")


# the claims


OTHER_TYPES = {
    "iss": [1, None, [SITE], "LEFT OUT"],
    "sub": [{}, "LEFT OUT"],
    "aud": [[AUDIENCE], None, "LEFT OUT"],
    "iat": [NOW, str(int(NOW)), True, None, "LEFT OUT"],
    "exp": [NOW + 300, "9", False, None, "LEFT OUT"],
    "jti": [1, None, "LEFT OUT"],
    "nbf": [int(NOW)],
    "admin": [True],
}
OF_UPDATES = {"run": [7, None, "LEFT OUT"], "round": [True, 3.0, "3", None, "LEFT OUT"], "sha256": [None, "LEFT OUT"]}


@both
@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in OTHER_TYPES.items() for v in vs], ids=str)
def test_claims_that_are_missing_unknown_or_of_another_type(check, purpose, name, value):
    refused(check, purpose, made(purpose, **{name: value}), f"missing, unknown or of another type: '{name}'")


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in OF_UPDATES.items() for v in vs], ids=str)
def test_claims_of_updates_that_are_missing_or_of_another_type(check, name, value):
    refused(check, UPDATE, made(UPDATE, **{name: value}), f"missing, unknown or of another type: '{name}'")


def test_true_is_not_round_1(check):
    token = sign_update(A.key, AUDIENCE, "run 7", True, DIGEST, NOW)
    with pytest.raises(UserError, match="another type: 'round'"):
        check.update(token, SITE, "run 7", 1, DIGEST, NOW)
    check.update(sign_update(A.key, AUDIENCE, "run 7", 1, DIGEST, NOW), SITE, "run 7", 1, DIGEST, NOW)


@both
@pytest.mark.parametrize("name", ["iss", "aud", "exp", "jti", "sub"])
def test_a_claim_twice(check, purpose, name):
    """PyJWT and others take the last one, another reader the first."""
    claims = json.dumps(claims_of(purpose))
    twice = f'{{"{name}": {json.dumps(claims_of(purpose)[name])}, {claims[1:]}'
    token = signed(json.dumps(header_of(purpose)).encode(), twice.encode())
    refused(check, purpose, token, "content of its token is not read in one way only")


@both
@pytest.mark.parametrize("name", ["alg", "kid", "typ"])
def test_a_header_twice(check, purpose, name):
    header = json.dumps(header_of(purpose))
    twice = f'{{"{name}": "none", {header[1:]}'
    token = signed(twice.encode(), json.dumps(claims_of(purpose)).encode())
    refused(check, purpose, token, "header of its token is not read in one way only")


BROKEN = [b"null", b"[]", b"{", b"7", b"[" * 1000, b"\xff", b'{"a": NaN}', b"\xef\xbb\xbf{}", b"{} "]


@both
@pytest.mark.parametrize("data", BROKEN, ids=ascii)
def test_json_made_by_hand(check, purpose, data):
    header, claims = (json.dumps(part).encode() for part in (header_of(purpose), claims_of(purpose)))
    refused(check, purpose, signed(data, claims), "header of its token|takes ES256 only")
    refused(check, purpose, signed(header, data), "content of its token|missing, unknown")
    refused(check, purpose, signed(header, claims + b"x"), "content of its token")


@both
@pytest.mark.parametrize("jti", ["", "a" * 15, "a" * 65, "a" * 21 + "\n", "a b" * 6, "\u00e4" * 20], ids=ascii)
def test_ids_of_another_form(check, purpose, jti):
    refused(check, purpose, made(purpose, jti=jti), "has the id")


@both
@pytest.mark.parametrize("jti", ["a" * 16, "Z-_9" * 16])
def test_ids_of_this_form(check, purpose, jti):
    present(check, purpose, made(purpose, jti=jti))


# time


@both
@pytest.mark.parametrize(
    "lifetime_s", [601, 86_400, 0, -1, 10**18, 10**1000], ids=lambda s: f"{s:.0e}"[:6] if s < 1e9 else "huge"
)
def test_a_lifetime_over_the_cap(check, purpose, lifetime_s):
    refused(check, purpose, made(purpose, exp=int(NOW) + lifetime_s), "1 to 600 s are allowed")


@both
@pytest.mark.parametrize("lifetime_s", [1, 600])
def test_a_lifetime_within_the_cap(check, purpose, lifetime_s):
    present(check, purpose, made(purpose, exp=int(NOW) + lifetime_s))


def test_the_cap_is_the_servers(check):
    present(check, LOGIN, login_token(A.key, AUDIENCE, NOW, 600))
    refused(check, LOGIN, login_token(A.key, AUDIENCE, NOW, 601), "1 to 600 s are allowed")


@both
@pytest.mark.parametrize("issued", [-1, 1 << 40, 10**1000, -(10**1000)], ids=["minus", "large", "huge", "minus huge"])
def test_times_that_cannot_be(check, purpose, issued):
    refused(check, purpose, made(purpose, iat=issued, exp=issued + 300), "are allowed")


@both
def test_an_expired_token(check, purpose):
    token = made(purpose)
    expires = NOW + 300
    refused(check, purpose, token, "expired 60 s ago", now=expires + LEEWAY_S)
    refused(check, purpose, token, "expired 86400 s ago: it was sent too late", now=expires + 86_400)
    present(check, purpose, token, now=expires + LEEWAY_S - 0.01)


@both
def test_a_token_from_the_future(check, purpose):
    """Its time of issue is also the time before which it does not hold."""
    token = made(purpose)
    refused(check, purpose, token, "61 s ahead", now=NOW - LEEWAY_S - 0.5)
    present(check, purpose, token, now=NOW - LEEWAY_S)


@both
def test_the_refusal_says_the_measured_skew_and_whose_clock(check, purpose):
    ahead = ours(purpose, now=NOW + 312)
    refused(check, purpose, ahead, "issued in the future: the clock of hospital_a is 312 s ahead of ours.*NTP")
    behind = made(purpose, iat=int(NOW) - 1000, exp=int(NOW) - 700)
    refused(check, purpose, behind, "expired 700 s ago.*just made, the clock of hospital_a is 1000 s behind ours.*NTP")
    for skew_s in (-LEEWAY_S, LEEWAY_S):
        present(check, purpose, ours(purpose, now=NOW + skew_s))


# each token counts once


@both
def test_a_replayed_token(check, purpose):
    token = made(purpose)
    present(check, purpose, token)
    refused(check, purpose, token, "its token was used before")
    refused(check, purpose, token, "its token was used before", now=NOW + 359)
    refused(replace(check), purpose, token, "its token was used before")
    refused(check, purpose, token, "expired", now=NOW + 360)
    present(check, purpose, ours(purpose))


@both
def test_another_token_with_a_used_id(check, purpose):
    present(check, purpose, made(purpose))
    other = LOGIN if purpose == UPDATE else UPDATE
    refused(check, purpose, made(purpose, exp=int(NOW) + 400), "used before")
    refused(check, other, made(other), "used before")


@both
def test_a_token_is_remembered_until_nobody_would_accept_it(check, purpose):
    present(check, purpose, made(purpose))
    last = NOW + 300 + LEEWAY_S - 0.01
    present(check, purpose, ours(purpose, now=last), now=last)
    refused(check, purpose, made(purpose), "used before", now=last)


@both
def test_a_token_is_not_accepted_again_when_the_servers_clock_goes_back(check, purpose):
    token = made(purpose)
    present(check, purpose, token)
    present(check, purpose, ours(purpose, now=NOW + 1000), now=NOW + 1000)
    refused(check, purpose, token, "this server's clock went back")


@both
def test_the_other_signature_of_an_accepted_token_is_a_replay(check, purpose):
    """(r, n - s) is as valid as (r, s) for anyone who has seen it (ECDSA); the id in it is the same."""
    token = made(purpose)
    message, _, signature = token.rpartition(".")
    raw = unb64(signature)
    other = raw[:32] + (ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    mirrored = f"{message}.{b64(other)}"
    jwt.decode(mirrored, PUBLIC, ["ES256"], {"verify_exp": False, "verify_iat": False}, audience=AUDIENCE)
    present(check, purpose, token)
    refused(check, purpose, mirrored, "used before")


@both
def test_with_a_damaged_file_of_ids_nobody_is_let_in(check, purpose):
    present(check, purpose, ours(purpose))
    check.used.write_text("{}")
    with pytest.raises(UserError, match="used token ids is damaged"):
        present(check, purpose, ours(purpose))
    assert check.used.read_text() == "{}"


PRESENTER = """
import sys
from pathlib import Path
from fedbone.custody.identity import IdentityCheck
from fedbone.custody.registry import Registry
from fedbone.errors import UserError
folder = Path(sys.argv[1])
check = IdentityCheck(Registry(folder / "registry.json"), "fedbone-0123abcd", folder / "used_ids.json")
print("ready", flush=True)
for token in sys.stdin.readline().split():
    try:
        check.login(token, "hospital_a", 1_800_000_000.0)
        print(token)
    except UserError as refusal:
        assert "used before" in refusal.problem
"""


def test_two_processes_with_the_same_tokens_at_once(check):
    tokens = [ours(LOGIN) for _ in range(30)]
    command = [sys.executable, "-c", PRESENTER, str(check.used.parent)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write(" ".join(tokens) + "\n")
        process.stdin.flush()
    won = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(won[0] + won[1]) == sorted(tokens)


# every edit


@both
def test_every_other_last_character_of_each_part(check, purpose):
    """Two or four of its bits may belong to no byte: to a reader that ignores them 4 or 16 tokens are the same."""
    token = made(purpose, jti="a" * (22 if purpose == LOGIN else 24))
    parts, ignored = token.split("."), 0
    for place in range(3):
        for letter in ALPHABET.replace(parts[place][-1], ""):
            edited = parts[place][:-1] + letter
            ignored += base64.urlsafe_b64decode(edited + "==") == base64.urlsafe_b64decode(parts[place] + "==")
            new = ".".join([*parts[:place], edited, *parts[place + 1 :]])
            refused(
                check, purpose, new, "canonical|signature of its token|header of its token|takes ES256|not registered"
            )
    assert ignored >= 15, "at least those of the signature"
    present(check, purpose, token)


@both
@pytest.mark.parametrize("how", ["=", "==", "\n", " ", ".", "A", "AA", "AAAA", "\u00e9", "+", "/"], ids=ascii)
def test_characters_before_after_and_between(check, purpose, how):
    token = made(purpose)
    first, second, third = token.split(".")
    for edited in (how + token, token + how, f"{first}{how}.{second}.{third}", f"{first}.{second}{how}.{third}"):
        refused(check, purpose, edited, "canonical|signature of its token|header of its token")
    present(check, purpose, token)


@both
@pytest.mark.parametrize(
    "token", ["", ".", "..", "a", "a.b.c", "a" * 5 + "." + "b" * 5 + "." + "A" * 86, "\ud800", "\0"], ids=ascii
)
def test_tokens_made_by_hand(check, purpose, token):
    refused(check, purpose, token, "canonical base64url")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> IdentityCheck:
    return check_in(tmp_path_factory.mktemp("shared"))


@both
def test_every_byte_counts(shared, purpose):
    """Another letter of the alphabet, and one from outside, at each place."""
    token = made(purpose)
    for place, letter in enumerate(token):
        near = ALPHABET[ALPHABET.index(letter) ^ 1] if letter in ALPHABET else "A"
        for other in (near, chr(ord(letter) ^ 0x80)):
            refused(shared, purpose, token[:place] + other + token[place + 1 :], ".")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data(), purpose=st.sampled_from([LOGIN, UPDATE]))
def test_no_edit_is_accepted(shared, data, purpose):
    token = made(purpose)
    edited = edit_of(data, token.encode(), 4).decode("latin-1")
    if edited != token:
        refused(shared, purpose, edited, ".")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(alphabet=ALPHABET + ".=", max_size=300) | st.text(max_size=60))
def test_no_text_is_accepted(shared, text):
    refused(shared, LOGIN, text, ".")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=st.sampled_from(list(claims_of(UPDATE))), value=JSON, in_header=st.booleans())
def test_no_other_value_of_a_claim_or_header_is_accepted(shared, name, value, in_header):
    """Signed with the right key: what a hospital with a wrong program sends."""
    if in_header:
        refused(shared, UPDATE, made(UPDATE, {name: value}), "header of its token")
    elif claims_of(UPDATE)[name] != value or type(value) is bool:
        before = claims_of(UPDATE, **{name: value})
        allowed = name in ("iat", "exp") and type(value) is int and 0 < before["exp"] - before["iat"] <= 600
        if not allowed:
            refused(shared, UPDATE, made(UPDATE, **{name: value}), ".")


def test_the_checks_that_refused_all_edits_accept_a_valid_token(shared):
    for purpose in (LOGIN, UPDATE):
        present(shared, purpose, ours(purpose))
