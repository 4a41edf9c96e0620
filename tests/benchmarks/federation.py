"""Accuracy, time and memory of federation: ``python tests/benchmarks/federation.py`` (or -m, from the root).

The default run trains nine arms, two at a time; ``--skip-training`` leaves the first three keys null.

- mre_ratio_sample: mean radial error in mm on all test films, federated over pooled, at the same film presentations.
  The generated hospitals, cpu profile, median over the seeds. Every seed is printed, pixels too.
- mre_ratio_sample_2x: the same, the federation with twice as many rounds, pooled training as before.
- pck_ratio_sample: PCK@0.05, federated over pooled, at the same film presentations.
- loop_overhead_ms_per_round: CPU ms of a round with 3 hospitals whose updates are ready, 303 thousand parameters and no
  state file: what the loop itself does. Median of the rounds after the first.
- aggregate_vs_flare: NVIDIA FLARE's WeightedAggregationHelper over our WeightedMean, CPU time to add 10 updates and
  finish, in turns on the same arrays; the smaller of the ratios at 0.3 and 28.5 million parameters. Above 1, ours is
  faster. FLARE sums float32 in the order of arrival; ours is exact in any order, and the error of both is printed.
- aggregate_bandwidth_share: bytes of updates a second that WeightedMean.add takes in, over what numpy.copyto copies;
  10 different updates of 28.5 million parameters, so that caches do not help.
- hospitals_100_peak_mb: megabytes (1e6 bytes) by which the peak of 2 rounds with 100 hospitals exceeds a fresh process
  that has imported everything and made the first hospital; films of 32 px, every update is trained. Printed for 10
  hospitals too: the difference is what a further one takes. Null outside Linux.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only its own folder is there

from fedbone.config import PROFILES, Profile
from fedbone.federation.arms import Arm, run_arms
from fedbone.federation.evaluation import evaluate
from fedbone.federation.hospital import Hospital, RoundTask, Update
from fedbone.federation.rounds import run_rounds
from fedbone.federation.strategies import WeightedMean, equal_weights
from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.dataset import HospitalData
from fedbone.imaging.hospitals import training_hospitals
from fedbone.model.training import reproducible
from fedbone.options import natural, positive
from fedbone.progress import Bar
from tests.benchmarks.gpu import noise_films
from tests.benchmarks.memory import STATUS, memory_mb
from tests.benchmarks.timing import medians

PROFILE = PROFILES["cpu"]
TINY = replace(PROFILE, size_px=32, batch=4)  # the cpu profile's network on films that cost nothing
SMALL, LARGE, UPDATES = 303_465, 28_500_000, 10
VECTOR_MB = 4 * SMALL / 1e6
CHECKED = 10_000  # parameters whose sum is compared with math.fsum
FEW, MEMORY_ROUNDS = 10, 2

Aggregate = Callable[[list[np.ndarray], np.ndarray], np.ndarray]


def arms_of(profile: Profile) -> dict[str, Arm]:
    """What ``run_arms`` trains; the longest first, so that two processes end together."""
    twice = replace(profile, rounds=2 * profile.rounds, round_decay=profile.round_decay**0.5)
    return {"federated, twice": Arm(twice), "federated": Arm(profile), "pooled": Arm(profile)}


def accuracy(seeds: list[int], profile: Profile, films: int) -> dict[str, float | None]:
    """The three ratios, medians over ``seeds``; films: for training at each hospital, half as many for the test."""
    with Bar("generate", "film") as bar:
        hospitals = training_hospitals(profile.size_px, n_train=films, n_test=-(-films // 2), progress=bar)
    rows = []
    for seed in seeds:
        with Bar(f"train, seed {seed}", "film") as bar:
            arms = run_arms(arms_of(profile), hospitals, seed, progress=bar)
        scores = {name: evaluate(arm.predictions, hospitals) for name, arm in arms.items()}
        for name, score in scores.items():
            figures = f"{score['mre_mm']:.2f} mm, {score['mre_px']:.3f} px, PCK@0.05 {score['pck_0_05']:.4f}"
            print(f"seed {seed}, {name}: {figures}, {arms[name].cpu_seconds:.0f} CPU s", flush=True)
        rows.append(ratios(*scores.values()))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: None if None in column else statistics.median(column) for name, column in columns.items()}


def ratios(twice: dict, federated: dict, pooled: dict) -> dict[str, float | None]:
    """The three ratios of one seed; None for PCK where pooled training found nothing, as after a few rounds."""
    return {
        "mre_ratio_sample": federated["mre_mm"] / pooled["mre_mm"],
        "mre_ratio_sample_2x": twice["mre_mm"] / pooled["mre_mm"],
        "pck_ratio_sample": federated["pck_0_05"] / pooled["pck_0_05"] if pooled["pck_0_05"] else None,
    }


class Prepared(Hospital):
    """A hospital whose update is ready, so that a round costs what the loop itself does."""

    def local_update(self, global_vector: np.ndarray, task: RoundTask) -> Update:
        delta = np.full(global_vector.shape, 1e-4, np.float32)
        return Update(delta, self.data.labelled, {"losses": [0.0], "films": len(self.data.train)})


def tiny_data(number: int) -> HospitalData:
    """A hospital with a few films of noise: what they show does not matter here."""
    train, test = (noise_films(count, TINY.size_px) for count in (4, 1))
    return HospitalData(f"hospital {number:03}", COCO_JOINTS, train, test)


def loop_overhead_ms(rounds: int) -> float:
    """Median CPU ms between the ends of successive rounds."""
    hospitals, ends = [Prepared(tiny_data(number), TINY) for number in range(3)], []
    with reproducible("cpu"):
        run_rounds(hospitals, replace(TINY, rounds=rounds + 1), on_round=lambda *_: ends.append(time.process_time()))
    overhead = 1000 * statistics.median(np.diff(ends))
    print(f"a round of 3 hospitals whose updates are ready: {overhead:.2f} CPU ms, median of {rounds}", flush=True)
    return overhead


def ours(updates: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The mean by WeightedMean."""
    mean = added(updates, weights)
    return mean.result()


def added(updates: list[np.ndarray], weights: np.ndarray) -> WeightedMean:
    """A WeightedMean that has taken in all ``updates`` and is not finished."""
    mean = WeightedMean()
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update, float(weight))
    return mean


def flare(updates: list, weights: np.ndarray) -> np.ndarray:
    """The mean by what FLARE's InTimeAccumulateWeightedAggregator calls, one entry of its dictionary of parameters."""
    from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper  # tests' own

    helper = WeightedAggregationHelper()
    for number, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        helper.add({"vector": update}, float(weight), f"hospital {number}", 0)
    return np.asarray(helper.get_result()["vector"])


def aggregation(parameters: int, repeats: int) -> tuple[float, float]:
    """(FLARE's time over ours, share of the memory copy's speed) for UPDATES updates of so many parameters."""
    import torch

    rng = np.random.default_rng(0)
    updates = [1e-3 * rng.standard_normal(parameters, np.float32) for _ in range(UPDATES)]
    weights, target = equal_weights(UPDATES), np.zeros(parameters, np.float32)
    tensors = [torch.from_numpy(update) for update in updates]
    works = {
        "ours": lambda: ours(updates, weights),
        "FLARE": lambda: flare(updates, weights),
        "FLARE on torch tensors": lambda: flare(tensors, weights),
        "ours, add alone": lambda: added(updates, weights),
        "memory copy": lambda: [np.copyto(target, update) for update in updates],
    }
    with reproducible("cpu"):
        seconds = dict(zip(works, medians(repeats, *works.values(), warm=True), strict=True))
    rates = ", ".join(f"{name} {UPDATES * parameters / each / 1e6:.0f}" for name, each in seconds.items())
    print(f"{UPDATES} updates of {parameters / 1e6:.3f} million parameters, million parameters per CPU s: {rates}")
    for name, aggregate in (("ours", ours), ("FLARE", flare)):
        print(f"  {name}: {exactness(aggregate, updates, weights)}", flush=True)
    return seconds["FLARE"] / seconds["ours"], seconds["memory copy"] / seconds["ours, add alone"]


def exactness(aggregate: Aggregate, updates: list[np.ndarray], weights: np.ndarray) -> str:
    """How far the mean is from math.fsum, as a share of the exact means' spread, and whether order changes bits."""
    mean, backward = aggregate(updates, weights), aggregate(updates[::-1], weights[::-1])
    columns = np.stack([update[:CHECKED] for update in updates], axis=1).tolist()
    exact = np.array([math.fsum(column) / len(column) for column in columns])
    error = np.abs(mean[:CHECKED] - exact).max() / exact.std()
    moved = int(np.count_nonzero(mean != backward))
    return f"largest error {error:.1e} of the spread; backward, {moved} of {mean.size} parameters differ"


def peak_mb(hospitals: int) -> tuple[float, float]:
    """(peak less baseline, baseline) in megabytes of a federation of so many hospitals in this process."""
    Hospital(tiny_data(0), TINY)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one imports 150 MB
    baseline = memory_mb("VmRSS")
    everyone = [Hospital(tiny_data(number), TINY) for number in range(hospitals)]
    run_rounds(everyone, replace(TINY, rounds=MEMORY_ROUNDS))
    return memory_mb("VmHWM") - baseline, baseline


def hospitals_peak_mb(hospitals: int) -> float | None:
    """Of that many, and for comparison of FEW, each in a process of its own."""
    if not STATUS.exists():
        return None
    peaks = {}
    for count in (FEW, hospitals):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            peaks[count], baseline = executor.submit(peak_mb, count).result()
        figures = f"{peaks[count]:.1f} MB over a baseline of {baseline:.0f} MB"
        print(f"{count} hospitals, {MEMORY_ROUNDS} rounds: at most {figures}", flush=True)
    more = (peaks[hospitals] - peaks[FEW]) / (hospitals - FEW)
    print(f"a further hospital: {more:.2f} MB, {more / VECTOR_MB:.1f} times its model's parameters")
    return peaks[hospitals]


def main() -> None:
    """Measure, print what was found, then the results as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-training", action="store_true", help="leave the three figures of accuracy null")
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0, 1, 2], help="of the training (default 0 1 2)")
    parser.add_argument("--rounds", type=positive, default=PROFILE.rounds, help="of the training (default: all)")
    parser.add_argument("--films", type=positive, default=200, help="for training at each hospital (default 200)")
    parser.add_argument("--repeats", type=positive, default=9, help="of each side of a ratio (default 9)")
    parser.add_argument("--parameters", type=positive, default=LARGE, help="of the large update (default 28.5 million)")
    args = parser.parse_args()
    trained = dict.fromkeys(("mre_ratio_sample", "mre_ratio_sample_2x", "pck_ratio_sample"))
    if not args.skip_training:
        trained = accuracy(args.seeds, replace(PROFILE, rounds=args.rounds), args.films)
    overhead = loop_overhead_ms(10 * args.repeats)
    (small, _), (large, share) = (aggregation(count, args.repeats) for count in (SMALL, args.parameters))
    figures = {
        **trained,
        "loop_overhead_ms_per_round": overhead,
        "aggregate_vs_flare": min(small, large),
        "aggregate_bandwidth_share": share,
        "hospitals_100_peak_mb": hospitals_peak_mb(100),
    }
    print(json.dumps({name: value and round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
