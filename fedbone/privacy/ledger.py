"""What each hospital's patients have spent, in a file that outlives the process.

Within a hospital epsilon adds up over everything that was ever released about its patients. Between hospitals whose
patients are disjoint it does not: whoever is in one hospital only loses what that one spent (parallel composition:
McSherry, SIGMOD 2009, theorem 4), so that the whole has the largest epsilon, not the sum.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedbone.errors import UserError
from fedbone.files import alone, sync_folder, write_json
from fedbone.privacy.accounting import NoisyRounds, composed_epsilon

Spent = dict[str, list[NoisyRounds]]


@dataclass(frozen=True)
class Ledger:
    """The spendings in the file ``path``, at ``dp_delta``; ``epsilon_limit``: of each hospital, None for no limit.

    Several processes may use one file. Rounds are noted, not epsilons, so that they add up exactly and any ``dp_delta``
    can be asked for. Every method raises UserError for a file that is damaged; it is never replaced by a fresh one.
    """

    path: Path
    dp_delta: float
    epsilon_limit: float | None = None

    def spend(self, who: str, noise_multiplier: float, sampling_rate: float, rounds: int) -> None:
        """Note ``rounds`` of noise on the patients of ``who``; it is on the disk when this returns.

        Call it before anything noisy leaves the hospital: a run that is killed in between has paid for nothing, which
        is safe. Raises UserError, with nothing spent, for what would pass the limit, and ValueError as ``NoisyRounds``
        does.
        """
        new = NoisyRounds(noise_multiplier, sampling_rate, rounds)
        if not isinstance(who, str):
            raise ValueError(f"who must be a name, got {who!r}")
        with alone(self._lock) as marker:
            spent = self._read()
            spent[who] = _added(spent.get(who, []), new)
            self._require_within_limit(who, spent[who])
            self._write(spent)
            if not marker.tell():
                marker.write(b"this ledger has begun")

    def epsilon(self, who: str) -> float:
        """epsilon of a patient of ``who`` after everything spent so far; 0 before the first."""
        return composed_epsilon(self._read().get(who, []), self.dp_delta)

    def total(self) -> float:
        """epsilon of any patient, each being in one hospital only: the largest of the hospitals'."""
        return max((composed_epsilon(spent, self.dp_delta) for spent in self._read().values()), default=0.0)

    def _require_within_limit(self, who: str, spent: list[NoisyRounds]) -> None:
        if self.epsilon_limit is None:
            return
        after = composed_epsilon(spent, self.dp_delta)
        if not after <= self.epsilon_limit:
            problem = f"{who} would have spent an epsilon of {after:.4g}, and its limit is {self.epsilon_limit:.4g}"
            raise UserError(self.path, problem, "Stop here: train fewer rounds, or plan them with more noise")

    @property
    def _file(self) -> Path:
        """The file itself: replacing a link would begin a second ledger beside the one it leads to."""
        return Path(self.path).resolve()

    @property
    def _lock(self) -> Path:
        return self._file.with_name(f"{self._file.name}.lock")

    def _read(self) -> Spent:
        remedy = "Restore it from a backup: a new ledger would forget what these patients have already spent"
        if not self._file.exists():
            if Path(self.path).is_symlink() or (self._lock.exists() and self._lock.stat().st_size):
                raise UserError(self.path, "the privacy ledger is gone, and there was one", remedy)
            return {}
        try:
            content = json.loads(self._file.read_bytes())
            if content["sha256"] != _digest(content["spent"]):
                raise ValueError("its checksum does not fit")
            return {who: [NoisyRounds(**part) for part in parts] for who, parts in content["spent"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(self.path, f"the privacy ledger is damaged ({error})", remedy) from error

    def _write(self, spent: Spent) -> None:
        plain = {who: [asdict(part) for part in parts] for who, parts in spent.items()}
        write_json(self._file, {"spent": plain, "sha256": _digest(plain)})
        sync_folder(self._file.parent)  # the new name must survive a power failure too


def _added(spent: list[NoisyRounds], new: NoisyRounds) -> list[NoisyRounds]:
    """With rounds of one kind in one entry, which is composed far faster."""
    for index, part in enumerate(spent):
        if replace(part, rounds=new.rounds) == new:
            return [*spent[:index], replace(part, rounds=part.rounds + new.rounds), *spent[index + 1 :]]
    return [*spent, new]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
