"""A deployment's server and hospitals in one process: real kits, messages and checks, without FLARE between them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedbone.config import SAMPLE, get_profile
from fedbone.encryption.paillier_keys import insecure_test_key
from fedbone.encryption.signing import SigningKey
from fedbone.engines.flare import command, kits
from fedbone.engines.flare.hospital_side import HospitalSide
from fedbone.engines.flare.kit import load_parties
from fedbone.engines.flare.plan import Plan
from fedbone.engines.flare.run_folder import RunFolder
from fedbone.engines.flare.server import rounds_of
from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital, RoundTask, Update
from fedbone.federation.rounds import Outcome, RoundRules, run_rounds
from fedbone.imaging.folder import load_hospitals

SIZE_PX = 32
LANES = {"range": 0.01, "bits": 16}
Fault = Callable[[str, int, str], None]  # (task, round, hospital); may raise, for a hospital that does not answer


def sample_kits(out: Path) -> Path:
    """Kits for the three hospitals of data/sample, with their consent; the Paillier key is far too short."""
    real, kits.generate = kits.generate, insecure_test_key
    try:
        hospitals, _ = load_hospitals(SAMPLE, SIZE_PX)
        kits.create_kits(out, {h.name: (SAMPLE / h.name, h) for h in hospitals}, "localhost", None)
    finally:
        kits.generate = real
    command._sign_for_sample(out, [hospital.name for hospital in hospitals])
    return out


def plan_for(folder: Path, run: str, **changes: object) -> Plan:
    server = load_parties(folder)[0]
    directory = server.directory()
    plain = Plan(
        run=run,
        profile=get_profile("cpu", rounds=3, size_px=SIZE_PX),
        seed=0,
        hospitals=server.hospitals,
        joints=tuple(directory["hospital_a"]["joints"]),
        labels={name: tuple(entry["labels"]) for name, entry in directory.items()},
        min_hospitals=2,
    )
    hidden = changes.get("sums", "none") != "none"
    return replace(plain, **({"min_hospitals": 3, "lanes": LANES} if hidden else {}), **changes)


class Talk:
    """What stands in for FLARE: ``talk(...)`` is the server's ask. sides: the hospitals, made when they are needed."""

    def __init__(self, folder: Path, plan: Plan, fault: Fault | None = None) -> None:
        self.server, *hospitals = load_parties(folder)
        self.kits, self.plan, self.fault = {kit.name: kit for kit in hospitals}, plan, fault
        self.sides: dict[str, HospitalSide] = {}
        self.asked: list[tuple[str, int, str]] = []
        self.messages: list[bytes] = []

    def __call__(self, task, index, message, model, names, enough, accept) -> dict[str, str]:
        outcome = {}
        self.messages.append(message)
        for name in names:
            self.asked.append((task, index, name))
            try:
                if self.fault:
                    self.fault(task, index, name)
                at, answer = self._side(name).answer(task, message)
                assert at == index
                self.messages.append(answer)
                accept(name, answer)
                outcome[name] = "took part"
            except (UserError, ValueError, OSError) as error:
                outcome[name] = f"refused: {error}"
                if isinstance(error, OSError):
                    self.sides.pop(name, None)  # its process was killed: the next one knows what is on the disk
        return outcome

    def _side(self, name: str) -> HospitalSide:
        if name not in self.sides:
            self.sides[name] = HospitalSide(self.kits[name], self.plan)
        return self.sides[name]

    def run(self) -> np.ndarray | str:
        with RunFolder(self.server, self.plan, self.server.audit()).opened() as folder:
            return rounds_of(self.server, self.plan, folder).run(self)


def loop(plan: Plan, **options: object) -> Outcome:
    """The same run by ``run_rounds``."""
    hospitals, _ = load_hospitals(SAMPLE, SIZE_PX, plan.seed)
    there = [Hospital(hospital, plan.profile) for hospital in hospitals]
    rules = RoundRules(min_hospitals=plan.min_hospitals)
    return run_rounds(there, plan.profile, plan.seed, strategy=plan.strategy, rules=rules, **options)


def draw(hospital: Hospital, vector: np.ndarray, task: RoundTask) -> Update:
    """In place of ``Hospital.local_update``: a draw from [name, round, model], at once."""
    words = [zlib.crc32(hospital.name.encode()), task.round, zlib.crc32(vector.tobytes())]
    delta = np.random.default_rng(words).normal(0, 1e-3, len(vector)).astype(np.float32)
    return Update(delta, hospital.labelled, {"losses": [0.5]})


def officer(folder: Path, name: str) -> SigningKey:
    return SigningKey.load(folder / kits.OFFICERS / f"{name}.key")
