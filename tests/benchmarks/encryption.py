"""Packed Paillier against phe, one float a ciphertext, with gmpy2: python tests/benchmarks/encryption.py

One process, one core, CPU time; both sides in turns, medians. What a number costs here has everything in it: levels,
packing, masks, signatures, checks. The last line is JSON, for keys of 2048 bits and (_3072) of 3072:

encrypt_vs_phe     how many times faster than ``phe`` encrypts a float
aggregate_vs_phe   adding one hospital's ciphertexts to the sum, against adding two of phe's floats
decrypt_vs_lanes   decryption's speed-up over phe, divided by the numbers that share a ciphertext
round_vs_phe       a round of eight: one upload, seven additions with their checks, one sum opened
wire_vs_float32    bytes of an upload over those of the same update in float32
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import phe

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only its own folder is there

from fedbone.encryption.lanes import Lanes
from fedbone.encryption.paillier import CipherWorkers, add
from fedbone.encryption.paillier_keys import PrivateKey, generate
from fedbone.encryption.secure_sum import Attempt, Collector, Contributor, PaillierSum
from fedbone.encryption.signing import SigningKey
from fedbone.options import positive
from tests.benchmarks.timing import cpu_seconds, medians

LANES = Lanes(0.05, 64)  # room for 64 hospitals, as in a large federation
HOSPITALS = 8


def against_phe(key: PrivateKey, parameters: int, floats: int, repeats: int) -> dict[str, float]:
    """The ratios of encryption, addition and decryption, each per number; fixed: phe's floats with one precision."""
    theirs = phe.PaillierPublicKey(int(key.public.n))
    their_key = phe.PaillierPrivateKey(theirs, int(key.p), int(key.q))
    rng, bits = np.random.default_rng(0), key.public.bits
    update = rng.standard_t(4, parameters).astype(np.float32) * 0.004
    few, others = update[:floats].tolist(), update[-floats:].tolist()
    with CipherWorkers(key) as workers:
        workers.encrypt([1])  # its table

        def encrypt() -> list:
            return workers.encrypt(LANES.pack(LANES.quantise(update)[0], bits))

        ours = encrypt()
        single, addend = [theirs.encrypt(x) for x in few], [theirs.encrypt(x) for x in others]
        fixed, fixed_addend = ([theirs.encrypt(x, precision=2**-24) for x in part] for part in (few, others))
        pairs = {
            "encrypt": (encrypt, lambda: [theirs.encrypt(x) for x in few]),
            "aggregate": (lambda: add(ours, ours, key.public), lambda: _sums(single, addend)),
            "aggregate, one precision": (lambda: add(ours, ours, key.public), lambda: _sums(fixed, fixed_addend)),
            "decrypt": (
                lambda: LANES.mean(*LANES.unpack(workers.decrypt(ours), parameters, bits)),
                lambda: [their_key.decrypt(x) for x in single],
            ),
        }
        figures = {}
        for name, works in pairs.items():
            our_s, their_s = medians(repeats, *works)
            figures[name] = their_s / floats / (our_s / parameters)
            figures[f"phe {name} s"] = their_s / floats
            _report(f"{bits} bits, {name}", their_s / floats, our_s / parameters)
    return figures


def _report(what: str, their_s: float, our_s: float) -> None:
    print(f"{what}: phe {their_s * 1e6:,.0f} CPU-s a million, here {our_s * 1e6:.2f}")


def _sums(some: list, others: list) -> list:
    return [a + b for a, b in zip(some, others, strict=True)]


def one_round(key: PrivateKey, parameters: int) -> tuple[float, int]:
    """(CPU seconds of one hospital's upload, seven additions and one opening; bytes of the upload)."""
    updates = np.random.default_rng(1).standard_t(4, (HOSPITALS, parameters)).astype(np.float32) * 0.004
    updates = updates.clip(-0.999 * LANES.update_range, 0.999 * LANES.update_range)  # nothing is cut off, nor warned of
    keys = {f"hospital_{index}": SigningKey.create() for index in range(HOSPITALS)}
    directory = {name: signing.public for name, signing in keys.items()}
    with CipherWorkers(key) as workers, CipherWorkers(key.public) as public:
        workers.encrypt([1])
        scheme, attempt = PaillierSum(LANES, parameters, workers), Attempt("benchmark", 0, 0, "the first model")
        hospitals = [Contributor(name, signing, directory, scheme) for name, signing in keys.items()]
        offers = [hospital.offer(attempt) for hospital in hospitals]
        collector = Collector(directory, PaillierSum(LANES, parameters, public), attempt, offers)
        uploads, spent = [], 0.0
        for hospital, update in zip(hospitals, updates, strict=True):
            seconds = cpu_seconds(lambda h=hospital, u=update: uploads.append(h.upload(u, offers)))
            spent += seconds / HOSPITALS
        collector.add(uploads[0])
        spent += cpu_seconds(lambda: [collector.add(upload) for upload in uploads[1:]])
        opened = []
        spent += cpu_seconds(lambda: opened.append(hospitals[0].open(collector.total())))
    assert np.abs(opened[0] - updates.mean(axis=0, dtype=np.float64)).max() < LANES.step
    return spent, len(uploads[0])


def measure(bits: int, parameters: int, floats: int, repeats: int) -> dict[str, float]:
    """The five figures of one key size."""
    key = generate(bits)
    figures = against_phe(key, parameters, floats, repeats)
    seconds, size = one_round(key, parameters)
    their_round = figures["phe encrypt s"] + 7 * figures["phe aggregate s"] + figures["phe decrypt s"]
    _report(f"{bits} bits, a round of {HOSPITALS}", their_round, seconds / parameters)
    return {
        "encrypt_vs_phe": round(figures["encrypt"]),
        "aggregate_vs_phe": round(figures["aggregate"]),
        "decrypt_vs_lanes": round(figures["decrypt"] / (LANES.per_plaintext(bits) - 1), 3),
        "round_vs_phe": round(their_round / (seconds / parameters)),
        "wire_vs_float32": round(size / (4 * parameters), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--parameters", type=positive, default=50_000)
    parser.add_argument("--floats", type=positive, default=20, help="that phe works on")
    args = parser.parse_args()
    figures = measure(2048, args.parameters, args.floats, args.repeats)
    larger = measure(3072, args.parameters, args.floats, args.repeats)
    print(json.dumps(figures | {f"{name}_3072": value for name, value in larger.items()}))


if __name__ == "__main__":
    main()
