"""Ciphertexts against phe, a fixed vector and plain ``pow``; what an attacker would try; processes that die."""

import math
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import phe
import psutil
import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.encryption import paillier
from fedbone.encryption.lanes import Lanes
from fedbone.encryption.paillier import CHUNK, CipherWorkers, add, ciphertexts_from_bytes, ciphertexts_to_bytes
from fedbone.encryption.paillier_keys import PrivateKey, PublicKey, generate, insecure_test_key
from fedbone.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
KEY = insecure_test_key()
PUBLIC, N, N2 = KEY.public, int(KEY.public.n), int(KEY.public.n) ** 2
WORKERS, SERVER = CipherWorkers(KEY), CipherWorkers(KEY.public)
LANES = Lanes(0.05, hospitals=8)  # 25 levels in a plaintext of 512 bits


def oracle(key):
    """phe's keys with the same primes."""
    public = phe.PaillierPublicKey(int(key.public.n))
    return public, phe.PaillierPrivateKey(public, int(key.p), int(key.q))


def test_known_answer(monkeypatch):
    """c = (1 + m n) pow(pow(h, n, n^2), x, n^2) mod n^2, from Python's ``pow`` alone, with h = -y^2 mod n,

    y = 0x0123456789abcdef0123456789abcdef, x = 0xfedcba9876543210, m = 0x00112233445566778899aabbccddeeff.
    """
    p, q = mpz(0xC0DE000000000023), mpz(0xBEEF00000000008B)
    key = PrivateKey(p, q, PublicKey(p * q, mpz(0x8554653EA19F62CCAC8E37060A6DE541)))
    monkeypatch.setattr(paillier.secrets, "token_bytes", lambda size: 0xFEDCBA9876543210.to_bytes(size, "little"))
    plaintexts = [mpz(0x00112233445566778899AABBCCDDEEFF)]
    ciphertexts = CipherWorkers(key.public).encrypt(plaintexts)
    data = ciphertexts_to_bytes(ciphertexts, key.public)
    assert data.hex() == "48654cd5a4e96a837db968e2ae846ac7a74183ad5b95d970c8a28dc76a53ba72"
    assert CipherWorkers(key).decrypt(ciphertexts_from_bytes(data, key.public)) == plaintexts


def agrees_with_phe(key, plaintexts):
    public, private = oracle(key)
    workers = CipherWorkers(key)
    ours, theirs = workers.encrypt(plaintexts), [mpz(public.raw_encrypt(int(m))) for m in plaintexts]
    assert [private.raw_decrypt(int(c)) for c in ours] == plaintexts
    assert workers.decrypt(theirs) == plaintexts
    doubled = [2 * m % key.public.n for m in plaintexts]
    mixed = add(ours, theirs, key.public)
    assert workers.decrypt(mixed) == doubled
    assert [private.raw_decrypt(int(c)) for c in mixed] == doubled


@settings(max_examples=25, derandomize=True)
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=4))
def test_phe_reads_ours_and_we_read_phes(plaintexts):
    agrees_with_phe(KEY, [mpz(m) for m in plaintexts])


def test_phe_agrees_at_the_ends_and_at_2048_bits(capsys):
    agrees_with_phe(KEY, [mpz(0), mpz(1), PUBLIC.n - 1, KEY.p, KEY.q, PUBLIC.n // 2])
    key = generate(2048)
    capsys.readouterr()
    agrees_with_phe(key, [mpz(0), key.public.n - 1, mpz(3) ** 1000])


@settings(max_examples=15, derandomize=True)
@given(st.sampled_from([1, 2, 3, 8]), st.sampled_from([0, 1, 24, 25, 26, 60]), st.integers(0, 2**32))
def test_encrypted_sums_are_the_integers_sums(hospitals, count, seed):
    updates = np.random.default_rng(seed).normal(0, 0.03, (hospitals, count))
    levels = [LANES.quantise(update)[0] for update in updates]
    total = SERVER.encrypt(LANES.pack(levels[0], 512))
    for level in levels[1:]:
        total = add(total, SERVER.encrypt(LANES.pack(level, 512)), PUBLIC)
    sums, contributors = LANES.unpack(WORKERS.decrypt(total), count, 512)
    assert np.array_equal(sums, np.sum(levels, axis=0))
    assert contributors == hospitals
    cut = np.clip(updates, -0.05, 0.05).mean(axis=0)
    assert np.abs(LANES.mean(sums, hospitals) - cut).max(initial=0) <= 0.05 / 65534 * (1 + 1e-9)


@pytest.mark.parametrize("sign", [-1, 1])
def test_all_eight_at_the_end_of_the_range(sign):
    levels, _ = LANES.quantise(np.full(60, sign * 0.05))
    total = SERVER.encrypt(LANES.pack(levels, 512))
    for _ in range(7):
        total = add(total, SERVER.encrypt(LANES.pack(levels, 512)), PUBLIC)
    sums, contributors = LANES.unpack(WORKERS.decrypt(total), 60, 512)
    assert LANES.mean(sums, contributors) == pytest.approx(np.full(60, sign * 0.05))
    ninth = add(total, SERVER.encrypt(LANES.pack(levels, 512)), PUBLIC)
    with pytest.raises(UserError, match="decrypted sum"):
        LANES.unpack(WORKERS.decrypt(ninth), 60, 512)


def test_sums_of_different_lengths():
    with pytest.raises(ValueError, match="zip"):
        add([mpz(2)], [mpz(2), mpz(3)], PUBLIC)


def exponent_of(obfuscator, steps):
    """x < steps^2 with h_n^x = obfuscator, by baby steps and giant steps (Shanks), or None."""
    h_n, baby, power = PUBLIC.h_n, {}, mpz(1)
    for step in range(steps):
        baby[power] = step
        power = power * h_n % N2
    back = pow(power, -1, N2)
    for step in range(steps):
        if obfuscator in baby:
            return step * steps + baby[obfuscator]
        obfuscator = obfuscator * back % N2
    return None


def test_nobody_reads_a_ciphertext_without_the_key():
    """Without the obfuscator anyone can compute m = (c - 1) / n, and a short exponent can be found."""
    plaintexts = [mpz(0), mpz(1), mpz(12345), PUBLIC.n - 1]
    for plaintext, ciphertext in zip(plaintexts, SERVER.encrypt(plaintexts), strict=True):
        assert (ciphertext - 1) % N != 0
        obfuscator = ciphertext * pow(1 + plaintext * N, -1, N2) % N2
        assert exponent_of(obfuscator, 1 << 12) is None


def test_the_attack_finds_short_exponents():
    assert exponent_of(pow(PUBLIC.h_n, 0xABCDEF, N2), 1 << 12) == 0xABCDEF


def test_exponents_are_random_and_half_as_long_as_the_key(monkeypatch):
    """Every byte that is asked for counts: with all bits set, x is 2^256 - 1."""
    sizes = []
    monkeypatch.setattr(paillier.secrets, "token_bytes", lambda size: sizes.append(size) or b"\xff" * size)
    ciphertexts = SERVER.encrypt([mpz(0)] * 3)
    assert sizes == [512 // 2 // 8] * 3
    assert ciphertexts == [pow(PUBLIC.h_n, 2**256 - 1, N2)] * 3


def test_ten_thousand_encryptions_of_zero(tmp_path):
    """No two alike, from two processes; the lowest 16 bits are ones half of the time, within 6 standard deviations."""
    count = 10_000
    with CipherWorkers(PUBLIC, processes=2) as workers:
        ciphertexts = workers.encrypt([mpz(0)] * count)
    assert len(set(ciphertexts)) == count
    for bit in range(16):
        ones = sum(c.bit_test(bit) for c in ciphertexts)
        assert abs(ones - count / 2) < 6 * math.sqrt(count) / 2
    assert set(WORKERS.decrypt(ciphertexts[:: count // 50])) == {0}


def test_one_vector_encrypted_twice_differs_in_every_ciphertext():
    plaintexts = LANES.pack(LANES.quantise(np.zeros(200))[0], 512)
    assert len(set(plaintexts)) == 1 < len(plaintexts)  # and so does one ciphertext from the next
    assert len({*SERVER.encrypt(plaintexts), *SERVER.encrypt(plaintexts)}) == 2 * len(plaintexts)


@pytest.mark.parametrize("wrong", [-1, N, N + 1, N2], ids=["-1", "n", "n+1", "n^2"])
def test_a_plaintext_that_would_wrap_around(wrong):
    with pytest.raises(UserError, match=r"not in \[0, n\)") as caught:
        SERVER.encrypt([mpz(1), mpz(wrong)])
    assert str(N) not in str(caught.value)


def test_the_server_cannot_decrypt():
    with pytest.raises(UserError, match="only the public key"):
        SERVER.decrypt(SERVER.encrypt([mpz(1)]))


def test_the_wrong_private_key():
    ciphertexts = SERVER.encrypt(LANES.pack(LANES.quantise(np.zeros(60))[0], 512))
    wrong = CipherWorkers(insecure_test_key()).decrypt(ciphertexts)
    with pytest.raises(UserError, match="it is for another key"):
        LANES.unpack(wrong, 60, 512)


@pytest.mark.parametrize("bit", [0, 1, 100, 511, 512, 1000])
def test_a_flipped_bit(bit):
    ciphertexts = SERVER.encrypt(LANES.pack(LANES.quantise(np.zeros(60))[0], 512))
    ciphertexts[1] = ciphertexts[1].bit_flip(bit)
    with pytest.raises(UserError, match="it was changed on its way"):
        LANES.unpack(WORKERS.decrypt(ciphertexts), 60, 512)


def test_ciphertexts_on_their_way():
    ciphertexts = [*SERVER.encrypt([mpz(m) for m in range(5)]), mpz(2)]
    data = ciphertexts_to_bytes(ciphertexts, PUBLIC)
    assert data == b"".join(int(c).to_bytes(128, "big") for c in ciphertexts)
    assert ciphertexts_from_bytes(data, PUBLIC) == ciphertexts
    assert ciphertexts_from_bytes(b"", PUBLIC) == []


@pytest.mark.parametrize("size", [1, 127, 129, 255])
def test_bytes_that_are_not_whole(size):
    data = ciphertexts_to_bytes(SERVER.encrypt([mpz(1)] * 2), PUBLIC)
    with pytest.raises(UserError, match="not a multiple of 128"):
        ciphertexts_from_bytes(data[:size], PUBLIC)


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (0, "out of range"),
        (1, "out of range"),
        (N2, "out of range"),
        (2**1024 - 1, "out of range"),
        (N, "factor"),
        (5 * N, "factor"),
        (int(KEY.p), "factor"),
        (int(KEY.q) * 12345, "factor"),
        (int(KEY.p) * int(KEY.q + 2), "factor"),
    ],
    ids="0 1 n^2 largest n 5n p q p(q+2)".split(),
)
def test_numbers_that_are_no_ciphertext(number, problem):
    """The decryption of a multiple of p would tell the server how to factor n."""
    good = SERVER.encrypt([mpz(1)])
    for ciphertexts in ([mpz(number)], [*good, mpz(number), *good]):
        with pytest.raises(UserError, match=problem):
            ciphertexts_from_bytes(b"".join(int(c).to_bytes(128, "big") for c in ciphertexts), PUBLIC)


@pytest.mark.parametrize("processes", [1, 2])
def test_progress_is_told_and_reaches_the_total(processes):
    plaintexts, heard = [mpz(m) for m in range(2 * CHUNK + 5)], []
    with CipherWorkers(KEY, processes) as workers:
        ciphertexts = workers.encrypt(plaintexts, lambda done, total: heard.append((done, total)))
        again = workers.decrypt(ciphertexts, lambda done, total: heard.append((done, total)))
        assert workers.encrypt([]) == workers.decrypt([]) == []
        assert workers.public == PUBLIC
    assert again == plaintexts
    assert heard == [(CHUNK, len(plaintexts)), (2 * CHUNK, len(plaintexts)), (len(plaintexts), len(plaintexts))] * 2


def test_no_process_at_all():
    with pytest.raises(ValueError, match="at least 1"):
        CipherWorkers(KEY, processes=0)


def test_a_killed_process_is_an_error_and_not_a_hang():
    def kill(done, total):
        for process in multiprocessing.active_children():
            process.kill()

    before = set(multiprocessing.active_children())
    with CipherWorkers(PUBLIC, processes=2) as workers:
        with pytest.raises(UserError, match="one of them was ended"):
            workers.encrypt([mpz(0)] * 30_000, kill)
        assert WORKERS.decrypt(workers.encrypt([mpz(7)])) == [7]  # fresh ones take their place
    assert set(multiprocessing.active_children()) <= before


PARENT = """
from gmpy2 import mpz
from fedbone.encryption.paillier import CipherWorkers
from fedbone.encryption.paillier_keys import insecure_test_key

if __name__ == "__main__":
    with CipherWorkers(insecure_test_key(), processes=2) as workers:
        workers.encrypt([mpz(0)] * 1000)
        print("ready", flush=True)
        input()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there, processes have no children")
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "a script.py"
    script.write_text(PARENT)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, **pipes) as parent:
        assert parent.stdout.readline() == "ready\n"
        workers = [p for p in psutil.Process(parent.pid).children() if "resource_tracker" not in " ".join(p.cmdline())]
        parent.kill()
    assert len(workers) == 2
    ends = time.monotonic() + 60
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_light_import_without_phe():
    code = "import sys, fedbone.encryption.paillier, fedbone.encryption.lanes; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "matplotlib", "phe", "syft", "nvflare", "tink"} & set(out.split())
