"""Measures notebooks/tables/deployment.csv: what a deployment takes in time, memory and traffic, on one machine.

    .venv/bin/python -m notebooks.tables.make_deployment      (about 10 minutes; nothing else should run)

Each row: one real deployment over loopback, with the films of data/sample; hospitals beyond the third have copies of
them. Server and all hospitals share this machine's cores, so the times are upper bounds for separate machines.
up_s, first_step_s, round_overhead_s and the resident memory as tests/benchmarks/deployment.py defines them, of one run;
round_s and train_s: medians of a round, and of the slowest hospital's training in it. down_mb, up_mb: megabytes (1e6)
of one round's messages to and from one hospital, without TLS and framing. load: of the machine, before the run.
"""

from __future__ import annotations

import datetime
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedbone.__main__ import main as fedbone
from fedbone.config import SAMPLE, get_profile
from fedbone.engines.flare.kits import OFFICERS
from fedbone.engines.flare.messages import TrainTask, train_task, update_message
from fedbone.federation.hospital import Update
from fedbone.files import write_atomic
from fedbone.model.hrnet import build_for
from fedbone.vectors import layout_of
from notebooks.tables.table import FOLDER, processor, save
from tests.benchmarks.deployment import first_step, moments, peaks_mb, round_overhead
from tests.deployed import Deployment

ROUNDS = 4
SIZES = ((3, "w8n", 128), (10, "w8n", 128), (3, "w32", 64))  # hospitals, network, film in pixels
COLUMNS = "hospitals network parameters size_px up_s first_step_s round_s train_s round_overhead_s".split()
COLUMNS += "server_rss_mb hospital_rss_mb down_mb up_mb cores load processor date".split()


def films(folder: Path, count: int) -> Path:
    """A folder with ``count`` hospitals, each with a copy of the films of one of data/sample."""
    places = sorted(path for path in SAMPLE.glob("hospital_*") if path.is_dir())
    for number in range(count):
        shutil.copytree(places[number % len(places)], folder / f"hospital_{chr(ord('a') + number)}")
    return folder


def message_mb(parameters: int, joints: int) -> tuple[float, float]:
    """(down, up) of one round."""
    vector = np.zeros(parameters, np.float32)
    update = update_message(Update(vector, np.ones(joints, bool), {}), 0.5)
    return len(train_task(TrainTask("run", 0, 0, 0.0), vector)) / 1e6, len(update) / 1e6


def measure(hospitals: int, network: str, size_px: int) -> dict:
    """One row."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = films(folder / "films", hospitals)
        fedbone(["deploy", "init", "--data", str(data), "--out", str(folder / "my kits")])
        deployment = Deployment(folder, None)
        for name, kit in deployment.hospitals.items():
            deployment.command("consent", kit.folder, "--key", deployment.kits / OFFICERS / f"{name}.key")
        profile = get_profile("cpu", rounds=ROUNDS, preset=network, size_px=size_px)
        plan = replace(deployment.plan("sizing", profile=profile), deadline_s=900.0, min_hospitals=hospitals)
        began = time.monotonic()
        with deployment, peaks_mb(deployment) as peaks:
            up_s, submitted = time.monotonic() - began, time.time()
            deployment.submit(plan)
            deployment.wait_for_end("sizing", 1200.0)
        found = [up_s, first_step(deployment, "sizing", submitted), *rounds_of(deployment)]
        found += [round_overhead(deployment, "sizing"), peaks.pop("server"), max(peaks.values())]
    parameters = layout_of(build_for(profile, len(plan.joints))).size
    found += message_mb(parameters, len(plan.joints))
    figures = [f"{float(f'{value:.3g}'):g}" for value in found]  # three digits, and 1020 rather than 1.02e+03
    row = [hospitals, network, parameters, size_px, *figures, os.cpu_count(), f"{load:.1f}", processor()]
    return dict(zip(COLUMNS, [*row, datetime.date.today().isoformat()], strict=True))


def rounds_of(deployment: Deployment) -> tuple[float, float]:
    """(median round, median of the slowest training), in seconds, of the rounds after the first."""
    released = dict(moments(deployment, "sizing", "release", "server"))
    training: dict[int, list[float]] = {}
    for name in deployment.hospitals:
        begun = dict(moments(deployment, "sizing", "pull", name))
        for index, ended in moments(deployment, "sizing", "push", name):
            training.setdefault(index, []).append(ended - begun[index])
    later = [index for index in released if index > 0]
    slowest = statistics.median(max(training[index]) for index in later)
    return statistics.median(released[i] - released[i - 1] for i in later), slowest


LINE_MBIT = 100  # per second, of a hospital's connection
PAGE = """# How large a machine, how fast a line

Written by `notebooks/tables/make_deployment.py` from `notebooks/tables/deployment.csv`; do not edit it by hand.

## Measured

On one machine with {cores} cores ({processor}, {date}), server and all hospitals on it, over loopback. With a
machine for each hospital the times are shorter: here all of them train on the same cores.

{measured}

Memory is the peak of the resident memory of all processes of the server, and of the largest hospital; what they
share is counted for each. The overhead is a round less the slowest hospital's training in it.

## Modelled, not measured

A round carries the model to each hospital and an update back, {bytes_down:.1f} and {bytes_up:.1f} bytes a
parameter, and nothing else of that size. So many seconds does a round's traffic of one hospital take on a line of
{line} Mbit/s, and so many gigabytes pass the server in a round:

{modelled}

With encrypted sums a hospital's upload is 1.1 to 1.4 times as large (`notebooks/tables/encryption.csv`), goes up as
well as down (the total), and the computing time in that table comes on top. The server adds one update at a time;
in its memory are a handful of vectors of the model's size, whatever the number of hospitals, and the messages that
are on their way at the same moment.

## Where this stops

- The time of a round is that of the slowest hospital's training, plus the overhead, plus its line. `--deadline` and
  `--grace` bound the wait for it.
- One server process takes all updates. For more hospitals than its line carries, NVIDIA FLARE can put relay nodes
  between them and the server, in a tree (its hierarchical provisioning, `nvflare.lighter.tree_prov`); fedbone's
  kits are made for a flat federation, and nothing of this was tried here.
- On a GPU, training is faster and everything else stays as it is: the shorter the training, the more the overhead
  counts. `README.md` says what was measured on which GPU.
"""


def page(rows: list[dict]) -> str:
    """The sizing guide, from the rows of the table."""
    first = rows[0]
    names = {"hospitals": "hospitals", "network": "network", "parameters": "parameters"}
    names |= {"size_px": "film, px", "up_s": "up, s", "first_step_s": "first step, s", "round_s": "round, s"}
    names |= {"train_s": "training, s"}
    names |= {"round_overhead_s": "overhead, s", "server_rss_mb": "server, MB", "hospital_rss_mb": "hospital, MB"}
    measured = [[row[name] for name in names] for row in rows]
    down, up = (float(rows[-1][name]) * 1e6 / int(rows[-1]["parameters"]) for name in ("down_mb", "up_mb"))
    modelled = []
    for parameters in sorted({int(row["parameters"]) for row in rows}):
        megabytes = parameters * (down + up) / 1e6
        passing = [f"{hospitals * megabytes / 1e3:.2f} GB" for hospitals in (3, 10, 30)]
        modelled.append([parameters, f"{megabytes:.1f} MB", f"{megabytes * 8 / LINE_MBIT:.1f} s", *passing])
    heads = ["parameters", "of one hospital", "on its line", "3 hospitals", "10 hospitals", "30 hospitals"]
    tables = {"measured": _table(list(names.values()), measured), "modelled": _table(heads, modelled)}
    about = {name: first[name] for name in ("cores", "processor", "date")}
    return PAGE.format(**tables, **about, bytes_down=down, bytes_up=up, line=LINE_MBIT)


def _table(heads: list[str], lines: list[list[object]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [heads, ["---"] * len(heads), *lines])


if __name__ == "__main__":
    made = [measure(*size) for size in SIZES]
    save("deployment.csv", COLUMNS, made)
    write_atomic(FOLDER.parent / "sizing.md", page(made).encode())
