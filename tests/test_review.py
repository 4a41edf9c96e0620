"""What an owner reads is what would run: the digest changes with every byte of it, and the text hides nothing."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbone.engines import review
from fedbone.engines.review import LONGEST_LINE, Submission, read_submission, software
from fedbone.errors import UserError

SOFTWARE = {"python": "3.12.1", "fedbone": "0" * 64}
FILES = {
    "run.sh": b"exec python\n",
    "config.yaml": b"submitted_at: 10:00\n",
    "code/main.py": b"print('hello')\n",
    "code/tools/mean.py": b"def mean(a): ...\n",
    "code/inputs/task.json": b"{}",
}
CODE = ["run.sh", "code/main.py", "code/tools/mean.py"]


def job(files: dict[str, bytes] = FILES, software: dict[str, str] = SOFTWARE) -> Submission:
    return Submission("Hospital A", "001-job", "coordinator@example.org", dict(files), software)


def shown(text: str) -> str:
    return job({"code/main.py": text.encode()}).text("code/main.py")


paths = st.sampled_from([*FILES, "code/inputs/vector.b64", "code/inputs.py", "inputs/x", "code/config.yaml", "x"])
all_files = st.dictionaries(paths, st.binary(max_size=6), max_size=5)


@given(all_files, all_files)
def test_a_digest_is_for_one_set_of_files(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert (job(one).digest == job(other).digest) == (one == other)
    code = [{p: c for p, c in f.items() if p != "config.yaml" and p[:12] != "code/inputs/"} for f in (one, other)]
    assert (job(one).code_digest == job(other).code_digest) == (code[0] == code[1])


@pytest.mark.parametrize("path", FILES)
def test_the_digest_changes_with_every_byte_of_every_file(path: str) -> None:
    content = FILES[path]
    changed = [content[:i] + bytes([byte ^ 1]) + content[i + 1 :] for i, byte in enumerate(content)]
    changed += [content + b"\n", b"\n" + content, content[:-1], b"", content.replace(b"\n", b"\r\n") + b"\0"]
    digests = {job({**FILES, path: other}).digest for other in changed}
    assert job().digest not in digests
    assert len(digests) == len(set(changed))
    code = {job({**FILES, path: other}).code_digest for other in changed}
    assert (job().code_digest not in code) == (path in CODE)


def without(path: str) -> dict[str, bytes]:
    return {name: content for name, content in FILES.items() if name != path}


@pytest.mark.parametrize(
    "files",
    [
        {**FILES, "code/new.py": b""},
        without("code/tools/mean.py"),
        {**without("code/tools/mean.py"), "code/tools/Mean.py": FILES["code/tools/mean.py"]},
        {**without("code/tools/mean.py"), "code/mean.py": FILES["code/tools/mean.py"]},
        {**FILES, "code/main.py": FILES["code/tools/mean.py"], "code/tools/mean.py": FILES["code/main.py"]},
        {**FILES, "code/main.py": FILES["run.sh"] + FILES["code/main.py"], "run.sh": b""},
    ],
    ids=["added", "removed", "other capitals", "moved", "contents swapped", "content moved to the next file"],
)
def test_both_digests_change_with_the_files_there_are(files: dict[str, bytes]) -> None:
    assert job(files).digest != job().digest
    assert job(files).code_digest != job().code_digest


def test_the_order_of_files_changes_no_digest() -> None:
    backward = job(dict(reversed(FILES.items())), dict(reversed(SOFTWARE.items())))
    assert (backward.digest, backward.code_digest) == (job().digest, job().code_digest)


def test_the_digests_cover_the_software_and_not_who_sent_it() -> None:
    for name in SOFTWARE:
        other = job(software={**SOFTWARE, name: "other"})
        assert other.digest != job().digest
        assert other.code_digest != job().code_digest
    assert replace(job(), name="002-job").digest == job().digest


@pytest.mark.parametrize(
    "path", ["code/inputs.py", "code/inputs_/x.py", "inputs/x.py", "code/Inputs/x.py", "x/code/inputs/x.py"]
)
def test_only_the_folder_of_inputs_is_no_code(path: str) -> None:
    assert job({**FILES, path: b"1"}).code_digest != job({**FILES, path: b"2"}).code_digest


def written(folder: Path) -> Path:
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def read(folder: Path) -> Submission:
    return read_submission("Hospital A", "001-job", "coordinator@example.org", folder)


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    folder = written(tmp_path / "job")
    assert read(folder).files == FILES
    for path in (
        "code/.hidden.py",
        "code/syft.pub.yaml",
        "syft.pub.yaml",
        "code/outputs/left.json",
        "code/__pycache__/x.pyc",
    ):
        before = read(folder).digest
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(b"\x80 not UTF-8")
        assert read(folder).files[path] == b"\x80 not UTF-8"
        assert read(folder).digest != before


def test_a_folder_gives_the_digest_of_its_files(tmp_path: Path) -> None:
    submission = read(written(tmp_path / "job"))
    assert submission.software == software()
    assert submission.digest == job(software=software()).digest
    os.utime(tmp_path / "job" / "run.sh", (0, 0))
    assert read(tmp_path / "job").digest == submission.digest


def _link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "private.npz")


def _link_to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _broken_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "not there")


def _fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, _: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


def _device(path: Path, _: Path) -> None:
    try:
        os.mknod(path, 0o20600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("not run: only root can make a device")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="not run: this system has no such files")
@pytest.mark.parametrize("make", [_link, _link_to_folder, _broken_link, _fifo, _socket, _device])
def test_links_and_devices_are_refused_and_never_opened(tmp_path: Path, make) -> None:
    outside, folder = tmp_path / "outside", written(tmp_path / "job")
    outside.mkdir()
    (outside / "private.npz").write_bytes(b"private")
    make(folder / "code" / "x", outside)
    with pytest.raises(UserError, match=r"job 001-job: it holds a link or a device") as refused:
        read(folder)
    assert "private" not in str(refused.value)


def test_the_software_is_every_source_file_of_the_package(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "fedbone" / "engines"
    package.mkdir(parents=True)
    (package / "job_host.py").write_text("safe = True\n")
    monkeypatch.setattr(review, "REPOSITORY", tmp_path)
    seen = [software()["fedbone"]]
    for change in (
        lambda: (package / "job_host.py").write_text("safe = False\n"),
        lambda: (package / "empty.py").write_text(""),
        lambda: (package / "empty.py").rename(package / "another.py"),
        lambda: (package / "another.py").rename(tmp_path / "fedbone" / "another.py"),
        lambda: (package / "job_host.py").unlink(),
    ):
        change()
        seen.append(software()["fedbone"])
    assert len(set(seen)) == len(seen)
    (tmp_path / "fedbone" / "notes.txt").write_text("no code")
    assert software()["fedbone"] == seen[-1]


def test_the_software_is_what_is_installed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(review.sysconfig, "get_path", lambda kind: str(tmp_path))
    (tmp_path / "a-1.dist-info").mkdir()
    record = tmp_path / "a-1.dist-info" / "RECORD"
    seen = [software()["all packages"]]
    for lines in ("a.py,sha256=x,1\n", "a.py,sha256=y,1\n"):
        record.write_text(lines)
        seen.append(software()["all packages"])
    assert len(set(seen)) == 3


def test_the_software_names_what_a_job_meets() -> None:
    found = software()
    assert set(found) == {"python", "fedbone", "numpy", "safetensors", "syft", "torch", "os", "all packages"}
    assert re.fullmatch(r"[0-9a-f]{64}", found["fedbone"])
    assert found["syft"] == "0.10.0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("if user == 'аdmin':", r"if user == '\u0430dmin':"),  # a Cyrillic letter
        ("access = '\u202e⁦ # only admins⁩⁦'", r"access = '\u202e\u2066 # only admins\u2069\u2066'"),
        ("a\u200bb", r"a\u200bb"),
        ("größe = '\U0001f600'", r"gr\xf6\xdfe = '\U0001f600'"),
        ("a\u2028b\x85c", r"a\u2028b\x85c"),  # lines for some readers, none for Python
        ("a = 1 # \rsteal()", r"a = 1 # \rsteal()"),  # a new line for Python
        ("steal()\b\b\x1b[2K\x0c", r"steal()\x08\x08\x1b[2K\x0c"),
        ("if a:\n\treturn", "if a:\n    return"),
    ],
)
def test_text_shows_what_is_not_plain_ascii(text: str, expected: str) -> None:
    assert shown(text) == expected


@given(st.text(), st.binary(max_size=40))
def test_text_is_ascii_whatever_the_file(text: str, noise: bytes) -> None:
    for content in (text.encode("utf-8", "surrogatepass"), noise, noise + text.encode("utf-16", "surrogatepass")):
        result = job({"code/main.py": content}).text("code/main.py")
        assert result.isascii()
        assert all(line.isprintable() for line in result.split("\n"))
        assert len(result.split("\n")) == content.count(b"\n") + 1


def test_a_long_line_cannot_push_code_out_of_sight() -> None:
    line = "x = 1;" + " " * LONGEST_LINE + "steal()"
    result = shown(f"a = 1\n{line}\nb = 2")
    hidden = len(line) - LONGEST_LINE
    assert result.split("\n")[1].endswith(f"[{hidden} MORE CHARACTERS IN THIS LINE ARE NOT SHOWN]")
    assert max(map(len, result.split("\n"))) < LONGEST_LINE + 80
    assert shown("y" * LONGEST_LINE) == "y" * LONGEST_LINE


def test_the_first_job_is_shown_whole_and_its_inputs_by_size() -> None:
    lines = job({**FILES, "code/inputs/vector.b64": b"A" * 1234567}).diff(None).split("\n")
    assert {"+exec python", "+print('hello')", "+def mean(a): ..."} <= set(lines)
    assert "code/inputs/vector.b64: none -> 1,234,567 bytes" in lines
    assert not [line for line in lines if "AAA" in line or "submitted_at" in line]


def test_a_diff_shows_what_was_added_removed_and_changed() -> None:
    after = without("code/tools/mean.py")
    after |= {
        "code/main.py": b"print('hello')\nprint('films')\n",
        "code/new.py": b"steal()\n",
        "code/inputs/task.json": b"[1]",
    }
    lines = job(after).diff(job()).split("\n")
    for line in (
        "--- approved/code/main.py",
        "+++ submitted/code/main.py",
        " print('hello')",
        "+print('films')",
        "+steal()",
        "-def mean(a): ...",
        "code/inputs/task.json: 2 bytes -> 3 bytes",
    ):
        assert line in lines
    assert not [line for line in lines if "run.sh" in line]
    gone = job(without("code/inputs/task.json")).diff(job())
    assert gone == "code/inputs/task.json: 2 bytes -> none"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = '\\u0430'", "x = '\u0430'"),
        ("if a:\n\tb()", "if a:\n    b()"),
        ("y" * LONGEST_LINE + "hello()", "y" * LONGEST_LINE + "steal()"),
    ],
    ids=["a letter and its escape", "tabs", "the end of a long line"],
)
def test_a_diff_tells_of_a_change_that_looks_the_same(before: str, after: str) -> None:
    old, new = (job({"code/main.py": text.encode()}) for text in (before, after))
    assert old.text("code/main.py") == new.text("code/main.py")
    assert new.diff(old).startswith("code/main.py: changed where it is not shown")


def test_a_path_cannot_pretend_to_be_lines_of_a_diff() -> None:
    for path in ("code/x.py\n+++ submitted/run.sh", "code/inputs/x\r\u202e"):
        text = job({**FILES, path: b"1"}).diff(job())
        assert "\n+++ submitted/run.sh" not in text
        assert text.isascii()
        assert all(line.isprintable() for line in text.split("\n"))


def test_a_diff_names_a_change_of_software_and_is_empty_without_any() -> None:
    assert job().diff(job()) == ""
    later = job({**FILES, "config.yaml": b"submitted_at: 11:00\n"})
    assert later.diff(job()) == ""
    assert "3.12.1" in job(software={**SOFTWARE, "python": "3.13.0"}).diff(job())
    assert "3.13.0" in job(software={**SOFTWARE, "python": "3.13.0"}).diff(job())


@given(all_files, all_files)
def test_a_diff_is_empty_only_where_the_same_code_would_run(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    shown = job(one).diff(job(other))
    changed = {p for p in {*one, *other} if one.get(p) != other.get(p)} - {"config.yaml"}
    assert [path for path in changed if path not in shown] == []
    assert bool(shown) == bool(changed)
