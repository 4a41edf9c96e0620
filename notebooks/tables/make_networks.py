"""Measures notebooks/tables/networks.csv: HRNet against ResNet-50 with a keypoint head (C04), over several seeds.

    .venv/bin/python -m notebooks.tables.make_networks cpu    (6 CPU minutes on two cores)
    python -m notebooks.tables.make_networks cuda             (about 8 minutes on an H100)

Pooled films of the workbook's three hospitals, the same loss, schedule, augmentation and decoder; only the network
differs. cpu: both networks get 60 CPU seconds of one core at 128 px, and the schedule is laid over the rounds that
fit. cuda: every network sees the same film presentations at 256 px in fp16. All start from random weights: nothing
was trained on other pictures before.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import torch
from torch import nn

from fedbone.config import PROFILES, Profile
from fedbone.federation.evaluation import worst_joint
from fedbone.imaging.dataset import FilmSet, pool
from fedbone.imaging.hospitals import GENERATOR_VERSION, training_hospitals
from fedbone.model.hrnet import build
from fedbone.model.metrics import radial_errors, summarise
from fedbone.model.resnet import build_resnet50
from fedbone.model.training import Trainer, predict, train_round
from notebooks.tables.table import FOLDER, ONE_PLACE, processor, save

SEEDS = (0, 1, 2)
CPU_SECONDS = 60
COLUMNS = "device network parameters size_px seed budget presentations train_s pck_0_05 pck_0_02 mre_px".split()
COLUMNS += "worst_joint worst_joint_pck_0_05 torch generator".split()
Build = Callable[..., nn.Module]
NETWORKS: dict[str, dict[str, Build]] = {
    "cpu": {"HRNet w8n": partial(build, "w8n"), "ResNet-50": build_resnet50},
    "cuda": {"HRNet W18": partial(build, "w18"), "ResNet-50": build_resnet50},
}


def films(size_px: int) -> tuple[FilmSet, FilmSet, tuple[str, ...]]:
    """Pooled training films, pooled test films, joints."""
    hospitals = training_hospitals(size_px)
    return pool([h.train for h in hospitals]), pool([h.test for h in hospitals]), hospitals[0].joints


def rounds_in(seconds: float, model: nn.Module, profile: Profile, train: FilmSet) -> float:
    """Rounds that fit into ``seconds`` of CPU time with a tenth to spare, by the time of ten steps."""
    trainer, some = Trainer(model, profile), train.take(slice(profile.batch))
    train_round(trainer, some, 1, [0])
    started = time.process_time()
    for _ in range(10):
        train_round(trainer, some, 1, [0])
    per_film = (time.process_time() - started) / (10 * len(some))
    return 0.9 * seconds / (per_film * len(train))


def shortened(profile: Profile, rounds: float, train: FilmSet) -> tuple[Profile, FilmSet]:
    """The schedule laid over fewer rounds; where less than one round of all films fits in a round, over fewer films.

    The learning rate ends where it did. A whole number of rounds, at least 4, each with as many films as the time
    allows: a slow network would otherwise not get past its first learning rate.
    """
    whole = max(4, round(rounds))
    share = min(1.0, rounds / whole)
    part = train.take(torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).numpy())
    part = part.take(slice(max(profile.batch, int(share * len(train)))))
    return replace(profile, rounds=whole, round_decay=profile.round_decay ** (profile.rounds / whole)), part


def measure(device: str, name: str, seed: int) -> dict:
    """One row."""
    profile = replace(PROFILES["cpu" if device == "cpu" else "t4"], **ONE_PLACE)
    train, test, joints = films(profile.size_px)
    new = partial(NETWORKS[device][name], len(joints))
    budget = f"{profile.rounds * len(train)} presentations"
    part = train
    if device == "cpu":
        profile, part = shortened(profile, rounds_in(CPU_SECONDS, new(seed), profile, train), train)
        budget = f"{CPU_SECONDS} CPU s"
    trainer, clock = Trainer(new(seed), profile), time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    for index in range(profile.rounds):
        train_round(trainer, part, index, [seed], name)
    seconds = clock() - started
    found = summarise(radial_errors(predict(trainer.model, test.images, profile), test), joints)
    joint, worst = worst_joint(found)
    where = processor() if device == "cpu" else torch.cuda.get_device_name()
    size = sum(p.numel() for p in trainer.model.parameters())
    figures = [round(v, 4) for v in (found["pck_0_05"], found["pck_0_02"], found["mre_px"])]
    values = [where, name, size, profile.size_px, seed, budget, profile.rounds * len(part), round(seconds, 1), *figures]
    values += [joint, round(worst, 4), torch.__version__, GENERATOR_VERSION]
    return dict(zip(COLUMNS, values, strict=True))


def main(device: str) -> None:
    """All networks and seeds of ``device``, beside the rows that another device measured."""
    table = FOLDER / "networks.csv"
    old = list(csv.DictReader(table.open())) if table.exists() else []
    other = [row for row in old if ("GPU" in row["device"] or "NVIDIA" in row["device"]) == (device == "cpu")]
    films(PROFILES["cpu" if device == "cpu" else "t4"].size_px)  # drawn once, before the workers ask for them
    with ProcessPoolExecutor(mp_context=get_context("spawn"), max_workers=None if device == "cpu" else 6) as executor:
        runs = [executor.submit(measure, device, name, seed) for seed in SEEDS for name in NETWORKS[device]]
        save("networks.csv", COLUMNS, other + [run.result() for run in runs])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
