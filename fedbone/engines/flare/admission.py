"""What the server lets in besides its form: a run's name belongs to one plan, and a cancelled run stays cancelled."""

from __future__ import annotations

import json
from pathlib import Path

from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.plan import Plan, PlanValidator
from fedbone.engines.flare.run_folder import CANCELLED, require_same_plan
from fedbone.errors import UserError


class ServerValidator(PlanValidator):
    """The server's own check of a job before it starts: that of all parties, and the run folders that it keeps."""

    def validate(self, app_folder: str) -> tuple[str, dict]:
        """(why the job is refused, or nothing; {}); whoever submitted it is told."""
        problem, about = super().validate(app_folder)
        if problem:
            return problem, about
        try:
            plan = plan_of_app(Path(app_folder))
            require_free(Kit.load(Path.cwd()).run_folder(plan.run), plan)  # FLARE's processes work in their kit
        except (UserError, OSError) as error:
            return f"fedbone refuses the job: {error}", {}
        return "", {}


def plan_of_app(folder: Path) -> Plan:
    """The plan of a deployed job that ``PlanValidator`` has let in."""
    config = json.loads((folder / "config" / "config_fed_server.json").read_bytes())
    return Plan.from_json(config["workflows"][0]["args"]["plan"])


def require_free(folder: Path, plan: Plan) -> None:
    """Raises UserError when the run's folder says that the run was cancelled, or holds another plan."""
    if (folder / CANCELLED).exists():
        raise UserError(f"run {plan.run}", "it was cancelled", "Choose another name")
    require_same_plan(folder, plan)
