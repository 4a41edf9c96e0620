"""A hospital: the only place where films meet a model. What leaves it is an ``Update``.

The same ``local_update`` runs in a notebook's loop, in a worker process and in a deployment.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from fedbone.config import Profile
from fedbone.errors import UserError
from fedbone.imaging.dataset import HospitalData
from fedbone.model.hrnet import build_for
from fedbone.model.memory_format import in_fastest_format
from fedbone.model.schedule import rate_share
from fedbone.model.training import Trainer, train_round
from fedbone.privacy.dpsgd import PatientPrivacy, private_steps
from fedbone.privacy.ledger import Ledger
from fedbone.run_state import digest
from fedbone.vectors import differences, layout_of, load_vector, state_arrays, to_vector

PERSONAL_RATE = 0.2  # of the profile's learning rate


@dataclass(frozen=True, slots=True)
class RoundTask:
    """What the server asks for in one round. proximal_mu: FedProx's mu, 0 for none."""

    round: int
    seed: int
    proximal_mu: float = 0.0


@dataclass(frozen=True, slots=True)
class Update:
    """What a hospital returns: delta (P,) float32 and, per joint, whether it labels it (K public booleans).

    ``report`` (losses, film count) is for the hospital, and the server never needs it. Of it only
    ``Hospital.released_loss`` may leave.
    """

    delta: np.ndarray
    labelled_joints: np.ndarray
    report: dict = field(repr=False)


@lru_cache(maxsize=1)
def _workbench(profile: Profile, joints: int) -> nn.Module:
    """The network in which all hospitals of this process train, one after the other: each fills it before it begins.

    A network each would cost 3.5 MB a hospital. For one thread at a time.
    """
    return build_for(profile, joints)


class Hospital:
    """Films that stay, and the model they train in place.

    local_norm: FedBN (Li et al., ICLR 2021), for a profile with norm="batch": the hospital has BatchNorm's parameters
    and running statistics to itself. release_losses: whether its policy lets the server see its training losses.
    privacy: DP-SGD in place of ordinary training, and the ledger that is charged before each round; losses and the
    number of films then stay. Raises UserError when norm and ``local_norm`` do not go together, for FedBN with privacy,
    and for privacy without a declared list of labels.
    """

    def __init__(
        self,
        data: HospitalData,
        profile: Profile,
        local_norm: bool = False,
        release_losses: bool = True,
        privacy: tuple[PatientPrivacy, Ledger] | None = None,
    ) -> None:
        if local_norm != (profile.norm == "batch"):
            problem = f"norm={profile.norm!r} and local_norm={local_norm} do not go together"
            remedy = "BatchNorm is federated with local_norm=True (FedBN), GroupNorm without"
            raise UserError(f"hospital {data.name}", problem, remedy)
        if privacy and local_norm:
            problem = "BatchNorm mixes the patients of a batch, so none has a gradient of their own to clip"
            raise UserError(f"hospital {data.name}", problem, "Train privately with norm='group'")
        if privacy and data.labels is None:
            problem = "its list of labelled joints is read off its films, and one patient could change it"
            raise UserError(f"hospital {data.name}", problem, "Declare it before the run, as HospitalData's labels")
        self.data, self.profile, self.local_norm, self.release_losses = data, profile, local_norm, release_losses
        self.privacy = privacy
        self._layout = layout_of(self._model, local_norm=local_norm)
        self._own: dict[str, np.ndarray] = {}

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def joints(self) -> tuple[str, ...]:
        return self.data.joints

    @property
    def labelled(self) -> np.ndarray:
        """(K,) bool: the joints that this hospital labels; public in the federation."""
        return self.data.labelled

    def films_digest(self) -> str:
        """sha256 of the name, the training films and their labels: a run goes on with the same films only.

        With privacy of the name alone: whoever knows all films but one patient's could test for them.
        """
        if self.privacy:
            return digest({}, self.name)
        films = self.data.train
        return digest({"images": films.images, "keypoints": films.keypoints}, self.name)

    @property
    def _model(self) -> nn.Module:
        return _workbench(self.profile, len(self.data.joints))

    def local_update(self, global_vector: np.ndarray, task: RoundTask) -> Update:
        """Train from ``global_vector`` (P,) for the local epochs of one round and return the difference.

        A fresh optimiser each round: between rounds nothing of the hospital survives but its norm under FedBN, of which
        the difference is zero. Raises ValueError when the vector does not fit the model, and its subclass UserError
        when training diverged; the norm is then as it was before the round, in round 0 none.
        """
        if task.round == 0:
            self._own = {}  # another federation begins, with the norm that the server sends
        self._fill(self._model, global_vector)
        report = {}
        if self.privacy:
            self._train_privately(task)
        else:
            report = {"losses": self._train(self._model, self.profile, task), "films": len(self.data.train)}
        delta = to_vector(self._model) - global_vector
        if self.local_norm:
            delta[self._layout.is_kind("norm")] = 0
            self._own = self._norm_of(self._model)
        return Update(delta, self.data.labelled, report)

    def released_loss(self, update: Update) -> float | None:
        """The mean loss of the update's last pass over films, or None where the hospital's policy keeps it."""
        return update.report["losses"][-1] if self.release_losses and not self.privacy else None

    def state(self) -> dict[str, np.ndarray]:
        """What stays here between rounds, by name: FedBN's norm after the first round, otherwise nothing."""
        return {name: array.copy() for name, array in self._own.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a ``state()`` of this hospital. Raises UserError when it is of another model."""
        expected = self._norm_of(self._model) if state and self.local_norm else {}
        if wrong := differences(expected, state):
            remedy = "Give each hospital the state that it saved itself, with the same profile"
            raise UserError(f"hospital {self.name}", f"its state is of another model: {wrong}", remedy)
        self._own = {name: array.copy() for name, array in state.items()}

    def model_for(self, global_vector: np.ndarray) -> nn.Module:
        """A new model with ``global_vector`` (P,) and, under FedBN, this hospital's norm; in evaluation mode.

        Before its first round a hospital has no statistics of its own films, and FedBN's model is of no use to it.
        """
        model = build_for(self.profile, len(self.data.joints))
        self._fill(model, global_vector)
        return model.eval()

    def personalised(self, global_vector: np.ndarray, epochs: int, seed: int, head_only: bool = True) -> np.ndarray:
        """(P,) float32: ``global_vector`` trained further on this hospital's films, for itself alone.

        head_only: the head's parameters only, otherwise all; FedBN's norm stays as it is. The learning rate is a fifth
        of the federation's first one (PERSONAL_RATE): the model is nearly where it should be. Raises as
        ``local_update``.
        """
        model = self.model_for(global_vector)
        free = self._layout.is_kind("head") if head_only else np.full(self._layout.size, True)
        if self.local_norm:
            free &= ~self._layout.is_kind("norm")
        for slot, parameter in zip(self._layout.slots, model.parameters(), strict=True):
            parameter.requires_grad_(bool(free[slot.start]))
        rate = PERSONAL_RATE * self.profile.learning_rate
        profile = replace(self.profile, local_epochs=epochs, learning_rate=rate, round_decay=1.0, cooldown=0.0)
        self._train(model, profile, RoundTask(self.profile.rounds, seed))
        return np.where(free, to_vector(model), global_vector)

    def _train(self, model: nn.Module, profile: Profile, task: RoundTask) -> list[float]:
        films, words = self.data.train, [task.seed, zlib.crc32(self.name.encode())]
        model = in_fastest_format(model, profile, films.images.shape[-1], len(self.data.joints))
        trainer = Trainer(model, profile, proximal_mu=task.proximal_mu)
        return train_round(trainer, films, task.round, words, self.name)

    def _train_privately(self, task: RoundTask) -> None:
        """DP-SGD, paid for before it begins: a round that breaks off has cost its epsilon. It measures no loss."""
        privacy, ledger = self.privacy
        ledger.spend(self.name, privacy.noise_multiplier, privacy.sampling_rate, privacy.steps)
        rate = privacy.learning_rate * rate_share(self.profile, task.round)
        private_steps(self._model, self.data.train, self.labelled, privacy, self.profile, rate, task.proximal_mu)

    def _fill(self, model: nn.Module, global_vector: np.ndarray) -> None:
        """The global parameters; under FedBN new statistics, and then the hospital's own norm where it has one."""
        load_vector(model, global_vector)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        if self._own:
            model.load_state_dict({name: torch.from_numpy(array) for name, array in self._own.items()}, strict=False)

    def _norm_of(self, model: nn.Module) -> dict[str, np.ndarray]:
        shared = {slot.name for slot in self._layout.slots if slot.kind != "norm"}
        return {name: array for name, array in state_arrays(model).items() if name not in shared}
