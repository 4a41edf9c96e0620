"""Who sent this: tokens that a hospital signs with its login key (ES256: RFC 7518, section 3.4), and their check.

A login token is a JWT by which a hospital speaks for itself (RFC 7523, section 3). An update token is the same over one
update as well: its run, its round and the sha256 of its bytes. Each holds for minutes, for one deployment and once.
What is accepted follows RFC 8725: the server fixes the algorithm, the kind of token, the key and the set of claims.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError
from jwt.utils import base64url_decode, base64url_encode

from fedbone.custody.kept_json import UNREADABLE, read_strictly
from fedbone.custody.registry import LoginKey, Registry, public_key, revoked
from fedbone.custody.used_ids import AGAIN, UsedIds
from fedbone.errors import UserError

LOGIN, UPDATE = "fedbone-login+jwt", "fedbone-update+jws"  # the header's typ
LOGIN_CLAIMS = {"iss": str, "sub": str, "aud": str, "iat": int, "exp": int, "jti": str}
CLAIMS = {LOGIN: LOGIN_CLAIMS, UPDATE: {**LOGIN_CLAIMS, "run": str, "round": int, "sha256": str}}
LONGEST_LIFETIME_S, LEEWAY_S = 600, 60
LONGEST_TOKEN = 4096  # characters
LATEST = 1 << 40  # seconds since 1970 that a token may name; larger numbers have no use and cannot be computed with
COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")  # RFC 7515, section 7.1
TOKEN_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")


def login_token(key: LoginKey, audience: str, now: float | None = None, lifetime_s: int = 300) -> str:
    """A token with which the hospital of ``key`` logs in once to the deployment ``audience``; ``now``: s since 1970."""
    return key.sign(LOGIN, _claims(key, audience, now, lifetime_s))


def sign_update(
    key: LoginKey,
    audience: str,
    run: str,
    round: int,  # noqa: A002
    sha256: str,
    now: float | None = None,
) -> str:
    """A token that says: this hospital sends the bytes with this hex sha256 as its update of this round of this run.

    It holds for as long as a server allows, since a large update takes minutes on a slow line.
    """
    claims = _claims(key, audience, now, LONGEST_LIFETIME_S)
    return key.sign(UPDATE, {**claims, "run": run, "round": round, "sha256": sha256})


def _claims(key: LoginKey, audience: str, now: float | None, lifetime_s: int) -> dict:
    issued = int(_moment(now))
    times = {"iat": issued, "exp": issued + lifetime_s}
    return {"iss": key.site, "sub": key.site, "aud": audience, **times, "jti": secrets.token_urlsafe(16)}


@dataclass(frozen=True)
class IdentityCheck:
    """The server's check, for the deployment ``audience``; ``used`` is the file of the token ids it has accepted.

    Several processes may use one registry and one file. ``site`` is always the hospital that the connection's
    certificate names. Both methods raise UserError, with nothing noted, for whatever is not exactly as it should be,
    also for a registry or a file of ids that is damaged, and OSError when the id cannot be written.
    """

    registry: Registry
    audience: str
    used: Path

    def login(self, token: str | None, site: str, now: float | None = None) -> str:
        """Let ``site`` in by ``token``, which never will again, whatever becomes of this process; its key's id."""
        expected = {"iss": site, "sub": site, "aud": self.audience}
        return self._check(f"login of {site}", LOGIN, token, expected, _moment(now))

    def update(
        self,
        token: str | None,
        site: str,
        run: str,
        round: int,  # noqa: A002
        sha256: str,
        now: float | None = None,
    ) -> None:
        """Return once ``token`` has vouched for the update of ``site`` whose bytes have the hex ``sha256``.

        Take ``sha256`` of the bytes that arrived, not from the message.
        """
        expected = {"iss": site, "sub": site, "aud": self.audience, "run": run, "round": round, "sha256": sha256}
        self._check(f"update of {site}", UPDATE, token, expected, _moment(now))

    def _check(self, where: str, purpose: str, token: str | None, expected: dict, now: float) -> str:
        """Note the token as used; the id of its key."""
        try:
            kid = _key_id(purpose, token)
            key = self._public_key(kid, expected["iss"])
            claims = _signed_claims(purpose, token, key)
            _require_expected(claims, expected)
            _require_time(claims, now)
        except _Refusal as refusal:
            raise UserError(where, *refusal.args) from None
        UsedIds(self.used).note(where, claims["iss"], claims["jti"], claims["exp"] + LEEWAY_S, now)
        return kid

    def _public_key(self, kid: str, site: str) -> dict:
        entry = self.registry.entry(kid)
        if entry is None:
            raise _Refusal(f"its key {kid!r:.60} is not registered", f"Register the login key of {site} at the server")
        if entry["site"] != site:
            problem = f"its key belongs to {entry['site']}, and the connection to {site}"
            raise _Refusal(problem, "Sign with this hospital's own key, and find out who has the token of another")
        if entry["state"] == "revoked":
            raise _Refusal(f"its key {kid} {revoked(entry)}", "Let the hospital make a new key, and register it")
        return entry["public"]


class _Refusal(Exception):
    """Problem and remedy, of which the caller knows where."""


def _key_id(purpose: str, token: str | None) -> str:
    """The id of the key that a token names, once its form and its header are as they have to be."""
    if token is None:
        raise _Refusal("there is no token", "Send one signed with the hospital's login key")
    if not isinstance(token, str):
        raise _Refusal(f"its token is {type(token).__name__}, and text was expected", "Send the token as it was signed")
    if len(token) > LONGEST_TOKEN:
        problem = f"its token has {len(token)} characters, and at most {LONGEST_TOKEN} are read"
        raise _Refusal(problem, "Send nothing but the token")
    if not COMPACT.fullmatch(token) or not all(map(_is_canonical, token.split("."))):
        problem = "its token is not three parts in canonical base64url"
        raise _Refusal(problem, "Send the token as it was signed; it may have been cut or edited")
    header = _read("header", base64url_decode(token.split(".")[0]))
    _require_header(header, purpose)
    return header["kid"]


def _is_canonical(part: str) -> bool:
    """Whether base64url writes these bytes so: the last character may have bits that no byte takes up."""
    return len(part) % 4 != 1 and base64url_encode(base64url_decode(part)).decode() == part


def _require_header(header: dict, purpose: str) -> None:
    """No header may choose the key, the algorithm or the meaning of a token (RFC 8725, sections 2.1, 3.1 and 3.10)."""
    if header.get("alg") != "ES256":
        problem = f"its token has the algorithm {header.get('alg')!r:.60}, and this server takes ES256 only"
        raise _Refusal(problem, "Sign with the hospital's login key")
    if header.get("typ") != purpose:
        problem = f"its token is of the kind {header.get('typ')!r:.60}, and {purpose!r} was expected"
        raise _Refusal(problem, "Sign a token for this purpose: one for another cannot be used")
    if header.keys() != {"alg", "typ", "kid"} or not isinstance(header["kid"], str):
        names = ", ".join(sorted(header))
        problem = f"the header of its token has {names!r:.80}, and alg, typ and kid (text) were expected"
        raise _Refusal(problem, "Sign without further headers: the server's registry alone says which key holds")


def _signed_claims(purpose: str, token: str, key: dict) -> dict:
    try:
        payload = PyJWS(["ES256"]).decode_complete(token, public_key(key), ["ES256"])["payload"]
    except PyJWTError:
        problem = "the signature of its token does not fit: it is forged, or was edited"
        raise _Refusal(problem, "Sign with the hospital's login key, and find out who sent this") from None
    claims = _read("content", payload)
    kinds = {name: type(value) for name, value in claims.items()}
    if kinds != CLAIMS[purpose]:
        wrong = sorted(kinds.items() ^ CLAIMS[purpose].items(), key=str)
        names = ", ".join(dict.fromkeys(name for name, _ in wrong))
        problem = f"claims of its token are missing, unknown or of another type: {names!r:.80}"
        raise _Refusal(problem, f"Sign exactly {', '.join(CLAIMS[purpose])}")
    return claims


def _read(part: str, data: bytes) -> dict:
    try:
        found = read_strictly(data)
        if isinstance(found, dict):
            return found
        problem = "no object"
    except UNREADABLE as error:
        problem = f"{error!s:.80}"
    raise _Refusal(f"the {part} of its token is not read in one way only ({problem})", AGAIN)


def _require_expected(claims: dict, expected: dict) -> None:
    for name, value in expected.items():
        if claims[name] != value:
            problem = f"its token says {name} {claims[name]!r:.80}, and {value!r:.80} was expected"
            raise _Refusal(problem, "Sign what is sent, as it is sent; if it was, somebody exchanged or edited it")
    if not TOKEN_ID.fullmatch(claims["jti"]):
        problem = f"its token has the id {claims['jti']!r:.80}"
        raise _Refusal(problem, "Give each token a random id of 16 to 64 letters, digits, - or _")


def _require_time(claims: dict, now: float) -> None:
    """RFC 7519, sections 4.1.4 and 4.1.6. A clock that goes wrong shows here, hence the measured differences."""
    site, issued, expires = claims["iss"], claims["iat"], claims["exp"]
    if not (0 <= issued < expires < LATEST and expires - issued <= LONGEST_LIFETIME_S):
        problem = f"its token holds from {issued!r:.20} to {expires!r:.20}, and 1 to {LONGEST_LIFETIME_S} s are allowed"
        raise _Refusal(problem, "Sign a token with a shorter lifetime, just before it is sent")
    clocks = f"Compare both clocks with a time server (NTP); a difference of {LEEWAY_S} s is allowed"
    if issued - now > LEEWAY_S:
        ahead_s = math.ceil(issued - now)
        raise _Refusal(f"its token was issued in the future: the clock of {site} is {ahead_s} s ahead of ours", clocks)
    if now - expires >= LEEWAY_S:
        problem = (
            f"its token expired {now - expires:.0f} s ago: it was sent too late, or, if it was just made, "
            f"the clock of {site} is {now - issued:.0f} s behind ours"
        )
        raise _Refusal(problem, f"{AGAIN}. {clocks}")


def _moment(now: float | None) -> float:
    return time.time() if now is None else now
