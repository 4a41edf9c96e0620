"""Profiles, paths and environment variables: every default of the workbook in one place.

| variable | meaning |
|---|---|
| FEDBONE_PROFILE | cpu (default), t4, t4-article or a100 |
| FEDBONE_ROUNDS | fewer rounds for a quick run; claims that need the full run are then left to ``make run`` |
| FEDBONE_DATA | a folder with one sub-folder per hospital: use these films in place of the generated ones |
| FEDBONE_BUILD | where results, caches and the executed book go (default: build/ in the repository) |
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from fedbone.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE = REPOSITORY / "data" / "sample"
WEIGHTS = SAMPLE / "weights"
COARSEST_PX = 32  # one pixel of HRNet's coarsest branch, in pixels of the film: sides are multiples of it


@dataclass(frozen=True, slots=True)
class Profile:
    """One set of choices for one kind of machine; notebooks 02, 03 and 05 give the reason for each."""

    name: str
    preset: str  # HRNet preset, see fedbone.model.hrnet.PRESETS
    size_px: int  # side of the square input
    own_size_px: int  # the same for a reader's own films, where landmarks ask for millimetres
    batch: int  # films an optimiser step
    device: str  # cpu | cuda
    precision: str  # fp32 | fp16 | bf16
    sigma_px: float  # spread of the target, in heatmap pixels
    micro_batch: int | None = None  # films a pass through the network; a batch is the sum of its passes (None: one)
    checkpointing: bool = False  # keep the blocks' inputs only and compute the rest again on the way back
    norm: str = "group"  # group | batch, see fedbone.model.hrnet
    rounds: int = 120
    local_epochs: float = 0.25  # a whole number, or 1 / n: then n rounds show each film once
    learning_rate: float = 1e-3
    round_decay: float = 1.0  # factor on the learning rate after each round
    cooldown: float = 0.3  # share of the rounds, at the end, in which the rate falls to zero in a line
    wing_weight: float = 0.02  # from the second epoch on; the first is cross-entropy alone
    rotation_deg: float = 15.0
    brightness: float = 0.10

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch < 1 or not 0 <= self.cooldown <= 1 or not 0 < self.local_epochs < 1e6:
            given = f"{self.rounds}, {self.batch}, {self.cooldown} and {self.local_epochs}"
            raise ValueError(f"rounds, batch, cooldown and local_epochs are {given}: at least 1, 1, 0 to 1, above 0")
        whole = self.local_epochs if self.local_epochs >= 1 else 1 / self.local_epochs
        if abs(whole - round(whole)) > 1e-6:
            raise ValueError(f"local_epochs is {self.local_epochs}; give a whole number, or 1 divided by one")


PROFILES = {
    "cpu": Profile("cpu", "w8n", 128, 256, 8, "cpu", "fp32", 1.5),
    "t4": Profile("t4", "w18", 256, 512, 16, "cuda", "fp16", 2.0),
    "t4-article": Profile("t4-article", "w32", 512, 512, 16, "cuda", "fp16", 2.0),
    "a100": Profile("a100", "w32", 512, 512, 32, "cuda", "bf16", 2.0),
}


def get_profile(name: str | None = None, **changes: object) -> Profile:
    """The profile ``name`` (default: FEDBONE_PROFILE, else cpu) with ``changes`` applied.

    Raises UserError for an unknown name, for a GPU profile without a usable GPU, and for a bad FEDBONE_ROUNDS.
    """
    name = name or os.environ.get("FEDBONE_PROFILE") or "cpu"
    if name not in PROFILES:
        raise UserError("FEDBONE_PROFILE", f"unknown profile {name!r}", f"Use one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    if profile.device == "cuda":
        _require_gpu(name)
    rounds = os.environ.get("FEDBONE_ROUNDS")
    if rounds and "rounds" not in changes:
        if not rounds.isdigit() or int(rounds) < 1:
            raise UserError("FEDBONE_ROUNDS", f"got {rounds!r}", "Give a whole number of rounds, 1 or more")
        changes["rounds"] = int(rounds)
    return replace(profile, **changes)


def _require_gpu(name: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"profile {name}",
            "it needs a CUDA GPU and PyTorch sees none",
            "Use --profile cpu (FEDBONE_PROFILE=cpu), or see the set-up cell of notebook 00 if nvidia-smi lists a GPU",
        )


def is_full_run() -> bool:
    """True unless FEDBONE_ROUNDS shortens the training: only then do claims about the full run apply."""
    return not os.environ.get("FEDBONE_ROUNDS")


def build_dir() -> Path:
    """Folder for everything a run writes; made on first use."""
    path = (REPOSITORY / Path(os.environ.get("FEDBONE_BUILD") or "build").expanduser()).resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            path, f"cannot be made ({error.strerror})", "Set FEDBONE_BUILD to a folder you can write"
        ) from error
    return path


def own_data() -> Path | None:
    """The reader's own films (FEDBONE_DATA), or None for the workbook's own hospitals."""
    value = os.environ.get("FEDBONE_DATA")
    # a kernel works in notebooks/, so a relative path counts from the repository
    return (REPOSITORY / Path(value).expanduser()).resolve() if value else None
