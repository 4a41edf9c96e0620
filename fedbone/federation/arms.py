"""Federated, pooled and local-only training side by side, each in a process of its own with one thread.

Every arm shows each film equally often, so that differences come from who sees which films (a hospital with fewer
films than an epoch has parts shows its films more often).
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from fedbone.config import Profile
from fedbone.errors import UserError
from fedbone.federation.evaluation import Predictions, predict_all
from fedbone.federation.hospital import Hospital
from fedbone.federation.monitor import Monitor, OnRow
from fedbone.federation.rounds import RoundRecord, initial_vector, run_rounds
from fedbone.federation.strategies import Strategy
from fedbone.imaging.dataset import FilmSet, HospitalData, pool
from fedbone.model.fit import fit
from fedbone.model.hrnet import build_for
from fedbone.model.schedule import films_shown
from fedbone.model.training import predict
from fedbone.vectors import load_vector, to_vector
from fedbone.workers import begin_worker

Progress = Callable[[int, int, str], None]
POOLED = "pooled"  # the arm that has all films in one place


@dataclass(frozen=True)
class Arm:
    """How one arm trains; ``strategy`` matters to a federation alone."""

    profile: Profile
    strategy: Strategy = field(default_factory=Strategy)


@dataclass(frozen=True)
class ArmResult:
    """What one arm leaves behind; curve: rows {round, presentations, pck_0_05, mre_px} on the test films it is for."""

    name: str
    vector: np.ndarray
    predictions: Predictions
    history: list[RoundRecord]
    curve: list[dict]
    cpu_seconds: float


@dataclass(frozen=True)
class Folders:
    """Where arms write: TensorBoard scalars, and state files from which a killed run continues; None: nowhere."""

    log: Path | None = None
    state: Path | None = None


def run_arm(
    name: str,
    arm: Arm,
    hospitals: list[HospitalData],
    seed: int,
    folders: Folders,
    tick: Callable[[str, dict], None],
    processes: int = 1,
) -> ArmResult:
    """Train one arm and predict all test films: ``pooled``, a hospital's name (local-only), or any name (federated).

    ``tick(name, row)`` is called after each round. processes: for the hospitals of a federation.
    """
    started = time.process_time()
    local = [h for h in hospitals if h.name == name]
    own, profile = local or hospitals, arm.profile
    shown = partial(presentations, own, profile, name == POOLED)
    monitor = Monitor(name, own, profile.rounds, shown, folders.log, tick)
    state = folders.state / f"{name}.safetensors" if folders.state else None
    if local or name == POOLED:
        model = _train_alone(pool([h.train for h in own]), len(own[0].joints), profile, seed, monitor, state)
        vector, history, predictions = to_vector(model), [], predict_all(model, hospitals, profile)
    else:
        workers = [Hospital(h, profile, arm.strategy.local_norm) for h in own]

        def predictions_of(vector: np.ndarray) -> Predictions:
            return {w.name: predict(w.model_for(vector), w.data.test.images, profile) for w in workers}

        def after_round(record: RoundRecord, vector: np.ndarray) -> None:
            rows = {hospital: asdict(row) for hospital, row in record.hospitals.items()}
            monitor.after_round(record.round, lambda: predictions_of(vector), record.losses, rows)

        done = run_rounds(
            workers, profile, seed, strategy=arm.strategy, state=state, on_round=after_round, processes=processes
        )
        vector, history, predictions = done.vector, done.history, predictions_of(done.vector)
    return ArmResult(name, vector, predictions, history, monitor.curve, time.process_time() - started)


def _train_alone(
    films: FilmSet, joints: int, profile: Profile, seed: int, monitor: Monitor, state: Path | None
) -> nn.Module:
    """Ordinary training: one optimiser that keeps its moments, from the same first model as the federation."""
    model = build_for(profile, joints)
    load_vector(model, initial_vector(profile, joints, seed))

    def after_round(index: int, losses: list[float]) -> None:
        scored = partial(predict_all, model, monitor.hospitals, profile)
        monitor.after_round(index, scored, {monitor.name: losses[-1]}, None)

    fit(model, films, profile, seed, state, on_round=after_round, who=monitor.name)
    return model


def run_arms(
    arms: dict[str, Arm],
    hospitals: list[HospitalData],
    seed: int = 0,
    folders: Folders = Folders(),
    progress: Progress | None = None,
    on_row: OnRow | None = None,
    processes: int = 1,
) -> dict[str, ArmResult]:
    """All ``arms``, on the CPU in as many one-thread processes as there are cores; on a GPU one after the other.

    ``progress(done, total, text)`` counts film presentations over all arms: rounds of different arms take different
    times. ``on_row(name, row)``: what an arm has to show after a round {round, hospitals, per_joint, mre_px}. Both are
    called after each round. processes: for the hospitals of a single arm, which has the cores to itself; the result is
    the same. Interrupting stops the processes.
    """
    def shown_by(name: str, rounds: int | None = None) -> int:
        own = [h for h in hospitals if h.name == name] or hospitals
        return presentations(own, arms[name].profile, name == POOLED, rounds)

    shown, total = Counter(), sum(map(shown_by, arms))

    def tick(name: str, row: dict) -> None:
        shown[name] = shown_by(name, row["round"] + 1)
        if on_row:
            on_row(name, row)
        if progress:
            progress(shown.total(), total, name)

    on_gpu = any(arm.profile.device != "cpu" for arm in arms.values())
    if len(arms) == 1 or on_gpu:
        processes = 1 if on_gpu else min(processes, len(hospitals))
        return {name: run_arm(name, arm, hospitals, seed, folders, tick, processes) for name, arm in arms.items()}
    return _in_processes(arms, hospitals, seed, folders, tick)


def _in_processes(
    arms: dict[str, Arm], hospitals: list[HospitalData], seed: int, folders: Folders, tick: OnRow
) -> dict[str, ArmResult]:
    """Each arm in a process of its own, as many at a time as there are cores."""
    context = multiprocessing.get_context("spawn")
    ticks = context.Queue()
    workers = min(len(arms), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(ticks,)) as executor:
        try:
            futures = {n: executor.submit(_run_in_worker, n, a, hospitals, seed, folders) for n, a in arms.items()}
            _follow(list(futures.values()), ticks, tick)
        except BrokenProcessPool as error:
            remedy = "Run it again; with a state folder finished rounds are kept. Look at the memory first"
            raise UserError("training", "a process that trained an arm was ended from outside", remedy) from error
        except BaseException:  # an interrupt must not leave processes training for nobody
            executor.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        return {name: future.result() for name, future in futures.items()}


def _follow(futures: list[Future], ticks, tick: OnRow) -> None:
    """Pass the workers' ticks on until all are done; raise the first error at once."""
    pending = set(futures)
    while pending:
        finished, pending = wait(pending, timeout=0.2)
        for future in finished:
            future.result()
        while not ticks.empty():
            tick(*ticks.get())


_ticks = None  # the worker's end of the progress queue


def _start_worker(ticks) -> None:
    global _ticks
    _ticks = ticks
    begin_worker()


def _run_in_worker(name: str, arm: Arm, hospitals: list[HospitalData], seed: int, folders: Folders) -> ArmResult:
    return run_arm(name, arm, hospitals, seed, folders, lambda *row: _ticks.put(row))


def presentations(
    hospitals: list[HospitalData], profile: Profile, pooled: bool = False, rounds: int | None = None
) -> int:
    """Film presentations of the first ``rounds`` rounds (default: all): films x local epochs x rounds.

    pooled: of all films in one set; parts of an epoch are then cut otherwise, which differs by a few films a round.
    """
    sets = [len(h.train) for h in hospitals]
    return sum(films_shown(films, profile, rounds) for films in ([sum(sets)] if pooled else sets))


def rounds_for(films: int, profile: Profile) -> Profile:
    """The profile with enough rounds for a small collection: at least TARGET presentations, at most MOST_EPOCHS."""
    epochs = min(MOST_EPOCHS, max(profile.rounds * profile.local_epochs, -(-TARGET_PRESENTATIONS // films)))
    return replace(profile, rounds=round(epochs / profile.local_epochs))


TARGET_PRESENTATIONS = 18_000
MOST_EPOCHS = 120
