"""Does every pin of requirements.txt have a binary wheel for the Pythons and systems that the workbook promises?

Asks the package index without installing anything: ``python tests/wheels.py``; exit code 1 when one has none.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
PYTHONS = ("3.12", "3.13")
# pip takes --platform literally: older glibc versions must be named too
LINUX = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 24, 17, 12, 5)] + ["manylinux2014_x86_64"]
SYSTEMS = {"Linux": LINUX, "Windows": ["win_amd64"], "macOS": ["macosx_14_0_arm64"]}


def lacking(python: str, platforms: list[str]) -> str:
    """What pip says about pins without a wheel for ``python`` on ``platforms``; '' when all have one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
        command += ["--only-binary=:all:", "--target", folder, "--python-version", python, "-r", str(REQUIREMENTS)]
        command += [part for name in platforms for part in ("--platform", name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "" if done.returncode == 0 else "\n".join(errors) or done.stderr


def main() -> int:
    """Check every combination and print one line for each."""
    failed = 0
    for python in PYTHONS:
        for system, platforms in SYSTEMS.items():
            problem = lacking(python, platforms)
            failed += bool(problem)
            print(f"Python {python} on {system}: {problem or 'every pin has a wheel'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
