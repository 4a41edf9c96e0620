"""Writes the GPU table of README.md from the files of notebooks/tables/gpu.

    .venv/bin/python -m notebooks.tables.make_readme_gpu

Each file is the last line of ``python tests/benchmarks/gpu.py --out FILE`` on one machine. A GPU that the workbook has
a profile for and that nobody measured says so.
"""

from __future__ import annotations

from pathlib import Path

from fedbone.config import REPOSITORY
from fedbone.files import write_atomic
from fedbone.model.pace import MEASURED, measurements

README = REPOSITORY / "README.md"
BEGIN, END = "<!-- GPU table: written by notebooks/tables/make_readme_gpu.py -->", "<!-- end of the GPU table -->"
EXPECTED = ("T4", "A100")


def table(folder: Path = MEASURED) -> str:
    """The files of ``folder`` as one Markdown table, a line a case."""
    found = [result for result in measurements(folder) if result["gpu"]]  # the benchmark runs on a CPU too
    lines = ["| GPU | PyTorch | training | films a second | peak memory |", "|---|---|---|---|---|"]
    for gpu in EXPECTED:
        if not any(gpu in result["gpu"].replace("-", " ").split() for result in found):
            lines.append(f"| {gpu} | | | not measured | not measured |")
    for result in found:
        limit = f", {result['limit_gb']:g} GB allowed" if result["limit_gb"] else f", {result['memory_gb']:.0f} GB"
        for row in result["rows"]:
            figures = row["outcome"], ""
            if row["outcome"] == "ran":
                figures = f"{row['films_per_s']:.1f}", f"{row['peak_mb'] / 1000:.1f} GB"
            lines.append(f"| {' | '.join((result['gpu'] + limit, result['torch'], _case(row), *figures))} |")
    return "\n".join(lines)


def _case(row: dict) -> str:
    """What was trained: network, film, batch and what is special about it."""
    parts = [f"{row['preset'].upper()} at {row['size_px']} px", row["precision"], f"batch {row['batch']}"]
    parts += [f"in passes of {row['micro_batch']}"] if row["micro_batch"] else []
    parts += ["checkpointing"] if row["checkpointing"] else []
    parts += [row["memory_format"]] if row["memory_format"] != "channels_last" else []
    return ", ".join(parts)


def with_table(readme: str, text: str) -> str:
    """README's text with ``text`` between the markers."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    write_atomic(README, with_table(README.read_text(encoding="utf-8"), table()).encode())
