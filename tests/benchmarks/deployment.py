"""What a deployment takes on one machine: ``python tests/benchmarks/deployment.py`` (Linux, three to ten minutes).

Three hospitals of data/sample, five rounds of the CPU model at 128 px, server and hospitals on this machine. Wall
seconds, from the parties' own audit logs where they say it; the best of ``--repeats`` each, because what else runs on
the machine only adds to them: the load averages are printed beside.

- same_vector: whether every run, also the one whose server was killed, gave the model of the same run in this process.
- up_s: ``deploy up``, from its start until the server has heard of all hospitals. down_s: ``deploy down``.
- first_step_s: from ``submit`` to the first hospital that has films and model and begins to train.
- round_overhead_s: the median of a round, from one release to the next, less the slowest hospital's training in it.
- recover_s: from kill -9 of the server's two processes to the first training step of the next job: hospitals that had
  the killed server's question may still begin to train for nothing.
- server_rss_mb, hospital_rss_mb: megabytes (1e6 bytes), the peak of the resident memory of all processes of the server,
  and of the largest hospital, looked at twice a second. Pages that they share are counted for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only its own folder is there

from fedbone.config import get_profile
from fedbone.engines.flare.plan import Plan
from fedbone.engines.flare.processes import party_processes
from fedbone.options import positive
from tests.deployed import Deployment

LOOK_S = 0.5
KILLED_IN = 2  # the round


def moments(deployment: Deployment, run: str, event: str, party: str) -> list[tuple[int, float]]:
    """(round, s since 1970) of what a party has noted."""
    entries = deployment.events(run, event, party)
    return [(entry["round"], datetime.fromisoformat(entry["time"]).timestamp()) for entry in entries]


def first_step(deployment: Deployment, run: str, since: float) -> float:
    """Seconds from ``since`` to the first training step after it."""
    steps = [at for name in deployment.hospitals for _, at in moments(deployment, run, "pull", name)]
    return min(at for at in steps if at > since) - since


def all_train(deployment: Deployment, run: str, index: int) -> bool:
    """Whether every hospital has begun round ``index``, so that the next step of any belongs to what comes after."""
    return all(index in dict(moments(deployment, run, "pull", name)) for name in deployment.hospitals)


def round_overhead(deployment: Deployment, run: str) -> float:
    """Of the rounds after the first, whose beginning no release marks."""
    released = dict(moments(deployment, run, "release", "server"))
    training: dict[int, list[float]] = {}
    for name in deployment.hospitals:
        begun = dict(moments(deployment, run, "pull", name))
        for index, ended in moments(deployment, run, "push", name):
            training.setdefault(index, []).append(ended - begun[index])
    return statistics.median(released[i] - released[i - 1] - max(training[i]) for i in released if i > 0)


@contextmanager
def peaks_mb(deployment: Deployment) -> Iterator[dict[str, float]]:
    """By party, the largest sum of its processes' resident memory while this is open."""
    peaks, ended = {"server": 0.0, **dict.fromkeys(deployment.hospitals, 0.0)}, threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            for kit in (deployment.server, *deployment.hospitals.values()):
                peaks[kit.name] = max(peaks[kit.name], sum(map(resident_mb, party_processes(kit))))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def resident_mb(pid: int) -> float:
    try:
        return psutil.Process(pid).memory_info().rss / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def finished(deployment: Deployment, plan: Plan) -> bool:
    """Whether the run ended with the model of the same run in this process."""
    deployment.wait_for_end(plan.run)
    problems = deployment.problems(plan)
    print(f"{plan.run}: {'; '.join(problems) or 'as in this process'}", flush=True)
    return not problems


def once(deployment: Deployment, number: int, size_px: int) -> dict[str, float]:
    """Up, a run, a run whose server is killed, down."""
    profile = get_profile("cpu", rounds=5, size_px=size_px)
    calm = deployment.plan(f"calm-{number}", profile=profile)
    killed = deployment.plan(f"killed-{number}", profile=profile)
    began = time.monotonic()
    with deployment, peaks_mb(deployment) as peaks:
        found = {"up_s": time.monotonic() - began}
        submitted = time.time()
        deployment.submit(calm)
        found["same_vector"] = finished(deployment, calm)
        found["first_step_s"] = first_step(deployment, calm.run, submitted)
        found["round_overhead_s"] = round_overhead(deployment, calm.run)
        deployment.submit(killed)
        deployment.wait(lambda: all_train(deployment, killed.run, KILLED_IN))
        at = time.time()
        deployment.kill("server", "parent", "job")
        found["same_vector"] &= finished(deployment, killed)
        resumed = min(when for _, when in moments(deployment, killed.run, "start", "server") if when > at)
        found["recover_s"] = resumed - at + first_step(deployment, killed.run, resumed)
        found["server_rss_mb"] = peaks.pop("server")
        found["hospital_rss_mb"] = max(peaks.values())
        began = time.monotonic()
    found["down_s"] = time.monotonic() - began
    told = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    print(f"{told}; load {os.getloadavg()[0]:.1f}", flush=True)
    return found


def main() -> None:
    """Measure, print what was found, then the results as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=3, help="the best of them is told (default 3)")
    parser.add_argument("--size", type=positive, default=128, metavar="PX", help="of the films (default 128)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder), None)
        turns = [once(deployment, number, args.size) for number in range(args.repeats)]
    best = {name: min(turn[name] for turn in turns) for name in turns[0]}
    names = ("up_s", "first_step_s", "round_overhead_s", "recover_s", "down_s", "server_rss_mb", "hospital_rss_mb")
    figures = {name: round(best[name], 2 if name.endswith("_s") else None) for name in names}
    print(json.dumps({"same_vector": bool(best["same_vector"]), **figures}))


if __name__ == "__main__":
    main()
