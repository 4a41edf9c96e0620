"""What to say when memory runs out: what was asked of it, what it has, and what would fit."""

from __future__ import annotations

import torch

from fedbone.config import COARSEST_PX, Profile
from fedbone.errors import UserError
from fedbone.model.planner import largest_batch


def out_of_memory(profile: Profile, size_px: int) -> UserError:
    """The error for a training step of films (size_px, size_px) that did not fit into memory; not raised here."""
    device, total_gb, usable_gb = gpu_memory() if profile.device == "cuda" else main_memory()
    films = profile.micro_batch or profile.batch
    passes = f"batch {profile.batch}" + (f" in passes of {films}" if films < profile.batch else "")
    problem = (
        f"{profile.preset} at {size_px} px, {profile.precision}, {passes} does not fit into the memory of {device}: "
        f"{total_gb:.1f} GB, of which {usable_gb:.1f} GB are free for this program"
    )
    return UserError(f"profile {profile.name}", problem, remedy(profile, size_px, usable_gb))


def gpu_memory() -> tuple[str, float, float]:
    """(name, size, what this program can have of it) of the current GPU, in GB of 1e9 bytes."""
    free, total = torch.cuda.mem_get_info()
    allowed = total * torch.cuda.get_per_process_memory_fraction()
    usable = min(free + torch.cuda.memory_reserved(), allowed)
    return torch.cuda.get_device_name(), total / 1e9, usable / 1e9


def main_memory() -> tuple[str, float, float]:
    """The same of this computer; a limit set for this process is not known."""
    import psutil  # a GPU machine need not have it

    memory = psutil.virtual_memory()
    return "this computer", memory.total / 1e9, memory.available / 1e9


def remedy(profile: Profile, size_px: int, memory_gb: float) -> str:
    """The mildest change that fits into ``memory_gb``: smaller passes, then checkpointing, then smaller films."""
    passed = profile.micro_batch or profile.batch
    # what the planner calls possible has just failed if it is as large as this: half of it, then
    films = min(_fitting(profile, size_px, memory_gb, profile.checkpointing), passed // 2)
    if films:
        return f"Take {_micro(films)}: the same gradients in smaller passes"
    films = 0 if profile.checkpointing else min(_fitting(profile, size_px, memory_gb, True), passed)
    if films:
        text = "Take checkpointing=True (--checkpointing)"
        return f"{text} and {_micro(films)}" if films < passed else text
    for smaller in range((size_px - 1) // COARSEST_PX * COARSEST_PX, 0, -COARSEST_PX):
        films = min(_fitting(profile, smaller, memory_gb, True), passed)
        if films:
            return f"Take films of {smaller} px (--size {smaller}), checkpointing=True and {_micro(films)}"
    return "Take a smaller network (--preset w8n), or end the other programs that use the GPU"


def _fitting(profile: Profile, size_px: int, memory_gb: float, checkpointing: bool) -> int:
    return largest_batch(profile.preset, size_px, profile.precision, memory_gb, checkpointing=checkpointing)


def _micro(films: int) -> str:
    return f"micro_batch={films} (--micro-batch {films})"
