"""Why a film cannot be read, before it is known which file it came from."""

from __future__ import annotations


class Refusal(ValueError):
    """A film that is not read: ``problem`` and ``remedy``, neither of which quotes free text of the header."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(problem)


AGAIN = "Copy or export it again from its source"
