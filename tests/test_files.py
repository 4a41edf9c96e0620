import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedbone.errors import UserError
from fedbone.files import read_secret, write_atomic, write_json, write_secret

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")


def test_bytes_and_writers_and_new_folders(tmp_path):
    write_atomic(tmp_path / "x" / "a b.bin", b"one")
    write_atomic(tmp_path / "x" / "a b.bin", lambda file: file.write(b"two"))
    assert (tmp_path / "x" / "a b.bin").read_bytes() == b"two"
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["a b.bin"]


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    target = write_atomic(tmp_path / "a", b"old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(target, fail)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")
def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    target = write_atomic(tmp_path / "a", b"0" * 2_000_000)
    code = (
        "import sys; from fedbone.files import write_atomic\n"
        "for i in range(10**6): write_atomic(sys.argv[1], bytes([48 + i % 10]) * 2_000_000)"
    )
    for delay in (0.3, 0.41, 0.53):
        with subprocess.Popen([sys.executable, "-c", code, str(target)]) as child:
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        content = target.read_bytes()
        assert len(content) == 2_000_000
        assert len(set(content)) == 1


def test_json_refuses_what_other_readers_cannot_read(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_file(tmp_path):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        write_atomic(tmp_path / "a", full)
    assert error.value.filename == str(tmp_path / "a")
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@posix
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)], ids=oct)
def test_the_umask_says_who_may_read_a_file(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a", {})
        write_atomic(tmp_path / "b", b"", private=True)
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [mode, 0o600]


@posix
def test_a_private_file_takes_the_place_of_an_open_one(tmp_path):
    (tmp_path / "a").touch(0o644)
    assert write_atomic(tmp_path / "a", b"x", private=True).stat().st_mode & 0o777 == 0o600


@posix
def test_a_secret_is_private_from_its_first_byte_and_there_only_when_whole(tmp_path, monkeypatch):
    path, seen, old_mask = tmp_path / "new" / "key", [], os.umask(0)

    def note(handle):
        seen.append((path.exists(), {p.stat().st_mode & 0o777 for p in path.parent.iterdir()}))

    try:
        monkeypatch.setattr(os, "fsync", note)
        write_secret(path, b"secret")
    finally:
        os.umask(old_mask)
    assert seen == [(False, {0o600}), (True, {0o600})], "first the content reaches the disk, then its name"
    assert [p.name for p in path.parent.iterdir()] == ["key"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_secret(path) == b"secret"


def test_a_secret_is_never_overwritten(tmp_path):
    path = write_secret(tmp_path / "key", b"old")
    with pytest.raises(UserError, match="never overwritten") as error:
        write_secret(path, b"brand-new")
    assert "brand-new" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


@posix
def test_a_secret_is_not_written_through_a_link(tmp_path):
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="never overwritten"):
        write_secret(tmp_path / "key", b"new")
    assert not (tmp_path / "elsewhere").exists()


def test_of_many_writers_of_one_secret_one_wins(tmp_path):
    def attempt(number):
        try:
            write_secret(tmp_path / "key", bytes([number]) * 100_000)
        except UserError:
            return None
        return number

    with ThreadPoolExecutor(8) as executor:
        winners = [number for number in executor.map(attempt, range(24)) if number is not None]
    assert len(winners) == 1
    assert read_secret(tmp_path / "key") == bytes(winners) * 100_000
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_no_secret(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_secret(tmp_path / "key", b"x")
    assert error.value.filename == str(tmp_path / "key")
    assert not list(tmp_path.iterdir())


@posix
@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o777], ids=oct)
def test_a_secret_that_others_may_use_is_refused(tmp_path, mode):
    path = write_secret(tmp_path / "key", b"hidden-content")
    path.chmod(mode)
    with pytest.raises(UserError, match=rf"mode {mode:o}.*chmod 600") as error:
        read_secret(path)
    assert "hidden-content" not in str(error.value)


@posix
@pytest.mark.parametrize("mode", [0o600, 0o400], ids=oct)
def test_a_private_secret_is_read_also_through_a_link(tmp_path, mode):
    path = write_secret(tmp_path / "key", b"x")
    path.chmod(mode)
    (tmp_path / "link").symlink_to(path)
    assert read_secret(path) == read_secret(tmp_path / "link") == b"x"


@posix
def test_a_link_to_a_file_of_everybody_is_refused(tmp_path):
    (tmp_path / "open").write_bytes(b"x")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "key").symlink_to(tmp_path / "open")
    with pytest.raises(UserError, match="mode 644"):
        read_secret(tmp_path / "key")


@posix
def test_the_opened_file_is_judged_and_not_what_the_name_leads_to_afterwards(tmp_path, monkeypatch):
    """Somebody gives a file of everybody, and puts a private one in its place while it is read."""
    (tmp_path / "open").write_bytes(b"x")
    (tmp_path / "open").chmod(0o644)
    write_secret(tmp_path / "private", b"y")
    key = tmp_path / "key"
    key.symlink_to(tmp_path / "open")

    def exchange_before(look):
        def exchanged(what, **options):
            key.unlink()
            key.symlink_to(tmp_path / "private")
            return look(what, **options)

        return exchanged

    with monkeypatch.context() as patch:  # pytest itself asks for the status of files
        for name in ("fstat", "stat", "lstat"):
            patch.setattr(os, name, exchange_before(getattr(os, name)))
        with pytest.raises(UserError, match="mode 644"):
            read_secret(key)


@posix
def test_a_secret_of_another_account_is_refused(tmp_path, monkeypatch):
    path = write_secret(tmp_path / "key", b"x")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(UserError, match="another account"):
        read_secret(path)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["missing", "a folder"])
def test_a_secret_that_cannot_be_read_is_a_user_error(tmp_path, make):
    make(tmp_path / "key")
    with pytest.raises(UserError, match="cannot be read"):
        read_secret(tmp_path / "key")
