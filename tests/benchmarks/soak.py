"""Measures notebooks/tables/soak.csv: what random kills do to a deployment: ``python tests/benchmarks/soak.py``

Every run has five rounds and one kill -9, of a process, in a round and at a moment that the seed draws. A row counts
the kills of one kind of process, the last row all of them (20 take about 15 minutes on two free cores):

lost                 runs that did not finish
other_model          runs whose last model is not that of an undisturbed run with the same hospitals in each round
zombies              jobs that the server still called running, or processes that nobody had collected, after the run
clear_files          files with weights in clear in the kits, job stores and temporary folders
altered_logs         how often a party's audit log did not verify
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only its own folder is there

from fedbone.config import REPOSITORY
from fedbone.errors import UserError
from fedbone.options import natural, positive
from notebooks.tables.table import processor, save
from tests.deployed import Deployment

KINDS = {
    "server, parent process": ("server", ["parent"]),
    "server, job process": ("server", ["job"]),
    "server, both": ("server", ["parent", "job"]),
    "watchdog": ("server", ["watchdog"]),
    "hospital, parent process": ("hospital", ["parent"]),
    "hospital, job process": ("hospital", ["job"]),
}
COUNTS = ["lost", "other_model", "zombies", "clear_files", "altered_logs"]
COLUMNS = ["killed", "kills", *COUNTS, "seed", "command", "commit", "processor"]
COLUMNS += ["load", "date"]
SLOW_S = 0.5  # that a hospital takes longer for a round, to be hit in it
MOST_DELAY_S = 1.5
PATIENCE_S = 240.0


def one_kill(deployment: Deployment, number: int, kind: str, rng: np.random.Generator) -> dict[str, int]:
    """What is wrong after one run with one kill: a number for each of COUNTS."""
    party, parts = KINDS[kind]
    party = party if party == "server" else str(rng.choice(list(deployment.hospitals)))
    at, delay_s = int(rng.integers(0, 5)), float(rng.uniform(0, MOST_DELAY_S))
    plan = deployment.plan(f"soak-{number:02}")
    deployment.submit(plan)
    deployment.wait(lambda: deployment.in_round(plan.run, at))
    time.sleep(delay_s)
    killed = deployment.kill(party, *parts)
    told = f"{number}: {kind} of {party}, round {at} + {delay_s:.2f} s, {len(killed)} killed"
    try:
        deployment.wait_for_end(plan.run, PATIENCE_S)
        deployment.wait(lambda: not deployment.jobs_alive())
    except AssertionError as error:
        print(f"{told}: LOST\n{error}", flush=True)
        return {**dict.fromkeys(COUNTS, 0), "lost": 1, "zombies": len(deployment.jobs_alive())}
    problems, clear = deployment.problems(plan), deployment.clear_weights(plan)
    print(f"{told}: {deployment.took_part(plan.run)}, {problems or 'well'}, {clear or 'nothing in clear'}", flush=True)
    return {
        "lost": 0,
        "other_model": len(problems),
        "zombies": len(deployment.defunct()),
        "clear_files": len(clear),
        "altered_logs": altered(deployment),
    }


def altered(deployment: Deployment) -> int:
    try:
        deployment.require_valid_logs()
    except UserError as error:
        print(error, flush=True)
        return 1
    return 0


def row(kind: str, found: list[dict[str, int]]) -> dict:
    return {"killed": kind, "kills": len(found), **{name: sum(each[name] for each in found) for name in COUNTS}}


def commit() -> str:
    asked = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=positive, default=20)
    parser.add_argument("--seed", type=natural, default=0)
    args = parser.parse_args()
    rng, found = np.random.default_rng(args.seed), {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder, Deployment(Path(folder), {"slow_s": SLOW_S}) as deployment:
        for number in range(args.kills):
            kind = str(rng.choice(list(KINDS)))
            found[kind].append(one_kill(deployment, number, kind, rng))
    about = {
        "seed": args.seed,
        "command": f"python tests/benchmarks/soak.py --kills {args.kills} --seed {args.seed}",
        "commit": commit(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[2]:.1f}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    kinds = [row(kind, each) for kind, each in found.items() if each]
    everything = row("all", [each for some in found.values() for each in some])
    save("soak.csv", COLUMNS, [line | about for line in (*kinds, everything)])


if __name__ == "__main__":
    main()
