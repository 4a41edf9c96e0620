"""The executed workbook as HTML that needs no network: no script, no font and no formula comes from elsewhere."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

from jinja2 import DictLoader
from jinja2.filters import pass_context
from latex2mathml.converter import convert as mathml
from latex2mathml.exceptions import NoAvailableTokensError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from fedbone.files import write_atomic

# nbconvert's own page less the scripts that it would load from a content network
TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
"""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td { overflow-wrap: anywhere; min-width: 4rem; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
"""
COLUMNS = {
    "pck_0_05": "PCK@0.05",
    "pck_0_02": "PCK@0.02",
    "mre_px": "mean error, px",
    "mre_mm": "mean error, mm",
}
FACTS = ("data", "profile", "seed", "rounds", "presentations", "torch", "device", "seconds", "vector_sha256")


class Page(NamedTuple):
    """One chapter of the book: file name of its page, title, seconds it took."""

    file: str
    title: str
    seconds: float


class _Renderer(IPythonRenderer):
    """Markdown with formulas as MathML, which browsers draw themselves."""

    def inline_math(self, body: str) -> str:
        return _formula(body, "inline")

    def block_math(self, body: str) -> str:
        return _formula(body, "block")


def _formula(body: str, display: str) -> str:
    try:
        return mathml(body, display=display)
    except (NoAvailableTokensError, ValueError, IndexError, KeyError):  # a macro it does not know: show the source
        return f"<code>{escape(body)}</code>"


@pass_context
def _markdown(context: object, source: str) -> str:
    return MarkdownWithMath(renderer=_Renderer(escape=False)).render(source)


def write_chapter(out: Path, stem: str, notebook: NotebookNode, seconds: float) -> Page:
    """Write ``out/stem.html`` for an executed notebook."""
    exporter = HTMLExporter(extra_loaders=[DictLoader({"book.html.j2": TEMPLATE})], template_file="book.html.j2")
    exporter.register_filter("markdown2html", _markdown)
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": stem}})
    write_atomic(out / f"{stem}.html", html.encode())
    return Page(f"{stem}.html", title_of(notebook, stem), seconds)


def title_of(notebook: NotebookNode, otherwise: str) -> str:
    """The first level-1 heading of a notebook."""
    lines = (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    return next((line[2:].strip() for line in lines if line.startswith("# ")), otherwise)


def write_index(out: Path, pages: list[Page], results: dict) -> Path:
    """Write ``out/index.html``: the chapters, then results.json as a table for people."""
    chapters = "".join(f'<li><a href="{p.file}">{escape(p.title)}</a> ({p.seconds:.0f} s)</li>' for p in pages)
    html = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>fedbone workbook</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>fedbone workbook</h1><ol start=0>{chapters}</ol><h2>Results</h2>{results_table(results)}</body></html>\n"
    )
    return write_atomic(out / "index.html", html.encode())


def results_table(results: dict) -> str:
    """results.json as HTML tables; an arm that was not run is left out."""
    arms = {"federated": results.get("federated"), "pooled (the yardstick)": results.get("pooled")}
    arms |= {f"{name} alone, on its own films": metrics for name, metrics in (results.get("local") or {}).items()}
    head = "".join(f"<th>{title}</th>" for title in COLUMNS.values())
    rows = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(_measured(metrics, key) for key in COLUMNS)}</tr>"
        for name, metrics in arms.items()
        if metrics
    )
    facts = "".join(f"<tr><td>{key}</td><td>{_cell(results.get(key))}</td></tr>" for key in FACTS)
    note = "<p>On test films of patients nobody trained on, with 95 % intervals over patients.</p>"
    gains = _gains(results.get("federated_minus_local") or {})
    return f"{note}<table><tr><th>model</th>{head}</tr>{rows}</table>{gains}<table>{facts}</table>"


def _measured(metrics: dict, key: str) -> str:
    """A figure with its interval where there is one."""
    interval = (metrics.get("interval_95") or {}).get(key)
    return f"<td>{_cell(metrics.get(key))}{f'<br><small>{_cell(interval)}</small>' if interval else ''}</td>"


def _gains(differences: dict) -> str:
    """Federated minus local-only error on each hospital's own films: below zero, joining helped."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{gain['mre_px']:+.2f}</td><td>{_cell(gain['interval_95'])}</td></tr>"
        for name, gain in differences.items()
        if gain
    )
    head = "<tr><th>on its own films</th><th>federated minus alone, px</th><th>95 % interval</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return escape(" to ".join(_cell(item) for item in value))
    return escape(str(value))
