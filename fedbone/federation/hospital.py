"""A hospital: the only place where films meet a model. What leaves it is an ``Update``.

The same ``local_update`` runs in a notebook's loop, in a worker process and in a deployment.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from fedbone.config import Profile
from fedbone.imaging.dataset import HospitalData
from fedbone.model.hrnet import build_for
from fedbone.model.memory_format import in_fastest_format
from fedbone.model.training import Trainer, train_round
from fedbone.vectors import load_vector, to_vector


@dataclass(frozen=True, slots=True)
class RoundTask:
    """What the server asks for in one round."""

    round: int
    seed: int


@dataclass(frozen=True, slots=True)
class Update:
    """What a hospital returns: delta (P,) float32 and, per joint, whether it labels it (K public booleans).

    ``report`` (losses, film count) is for the hospital; it leaves only if the hospital's policy releases it. The server
    never needs it. The loop in ``rounds`` reads the losses because all its hospitals are simulated.
    """

    delta: np.ndarray
    labelled_joints: np.ndarray
    report: dict = field(repr=False)


class Hospital:
    """Films that stay, and the model they train in place."""

    def __init__(self, data: HospitalData, profile: Profile) -> None:
        self.data, self.profile = data, profile
        self._model = build_for(profile, len(data.joints))

    @property
    def name(self) -> str:
        return self.data.name

    def local_update(self, global_vector: np.ndarray, task: RoundTask) -> Update:
        """Train from ``global_vector`` (P,) for the local epochs of one round and return the difference.

        A fresh optimiser each round: nothing of the hospital survives between rounds. Raises ValueError when the
        vector does not fit the model, and its subclass UserError when training diverged.
        """
        load_vector(self._model, global_vector)
        films = self.data.train
        model = in_fastest_format(self._model, self.profile, films.images.shape[-1], len(self.data.joints))
        words = [task.seed, zlib.crc32(self.name.encode()), task.round]
        losses = train_round(Trainer(model, self.profile), films, task.round, words, self.name)
        delta = to_vector(self._model) - global_vector
        return Update(delta, self.data.labelled, {"losses": losses, "films": len(films)})
