"""The loop of a federation: broadcast, train at each hospital, aggregate, repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedbone.config import Profile
from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.federation.strategies import ServerMomentum, equal_weights, joint_factor, weighted_mean
from fedbone.model.hrnet import build_for
from fedbone.privacy.dp import GaussianNoise
from fedbone.vectors import layout_of, sha256, to_vector


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One row of the history: the public facts of a round, and the hospitals' losses (shown only because simulated)."""

    round: int
    vector_sha256: str
    update_norm: float
    losses: dict[str, float]


OnRound = Callable[[RoundRecord, np.ndarray], None]


def initial_vector(profile: Profile, joints: int, seed: int) -> np.ndarray:
    """The model that the server sends out first.

    Raises UserError for a profile with BatchNorm, whose running statistics a vector does not carry.
    """
    if profile.norm != "group":
        remedy = "Use norm='group', or train on films in one place: python -m fedbone train --norm batch"
        raise UserError(f"profile {profile.name}", f"norm={profile.norm!r} cannot be federated", remedy)
    return to_vector(build_for(profile, joints, seed))


def require_sound(hospital: str, delta: np.ndarray, size: int) -> None:
    """Raises UserError, naming the hospital, unless ``delta`` is a finite float32 vector (size,).

    One NaN in one update would turn the whole global model into NaN in a single round.
    """
    if delta.dtype != np.float32 or delta.shape != (size,):
        problem = f"its update is {delta.dtype} {delta.shape}, the model needs float32 ({size},)"
        raise UserError(hospital, problem, "Give every hospital the same version of fedbone and the same profile")
    if not np.isfinite(delta).all():
        raise UserError(hospital, "its update holds NaN or infinity", "Leave it out of the round, and look at its log")


def run_rounds(
    hospitals: list[Hospital],
    profile: Profile,
    seed: int = 0,
    noise: GaussianNoise | None = None,
    on_round: OnRound | None = None,
) -> tuple[np.ndarray, list[RoundRecord]]:
    """``profile.rounds`` rounds with all hospitals; returns the final global vector (P,) and the history.

    The order of ``hospitals`` does not matter. ``on_round`` is called after each round with its record and the vector.
    """
    hospitals = sorted(hospitals, key=lambda h: h.name)
    joints = len(hospitals[0].data.joints)
    vector, weights = initial_vector(profile, joints, seed), equal_weights(len(hospitals))
    layout = layout_of(build_for(profile, joints))
    server, history = ServerMomentum(profile.server_momentum), []
    for index in range(profile.rounds):
        updates = [h.local_update(vector, RoundTask(index, seed)) for h in hospitals]
        for h, update in zip(hospitals, updates, strict=True):
            require_sound(h.name, update.delta, layout.size)
        deltas = [noise.prepare(u.delta) if noise else u.delta for u in updates]
        mean = weighted_mean(deltas, weights)
        mean = noise.add(mean) if noise else mean
        if profile.joint_rows:
            mean = mean * layout.row_factor(joint_factor([u.labelled_joints for u in updates], weights))
        vector = server.step(vector, mean)
        losses = {h.name: u.report["losses"][-1] for h, u in zip(hospitals, updates, strict=True)}
        history.append(RoundRecord(index, sha256(vector), float(np.linalg.norm(mean)), losses))
        if on_round:
            on_round(history[-1], vector)
    return vector, history
