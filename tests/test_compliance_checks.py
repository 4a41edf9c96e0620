"""The list asks what the article and the laws ask, in forms that can be looked up, and never says more than it can."""

import re
from pathlib import Path

import pytest

from fedbone.custody.compliance import HUMAN, PROVED, Evidence, run_checks, write_report
from fedbone.custody.compliance_checks import CHECKS, PROBES

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted({source for check in CHECKS for source in check.sources})
# highest article or the sections that exist; what is cited has to be among them
ARTICLES = {"GDPR": 99, "PIPL": 74, "DSL": 55}
HIPAA = {"308", "310", "312", "314", "316", "404", "410", "502", "508", "512", "514"}


def ids(check):
    return check.id


def test_every_probe_is_asked_for_by_one_check_with_its_statement():
    asked = [check.probe for check in CHECKS if check.probe]
    assert sorted(asked) == sorted(PROBES)
    assert all(check.proves == PROBES[check.probe] for check in CHECKS if check.probe)


@pytest.mark.parametrize("check", CHECKS, ids=ids)
def test_every_check_is_complete(check):
    assert re.fullmatch(r"[a-z]+-\d", check.id)
    assert check.question.endswith("?")
    assert check.sources
    assert check.decide.endswith(".")
    assert bool(check.probe) is bool(check.proves)


def test_the_articles_list_is_in_it_item_by_item():
    """Claim C20: consent, TLS 1.2 or newer, AES-256, audit log; each has a probe."""
    items = {source: check.probe for check in CHECKS for source in check.sources if source.startswith("C20")}
    assert items.keys() == {
        "C20: consent to data use",
        "C20: TLS 1.2 or newer",
        "C20: stored parameters encrypted (AES-256)",
        "C20: complete audit log of the federation",
    }
    assert all(items.values())


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_of_a_law_that_is_named(source):
    laws = (
        "C20: ",
        "GDPR art. ",
        "HIPAA 164.",
        "PIPL art. ",
        "DSL art. ",
        "GB/T 39725-2020, ",
        "Regulation (EU) 2017/745",
    )
    assert source.startswith(laws)
    law, _, rest = source.partition(" art. ")
    if law in ARTICLES:
        cited = re.sub(r"\([^)]*\)|recital \d+", "", rest.partition(":")[0])
        assert all(1 <= int(number) <= ARTICLES[law] for number in re.findall(r"\d+", cited))
    if source.startswith("HIPAA"):
        assert set(re.findall(r"164\.(\d+)", source)) <= HIPAA


@pytest.mark.parametrize(
    "cited",
    ["GDPR art. 5(1)(c)", "GDPR art. 5(1)(f), 32(1)", "6(1), 9(2)", "art. 25", "art. 26, 28", "GDPR art. 30",
     "art. 33, 34", "GDPR art. 35", "GDPR art. 44-49", "164.308(a)(1)(ii)(A)", "164.310", "164.312(a)(1)",
     "164.312(b)", "164.312(c)(1)", "164.312(d)", "164.312(e)(1)", "164.514", "PIPL art. 6", "13, 28, 29",
     "PIPL art. 38-40", "PIPL art. 51", "PIPL art. 55", "DSL art. 21", "DSL art. 27", "DSL art. 29",
     "GB/T 39725-2020"],
)  # fmt: skip
def test_what_was_to_be_asked_is_asked(cited):
    assert any(cited in source for source in SOURCES)


def test_what_only_people_decide_has_no_probe():
    """Roles, impact assessment, records, breaches, transfers, classification, restoring: no program can."""
    human = {check.id for check in CHECKS if not check.probe}
    assert {f"organisation-{n}" for n in range(1, 9)} | {
        "storage-4",
        "storage-5",
        "data-4",
        "data-5",
        "data-6",
    } == human


def test_no_sentence_promises_compliance():
    words = " ".join([*PROBES.values(), *(f"{check.question} {check.decide}" for check in CHECKS)]).lower()
    assert not re.search(r"complian|complies|certif(y|ied)|guarantee|fully|100 ?%|safe\b|legal\b(?! basis)", words)


def test_the_files_it_names_are_there():
    named = {name for check in CHECKS for name in re.findall(r"notebooks/[\w.]+\w", check.decide)}
    assert named == {"notebooks/governance.md"}
    assert all((ROOT / name).exists() for name in named)


def test_a_deployment_without_probes_proves_nothing(tmp_path):
    results = run_checks(CHECKS, {})
    assert {result.status for result in results} == {HUMAN}
    assert "0</b>proved" in write_report(tmp_path / "r.html", results, {}).read_text(encoding="utf-8")


def test_with_every_probe_what_is_left_for_people_stays(tmp_path):
    results = run_checks(CHECKS, {name: lambda: Evidence("It held.") for name in PROBES})
    assert {r.status for r in results if r.check.probe} == {PROVED}
    assert {r.status for r in results if not r.check.probe} == {HUMAN}
    html = write_report(tmp_path / "r.html", results, {}).read_text(encoding="utf-8")
    assert all(html.count(f"<code>{check.id}</code>") == 1 for check in CHECKS)
