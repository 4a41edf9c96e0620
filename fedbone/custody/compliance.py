"""Questions of data-protection law as checks against a running deployment, and the report on them.

A check is proved where a probe tried the technical statement behind it and it held. A law is never proved here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from fedbone.errors import UserError
from fedbone.files import write_atomic

PROVED, FAILED, HUMAN = "proved", "failed", "needs a human"
MEANING = {  # in the order of the report: what asks for work comes first
    FAILED: "The probe found that the statement does not hold, or could not be carried out.",
    HUMAN: "No program can decide this, or the probe was not run. The last column says who decides what.",
    PROVED: "The probe tried the technical statement and it held, on this machine and at this time. "
    "Whether that is enough for the law named beside it is for the people in the last column.",
}
LIMITS = (
    "A list without a failure is not compliance: laws ask for much that no program can see, and apply or do not apply "
    "by facts that are not in this report.",
    "This is not legal advice. The articles are named in a few words so that counsel finds them; read the law itself, "
    "as it is today.",
    "A probe shows what happened when it was tried. It cannot show that no other way in exists, nor what will happen "
    "tomorrow: run the list again after every change.",
    "Only the machines named above were examined. Memory, backups, other accounts and other machines were not.",
    "The models are for teaching and research. They are not a medical device, and nothing here is a clinical result.",
)
STYLE = """
:root { color-scheme: light dark; --text: #1d2129; --back: #fff; --line: #c9cfd8; --quiet: #515b69; --card: #f5f7f9;
 --failed: #a3161f; --human: #7a4d00; --proved: #14633a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ee; --back: #14171c; --line: #3b434e; --quiet: #aab3c0;
 --card: #1c2128; --failed: #ff8f93; --human: #f2c063; --proved: #7fd6a2; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: var(--text);
 background: var(--back); overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; } p.quiet, .quiet { color: var(--quiet); } code { font-size: .9em; }
.summary { display: flex; flex-wrap: wrap; gap: .8rem; padding: 0; list-style: none; }
.summary li { flex: 1 1 9rem; border: 1px solid var(--line); border-top: 4px solid; border-radius: 4px;
 padding: .6rem .9rem; background: var(--card); }
.summary b { display: block; font-size: 1.8rem; line-height: 1.2; }
.failed { border-top-color: var(--failed) !important; } .failed b, h2.failed { color: var(--failed); }
.human { border-top-color: var(--human) !important; } .human b, h2.human { color: var(--human); }
.proved { border-top-color: var(--proved) !important; } .proved b, h2.proved { color: var(--proved); }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem; border-bottom: 1px solid var(--line); }
td ul, dd ul { margin: 0; padding-left: 1.1rem; } td p { margin: 0 0 .4rem; }
dl { display: grid; grid-template-columns: minmax(7rem, 14rem) 1fr; gap: .2rem 1rem; } dt { color: var(--quiet); }
dd { margin: 0; }
@media screen and (max-width: 48rem) { table, tbody, tr, td { display: block; } thead { display: none; }
 tr { border: 1px solid var(--line); border-radius: 4px; margin: 0 0 1rem; background: var(--card); }
 td:last-child { border-bottom: 0; } td::before { content: attr(data-title); display: block; color: var(--quiet);
 font-size: .85rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { :root { color-scheme: light; --text: #000; --back: #fff; --card: #fff; --quiet: #333; --line: #888;
 --failed: #a3161f; --human: #7a4d00; --proved: #14633a; } body { font-size: 10pt; max-width: none; margin: 0; }
 tr, .summary li { break-inside: avoid; } h2 { break-after: avoid; } }
"""
COLUMNS = ("Question", "What was tried and found", "Named in", "For people to decide")


@dataclass(frozen=True)
class Evidence:
    """What a probe tried and found, in one or two sentences, with the measured figures; nothing secret or personal.

    A probe returns it only when its statement holds, and raises UserError otherwise. ``undecided`` says what a person
    has to judge where the probe could measure and not decide; the check then needs a human.
    """

    text: str
    details: dict[str, str | int | float] = field(default_factory=dict)
    undecided: str = ""


@dataclass(frozen=True)
class Check:
    """One question, where the law asks it, what the probe proves, and what is left for whom; no probe: all of it is."""

    id: str
    question: str
    sources: tuple[str, ...]
    decide: str
    probe: str = ""
    proves: str = ""


@dataclass(frozen=True)
class Result:
    """One answered check; ``status`` is PROVED, FAILED or HUMAN."""

    check: Check
    status: str
    text: str
    details: dict[str, str | int | float] = field(default_factory=dict)


def run_checks(checks: Iterable[Check], probes: dict[str, Callable[[], Evidence]]) -> list[Result]:
    """Ask every probe once, in the order of ``checks``. A probe that raises has failed; one not given needs a human.

    Raises ValueError for a probe that no check asks for (a wrong name would silently leave its check out), and for two
    checks of one id.
    """
    checks = list(checks)
    unknown = set(probes) - {check.probe for check in checks if check.probe}
    if unknown:
        raise ValueError(f"no check asks for these probes: {', '.join(sorted(unknown))}")
    if len({check.id for check in checks}) < len(checks):
        raise ValueError("two checks have the same id")
    given = dict.fromkeys(check.probe for check in checks if check.probe in probes)
    answers = {name: _answer(probes[name]) for name in given}
    return [Result(check, *answers.get(check.probe, _without_probe(check))) for check in checks]


def _without_probe(check: Check) -> tuple[str, str]:
    if check.probe:
        return HUMAN, f"The probe {check.probe} was not run: this deployment did not supply it."
    return HUMAN, "No program can decide this."


def _answer(probe: Callable[[], Evidence]) -> tuple[str, str, dict]:
    """(status, text, details); only a whole Evidence counts as one."""
    try:
        evidence = probe()
    except UserError as error:
        return FAILED, str(error), {}
    except Exception as error:  # its message may quote anything; where it came from is enough to find it
        last = traceback.extract_tb(error.__traceback__)[-1]
        return FAILED, f"The probe broke off: {type(error).__name__} in {Path(last.filename).name}, {last.lineno}", {}
    if not isinstance(evidence, Evidence) or not evidence.text:
        return FAILED, f"The probe returned {type(evidence).__name__} without a text, and no evidence", {}
    if evidence.undecided:
        return HUMAN, f"{evidence.text} {evidence.undecided}", evidence.details
    return PROVED, evidence.text, evidence.details


def write_report(path: Path, results: list[Result], about: dict[str, str]) -> Path:
    """Write one HTML page that loads nothing: ``about`` says what was examined (deployment, machine, run, versions).

    Raises ValueError without results: an empty page would look like a good one.
    """
    if not results:
        raise ValueError("there are no results to report")
    time = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    body = "".join(
        (
            "<h1>Data-protection check of a deployment</h1>",
            f'<p class="quiet">Written {time}. Proved or failed is the technical statement, never a law.</p>',
            _summary(results),
            "<h2>What was examined</h2><dl>",
            *(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in about.items()),
            "</dl>",
            *(_section(status, [r for r in results if r.status == status]) for status in MEANING),
            "<h2>Limits</h2><ul>",
            *(f"<li>{escape(limit)}</li>" for limit in LIMITS),
            "</ul>",
        )
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"  # also should a text ever escape its escaping
    html = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Data-protection check</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )
    return write_atomic(Path(path), html.encode())


def _summary(results: list[Result]) -> str:
    counts = {status: sum(result.status == status for result in results) for status in MEANING}
    items = "".join(f'<li class="{_class(s)}"><b>{counts[s]}</b>{escape(s)}</li>' for s in MEANING)
    return f'<ul class="summary">{items}</ul>'


def _class(status: str) -> str:
    return status.split()[-1]


def _section(status: str, results: list[Result]) -> str:
    if not results:
        return ""
    head = "".join(f'<th scope="col">{title}</th>' for title in COLUMNS)
    rows = "".join(map(_row, results))
    title = f'<h2 class="{_class(status)}">{escape(status.capitalize())} ({len(results)})</h2>'
    return f"{title}<p>{MEANING[status]}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(result: Result) -> str:
    check = result.check
    figures = "".join(f"<li>{escape(name)}: {escape(str(value))}</li>" for name, value in result.details.items())
    tried = f'<p class="quiet">Statement: {escape(check.proves)}</p>' if check.proves else ""
    cells = (
        f"<p>{escape(check.question)}</p><code>{escape(check.id)}</code>",
        f"{tried}<p>{escape(result.text)}</p>" + (f"<ul>{figures}</ul>" if figures else ""),
        f"<ul>{''.join(f'<li>{escape(source)}</li>' for source in check.sources)}</ul>",
        escape(check.decide),
    )
    return "<tr>" + "".join(f'<td data-title="{t}">{c}</td>' for t, c in zip(COLUMNS, cells, strict=True)) + "</tr>"
