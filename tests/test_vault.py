"""What is sealed can be neither read nor changed, moved, cut, mixed or put back by whoever has the disk."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from safetensors.numpy import load, save
from tink.proto import aes_gcm_hkdf_streaming_pb2, tink_pb2

from fedbone.custody import vault as module
from fedbone.custody.vault import Context, Vault, architecture_of, create_key
from fedbone.errors import UserError
from fedbone.files import write_secret
from fedbone.vectors import Slot, VectorLayout

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = Context("hospital_a", "run 7", 3, "ab" * 32)
SEGMENT, TAG, SALT = 1 << 20, 16, 40  # as Tink documents AES-GCM-HKDF streaming
METADATA = {"note": "a word that must not show", "scores": [0.25, None]}
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX only")


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return create_key(tmp_path_factory.mktemp("keys") / "key")


@pytest.fixture(scope="module")
def vault(key):
    return Vault.from_key_file(key)


def some_arrays(mebibytes: float, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "weights": rng.integers(0, 256, (int(mebibytes * (1 << 20) / 8), 8), np.uint8),
        "step": np.array(7, np.int64),
    }


@pytest.fixture(scope="module")
def small(vault, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "sealed"
    return vault.seal(path, {"w": np.arange(6, dtype=np.float32)}, {}, CONTEXT).read_bytes()


@pytest.fixture(scope="module")
def large(vault, tmp_path_factory) -> bytes:
    """Three whole segments, and a part."""
    path = tmp_path_factory.mktemp("large") / "sealed"
    return vault.seal(path, some_arrays(3.5), METADATA, CONTEXT).read_bytes()


def split(sealed: bytes) -> tuple[bytes, dict, list[bytes]]:
    """(both lines, the second one read, the stream's segments); the first segment begins with the salt."""
    file = io.BytesIO(sealed)
    first, second = file.readline(), file.readline()
    stream = file.read()
    return first + second, json.loads(second), [stream[i : i + SEGMENT] for i in range(0, len(stream), SEGMENT)]


def with_fields(sealed: bytes, **changes: object) -> bytes:
    header, fields, segments = split(sealed)
    second = json.dumps({**fields, **changes}, sort_keys=True).encode()
    return header.split(b"\n")[0] + b"\n" + second + b"\n" + b"".join(segments)


def refused(vault, path: Path, sealed: bytes, match: str, context: Context = CONTEXT) -> None:
    path.write_bytes(sealed)
    with pytest.raises(UserError, match=match) as error:
        vault.open(path, context)
    assert error.value.where == str(path)


# what goes in comes out


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype.newbyteorder("="))
        assert found[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()


def test_arrays_of_every_form_come_back_bit_for_bit(vault, tmp_path):
    """Views too: safetensors reads their memory as it lies, and would seal other numbers."""
    numbers = np.arange(24, dtype=np.float32).reshape(4, 6)
    special = np.array([np.nan, -np.nan, np.inf, -0.0, 5e-324])
    kinds = {
        "transposed": numbers.T,
        "every second": numbers[::2, ::-1],
        "Fortran": np.asfortranarray(numbers),
        "big endian": numbers.astype(">f4"),
        "special": special,
        "scalar": np.array(2, np.int64),
        "empty": np.zeros((0, 3), np.float16),
        "truth": np.array([True, False]),
    }
    found, metadata = vault.open(vault.seal(tmp_path / "a", kinds, METADATA, CONTEXT), CONTEXT)
    assert_same(found, kinds)
    assert metadata == METADATA
    assert all(array.flags.writeable for array in found.values()), "training goes on with them"


FIRST = SEGMENT - SALT - TAG  # bytes of content in the first segment
EDGES = [FIRST - 8, FIRST, FIRST + 8, FIRST + SEGMENT - TAG - 8, FIRST + SEGMENT - TAG, FIRST + SEGMENT - TAG + 8]


@pytest.mark.parametrize("content_bytes", EDGES)
def test_contents_that_end_beside_the_end_of_a_segment(vault, tmp_path, content_bytes):
    metadata = {"fedbone": json.dumps({})}
    header = len(save({"w": np.zeros(content_bytes, np.uint8)}, metadata)) - content_bytes
    arrays = {"w": np.arange(content_bytes - header).astype(np.uint8)}
    path = vault.seal(tmp_path / "a", arrays, {}, CONTEXT)
    assert split(path.read_bytes())[1]["bytes"] == content_bytes
    assert_same(vault.open(path, CONTEXT)[0], arrays)


def test_a_model_without_arrays(vault, tmp_path):
    assert vault.open(vault.seal(tmp_path / "a", {}, {"n": 1}, CONTEXT), CONTEXT) == ({}, {"n": 1})


# it is AES-256-GCM: an independent library opens it


def test_a_known_answer_for_the_key_file(tmp_path):
    """Test case 16 of McGrew and Viega, The Galois/Counter Mode of Operation (submission to NIST)."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    nonce, about = bytes.fromhex("cafebabefacedbaddecaf888"), bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    sealed = bytes.fromhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    vault = Vault.from_key_file(write_secret(tmp_path / "key", key))
    assert vault.unwrap(nonce + sealed, about) == plain
    again = vault.wrap(plain, about)
    assert AESGCM(key).decrypt(again[:12], again[12:], about) == plain


def test_another_library_opens_every_segment(key, large):
    header, fields, segments = split(large)
    first_line = header.split(b"\n")[0] + b"\n"
    about = first_line + json.dumps({n: v for n, v in fields.items() if n != "key"}, sort_keys=True).encode()
    wrapped = bytes.fromhex(fields["key"])
    keyset = tink_pb2.Keyset.FromString(AESGCM(key.read_bytes()).decrypt(wrapped[:12], wrapped[12:], about))
    data = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey.FromString(keyset.key[0].key_data.value)
    assert len(data.key_value) == 32

    length, salt, prefix = segments[0][0], segments[0][1:33], segments[0][33:SALT]
    assert length == SALT
    cipher = AESGCM(HKDF(SHA256(), 32, salt, info=header).derive(data.key_value))
    bodies = [segments[0][SALT:], *segments[1:]]
    content = b""
    for number, body in enumerate(bodies):
        nonce = prefix + number.to_bytes(4, "big") + bytes([number == len(bodies) - 1])
        content += cipher.decrypt(nonce, body, None)
    assert len(bodies) == 4
    assert_same(load(content), some_arrays(3.5))
    with pytest.raises(InvalidTag):  # and the header is what it is bound to
        AESGCM(HKDF(SHA256(), 32, salt, info=b"").derive(data.key_value)).decrypt(nonce, body, None)


# it shows nothing


def test_a_sealed_file_shows_neither_content_nor_key(key, large):
    content = save(some_arrays(3.5), {"fedbone": json.dumps(METADATA)})
    windows = {large[i : i + 8] for i in range(len(large) - 7)}
    assert not windows & {content[i : i + 8] for i in range(0, len(content) - 8, 8)}
    for words in (b"weights", b"a word that", key.read_bytes(), key.read_bytes().hex().encode()):
        assert words not in large


def test_every_file_has_a_key_of_its_own(tmp_path):
    kept = []

    def wrap(data, about):
        kept.append(data)
        return data

    vault = Vault(wrap, lambda data, about: data)
    sealed = [vault.seal(tmp_path / "a", some_arrays(0.1), {}, CONTEXT).read_bytes() for _ in range(2)]
    values = [tink_pb2.Keyset.FromString(data).key[0].key_data.value for data in kept]
    assert values[0] != values[1]
    assert split(sealed[0])[2] != split(sealed[1])[2]


def test_a_vault_does_not_show_its_key(key, vault):
    assert repr(vault) == str(vault) == "Vault()"
    raw = key.read_bytes()
    assert not [shown for shown in (repr(raw)[2:-1], raw.hex()) if shown in repr(vars(vault))]


def test_errors_of_a_key_service_that_quote_secrets_are_not_shown(small, tmp_path):
    def unwrap(data, about):
        raise ConnectionError("secret-1234")

    (tmp_path / "a").write_bytes(small)
    with pytest.raises(UserError, match=r"cannot be unwrapped \(ConnectionError\)") as error:
        Vault(unwrap, unwrap).open(tmp_path / "a", CONTEXT)
    assert "secret-1234" not in "".join(traceback.format_exception(error.value))


# every change is refused


@pytest.mark.parametrize("bits", [(5,), range(8)], ids=["of case", "of any kind"])
def test_every_byte_counts(vault, small, tmp_path, bits):
    """In letters, the bit of case leaves a hexadecimal number the same."""
    path = tmp_path / "a"
    for place in range(len(small)):
        changed = bytearray(small)
        changed[place] ^= 1 << bits[place % len(bits)]
        path.write_bytes(changed)
        with pytest.raises(UserError):
            vault.open(path, CONTEXT)


def test_it_is_refused_however_it_was_cut(vault, small, tmp_path):
    path = tmp_path / "a"
    for length in range(len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(UserError):
            vault.open(path, CONTEXT)


def test_each_kind_of_damage_has_its_own_message(vault, small, large, tmp_path):
    path, (header, _, segments) = tmp_path / "a", split(large)
    refused(vault, path, b"", "is empty")
    refused(vault, path, b"PK\x03\x04" + bytes(1000), "first line is not")
    refused(vault, path, save({"w": np.zeros(3)}), "first line is not")
    refused(vault, path, small.replace(b"version 1", b"version 2", 1), "first line is not")
    refused(vault, path, header[:-20], "second line.* damaged or cut off")
    refused(vault, path, large[:-1], "cut off: 1 bytes are missing")
    refused(vault, path, header, f"cut off: {len(large) - len(header)} bytes are missing")
    refused(vault, path, header + segments[0] + segments[1], f"cut off: {len(segments[2] + segments[3])} bytes")
    refused(vault, path, large + b"\0", "1 bytes were appended")
    refused(vault, path, large + segments[1], f"{SEGMENT} bytes were appended")
    refused(vault, path, small + small, f"{len(small)} bytes were appended")


@pytest.mark.parametrize(
    "second",
    [b"[]", b"3", b"[" * 100_000, b'{"site": 1}', b'{"bytes": NaN}', b"9" * 5000, b"\xff"],
    ids=["list", "number", "nested", "few", "nan", "long", "utf8"],
)
def test_second_lines_made_by_hand(vault, tmp_path, second):
    refused(vault, tmp_path / "a", module.FIRST_LINE + second + b"\n", "second line")


@pytest.mark.parametrize("changes", [{"bytes": -1}, {"bytes": 10**30}, {"key": ""}, {"key": "zz"}], ids=str)
def test_fields_made_by_hand(vault, small, tmp_path, changes):
    refused(vault, tmp_path / "a", with_fields(small, **changes), "cut off|appended|unwrapped|changed")


OTHER_TYPES = [{"round": True}, {"round": 3.0}, {"bytes": "9"}, {"more": 1}, {"site": None}]


@pytest.mark.parametrize("changes", OTHER_TYPES, ids=str)
def test_fields_of_another_type(vault, small, tmp_path, changes):
    refused(vault, tmp_path / "a", with_fields(small, **changes), "second line")


def orders(segments: list[bytes]) -> dict[str, list[bytes]]:
    a, b, c, d = segments
    return {
        "swapped": [a, c, b, d],
        "doubled": [a, b, b, d],
        "the first again": [a, a, c, d],
        "the last one moved": [a, b, d, c],
        "reversed": [d, c, b, a],
    }


@pytest.mark.parametrize("name", list(orders([b""] * 4)))
def test_segments_in_another_order(vault, large, tmp_path, name):
    header, _, segments = split(large)
    refused(vault, tmp_path / "a", header + b"".join(orders(segments)[name]), "it was changed")


@pytest.mark.parametrize("place", range(4))
def test_a_flip_in_each_segment_and_its_tag(vault, large, tmp_path, place):
    header, _, segments = split(large)
    for offset in (SALT if place == 0 else 0, len(segments[place]) // 2, -1):
        changed = bytearray(segments[place])
        changed[offset] ^= 1
        stream = [*segments[:place], bytes(changed), *segments[place + 1 :]]
        refused(vault, tmp_path / "a", header + b"".join(stream), "it was changed")


def test_segments_of_another_file_of_the_same_place(vault, large, tmp_path):
    other = vault.seal(tmp_path / "b", some_arrays(3.5, seed=1), METADATA, CONTEXT).read_bytes()
    (header, fields, mine), (_, others, theirs) = split(large), split(other)
    for place in range(4):
        mixed = [*mine[:place], theirs[place], *mine[place + 1 :]]
        refused(vault, tmp_path / "a", header + b"".join(mixed), "it was changed")
    refused(vault, tmp_path / "a", header + b"".join(theirs), "it was changed")
    refused(vault, tmp_path / "a", with_fields(large, key=others["key"]), "it was changed")
    assert fields["bytes"] == others["bytes"], "or the length would have given it away"


def test_cut_at_a_segment_with_a_length_that_fits(vault, large, tmp_path):
    """Tink's own mark on the last segment is not even needed: the length is bound to the wrapped key."""
    header, fields, segments = split(large)
    kept = FIRST + SEGMENT - TAG
    shorter = with_fields(header + segments[0] + segments[1], bytes=kept)
    refused(vault, tmp_path / "a", shorter, "cannot be unwrapped")
    unbound = Vault(vault.wrap, lambda key, _: vault.unwrap(key, module._associated(fields)))
    refused(unbound, tmp_path / "a", shorter, "it was changed")


def test_a_stream_that_goes_on_where_the_header_says_that_it_ends(vault, tmp_path, monkeypatch):
    """By a writer that holds the keys; the length would show it first."""
    real = module._encrypt
    monkeypatch.setattr(module, "_encrypt", lambda *args: real(*args[:2], args[2] * 2, args[3]))
    sealed = vault.seal(tmp_path / "a", some_arrays(0.1), {}, CONTEXT).read_bytes()
    refused(vault, tmp_path / "a", sealed, "bytes were appended")
    monkeypatch.setattr(module, "_require_length", lambda *_: None)
    refused(vault, tmp_path / "a", sealed, "it was changed")


# it belongs to one place, one round, one key


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"site": "hospital_b"}, "sealed for site 'hospital_a', and 'hospital_b' was expected"),
        ({"run": "run 8"}, "sealed for run 'run 7', and 'run 8' was expected"),
        ({"architecture": "cd" * 32}, "sealed for architecture 'abab.*, and 'cdcd.* was expected"),
        ({"round": 4}, "round 3, older than round 4"),
        ({"round": 2}, "round 3, later than round 2"),
    ],
    ids=lambda value: next(iter(value)) + str(len(str(value))) if isinstance(value, dict) else "",
)
def test_another_place_is_refused_also_when_the_header_lies(vault, small, tmp_path, changes, match):
    expected = replace(CONTEXT, **changes)
    refused(vault, tmp_path / "a", small, match, expected)
    refused(vault, tmp_path / "a", with_fields(small, **changes), "cannot be unwrapped", expected)


def test_a_key_service_without_associated_data_is_still_bound_to_the_place(vault, tmp_path):
    service = Vault(lambda key, _: vault.wrap(key, b""), lambda key, _: vault.unwrap(key, b""))
    sealed = service.seal(tmp_path / "a", some_arrays(0.1), {}, CONTEXT).read_bytes()
    assert service.open(tmp_path / "a", CONTEXT)[1] == {}
    lying = with_fields(sealed, site="hospital_b")
    refused(service, tmp_path / "a", lying, "it was changed", replace(CONTEXT, site="hospital_b"))


def test_a_key_service_is_told_the_place(tmp_path):
    key, told = AESGCM(bytes(32)), []

    def wrap(data, about):
        told.append(about)
        return key.encrypt(bytes(12), data, about)

    vault = Vault(wrap, lambda data, about: key.decrypt(bytes(12), data, about))
    path = vault.seal(tmp_path / "a", some_arrays(0.1), {}, CONTEXT)
    assert_same(vault.open(path, CONTEXT)[0], some_arrays(0.1))
    for value in (b'"hospital_a"', b'"run 7"', b'"round": 3', b"ab" * 32, b"version 1"):
        assert value in told[0]


def test_an_older_file_that_was_put_back(vault, tmp_path):
    path = vault.seal(tmp_path / "a", some_arrays(0.1), {}, CONTEXT)
    old = path.read_bytes()
    vault.seal(path, some_arrays(0.1, seed=1), {}, replace(CONTEXT, round=4))
    refused(vault, path, old, "older than round 4", replace(CONTEXT, round=4))


def test_another_key(small, tmp_path):
    other = Vault.from_key_file(create_key(tmp_path / "other"))
    refused(other, tmp_path / "a", small, "another key, or a changed header")


def test_a_data_key_that_is_none(small, tmp_path):
    refused(Vault(lambda *_: b"", lambda *_: b"nonsense"), tmp_path / "a", small, "cannot be unwrapped")


@pytest.mark.parametrize(
    "values",
    [(1, "r", 1, "a"), ("s", "r", True, "a"), ("s", "r", 1.0, "a"), ("s", "r", np.int64(1), "a"), ("s", None, 1, "a")],
    ids=str,
)
def test_a_context_that_could_never_be_opened_again(values):
    with pytest.raises(ValueError, match="must be text and round a whole number"):
        Context(*values)


def test_the_architecture_is_that_of_names_shapes_and_kinds():
    slots = (Slot("conv.weight", 0, (2, 3), "body"), Slot("final_layer.bias", 6, (4,), "head"))
    known = architecture_of(VectorLayout(slots))
    others = [
        (replace(slots[0], name="x"), slots[1]),
        (replace(slots[0], shape=(3, 2)), slots[1]),
        (slots[0], replace(slots[1], kind="norm")),
    ]
    # sha256sum of [["conv.weight", [2, 3], "body"], ["final_layer.bias", [4], "head"]]: old files must still open
    assert known == "414b00bb70d71619c60bca793dedc2fac667dbd1705e9789878a4ed7f090d347"
    assert len({known, *(architecture_of(VectorLayout(other)) for other in others)}) == 4


# the key file


@posix
def test_the_key_file_is_private_and_never_replaced(tmp_path):
    path = create_key(tmp_path / "key")
    key = path.read_bytes()
    assert (path.stat().st_mode & 0o777, len(key), len(set(key)) > 8) == (0o600, 32, True)
    with pytest.raises(UserError, match="never overwritten"):
        create_key(path)
    assert path.read_bytes() == key != create_key(tmp_path / "second").read_bytes()
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        Vault.from_key_file(path)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length(tmp_path, length):
    """AES-128 would take 16 bytes."""
    with pytest.raises(UserError, match=f"has {length} bytes, and 32 were expected"):
        Vault.from_key_file(write_secret(tmp_path / "key", bytes(length)))


# the disk


def test_a_file_that_is_not_there(vault, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        vault.open(tmp_path / "a", CONTEXT)


@pytest.mark.parametrize("cause", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()], ids=["full", "key"])
@pytest.mark.parametrize("written", [0, 1, 3])
def test_a_failed_seal_leaves_the_old_file_and_tells_the_cause(vault, tmp_path, monkeypatch, cause, written):
    path = vault.seal(tmp_path / "a", some_arrays(0.1), {}, CONTEXT)
    real, calls = module._File.write, []

    def write(self, data):
        calls.append(len(data))
        return real(self, data) if len(calls) <= written else self._kept(fail, data)

    def fail(data):
        raise cause

    monkeypatch.setattr(module._File, "write", write)
    with pytest.raises(type(cause)) as error:
        vault.seal(path, some_arrays(3.5), {}, replace(CONTEXT, round=4))
    assert len(calls) > written
    if isinstance(cause, OSError):
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert_same(vault.open(path, CONTEXT)[0], some_arrays(0.1))


def test_a_disk_that_fails_while_reading_is_not_called_an_attack(vault, large, tmp_path, monkeypatch):
    def fail(data):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module._File, "read", lambda self, size: self._kept(fail, size))
    refused(vault, tmp_path / "a", large, "cannot be read .*Input/output error")


@posix
def test_a_kill_while_sealing_leaves_a_whole_file_and_no_plaintext(vault, key, tmp_path):
    plain = b"plaintext of a model " * 400_000
    arrays = {"w": np.frombuffer(plain, np.uint8)}
    path = vault.seal(tmp_path / "a", arrays, {}, CONTEXT)
    code = (
        "import sys; import numpy as np; from fedbone.custody.vault import Context, Vault\n"
        "vault = Vault.from_key_file(sys.argv[1]); print('ready', flush=True)\n"
        "while True: vault.seal(sys.argv[2], {'w': np.frombuffer(b'plaintext of a model ' * 400_000, np.uint8)}, {},"
        f" Context(*{(CONTEXT.site, CONTEXT.run, CONTEXT.round, CONTEXT.architecture)}))"
    )
    for delay in (0.01, 0.053, 0.11):
        with subprocess.Popen([sys.executable, "-c", code, key, path], cwd=ROOT, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        assert vault.open(path, CONTEXT)[0]["w"].tobytes() == plain
    for left in tmp_path.iterdir():
        assert b"plaintext of a model" not in left.read_bytes()


def test_opening_writes_nothing_to_any_disk(vault, large, tmp_path):
    header, _, segments = split(large)
    broken = segments[3][:-1] + bytes([segments[3][-1] ^ 1])
    (tmp_path / "whole").write_bytes(large)
    (tmp_path / "broken").write_bytes(header + b"".join([*segments[:3], broken]))
    written, watching = [], []

    def note(event, details):
        if watching and event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(str(details[0]))

    def open_both():
        vault.open(tmp_path / "whole", CONTEXT)
        with pytest.raises(UserError, match="it was changed"):
            vault.open(tmp_path / "broken", CONTEXT)

    open_both()  # what is imported now writes its bytecode now
    sys.addaudithook(note)
    watching.append(True)
    try:
        open_both()
        assert not written
        (tmp_path / "seen").write_bytes(b"")
        assert written == [str(tmp_path / "seen")]
    finally:
        watching.clear()  # a hook stays for good
