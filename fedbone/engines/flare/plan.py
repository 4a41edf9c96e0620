"""What one run is, agreed before it starts, and the check that a job is exactly that.

Server and hospitals run jobs of this one form only: whoever submits a job can choose numbers, but neither bring code
nor leave out a check. ``PlanValidator`` stands in each party's own configuration, which no job can change.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from nvflare.apis.app_validation import AppValidator
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE

from fedbone.config import Profile
from fedbone.encryption.lanes import Lanes
from fedbone.encryption.masking import MIN_HOSPITALS
from fedbone.engines.flare.run_options import SUMS
from fedbone.errors import UserError
from fedbone.federation.strategies import FedAdam, FedAvgM, Strategy

OPTIMISERS = {"fedavgm": FedAvgM, "fedadam": FedAdam}
TASKS = ["train", "upload", "open", "seal", "finish"]
RUN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
SIGNATURE = (NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE)  # the submitter's, in each folder: FLARE checks it
POLL_S = 0.1  # how often a hospital asks for work: FLARE's 2 s would be the longest part of a small round


@dataclass(frozen=True)
class Plan:
    """One run, all of it public.

    min_hospitals: that many must take part in a round; deadline_s: of a round; grace_s: how long it waits for the
    others once enough have answered. labels: the joints that each hospital labels, all of ``joints``. optimiser: the
    server's, by name, with its ``settings``. noise: central DP, as noise_multiplier and clip_norm, or None. patient:
    DP-SGD in the hospitals, as ``PatientPrivacy`` without its number of patients, or None. sums: how updates are
    hidden from the server: none, masks, paillier; lanes: their range and bits. Raises UserError for what makes no
    sense together.
    """

    run: str
    profile: Profile
    seed: int
    hospitals: tuple[str, ...]
    joints: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    min_hospitals: int
    deadline_s: float = 600.0
    grace_s: float = 10.0
    optimiser: str = "fedavgm"
    settings: dict[str, float] | None = None
    proximal_mu: float = 0.0
    noise: dict[str, float] | None = None
    patient: dict | None = None
    sums: str = "none"
    lanes: dict[str, float] | None = None

    def __post_init__(self) -> None:
        wrong = next(filter(None, (check(self) for check in CHECKS)), None)
        if wrong:
            raise UserError(f"run {self.run!r:.60}", *wrong)

    def to_json(self) -> str:
        """One line, the same for equal plans."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of ``to_json``. Raises UserError for anything else."""
        try:
            values = json.loads(text)
            known = {field.name: values.pop(field.name) for field in fields(cls)}
            profile = Profile(**known.pop("profile"))
            for name in ("hospitals", "joints"):
                known[name] = tuple(known[name])
            known["labels"] = {name: tuple(joints) for name, joints in known["labels"].items()}
            if values:
                raise ValueError(f"unknown entries {', '.join(values)}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            remedy = "Submit it with the fedbone version that server and hospitals have"
            raise UserError("plan", f"it cannot be read ({type(error).__name__}: {error!s:.80})", remedy) from None
        plan = cls(profile=profile, **known)
        if plan.to_json() != text:
            raise UserError("plan", "it is not in its one form", "Submit it with `python -m fedbone deploy submit`")
        return plan

    @property
    def strategy(self) -> Strategy:
        """The federated algorithm."""
        return Strategy(server=OPTIMISERS[self.optimiser](**(self.settings or {})), proximal_mu=self.proximal_mu)

    @property
    def labelled(self) -> dict[str, np.ndarray]:
        """By hospital, (K,) bool: the joints that it labels."""
        return {name: np.isin(self.joints, self.labels[name]) for name in self.hospitals}

    def lanes_of_sums(self) -> Lanes:
        """How updates are written as whole numbers before they are added; for runs with ``sums``."""
        return Lanes(self.lanes["range"], len(self.hospitals), int(self.lanes["bits"]))


Wrong = tuple[str, str] | None


def _names(plan: Plan) -> Wrong:
    if not RUN_NAME.fullmatch(plan.run):
        return "its name is not 1 to 40 small letters, digits, - and _", "Choose another name"
    if len(set(plan.hospitals)) < len(plan.hospitals) or set(plan.labels) != set(plan.hospitals):
        return "hospitals and their labels do not go together", "List each hospital once, with its labels"
    unknown = {joint for joints in plan.labels.values() for joint in joints} - set(plan.joints)
    return (f"labels name unknown joints: {', '.join(sorted(unknown))}", "Correct directory.json") if unknown else None


def _quorum(plan: Plan) -> Wrong:
    if not 1 <= plan.min_hospitals <= len(plan.hospitals):
        problem = f"min_hospitals is {plan.min_hospitals}, and there are {len(plan.hospitals)} hospitals"
        return problem, "Give a number between 1 and the number of hospitals"
    if not (0 < plan.deadline_s < 1e6 and 0 <= plan.grace_s < 1e6):
        return f"deadline_s {plan.deadline_s} and grace_s {plan.grace_s} are no waiting times", "Give seconds"
    return None


def _algorithm(plan: Plan) -> Wrong:
    if plan.optimiser not in OPTIMISERS:
        return f"optimiser {plan.optimiser!r} is unknown", f"Use one of {', '.join(OPTIMISERS)}"
    if plan.profile.norm != "group":
        return "BatchNorm keeps a state in each hospital, which deployed runs do not carry", "Use norm='group'"
    try:
        plan.strategy  # noqa: B018 (its settings are checked by making it)
    except TypeError as error:
        return f"settings of {plan.optimiser} do not fit ({error})", "See fedbone.federation.strategies"
    return None


def _protection(plan: Plan) -> Wrong:
    if plan.sums not in SUMS:
        return f"sums are {plan.sums!r}", f"Use one of {', '.join(SUMS)}"
    if plan.sums == "none":
        return None if plan.lanes is None else ("lanes are given without sums", "Leave them out, or choose sums")
    if plan.noise:
        problem = "the server cannot add noise to a sum that only hospitals open, and these would see it without noise"
        return problem, "Use DP-SGD in the hospitals (--patient-privacy) with encrypted sums"
    if max(plan.min_hospitals, MIN_HOSPITALS) > len(plan.hospitals):
        return f"of fewer than {MIN_HOSPITALS} hospitals, each could subtract its own update", "Add hospitals"
    if plan.min_hospitals < MIN_HOSPITALS:
        return f"sums need min_hospitals of at least {MIN_HOSPITALS}", f"Give --min-hospitals {MIN_HOSPITALS} or more"
    try:
        plan.lanes_of_sums()
    except (ValueError, KeyError, TypeError) as error:
        return f"lanes {plan.lanes} do not fit ({error!s:.80})", "Give range and bits"
    return None


def _noise(plan: Plan) -> Wrong:
    if plan.noise is None:
        return None
    if plan.noise.keys() != {"noise_multiplier", "clip_norm"} or not all(v > 0 for v in plan.noise.values()):
        return f"noise is {plan.noise}", "Give noise_multiplier and clip_norm, both above 0"
    if plan.patient:
        problem = "noise at the server and DP-SGD in the hospitals each guard something else at the full price in error"
        return problem, "Choose one: the server's for hospitals as units, DP-SGD for patients"
    return None


CHECKS = (_names, _quorum, _algorithm, _protection, _noise)


def job_files(plan: Plan) -> dict[str, bytes]:
    """The whole job for FLARE: its files by relative path."""
    text = plan.to_json()
    common = {"format_version": 2, "task_data_filters": [], "task_result_filters": [], "components": []}
    flow = {"id": "rounds", "path": "fedbone.engines.flare.controller.Rounds", "args": {"plan": text}}
    executor = {"path": "fedbone.engines.flare.executor.HospitalExecutor", "args": {"plan": text}}
    server = {"heart_beat_timeout": 600, "task_request_interval": POLL_S}
    configs = {
        "server": {**common, "server": server, "workflows": [flow], "np_download_chunk_size": 0},
        "client": {**common, "executors": [{"tasks": TASKS, "executor": executor}], "np_download_chunk_size": 0},
    }
    meta = {"name": plan.run, "resource_spec": {}, "deploy_map": {"app": ["@ALL"]}, "min_clients": plan.min_hospitals}
    job = {f"app/config/config_fed_{side}.json": content for side, content in configs.items()}
    return {path: json.dumps(content, indent=1).encode() for path, content in {**job, "meta.json": meta}.items()}


class PlanValidator(AppValidator):
    """FLARE asks it about every job before it starts, at the server and at each hospital."""

    def validate(self, app_folder: str) -> tuple[str, dict]:
        """(why the job is refused, or nothing; {}): it must be what ``job_files`` makes of its own plan."""
        try:
            paths = [path for path in Path(app_folder).rglob("*") if path.is_file() and path.name not in SIGNATURE]
            files = {path.relative_to(app_folder).as_posix(): path.read_bytes() for path in paths}
            plan = _plan_in(files)
            expected = {name.removeprefix("app/"): content for name, content in job_files(plan).items()}
            expected.pop("meta.json")
            if files != expected:
                names = [name for name in {**files, **expected} if files.get(name) != expected.get(name)]
                raise UserError("job", f"it is not the job of its plan: {', '.join(sorted(names))}", SUBMIT)
            self.require_own_rules(plan)
        except (UserError, OSError) as error:
            return f"fedbone refuses the job: {error}", {}
        return "", {}

    def require_own_rules(self, plan: Plan) -> None:
        """Raises UserError for a plan that this party refuses though its form is right."""


def require_enough(plan: Plan, index: int, there: list[str], need: int, outcome: dict[str, str]) -> None:
    """Raises UserError, naming who is missing and why, when fewer than ``need`` hospitals are ``there``."""
    if len(there) < need:
        missing = "; ".join(f"{name} {why}" for name, why in outcome.items() if name not in there)
        problem = f"round {index}: {len(there)} of the {need} hospitals it needs took part: {missing}"
        raise UserError(f"run {plan.run}", problem, "It goes on from the last finished round when they are back")


SUBMIT = "Submit it with `python -m fedbone deploy submit`; jobs bring numbers, not code"


def _plan_in(files: dict[str, bytes]) -> Plan:
    try:
        text = json.loads(files["config/config_fed_server.json"])["workflows"][0]["args"]["plan"]
    except (KeyError, ValueError, TypeError, IndexError, RecursionError):
        raise UserError("job", "it carries no plan", SUBMIT) from None
    return Plan.from_json(text)
