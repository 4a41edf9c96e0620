"""The sum of the hospitals' updates, and nothing else: the protocol between hospitals and server.

    1. each hospital sends a signed offer: a fresh X25519 key for this attempt     Contributor.offer
    2. the server shows all of them to all; each hospital checks them, masks its
       update with one mask a pair, encrypts and signs it, and forgets its key     Contributor.upload
    3. the server checks and adds the uploads, without any private key             Collector.add, total
    4. each hospital checks and decrypts the total                                 Contributor.open

The masks cancel only in the total of the whole roster. One upload, or several that are not all, stay unreadable to the
server, to another hospital with the Paillier key that they share, and to both together: these learn the sum of the
others. The server cannot sign an offer of its own making, and after showing different offers to different hospitals it
has a sum that nobody can read. It does choose the roster: a hospital is hidden among the honest ones on it only, and
needs at least one other.

What this does not do, and a hospital must know:

* The total is the server's own. It can add any number to it unseen, and learn something of the sum from whether a
  hospital then refuses it; hence a hospital decrypts one total an attempt. ``recompute`` finds the change before
  that; each hospital then receives every upload. A hospital that sends nonsense spoils the sum, or poisons it, and is
  not found out.
* A server that claims a drop-out although the upload came, and has the others repeat, holds two sums that differ by
  that update. With MaskedSum it reads it alone, with PaillierSum together with one hospital. Hence a hospital uploads
  once a round unless its own configuration lets it repeat (``repeats``), and to one run only. It counts in memory: who
  goes on after a restart must remember the rosters, as ``fedbone.federation`` does in its state, or begin a new run
  with another seed.
* Different rosters in different rounds differ by a hospital too, though its update has moved on between them. And a
  model can be built that only some hospitals' films answer to, so that the others' updates are zero. The offers bind
  all hospitals to one model; each should test a new one on its own films.
* Nothing hides the sum from the hospitals, or what the sum says about one of them: a joint that one hospital labels,
  or two, has rows in the head that are nobody else's. See differential privacy.
* X25519 and Paillier do not withstand a quantum computer: what is recorded today could be read then.
"""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np

from fedbone.encryption.lanes import Lanes
from fedbone.encryption.masking import MaskKey
from fedbone.encryption.messages import write, write_signed
from fedbone.encryption.paillier import Progress
from fedbone.encryption.roster import OFFER, TOTAL, UPLOAD, Attempt, Roster, Scheme
from fedbone.encryption.schemes import MaskedSum, PaillierSum
from fedbone.encryption.signing import SigningKey, checked_directory
from fedbone.errors import UserError

__all__ = ["Attempt", "Collector", "Contributor", "MaskedSum", "PaillierSum"]
MAX_RECOMPUTED = 10  # hospitals whose uploads are sent to all


def most_hospitals(lanes: Lanes, recompute: bool) -> int:
    """How many hospitals one sum can have."""
    return min(lanes.hospitals, MAX_RECOMPUTED) if recompute else lanes.hospitals


class Contributor:
    """One hospital's side, for one run.

    directory: all hospitals' public signing keys, fixed before the run. recompute: ``open`` demands the signed uploads
    and adds them up itself. repeats: how often this hospital uploads again in one round; the module says what that
    risks. ``clipped``: how many numbers the last upload cut off at the range; it stays here, as a warning does.
    """

    def __init__(
        self,
        name: str,
        signing_key: SigningKey,
        directory: dict[str, bytes],
        scheme: Scheme,
        *,
        recompute: bool = False,
        repeats: int = 0,
    ) -> None:
        self.name, self.scheme, self.recompute, self.repeats = name, scheme, recompute, repeats
        self._signing_key, self._directory = signing_key, checked_directory(directory)
        if self._directory.get(name) != signing_key.public:
            problem = "the directory of hospitals does not hold its public key"
            raise UserError(name, problem, "Enter SigningKey.public under this name, at all parties")
        self.clipped = 0
        self._last: Attempt | None = None  # that it made an offer for
        self._key: MaskKey | None = None
        self._roster: Roster | None = None  # that it uploaded to
        self._uploads: Counter[int] = Counter()  # by round

    def offer(self, attempt: Attempt) -> bytes:
        """A signed mask key for ``attempt``; an earlier one that was not used is forgotten.

        Make it when the update is ready: who drops out before the offers are in costs no repeat. Raises UserError for
        another run, for an attempt that is not later than the last, and for one repeat too many.
        """
        self._require_next(attempt)
        self._last, self._key = attempt, MaskKey()
        header = {**attempt.header(self.scheme), "hospital": self.name}
        return write_signed(OFFER, header, self._key.public, self._signing_key)

    def upload(self, update: np.ndarray, offers: list[bytes], progress: Progress | None = None) -> bytes:
        """The update (P,) float32, masked, encrypted and signed, for the hospitals that made ``offers``.

        Once for each offer of its own. Raises UserError for what is wrong with the offers or the update.
        """
        if self._key is None:
            problem = "it has no unused mask key: it has uploaded for this attempt, or made no offer"
            raise UserError(self.name, problem, "Begin another attempt, with a new offer")
        most = most_hospitals(self.scheme.lanes, self.recompute)
        roster = Roster(self._last, self.scheme, self._directory, offers, most)
        if roster.mask_keys.get(self.name) != self._key.public:
            problem = "its own offer is not among the offers"
            raise UserError(self.name, problem, "Begin another attempt: the server left it out, or shows an old one")
        levels, clipped = self._levels(update)
        key, self._key = self._key, None
        body = self.scheme.seal(levels, key.masks(self.name, roster.mask_keys, roster.context), progress)
        self._roster, self.clipped = roster, clipped
        if clipped:
            here = f"{clipped:,} of {len(update):,} numbers of its update were beyond the range and cut off"
            warnings.warn(f"{self.name}: {here}", stacklevel=2)  # in the hospital's own log
        self._uploads[roster.attempt.round] += 1
        return write_signed(UPLOAD, {**roster.header, "hospital": self.name}, body, self._signing_key)

    def open(self, total: bytes, uploads: list[bytes] | None = None, progress: Progress | None = None) -> np.ndarray:
        """(P,) float64: the mean update of the hospitals of the attempt that this hospital uploaded to.

        One total is decrypted for each upload. uploads: needed, in any order, if ``recompute``. Raises UserError for a
        total that is another one's, that does not count each hospital once, that masks are left in, or that is not the
        sum of the uploads.
        """
        if self._roster is None:
            problem = "it has no upload whose total is still to be opened"
            raise UserError(self.name, problem, "Upload first; of a total that was refused, begin another attempt")
        body = self._roster.read_total(total)
        if self.recompute:
            self._require_sum_of(uploads or [], body)
        roster, self._roster = self._roster, None  # or who sends totals would learn from each whether it opens
        sums, contributors = self.scheme.open(body, progress)
        if contributors != len(roster.mask_keys):
            problem = f"it counts {contributors} hospitals, and the roster has {len(roster.mask_keys)}"
            raise UserError("total", problem, "Do not use it: the server added something else")
        return self.scheme.lanes.mean(sums, contributors)

    def _require_next(self, attempt: Attempt) -> None:
        last = self._last
        if last is None:
            return
        if attempt.run != last.run:
            problem = f"it takes part in run {last.run!r}, and was asked for an offer for run {attempt.run!r}"
            raise UserError(self.name, problem, "Its staff begin a new run, never the server")
        if (attempt.round, attempt.attempt) <= (last.round, last.attempt):
            problem = f"round {attempt.round}, attempt {attempt.attempt} is not later than its last offer"
            raise UserError(self.name, problem, "Count attempts and rounds upward")
        if self._uploads[attempt.round] > self.repeats:
            problem = f"it has uploaded to round {attempt.round} already, and may repeat {self.repeats} times"
            raise UserError(self.name, problem, "Go on to the next round, or let its staff decide on `repeats`")

    def _levels(self, update: np.ndarray) -> tuple[np.ndarray, int]:
        if update.shape != (self.scheme.parameters,):
            problem = f"its update has the shape {update.shape}, and the sum is of ({self.scheme.parameters},)"
            raise UserError(self.name, problem, "Give all parties the same model")
        return self.scheme.lanes.quantise(update)

    def _require_sum_of(self, uploads: list[bytes], body: bytes) -> None:
        recomputed, missing = None, set(self._roster.mask_keys)
        for upload in uploads:
            name, sealed = self._roster.read_upload(upload)
            if name not in missing:
                raise UserError(f"upload of {name}", "it is there twice", "Show each hospital's upload once")
            missing.remove(name)
            recomputed = _added(self.scheme, recomputed, name, sealed)
        if missing:
            problem = f"the uploads of {', '.join(sorted(missing))} are not there to recompute it from"
            raise UserError("total", problem, "Have the server send all signed uploads with the total")
        if recomputed != body:
            problem = "it is not the sum of the uploads that the hospitals signed: the server changed it"
            raise UserError("total", problem, "Do not use it, and find out why")


class Collector:
    """The server's side of one attempt: it checks and adds, and sees neither a private key nor a mask.

    Raises UserError as ``Roster`` does, and for an unsound directory.
    """

    def __init__(self, directory: dict[str, bytes], scheme: Scheme, attempt: Attempt, offers: list[bytes]) -> None:
        self._scheme = scheme
        self._roster = Roster(attempt, scheme, checked_directory(directory), offers, scheme.lanes.hospitals)
        self._uploads: dict[str, bytes] = {}
        self._total: bytes | None = None

    @property
    def missing(self) -> list[str]:
        """The hospitals of the roster whose upload has not come yet."""
        return [name for name in self._roster.mask_keys if name not in self._uploads]

    def add(self, upload: bytes) -> str:
        """Add one hospital's upload; returns its name. Raises UserError for anything else, with the sum as it was."""
        name, sealed = self._roster.read_upload(upload)
        if name in self._uploads:
            problem = "it has come already, and counts once"
            raise UserError(f"upload of {name}", problem, "Find out who sent it a second time")
        self._total = _added(self._scheme, self._total, name, sealed)
        self._uploads[name] = upload if len(self._roster.mask_keys) <= MAX_RECOMPUTED else b""
        return name

    def total(self) -> bytes:
        """The sum of all uploads, for the hospitals to open. Raises UserError while some are missing, naming them."""
        if self.missing:
            problem = f"the uploads of {', '.join(self.missing)} are missing, and without them the masks do not cancel"
            raise UserError("total", problem, "Wait for them, or repeat it with the others if these agree")
        return write(TOTAL, self._roster.header, self._total)

    @property
    def uploads(self) -> list[bytes]:
        """All signed uploads, for hospitals that recompute. Raises UserError for more than MAX_RECOMPUTED of them."""
        if len(self._roster.mask_keys) > MAX_RECOMPUTED:
            problem = f"the uploads of {len(self._roster.mask_keys)} hospitals were not kept"
            raise UserError("total", problem, f"Recomputing is for at most {MAX_RECOMPUTED} hospitals")
        return list(self._uploads.values())


def _added(scheme: Scheme, total: bytes | None, name: str, sealed: bytes) -> bytes:
    """``scheme.add``, and its UserError names the hospital."""
    try:
        return scheme.add(total, sealed)
    except UserError as error:
        raise UserError(f"upload of {name}", f"{error.where}: {error.problem}", error.remedy) from error
