import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from fedbone.files import write_atomic, write_json


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
