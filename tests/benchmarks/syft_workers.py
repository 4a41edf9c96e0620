"""What hospitals behind PySyft cost: ``python tests/benchmarks/syft_workers.py`` (or -m, from the root).

The CPU profile's network, films of noise. ``--skip-memory`` leaves the last keys null.

- same_vector: whether rounds through syft jobs give the bytes of the same rounds in this process.
- job_overhead_cpu_s: CPU seconds of those rounds through jobs, less those in this process, per job. That is a new
  Python with its imports of torch and syft, the supervisor, and syft's messages. Processes that ended are included.
- hospitals_3_peak_mb, hospitals_10_peak_mb: megabytes (1e6 bytes), the peak of a fresh process in which the coordinator
  and all owners live, with their jobs' messages; two rounds with so many hospitals. Null outside Linux.
- largest_job_mb: the peak of the largest job of those rounds, which run one after the other; looked at every 50 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only its own folder is there

from fedbone.config import Profile
from fedbone.engines.syft_workers import Datasites, SyftHospital, training_files, update_policy
from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.federation.rounds import Outcome, initial_vector, run_rounds
from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.dataset import HospitalData
from fedbone.options import positive
from tests.benchmarks.federation import PROFILE
from tests.benchmarks.gpu import noise_films
from tests.benchmarks.memory import STATUS, memory_mb

LOOK_S = 0.05


def hospital_data(number: int, films: int) -> HospitalData:
    train, test = (noise_films(count, PROFILE.size_px) for count in (films, 1))
    return HospitalData(f"hospital {number:02}", COCO_JOINTS, train, test)


def through_jobs(data: list[HospitalData], profile: Profile) -> Outcome:
    """The rounds of a federation whose owners approve the training job."""
    vector = initial_vector(profile, len(COCO_JOINTS), 0)
    with Datasites(data) as sites:
        for name, owner in sites.owners.items():
            files = training_files(vector, RoundTask(0, 0), name, sites.joints, profile)
            job = sites.coordinator.submit(name, "training", files)
            owner.receive()
            owner.approve(
                owner.review(job), "read", update_policy(len(vector), len(COCO_JOINTS)), repeats=profile.rounds
            )
        return run_rounds([SyftHospital(sites, each.name, profile) for each in data], profile)


def cpu_seconds() -> float:
    """Of this process and of those it has waited for, and theirs."""
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def overhead(hospitals: int, films: int, profile: Profile) -> tuple[bool, float]:
    """(the same vector both ways, CPU seconds more for each job)."""
    data = [hospital_data(number, films) for number in range(hospitals)]
    run_rounds([Hospital(data[0], profile)], replace(profile, rounds=1))  # torch's first use
    started = cpu_seconds()
    plain = run_rounds([Hospital(each, profile) for each in data], profile)
    between = cpu_seconds()
    jobs = through_jobs(data, profile)
    ended = cpu_seconds()
    count = hospitals * profile.rounds
    seconds = (between - started, ended - between)
    print(f"{count} updates: {seconds[0]:.2f} CPU s in this process, {seconds[1]:.2f} CPU s through jobs", flush=True)
    return bool(plain.vector.tobytes() == jobs.vector.tobytes()), (seconds[1] - seconds[0]) / count


@contextlib.contextmanager
def largest_below() -> Iterator[list[float]]:
    """A list whose one entry is the largest peak in MB of the processes that were started inside."""
    largest, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(OSError, StopIteration):  # it has just ended
                    largest[0] = max(largest[0], memory_mb("VmHWM", process.pid))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield largest
    finally:
        ended.set()
        watcher.join()


def peaks_mb(hospitals: int, films: int, profile: Profile) -> tuple[float, float]:
    """Peaks in megabytes of (this process, its largest job) in the rounds of so many hospitals."""
    with largest_below() as largest:
        through_jobs([hospital_data(number, films) for number in range(hospitals)], profile)
    return memory_mb("VmHWM"), largest[0]


def memory(hospitals: int, films: int, profile: Profile) -> tuple[float, float]:
    """The same in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        peak, job = executor.submit(peaks_mb, hospitals, films, profile).result()
    print(f"{hospitals} hospitals: at most {peak:.0f} MB; the largest job {job:.0f} MB", flush=True)
    return peak, job


def main() -> None:
    """Measure, print what was found, then the results as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-memory", action="store_true", help="leave the figures of memory null")
    parser.add_argument("--hospitals", type=positive, nargs=2, default=[3, 10], help="few and many (default 3 10)")
    parser.add_argument("--rounds", type=positive, default=2, help="default 2")
    parser.add_argument("--films", type=positive, default=8, help="for training at each hospital (default 8)")
    args = parser.parse_args()
    profile = replace(PROFILE, rounds=args.rounds)
    started = time.perf_counter()
    same, seconds = overhead(args.hospitals[0], args.films, profile)
    figures = {"same_vector": same, "job_overhead_cpu_s": round(seconds, 3)}
    measured = STATUS.exists() and not args.skip_memory
    found = {count: memory(count, args.films, profile) if measured else (None, None) for count in args.hospitals}
    figures |= {f"hospitals_{count}_peak_mb": peak and round(peak) for count, (peak, _) in found.items()}
    figures["largest_job_mb"] = round(max(job for _, job in found.values())) if measured else None
    print(f"{time.perf_counter() - started:.0f} s")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
