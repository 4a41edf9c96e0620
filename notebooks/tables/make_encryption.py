"""Measures notebooks/tables/encryption.csv: what it costs to add updates that nobody sees, in each way there is.

    nice .venv/bin/python -m notebooks.tables.make_encryption      (7 CPU minutes, all of it in one process)

Each row: one way, on simulated updates (Student's t with 4 degrees of freedom, cut at UPDATE_RANGE). CPU seconds of one
core, of one hospital: encrypt from float32 to bytes, add one more upload to the sum (checks included), decrypt from
bytes to numbers; keys, tables and signatures are left out. parameters: measured, of which ``per_million`` makes a
million. relative_l2_error: of the sum of ``hospitals`` updates, over its length, on ERROR_PARAMETERS; exact: whether
that sum is the sum of what each hospital encoded, to the last bit. reads_*: who can, from all messages of one sum;
masks hide an update among those of the honest hospitals. extrapolated: in proportion, from what was measured.
"""

from __future__ import annotations

import datetime
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version

import numpy as np

from fedbone.config import get_profile
from fedbone.encryption.lanes import Lanes
from fedbone.encryption.masking import MaskKey, Masks
from fedbone.encryption.paillier import CipherWorkers
from fedbone.encryption.paillier_keys import PrivateKey, generate
from fedbone.encryption.schemes import MaskedSum, PaillierSum
from fedbone.federation.secure import exact_lanes
from fedbone.model.hrnet import build, build_for
from notebooks.tables.table import processor, save

COLUMNS = "scheme library key_bits hospitals parameters encrypt_cpu_s_per_million add_cpu_s_per_million".split()
COLUMNS += "decrypt_cpu_s_per_million bytes_vs_float32 relative_l2_error exact reads_one_update reads_the_sum".split()
COLUMNS += "cpu_model_parameters hrnet_w32_parameters hrnet_w32_encrypt_cpu_s_extrapolated".split()
COLUMNS += "hrnet_w32_decrypt_cpu_s_extrapolated hrnet_w32_megabytes_extrapolated processor date".split()
UPDATE_RANGE = 0.05
PARAMETERS, ERROR_PARAMETERS, FLOATS = 1_000_000, 10_000, 40  # FLOATS: that phe works on
PRECISION = 2**-24  # of phe's numbers: one for all, or each float's size would be seen beside its ciphertext
JOINTS = 17
KEYS, MASKS = (2048, 3072), "masks alone, 16 bits"
PACKED, ONE_FLOAT = "masked Paillier, packed, 16 bits", "Paillier, one float a ciphertext"
EVERYBODY, HOSPITALS, KEY_HOLDERS = "server and hospitals", "hospitals", "every hospital (they share the key)"
Body = list[bytes]


@dataclass(frozen=True)
class Way:
    """One way to add updates (P,) float32; the sum is ``open(total) * unit``.

    encode: the numbers (P,) that an update is rounded to, in units. seal: (update, which hospital) -> upload.
    """

    encode: Callable[[np.ndarray], np.ndarray]
    seal: Callable[[np.ndarray, int], Body]
    add: Callable[[Body, Body], Body]
    open: Callable[[Body], np.ndarray]
    unit: float = 1.0


def plain(_: int, masked: bool) -> Way:
    """Nothing hidden."""
    return Way(
        encode=lambda update: update.astype(np.float64),
        seal=lambda update, _: [update.tobytes()],
        add=lambda a, b: [(np.frombuffer(a[0], np.float32) + np.frombuffer(b[0], np.float32)).tobytes()],
        open=lambda total: np.frombuffer(total[0], np.float32),
    )


def secure(scheme: PaillierSum | MaskedSum, masked: bool) -> Way:
    """fedbone's sums. masked: else each upload is a sum that can be opened."""
    lanes, keys = scheme.lanes, {str(index): MaskKey() for index in range(scheme.lanes.hospitals)}
    publics = {name: key.public for name, key in keys.items()}

    def seal(update: np.ndarray, hospital: int) -> Body:
        name = str(hospital)
        masks = keys[name].masks(name, publics, b"") if masked else Masks([])
        return [scheme.seal(lanes.quantise(update)[0], masks)]

    def opened(total: Body) -> np.ndarray:
        sums, contributors = scheme.open(total[0])
        return sums - contributors * lanes.offset

    def encode(update: np.ndarray) -> np.ndarray:
        return lanes.quantise(update)[0] - lanes.offset

    return Way(encode, seal, lambda a, b: [scheme.add(a[0], b[0])], opened, lanes.step)


def masks_alone(lanes: Lanes, parameters: int, masked: bool) -> Way:
    """A word for each lane."""
    return secure(MaskedSum(lanes, parameters), masked)


def packed(bits: int, lanes: Lanes, parameters: int, masked: bool) -> Way:
    """Masked Paillier."""
    workers = CipherWorkers(_key(bits))
    workers.encrypt([1])  # its table, once per key
    return secure(PaillierSum(lanes, parameters, workers), masked)


def one_float(bits: int, _: int, masked: bool) -> Way:
    """python-paillier as its manual shows it, but with one precision."""
    import phe

    public = phe.PaillierPublicKey(int(_key(bits).public.n))
    private = phe.PaillierPrivateKey(public, int(_key(bits).p), int(_key(bits).q))
    encode = partial(phe.EncodedNumber.encode, public, precision=PRECISION)
    exponent = encode(1.0).exponent

    def to_bytes(numbers: list[phe.EncryptedNumber]) -> Body:
        return [number.ciphertext(be_secure=False).to_bytes(bits // 4) for number in numbers]

    def from_bytes(body: Body) -> list[phe.EncryptedNumber]:
        return [phe.EncryptedNumber(public, int.from_bytes(part), exponent) for part in body]

    def signed(encoded: list[phe.EncodedNumber]) -> np.ndarray:
        return np.array([e.encoding if e.encoding <= public.max_int else e.encoding - public.n for e in encoded])

    return Way(
        encode=lambda update: signed([encode(x) for x in update.tolist()]),
        seal=lambda update, _: to_bytes([public.encrypt(encode(x)) for x in update.tolist()]),
        add=lambda a, b: to_bytes([x + y for x, y in zip(from_bytes(a), from_bytes(b), strict=True)]),
        open=lambda total: signed([private.decrypt_encoded(number) for number in from_bytes(total)]),
        unit=float(phe.EncodedNumber.BASE) ** exponent,
    )


def ckks(degree: int, primes: list[int], scale: int, parameters: int, masked: bool) -> Way:
    """Approximate numbers, degree / 2 in a ciphertext."""
    import tenseal

    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=degree, coeff_mod_bit_sizes=primes, n_threads=1
    )
    context.global_scale = scale
    server, slots = context.copy(), degree // 2
    server.make_context_public()

    def seal(update: np.ndarray, _: int) -> Body:
        pieces = [update[start : start + slots] for start in range(0, len(update), slots)]
        return [tenseal.ckks_vector(context, piece).serialize() for piece in pieces]

    def add(a: Body, b: Body) -> Body:
        read = partial(tenseal.ckks_vector_from, server)
        return [(read(x) + read(y)).serialize() for x, y in zip(a, b, strict=True)]

    def opened(total: Body) -> np.ndarray:
        return np.concatenate([tenseal.ckks_vector_from(context, part).decrypt() for part in total])

    return Way(lambda update: update.astype(np.float64), seal, add, opened)


@cache
def _key(bits: int) -> PrivateKey:
    return generate(bits)


LANES = {n: Lanes(UPDATE_RANGE, n) for n in (3, 8, 64)}
# scheme, size of the key, hospitals: the way, who reads one update and who the sum
ROWS: dict[tuple[str, int | str, int], tuple[Callable[..., Way], str, str]] = {
    ("float32", "", 3): (plain, "server", EVERYBODY),
    **{(MASKS, "", n): (partial(masks_alone, lanes), "nobody", EVERYBODY) for n, lanes in LANES.items()},
    (MASKS.replace("16", "36"), "", 3): (partial(masks_alone, exact_lanes(3)), "nobody", EVERYBODY),
    **{(PACKED, bits, n): (partial(packed, bits, LANES[n]), "nobody", HOSPITALS) for bits in KEYS for n in (3, 64)},
    (PACKED.replace("16", "36"), 3072, 3): (partial(packed, 3072, exact_lanes(3)), "nobody", HOSPITALS),
    **{(ONE_FLOAT, bits, 3): (partial(one_float, bits), KEY_HOLDERS, HOSPITALS) for bits in KEYS},
    ("CKKS 8192, 60+40+40 bits", "", 3): (partial(ckks, 8192, [60, 40, 40], 2**40), KEY_HOLDERS, HOSPITALS),
    ("CKKS 4096, 54+54 bits", "", 3): (partial(ckks, 4096, [54, 54], 2**30), KEY_HOLDERS, HOSPITALS),
}
LIBRARIES = {"float32": "numpy", "CKKS": "tenseal", ONE_FLOAT: "phe"}


def updates(count: int, parameters: int, seed: int) -> np.ndarray:
    """(count, parameters) float32."""
    drawn = np.random.default_rng(seed).standard_t(4, (count, parameters)) * 0.004
    return drawn.clip(-UPDATE_RANGE, UPDATE_RANGE).astype(np.float32)


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """(CPU seconds, what it returned)."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def costs(make: Callable[..., Way], parameters: int, seed: int) -> tuple[list[float], int]:
    """([encrypt, add, decrypt] in CPU seconds, bytes of an upload); medians of what takes little time."""
    update, turns = updates(1, parameters, seed)[0], []
    openable = make(parameters, masked=False)
    body = openable.seal(update, 0)
    while len(turns) < 5 and sum(map(sum, turns)) < 5:
        way = make(parameters, masked=True)
        sealing, upload = timed(partial(way.seal, update, 0))
        turns.append([sealing, timed(partial(way.add, body, upload))[0], timed(partial(openable.open, body))[0]])
    return [statistics.median(column) for column in zip(*turns, strict=True)], sum(map(len, body))


def accuracy(make: Callable[..., Way], hospitals: int, parameters: int, seed: int) -> tuple[float, bool]:
    """(relative L2 error of the sum of all hospitals, whether it is exactly the sum of what they encoded)."""
    way, drawn = make(parameters, masked=True), updates(hospitals, parameters, seed)
    total = way.seal(drawn[0], 0)
    for index, update in enumerate(drawn[1:], start=1):
        total = way.add(total, way.seal(update, index))
    found, truth = way.open(total), drawn.sum(axis=0, dtype=np.float64)
    error = np.linalg.norm(found * way.unit - truth) / np.linalg.norm(truth)
    return float(error), np.array_equal(found, sum(way.encode(update) for update in drawn))


def measure(scheme: str, key_bits: int | str, hospitals: int, parameters: int = PARAMETERS, seed: int = 0) -> dict:
    """One row."""
    make, reads_one, reads_sum = ROWS[scheme, key_bits, hospitals]
    library = next((name for start, name in LIBRARIES.items() if scheme.startswith(start)), "fedbone")
    if library == "phe":
        parameters = FLOATS
    seconds, size = costs(make, parameters, seed)
    error, exact = accuracy(make, hospitals, min(parameters, ERROR_PARAMETERS), seed)
    own, large = _sizes()
    per_million = [value / parameters * 1e6 for value in seconds]
    whole = [per_million[0] * large / 1e6, per_million[2] * large / 1e6, size / parameters * large / 1e6]
    name = library if library == "fedbone" else f"{library} {version(library)}"
    row = [scheme, name, key_bits, hospitals, parameters, *map(_short, per_million), _short(size / (4 * parameters))]
    row += [_short(error), "yes" if exact else "no", reads_one, reads_sum, own, large, *map(_short, whole)]
    return dict(zip(COLUMNS, [*row, processor(), datetime.date.today().isoformat()], strict=True))


@cache
def _sizes() -> tuple[int, int]:
    """Parameters of the cpu profile's model and of HRNet-W32."""
    models = build_for(get_profile("cpu"), JOINTS), build("w32", JOINTS)
    return tuple(sum(p.numel() for p in model.parameters()) for model in models)


def _short(value: float) -> str:
    return f"{value:.4g}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done = []
    for row in ROWS:
        done.append(measure(*row))
        save("encryption.csv", COLUMNS, done)
