"""An id counts once: across threads, processes, kills and clocks that go back."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.custody import used_ids as module
from fedbone.custody.used_ids import UsedIds
from fedbone.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NOW = 1_800_000_000.0
UNTIL = int(NOW) + 360
DAY_S = 86_400


@pytest.fixture
def used(tmp_path) -> UsedIds:
    return UsedIds(tmp_path / "used_ids.json")


def note(used: UsedIds, token_id: str, site: str = "a", until: int = UNTIL, now: float = NOW) -> None:
    used.note(f"login of {site}", site, token_id, until, now)


def is_new(used: UsedIds, *args, **kwargs) -> bool:
    try:
        note(used, *args, **kwargs)
    except UserError as refusal:
        if "used before" not in refusal.problem:
            raise
        return False
    return True


def known(used: UsedIds) -> dict[str, list[str]]:
    return {site: list(ids) for site, ids in json.loads(used.path.read_text())["ids"].items()}


def test_an_id_counts_once_for_each_hospital(used):
    assert is_new(used, "x")
    assert not is_new(used, "x")
    assert not is_new(UsedIds(used.path), "x", until=UNTIL + 100)
    assert is_new(used, "x", site="b"), "or a hospital could use up the ids of another"
    assert is_new(used, "y")
    assert known(used) == {"a": ["x", "y"], "b": ["x"]}


def test_the_refusal_says_what_it_was_for(used):
    note(used, "x")
    with pytest.raises(UserError, match=r"^login of a: its token was used before\. Sign a new token"):
        note(used, "x")


def test_ids_are_forgotten_when_their_tokens_have_expired_and_not_before(used):
    note(used, "x")
    note(used, "y", until=UNTIL + 1)
    note(used, "z", now=UNTIL - 0.001, until=UNTIL + 50)
    assert known(used) == {"a": ["x", "y", "z"]}
    assert not is_new(used, "x", now=UNTIL - 0.001)
    note(used, "w", now=UNTIL, until=UNTIL + 50)
    assert known(used) == {"a": ["y", "z", "w"]}
    note(used, "v", site="b", now=UNTIL + 1000, until=UNTIL + 2000)
    assert {site: ids for site, ids in known(used).items() if ids} == {"b": ["v"]}


def test_when_the_clock_goes_back_no_forgotten_id_counts_again(used):
    note(used, "x")
    note(used, "y", until=UNTIL + 7, now=NOW + 1)
    note(used, "z", until=UNTIL + 500, now=NOW + 400)
    assert known(used) == {"a": ["z"]}
    with pytest.raises(UserError, match="clock went back 367 s or more"):
        note(used, "x", now=NOW)
    with pytest.raises(UserError, match="clock went back"):
        note(used, "y", until=UNTIL + 7, now=NOW)
    assert is_new(used, "fresh", until=UNTIL + 8, now=NOW)


def test_an_id_that_ends_at_this_very_moment_is_forgotten_and_not_accepted_again(used):
    note(used, "x")
    note(used, "y", until=UNTIL + 50, now=UNTIL)
    assert known(used) == {"a": ["y"]}
    with pytest.raises(UserError, match="clock went back"):
        note(used, "x", now=NOW)


def test_a_clock_that_was_a_day_ahead_blocks_nobody_for_a_day(used):
    note(used, "x")
    note(used, "ahead", until=UNTIL + DAY_S, now=NOW + DAY_S)
    with pytest.raises(UserError, match="clock went back"):
        note(used, "x", now=NOW + 10)
    assert is_new(used, "y", now=NOW + 10, until=UNTIL + 10)
    assert not is_new(used, "ahead", until=UNTIL + DAY_S, now=NOW + 10)
    assert not is_new(used, "ahead", until=UNTIL + DAY_S, now=NOW + DAY_S)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=30), st.lists(st.integers(1, 20), min_size=6)
)
def test_whatever_the_clock_does_no_id_counts_twice(tmp_path_factory, tries, lifetimes):
    """Tries (which token, when by this clock), of tokens that are refused from ``until`` on by their own expiry."""
    used, accepted = UsedIds(tmp_path_factory.mktemp("used") / "u"), []
    for token, now in tries:
        until = 10 + lifetimes[token]
        if now >= until:
            continue
        try:
            note(used, str(token), until=until, now=now)
        except UserError as refusal:
            if token not in accepted and "clock went back" not in refusal.problem:
                raise
            continue
        accepted.append(token)
    assert len(accepted) == len(set(accepted))


def test_one_hospital_cannot_fill_the_file(used, monkeypatch):
    monkeypatch.setattr(module, "MOST_IDS", 3)
    for name in "xyz":
        note(used, name)
    with pytest.raises(UserError, match="sent 3 tokens within minutes"):
        note(used, "more")
    note(used, "x", site="b")
    assert is_new(used, "more", until=UNTIL + 9, now=UNTIL), "once the others have expired"


def rewritten(**changes):
    return lambda text: json.dumps({**json.loads(text), **changes})


DAMAGES = {
    "an id removed": rewritten(ids={}),
    "an id changed": lambda text: text.replace('"x"', '"y"'),
    "an end changed": lambda text: text.replace(f'"x": {UNTIL}', '"x": 1'),
    "the forgotten changed": rewritten(forgotten=-1),
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "empty object": lambda text: "{}",
    "other JSON": lambda text: "[]",
    "more": rewritten(more=1),
    "no text": lambda text: "\udcff\udcfe",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_accepts_nothing_and_is_left_as_it_is(used, damage):
    note(used, "x")
    damaged = DAMAGES[damage](used.path.read_text()).encode("utf-8", "surrogateescape")
    assert damaged != used.path.read_bytes()
    used.path.write_bytes(damaged)
    for name in ("x", "fresh"):
        with pytest.raises(UserError, match="file of used token ids is damaged") as refusal:
            note(used, name)
        assert refusal.value.where == str(used.path)
        assert "15 minutes" in refusal.value.remedy
    assert used.path.read_bytes() == damaged


def test_a_file_that_is_gone_is_missed(used):
    note(used, "x")
    used.path.unlink()
    for name in ("x", "fresh"):
        with pytest.raises(UserError, match="file of used token ids is gone"):
            note(used, name)


@pytest.mark.skipif(os.name == "nt", reason="a POSIX error")
def test_what_cannot_be_written_is_not_accepted(used, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    note(used, "x")
    monkeypatch.setattr("fedbone.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        note(used, "y")
    monkeypatch.undo()
    assert is_new(used, "y")


def test_of_many_threads_one_wins(used):
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: is_new(used, "x"), range(24))) == 1


CHILD = """
import sys
from pathlib import Path
from fedbone.custody.used_ids import UsedIds
from fedbone.errors import UserError
used, first = UsedIds(Path(sys.argv[1])), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + 100_000 if sys.argv[3] == "endless" else 60):
    try:
        used.note("login of a", "a", str(number), 1_800_000_360, 1_800_000_000.0)
        print(number, flush=True)
    except UserError as refusal:
        assert "used before" in refusal.problem
"""


def child(used: UsedIds, first: int, mode: str) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(used.path), str(first), mode]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_of_two_processes_exactly_one_wins_each_id(used):
    processes = [child(used, 0, "sixty") for _ in range(2)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    won = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(map(int, won[0] + won[1])) == list(range(60))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_what_was_accepted_before_a_kill_9_is_never_accepted_again(used):
    accepted = []
    for attempt in range(4):
        process = child(used, 1000 * attempt, "endless")
        process.stdin.write("\n")
        process.stdin.flush()
        accepted += [process.stdout.readline().strip() for _ in range(5)]
        time.sleep(0.003 * attempt)  # another moment each time
        process.send_signal(signal.SIGKILL)
        accepted += process.communicate()[0].split()
    assert len(accepted) == len(set(accepted)) >= 20
    assert not [token_id for token_id in accepted if is_new(used, token_id)]
    assert is_new(used, "fresh")
