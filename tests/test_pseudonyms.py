"""The key: what follows from it, and that its file is kept from others."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbone.errors import UserError
from fedbone.imaging.pseudonyms import Key, open_key

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)


@given(names, names)
def test_uids_are_valid_and_one_for_one(first: str, second: str) -> None:
    new = KEY.uid(first)
    assert new.is_valid
    assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", new)
    assert (KEY.uid(second) == new) == (first == second)
    assert OTHER.uid(first) != new


@given(names)
def test_pseudonyms_fit_every_text_and_depend_on_the_key(name: str) -> None:
    if not name.strip():
        assert KEY.pseudonym(name) == ""
        return
    assert re.fullmatch(r"P[0-9A-F]{15}", KEY.pseudonym(name))  # 16 characters fit SH, the shortest
    assert KEY.pseudonym(f" {name} ") == KEY.pseudonym(name) != OTHER.pseudonym(name)


def test_shifts_use_the_whole_range_evenly() -> None:
    days = [KEY.days(f"patient {number}") for number in range(5000)]
    assert min(days) >= 1
    assert max(days) <= 3650
    for low in range(0, 3650, 365):  # 500 expected in each tenth, standard deviation 21
        assert 390 < sum(low < day <= low + 365 for day in days) < 610


def test_a_new_key_file_is_secret_and_used_again(tmp_path: Path) -> None:
    first = open_key(tmp_path / "key")
    assert open_key(tmp_path / "key").uid("1.2") == first.uid("1.2")
    assert open_key(tmp_path / "second").uid("1.2") != first.uid("1.2")
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_key_is_not_shown() -> None:
    shown = f"{KEY!r} {KEY} {KEY.check}"
    assert bytes(range(32)).hex() not in shown
    assert str(bytes(range(32))) not in shown


@pytest.mark.parametrize("text", ["", "secret", "ab" * 31, "ab" * 33, "xy" * 32, "ä"])
def test_what_is_no_key_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(UserError, match="64 hexadecimal digits") as stop:
        open_key(path)
    assert not text or text not in str(stop.value)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    open_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        open_key(tmp_path / "key")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        open_key(tmp_path / "none" / "key")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_secrets_have_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Key(bytes(size))
