"""Federated, pooled and local-only training side by side, each in a process of its own with one thread.

Every arm sees the same number of film presentations per film, so that differences come from who sees which films.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing.connection import wait as wait_for_exit
from pathlib import Path

import numpy as np

from fedbone.config import Profile
from fedbone.federation.evaluation import Predictions, evaluate, predict_all
from fedbone.federation.hospital import Hospital
from fedbone.federation.rounds import RoundRecord, initial_vector, run_rounds
from fedbone.imaging.dataset import FilmSet, HospitalData, pool
from fedbone.model.fit import fit
from fedbone.model.hrnet import build_for
from fedbone.vectors import load_vector, to_vector

Progress = Callable[[int, int, str], None]
CURVE_POINTS = 6  # evaluations on the test films along a run, for the figure alone: nothing is selected by them


@dataclass(frozen=True)
class ArmResult:
    """What one arm leaves behind; curve: rows {round, presentations, pck_0_05, mre_px} on the test films it is for."""

    name: str
    vector: np.ndarray
    predictions: Predictions
    history: list[RoundRecord]
    curve: list[dict]
    cpu_seconds: float


class _Monitor:
    """What an arm does after each round: report progress, write scalars, now and then look at the test films."""

    def __init__(self, arm: str, hospitals: list[HospitalData], profile: Profile, log_dir: Path | None, tick) -> None:
        self.arm, self.hospitals, self.profile, self.tick = arm, hospitals, profile, tick
        self.model = build_for(profile, len(hospitals[0].joints))
        self.curve: list[dict] = []
        self.every = max(1, profile.rounds // CURVE_POINTS)
        self.writer = None
        if log_dir is not None:
            from torch.utils.tensorboard import SummaryWriter  # three seconds of imports that only a log needs

            shutil.rmtree(log_dir / arm, ignore_errors=True)  # an earlier run's curve would be drawn into this one
            self.writer = SummaryWriter(str(log_dir / arm))

    def after_round(self, index: int, vector: np.ndarray, losses: dict[str, float]) -> None:
        last = index == self.profile.rounds - 1
        scalars = {f"loss/{name}": value for name, value in losses.items()}
        if last or (index + 1) % self.every == 0:
            load_vector(self.model, vector)
            metrics = evaluate(predict_all(self.model, self.hospitals, self.profile), self.hospitals)
            row = {name: metrics[name] for name in ("pck_0_05", "mre_px")}
            seen = presentations(self.hospitals, self.profile) * (index + 1) // self.profile.rounds
            self.curve.append({"round": index + 1, "presentations": seen, **row})
            scalars |= {f"test/{name}": value for name, value in row.items()}
        if self.writer:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, index + 1)
            self.writer.flush()
        self.tick(self.arm)


def run_arm(
    arm: str, hospitals: list[HospitalData], profile: Profile, seed: int, log_dir: Path | None, tick
) -> ArmResult:
    """Train one arm and predict all test films: ``pooled``, a hospital's name (local-only), or any name (federated).

    ``tick(arm)`` is called after each round.
    """
    started = time.process_time()
    local = [h for h in hospitals if h.name == arm]
    own = local or hospitals
    joints = len(own[0].joints)
    monitor = _Monitor(arm, own, profile, log_dir, tick)
    if local or arm == "pooled":
        vector, history = _train_alone(pool([h.train for h in own]), joints, profile, seed, monitor), []
    else:
        workers = [Hospital(h, profile) for h in own]
        vector, history = run_rounds(
            workers, profile, seed, on_round=lambda row, v: monitor.after_round(row.round, v, row.losses)
        )
    model = build_for(profile, joints)
    load_vector(model, vector)
    predictions = predict_all(model, hospitals, profile)
    return ArmResult(arm, vector, predictions, history, monitor.curve, time.process_time() - started)


def _train_alone(films: FilmSet, joints: int, profile: Profile, seed: int, monitor: _Monitor) -> np.ndarray:
    """Ordinary training: one optimiser that keeps its state, from the same first model as the federation."""
    model = build_for(profile, joints)
    load_vector(model, initial_vector(profile, joints, seed))

    def after_round(index: int, losses: list[float]) -> None:
        monitor.after_round(index, to_vector(model), {monitor.arm: losses[-1]})

    fit(model, films, profile, seed, on_round=after_round, who=monitor.arm)
    return to_vector(model)


def run_arms(
    arms: dict[str, Profile],
    hospitals: list[HospitalData],
    seed: int = 0,
    log_dir: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, ArmResult]:
    """All ``arms``, each with its profile; on the CPU in as many one-thread processes as there are cores.

    On a GPU they run one after the other.
    ``progress(done, total, text)`` counts film presentations over all arms: rounds of different arms take different
    times. It is called after each round. Interrupting stops the processes.
    """
    own = {arm: [h for h in hospitals if h.name == arm] or hospitals for arm in arms}
    total, done = sum(presentations(own[arm], profile) for arm, profile in arms.items()), 0

    def tick(arm: str) -> None:
        nonlocal done
        done += presentations(own[arm], arms[arm]) // arms[arm].rounds
        if progress:
            progress(done, total, arm)

    if len(arms) == 1 or any(profile.device != "cpu" for profile in arms.values()):
        return {arm: run_arm(arm, hospitals, profile, seed, log_dir, tick) for arm, profile in arms.items()}
    context = multiprocessing.get_context("spawn")
    ticks = context.Queue()
    workers = min(len(arms), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(ticks,)) as executor:
        try:
            futures = {a: executor.submit(_run_in_worker, a, hospitals, p, seed, log_dir) for a, p in arms.items()}
            _follow(list(futures.values()), ticks, tick)
        except BaseException:  # an interrupt must not leave processes training for nobody
            executor.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        return {arm: future.result() for arm, future in futures.items()}


def _follow(futures: list[Future], ticks, tick: Callable[[str], None]) -> None:
    """Pass the workers' ticks on until all are done; raise the first error at once."""
    pending = set(futures)
    while pending:
        finished, pending = wait(pending, timeout=0.2)
        for future in finished:
            future.result()
        while not ticks.empty():
            tick(ticks.get())


_ticks = None  # the worker's end of the progress queue


def _start_worker(ticks) -> None:
    global _ticks
    _ticks = ticks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers; they need not print tracebacks too
    end_with_parent()


def end_with_parent() -> None:
    """Let this worker process end when its parent does; an ``initializer`` for process pools.

    A killed parent cannot stop its workers, and a pool's worker would wait for work forever.
    """
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    wait_for_exit([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _run_in_worker(arm: str, hospitals: list[HospitalData], profile: Profile, seed: int, log_dir: Path | None):
    return run_arm(arm, hospitals, profile, seed, log_dir, _ticks.put)


def presentations(hospitals: list[HospitalData], profile: Profile) -> int:
    """Film presentations of the federated arm, and of the pooled one: films x local epochs x rounds."""
    return sum(len(h.train) for h in hospitals) * profile.local_epochs * profile.rounds


def rounds_for(films: int, profile: Profile) -> Profile:
    """The profile with enough rounds for a small collection: at least TARGET presentations, at most MOST_ROUNDS.

    With fewer films a round has fewer steps. The decay per round is eased so that the rate ends where it did.
    """
    rounds = min(MOST_ROUNDS, max(profile.rounds, -(-TARGET_PRESENTATIONS // films)))
    return replace(profile, rounds=rounds, round_decay=profile.round_decay ** (profile.rounds / rounds))


TARGET_PRESENTATIONS = 18_000
MOST_ROUNDS = 120
