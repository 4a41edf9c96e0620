"""Only the sum of the whole roster can be read, and only what the hospitals signed gets into it."""

import copy
import gc
import pickle
import types
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from fedbone.encryption.lanes import Lanes
from fedbone.encryption.masking import MaskKey, Masks
from fedbone.encryption.messages import canonical, read_signed, write, write_signed
from fedbone.encryption.paillier import CipherWorkers, add, ciphertexts_from_bytes, ciphertexts_to_bytes
from fedbone.encryption.paillier_keys import PrivateKey, insecure_test_key
from fedbone.encryption.roster import ATTEMPT_FIELDS, OFFER, ROSTER_FIELDS, TOTAL, UPLOAD, Roster
from fedbone.encryption.secure_sum import Attempt, Collector, Contributor, MaskedSum, PaillierSum
from fedbone.encryption.signing import SigningKey
from fedbone.errors import UserError
from tests.edits import edit_of

LANES = Lanes(update_range=0.5, hospitals=6)
KEY, OTHER_KEY = insecure_test_key(), insecure_test_key()
WIDE = Lanes(update_range=0.5, hospitals=6, bits=36)  # masks alone take words of 64 bits
COLUMNS = LANES.per_plaintext(KEY.public.bits) - 1
PARAMETERS = 2 * COLUMNS + 3
MODEL = "5f" * 32
FIRST = Attempt("run-1", 0, 0, MODEL)


def paillier(key=KEY, lanes=LANES, parameters=PARAMETERS) -> PaillierSum:
    return PaillierSum(lanes, parameters, CipherWorkers(key))


def masked(key=None, lanes=LANES, parameters=PARAMETERS) -> MaskedSum:
    return MaskedSum(lanes, parameters)


pytestmark = pytest.mark.filterwarnings("ignore:.*beyond the range")  # the updates of these tests are wide
both = pytest.mark.parametrize("make", [paillier, masked])


def update(seed: int, parameters: int = PARAMETERS) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.2, parameters).astype(np.float32)


def expected_mean(updates: dict, lanes: Lanes = LANES) -> np.ndarray:
    levels = [lanes.quantise(one)[0] for one in updates.values()]
    return lanes.mean(np.sum(levels, axis=0), len(levels))


@dataclass
class Federation:
    """Hospitals with keys and updates of their own, and what they send."""

    scheme: PaillierSum | MaskedSum
    server_scheme: PaillierSum | MaskedSum
    names: str = "abc"
    options: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = {name: SigningKey.create() for name in self.names}
        self.directory = {name: key.public for name, key in self.keys.items()}
        self.hospitals = {
            name: Contributor(name, key, self.directory, self.scheme, **self.options) for name, key in self.keys.items()
        }
        self.updates = {name: update(seed, self.scheme.parameters) for seed, name in enumerate(self.names)}

    def offers(self, attempt=FIRST, names=None) -> list[bytes]:
        return [self.hospitals[name].offer(attempt) for name in names or self.names]

    def uploads(self, offers, names=None) -> dict[str, bytes]:
        return {name: self.hospitals[name].upload(self.updates[name], offers) for name in names or self.names}

    def collector(self, offers, attempt=FIRST) -> Collector:
        return Collector(self.directory, self.server_scheme, attempt, offers)

    def forged(self, name: str, purpose: str, message: bytes, body: bytes | None = None, **changes) -> bytes:
        """The message with other fields, and the hospital's own good signature: what a hospital could send."""
        size = 32 if purpose == OFFER else self.scheme.body_bytes
        fields = ATTEMPT_FIELDS if purpose == OFFER else ROSTER_FIELDS
        hospital, header, old = read_signed(purpose, message, fields, size, self.directory)
        header = {"hospital": hospital, **header, **changes}
        return write_signed(purpose, header, old if body is None else body, self.keys[name])


def federation(make, names="abc", lanes=LANES, parameters=PARAMETERS, **options) -> Federation:
    sizes = {"lanes": lanes, "parameters": parameters}
    return Federation(make(KEY, **sizes), make(KEY.public, **sizes), names, options)


def sent(make, names="abc", attempt=FIRST, **options):
    """(federation, offers, uploads, a collector that has them all)"""
    fed = federation(make, names, **options)
    offers = fed.offers(attempt)
    uploads, collector = fed.uploads(offers), fed.collector(offers, attempt)
    for upload in uploads.values():
        collector.add(upload)
    return fed, offers, uploads, collector


def body_of(fed: Federation, upload: bytes) -> bytes:
    return read_signed(UPLOAD, upload, ROSTER_FIELDS, fed.scheme.body_bytes, fed.directory)[2]


@contextmanager
def refused(problem: str, where: str | None = None):
    """As pytest.raises, for a UserError whose problem (not its remedy) says this."""
    with pytest.raises(UserError) as refusal:
        yield
    assert problem in refusal.value.problem
    assert where in (None, refusal.value.where)


# --- the sum


@both
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_the_sum_is_numpys_and_every_hospital_reads_it(make, data):
    count = data.draw(st.integers(3, 6))
    parameters = data.draw(st.sampled_from([0, 1, COLUMNS - 1, COLUMNS, COLUMNS + 1, 2 * COLUMNS]))
    fed = federation(make, "abcdef"[:count], parameters=parameters)
    numbers = st.sampled_from([-9.0, -0.5, -0.3, -1e-9, 0.0, 1e-5, 0.25, 0.5, 9.0])
    for name in fed.names:
        numbers_of_one = data.draw(st.lists(numbers, min_size=parameters, max_size=parameters))
        fed.updates[name] = np.array(numbers_of_one, np.float32)
    offers = fed.offers()
    uploads, collector = fed.uploads(offers), fed.collector(offers)
    for name in data.draw(st.permutations(fed.names)):
        assert collector.add(uploads[name]) == name
    means = [hospital.open(collector.total()) for hospital in fed.hospitals.values()]
    for mean in means:
        assert mean.tolist() == expected_mean(fed.updates).tolist()
    exact = np.mean([np.clip(one, -0.5, 0.5) for one in fed.updates.values()], axis=0, dtype=np.float64)
    assert means[0] == pytest.approx(exact, abs=0.5 / 65534 + 1e-12)
    for name, hospital in fed.hospitals.items():
        assert hospital.clipped == np.count_nonzero(np.abs(fed.updates[name]) > 0.5)


@both
def test_wide_lanes_too_are_added_exactly(make):
    fed = federation(make, "abcd", WIDE)
    fed.updates["a"][:] = 9
    fed.updates["b"][:5] = -9
    offers = fed.offers()
    uploads, collector = fed.uploads(offers), fed.collector(offers)
    for upload in uploads.values():
        assert not readable(fed, body_of(fed, upload))
        collector.add(upload)
    assert fed.hospitals["a"].open(collector.total()).tolist() == expected_mean(fed.updates, WIDE).tolist()


@both
def test_the_order_of_uploads_does_not_matter(make):
    fed, offers, uploads, collector = sent(make, "abcd")
    for order in ("dcba", "bdac"):
        again = fed.collector(offers[::-1])
        for name in order:
            again.add(uploads[name])
        assert again.total() == collector.total()


@both
def test_one_update_is_never_sealed_twice_alike(make):
    fed = federation(make, repeats=1)
    bodies = []
    for attempt in (FIRST, replace(FIRST, attempt=1)):
        bodies.append(np.frombuffer(body_of(fed, fed.uploads(fed.offers(attempt))["a"]), "<u4"))
    assert np.mean(bodies[0] == bodies[1]) < 0.2  # of so few words, chance makes none alike


@both
def test_a_drop_out_means_a_repeat_with_the_others(make):
    fed = federation(make, "abcde", repeats=1)
    offers = fed.offers()
    uploads, collector = fed.uploads(offers, "abce"), fed.collector(offers)
    for upload in uploads.values():
        collector.add(upload)
    assert collector.missing == ["d"]
    with refused("uploads of d are missing"):
        collector.total()
    second = replace(FIRST, attempt=1)
    offers = fed.offers(second, "abce")
    collector = fed.collector(offers, second)
    for upload in fed.uploads(offers, "abce").values():
        collector.add(upload)
    rest = {name: fed.updates[name] for name in "abce"}
    assert fed.hospitals["e"].open(collector.total()).tolist() == expected_mean(rest).tolist()


@both
def test_an_update_of_another_size_or_with_nan_uses_nothing_up(make):
    fed = federation(make)
    offers = fed.offers()
    with refused("shape (3,)", "a"):
        fed.hospitals["a"].upload(np.zeros(3, np.float32), offers)
    with refused("NaN"):
        fed.hospitals["a"].upload(np.full(PARAMETERS, np.nan, np.float32), offers)
    collector = fed.collector(offers)
    for upload in fed.uploads(offers).values():
        collector.add(upload)
    assert fed.hospitals["a"].open(collector.total()).tolist() == expected_mean(fed.updates).tolist()


# --- confidentiality


def look_uniform(boxes: np.ndarray) -> bool:
    """Whether numbers in [0, 256) are equally frequent (chi-squared; fails by chance once in 10**13)."""
    counts, expected = np.bincount(boxes, minlength=256), len(boxes) / 256
    return ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-13, 255)


def readable(fed: Federation, body: bytes) -> bool:
    """To somebody with the Paillier private key."""
    try:
        fed.scheme.open(body)
    except UserError:
        return False
    return True


@both
def test_less_than_the_whole_roster_is_unreadable_with_the_private_key(make):
    fed, _, uploads, collector = sent(make, "abcd")
    bodies = {name: body_of(fed, upload) for name, upload in uploads.items()}
    for group in ("a", "b", "c", "d", "ab", "bd", "abc", "bcd"):
        total = None
        for name in group:
            total = fed.server_scheme.add(total, bodies[name])
        assert not readable(fed, total)
    assert fed.hospitals["a"].open(collector.total()) is not None


def test_one_upload_decrypts_to_uniform_numbers():
    """Also when the update is known to be zero; without masks, the same check tells."""
    fed, _, uploads, _ = sent(paillier, parameters=4000 * COLUMNS)
    plaintexts = CipherWorkers(KEY).decrypt(ciphertexts_from_bytes(body_of(fed, uploads["b"]), KEY.public))
    assert look_uniform(np.array([int(m * 256 // KEY.public.n) for m in plaintexts]))
    assert look_uniform(np.array([int(m & 255) for m in plaintexts]))
    bare = LANES.pack(LANES.quantise(fed.updates["b"])[0], KEY.public.bits)
    assert not look_uniform(np.array([int(m * 256 // KEY.public.n) for m in bare]))
    assert not look_uniform(np.array([int(m & 255) for m in bare]))


@pytest.mark.parametrize("lanes", [LANES, WIDE], ids=["32 bits", "64 bits"])
def test_one_masked_upload_is_uniform_words(lanes):
    fed = federation(masked, lanes=lanes, parameters=50_000)
    words = np.frombuffer(body_of(fed, fed.uploads(fed.offers())["b"]), lanes.word)
    for low_bit in range(0, 8 * lanes.word.itemsize, 8):
        assert look_uniform((words >> low_bit & 0xFF).astype(int))


def test_server_and_one_hospital_together_learn_the_sum_of_the_others_only():
    fed = federation(paillier, parameters=1000 * COLUMNS)
    offers = fed.offers()
    spies = [copy.deepcopy(fed.hospitals["c"]._key) for _ in range(2)]
    roster = Roster(FIRST, fed.scheme, fed.directory, offers, 6)
    all_of_c, only_with_a = (spy.masks("c", roster.mask_keys, roster.context) for spy in spies)
    only_with_a._streams = only_with_a._streams[:1]  # in the order of names
    uploads = fed.uploads(offers)

    def seen(names: str, known: Masks) -> list[mpz]:
        total = None
        for name in names:
            total = fed.scheme.add(total, body_of(fed, uploads[name]))
        plaintexts = CipherWorkers(KEY).decrypt(ciphertexts_from_bytes(total, KEY.public))
        numbers = known.integers(len(plaintexts), KEY.public.n)
        return [(m + number) % KEY.public.n for m, number in zip(plaintexts, numbers, strict=True)]

    sums, contributors = LANES.unpack(seen("ab", all_of_c), 1000 * COLUMNS, KEY.public.bits)
    both_others = {name: fed.updates[name] for name in "ab"}
    assert LANES.mean(sums, contributors).tolist() == expected_mean(both_others).tolist()
    alone = seen("a", only_with_a)
    assert look_uniform(np.array([int(m * 256 // KEY.public.n) for m in alone]))
    with pytest.raises(UserError):
        LANES.unpack(alone, 1000 * COLUMNS, KEY.public.bits)


def held_by(thing) -> list:
    """All objects that can be reached from it, but no code."""
    code = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    found, todo = {}, [thing]
    while todo:
        one = todo.pop()
        if id(one) not in found and not isinstance(one, code):
            found[id(one)] = one
            todo += gc.get_referents(one)
    return list(found.values())


SECRETS = (PrivateKey, SigningKey, Ed25519PrivateKey, X25519PrivateKey, MaskKey, Masks)


@both
def test_the_server_holds_no_secret(make):
    fed, _, uploads, collector = sent(make)
    held = held_by(collector)
    assert collector._total in held
    assert not [one for one in held if isinstance(one, SECRETS)]
    assert not {KEY.p, KEY.q} & {one for one in held if isinstance(one, (int, type(KEY.p)))}
    state = pickle.dumps(collector)
    for number in (KEY.p, KEY.q):
        for order in ("big", "little"):
            assert int(number).to_bytes(32, order) not in state
    if make is paillier:
        with refused("only the public key"):
            fed.server_scheme.open(body_of(fed, uploads["a"]))


def test_the_search_for_secrets_finds_those_of_a_hospital():
    fed = federation(paillier)
    fed.offers()
    kinds = {type(one) for one in held_by(fed.hospitals["a"])}
    assert {PrivateKey, SigningKey, MaskKey} <= kinds
    assert KEY.p in [one for one in held_by(fed.hospitals["a"]) if isinstance(one, type(KEY.p))]
    assert any(issubclass(kind, X25519PrivateKey) for kind in kinds)


@both
def test_the_mask_key_is_gone_after_its_upload(make):
    fed, offers, _, _ = sent(make)
    assert not [one for one in held_by(fed.hospitals["a"]) if isinstance(one, (X25519PrivateKey, MaskKey, Masks))]
    with refused("no unused mask key", "a"):
        fed.hospitals["a"].upload(fed.updates["a"], offers)


def test_the_mask_key_is_gone_when_encryption_fails(monkeypatch):
    fed = federation(paillier)
    offers = fed.offers()

    def broken(*_):
        raise UserError("processes", "one of them was ended", "Run it again")

    monkeypatch.setattr(CipherWorkers, "encrypt", broken)
    with refused("was ended"):
        fed.uploads(offers, "a")
    monkeypatch.undo()
    with refused("no unused mask key"):
        fed.uploads(offers, "a")
    offers = fed.offers(replace(FIRST, attempt=1))  # and this is no repeat: nothing has left the hospital
    assert fed.uploads(offers)


@both
def test_a_server_that_shows_different_offers_gets_no_sum(make):
    """All of them genuine: d's is shown to some hospitals only."""
    fed = federation(make, "abcd")
    offers = fed.offers()
    shown = {"a": offers, "b": offers[:3], "c": offers[:3]}
    uploads = {name: fed.hospitals[name].upload(fed.updates[name], own) for name, own in shown.items()}
    with refused("another roster", "upload of a"):
        fed.collector(offers[:3]).add(uploads["a"])
    total = None
    for upload in uploads.values():
        total = fed.scheme.add(total, body_of(fed, upload))
    assert not readable(fed, total)


def plain_upload(one: np.ndarray) -> list[mpz]:
    """Paillier without masks."""
    return CipherWorkers(KEY.public).encrypt(LANES.pack(LANES.quantise(one)[0], KEY.public.bits))


def recounted(ciphertexts: list[mpz], hospitals: int) -> list[mpz]:
    """What a server makes of one upload, with the public key: a counter of so many, who all sent zero."""
    zeros = LANES.pack(np.full(PARAMETERS, LANES.offset), KEY.public.bits)
    for _ in range(hospitals - 1):
        ciphertexts = add(ciphertexts, CipherWorkers(KEY.public).encrypt(zeros), KEY.public)
    return ciphertexts


def test_without_masks_a_server_has_one_update_opened_as_if_it_were_the_sum():
    forged = recounted(plain_upload(update(0)), 3)
    sums, contributors = LANES.unpack(CipherWorkers(KEY).decrypt(forged), PARAMETERS, KEY.public.bits)
    assert contributors == 3
    assert 3 * LANES.mean(sums, contributors) == pytest.approx(np.clip(update(0), -0.5, 0.5), abs=0.5 / 65534 + 1e-8)


def test_with_masks_the_same_is_refused():
    fed, _, uploads, collector = sent(paillier)
    total = collector.total()
    header_and_length = total[: -fed.scheme.body_bytes]
    forged = recounted(ciphertexts_from_bytes(body_of(fed, uploads["b"]), KEY.public), 3)
    for hospital in fed.hospitals.values():
        with refused("larger than all its lanes"):
            hospital.open(header_and_length + ciphertexts_to_bytes(forged, KEY.public))


@both
def test_a_hospital_decrypts_one_total_an_upload(make):
    """Or a server could ask again and again which totals open, and find a lane's number by halving."""
    fed, _, _, collector = sent(make)
    with refused("belongs to another round"):  # nothing was decrypted: the right one still opens
        fed.hospitals["a"].open(collector.total().replace(b'"round":0', b'"round":1'))
    assert fed.hospitals["a"].open(collector.total()).tolist() == expected_mean(fed.updates).tolist()
    spoilt = total_with(fed, collector, edited_by_the_server(make, fed, collector._total, 0, counter=1))
    with refused("counters do not say" if make is paillier else "counts 4 hospitals"):
        fed.hospitals["b"].open(spoilt)
    for name in "ab":
        with refused("no upload whose total", name):
            fed.hospitals[name].open(collector.total())


def test_numbers_beyond_the_range_are_counted_and_told_in_the_hospital():
    fed = federation(masked)
    fed.updates["a"] = np.linspace(-1, 1, PARAMETERS).astype(np.float32)
    beyond = int((np.abs(fed.updates["a"]) > 0.5).sum())
    with pytest.warns(UserWarning, match=f"a: {beyond} of {PARAMETERS} numbers of its update were beyond the range"):
        fed.uploads(fed.offers(), "a")
    assert fed.hospitals["a"].clipped == beyond


def test_each_offer_has_a_key_of_its_own():
    fed = federation(masked)
    first, second = (read_signed(OFFER, fed.offers(replace(FIRST, attempt=n))[0], ATTEMPT_FIELDS, 32, fed.directory)
                     for n in range(2))  # fmt: skip
    assert first[2] != second[2]


# --- repeats, which a hospital's staff decide on


def attempts_seen(make, repeats: int):
    """What a server holds that claims that d has dropped out, and has the others repeat."""
    fed, _, _, collector = sent(make, "abcd", repeats=repeats)
    second = replace(FIRST, attempt=1)
    offers = fed.offers(second, "abc")
    again = fed.collector(offers, second)
    for upload in fed.uploads(offers, "abc").values():
        again.add(upload)
    return fed, collector._total, again._total


@both
def test_a_false_drop_out_gives_the_server_one_update(make):
    """The limit that the module states: whoever reads two sums reads their difference."""
    fed, four, three = attempts_seen(make, repeats=1)
    reader = fed.server_scheme if make is masked else fed.scheme  # with Paillier, a hospital must help the server
    levels = reader.open(four)[0] - reader.open(three)[0]
    assert levels.tolist() == LANES.quantise(fed.updates["d"])[0].tolist()


@both
def test_hence_a_hospital_does_not_repeat_unless_its_staff_say_so(make):
    with refused("uploaded to round 0 already", "a"):
        attempts_seen(make, repeats=0)


@pytest.mark.parametrize("repeats", [0, 1, 3])
def test_a_hospital_uploads_as_often_as_it_was_told_in_each_round(repeats):
    fed = federation(masked, repeats=repeats)
    for number in (0, 1):
        for attempt in range(repeats + 1):
            fed.uploads(fed.offers(Attempt("r", number, 2 * attempt, MODEL)))
            if attempt < repeats:
                fed.offers(Attempt("r", number, 2 * attempt + 1, MODEL))  # an offer alone is no repeat
        for hospital in fed.hospitals.values():
            with refused(f"uploaded to round {number} already, and may repeat {repeats} times"):
                hospital.offer(Attempt("r", number, 99, MODEL))


@pytest.mark.parametrize(
    ("attempt", "problem"),
    [
        (Attempt("run-2", 9, 0, MODEL), "takes part in run 'run-1'"),
        (Attempt("run-1", 4, 2, MODEL), "not later"),
        (Attempt("run-1", 4, 1, MODEL), "not later"),
        (Attempt("run-1", 3, 9, MODEL), "not later"),
    ],
    ids=["another run", "the same", "an earlier attempt", "an earlier round"],
)
def test_a_hospital_goes_forward_in_one_run(attempt, problem):
    hospital = federation(masked, repeats=9).hospitals["a"]
    hospital.offer(Attempt("run-1", 4, 2, MODEL))
    with refused(problem, "a"):
        hospital.offer(attempt)
    hospital.offer(Attempt("run-1", 4, 3, MODEL))
    hospital.offer(Attempt("run-1", 5, 0, MODEL))


@pytest.mark.parametrize(
    "wrong",
    [{"run": ""}, {"run": None}, {"model": ""}, {"round": -1}, {"attempt": -1}, {"round": True}, {"attempt": 1.0}],
    ids=str,
)
def test_an_attempt_is_a_name_two_numbers_and_a_model(wrong):
    with pytest.raises(ValueError, match=r"run has a name|whole numbers"):
        replace(FIRST, **wrong)


# --- offers and rosters


def offers_with(change) -> tuple[Federation, list[bytes]]:
    """Three offers, after ``change(federation, offers)``."""
    fed = federation(paillier)
    offers = fed.offers()
    return fed, change(fed, offers)


def by_a_man_in_the_middle(fed, offers):
    """The server wants a secret with a in the name of b: a key of its own, which it can only sign itself."""
    header = {**FIRST.header(fed.scheme), "hospital": "b"}
    return [offers[0], write_signed(OFFER, header, MaskKey().public, SigningKey.create()), offers[2]]


def by_a_stranger(fed, offers):
    header = {**FIRST.header(fed.scheme), "hospital": "mallory"}
    return [*offers, write_signed(OFFER, header, MaskKey().public, SigningKey.create())]


def with_another_key(fed, offers):
    at = offers[1].index(fed.hospitals["b"]._key.public)
    return [offers[0], offers[1][:at] + MaskKey().public + offers[1][at + 32 :], offers[2]]


def changed(**changes):
    return lambda fed, offers: [offers[0], fed.forged("b", OFFER, offers[1], **changes), offers[2]]


def of_another_scheme(fed, offers):
    other = Contributor("b", fed.keys["b"], fed.directory, paillier(OTHER_KEY))
    return [offers[0], other.offer(FIRST), offers[2]]


BAD_OFFERS = {
    "two hospitals": (lambda fed, offers: offers[:2], "2 hospitals have made an offer"),
    "nobody": (lambda fed, offers: [], "0 hospitals have made an offer"),
    "seven": (lambda fed, offers: [*offers] * 2 + offers[:1], "7 hospitals have made an offer"),
    "man in the middle": (by_a_man_in_the_middle, "signature"),
    "another key": (with_another_key, "signature"),
    "stranger": (by_a_stranger, "not in the directory"),
    "one twice": (lambda fed, offers: [*offers, offers[1]], "two offers"),
    "another run": (changed(run="run-0"), "another run: 'run-0'"),
    "another round": (changed(round=1), "another round: 1"),
    "another attempt": (changed(attempt=1), "another attempt: 1"),
    "another model": (changed(model="00" * 32), "another model: '00"),
    "another key of Paillier": (of_another_scheme, "made otherwise: key "),
    "an upload": (lambda fed, offers: [*offers[:2], fed.uploads(offers, "a")["a"]], "does not begin like one"),
}


@pytest.mark.parametrize(("change", "problem"), BAD_OFFERS.values(), ids=BAD_OFFERS)
def test_unsound_offers_are_refused_by_server_and_hospitals(change, problem):
    fed, offers = offers_with(change)
    with refused(problem):
        fed.collector(offers)
    with refused(problem):
        fed.hospitals["c"].upload(fed.updates["c"], offers)


def test_a_hospital_looks_for_its_own_offer():
    fed = federation(masked, "abcd")
    old = fed.offers()
    new = fed.offers(replace(FIRST, attempt=1))
    with refused("own offer is not among", "d"):
        fed.hospitals["d"].upload(fed.updates["d"], new[:3])
    restarted = Contributor("d", fed.keys["d"], fed.directory, fed.scheme)
    restarted.offer(FIRST)
    with refused("own offer is not among", "d"):
        restarted.upload(fed.updates["d"], old)
    with refused("no unused mask key", "e"):
        federation(masked, "cde").hospitals["e"].upload(fed.updates["d"], new)


def test_offers_that_were_refused_leave_the_hospital_ready():
    fed = federation(masked)
    offers = fed.offers()
    with refused("2 hospitals"):
        fed.hospitals["a"].upload(fed.updates["a"], offers[:2])
    assert fed.uploads(offers)


def test_a_mask_key_of_small_order_is_refused():
    fed = federation(masked)
    offers = fed.offers()
    offers[1] = fed.forged("b", OFFER, offers[1], body=bytes(32))
    with refused("not a sound X25519 key", "b"):
        fed.hospitals["a"].upload(fed.updates["a"], offers)


def test_a_hospital_must_be_in_the_directory_under_its_own_key():
    key = SigningKey.create()
    for directory in ({}, {"a": SigningKey.create().public}, {"b": key.public}):
        with refused("does not hold its public key", "a"):
            Contributor("a", key, directory, masked())


def test_one_key_under_two_names_is_refused_by_all():
    key = SigningKey.create()
    directory = {"a": key.public, "b": key.public, "c": SigningKey.create().public}
    with refused("'a' too", "b"):
        Contributor("a", key, directory, masked())
    with refused("'a' too", "b"):
        Collector(directory, masked(), FIRST, [])


# --- uploads


def replayed(attempt):
    """An upload that a signed for another sum."""

    def change(fed, offers, uploads):
        past = {name: Contributor(name, fed.keys[name], fed.directory, fed.scheme) for name in "abc"}
        return past["a"].upload(fed.updates["a"], [hospital.offer(attempt) for hospital in past.values()])

    return change


def from_outside_the_roster(fed, offers, uploads):
    header = {**Roster(FIRST, fed.scheme, fed.directory, offers, 6).header, "hospital": "d"}
    return write_signed(UPLOAD, header, body_of(fed, uploads["a"]), fed.keys["d"])


def in_anothers_name(fed, offers, uploads):
    return uploads["a"].replace(b'"hospital":"a"', b'"hospital":"b"')


def ciphertext(number):
    """a's upload with ``number(n, p)`` in place of its first ciphertext."""

    def change(fed, offers, uploads):
        size = 2 * KEY.public.bits // 8
        body = int(number(KEY.public.n, KEY.p)).to_bytes(size) + body_of(fed, uploads["a"])[size:]
        return fed.forged("a", UPLOAD, uploads["a"], body=body)

    return change


def edited(**changes):
    return lambda fed, offers, uploads: fed.forged("a", UPLOAD, uploads["a"], **changes)


def spec_with(**changes) -> dict:
    return {**paillier().spec, **changes}


BAD_UPLOADS = {
    "flipped bit": (lambda fed, offers, up: up["a"][:-100] + bytes([up["a"][-100] ^ 1]) + up["a"][-99:], "signature"),
    "forged": (lambda fed, offers, up: up["a"][:-64] + SigningKey.create().sign(UPLOAD, up["a"][:-64]), "signature"),
    "in another's name": (in_anothers_name, "signature"),
    "unsigned": (lambda fed, offers, up: up["a"][:-64], "not sound"),
    "an offer": (lambda fed, offers, up: offers[0], "does not begin like one"),
    "earlier run": (replayed(Attempt("run-0", 0, 0, MODEL)), "another run: 'run-0'"),
    "another round": (replayed(Attempt("run-1", 7, 0, MODEL)), "another round: 7"),
    "another attempt": (replayed(Attempt("run-1", 0, 1, MODEL)), "another attempt: 1"),
    "same attempt, other offers": (replayed(FIRST), "another roster"),
    "outside the roster": (from_outside_the_roster, "not on the roster"),
    "mixed keys": (edited(spec=spec_with(key=OTHER_KEY.public.id)), "made otherwise: key "),
    "mixed lanes": (edited(spec=spec_with(bits=12)), "made otherwise: bits 12, here 16"),
    "another range": (edited(spec=spec_with(update_range=1.0)), "made otherwise: update_range 1.0, here 0.5"),
    "true for a number": (edited(spec=spec_with(bits=16.0)), "made otherwise: bits 16.0, here 16"),
    "no scheme": (edited(spec={}), "made otherwise: bits None"),
    "a field more": (edited(spec=spec_with(more=1)), "made otherwise: more 1, here None"),
    "zero": (ciphertext(lambda n, p: 0), "out of range"),
    "one": (ciphertext(lambda n, p: 1), "out of range"),
    "n squared": (ciphertext(lambda n, p: n * n), "out of range"),
    "a multiple of n": (ciphertext(lambda n, p: 3 * n), "shares a factor"),
    "a multiple of p": (ciphertext(lambda n, p: 12345 * p), "shares a factor"),
    "a body too short": (lambda fed, offers, up: fed.forged("a", UPLOAD, up["a"], body=b"x"), "not sound"),
}


@pytest.fixture(scope="module")
def four():
    """d is in the directory, and not on the roster."""
    fed = federation(paillier, "abcd")
    offers = fed.offers(names="abc")
    return fed, offers, fed.uploads(offers, "abc")


@pytest.mark.parametrize(("change", "problem"), BAD_UPLOADS.values(), ids=BAD_UPLOADS)
def test_an_unsound_upload_is_refused_and_the_right_one_still_counts(four, change, problem):
    fed, offers, uploads = four
    collector = fed.collector(offers)
    collector.add(uploads["b"])
    before = collector._total
    bad = change(fed, offers, uploads)
    with refused(problem):
        collector.add(bad)
    assert (collector._total, collector.missing) == (before, ["a", "c"])
    for name in "ac":
        collector.add(uploads[name])
    rest = {name: fed.updates[name] for name in "abc"}
    sums = fed.scheme.open(collector.total()[-fed.scheme.body_bytes :])
    assert LANES.mean(*sums).tolist() == expected_mean(rest).tolist()


@both
def test_an_upload_counts_once(make):
    _, _, uploads, collector = sent(make)
    total = collector.total()
    with refused("come already", "upload of b"):
        collector.add(uploads["b"])
    assert collector.total() == total


@both
def test_who_signs_anothers_upload_as_its_own_spoils_the_sum_and_learns_nothing(make):
    """Both signatures are good, and only the masks tell."""
    fed = federation(make)
    offers = fed.offers()
    uploads, collector = fed.uploads(offers), fed.collector(offers)
    stolen = {"hospital": "b", **Roster(FIRST, fed.scheme, fed.directory, offers, 6).header}
    for upload in (uploads["a"], write_signed(UPLOAD, stolen, body_of(fed, uploads["a"]), fed.keys["b"]), uploads["c"]):
        collector.add(upload)
    with pytest.raises(UserError):
        fed.hospitals["b"].open(collector.total())


@pytest.mark.parametrize("kind", ["offer", "upload", "total"])
def test_no_edit_of_a_message_gets_through(four, kind):
    """Of the total, which nobody signs, no edit of its header does."""
    fed, offers, uploads = four
    collector = fed.collector(offers)
    for upload in uploads.values():
        collector.add(upload)
    total = collector.total()
    message = {"offer": offers[1], "upload": uploads["b"], "total": total[: -fed.scheme.body_bytes]}[kind]
    take = {
        "offer": lambda edit: fed.collector([offers[0], edit, offers[2]]),
        "upload": lambda edit: fed.collector(offers).add(edit),
        "total": lambda edit: fed.hospitals["a"].open(edit + total[-fed.scheme.body_bytes :]),
    }[kind]

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.data())
    def edits(data):
        edit = edit_of(data, message, 4)
        if edit != message:
            with pytest.raises(UserError):
                take(edit)

    edits()


# --- the total


def total_with(fed: Federation, collector: Collector, body: bytes | None = None, **changes) -> bytes:
    header = {**collector._roster.header, **changes}
    return write(TOTAL, header, collector._total if body is None else body)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"run": "run-2"}, "another run"),
        ({"round": 1}, "another round"),
        ({"attempt": 1}, "another attempt"),
        ({"roster": "0" * 64}, "another roster"),
        ({"spec": spec_with(parameters=1)}, "made otherwise: parameters 1"),
        ({"body": b""}, "not sound"),
    ],
    ids=["run", "round", "attempt", "roster", "spec", "empty"],
)
def test_a_total_of_another_sum_is_refused(changes, problem):
    fed, _, _, collector = sent(paillier)
    with refused(problem):
        fed.hospitals["a"].open(total_with(fed, collector, **changes))


@both
def test_who_has_uploaded_nothing_opens_nothing(make):
    fed, _, _, collector = sent(make)
    late = Contributor("a", fed.keys["a"], fed.directory, fed.scheme)
    late.offer(FIRST)
    with refused("no upload whose total", "a"):
        late.open(collector.total())


def edited_by_the_server(make, fed, body: bytes, levels: int, counter: int = 0) -> bytes:
    """What anybody can do to a sum without a key: add to its counter and to its first number."""
    if make is masked:
        words = np.frombuffer(body, "<u4").copy()
        words[:2] += np.array([counter, levels]).astype(np.uint32)
        return words.tobytes()
    plaintext = (counter + (levels << LANES.width)) % KEY.public.n
    zeros = [mpz(0)] * (len(body) * 8 // (2 * KEY.public.bits) - 1)
    delta = CipherWorkers(KEY.public).encrypt([plaintext, *zeros])
    return ciphertexts_to_bytes(add(ciphertexts_from_bytes(body, KEY.public), delta, KEY.public), KEY.public)


@both
def test_a_server_can_change_the_sum_unseen(make):
    """The limit that the module states: nobody signs the total."""
    fed, _, _, collector = sent(make)
    honest = fed.hospitals["a"].open(collector.total())
    changed_total = total_with(fed, collector, edited_by_the_server(make, fed, collector._total, 1000))
    difference = fed.hospitals["b"].open(changed_total) - honest
    assert difference[0] == pytest.approx(1000 * LANES.step / 3)
    assert not difference[1:].any()


@both
def test_recomputing_finds_what_the_server_changed(make):
    fed, _, uploads, collector = sent(make, recompute=True)
    changed_total = total_with(fed, collector, edited_by_the_server(make, fed, collector._total, 1))
    for hospital in fed.hospitals.values():
        with refused("not the sum of the uploads", "total"):
            hospital.open(changed_total, collector.uploads)
        mean = hospital.open(collector.total(), list(uploads.values())[::-1])
        assert mean.tolist() == expected_mean(fed.updates).tolist()


@both
def test_a_sum_that_counts_others_is_refused(make):
    fed, _, _, collector = sent(make)
    body = collector._total
    if make is masked:
        more = edited_by_the_server(make, fed, body, LANES.offset, 1)
        words = np.frombuffer(more, "<u4").copy()
        words[2:] += np.uint32(LANES.offset)
        more = words.tobytes()
    else:
        more = ciphertexts_to_bytes(recounted(ciphertexts_from_bytes(body, KEY.public), 2), KEY.public)
    with refused("counts 4 hospitals, and the roster has 3", "total"):
        fed.hospitals["a"].open(total_with(fed, collector, more))


@both
@pytest.mark.parametrize("lanes", [LANES, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize(("first", "counter"), [(2, 3), (None, 3), (-1, 3), (3, 0), (7, 7)])
def test_numbers_that_are_no_sum_are_refused(make, lanes, first, counter):
    """A level is at least 1 and below 2**bits, and at most six hospitals are added."""
    scheme = make(KEY, lanes, 1)
    first = counter << lanes.bits if first is None else first
    if make is masked:
        body = np.array([counter, first]).astype(lanes.word).tobytes()
    else:
        plaintext = (counter + (first << lanes.width)) % KEY.public.n
        body = ciphertexts_to_bytes(CipherWorkers(KEY.public).encrypt([mpz(plaintext)]), KEY.public)
    with pytest.raises(UserError):
        scheme.open(body)


def test_masks_alone_count_hospitals_without_parameters_too():
    for counter in (0, 7):
        with refused("counter does not say"):
            masked(parameters=0).open(np.array([counter], "<u4").tobytes())


BAD_EVIDENCE = {
    "none": (lambda fed, uploads: None, "uploads of a, b, c are not there"),
    "one missing": (lambda fed, uploads: [uploads["a"], uploads["c"]], "uploads of b are not there"),
    "one twice": (lambda fed, uploads: [*uploads.values(), uploads["a"]], "twice"),
    "one forged": (
        lambda fed, uploads: [uploads["a"], uploads["b"], uploads["c"][:-1] + bytes([uploads["c"][-1] ^ 1])],
        "signature",
    ),
    "one of another sum": (lambda fed, uploads: [*uploads.values(), sent(paillier)[2]["a"]], "signature"),
    "an unsound one": (
        lambda fed, uploads: [fed.forged("a", UPLOAD, uploads["a"], body=bytes(fed.scheme.body_bytes))],
        "out of range",
    ),
}


@pytest.mark.parametrize(("evidence", "problem"), BAD_EVIDENCE.values(), ids=BAD_EVIDENCE)
def test_recomputing_needs_each_signed_upload_once(evidence, problem):
    fed, _, uploads, collector = sent(paillier, recompute=True)
    with refused(problem):
        fed.hospitals["b"].open(collector.total(), evidence(fed, uploads))


def test_recomputing_is_for_ten_hospitals():
    lanes, names = Lanes(0.5, 12), "abcdefghijk"
    fed = federation(masked, names, lanes, 5)
    offers = fed.offers()
    collector = fed.collector(offers)
    for upload in fed.uploads(offers).values():
        collector.add(upload)
    assert fed.hospitals["k"].open(collector.total()).tolist() == expected_mean(fed.updates, lanes).tolist()
    with refused("uploads of 11 hospitals were not kept"):
        _ = collector.uploads
    strict = federation(masked, names, lanes, 5, recompute=True)
    with refused("11 hospitals have made an offer, and a sum takes 3 to 10"):
        strict.uploads(strict.offers())
    assert strict.uploads(strict.offers(replace(FIRST, attempt=1), names[:10]), names[:10])


def test_both_schemes_say_what_they_are():
    """All that must be the same at all parties, in values that JSON keeps."""
    lanes = {"bits": 16, "hospitals": 6, "update_range": 0.5, "parameters": PARAMETERS}
    assert masked().spec == {"scheme": "masks alone", **lanes}
    assert paillier().spec == paillier(KEY.public).spec
    assert paillier().spec == {"scheme": "masked Paillier", "key": KEY.public.id, "key_bits": 512, **lanes}
    assert canonical(paillier(lanes=Lanes(1, 6)).spec) == canonical(paillier(lanes=Lanes(1.0, 6)).spec)
