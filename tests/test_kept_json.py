"""A file of several processes is whole at every moment, and a lost one is missed."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedbone.custody import kept_json as module
from fedbone.custody.kept_json import KeptJson, read_strictly
from fedbone.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX only")


def require_numbers(content: dict) -> None:
    if any(type(value) is not int for value in content.values()):
        raise ValueError("a value is no number")


@pytest.fixture
def kept(tmp_path) -> KeptJson:
    return KeptJson(tmp_path / "a folder" / "kept.json", "list of numbers", require_numbers, "Restore a backup")


@pytest.mark.parametrize(
    ("data", "value"),
    [(b'{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}), ('"\u00fc"'.encode(), "\u00fc"), (b"{}", {})],
    ids=["object", "text", "empty"],
)
def test_json_is_read(data, value):
    assert read_strictly(data) == value


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1, "a": 1}',
        b'{"b": {"a": 1, "\\u0061": 2}}',
        b'{"a": NaN}',
        b"[-Infinity]",
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\xff"}',
        b"{} {}",
        b"",
        b"[" * 100_000,
        b"9" * 5000,
    ],
    ids="twice hidden nan infinity mark utf16 bytes two nothing nested long".split(),
)
def test_json_that_could_be_read_in_two_ways_is_not_read(data):
    with pytest.raises((ValueError, RecursionError)):
        read_strictly(data)


def test_there_is_nothing_before_the_first_change(kept):
    assert kept.read() is None
    with kept.change() as content:
        assert content == {}
        content["a"] = 1
    assert kept.read() == {"a": 1}
    with kept.change() as content:
        assert content == {"a": 1}


def test_a_change_is_on_the_disk_when_it_returns_and_its_lock_does_not_grow(kept, monkeypatch):
    """The folder is synchronised after the rename, for a power failure."""
    synced = []
    monkeypatch.setattr(module, "sync_folder", lambda folder: synced.append((folder, kept.path.read_text())))
    lock_bytes = []
    for number in range(3):
        with kept.change() as content:
            content["a"] = number
        lock_bytes.append(kept.path.with_name("kept.json.lock").stat().st_size)
    assert synced == [(kept.path.parent, f'{{\n "a": {number}\n}}\n') for number in range(3)]
    assert len(set(lock_bytes)) == 1


def test_a_block_that_raises_changes_nothing(kept):
    with pytest.raises(ZeroDivisionError), kept.change() as content:
        content["a"] = 1 / 0
    assert kept.read() is None, "and a lock that is left over does not count as a lost file"
    with kept.change() as content:
        content["a"] = 1
    with pytest.raises(ZeroDivisionError), kept.change() as content:
        content.update(a=2, b=content["a"] / 0)
    assert kept.read() == {"a": 1}


@pytest.mark.parametrize("data", [b"", b'{"a": 1', b'{"a": "1"}', b"[]", b'{"a": 1, "a": 2}'], ids=repr)
def test_a_damaged_file_is_refused_and_left_as_it_is(kept, data):
    with kept.change() as content:
        content["a"] = 1
    kept.path.write_bytes(data)
    with pytest.raises(UserError, match=r"list of numbers is damaged \(.+Restore a backup") as refusal:
        kept.read()
    assert refusal.value.where == str(kept.path)
    with pytest.raises(UserError, match="damaged"), kept.change() as content:
        content["a"] = 2
    assert kept.path.read_bytes() == data


def test_a_file_that_is_gone_is_missed(kept):
    with kept.change() as content:
        content["a"] = 1
    kept.path.unlink()
    with pytest.raises(UserError, match="list of numbers is gone"):
        kept.read()
    with pytest.raises(UserError, match="list of numbers is gone"), kept.change():
        pass
    assert not kept.path.exists()


def test_a_folder_in_its_place_is_no_file(kept):
    kept.path.mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be read"):
        kept.read()


@posix
def test_a_link_leads_to_one_file_not_to_two(kept, tmp_path):
    with kept.change() as content:
        content["a"] = 1
    link = KeptJson(tmp_path / "link", kept.name, kept.check, kept.remedy)
    link.path.symlink_to(kept.path)
    with link.change() as content:
        content["a"] += 1
    assert kept.read() == {"a": 2}
    assert link.path.is_symlink()
    kept.path.unlink()
    kept.path.with_name("kept.json.lock").unlink()
    with pytest.raises(UserError, match="gone"):
        link.read()


def count(kept: KeptJson, times: int) -> None:
    for _ in range(times):
        with kept.change() as content:
            content["n"] = content.get("n", 0) + 1


def test_threads_lose_no_change(kept):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: count(kept, 15), range(4)))
    assert kept.read() == {"n": 60}


CHILD = """
import sys
from pathlib import Path
from fedbone.custody.kept_json import KeptJson
kept = KeptJson(Path(sys.argv[1]), "list of numbers", lambda content: None, "")
print("ready", flush=True)
sys.stdin.readline()
"""
COUNTER = """
for _ in range(40):
    with kept.change() as content:
        content["n"] = content.get("n", 0) + 1
"""


def child(kept: KeptJson, code: str) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD + code, str(kept.path)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_lose_no_change(kept):
    processes = [child(kept, COUNTER) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    assert kept.read() == {"n": 80}


KILLED = """
import fedbone.files, os, signal
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
real = os.replace
def replaced_and_dead(*args):
    real(*args)
    die()
{where}
with kept.change() as content:
    content["n"] = 2
"""
MOMENTS = {
    "before the bytes are on the disk": ("os.fsync = die", 1),
    "before the new name": ("os.replace = die", 1),
    "after the new name": ("os.replace = replaced_and_dead", 2),
}


@posix
@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_leaves_the_old_or_the_new_file_and_no_lock(kept, moment):
    with kept.change() as content:
        content["n"] = 1
    where, left = MOMENTS[moment]
    process = child(kept, KILLED.format(where=where))
    process.communicate("\n")
    assert process.returncode == -signal.SIGKILL
    assert kept.read() == {"n": left}
    count(kept, 1)
    assert kept.read() == {"n": left + 1}
