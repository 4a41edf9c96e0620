"""Who takes part in one attempt at a sum, and which messages belong to it; hospitals and server check the same."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from fedbone.encryption.masking import MIN_HOSPITALS
from fedbone.encryption.messages import Fields, canonical, read, read_signed
from fedbone.encryption.schemes import MaskedSum, PaillierSum
from fedbone.errors import UserError

OFFER, UPLOAD, TOTAL = "offer", "upload", "total"
MASK_KEY_BYTES = 32
ATTEMPT_FIELDS: Fields = {"run": str, "round": int, "attempt": int, "model": str, "spec": dict}
ROSTER_FIELDS: Fields = {**ATTEMPT_FIELDS, "roster": str}

Scheme = PaillierSum | MaskedSum


@dataclass(frozen=True)
class Attempt:
    """Which sum this is; a repeat after a drop-out has the next ``attempt`` of the same ``round``.

    model: ``fedbone.vectors.sha256`` of the global vector that the update started from. Each hospital takes that of the
    vector it got: if the server sent different ones, the offers differ, and nobody uploads. Raises ValueError unless
    run and model are text and the others whole numbers from 0.
    """

    run: str
    round: int
    attempt: int
    model: str

    def __post_init__(self) -> None:
        for text in (self.run, self.model):
            if type(text) is not str or not text:
                raise ValueError(f"a run has a name and a model its digest, got {text!r}")
        for number in (self.round, self.attempt):
            if type(number) is not int or number < 0:
                raise ValueError(f"rounds and attempts are whole numbers from 0, got {number!r}")

    def header(self, scheme: Scheme) -> dict:
        """What every message of this attempt carries: ATTEMPT_FIELDS."""
        return {**asdict(self), "spec": scheme.spec}


class Roster:
    """The hospitals whose offers (signed X25519 keys) are in.

    mask_keys: (32) bytes by hospital, in the order of names. header: what each upload and the total carry. Raises
    UserError for fewer than MIN_HOSPITALS or more than ``most``, and, naming the hospital, for an offer that is forged,
    of another attempt or for another scheme, and for two of one hospital.
    """

    def __init__(
        self, attempt: Attempt, scheme: Scheme, directory: dict[str, bytes], offers: list[bytes], most: int
    ) -> None:
        if not MIN_HOSPITALS <= len(offers) <= most:
            problem = f"{len(offers)} hospitals have made an offer, and a sum takes {MIN_HOSPITALS} to {most}"
            raise UserError("roster", problem, "Wait for more hospitals, or begin again with another number of them")
        self.attempt, self._scheme, self._directory = attempt, scheme, directory
        by_name: dict[str, tuple[bytes, bytes]] = {}
        for offer in offers:
            name, header, mask_key = read_offer(offer, directory)
            _require_same(f"offer of {name}", header, attempt.header(scheme))
            if name in by_name:
                raise UserError(name, "there are two offers of it", "Begin another attempt, with one offer each")
            by_name[name] = offer, mask_key
        self.mask_keys = {name: by_name[name][1] for name in sorted(by_name)}
        digests = b"".join(hashlib.sha256(by_name[name][0]).digest() for name in self.mask_keys)
        self.header = {**attempt.header(scheme), "roster": hashlib.sha256(digests).hexdigest()}

    @property
    def context(self) -> bytes:
        """What the masks are bound to: run, round, attempt, scheme and all offers."""
        return canonical(self.header)

    def read_upload(self, upload: bytes) -> tuple[str, bytes]:
        """(the hospital, its sealed update). Raises UserError for one that is forged, or not of this roster's sum."""
        size = self._scheme.body_bytes
        name, header, body = read_signed(UPLOAD, upload, ROSTER_FIELDS, size, self._directory)
        if name not in self.mask_keys:
            problem = "the hospital is not on the roster: there is no offer of it for this attempt"
            raise UserError(f"upload of {name}", problem, "Begin another attempt with its offer")
        _require_same(f"upload of {name}", header, self.header)
        return name, body

    def read_total(self, total: bytes) -> bytes:
        """The sum of the sealed updates. Raises UserError for that of another attempt, roster or scheme."""
        header, body = read(TOTAL, total, ROSTER_FIELDS, self._scheme.body_bytes)
        _require_same("total", header, self.header)
        return body


def read_offer(offer: bytes, directory: dict[str, bytes]) -> tuple[str, dict, bytes]:
    """(the hospital that signed it, its ATTEMPT_FIELDS, its mask key). Raises UserError as ``read_signed`` does."""
    return read_signed(OFFER, offer, ATTEMPT_FIELDS, MASK_KEY_BYTES, directory)


def _require_same(where: str, header: dict, expected: dict) -> None:
    """Raises UserError, saying what differs: another run, round, attempt, scheme or roster."""
    for field in ("run", "round", "attempt", "model"):
        if header[field] != expected[field]:
            problem = f"it belongs to another {field}: {header[field]!r}, and this is {expected[field]!r}"
            raise UserError(where, problem, "Send what was made for this sum; nothing old is ever used again")
    theirs, ours = header["spec"], expected["spec"]
    if canonical(theirs) != canonical(ours):  # which tells 1 from 1.0 and True
        names = [key for key in sorted({*theirs, *ours}) if canonical(theirs.get(key)) != canonical(ours.get(key))]
        differences = ", ".join(f"{key} {theirs.get(key)!r}, here {ours.get(key)!r}" for key in names)
        raise UserError(
            where, f"it was made otherwise: {differences}", "Give all parties the same key, lanes and model"
        )
    if header.get("roster") != expected.get("roster"):
        problem = "it was made for another roster: other hospitals, or other offers of the same ones"
        raise UserError(where, problem, "Show every hospital the same offers: begin another attempt")
