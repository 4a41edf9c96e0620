"""Writes the summary of the claims ledger into README.md: ``python -m notebooks.tables.make_readme_claims``."""

from __future__ import annotations

from fedbone.config import REPOSITORY
from fedbone.files import write_atomic
from fedbone.teaching import claims, workbook

BEGIN = "<!-- claims ledger: written by notebooks/tables/make_readme_claims.py -->"
END = "<!-- end of the claims ledger -->"


def main() -> None:
    """Put the ledger that the stored notebooks carry between the two marks of README.md."""
    readme = REPOSITORY / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    summary = claims.summary(claims.collect(workbook.chapters()), "notebooks/")
    write_atomic(readme, f"{before}{BEGIN}\n\n{summary}\n\n{END}{rest.split(END)[1]}".encode())


if __name__ == "__main__":
    main()
