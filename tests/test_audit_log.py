"""Whatever somebody does to an audit log is found in its line; kills, full disks and many writers do it no harm."""

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone import __main__ as shell
from fedbone.custody import audit_file
from fedbone.custody.audit_entry import GIVEN, LINE_BYTES, before_the_first, canonical, fitting
from fedbone.custody.audit_fault import Altered
from fedbone.custody.audit_log import AuditLog, heads_noted, read_log, verify_log
from fedbone.encryption.signing import SigningKey
from fedbone.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SECRET = bytes(range(32))
KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(SECRET))
MODEL = "ab" * 32
EVERY = 7
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX only")


def written(path: Path, events: int = 19, key: SigningKey = KEY) -> list[bytes]:
    """The lines of a log with ordinary entries that ends with a signed head."""
    log = AuditLog(path, key, "server", EVERY)
    for i in range(events):
        log.append(("login", "pull", "push")[i % 3], run="run-1", round=i // 3, model=MODEL, site="hospital_a")
    log.sign_head()
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[bytes]:
    return written(tmp_path_factory.mktemp("log") / "audit.jsonl")


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> list[bytes]:
    """Another log of the same key."""
    return written(tmp_path_factory.mktemp("other") / "audit.jsonl")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A file that property tests write anew."""
    return tmp_path_factory.mktemp("changed") / "audit.jsonl"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "a folder" / "audit.jsonl"


def found(place: Path, lines: list[bytes], match: str | None = None, public: bytes = KEY.public, witnessed=()) -> int:
    """The number of the line that the check names."""
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"".join(lines))
    with pytest.raises(Altered, match=match) as error:
        verify_log(place, public, witnessed)
    return int(re.fullmatch(re.escape(str(place)) + r", line (\d+)", error.value.where)[1])


def chained(lines: list[bytes], start: int) -> list[bytes]:
    """The chain computed again from ``lines[start]`` on, as somebody without the key can."""
    lines = list(lines)
    for i in range(max(1, start), len(lines)):
        previous = hashlib.sha256(lines[i - 1]).hexdigest()
        lines[i] = canonical({**json.loads(lines[i]), "n": i, "previous": previous})
    return lines


def changed(line: bytes, **fields: object) -> bytes:
    return canonical({**json.loads(line), **fields})


# what goes in


def test_an_entry_says_who_did_what_when_to_which_model(path):
    log = AuditLog(path, KEY, "server")
    before = datetime.now(UTC)
    entry = log.append("push", run="r", round=3, model=MODEL, outcome="refused", site="a", seconds=0.25, count=7)
    when = datetime.fromisoformat(entry["time"])
    assert before <= when <= datetime.now(UTC)
    assert re.fullmatch(r"[-0-9]{10}T[:0-9]{8}\.\d{6}Z", entry["time"])
    head, kept = read_log(path)
    assert kept == entry
    given = {"event": "push", "run": "r", "round": 3, "model": MODEL, "outcome": "refused", "who": "server"}
    assert {**entry, **given, "site": "a", "seconds": 0.25, "count": 7, "n": 1} == entry
    assert (head["event"], head["n"], head["key"], head["every"]) == ("head", 0, KEY.public.hex(), 100)


def test_what_is_not_given_stands_there_as_nothing(path):
    AuditLog(path, KEY, "server").append("start")
    for entry in read_log(path):
        assert (entry["run"], entry["round"], entry["model"], entry["outcome"]) == ("", None, "", "ok")


def test_an_intact_log(path):
    count = len(written(path))
    log = AuditLog(path, KEY, "server")
    verified = verify_log(path, KEY.public)
    assert (verified.entries, verified.unsigned, verified.torn_bytes, verified.notes) == (count, 0, 0, ())
    assert (
        verified.head == log.head() == (count - 1, hashlib.sha256(path.read_bytes().splitlines(True)[-1]).hexdigest())
    )
    log.append("stop")
    log.append("stop")
    assert verify_log(path, KEY.public).unsigned == 2
    assert verify_log(path, KEY.public).head == log.head() != verified.head


def test_heads_are_signed_when_due_and_when_asked_for(path):
    log = AuditLog(path, KEY, "server", 5)
    for _ in range(8):
        log.append("push")
    assert [entry["n"] for entry in read_log(path) if entry["event"] == "head"] == [0, 5, 10]
    assert log.sign_head()["n"] == 11
    log.sign_head()
    assert [entry["event"] for entry in read_log(path)][10:] == ["head"] * 3
    assert verify_log(path, KEY.public).unsigned == 0
    AuditLog(path, KEY, "watchdog", 2).append("start")  # the first line says how often
    log.append("push")
    assert [entry["event"] for entry in read_log(path)][13:] == ["start", "push", "head"]
    assert verify_log(path, KEY.public).entries == 16


def test_each_second_entry_a_head(path):
    log = AuditLog(path, KEY, "server", 2)
    assert [log.append("push")["n"] for _ in range(3)] == [1, 3, 5]
    assert verify_log(path, KEY.public).entries == 7
    with pytest.raises(ValueError, match="2 or more"):
        AuditLog(path, KEY, "server", 1)


def test_hashlib_and_cryptography_alone_come_to_the_same(path):
    """The format by hand: what an auditor without this package has to do."""
    written(path)
    public, log = Ed25519PrivateKey.from_private_bytes(SECRET).public_key(), None
    for n, line in enumerate(path.read_bytes().splitlines(keepends=True)):
        entry = json.loads(line)
        if n == 0:
            log = entry["log"]
            text = b"fedbone audit log, version 1\n" + public.public_bytes_raw() + log.encode()
            previous = hashlib.sha256(text).hexdigest()
        assert (entry["n"], entry["previous"]) == (n, previous)
        if signature := entry.pop("signature", None):
            message = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
            purpose = b"fedbone audit head, version 1"
            statement = len(purpose).to_bytes(2, "big") + purpose + message
            public.verify(bytes.fromhex(signature), statement)
            with pytest.raises(InvalidSignature):
                Ed25519PublicKey.from_public_bytes(b"\1" * 32).verify(bytes.fromhex(signature), statement)
            assert entry["log"] == log
        assert (signature is not None) == (entry["event"] == "head")
        previous = hashlib.sha256(line).hexdigest()
    assert (n, previous) == verify_log(path, KEY.public).head


def test_a_head_is_known_only_once_there_is_an_entry(path):
    log = AuditLog(path, KEY, "server")
    with pytest.raises(FileNotFoundError) as error:
        log.head()
    assert error.value.filename == str(path)
    path.touch()
    with pytest.raises(UserError, match="no entry yet"):
        log.head()
    entry = log.append("start")
    assert log.head() == (1, hashlib.sha256(canonical(entry)).hexdigest())


def test_a_log_shows_no_secret(path):
    log = AuditLog(path, KEY, "server")
    log.append("start")
    for shown in (repr(log), path.read_text()):
        assert SECRET.hex() not in shown
    if os.name != "nt":
        assert path.stat().st_mode & 0o777 == 0o600


# nothing personal, nothing that breaks lines


BAD = [
    {"patient": "Meier"},
    {"n": 3},
    {"time": "2020-01-01T00:00:00.000000Z"},
    {"previous": "0" * 64},
    {"signature": "0" * 128},
    {"log": "0" * 32},
    {"key": "0" * 64},
    {"who": "somebody else"},
    {"site": "a\nb"},
    {"site": "a\x1b[2J"},
    {"site": "a\u2028b"},
    {"site": "M\u00fcller"},
    {"site": "a\ud800"},
    {"site": "x" * 301},
    {"site": None},
    {"site": b"a"},
    {"site": ["a"]},
    {"run": {"a": 1}},
    {"run": 1},
    {"round": -1},
    {"round": True},
    {"round": 1.0},
    {"round": "1"},
    {"round": 1 << 63},
    {"count": None},
    {"seconds": float("nan")},
    {"seconds": float("inf")},
    {"seconds": -0.5},
    {"seconds": "1"},
    {"model": "AB" * 32},
    {"model": "ab" * 31},
    {"model": "Hans Meier"},
    {"hospitals": "Hans Meier"},
    {"detail": 3},
    {"outcome": None},
]


@pytest.mark.parametrize("fields", BAD, ids=lambda fields: f"{next(iter(fields))}-{BAD.index(fields)}")
def test_what_no_entry_may_have_is_refused_and_not_quoted(path, fields):
    log = AuditLog(path, KEY, "server")
    name, value = next(iter(fields.items()))
    with pytest.raises(ValueError, match=name) as error:
        log.append("push", **fields)
    if isinstance(value, str):
        assert value not in str(error.value)
    assert not path.exists()


@pytest.mark.parametrize("event", ["head", "recovered", "", "Push", "a b", "a\n", "x" * 41, None])
def test_events_that_are_none(path, event):
    with pytest.raises(ValueError, match="event"):
        AuditLog(path, KEY, "server").append(event)


@pytest.mark.parametrize("who", ["a\nb", "x" * 301, None])
def test_writers_that_are_none(path, who):
    with pytest.raises(ValueError, match="who"):
        AuditLog(path, KEY, who)


DETAILS = [
    ("the update has 3 values, and 4 were expected", None),
    ("/data/Hans Meier/film.dcm: it cannot be read", "(path): it cannot be read"),
    ("cannot read '/data/Hans Meier.dcm' or 'b'", "cannot read '(path)' or 'b'"),
    ('cannot read "/data/O\'Meier.dcm" now', 'cannot read "(path)" now'),
    (r"C:\films\Hans Meier.dcm: no", "C:(path): no"),
    ("in films/Meier 12:30.dcm", "in (path)"),
    ("a\nb\x1b[2Jc\u00fcd\ud800\u2028", "a?b?[2Jc?d??"),
    ("x" * 301, "x" * 297 + "..."),
    ("x" * 300, None),
]


@pytest.mark.parametrize(("detail", "kept"), DETAILS, ids=[str(i) for i in range(len(DETAILS))])
def test_a_detail_is_made_to_fit_so_that_an_intruder_cannot_keep_his_refusal_out(path, detail, kept):
    entry = AuditLog(path, KEY, "server").append("refusal", detail=detail)
    assert entry["detail"] == fitting(detail) == (detail if kept is None else kept)
    assert verify_log(path, KEY.public).entries == 2


def test_the_longest_entry_fits_into_a_line(path):
    longest = {
        name: form and ("e" * 40 if name == "event" else MODEL if "0-9a-f" in form else '"' * 300)
        for name, form in GIVEN.items()
    }
    longest = {name: (1 << 63) - 1 if value is None else value for name, value in longest.items()}
    longest |= {"hospitals": "a" * 4200, "seconds": 1.2345678901234567e-300}
    log = AuditLog(path, KEY, '"' * 300)
    for n in (1, 2, 3):
        assert log.append(**longest)["n"] == n
    assert max(map(len, path.read_bytes().splitlines())) < LINE_BYTES
    assert verify_log(path, KEY.public).entries == 4


# every manipulation is found in its line


def test_the_unchanged_log_passes(place, lines):
    place.write_bytes(b"".join(lines))
    assert verify_log(place, KEY.public).entries == len(lines)


every = settings(derandomize=True, deadline=None, max_examples=150)
indices = st.integers(0, 10**6)


@every
@given(at=indices, value=st.integers(1, 255))
def test_any_changed_byte_is_found_in_its_line(place, lines, at, value):
    data = bytearray(b"".join(lines))
    at %= len(data)
    data[at] ^= value
    number = bytes(data[:at]).count(b"\n") + 1
    if at == len(data) - 1:  # without its line feed, the last line is a torn one
        place.write_bytes(data)
        assert verify_log(place, KEY.public).torn_bytes == len(lines[-1])
    else:
        assert found(place, [bytes(data)]) == number


@every
@given(at=indices, count=st.integers(1, 9))
def test_removed_lines_are_found(place, lines, at, count):
    at %= len(lines) - 1
    count = min(count, len(lines) - 1 - at)  # without its end it is a whole log: the tests of witnesses
    assert found(place, lines[:at] + lines[at + count :]) == at + 1


@every
@given(first=indices, second=indices)
def test_swapped_lines_are_found(place, lines, first, second):
    a, b = sorted((first % len(lines), second % len(lines)))
    b += a == b
    if b == len(lines):
        return
    swapped = [*lines]
    swapped[a], swapped[b] = lines[b], lines[a]
    assert found(place, swapped) == a + 1


@every
@given(source=indices, target=indices)
def test_repeated_lines_are_found(place, lines, source, target):
    """The copy is the same line as the original: which of two neighbours came second nobody can know."""
    source, target = source % len(lines), target % (len(lines) + 1)
    number = target + 1 if target != source else target + 2
    assert found(place, [*lines[:target], lines[source], *lines[target:]]) == number


@every
@given(source=indices, target=indices)
def test_lines_of_another_log_of_the_same_key_are_found(place, lines, others, source, target):
    source, target = source % len(others), target % (len(lines) + 1)
    number = 2 if source == target == 0 else target + 1  # line 1 is then good, and the rest is of another log
    assert found(place, [*lines[:target], others[source], *lines[target:]]) == number


@pytest.mark.parametrize("at", range(24))
def test_a_line_exchanged_with_its_counterpart_in_another_log_is_found(place, lines, others, at):
    assert len(lines) == len(others) == 24
    assert found(place, [*lines[:at], others[at], *lines[at + 1 :]]) == max(at + 1, 2)


@pytest.mark.parametrize("at", range(1, 24))
def test_a_log_that_goes_on_as_another_is_found(place, lines, others, at):
    assert found(place, lines[:at] + others[at:]) in (at, at + 1)


@pytest.mark.parametrize("at", range(24))
def test_a_forged_line_with_a_chain_that_fits_is_found(place, lines, at):
    """Inserted without touching the others; at a head's place, that it is none is found."""
    forged = changed(lines[1], site="hospital_b", n=at, previous=json.loads(lines[at])["previous"])
    assert found(place, [*lines[:at], forged, *lines[at:]]) == at + 1


@pytest.mark.parametrize("at", [i for i in range(24) if i % EVERY and i < 23])
def test_a_chain_computed_again_is_found_at_the_next_head(place, lines, at):
    altered = chained([*lines[:at], changed(lines[at], outcome="refused"), *lines[at + 1 :]], at + 1)
    head = next(i for i in range(at, 24) if json.loads(lines[i])["event"] == "head")
    number = found(
        place, altered, f"or an earlier one since the head in line {head - head % EVERY + 1 - EVERY}|signature"
    )
    assert number == head + 1
    kept_head = [*altered[:head], *lines[head:]]
    assert found(place, kept_head, f"line {head + 1} was chained to other bytes") == head


@pytest.mark.parametrize("at", [7, 14, 21])
def test_heads_cannot_be_left_out(place, lines, at):
    """Nor put off: the chain computed again without one lacks it where it was due."""
    without = [line for line in lines[at:] if json.loads(line)["event"] != "head"]
    assert found(place, chained(lines[:at] + without, at), "a signed head is due") == at + 1


@pytest.mark.parametrize(
    "fields", [{"signature": "00" * 64}, {"outcome": "no"}, {"round": 3}, {"log": "0" * 32}], ids=str
)
def test_an_altered_head_is_found_also_as_the_last_line(place, lines, fields):
    for at in (0, 7, 23):
        altered = [*lines[:at], changed(lines[at], **fields), *lines[at + 1 :]]
        assert found(place, altered) == at + 1
        assert found(place, altered[: at + 1]) == at + 1


def test_a_head_with_the_signature_of_another_head(place, lines):
    signature = json.loads(lines[7])["signature"]
    assert found(place, [*lines[:14], changed(lines[14], signature=signature), *lines[15:]], "signature") == 15


def test_a_head_of_another_purpose_does_not_count(place, lines):
    unsigned = {name: value for name, value in json.loads(lines[-1]).items() if name != "signature"}
    other = canonical({**unsigned, "signature": KEY.sign("another purpose", canonical(unsigned)).hex()})
    assert found(place, [*lines[:-1], other], "signature") == 24
    right = KEY.sign("fedbone audit head, version 1", canonical(unsigned)).hex()
    place.write_bytes(b"".join([*lines[:-1], canonical({**unsigned, "signature": right})]))
    assert verify_log(place, KEY.public).unsigned == 0


OTHER_FORMS = {
    "spaces": lambda entry: json.dumps(entry, sort_keys=True).encode() + b"\n",
    "order": lambda entry: json.dumps(dict(reversed(entry.items())), separators=(",", ":")).encode() + b"\n",
    "a name twice": lambda entry: canonical(entry).replace(b"{", b'{"event":"pull",', 1),
    "CR LF": lambda entry: canonical(entry).replace(b"\n", b"\r\n"),
    "an escape": lambda entry: canonical(entry).replace(b"run-1", rb"run\u002d1"),
    "a list": lambda entry: b"[]\n",
    "nothing": lambda entry: b"\n",
    "nested": lambda entry: b"[" * 9000 + b"\n",
    "nan": lambda entry: canonical(entry).replace(b'"round":1', b'"round":NaN'),
    "long number": lambda entry: canonical(entry).replace(b'"round":1', b'"round":' + b"1" * 5000),
    "too long": lambda entry: canonical({**entry, "site": "x" * LINE_BYTES}),
    "not UTF-8": lambda entry: b"\xff\n",
    "control": lambda entry: canonical({**entry, "site": "\x1b[2J"}),
    "other field": lambda entry: canonical({**entry, "patient": "x"}),
    "field missing": lambda entry: canonical({name: value for name, value in entry.items() if name != "run"}),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_lines_in_another_form_are_found_also_at_the_end(place, lines, form):
    other = OTHER_FORMS[form](json.loads(lines[5]))
    assert other != lines[5]
    assert found(place, [*lines[:5], other, *lines[6:]], "not as a log writes") == 6
    assert found(place, [*lines[:5], other], "not as a log writes") == 6


def test_what_was_altered_after_the_last_head_is_one_of_two_lines(place, lines):
    tail = [*lines[:10], changed(lines[10], outcome="no"), lines[11]]
    assert found(place, tail, r"it or line 12, the last one, was altered") == 11
    assert found(place, [*lines[:8], changed(lines[8], previous="0" * 64)], "the line before it, which is signed") == 9


MESSAGES = [
    (lambda a: a[:5] + a[6:], "number 6, and 5 was expected: 1 lines before it were removed"),
    (lambda a: a[3:], "number 3, and 0 was expected: 3 lines before it were removed"),
    (lambda a: [*a[:5], a[6], a[5], *a[7:]], "moved here: the next line"),
    (lambda a: [*a[:5], a[15], *a[6:15], a[5], *a[16:]], "number 15, and 5 was expected: lines were re-ordered"),
    (lambda a: [*a[:5], a[2], *a[5:]], "inserted or moved here: the next line is the one that belongs here, number 5"),
    (lambda a: [*a[:5], a[4], *a[5:]], "inserted|once more"),
    (lambda a: [*a, a[2]], "earlier line stands here again"),
    (lambda a: [*a[:5], changed(a[5], n=9), *a[6:]], "its number 9 was altered"),
    (lambda a: [*a[:5], changed(a[5], previous="0" * 64), *a[6:]], "not chained to the line before it"),
    (
        lambda a: [*a[:5], changed(a[5], site="b"), *a[6:]],
        "it was altered, or an earlier .*line 7 was chained to other",
    ),
    (lambda a: [a[0], changed(a[1], site="b"), *a[2:]], "line 2: it was altered: line 3 was chained to other"),
    (lambda a: [changed(a[0], previous="0" * 64), *a[1:]], "does not begin a log"),
    (lambda a: [changed(a[0], outcome="no"), *a[1:]], "line 1: the signature of this head is wrong: it was altered. "),
]


@pytest.mark.parametrize(("change", "match"), MESSAGES, ids=[str(i) for i in range(len(MESSAGES))])
def test_each_kind_of_change_is_told_apart(place, lines, change, match):
    found(place, change(lines), match)


def test_another_key(place, lines, tmp_path):
    other = SigningKey.create()
    assert found(place, lines, "begun with the key", other.public) == 1
    theirs = written(tmp_path / "b.jsonl", key=other)
    assert found(place, theirs, "exchanged the log") == 1
    lie = canonical({**json.loads(theirs[0]), "key": KEY.public.hex()})
    assert found(place, [lie, *theirs[1:]], "does not begin") == 1
    entry = {**json.loads(lie), "previous": before_the_first(KEY.public, json.loads(lie)["log"])}
    assert found(place, [canonical(entry), *theirs[1:]], "signature") == 1


NOTHING = {
    "empty": b"",
    "torn": b'{"event":"head","every',
    "text": b"hello\n" * 9,
    "JSON": b'{"a":1}\n{"b":2}\n',
    "zeros": bytes(99),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_file_that_is_no_log_cannot_be_checked(path, name):
    path.parent.mkdir()
    path.write_bytes(NOTHING[name])
    with pytest.raises(UserError, match=r"no whole line|not an audit log") as error:
        verify_log(path, KEY.public)
    assert not isinstance(error.value, Altered)
    if name in ("empty", "torn"):
        AuditLog(path, KEY, "server").append("start")  # the kill of a first append
        assert verify_log(path, KEY.public).entries == 2 + (name == "torn")
    else:
        with pytest.raises(UserError, match="nothing was added"):
            AuditLog(path, KEY, "server").append("start")
        assert path.read_bytes() == NOTHING[name]


def test_a_file_that_is_not_there(path):
    for read in (lambda: verify_log(path, KEY.public), lambda: read_log(path)):
        with pytest.raises(UserError, match="cannot be read"):
            read()


def test_a_clock_that_was_set_back_is_a_note(path, monkeypatch):
    written(path)

    class Earlier(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2020, 1, 1, tzinfo=tz)

    monkeypatch.setattr("fedbone.custody.audit_log.datetime", Earlier)
    AuditLog(path, KEY, "server").append("push")
    assert "first in line 25: the clock was set back" in verify_log(path, KEY.public).notes[0]


def test_reading_a_log_with_a_broken_line_names_it(place, lines):
    place.write_bytes(b"".join([*lines[:3], b"{}\n", *lines[3:]]))
    with pytest.raises(UserError, match="line 4: it is not an entry"):
        read_log(place)


# what the key does not prove, other parties' notes do


def test_a_log_cut_after_any_line_is_whole_unless_somebody_noted_a_later_head(place, lines):
    heads = [(n, hashlib.sha256(line).hexdigest()) for n, line in enumerate(lines)]
    for kept in range(1, len(lines)):
        place.write_bytes(b"".join(lines[:kept]))
        assert verify_log(place, KEY.public, heads[:kept]).entries == kept
        for noted in (heads[kept], heads[-1]):
            match = f"ends with number {kept - 1}, and another party has noted {noted[0]}"
            assert found(place, lines[:kept], match, witnessed=[*heads[:kept], noted]) == kept + 1


def test_a_log_written_anew_with_its_key_lacks_the_heads_that_others_noted(path, lines):
    heads = [(n, hashlib.sha256(line).hexdigest()) for n, line in enumerate(lines)]
    anew = written(path)
    assert verify_log(path, KEY.public).entries == len(lines)
    assert found(path, anew, "another party has noted another sha256", witnessed=[heads[9], heads[11]]) == 10
    mine = [(9, hashlib.sha256(anew[9]).hexdigest())]
    assert found(path, anew, "another party", witnessed=[*mine, heads[9]]) == 10, "two parties were shown two logs"


def test_heads_are_noted_in_other_parties_logs(path, tmp_path):
    lines, hospital = written(path), AuditLog(tmp_path / "h.jsonl", SigningKey.create(), "hospital_a")
    n, sha256 = AuditLog(path, KEY, "server").head()
    hospital.append("pull", head_n=n, head_sha256=sha256)
    hospital.append("push", head_n=n)
    assert heads_noted(hospital.path) == {(n, sha256)}
    assert verify_log(path, KEY.public, heads_noted(hospital.path)).entries == n + 1
    assert found(path, lines[:-1], "is missing", witnessed=heads_noted(hospital.path)) == n + 1
    hospital.path.write_bytes(hospital.path.read_bytes().replace(b'"head_n":23', b'"head_n":22'))
    with pytest.raises(Altered, match="line 2"):
        heads_noted(hospital.path)


def test_verifying_needs_no_memory_for_what_it_has_seen(path):
    """Measured in a process of its own: a log of 8 MB more than the one before takes none of it."""
    code = (
        "import sys, tracemalloc; from pathlib import Path; from fedbone.custody.audit_log import verify_log\n"
        "tracemalloc.start(); v = verify_log(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))\n"
        "print(v.entries, tracemalloc.get_traced_memory()[1])"
    )
    log, peaks = AuditLog(path, KEY, "server"), []
    for count in (200, 2000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda handle: None)
            for _ in range(count):
                log.append("push", hospitals="a" * 4000)
        command = [sys.executable, "-c", code, path, KEY.public.hex()]
        entries, peak = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        assert int(entries) > count
        peaks.append(int(peak))
    assert path.stat().st_size > 8 << 20
    assert peaks[1] < peaks[0] + (1 << 18)


def test_an_append_reads_only_the_ends(path, monkeypatch):
    log, read, real = AuditLog(path, KEY, "server"), [], os.read
    for _ in range(200):
        log.append("push", hospitals="a" * 4000)
    assert path.stat().st_size > 20 * LINE_BYTES
    monkeypatch.setattr(os, "read", lambda handle, count: read.append(data := real(handle, count)) or data)
    log.append("push")
    assert 0 < sum(map(len, read)) <= 3 * LINE_BYTES


# kills and full disks


def test_a_torn_line_is_told_from_an_alteration_never_counted_and_recorded(path, lines):
    path.parent.mkdir()
    start = len(b"".join(lines[:-1]))
    for kept in (*range(1, len(lines[-1]), 13), len(lines[-1]) - 1):
        torn = lines[-1][:kept]
        path.write_bytes(b"".join(lines)[: start + kept])
        assert len(read_log(path)) == len(lines) - 1
        verified = verify_log(path, KEY.public)
        assert (verified.entries, verified.torn_bytes) == (len(lines) - 1, kept)
        assert verified.head[0] == len(lines) - 2
        AuditLog(path, KEY, "server").append("start")
        recovered, entry = read_log(path)[-2:]
        assert (recovered["event"], recovered["bytes"]) == ("recovered", kept)
        assert recovered["sha256"] == hashlib.sha256(torn).hexdigest()
        assert (entry["event"], verify_log(path, KEY.public).torn_bytes) == ("start", 0)


def test_a_torn_line_in_the_middle_of_a_log_is_an_alteration(place, lines):
    assert found(place, [*lines[:5], lines[5][:-9], *lines[6:]]) == 6


@pytest.mark.parametrize("length", [LINE_BYTES + 1, 3 * LINE_BYTES])
def test_a_long_end_without_line_feed_is_no_torn_line_and_never_removed(place, lines, length):
    content = [*lines, b"x" * length]
    assert found(place, content) == 25
    with pytest.raises(UserError, match="nothing was added"):
        AuditLog(place, KEY, "server").append("start")
    assert place.read_bytes() == b"".join(content)


def test_a_torn_line_at_the_place_of_a_head(path):
    log = AuditLog(path, KEY, "server", 3)
    log.append("start")
    log.append("start")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    log.append("stop")
    assert [entry["event"] for entry in read_log(path)][3:] == ["head", "recovered", "stop", "head"]
    path.write_bytes(whole[: whole[:-1].rfind(b"\n") + 1])
    log.append("stop")
    assert [entry["event"] for entry in read_log(path)][3:] == ["head", "stop"]
    verify_log(path, KEY.public)


@posix
def test_a_full_disk_is_told_and_leaves_a_chain_that_goes_on(path):
    import resource

    log = AuditLog(path, KEY, "server")
    log.append("start")
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for free in (0, 1, 50):
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + free, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as error:
                log.append("push", run="lost")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))
        assert path.read_bytes() == before
    log.append("push")
    assert [entry["event"] for entry in read_log(path)] == ["head", "start", "push"]
    assert verify_log(path, KEY.public).torn_bytes == 0


@pytest.mark.parametrize("torn", [b"", b'{"event":"push","mod'])
@pytest.mark.parametrize("call", ["write", "fsync", "ftruncate"])
def test_a_disk_that_fails_in_any_step_leaves_what_was_there(path, monkeypatch, call, torn):
    log = AuditLog(path, KEY, "server")
    log.append("start")
    path.write_bytes(path.read_bytes() + torn)
    before, real, failing = path.read_bytes(), getattr(os, call), [True]

    def fail(handle, *rest):
        if not failing:
            return real(handle, *rest)
        if call == "write" and len(rest[0]) > 100:
            return real(handle, rest[0][:100])
        failing.clear()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space") as error:
        log.append("push", run="lost")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == before
    log.append("push")
    assert [e["event"] for e in read_log(path)] == ["head", "start", *(["recovered"] if torn else []), "push"]
    assert verify_log(path, KEY.public).torn_bytes == 0


def test_a_disk_that_stays_full_leaves_a_torn_line_at_worst(path, monkeypatch):
    log, real = AuditLog(path, KEY, "server"), os.write
    log.append("start")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: real(handle, data[:40]) if len(data) > 200 else fail())
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="No space"):
            log.append("push", run="lost")
    assert verify_log(path, KEY.public).torn_bytes > 0
    log.append("push")
    assert [entry["event"] for entry in read_log(path)] == ["head", "start", "recovered", "push"]


def test_it_is_on_the_disk_before_append_returns(path, monkeypatch):
    log, synced, real = AuditLog(path, KEY, "server"), [], os.fsync

    def note(handle):
        synced.append(os.fstat(handle).st_size)
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    for _ in range(3):
        synced.clear()
        log.append("push")
        assert path.stat().st_size in synced
    synced.clear()
    log.head()  # somebody else's last entry, who may have been killed before he could see to it
    assert path.stat().st_size in synced


WRITER = """
import os, sys, time
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedbone.custody.audit_log import AuditLog
from fedbone.encryption.signing import SigningKey
path, who, count, torn = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "torn"
key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
log, real, told = AuditLog(path, key, who, 5), os.write, os.dup(1)
if torn:  # a few bytes at a time, as a disk may write them: a kill then falls into a line
    os.write = lambda handle, data: time.sleep(1e-4) or real(handle, data[:9])
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    entry = log.append("push", run=who, round=i)
    real(told, b"%d %d\\n" % (entry["n"], i))
"""


def writer(path: Path, who: str, count: int, kind: str = "whole") -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), who, str(count), kind]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def killed_again_and_again(path: Path, kills: int, seed: int) -> int:
    """How many torn lines there were; checks after each kill that all that was reported is in the log."""
    rng, promised = random.Random(seed), {}
    for turn in range(kills):
        with writer(path, f"run-{turn}", 10**6, "torn") as process:
            process.stdin.write(b"\n")
            process.stdin.flush()
            time.sleep(rng.uniform(0.002, 0.05))
            process.send_signal(signal.SIGKILL)
            for line in process.stdout.read().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    n, i = map(int, line.split())
                    promised[n] = (f"run-{turn}", i)
        if not path.exists():
            continue
        entries = {entry["n"]: (entry["run"], entry["round"]) for entry in read_log(path)}
        assert promised.items() <= entries.items()
        if entries:
            assert verify_log(path, KEY.public).entries == len(entries)
    AuditLog(path, KEY, "server").append("stop")
    assert verify_log(path, KEY.public).torn_bytes == 0
    assert promised
    return sum(entry["event"] == "recovered" for entry in read_log(path))


@posix
def test_kills_in_the_middle_of_writing_lose_nothing_that_was_reported(path):
    assert killed_again_and_again(path, kills=8, seed=0) > 0


@posix
@pytest.mark.slow
def test_many_kills_in_the_middle_of_writing(path):
    assert killed_again_and_again(path, kills=60, seed=1) > 10


def test_several_processes_and_threads_write_one_chain(path):
    from threading import Thread

    processes = [writer(path, f"writer-{i}", 40) for i in range(3)]
    log = AuditLog(path, KEY, "here", 5)

    def append(name: str) -> None:
        for i in range(20):
            log.append("push", run=name, round=i)
            log.head()

    threads = [Thread(target=append, args=(f"thread-{i}",)) for i in range(2)]
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert verify_log(path, KEY.public).torn_bytes == 0
    rounds: dict[str, list[int]] = {}
    for entry in read_log(path):
        if entry["event"] == "push":
            rounds.setdefault(entry["run"], []).append(entry["round"])
    expected = {f"writer-{i}": list(range(40)) for i in range(3)} | {f"thread-{i}": list(range(20)) for i in range(2)}
    assert rounds == expected


# the file


@pytest.mark.parametrize("left", [None, b""], ids=["gone", "emptied"])
def test_a_log_that_is_gone_is_missed_and_never_begun_again_in_silence(path, left):
    log = AuditLog(path, KEY, "server")
    log.append("start")
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    for call in (lambda: log.append("start"), log.sign_head, log.head):
        with pytest.raises(UserError, match="is gone, and there was one"):
            call()
    assert not path.exists() or not path.read_bytes()
    path.with_name("audit.jsonl.lock").unlink()
    log.append("start")
    assert verify_log(path, KEY.public).entries == 2


def test_a_log_of_another_key_is_not_continued(path):
    before = b"".join(written(path))
    with pytest.raises(UserError, match="begun with the key"):
        AuditLog(path, SigningKey.create(), "server").append("start")
    assert path.read_bytes() == before


FIRST_LINES = [{"every": 0}, {"every": 1}, {"every": None}, {"key": None}, {"log": None}]


@pytest.mark.parametrize("change", FIRST_LINES, ids=str)
def test_a_log_with_another_first_line_is_not_continued(path, lines, change):
    first = {
        name: value for name, value in {**json.loads(lines[0]), **change}.items() if change.get(name, 1) is not None
    }
    path.parent.mkdir()
    path.write_bytes(canonical(first) + lines[1])
    with pytest.raises(UserError, match="first or last line"):
        AuditLog(path, KEY, "server").append("start")


@pytest.mark.parametrize("last", [b"{}\n", b"\n", bytes(300) + b"\n"], ids=["no entry", "nothing", "zeros"])
def test_a_log_with_a_damaged_last_line_is_not_continued(path, lines, last):
    path.parent.mkdir()
    path.write_bytes(b"".join(lines) + last)
    for call in (lambda: AuditLog(path, KEY, "server").append("start"), AuditLog(path, KEY, "server").head):
        with pytest.raises(UserError, match="first or last line"):
            call()
    assert path.read_bytes() == b"".join(lines) + last


def test_a_link_leads_to_one_log_not_to_two(path, tmp_path):
    AuditLog(path, KEY, "server").append("start")
    link = tmp_path / "link.jsonl"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("this system lets nobody make links")
    AuditLog(link, KEY, "server").append("stop")
    assert link.is_symlink()
    assert verify_log(path, KEY.public).entries == verify_log(link, KEY.public).entries == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a folder", "link.jsonl"]


def test_no_torch_and_a_light_command_line():
    """The command line is read before the environment is there: it may need no package."""
    code = "import {}, sys; print(sorted({{'torch', 'numpy', 'cryptography', 'tqdm'}} & set(sys.modules)))"
    for name, heavy in (("fedbone.custody.audit_log", "['cryptography']"), ("fedbone.custody.audit_command", "[]")):
        command = [sys.executable, "-c", code.format(name)]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == heavy


# the command


@pytest.fixture
def kit(path) -> Path:
    written(path)
    path.with_name("audit.pub").write_text(KEY.public.hex() + "\n")
    return path


def test_verify_says_what_it_found(kit, capsys, tmp_path):
    assert shell.main(["audit", "verify", str(kit)]) == 0
    out = capsys.readouterr().out
    assert "intact, 24 entries" in out
    assert "key came from beside the log" in out
    AuditLog(kit, KEY, "server").append("stop")
    kit.with_name("audit.pub").rename(tmp_path / "elsewhere.pub")
    assert shell.main(["audit", "verify", str(kit), "--key", str(tmp_path / "elsewhere.pub")]) == 0
    out = capsys.readouterr().out
    assert "signed the last 1 yet" in out
    assert "beside" not in out
    kit.write_bytes(kit.read_bytes()[:-9])
    assert shell.main(["audit", "verify", str(kit), "--key", str(tmp_path / "elsewhere.pub")]) == 1
    out = capsys.readouterr().out
    assert re.search(r"the last line is torn: \d+ bytes \(a kill", out)
    assert "ALTERED" not in out
    kit.write_bytes(kit.read_bytes().replace(b"login", b"logon", 1))
    assert shell.main(["audit", "verify", str(kit), "--key", str(tmp_path / "elsewhere.pub")]) == 1
    assert re.search(r"ALTERED: .*line 2: it was altered", capsys.readouterr().out)


def test_verify_asks_other_parties_logs(kit, capsys, tmp_path):
    witness = AuditLog(tmp_path / "h.jsonl", SigningKey.create(), "hospital_a")
    witness.append("start")
    arguments = ["audit", "verify", str(kit), "--witness", str(witness.path)]
    assert shell.main(arguments) == 0
    assert "have noted no head" in capsys.readouterr().out
    n, sha256 = AuditLog(kit, KEY, "server").head()
    witness.append("pull", head_n=n, head_sha256=sha256)
    assert shell.main(arguments) == 0
    assert "noted: 1, the newest in line 24" in capsys.readouterr().out
    kit.write_bytes(b"".join(kit.read_bytes().splitlines(keepends=True)[:15]))
    assert shell.main(["audit", "verify", str(kit)]) == 0
    assert shell.main(arguments) == 1
    assert "line 16: it is missing" in capsys.readouterr().out
    witness.path.write_bytes(witness.path.read_bytes().replace(b"start", b"stort"))
    assert shell.main(arguments) == 2
    assert "h.jsonl, line 2" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["verify", "show"])
def test_what_cannot_be_checked(kit, capsys, tmp_path, action):
    assert shell.main(["audit", action, str(tmp_path / "none")]) == (2)
    kit.with_name("audit.pub").write_text("ab\n")
    if action == "verify":
        for name in ("audit.pub", "none.pub"):
            assert shell.main(["audit", action, str(kit), "--key", str(kit.with_name(name))]) == 2
            assert "public key" in capsys.readouterr().err
    kit.with_name("audit.pub").write_text(KEY.public.hex())
    kit.write_bytes(b"a film\n")
    assert shell.main(["audit", action, str(kit)]) == 2
    assert "not an audit log" in capsys.readouterr().err


def test_show_prints_a_line_an_entry(kit, capsys):
    log = AuditLog(kit, KEY, "server")
    log.append("refusal", run="run-2", round=1, model=MODEL, outcome="refused", site="hospital_b", detail="too late")
    assert shell.main(["audit", "show", str(kit)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 26
    assert out[0].split() == "line time (UTC) event who run round model outcome".split()
    last = out[-1].split()
    assert last[:1] + last[3:] == (
        ["25", "refusal", "server", "run-2", "1", MODEL[:12], "refused", "detail=too", "late", "site=hospital_b"]
    )
    assert shell.main(["audit", "show", str(kit), "--last", "3"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["line", "23", "24", "25"]
    assert shell.main(["audit", "show", str(kit), "--run", "run-2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert shell.main(["audit", "show", str(kit), "--event", "push", "--last", "2"]) == 0
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[1:]] == ["push", "push"]


@posix
def test_show_may_be_cut_short_by_who_reads_it(kit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        for _ in range(700):  # more than a pipe holds
            AuditLog(kit, KEY, "server").append("push", run="x" * 200)
    command = [sys.executable, "-m", "fedbone", "audit", "show", str(kit)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"line")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_show_warns_and_still_shows(kit, capsys):
    kit.write_bytes(kit.read_bytes().replace(b"login", b"logon", 1) + b"\x1b[2J")
    assert shell.main(["audit", "show", str(kit)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("WARNING: this log does not verify.\nALTERED: ")
    assert "logon" in out
    assert "not an entry of a log" in out
    assert "\x1b" not in out
    kit.with_name("audit.pub").unlink()
    assert shell.main(["audit", "show", str(kit)]) == 1
    assert "public key cannot be read" in capsys.readouterr().out


def test_a_long_check_shows_a_bar(kit, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(audit_file, "TELL_EVERY", 1)
    monkeypatch.setattr("fedbone.custody.audit_command.QUIET_S", 3600)
    shell.main(["audit", "verify", str(kit)])
    assert "verifying" not in capsys.readouterr().err
    monkeypatch.setattr("fedbone.custody.audit_command.QUIET_S", -1)
    shell.main(["audit", "verify", str(kit)])
    assert "verifying" in capsys.readouterr().err
