"""What a federation publishes of its rounds: who was asked, who took part, who did not and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

TOOK_PART, NOT_ASKED, ABSENT, LATE, FAILED, REFUSED = "took part", "not asked", "absent", "late", "failed", "refused"


@dataclass(frozen=True)
class HospitalRow:
    """One hospital in one round.

    status: took part, not asked, absent, late, failed or refused; reason: why it did not take part; weight: of its
    update in the mean; update_norm: L2 norm of its update, None where it did not take part, and under differential
    privacy, whose guarantee covers neither it nor the loss; loss: of its last local epoch, None unless released.
    """

    status: str
    reason: str = ""
    weight: float = 0.0
    update_norm: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class RoundRecord:
    """One round: the fingerprint of the model after it, the L2 norm of the mean update, and every hospital's row."""

    round: int
    vector_sha256: str
    update_norm: float
    hospitals: dict[str, HospitalRow]

    @property
    def losses(self) -> dict[str, float]:
        """By hospital, the losses that were released."""
        return {name: row.loss for name, row in self.hospitals.items() if row.loss is not None}


def history_rows(history: Iterable[RoundRecord]) -> list[dict]:
    """The tidy table: one row {round, hospital, status, reason, weight, update_norm, loss} per round and hospital."""
    return [
        {"round": record.round, "hospital": name, **vars(row)}
        for record in history
        for name, row in record.hospitals.items()
    ]


def to_json(history: Iterable[RoundRecord]) -> list[dict]:
    """The history as JSON values."""
    return [{**vars(r), "hospitals": {name: vars(row) for name, row in r.hospitals.items()}} for r in history]


def from_json(rows: list[dict]) -> list[RoundRecord]:
    """The history that ``to_json`` wrote, to the last bit of every number."""
    return [
        RoundRecord(**{**row, "hospitals": {name: HospitalRow(**h) for name, h in row["hospitals"].items()}})
        for row in rows
    ]
