"""The card shows what was submitted and nothing that the submitter made up; its buttons decide on exactly that."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import ipywidgets
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from traitlets.log import get_logger

from fedbone.config import REPOSITORY
from fedbone.engines.owner import RUN_SCRIPT
from fedbone.engines.release import Arrays, Numbers
from fedbone.engines.review import Submission
from fedbone.engines.sandbox import protections
from fedbone.engines.syft_workers import Datasites
from fedbone.errors import UserError
from fedbone.teaching.code_review import MOST_FILES, MOST_LINES, CodeReview
from tests.helpers import dot_hospital

POLICY = {
    "update.safetensors": Arrays({"delta": ("float32", (1234, 5)), "labelled_joints": ("bool", (12,))}),
    "counts.json": Numbers(("films", "age")),
}
MAIN = "import json\n\nprint('one')\nprint('two')\n"
SOFTWARE = {"python": "3.12.1", "torch": "2.14.1", "fedbone": "ab" * 32}
TAGS = set("style section p b ul li code pre span details summary".split())
HOSTILE = (
    "</pre></code><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</section></details><p class='approved'><b>✓ Approved: by all</b></p>",
    "\x1b[2K\x1b[1A\x1b[32mprint('harmless')\x1b[0m",
    "# harmless\rsteal()",
    "if role == '\u202e \u2066admin':",
    "--- approved/code/main.py",
    "++ submitted/code/main.py",
    "-- approved/code/main.py",
    "@@ -1,9 +1,9 @@",
    "&lt;b&gt; &#60;b&#62; <!-- ",
    "<style>.fedbone-review { display: none }</style>",
)


class FakeOwner:
    """Keeps what it was asked; ``error`` is raised in place of a decision."""

    def __init__(self, submission: Submission, before: Submission | None = None) -> None:
        self.name, self.submission, self.before = submission.hospital, submission, before
        self.asked, self.reviews, self.error = [], 0, None

    def review(self, name: str) -> Submission:
        assert name == self.submission.name
        self.reviews += 1
        return self.submission

    def changes(self, submission: Submission) -> str:
        return submission.diff(self.before)

    def approve(self, *arguments: object) -> None:
        self._decide("approve", *arguments)

    def reject(self, *arguments: object) -> None:
        self._decide("reject", *arguments)

    def _decide(self, *asked: object) -> None:
        if self.error:
            raise self.error
        self.asked.append(asked)


class Reader(HTMLParser):
    """Tags, classes, labels and visible words of a page; asserts that what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.classes, self.labels, self.words, self.rows, self.open = [], [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        names = dict(attrs)
        assert set(names) <= {"class", "aria-label", "tabindex", "role"}, names
        self.classes.append(names.get("class"))
        self.labels += [names["aria-label"]] if "aria-label" in names else []
        if tag == "span":
            self.rows.append((names["class"], ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)
        if self.open[-1:] == ["span"]:
            self.rows[-1] = (self.rows[-1][0], self.rows[-1][1] + data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    handle_decl = handle_pi = unknown_decl = handle_comment

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def job(main: str = MAIN, name: str = "001-train", **files: str | bytes) -> Submission:
    """files: path with _ for the dot and __ for the slash -> text."""
    own = {"run.sh": RUN_SCRIPT, "code/main.py": main, "config.yaml": "submitted_at: 2026-11-23T06:24:46Z\n"}
    own |= {path.replace("__", "/").replace("_", "."): content for path, content in files.items()}
    return job_of(own, name)


def job_of(files: dict[str, str | bytes], name: str = "001-train", sender: str = "coordinator@example.org"):
    encoded = {path: text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
               for path, text in files.items()}  # fmt: skip
    return Submission("Klinik Süd", name, sender, encoded, SOFTWARE)


def card(submission: Submission, before: Submission | None = None, repeats: int = 0) -> CodeReview:
    return CodeReview(FakeOwner(submission, before), submission.name, POLICY, repeats)


def read(review: CodeReview) -> Reader:
    return Reader(review.html())


def parts(review: CodeReview) -> tuple[ipywidgets.Text, ipywidgets.Button, ipywidgets.Button]:
    reason, buttons = review.widget.children[2].children
    return reason, *buttons.children


def live(review: CodeReview) -> str:
    """What a front end shows as text."""
    return Reader("".join(child.value for child in review.widget.children[:2])).text


def test_the_card_says_who_wants_what_and_what_may_leave():
    submission = job(code__inputs__task_json="{}", code__inputs__vector_b64="A" * 12_345)
    shown = read(card(submission, repeats=3)).text
    for words in (
        "Job 001-train at Klinik Süd", "Submitted by coordinator@example.org", f"Digest {submission.digest[:16]} (",
        "update.safetensors: the arrays delta (1,234 × 5 float32), labelled_joints (12 bool), all finite;",
        f"at most {POLICY['update.safetensors'].most_bytes:,} bytes",
        "counts.json: the numbers films, age, to six significant digits",
        "python 3.12.1, torch 2.14.1, fedbone abababababababab.", protections().statement(),
        "code/inputs/task.json (2 bytes)", "code/inputs/vector.b64 (12,345 bytes)", "also covers 3 later jobs",
        "Not decided yet",
    ):  # fmt: skip
        assert words in shown, words
    assert submission.digest[:17] not in shown
    assert "later jobs" not in read(card(submission)).text
    assert "nothing;" not in shown


def test_a_policy_that_lets_nothing_out_says_so():
    submission = job()
    shown = Reader(CodeReview(FakeOwner(submission), submission.name, {}).html())
    assert "nothing" in shown.words
    scalar = {"mean.safetensors": Arrays({"mean": ("float64", ())})}
    assert "mean (one float64)" in Reader(CodeReview(FakeOwner(submission), submission.name, scalar).html()).text


def test_without_an_earlier_approval_every_line_is_new():
    rows = read(card(job())).rows
    assert [row for row in rows if row[0] == "added"] == [("added", f"+{line}\n") for line in MAIN.split("\n")]
    assert not [row for row in rows if row[0] == "removed"]
    assert "code/main.py (a new file): lines added 5, removed 0" in read(card(job())).text


def test_only_what_changed_since_the_last_approval_is_marked_and_never_by_colour_alone():
    before, after = job(MAIN, code__old_py="gone"), job(MAIN.replace("two", "three"), code__inputs__x_json="{}")
    found = read(card(after, before))
    marked = [row for row in found.rows if row[0] in ("added", "removed")]
    changed = [("removed", "-print('two')\n"), ("added", "+print('three')\n"), ("removed", "-gone\n")]
    assert marked == changed
    assert ("same", " print('one')\n") in found.rows
    for words in ("code/main.py: lines added 1, removed 1", "code/inputs/x.json: none -> 2 bytes"):
        assert words in found.text
    assert "a new file" not in found.text


def test_the_same_job_again_differs_in_nothing():
    assert "Nothing: it is the same job." in read(card(job(), job())).text
    assert "Nothing: it is the same job." not in read(card(job())).text
    assert "Changes: none." in card(job(), job()).alt()
    hidden = read(card(job("#" * 500 + "evil()"), job("#" * 500 + "good()"))).text
    assert "Nothing: it is the same job." not in hidden
    assert "changed where it is not shown" in hidden


def test_the_complete_files_are_there_behind_a_fold():
    page = card(job(), job()).html()
    inside = page[page.index("<details>") : page.index("</section>")]
    assert Reader(inside).rows == [("same", f" {line}\n") for line in MAIN.split("\n")]
    assert "code/main.py, 5 lines" in inside


@pytest.mark.parametrize(("button", "asked"), [(1, "approve"), (2, "reject")])
def test_a_button_decides_on_what_is_shown_and_is_gone(button, asked):
    submission = job()
    owner = FakeOwner(submission)
    review = CodeReview(owner, submission.name, POLICY, 2)
    controls = parts(review)
    owner.submission = job("steal()\n")  # what is there by now is not what was read
    controls[0].value = "  copies <rows> & names "
    controls[button].click()
    reason = "copies <rows> & names"
    expected = ("approve", submission, reason, POLICY, 2) if asked == "approve" else ("reject", submission.name, reason)
    assert owner.asked == [expected]
    assert review.submission is submission
    if asked == "approve":
        assert owner.asked[0][1] is submission
    assert owner.reviews == 1
    told = {"approve": f"✓ Approved: {reason}", "reject": f"✕ Rejected: {reason}"}[asked]
    for shown in (live(review), read(review).text):
        assert told in shown
        assert "Not decided yet" not in shown
        assert "steal" not in shown
    assert [type(child) for child in review.widget.children] == [ipywidgets.HTML] * 2
    controls[3 - button].click()
    assert len(owner.asked) == 1
    assert told in live(review)
    assert "it is decided already" in live(review)


@pytest.mark.parametrize("approve", [True, False])
def test_a_cell_decides_as_a_button_does(approve):
    clicked, called = card(job()), card(job())
    reason, *buttons = parts(clicked)
    reason.value = "read by two"
    buttons[0 if approve else 1].click()
    called.decide(approve, "read by two")
    assert called.html() == clicked.html()
    assert called._owner.asked == clicked._owner.asked
    assert live(called) == live(clicked)


@pytest.mark.parametrize("reason", ["", "   ", "\n\t"])
def test_a_decision_needs_a_reason(reason):
    review = card(job())
    field, approve, reject = parts(review)
    field.value = reason
    for button in (approve, reject):
        button.click()
        assert "no reason is given" in live(review)
    with pytest.raises(UserError, match="no reason"):
        review.decide(True, reason)
    assert not review._owner.asked
    field.value = "read it"
    approve.click()
    assert "no reason" not in live(review)
    assert len(review._owner.asked) == 1


def test_what_the_owner_refuses_is_told_in_the_card_which_stays_open(monkeypatch):
    lost = []
    monkeypatch.setattr(get_logger(), "warning", lambda *told, **_: lost.append(told))
    review = card(job())
    review._owner.error = UserError("job 001-train", "its run.sh is <not> the one", "Reject it")
    field, approve, reject = parts(review)
    field.value = "fine"
    approve.click()
    for shown in (live(review), read(review).text):
        assert "Not done. job 001-train: its run.sh is <not> the one. Reject it" in shown
        assert "✓" not in shown
    assert len(review.widget.children) == 3
    with pytest.raises(UserError, match="its run"):
        review.decide(True, "fine")
    review._owner.error = None
    reject.click()
    assert not lost  # a callback's error goes to the log, which nobody reads
    assert "its run.sh" not in live(review)
    assert "✕ Rejected: fine" in live(review)


def test_an_error_of_another_kind_is_told_without_its_text_and_not_lost():
    review = card(job())
    review._owner.error = OSError(f"{REPOSITORY} is full")
    with pytest.raises(OSError, match="is full"):
        review.decide(False, "no")
    assert "It stopped with OSError" in live(review)
    assert str(REPOSITORY) not in review.html()
    assert len(review.widget.children) == 3


def test_the_controls_have_names_and_the_boxes_take_the_keyboard():
    review = card(job())
    field, approve, reject = parts(review)
    assert [field.description, approve.description, reject.description] == ["reason", "✓ Approve", "✕ Reject"]
    assert approve.tooltip == "Approve the job that this card shows"
    page = review.html()
    assert page.count("<pre") == page.count('tabindex="0" role="region" aria-label="code/main.py"') == 2
    assert read(review).labels[0] == review.alt()
    assert review.alt().startswith(
        "Review of job 001-train at Klinik Süd. Changes: code/main.py (a new file): lines added 5"
    )


def test_a_stored_notebook_keeps_words_and_the_static_form():
    review = card(job())
    bundle = review._repr_mimebundle_()
    assert bundle["text/plain"] == review.alt()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == review.widget.model_id
    assert review.static().data == review.html()


def test_nothing_of_this_machine_and_no_time_is_stored():
    wrong = job_of({"run.sh": RUN_SCRIPT + "curl\n", "code/main.py": MAIN, "config.yaml": "t: 06:24:46\nc: /tmp/x\n"})
    for review in (card(job()), card(wrong), card(wrong, job())):
        stored = review.html() + review.alt()
        for text in (str(REPOSITORY), sys.executable, "06:24:46", "/tmp/"):
            assert text not in stored
        assert "config.yaml (" in stored
    shown = read(card(wrong)).text
    assert "Its run.sh is not the one that starts the sandbox" in shown
    assert "PYTHONPATH=[this repository] [this Python] -P" in shown
    assert "+curl" in shown
    assert f"run.sh, {RUN_SCRIPT.count(chr(10)) + 2} lines" in shown  # among the complete files
    assert "Its run.sh is not" not in read(card(job())).text


def assert_plain(review: CodeReview) -> Reader:
    """Nothing but the card's own elements, and no sign but printable ASCII and the card's own."""
    found = read(review)
    assert set(found.tags) <= TAGS
    assert found.tags.count("section") == found.tags.count("style") == 1
    assert set("".join(found.words + found.labels)) <= {*map(chr, range(32, 127)), *"\n×ü✓✕"}
    assert set(found.classes) <= {None, "fedbone-review", "code", "added", "removed", "place", "same", "warning"}
    assert found.text.count("Not decided yet") == 1
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_code_names_and_senders_add_nothing_to_the_card(text):
    files = {
        "run.sh": RUN_SCRIPT,
        "code/main.py": f"{text}\nlast()",
        f"code/{text}.py": "x",
        f"code/inputs/{text}": "y",
    }
    review = card(job_of(files, name=text, sender=text), job(f"{text} old\nlast()"))
    found = assert_plain(review)
    assert ("added", f"+{shown_as(text)}\n") in found.rows
    assert ("removed", f"-{shown_as(text)} old\n") in found.rows
    assert ("same", " last()\n") in found.rows
    assert f"Job {shown_as(text)} at Klinik" in "".join(found.words)
    assert review.submission.files == job_of(files).files


def shown_as(text: str) -> str:
    """Printable ASCII stays, the rest as Python writes it in a string."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


@given(st.text(min_size=1, max_size=40), st.text(max_size=40), st.text(max_size=40))
@example("code/x\n+++ submitted/y\n@@ -1 +1,9 @@", "\n@@ -1,9 +1 @@\n-+-", "+++ submitted/code/main.py\n--- approved/b")
def test_no_text_of_a_job_becomes_an_element(path, old, new):
    before = job(old)
    after = job_of({"run.sh": RUN_SCRIPT, "code/main.py": new, path: old})
    review = card(after, before)
    assert_plain(review)
    again = card(job(new), job(old))
    signs = [row[1][0] for row in read(again).rows if row[0] in ("added", "removed")]
    old_lines, new_lines = (job(text).text("code/main.py").split("\n") for text in (old, new))
    assert signs.count("+") - signs.count("-") == len(new_lines) - len(old_lines)


def test_names_that_would_look_alike_stay_two_files():
    files = {"run.sh": RUN_SCRIPT, "code/a\nb.py": "first()", "code/a\\nb.py": "second()"}
    rows = read(card(job_of(files))).rows
    assert ("added", "+first()\n") in rows
    assert ("added", "+second()\n") in rows


def test_a_name_with_line_ends_adds_no_lines():
    name = "code/x\n+++ submitted/code/main.py\n@@ -0,0 +1 @@\n+harmless()"
    rows = read(card(job_of({"run.sh": RUN_SCRIPT, name: "steal()"}))).rows
    assert ("added", "+steal()\n") in rows
    assert "harmless" not in "".join(text for _, text in rows)
    same = job_of({"run.sh": RUN_SCRIPT, name: "steal()"})
    assert "Nothing: it is the same job." in read(card(same, same)).text


def test_a_line_that_looks_like_a_header_is_a_line():
    before = job("-- approved/code/other.py\nx = 1\n")
    after = job("++ submitted/code/other.py\nx = 1\n")
    found = read(card(after, before))
    assert ("removed", "--- approved/code/other.py\n") in found.rows
    assert ("added", "+++ submitted/code/other.py\n") in found.rows
    assert "code/main.py: lines added 1, removed 1" in found.text


def test_what_is_cut_is_counted():
    lines = [f"x{number} = 0" for number in range(10_000)]
    lines[3] = "y = '" + "a" * 1_000_000 + "'"
    review = card(job("\n".join(lines)))
    page, found = review.html(), assert_plain(review)
    assert len(page) < 300_000
    assert "x399" in page
    assert "x400" not in page
    assert "9,600 more lines of code/main.py are not shown here." in found.text  # complete file
    assert "9,601 more lines of code/main.py are not shown here." in found.text  # difference, with its line of places
    assert "999,606 MORE CHARACTERS IN THIS LINE ARE NOT SHOWN" in found.text
    assert "leaves out: whole files 0, lines 9,600, ends of long lines 1. An approval covers them" in found.text
    assert "leaves out" in live(review)
    assert "leaves out" not in read(card(job())).text
    full = read(card(job("\n".join(lines[4 : 4 + MOST_LINES])), job())).text
    assert "leaves out" not in full


def test_a_long_change_of_one_file_hides_no_other():
    after = job("a()\n" * 5000, code__z_py="steal()")
    found = read(card(after, job("b()\n" * 5000)))
    assert ("added", "+steal()\n") in found.rows
    assert "code/main.py: lines added 5,000, removed 5,000" in found.text


def test_many_files_are_counted_too():
    files = {f"code/{number:03d}.py": "x" for number in range(100)} | {f"code/inputs/{n:03d}": "" for n in range(100)}
    found = assert_plain(card(job_of({"run.sh": RUN_SCRIPT, **files})))
    assert found.tags.count("pre") == 2 * MOST_FILES
    assert "160 more changed files are not shown here." in found.text
    assert "leaves out: whole files 80, lines 0, ends of long lines 0." in found.text
    assert "81 more." in found.text  # inputs and run.sh, by size
    long = card(job_of({"run.sh": RUN_SCRIPT, f"code/{'n' * 4000}.py": "x"}, name="j" * 9000))
    assert "8,500 MORE CHARACTERS ARE NOT SHOWN" in read(long).text
    assert len(long.html()) < 20_000


@pytest.mark.parametrize(("line", "told"), [("x = 1;{}steal()", "x = 1; [300 BLANKS] steal()"), ("{}steal()", None)])
def test_blanks_cannot_push_code_out_of_sight(line, told):
    rows = read(card(job(line.format(" " * 300)))).rows
    assert ("added", f"+{told or ' [300 BLANKS] steal()'}\n") in rows
    assert ("added", f"+{' ' * 24}deep()\n") in read(card(job(" " * 24 + "deep()"))).rows


def test_bytes_that_are_no_text_are_shown_as_escapes():
    found = assert_plain(card(job_of({"run.sh": RUN_SCRIPT, "code/main.py": b"a\x80\xff\x00b"})))
    assert ("added", "+a\\x80\\xff\\x00b\n") in found.rows


def test_at_a_datasite_an_approval_holds_for_what_was_read_and_a_rejection_arrives():
    with Datasites([dot_hospital("Klinik A")]) as sites:
        owner, coordinator = sites.owners["Klinik A"], sites.coordinator
        names = [coordinator.submit("Klinik A", "count", {"main.py": text}) for text in ("good()\n", "bad()\n")]
        assert sorted(owner.receive()) == sorted(names)
        first, second = (CodeReview(owner, name, POLICY) for name in names)
        field, approve, _ = parts(first)
        field.value = "reads no names"
        approve.click()
        assert "✓ Approved: reads no names" in live(first)
        assert owner.changes(first.submission) == ""
        (owner.client.job_client.jobs[-1].job_submission_path / "code" / "main.py").write_text("steal()\n")
        with pytest.raises(UserError, match="nothing was run"):
            owner.run(names[0])
        second.decide(False, "copies rows")
        with pytest.raises(UserError, match="rejected the job: copies rows"):
            coordinator.collect("Klinik A", names[1])
        third = CodeReview(owner, names[1], POLICY)
        marked = [row for row in read(third).rows if row[0] in ("added", "removed")]
        assert marked == [("removed", "-good()\n"), ("added", "+bad()\n")]
        for review in (first, second, third):
            assert str(sites.path) not in review.html()
            assert not re.search(r"\d\d:\d\d", review.html())
        with pytest.raises(UserError, match="it is not at Klinik A"):
            CodeReview(owner, "009-none", POLICY)
