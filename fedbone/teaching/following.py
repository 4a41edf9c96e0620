"""What a reader of ``make run`` sees of the time: an estimate first, then what the notebooks' progress bars would show.

A stored notebook shows no bars, so the kernel leaves notes in a file, and this looks at it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from fedbone.config import Profile, own_data
from fedbone.model.pace import MEASURED_STEPS, Pace, duration, forecast
from fedbone.teaching.setup import Machine

SAY_EVERY_S = 60.0
TRAINING_FILMS = 600  # of the workbook's own three hospitals
ARMS = 3  # times that notebook 05 shows each of them: federated, pooled, alone
SHORT_ROUNDS = 48  # of the cpu profile there: its tables have all rounds
OTHER_PASSES = 8_000  # presentations in notebooks 03 and 04, about


def variables(profile: str | None) -> dict[str, str]:
    """The environment variables that give a profile by its name to kernels; none where the reader named none."""
    return {"FEDBONE_PROFILE": profile} if profile else {}


def presentations_of_the_workbook(profile: Profile) -> float:
    """Film presentations of all notebooks on the workbook's own hospitals."""
    rounds = min(SHORT_ROUNDS, profile.rounds) if profile.name == "cpu" else profile.rounds
    return TRAINING_FILMS * ARMS * rounds * profile.local_epochs + OTHER_PASSES


def expected(profile: Profile) -> str:
    """One line before the start: how long the notebooks will train."""
    if own_data():
        return "training: how long depends on your films; the time left is printed while it runs"
    passes = presentations_of_the_workbook(profile)
    gpu = Machine().nvidia_smi().partition(",")[0] if profile.device == "cuda" else ""
    return f"training, {profile.name} profile: {forecast(profile, passes, gpu, min(ARMS, os.cpu_count() or 1))}"


class Follower:
    """Called now and then while a notebook runs: says the time left of its long work, at most once a minute.

    note: the file that ``fedbone.progress.Bar`` writes. The first line comes after MEASURED_STEPS optimiser steps, or
    as many films as those show; of a bar that counts rounds after one more round, which has more steps than that.
    """

    def __init__(self, note: Path, profile: Profile, say: Callable[[str], None]) -> None:
        self.note, self.profile, self.say = note, profile, say
        self.title, self.pace, self.said_at_s = "", Pace(1), 0.0
        note.unlink(missing_ok=True)  # of an earlier notebook

    @property
    def indent(self) -> str:
        """What must stand before the next words on the terminal: nothing while its line is still open."""
        return "    " if self.said_at_s else ""

    def __call__(self) -> None:
        """Read the note and say the time left, where there is something new to say."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or just being replaced
            return
        title, unit, done, total, at_s = (note[key] for key in ("title", "unit", "done", "total", "at_s"))
        if title != self.title:
            enough = {"round": 1, "step": MEASURED_STEPS}.get(unit, MEASURED_STEPS * self.profile.batch)
            self.title, self.pace = title, Pace(enough)
        left = self.pace.remaining_s(done, total, at_s)
        if left and at_s - self.said_at_s >= SAY_EVERY_S:
            self.say(f"{self.indent or chr(10) + '    '}{title}: {done:,} of {total:,} {unit}s, {duration(left)} left")
            self.said_at_s = at_s
