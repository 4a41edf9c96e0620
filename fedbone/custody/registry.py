"""Who may log in: each hospital's login key (ECDSA on P-256), and the server's list of the public ones.

A key is known by its id, the thumbprint of its public part (RFC 7638), so that an id can name one key only, and a
person can compare it by telephone.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from jwt.algorithms import ECAlgorithm
from jwt.exceptions import InvalidKeyError
from jwt.utils import base64url_encode

from fedbone.custody.kept_json import UNREADABLE, KeptJson
from fedbone.errors import UserError
from fedbone.files import read_secret, write_secret

SITE = re.compile(r"[a-z][a-z0-9_-]{0,39}")
FIRST_LINE = re.compile(rb"fedbone login key of ([a-z0-9_-]+)\n")  # text before a PEM: RFC 7468, section 2
ENTRY = {"site": str, "public": dict, "state": str, "since": str, "reason": str}
MOST_REASON = 200  # characters


class LoginKey:
    """The private key with which the hospital ``site`` logs in and signs updates; it never leaves the hospital."""

    def __init__(self, site: str, private: EllipticCurvePrivateKey) -> None:
        self.site, self._key = _checked_site(site), private

    @classmethod
    def create(cls, site: str) -> LoginKey:
        """A fresh key. Raises UserError for a name that no hospital can have."""
        return cls(site, generate_private_key(SECP256R1()))

    @classmethod
    def load(cls, path: Path) -> LoginKey:
        """The key that ``save`` wrote. Raises UserError for another file, or one that others may read."""
        content = read_secret(path)
        first = FIRST_LINE.match(content)
        try:
            private = serialization.load_pem_private_key(content[first.end() :], None) if first else None
        except (ValueError, TypeError):  # not chained: the error could quote the content
            private = None
        if not isinstance(private, EllipticCurvePrivateKey) or not isinstance(private.curve, SECP256R1):
            problem = "it is no login key (a line with the hospital's name, then a P-256 key as PKCS8 PEM)"
            raise UserError(path, problem, "Name the file that LoginKey.save wrote")
        return cls(first[1].decode(), private)

    def save(self, path: Path) -> Path:
        """Write the key to a new file that only this account may read. Raises UserError when there is one."""
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return write_secret(path, f"fedbone login key of {self.site}\n".encode() + self._key.private_bytes(*pem))

    @property
    def kid(self) -> str:
        """The key's id: 43 characters."""
        return thumbprint(self._public)

    def public_entry(self) -> dict:
        """What the server is given, for ``Registry.add``: {"site", "public"}, the latter a JWK (RFC 7517)."""
        return {"site": self.site, "public": self._public}

    def sign(self, purpose: str, claims: dict) -> str:
        """A JWS in compact form over ``claims`` (JSON values); ``purpose`` is its ``typ`` (RFC 8725, section 3.11)."""
        return jwt.encode(claims, self._key, "ES256", {"typ": purpose, "kid": self.kid})

    def __repr__(self) -> str:
        return f"LoginKey({self.site!r}, kid={self.kid!r})"

    @property
    def _public(self) -> dict:
        return ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)


def thumbprint(public: dict) -> str:
    """RFC 7638 of an elliptic curve's JWK: base64url of the sha256 of its required members in order."""
    members = json.dumps(public, sort_keys=True, separators=(",", ":"))
    return base64url_encode(hashlib.sha256(members.encode()).digest()).decode()


def public_key(public: dict) -> EllipticCurvePublicKey:
    """The key that a JWK holds. Raises ValueError for anything but a public P-256 key in its one canonical form."""
    if {name: type(value) for name, value in public.items()} != dict.fromkeys(("kty", "crv", "x", "y"), str):
        raise ValueError("a public key has kty, crv, x and y as text, and nothing else")
    if (public["kty"], public["crv"]) != ("EC", "P-256"):
        raise ValueError("a public key has to be of the kind EC on the curve P-256")
    try:
        key = ECAlgorithm.from_jwk(public)
    except (InvalidKeyError, ValueError):
        raise ValueError("the public key is no point of the curve P-256") from None
    if ECAlgorithm.to_jwk(key, as_dict=True) != public:
        raise ValueError("the public key is not in its canonical form")
    return key


@dataclass(frozen=True)
class Registry:
    """The hospitals' login keys in the file ``path``, read anew at each question: a change needs no restart.

    To rotate a key, add the new one, let the hospital change over, and revoke the old one; both hold in between.
    Every method raises UserError for a file that is damaged or gone, so that nobody is let in; it is left as it is.
    """

    path: Path

    def add(self, entry: dict, now: float | None = None) -> str:
        """Register the key of ``LoginKey.public_entry``, on the disk when this returns; its id.

        Raises UserError for a key that is not P-256, is registered already (for whichever hospital) or was revoked,
        and for a name that no hospital can have.
        """
        try:
            site, public = entry["site"], entry["public"]
            public_key(public)
        except UNREADABLE as error:
            raise UserError(self.path, f"this is no login key ({error})", "Give LoginKey.public_entry()") from None
        kid = thumbprint(public)
        with self._file.change() as content:
            keys = content.setdefault("keys", {})
            self._require_new(kid, keys)
            since = _utc(now)
            keys[kid] = {"site": _checked_site(site), "public": public, "state": "active", "since": since, "reason": ""}
        return kid

    def revoke(self, kid: str, reason: str, now: float | None = None) -> None:
        """From now on let in nobody with this key; its entry stays. On the disk when this returns.

        Raises UserError for a key that is not registered or was revoked before, and for a reason that is not one line
        of 1 to 200 characters.
        """
        if not isinstance(reason, str) or not reason.isprintable() or not 0 < len(reason) <= MOST_REASON:
            problem = "the reason why a key is revoked must be one line of text"
            raise UserError(self.path, problem, f"Give a reason of 1 to {MOST_REASON} characters")
        with self._file.change() as content:
            entry = content.get("keys", {}).get(kid)
            if entry is None:
                problem = f"no key with the id {kid!r:.60} is registered"
                raise UserError(self.path, problem, "Give the id of a registered key")
            if entry["state"] == "revoked":
                raise UserError(self.path, f"the key {kid} {revoked(entry)} already", "Nothing is left to do")
            entry |= {"state": "revoked", "since": _utc(now), "reason": reason}

    def entry(self, kid: str) -> dict | None:
        """{"site", "public": JWK, "state": "active" or "revoked", "since": UTC, "reason"}; None for an unknown key."""
        return self._keys().get(kid)

    def active(self, site: str) -> bool:
        """Whether a key of this hospital holds."""
        return bool(self.holding(site))

    def holding(self, site: str) -> list[str]:
        """The ids of this hospital's keys that hold."""
        return [kid for kid, entry in self._keys().items() if (entry["site"], entry["state"]) == (site, "active")]

    def _keys(self) -> dict[str, dict]:
        content = self._file.read()
        if content is None:
            remedy = "Check the name, and register the hospitals' login keys"
            raise UserError(self.path, "there is no registry of login keys", remedy)
        return content["keys"]

    def _require_new(self, kid: str, keys: dict[str, dict]) -> None:
        old = keys.get(kid)
        if old is None:
            return
        remedy = "Let each hospital make a new key of its own with LoginKey.create"
        if old["state"] == "revoked":
            raise UserError(self.path, f"the key {kid} of {old['site']} {revoked(old)}", remedy)
        raise UserError(self.path, f"the key {kid} is registered already, for {old['site']}", remedy)

    @property
    def _file(self) -> KeptJson:
        remedy = "Restore it from a backup, and revoke again what was revoked since then"
        return KeptJson(self.path, "registry of login keys", _check_keys, remedy)


def revoked(entry: dict) -> str:
    """When and why, as the end of a sentence."""
    return f"was revoked on {entry['since']} ({entry['reason']})"


def _check_keys(content: dict) -> None:
    if content.keys() != {"keys"}:
        raise ValueError("it has other fields than keys")
    for kid, entry in content["keys"].items():
        if {name: type(value) for name, value in entry.items()} != ENTRY:
            raise ValueError(f"key {kid} has other fields")
        public_key(entry["public"])
        if thumbprint(entry["public"]) != kid:
            raise ValueError(f"key {kid} has another public key")
        if entry["state"] not in ("active", "revoked") or not SITE.fullmatch(entry["site"]):
            raise ValueError(f"key {kid} has a state or a hospital that cannot be")


def _checked_site(site: str) -> str:
    if not isinstance(site, str) or not SITE.fullmatch(site):
        problem = f"{site!r:.60} cannot be a hospital's name"
        remedy = "Give 1 to 40 small letters, digits, - or _, the first one a letter"
        raise UserError("hospital", problem, remedy)
    return site


def _utc(now: float | None) -> str:
    moment = time.time() if now is None else now
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
