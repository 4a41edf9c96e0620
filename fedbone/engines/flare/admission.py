"""What a party lets in besides a job's form: at the server a run's name belongs to one plan, and a cancelled run stays
cancelled; at a hospital its own staff decide what it takes part in, whoever submits the run.
"""

from __future__ import annotations

import json
from pathlib import Path

from fedbone.engines.flare.kit import Kit, read_json
from fedbone.engines.flare.plan import Plan, PlanValidator
from fedbone.engines.flare.run_folder import CANCELLED, require_same_plan
from fedbone.engines.flare.run_options import SUMS
from fedbone.errors import UserError

POLICY = "policy.json"  # in a hospital's kit
POLICY_FORM = {"min_hospitals": int, "sums": list, "patient_privacy": bool}
FIRST_POLICY = {"min_hospitals": 2, "sums": list(SUMS), "patient_privacy": False}  # of new kits: of one, a sum is it


class ServerValidator(PlanValidator):
    """The server's own check of a job before it starts: that of all parties, and the run folders that it keeps."""

    def require_own_rules(self, plan: Plan) -> None:
        """Whoever submitted it is told."""
        require_free(Kit.load(Path.cwd()).run_folder(plan.run), plan)  # FLARE's processes work in their kit


class HospitalValidator(PlanValidator):
    """A hospital's own check of a job before it starts: that of all parties, and what its staff allow."""

    def require_own_rules(self, plan: Plan) -> None:
        """A refusal stands in the hospital's audit log; the run goes on without it where enough others take part."""
        kit = Kit.load(Path.cwd())
        try:
            require_allowed(read_policy(kit), plan)
        except UserError as error:
            audit = kit.audit()
            audit.append("refusal", run=plan.run, outcome="refused", detail=error.problem[:250])
            audit.sign_head()
            raise


def plan_of_app(folder: Path) -> Plan:
    """The plan of a deployed job that ``PlanValidator`` has let in."""
    config = json.loads((folder / "config" / "config_fed_server.json").read_bytes())
    return Plan.from_json(config["workflows"][0]["args"]["plan"])


def require_free(folder: Path, plan: Plan) -> None:
    """Raises UserError when the run's folder says that the run was cancelled, or holds another plan."""
    if (folder / CANCELLED).exists():
        raise UserError(f"run {plan.run}", "it was cancelled", "Choose another name")
    require_same_plan(folder, plan)


def read_policy(kit: Kit) -> dict:
    """What a hospital's staff allow: runs of at least ``min_hospitals`` a round, these ``sums``, and whether only runs
    with DP-SGD for its patients. Raises UserError for a file that does not say so.
    """
    path = kit.own / POLICY
    policy = read_json(path)
    forms = {name: type(value) for name, value in policy.items()}
    if forms != POLICY_FORM or policy["min_hospitals"] < 1 or not set(map(str, policy["sums"])) <= {*SUMS}:
        remedy = f"Write min_hospitals (from 1), sums (some of {', '.join(SUMS)}) and patient_privacy (true or false)"
        raise UserError(path, "it is no policy", remedy)
    return policy


def require_allowed(policy: dict, plan: Plan) -> None:
    """Raises UserError, with the reason, for a plan that ``policy`` does not allow."""
    reasons = []
    if plan.min_hospitals < policy["min_hospitals"]:
        reasons.append(f"a round of {plan.min_hospitals}, where it wants at least {policy['min_hospitals']} hospitals")
    if plan.sums not in policy["sums"]:
        reasons.append(f"sums {plan.sums!r}, where it allows {', '.join(policy['sums']) or 'nothing'}")
    if policy["patient_privacy"] and plan.patient is None:
        reasons.append("no noise for its patients (DP-SGD), which it demands")
    if reasons:
        remedy = f"Submit a run that it allows, or ask its staff: fedbone/{POLICY} in its kit"
        raise UserError(f"run {plan.run}", f"this hospital takes no part: {'; '.join(reasons)}", remedy)
