"""Nothing runs without an officer's consent in force, and every way around it that is not the account itself fails."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.custody import consent
from fedbone.custody.consent import WITHDRAWN, Manifest, require_consent
from fedbone.encryption.signing import SigningKey
from fedbone.errors import UserError
from fedbone.files import write_json

FILMS, OTHER_FILMS = "ab" * 32, "cd" * 32
START, END = datetime(2026, 3, 1, tzinfo=UTC), datetime(2027, 3, 1, tzinfo=UTC)
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
GIVEN = Manifest(
    hospital="hospital_a",
    dataset_sha256=FILMS,
    purpose="training a keypoint model of hips",
    runs=("pilot", "second"),
    legal_basis="decision 12/2026 of the ethics board",
    officer="data protection officer",
    valid_from=START,
    valid_until=END,
    serial=3,
)


@pytest.fixture(scope="module")
def officer():
    return SigningKey.create()


@pytest.fixture
def path(tmp_path, officer):
    return GIVEN.sign(tmp_path / "kit" / "consent.json", officer)


def asked(path, officer, *, hospital="hospital_a", run="pilot", films=FILMS, now=NOW):
    return require_consent(path, officer.public, hospital, run, films, now)


def refused(path, officer, match, **question):
    with pytest.raises(UserError, match=match) as error:
        asked(path, officer, **question)
    return error.value


def test_what_was_signed_comes_back(path, officer):
    assert asked(path, officer) == GIVEN
    assert asked(path, officer, run="second") == GIVEN
    everything = replace(GIVEN, runs=("*",), serial=4)
    assert asked(everything.sign(path, officer), officer, run="any other run") == everything


def test_the_signature_is_over_every_field_but_itself(path, officer):
    """By the package cryptography, from the file alone."""
    content = json.loads(path.read_text())
    signature = bytes.fromhex(content.pop("signature"))
    message = json.dumps(content, sort_keys=True).encode()
    purpose = b"fedbone consent to the use of a data set, version 1"
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(content["officer_key"]))
    public.verify(signature, len(purpose).to_bytes(2, "big") + purpose + message)
    names = set(Manifest.__dataclass_fields__)
    assert content.keys() == names | {"officer_key"}


@pytest.mark.parametrize(
    ("question", "match"),
    [
        ({"hospital": "hospital_b"}, "consent of 'hospital_a', and 'hospital_b' asks"),
        ({"films": OTHER_FILMS}, "covers other films .*abababababab.*found cdcdcdcdcdcd"),
        ({"run": "third"}, "does not cover the run 'third', only pilot, second"),
        ({"run": "*"}, "does not cover the run"),
        ({"run": "pilo"}, "does not cover the run"),
        ({"now": START - timedelta(microseconds=1)}, "not valid yet"),
        ({"now": END}, "it expired"),
        ({"now": END + timedelta(days=400)}, "it expired"),
    ],
    ids=["hospital", "films", "run", "star", "part of a name", "early", "end", "late"],
)
def test_what_it_does_not_cover_is_refused(path, officer, question, match):
    error = refused(path, officer, match, **question)
    assert error.where == str(path)


def test_the_edges_of_its_time(path, officer):
    asked(path, officer, now=START)
    asked(path, officer, now=END - timedelta(microseconds=1))


def test_every_message_is_its_own(path, officer, tmp_path):
    messages = set()
    for question in (
        {"hospital": "b"},
        {"films": OTHER_FILMS},
        {"run": "x"},
        {"now": START - timedelta(1)},
        {"now": END},
    ):
        messages.add(refused(path, officer, ".", **question).problem.split()[:5].__str__())
    messages.add(str(refused(tmp_path / "none.json", officer, "there is no consent manifest").problem))
    assert len(messages) == 6


# edited, exchanged, unreadable


@pytest.mark.parametrize("field", sorted({*Manifest.__dataclass_fields__, "signature"}))
def test_every_edited_field_is_noticed(path, officer, field):
    content = json.loads(path.read_text())
    changes = {"runs": ["*"], "serial": 9, "valid_until": "2099-01-01T00:00:00+00:00", "signature": "00" * 64}
    write_json(path, content | {field: changes.get(field, content[field] if field == "runs" else "hospital_b")})
    refused(path, officer, "changed after it was signed", hospital="hospital_b")


@pytest.mark.parametrize("value", ["", "zz", None, 7, "00" * 63], ids=str)
def test_a_signature_that_is_none(path, officer, value):
    write_json(path, json.loads(path.read_text()) | {"signature": value})
    refused(path, officer, "changed after it was signed")


def test_an_added_field_is_noticed(path, officer):
    write_json(path, json.loads(path.read_text()) | {"note": "also for research"})
    refused(path, officer, "changed after it was signed")


def test_somebody_elses_signature(path, officer):
    stranger = SigningKey.create()
    replace(GIVEN, serial=9).sign(path, stranger)
    refused(path, officer, "signed with another key")
    content = json.loads(path.read_text()) | {"officer_key": officer.public.hex()}
    write_json(path, content)
    refused(path, officer, "changed after it was signed")


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33)], ids=["none", "short", "long"])
def test_a_public_key_that_is_none(path, public):
    with pytest.raises(UserError, match="signed with another key"):
        require_consent(path, public, "hospital_a", "pilot", FILMS, NOW)


def test_a_signature_for_another_purpose_does_not_hold(path, officer):
    content = json.loads(path.read_text())
    message = consent._signed(content)
    write_json(path, content | {"signature": officer.sign("fedbone audit head", message).hex()})
    refused(path, officer, "changed after it was signed")


def test_nothing_is_remembered_before_the_signature_holds(path, officer):
    replace(GIVEN, serial=9).sign(path, SigningKey.create())
    refused(path, officer, "another key")
    assert not (path.parent / "consent_seen").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "binary", "deep"])
def test_a_file_that_is_not_json(path, officer, content):
    path.write_bytes(content)
    refused(path, officer, "is not JSON")


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b"{}", b'{"signature": ""}'], ids=["list", "null", "empty", "half"]
)
def test_json_that_is_no_manifest(path, officer, content):
    path.write_bytes(content)
    refused(path, officer, "fields are missing")


def test_no_file_and_a_folder_instead(tmp_path, officer):
    refused(tmp_path / "consent.json", officer, "there is no consent manifest")
    (tmp_path / "consent.json").mkdir()
    refused(tmp_path / "consent.json", officer, "cannot be read")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"state": "maybe"}, "no manifest: state is missing or of the wrong form"),
        ({"serial": True}, "serial is missing or of the wrong form"),
        ({"valid_until": "tomorrow"}, "no manifest: other fields or forms"),
        ({"valid_until": 7}, "no manifest: other fields or forms"),
        ({"runs": None}, "no manifest: other fields or forms"),
        ({"more": 1}, "no manifest: other fields or forms"),
    ],
    ids=["state", "serial", "time", "number", "runs", "more"],
)
def test_what_the_officer_signed_by_other_means_is_checked_too(path, officer, change, match):
    content = json.loads(path.read_text()) | change
    content["signature"] = officer.sign(consent.PURPOSE, consent._signed(content)).hex()
    write_json(path, content)
    refused(path, officer, match)


# withdrawn, and put back


def test_a_withdrawal_holds_and_an_older_manifest_cannot_be_put_back(path, officer):
    old = path.read_bytes()
    asked(path, officer)
    replace(GIVEN, serial=4, state=WITHDRAWN).sign(path, officer)
    assert "serial 4" in refused(path, officer, "has withdrawn this consent").problem
    path.write_bytes(old)
    refused(path, officer, "serial number 3, and 4 was seen here already: an older manifest was put back")
    path.unlink()
    refused(path, officer, "there is no consent manifest")
    renewed = replace(GIVEN, serial=5)
    assert asked(renewed.sign(path, officer), officer) == renewed


def test_a_manifest_that_was_seen_but_refused_for_its_run_still_ends_the_older_one(path, officer):
    old = path.read_bytes()
    replace(GIVEN, serial=4, runs=("pilot",)).sign(path, officer)
    refused(path, officer, "does not cover the run 'second'", run="second")
    path.write_bytes(old)
    refused(path, officer, "an older manifest was put back", run="second")


def test_two_manifests_of_one_serial_number(path, officer):
    asked(path, officer)
    replace(GIVEN, runs=("*",)).sign(path, officer)
    refused(path, officer, "another manifest with the same serial number 3", run="other")
    assert asked(GIVEN.sign(path, officer), officer) == GIVEN


def test_serial_numbers_are_compared_as_numbers(path, officer):
    asked(replace(GIVEN, serial=9).sign(path, officer), officer)
    asked(replace(GIVEN, serial=10).sign(path, officer), officer)
    refused(replace(GIVEN, serial=9).sign(path, officer), officer, "an older manifest was put back")


def test_another_hospitals_manifest_does_not_use_up_serial_numbers(path, officer):
    """One officer may serve several hospitals, and a file may be copied to the wrong kit."""
    replace(GIVEN, hospital="hospital_b", serial=50).sign(path, officer)
    refused(path, officer, "consent of 'hospital_b'")
    assert asked(GIVEN.sign(path, officer), officer) == GIVEN


def test_a_new_officers_key_does_not_start_the_numbers_again(path, officer):
    asked(path, officer)
    successor = SigningKey.create()
    refused(replace(GIVEN, serial=1).sign(path, successor), successor, "an older manifest was put back")


def test_other_files_in_the_memory_do_no_harm(path, officer):
    asked(path, officer)
    for name in (".DS_Store", "9-", "x-y-z", f"99-{'g' * 64}"):
        (path.parent / "consent_seen" / name).touch()
    assert asked(path, officer) == GIVEN


def test_what_is_remembered_survives_a_power_failure(path, officer, monkeypatch):
    synced = []
    monkeypatch.setattr(consent, "sync_folder", lambda folder: synced.append([p.name[:2] for p in folder.iterdir()]))
    asked(path, officer)
    assert synced == [["3-"]]


def test_a_memory_that_cannot_be_written_refuses(path, officer):
    (path.parent / "consent_seen").touch()
    refused(path, officer, "cannot be remembered")


@pytest.mark.skipif(os.name == "nt", reason="POSIX only")
def test_the_memory_is_private(path, officer):
    asked(path, officer)
    assert (path.parent / "consent_seen").stat().st_mode & 0o777 == 0o700


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_only_manifests_that_are_not_older_than_any_before_pass(tmp_path_factory, serials):
    folder, key = tmp_path_factory.mktemp("kit"), SigningKey.create()
    newest = 0
    for serial in serials:
        path = replace(GIVEN, serial=serial).sign(folder / "consent.json", key)
        if serial >= newest:
            assert asked(path, key).serial == serial
            newest = serial
        else:
            refused(path, key, "put back")


# fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hospital", "Hospital A"),
        ("hospital", "hospital_a\n"),
        ("hospital", ""),
        ("dataset_sha256", "AB" * 32),
        ("dataset_sha256", "ab" * 31),
        ("dataset_sha256", None),
        ("purpose", " "),
        ("legal_basis", ""),
        ("officer", None),
        ("runs", ()),
        ("runs", ["pilot"]),
        ("runs", ("pilot", "")),
        ("runs", (1,)),
        ("runs", "pilot"),
        ("valid_from", datetime(2026, 3, 1)),
        ("valid_from", "2026-03-01"),
        ("valid_until", datetime(2027, 3, 1, tzinfo=timezone(timedelta(hours=8)))),
        ("serial", 0),
        ("serial", True),
        ("serial", "3"),
        ("state", "Granted"),
    ],
    ids=lambda value: str(value)[:20].strip(),
)
def test_a_manifest_says_something_in_every_field(field, value):
    with pytest.raises(UserError, match=f"{field}.*missing or of the wrong form"):
        replace(GIVEN, **{field: value})


@pytest.mark.parametrize("until", [START, START - timedelta(1)], ids=["same", "before"])
def test_a_manifest_ends_after_it_begins(until):
    with pytest.raises(UserError, match="ends before it begins"):
        replace(GIVEN, valid_until=until)


@pytest.mark.parametrize(
    "now", [datetime(2026, 6, 1), NOW.astimezone(timezone(timedelta(hours=8)))], ids=["no", "east"]
)
def test_the_time_asked_about_is_utc(path, officer, now):
    with pytest.raises(ValueError, match="UTC"):
        asked(path, officer, now=now)
