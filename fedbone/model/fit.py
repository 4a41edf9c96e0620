"""The whole training of one model on one film set, which a killed process takes up again where it stood.

The state file holds everything the next step depends on: weights and running statistics, Adam's moments, the loss
scale, the place in the schedule and the random generator. On the CPU the resumed training therefore ends with the
same bytes as one that nobody disturbed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedbone.config import Profile
from fedbone.imaging.dataset import FilmSet
from fedbone.model.memory_format import in_fastest_format
from fedbone.model.schedule import passes, steps_in_all
from fedbone.model.training import Position, Trainer, reproducible, steps
from fedbone.run_state import digest, load_state, save_state
from fedbone.vectors import state_arrays

SAVE_EVERY_S = 30.0
FREE = ("micro_batch", "checkpointing", "own_size_px")  # may change between two calls
PATIENCE = 20  # times as long as a save took must pass before the next: W32 has 343 MB of state, and disks differ
OnRound = Callable[[int, list[float]], None]
OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class Fit:
    """What a training leaves behind, the model aside.

    losses: of each round, the mean loss of each epoch; new_steps: optimiser steps of this call, 0 when the state was
    of a finished training; seconds and cpu_seconds: of all calls together, as far as they were saved.
    """

    losses: list[list[float]]
    new_steps: int
    seconds: float
    cpu_seconds: float


def fit(
    model: nn.Module,
    films: FilmSet,
    profile: Profile,
    seed: int = 0,
    state: Path | None = None,
    on_round: OnRound | None = None,
    on_step: OnStep | None = None,
    *,
    who: str = "training",
    save_every_s: float = SAVE_EVERY_S,
) -> Fit:
    """Train ``model`` in place for ``profile.rounds`` rounds, with one optimiser that keeps its moments throughout.

    ``state``: a file that is written every ``save_every_s`` seconds and after each round, less often where saving is
    slow (``PATIENCE``), and at the end; it is read at the start where it exists. ``on_step(done, total, loss)`` and
    ``on_round(round, losses of its epochs)`` are called after each step and round of this call. Raises UserError when
    the state is damaged or of another training, and as ``steps``.
    """
    run = _Run(model, films, profile, seed, state)
    run.resume()
    while run.at.round < profile.rounds:
        with reproducible(profile.device):
            for loss in steps(run.trainer, films, run.at, who):
                run.new_steps += 1
                run.save_if_due(save_every_s)
                if on_step:
                    on_step(*run.done(), loss)
        index, losses = run.at.round, run.at.losses
        if on_round:
            on_round(index, losses)
        run.losses.append(losses)
        run.at = _start_of(index + 1, seed)
        run.save_if_due(0.0 if run.at.round < profile.rounds else None)
    return Fit(run.losses, run.new_steps, *run.clocks())


def _start_of(round_index: int, seed: int) -> Position:
    return Position(round_index, [seed])


class _Run:
    """A trainer and where it stands: what the state file holds."""

    def __init__(self, model: nn.Module, films: FilmSet, profile: Profile, seed: int, path: Path | None) -> None:
        self.path, self.films = path, films
        # of the model before training: a state of other films or another start is not continued
        self.belongs = _belongs(model, films, profile, seed) if path else {}
        model = in_fastest_format(model, profile, films.images.shape[-1], films.keypoints.shape[1])
        self.trainer, self.at = Trainer(model, profile), _start_of(0, seed)
        self.losses: list[list[float]] = []
        self.new_steps, self.earlier = 0, (0.0, 0.0)
        self.began = time.monotonic(), time.process_time()
        self.saved_at, self.saving_s = time.monotonic(), 0.0

    def done(self) -> tuple[int, int]:
        """(optimiser steps done, steps of the whole training)."""
        films, profile, at = len(self.films), self.trainer.profile, self.at
        a_pass = steps_in_all(films, profile, 1) // passes(profile)  # passes of one round are alike
        here = len(at.losses) * a_pass + len(at.step_losses)
        return steps_in_all(films, profile, at.round) + here, steps_in_all(films, profile)

    def clocks(self) -> tuple[float, float]:
        """(wall seconds, processor seconds), those of interrupted calls included."""
        now = time.monotonic(), time.process_time()
        return tuple(before + end - start for before, end, start in zip(self.earlier, now, self.began, strict=True))

    def save_if_due(self, every_s: float | None) -> None:
        """Write the state file, if one was asked for and it is time; None: whatever the time."""
        began = time.monotonic()
        early = every_s is not None and began - self.saved_at < max(every_s, PATIENCE * self.saving_s)
        if self.path is None or early:
            return
        self.save(self.path)
        self.saved_at = time.monotonic()
        self.saving_s = self.saved_at - began

    def save(self, path: Path) -> None:
        """Write all of it: the old or the new file is there whatever happens."""
        at = self.at
        arrays = {f"model.{name}": array for name, array in state_arrays(self.trainer.model).items()}
        arrays |= _moments(self.trainer)
        if at.order is not None:
            arrays["order"] = at.order
        place = {"round": at.round, "losses": at.losses, "step_losses": at.step_losses, "rounds": self.losses}
        place |= {"rng": at.rng.bit_generator.state, "scaler": self.trainer.scaler.state_dict()}
        save_state(path, "training", self.belongs, arrays, {"place": place, "clocks": self.clocks()})

    def resume(self) -> None:
        """Stand where the state file says; without one, at the start."""
        found = load_state(self.path, "training", self.belongs) if self.path else None
        if found is None:
            return
        arrays, header = found
        _restore(self.trainer, arrays, header["place"]["scaler"])
        place = header["place"]
        self.at = Position(place["round"], [self.belongs["seed"]], place["losses"], None, place["step_losses"])
        self.at.rng.bit_generator.state = place["rng"]
        self.at.order = arrays.get("order")
        self.losses, self.earlier = place["rounds"], tuple(header["clocks"])


def _belongs(model: nn.Module, films: FilmSet, profile: Profile, seed: int) -> dict:
    """What two trainings must share for one to go on where the other stopped.

    Not what only saves memory: who ran out of it in the middle goes on with smaller passes.
    """
    start = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in state_arrays(model).items()}
    return {
        **{name: value for name, value in asdict(profile).items() if name not in FREE},
        "seed": seed,
        "joints": films.keypoints.shape[1],
        "films": digest({"images": films.images, "keypoints": films.keypoints}, len(films)),
        "first weights": digest({}, start),
    }


def _moments(trainer: Trainer) -> dict[str, np.ndarray]:
    """Adam's state by parameter: ``exp_avg.NAME``, ``exp_avg_sq.NAME`` and ``step.NAME``."""
    return {
        f"{key}.{name}": value.cpu().contiguous().numpy()
        for name, parameter in trainer.model.named_parameters()
        for key, value in trainer.optimiser.state[parameter].items()
    }


def _restore(trainer: Trainer, arrays: dict[str, np.ndarray], scaler: dict) -> None:
    """Weights, moments and loss scale as they were, each in the memory format of its parameter."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, array in arrays.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = torch.from_numpy(array)
    trainer.model.load_state_dict(parts.pop("model"))
    parts.pop("order", None)
    for name, parameter in trainer.model.named_parameters():
        moments = {key: values[name] for key, values in parts.items() if name in values}
        trainer.optimiser.state[parameter] = {key: _like(parameter, value) for key, value in moments.items()}
    trainer.scaler.load_state_dict(scaler)


def _like(parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """A moment on the device and in the memory format of ``parameter``: another format would round differently."""
    if value.ndim == 0:  # the number of steps, which Adam keeps on the CPU
        return value.clone()
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
