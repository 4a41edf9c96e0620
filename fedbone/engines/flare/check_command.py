"""``python -m fedbone deploy check``: the data-protection questions, asked of a running deployment on this machine."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import version
from pathlib import Path

import fedbone
from fedbone.custody.compliance import FAILED, MEANING, Result, run_checks, write_report
from fedbone.custody.compliance_checks import CHECKS
from fedbone.engines.flare.kit import load_parties
from fedbone.engines.flare.probes import probes_of
from fedbone.engines.flare.record_probes import runs_of


def run_check(args: argparse.Namespace) -> int:
    """Write the report, and say in a line what came of it; 1 when something failed."""
    results = run_checks(CHECKS, probes_of(args.kits, intrude=args.intrude, also=args.also))
    write_report(args.out, results, about(args.kits))
    print(f"{args.out}: {in_words(results)}")
    return 1 if any(result.status == FAILED for result in results) else 0


def in_words(results: list[Result]) -> str:
    """How many have which status, and the ids of those that failed."""
    counts = ", ".join(f"{sum(result.status == status for result in results)} {status}" for status in MEANING)
    failed = ", ".join(result.check.id for result in results if result.status == FAILED)
    return f"{counts}{f'; failed: {failed}' if failed else ''}"


def about(kits: Path) -> dict[str, str]:
    """What was examined."""
    server, *hospitals = load_parties(kits)
    runs = ", ".join(plan.run for plan in runs_of(server)) or "none yet"
    versions = f"fedbone {fedbone.__version__}, NVIDIA FLARE {version('nvflare')}, Python {platform.python_version()}"
    return {
        "deployment": server.project,
        "server": f"{server.host}:{server.port}",
        "hospitals": ", ".join(kit.name for kit in hospitals),
        "runs": runs,
        "machine": f"{platform.system()} {platform.machine()}, all parties on this one",
        "software": versions,
    }
