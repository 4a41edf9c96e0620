"""What a hospital does with the server's messages: check them, train, and answer with an update or a part of a sum."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from fedbone.custody.consent import require_consent
from fedbone.custody.vault import Context, architecture_of
from fedbone.engines.flare.consent_command import CONSENT, dataset_sha256
from fedbone.engines.flare.hidden_hospital import HiddenHospital
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.messages import SERVER, TrainTask, done, read_final_model, read_train_task, update_message
from fedbone.engines.flare.plan import Plan
from fedbone.engines.flare.run_folder import keep_plan
from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital, RoundTask, Update
from fedbone.files import write_json
from fedbone.imaging.dataset import HospitalData
from fedbone.imaging.folder import load_hospitals
from fedbone.model.hrnet import build_for
from fedbone.privacy.dpsgd import PatientPrivacy
from fedbone.privacy.ledger import Ledger
from fedbone.vectors import layout_of, sha256

SEEN, FINAL = "seen.json", "model.sealed"


class HospitalSide:
    """One hospital in one run: ``answer`` is all that the server can make it do.

    Raises UserError when the films cannot be read, or are not those that the plan was made for.
    """

    def __init__(self, kit: Kit, plan: Plan) -> None:
        torch.set_num_threads(1)  # the same bytes on any number of cores
        self.kit, self.plan, self.audit = kit, plan, kit.audit()
        self.hospital = Hospital(_films(kit, plan), plan.profile, privacy=_privacy(kit, plan))
        layout = layout_of(build_for(plan.profile, len(plan.joints)))
        self._parameters, self._architecture = layout.size, architecture_of(layout)
        self._folder, self._dataset = kit.run_folder(plan.run), dataset_sha256(kit.films())
        keep_plan(self._folder, plan)
        self._hidden = HiddenHospital(self, layout) if plan.sums != "none" else None

    def answer(self, task: str, message: bytes) -> tuple[int, bytes]:
        """(the round, the answer's message). Raises UserError for a question that this hospital does not answer."""
        if self._hidden:
            return self._hidden.answer(task, message)
        if task == "train":
            return self._train(message)
        if task == "finish":
            return self._finish(message)
        raise UserError(SERVER, f"it asks for {task!r}, which is not part of this run", "Stop the run, find out why")

    def _train(self, message: bytes) -> tuple[int, bytes]:
        task, vector = read_train_task(message, self._parameters)
        update = self.train(task, vector)
        answer = update_message(update, self.hospital.released_loss(update))
        self.audit.append("push", run=task.run, round=task.round, detail="update", **{"model": sha256(update.delta)})
        return task.round, answer

    def train(self, task: TrainTask, vector: np.ndarray) -> Update:
        """The update to ``vector`` (P,), if this round may be: see ``_require_next`` and the consent."""
        self.require_this_run(task.run)
        model = sha256(vector)
        self._require_next(task.round, model)
        consent = require_consent(
            self.kit.own / CONSENT,
            self.kit.consent_public(),
            self.kit.name,
            task.run,
            self._dataset,
            datetime.now(UTC),
        )
        shown = {"head_n": task.head_n, "head_sha256": task.head_sha256} if task.head_sha256 else {}
        detail = f"consent {consent.serial}"
        self.audit.append("pull", run=task.run, round=task.round, model=model, detail=detail, **shown)
        return self.hospital.local_update(vector, RoundTask(task.round, self.plan.seed, self.plan.proximal_mu))

    def require_this_run(self, run: str) -> None:
        """Raises UserError for a question of another run."""
        if run != self.plan.run:
            raise UserError(SERVER, f"it asks about run {run!r} in the job of {self.plan.run!r}", "Stop the run")

    def _require_next(self, index: int, model: str) -> None:
        """Rounds only go forward, also over restarts: a server that was put back cannot draw its noise again."""
        path = self._folder / SEEN
        seen = json.loads(path.read_bytes()) if path.exists() else {"round": -1, "model": ""}
        if index < seen["round"] or (index == seen["round"] and model != seen["model"]):
            problem = f"it asks for round {index} with model {model[:12]}, after round {seen['round']} was begun"
            remedy = f"with {seen['model'][:12]}: was its disk put back? Ask its staff before anything else"
            raise UserError(SERVER, problem, remedy)
        write_json(path, {"round": index, "model": model})

    def _finish(self, message: bytes) -> tuple[int, bytes]:
        index, vector = read_final_model(message, self._parameters)
        self.keep(index, vector)
        return index, done()

    def keep(self, index: int, vector: np.ndarray) -> Path:
        """Seal the run's last model (P,) in this hospital's vault."""
        context = Context(self.kit.name, self.plan.run, index, self._architecture)
        about = {"plan": self.plan.to_json()}
        path = self.kit.vault().seal(self._folder / FINAL, {"vector": vector}, about, context)
        self.audit.append("release", run=self.plan.run, round=index, model=sha256(vector))
        self.audit.sign_head()
        return path


def _films(kit: Kit, plan: Plan) -> HospitalData:
    """This hospital's films; those that had to be left out are named in its log."""
    folder = kit.films()
    hospitals, problems = load_hospitals(folder.parent, plan.profile.size_px, plan.seed, only=folder.name)
    for problem in problems:
        logging.getLogger(__name__).warning("left out: %s", problem)
    data = replace(hospitals[0], name=kit.name, labels=plan.labels[kit.name])
    if data.joints != plan.joints:
        remedy = "Use the same list of joints everywhere, and make the kits again"
        raise UserError(kit.data, f"it has {len(data.joints)} joints, the plan {len(plan.joints)}", remedy)
    return data


def _privacy(kit: Kit, plan: Plan) -> tuple[PatientPrivacy, Ledger] | None:
    if plan.patient is None:
        return None
    budget = kit.privacy_budget()
    privacy = PatientPrivacy(patients=budget["patients"], **plan.patient)
    return privacy, Ledger(kit.own / "privacy.json", budget["dp_delta"], budget["epsilon_limit"])
