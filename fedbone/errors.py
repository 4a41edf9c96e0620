"""The one exception a user of fedbone should ever have to read."""

from __future__ import annotations

from pathlib import Path


class UserError(ValueError):
    """An input that fedbone cannot use: what came, what was expected, how to fix it.

    Attributes: ``where`` (file or option), ``problem``, ``remedy``. ``str()`` is one line.
    """

    def __init__(self, where: str | Path, problem: str, remedy: str) -> None:
        self.where, self.problem, self.remedy = str(where), problem, remedy
        super().__init__(f"{where}: {problem}. {remedy}")

    def __reduce__(self):  # ValueError would rebuild it from the joined text when it crosses processes
        return type(self), (self.where, self.problem, self.remedy), self.__dict__  # the notes are in __dict__
