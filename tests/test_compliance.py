"""Nothing counts as proved that no probe has proved, and the report shows all of it, harmlessly and anywhere."""

import json
import logging
import re
import time
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest

from fedbone.custody.compliance import FAILED, HUMAN, LIMITS, PROVED, Check, Evidence, Result, run_checks, write_report
from fedbone.errors import UserError

TRIED = Check("a-1", "Is it sealed?", ("Law 1",), "The officer decides.", "sealed", "All files are sealed.")
OTHER = Check("a-2", "Is it private?", ("Law 2", "Law 3"), "The lead decides.", "private", "No other account reads it.")
ASKED = Check("b-1", "Who is responsible?", ("Law 4",), "Counsel decides.")
CHECKS = (TRIED, OTHER, ASKED)
SECRET = "c2VjcmV0LWtleQ"
ABOUT = {"deployment": "fedbone-12ab", "run": "pilot"}


def good() -> Evidence:
    return Evidence("3 files were examined.", {"files": 3})


def raising(error):
    def probe():
        raise error

    return probe


def status_of(probe) -> tuple[str, str]:
    result = run_checks([TRIED], {"sealed": probe})[0]
    return result.status, result.text


def test_each_check_has_a_result_in_its_order():
    results = run_checks(CHECKS, {"sealed": good, "private": raising(UserError("key", "others may read it", "chmod"))})
    assert [(r.check.id, r.status) for r in results] == [("a-1", PROVED), ("a-2", FAILED), ("b-1", HUMAN)]
    assert results[0].details == {"files": 3}
    assert results[1].text == "key: others may read it. chmod"
    assert results[2].text == "No program can decide this."


def test_a_probe_that_is_not_given_needs_a_human_and_says_so():
    results = run_checks(CHECKS, {})
    assert {r.status for r in results} == {HUMAN}
    assert results[0].text == "The probe sealed was not run: this deployment did not supply it."


@pytest.mark.parametrize(
    "returned",
    [None, True, "fine", {"files": 3}, (), Evidence(""), Evidence],
    ids=["None", "True", "text", "dict", "tuple", "no text", "class"],
)
def test_a_probe_that_returns_no_evidence_has_proved_nothing(returned):
    status, text = status_of(lambda: returned)
    assert status == FAILED
    assert "no evidence" in text


@pytest.mark.parametrize("error", [ValueError, KeyError, OSError, AssertionError, ZeroDivisionError, ExceptionGroup])
def test_any_error_of_a_probe_is_a_failure_and_its_message_is_not_shown(error):
    raised = error(SECRET, [ValueError(SECRET)]) if error is ExceptionGroup else error(SECRET)
    status, text = status_of(raising(raised))
    assert (status, SECRET in text) == (FAILED, False)
    assert re.fullmatch(rf"The probe broke off: {error.__name__} in test_compliance.py, \d+", text)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_check_stops_it(error):
    with pytest.raises(error):
        status_of(raising(error()))


def test_what_a_probe_could_not_decide_needs_a_human():
    status, text = status_of(lambda: Evidence("No noise was added.", undecided="Is that acceptable?"))
    assert (status, text) == (HUMAN, "No noise was added. Is that acceptable?")


def test_a_probe_behind_two_checks_runs_once():
    calls = []
    twice = (TRIED, Check("a-3", "And again?", ("Law",), "Somebody.", "sealed"))
    results = run_checks(twice, {"sealed": lambda: calls.append(1) or good()})
    assert ([r.status for r in results], calls) == ([PROVED, PROVED], [1])


def test_probes_run_in_the_order_of_the_checks():
    calls = []
    probes = {name: lambda name=name: calls.append(name) or good() for name in ("private", "sealed")}
    run_checks(CHECKS, probes)
    assert calls == ["sealed", "private"]


def test_a_probe_with_a_wrong_name_is_refused_before_any_runs():
    calls = []
    with pytest.raises(ValueError, match="no check asks for these probes: seeled"):
        run_checks(CHECKS, {"sealed": lambda: calls.append(1), "seeled": good})
    assert not calls


def test_two_checks_with_one_id_are_refused():
    with pytest.raises(ValueError, match="same id"):
        run_checks([TRIED, TRIED], {})


def test_a_probe_named_by_no_text_does_not_answer_the_questions_for_people():
    with pytest.raises(ValueError, match="no check asks"):
        run_checks(CHECKS, {"": good})


# the report


class Page(HTMLParser):
    """Tags, attributes and text; raises when tags do not fit into each other."""

    EMPTY = ("meta", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)


def report(tmp_path, results, about=ABOUT) -> tuple[str, Page]:
    html = write_report(tmp_path / "out" / "report.html", results, about).read_text(encoding="utf-8")
    return html, Page(html)


def some_results(**texts) -> list[Result]:
    probes = {"sealed": lambda: Evidence(texts.get("text", "It held."), {texts.get("name", "files"): 3})}
    return run_checks(CHECKS, probes | {"private": raising(UserError("key", "others may read it", "chmod"))})


def test_the_report_shows_every_check_with_all_of_it(tmp_path):
    _, page = report(tmp_path, some_results())
    for check in CHECKS:
        for words in (check.id, check.question, check.decide, check.proves, *check.sources):
            assert words in page.text
    for words in ("It held.", "files: 3", "key: others may read it. chmod", "fedbone-12ab", "pilot", *LIMITS):
        assert words in page.text


def test_what_asks_for_work_comes_first_and_the_summary_counts(tmp_path):
    _, page = report(tmp_path, some_results())
    places = [page.text.index(title) for title in ("Failed (1)", "Needs a human (1)", "Proved (1)")]
    assert places == sorted(places)
    start = page.text.index("never a law.")
    assert re.sub(r"\s+", " ", page.text[start:]).startswith("never a law.1failed1needs a human1proved")


def test_a_status_without_checks_has_no_table(tmp_path):
    _, page = report(tmp_path, run_checks(CHECKS, {}))
    assert page.tags.count("table") == 1
    assert "0failed3needs a human0proved" in page.text


def test_the_limits_are_said_in_every_report(tmp_path):
    _, page = report(tmp_path, run_checks([TRIED], {"sealed": good}))
    for words in ("not compliance", "not legal advice", "not a medical device", "Only the machines named above"):
        assert words in page.text


@pytest.mark.parametrize("zone", [None, "Asia/Shanghai"])
def test_the_time_is_utc_and_now_wherever_the_machine_stands(tmp_path, monkeypatch, zone):
    if zone:
        if not hasattr(time, "tzset"):
            pytest.skip("this system has one zone for all processes")
        monkeypatch.setenv("TZ", zone)
        time.tzset()
    try:
        _, page = report(tmp_path, some_results())
    finally:
        monkeypatch.undo()
        if zone:
            time.tzset()
    found = re.search(r"Written (\S+ \S+) UTC", page.text).group(1)
    age = datetime.now(UTC) - datetime.fromisoformat(found).replace(tzinfo=UTC)
    assert timedelta(seconds=-1) <= age < timedelta(hours=1)


def test_the_page_loads_and_runs_nothing(tmp_path):
    html, page = report(tmp_path, some_results())
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(page.tags)
    assert not {"src", "href", "action", "onclick", "onload"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?://|url\(|@import", html)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><b>&lt;"


def test_nothing_that_is_shown_becomes_markup(tmp_path):
    texts = {"id": HOSTILE, "question": HOSTILE, "sources": (HOSTILE,), "decide": HOSTILE, "proves": HOSTILE}
    results = [Result(Check(**texts), status, HOSTILE, {HOSTILE: HOSTILE}) for status in (PROVED, FAILED, HUMAN)]
    html, page = report(tmp_path, results, {HOSTILE: HOSTILE})
    assert HOSTILE not in html
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("b") == 3, "the three of the summary"
    assert page.text.count(HOSTILE) == 3 * 8 + 2


def test_the_page_is_readable_on_paper_on_a_telephone_and_in_the_dark(tmp_path):
    html, page = report(tmp_path, some_results())
    assert ("content", "width=device-width, initial-scale=1") in page.attributes
    for words in ("prefers-color-scheme: dark", "@media print", "max-width: 48rem", "content: attr(data-title)"):
        assert words in html
    titles = [value for name, value in page.attributes if name == "data-title"]
    assert len(titles) == 4 * 3, "each cell says what it is where the head of the table is hidden"


def colours(html: str, theme: str) -> dict[str, str]:
    part = {"light": html, "dark": html[html.index("scheme: dark") :], "print": html[html.index("@media print") :]}[
        theme
    ]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})", part[: part.index("}")]))


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_every_word_has_enough_contrast(tmp_path, theme):
    palette = colours(report(tmp_path, some_results())[0], theme)
    for ink in ("text", "quiet", "failed", "human", "proved"):
        for paper in ("back", "card"):
            low, high = sorted(luminance(palette[name]) for name in (ink, paper))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{ink} on {paper}"


def test_no_results_no_report(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        write_report(tmp_path / "report.html", [], ABOUT)
    assert not list(tmp_path.iterdir())


def test_the_secret_of_a_broken_probe_is_nowhere(tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    html, _ = report(tmp_path, run_checks([TRIED], {"sealed": raising(RuntimeError(SECRET))}))
    assert SECRET not in html + caplog.text + json.dumps(capsys.readouterr())
