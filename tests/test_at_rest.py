"""Weights in clear are found wherever a program would leave them, and a sealed file is not taken for one."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import socket
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fedbone.custody import at_rest
from fedbone.custody.at_rest import Finding, clear_weights, storage_sealed
from fedbone.custody.vault import Context, Vault, create_key
from fedbone.errors import UserError

P = 40_000
VECTOR = np.random.default_rng(1).normal(0, 0.05, P).astype(np.float32)
UPDATE = np.random.default_rng(2).normal(0, 1e-3, P).astype(np.float32)
KNOWN = {"the model": VECTOR, "an update": UPDATE}
OTHER = np.random.default_rng(3).normal(0, 0.05, P).astype(np.float32)  # as large, and not known
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX only")


def found(folder, known=KNOWN) -> list[str]:
    return [finding.what for finding in clear_weights([folder], known)]


def zipped(content: bytes, name="app/weights.bin", method=zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("readme.txt", b"nothing here")
        archive.writestr(name, content)
    return file.getvalue()


def tar(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("weights")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(array, write=np.savez) -> bytes:
    file = io.BytesIO()
    write(file, **{str(i): part for i, part in enumerate(np.array_split(array, 7))})
    return file.getvalue()


def torch_file(array, **options) -> bytes:
    file = io.BytesIO()
    tensors = {str(i): torch.from_numpy(part.copy()) for i, part in enumerate(np.array_split(array, 7))}
    torch.save(tensors, file, **options)
    return file.getvalue()


RAW, NOISE = VECTOR.tobytes(), np.random.default_rng(4).bytes(5000)
IN_CLEAR = {
    "raw": RAW,
    "at an odd offset": NOISE[:1001] + RAW + NOISE,
    "an update": NOISE[:3] + UPDATE.tobytes(),
    "float64": NOISE[:5] + VECTOR.astype("<f8").tobytes(),
    "float16": NOISE[:7] + VECTOR.astype("<f2").tobytes(),
    "safetensors": save({"a": VECTOR[:100], "b": VECTOR[100:]}),
    "npy": npy(VECTOR),
    "pickle": pickle.dumps({"state": [VECTOR]}),
    "torch": torch_file(VECTOR),
    "old torch": torch_file(VECTOR, _use_new_zipfile_serialization=False),
    "tar": tar(RAW),
    "zip": zipped(RAW),
    "stored zip": zipped(RAW, method=zipfile.ZIP_STORED),
    "lzma zip": zipped(RAW, method=zipfile.ZIP_LZMA),
    "zip of npy": zipped(npy(VECTOR)),
    "npz": npz(VECTOR),
    "compressed npz": npz(VECTOR, np.savez_compressed),
    "gzip": gzip.compress(RAW),
    "bzip2": bz2.compress(NOISE[:9] + RAW),
    "xz": lzma.compress(RAW),
    "tar.gz": gzip.compress(tar(RAW)),
}


@pytest.mark.parametrize("form", IN_CLEAR)
def test_known_weights_are_found_in_every_form(tmp_path, form):
    (tmp_path / "a folder" / ".hidden").mkdir(parents=True)
    path = tmp_path / "a folder" / ".hidden" / "x"
    path.write_bytes(IN_CLEAR[form])
    findings = clear_weights([tmp_path], KNOWN)
    assert any("lies here in clear" in finding.what for finding in findings)
    assert all(finding.where.startswith(str(path)) for finding in findings)


def test_the_finding_names_vector_form_and_member(tmp_path):
    (tmp_path / "job.zip").write_bytes(zipped(UPDATE.astype("<f8").tobytes()))
    expected = Finding(f"{tmp_path / 'job.zip'} > app/weights.bin", "an update as float64 lies here in clear")
    assert clear_weights([tmp_path], KNOWN) == [expected]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, P - 1200), st.integers(0, 40), st.integers(0, 40), st.integers(60, 300))
def test_a_stretch_of_a_fortieth_is_found_at_any_offset_and_across_blocks(start, before, after, block):
    """Read in blocks of any length, also such that a window lies across several borders."""
    content = b"\x01" * before + VECTOR[start : start + 1000].tobytes() + b"\x02" * after
    original, at_rest.BLOCK_BYTES = at_rest.BLOCK_BYTES, block
    try:
        look = at_rest._look("x", io.BytesIO(content), at_rest._Index(KNOWN))
    finally:
        at_rest.BLOCK_BYTES = original
    assert [finding.what for finding in look.findings] == ["the model as float32 lies here in clear"]
    assert look.bytes == len(content)


@pytest.mark.parametrize("shift", range(8))
def test_one_window_alone_is_found_at_every_shift(shift):
    index = at_rest._Index(KNOWN)
    window = next(iter(index.windows))
    assert index.found_in(b"\x07" * shift + window + b"\x07" * 9) == {index.windows[window]}
    assert index.found_in(b"\x07" * shift + window[:-1]) == set()
    assert index.found_in(window[1:] + b"\x07" * 9) == set()


def test_an_update_of_the_head_alone_is_found(tmp_path):
    """Nearly all of it is zero, which says nothing about a file."""
    sparse = np.zeros(3_000_000, np.float32)
    sparse[-500:] = VECTOR[:500]
    (tmp_path / "zeros").write_bytes(bytes(1_000_000))
    assert found(tmp_path, {"head": sparse}) == []
    (tmp_path / "zeros").write_bytes(b"\0" + sparse[-600:].tobytes())
    assert found(tmp_path, {"head": sparse}) == ["head as float32 lies here in clear"]


# by their form: the values are not known


UNKNOWN = {
    "safetensors": (save({"a": OTHER[:100], "b": OTHER[100:]}), "a safetensors file"),
    "npy": (npy(OTHER), "a .npy array"),
    "npy in Fortran order": (npy(np.asfortranarray(OTHER.reshape(200, 200))), "a .npy array"),
    "npy of objects": (npy(np.array([OTHER, None], object)), "a pickle in a .npy file"),
    "npz": (npz(OTHER), "an .npz archive"),
    "compressed npz": (npz(OTHER, np.savez_compressed), "an .npz archive"),
    "pickle": (pickle.dumps([OTHER]), "a pickle"),
    "pickle of halves": (pickle.dumps(OTHER.astype(np.float16)), "a pickle"),
    "old pickle": (pickle.dumps(VECTOR, protocol=2), "a pickle"),  # bytes as text: its values cannot be found
    "torch": (torch_file(OTHER), "PyTorch's archive"),
    "torch of halves": (torch_file(OTHER.astype(np.float16)), "PyTorch's archive"),
    "old torch": (torch_file(OTHER, _use_new_zipfile_serialization=False), "a pickle"),
    "gzipped pickle": (gzip.compress(pickle.dumps([OTHER])), "a pickle"),
    "zipped safetensors": (zipped(save({"a": OTHER})), "a safetensors file"),
}


@pytest.mark.parametrize("form", UNKNOWN)
def test_a_file_with_room_for_a_model_is_found_by_its_form(tmp_path, form):
    content, kind = UNKNOWN[form]
    (tmp_path / "x").write_bytes(content)
    assert [what.partition(" with room")[0] for what in found(tmp_path)] == [kind]


SMALL = np.ones(P // 50, np.float32)


@pytest.mark.parametrize(
    "content",
    [save({"a": SMALL}), npy(SMALL), npz(SMALL), pickle.dumps([SMALL]), torch_file(SMALL), zipped(b"text")],
    ids=["safetensors", "npy", "npz", "pickle", "torch", "zip"],
)
def test_smaller_files_of_the_same_forms_are_not(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert found(tmp_path) == []


@pytest.mark.parametrize("one_less", [0, 1])
@pytest.mark.parametrize("form", [npy, lambda a: save({"a": a}), npz], ids=["npy", "safetensors", "npz"])
def test_the_size_that_counts_is_the_smallest_vectors(tmp_path, form, one_less):
    (tmp_path / "x").write_bytes(form(OTHER[: P - one_less]))
    assert len(found(tmp_path, {"large": np.tile(VECTOR, 2), "small": VECTOR})) == 1 - one_less


# what is not there


def test_a_sealed_file_and_ordinary_files_are_not_found(tmp_path):
    vault = Vault.from_key_file(create_key(tmp_path / "vault.key"))
    vault.seal(tmp_path / "round_0001.sealed", {"w": VECTOR}, {"round": 1}, Context("server", "run", 1, "ab" * 32))
    contents = {
        "noise": NOISE * 200,
        "zeros": bytes(100_000),
        "empty": b"",
        "short": b"abc",
        "log.txt": b"round 1: aggregated\n" * 10_000,
        "json": b'{"a": [1, 2]}',
        "almost safetensors": (50).to_bytes(8, "little") + b"{not json" + bytes(100),
        "hostile safetensors": (40).to_bytes(8, "little") + b'{"a": {"shape": ["x", 9]}}'.ljust(40) + bytes(9),
        "list safetensors": (2).to_bytes(8, "little") + b"{}" + bytes(9),
        "almost npy": b"\x93NUMPY\x09\x09" + bytes(100),
        "scaled": (VECTOR * np.float32(1.001)).tobytes(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert clear_weights([tmp_path], KNOWN) == []


def test_bytes_that_begin_like_the_vector_are_compared_to_the_end(tmp_path):
    content = bytearray(RAW)
    content[::32] = bytes(len(content[::32]))  # a byte in each half of a window
    (tmp_path / "x").write_bytes(bytes(content) + b"\0")
    assert found(tmp_path) == []


# nothing is left out in silence


@posix
def test_a_file_that_cannot_be_read_is_a_finding(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path) == ["could not be read (No such file or directory)"]


@posix
def test_a_folder_that_cannot_be_listed_is_a_finding(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    expected = [Finding(str(tmp_path / "locked"), "could not be read (Permission denied)")]
    assert clear_weights([tmp_path], KNOWN) == expected


def test_a_disk_that_fails_in_the_middle_is_a_finding(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(NOISE)
    monkeypatch.setattr(at_rest._Index, "found_in", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    assert found(tmp_path) == ["could not be read (Input/output error)"]


def encrypted_zip() -> bytes:
    """The flag says so: the standard library cannot write one."""
    content = bytearray(zipped(b"secret", method=zipfile.ZIP_STORED))
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(magic, at + 1)) >= 0:
            content[at + place] |= 1
    return bytes(content)


LARGE_ZIP = zipped(NOISE * 40)
UNREADABLE = {
    "cut zip": LARGE_ZIP[: len(LARGE_ZIP) // 2],
    "changed zip": LARGE_ZIP[:500] + bytes(300) + LARGE_ZIP[800:],
    "encrypted zip": encrypted_zip(),
    "only a magic": b"PK\x03\x04" + bytes(50),
    "cut gzip": gzip.compress(NOISE)[:-900],
    "changed gzip": gzip.compress(NOISE)[:-8] + bytes(8),
    "cut bzip2": bz2.compress(NOISE)[:-100],
    "bad bzip2": b"BZh9" + NOISE,
    "cut xz": lzma.compress(NOISE)[:-100],
    "bad xz": b"\xfd7zXZ\0" + NOISE,
}


@pytest.mark.parametrize("form", UNREADABLE)
def test_an_archive_that_cannot_be_read_is_a_finding(tmp_path, form):
    (tmp_path / "x").write_bytes(UNREADABLE[form])
    (finding,) = clear_weights([tmp_path], KNOWN)
    assert finding.where == str(tmp_path / "x")
    assert finding.what.startswith("an archive that could not be read (")


@pytest.mark.parametrize("inner", [zipped(RAW), gzip.compress(RAW)], ids=["zip", "gzip"])
@pytest.mark.parametrize("outer", [zipped, gzip.compress], ids=["in zip", "in gzip"])
def test_an_archive_in_an_archive_is_named(tmp_path, inner, outer):
    (tmp_path / "x").write_bytes(outer(inner))
    assert found(tmp_path) == ["an archive inside an archive, not looked into"]


@pytest.mark.parametrize("magic", [b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c"], ids=["Zstandard", "7-Zip"])
def test_a_compression_that_cannot_be_opened_here_is_named(tmp_path, magic):
    (tmp_path / "x").write_bytes(magic + NOISE)
    (what,) = found(tmp_path)
    assert what.endswith(", not looked into")


@posix
def test_links_pipes_and_sockets(tmp_path, monkeypatch):
    """A pipe would wait for ever; a link to a folder that is examined anyway is no news."""
    examined, elsewhere = tmp_path / "examined", tmp_path / "elsewhere"
    examined.mkdir()
    elsewhere.mkdir()
    (elsewhere / "weights").write_bytes(RAW)
    os.mkfifo(examined / "pipe")
    monkeypatch.chdir(examined)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        (examined / "itself").symlink_to(examined)
        assert found(examined) == []
        (examined / "out").symlink_to(elsewhere)
        assert found(examined) == ["a link to a folder elsewhere, not looked into"]
        (examined / "out").unlink()
        (examined / "file").symlink_to(elsewhere / "weights")
        assert found(examined) == ["the model as float32 lies here in clear"]


@posix
def test_a_device_is_not_read(tmp_path):
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert found(tmp_path) == ["not a regular file, not looked into"]


# wrong questions


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such folder") as error:
        clear_weights([tmp_path, tmp_path / "runs"], KNOWN)
    assert error.value.where == str(tmp_path / "runs")


@pytest.mark.parametrize(
    "vector",
    [np.zeros(100, np.float32), np.ones(100, np.float32), np.arange(15, dtype=np.float32), np.full(64, np.nan, "f4")],
    ids=["zeros", "ones", "short", "nan"],
)
def test_a_vector_that_says_nothing(tmp_path, vector):
    with pytest.raises(UserError, match="sixteen different numbers"):
        clear_weights([tmp_path], {"flat": vector})


def test_no_vector_at_all(tmp_path):
    with pytest.raises(UserError, match="none to look for"):
        clear_weights([tmp_path], {})


# the probe


@pytest.fixture
def sealed(tmp_path):
    vault = Vault.from_key_file(create_key(tmp_path / "vault.key"))
    vault.seal(tmp_path / "runs" / "1.sealed", {"w": VECTOR}, {}, Context("server", "run", 1, "ab" * 32))
    return tmp_path


def test_the_evidence_says_what_was_examined(sealed):
    evidence = storage_sealed([sealed], KNOWN)
    size = sum(path.stat().st_size for path in sealed.rglob("*") if path.is_file())
    assert evidence.details == {"sealed files": 1, "files": 2, "bytes": size, "vectors": 2}


def test_the_probe_fails_and_names_the_first_findings(sealed):
    for name in "abcd":
        (sealed / name).write_bytes(RAW)
    with pytest.raises(UserError, match="4 findings in 6 files") as error:
        storage_sealed([sealed], KNOWN)
    assert str(error.value).count("lies here in clear") == 3


@pytest.mark.parametrize("content", [None, b"text"], ids=["nothing", "nothing sealed"])
def test_the_probe_does_not_take_an_empty_folder_for_a_good_one(tmp_path, content):
    if content:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="is sealed, so no stored model was examined"):
        storage_sealed([tmp_path], KNOWN)


def test_the_probe_fails_when_the_search_is_blind(sealed, monkeypatch):
    monkeypatch.setattr(at_rest._Index, "found_in", lambda *_: set())
    with pytest.raises(UserError, match="does not find this vector"):
        storage_sealed([sealed], KNOWN)


def test_the_probe_writes_nothing(sealed):
    before = {path: path.stat().st_mtime_ns for path in sealed.rglob("*")}
    storage_sealed([sealed], KNOWN)
    assert {path: path.stat().st_mtime_ns for path in sealed.rglob("*")} == before


def test_many_vectors_are_looked_for_at_a_fraction_of_the_cost_of_one_after_the_other(tmp_path):
    """One pass over the disk, however many: compared in CPU time, so that a busy machine does not fail it."""
    (tmp_path / "x").write_bytes(np.random.default_rng(5).bytes(30_000_000))
    rng, seconds = np.random.default_rng(6), {}
    for count in (1, 16):
        index = at_rest._Index({str(i): rng.normal(size=P).astype(np.float32) for i in range(count)})
        start = time.process_time()
        assert not [look for look in at_rest._scan([tmp_path], index) if look.findings]
        seconds[count] = time.process_time() - start
    assert seconds[16] < 8 * seconds[1]
