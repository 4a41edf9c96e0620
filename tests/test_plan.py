"""Plans of deployed runs: what makes no sense is refused, and a job is exactly what its plan says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedbone.engines.flare.plan import Plan, PlanValidator, job_files, require_enough
from fedbone.errors import UserError
from fedbone.federation.strategies import FedAdam, FedAvgM
from tests.helpers import JOINTS, tiny_profile

NAMES = ("hospital_a", "hospital_b", "hospital_c")
LANES = {"range": 0.1, "bits": 16}


def make(**changes: object) -> Plan:
    plain = {
        "run": "first",
        "profile": tiny_profile(),
        "seed": 3,
        "hospitals": NAMES,
        "joints": JOINTS,
        "labels": dict.fromkeys(NAMES, JOINTS[:2]),
        "min_hospitals": 2,
    }
    return Plan(**{**plain, **changes})


@pytest.fixture
def app(tmp_path) -> Path:
    for name, content in job_files(make()).items():
        path = tmp_path / "a job" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "a job" / "app"


SENSIBLE = {
    "plain": {},
    "adam": {"optimiser": "fedadam", "settings": {"learning_rate": 0.01}},
    "proximal": {"proximal_mu": 0.1},
    "central noise": {"noise": {"noise_multiplier": 1.0, "clip_norm": 0.5}},
    "patients": {"patient": {"clip_norm": 1.0, "noise_multiplier": 1.0, "batch": 4}},
    "masks": {"sums": "masks", "lanes": LANES, "min_hospitals": 3},
    "patients under paillier": {
        "sums": "paillier",
        "lanes": LANES,
        "min_hospitals": 3,
        "patient": {"clip_norm": 1.0, "noise_multiplier": 1.0, "batch": 4},
    },
}


@pytest.mark.parametrize("changes", SENSIBLE.values(), ids=SENSIBLE)
def test_a_plan_comes_back_from_its_text(changes):
    plan = make(**changes)
    assert Plan.from_json(plan.to_json()) == plan


def test_the_strategy_is_the_plans():
    assert make().strategy.server == FedAvgM()
    adam = make(optimiser="fedadam", settings={"learning_rate": 0.01}, proximal_mu=0.5).strategy
    assert (adam.server, adam.proximal_mu) == (FedAdam(learning_rate=0.01), 0.5)
    assert make().labelled["hospital_b"].tolist() == [True, True, False]


NONSENSE = {
    "a name with a slash": ({"run": "../x"}, "its name"),
    "an empty name": ({"run": ""}, "its name"),
    "a hospital twice": ({"hospitals": (*NAMES, NAMES[0])}, "do not go together"),
    "labels of a stranger": ({"labels": {**make().labels, "d": ()}}, "do not go together"),
    "an unknown joint": ({"labels": {**make().labels, "hospital_a": ("tail",)}}, "tail"),
    "no quorum": ({"min_hospitals": 0}, "min_hospitals is 0"),
    "more than there are": ({"min_hospitals": 4}, "min_hospitals is 4"),
    "no deadline": ({"deadline_s": 0.0}, "deadline_s"),
    "NaN as deadline": ({"deadline_s": float("nan")}, "deadline_s"),
    "an unknown optimiser": ({"optimiser": "sgd"}, "sgd"),
    "settings of another optimiser": ({"settings": {"tau": 1.0}}, "tau"),
    "batch norm": ({"profile": tiny_profile(norm="batch")}, "BatchNorm"),
    "an unknown kind of sums": ({"sums": "rot13"}, "rot13"),
    "lanes without sums": ({"lanes": LANES}, "without sums"),
    "sums without lanes": ({"sums": "masks", "min_hospitals": 3}, "lanes"),
    "sums of two": ({"sums": "masks", "lanes": LANES}, "at least 3"),
    "sums for two hospitals": (
        {
            "sums": "masks",
            "lanes": LANES,
            "hospitals": NAMES[:2],
            "labels": dict.fromkeys(NAMES[:2], JOINTS),
        },
        "subtract its own",
    ),
    "server noise on encrypted sums": (
        {"sums": "paillier", "lanes": LANES, "min_hospitals": 3, "noise": {"noise_multiplier": 1.0, "clip_norm": 1.0}},
        "cannot add noise",
    ),
    "noise without a clip": ({"noise": {"noise_multiplier": 1.0}}, "noise is"),
    "no noise as noise": ({"noise": {"noise_multiplier": 0.0, "clip_norm": 1.0}}, "noise is"),
    "noise twice": (
        {"noise": {"noise_multiplier": 1.0, "clip_norm": 1.0}, "patient": {"clip_norm": 1.0}},
        "each guard something else",
    ),
}


@pytest.mark.parametrize(("changes", "problem"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_with_the_reason(changes, problem):
    with pytest.raises(UserError, match=problem):
        make(**changes)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "",
        lambda text: "[" * 5000,
        lambda text: text[:-1],
        lambda text: json.dumps({**json.loads(text), "extra": 1}, sort_keys=True),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "seed"}, sort_keys=True),
        lambda text: json.dumps(json.loads(text), indent=1),
        lambda text: text.replace('"seed": 3', '"seed": 3, "seed": 4'),
    ],
    ids=["empty", "deep", "cut off", "an entry more", "an entry less", "another form", "an entry twice"],
)
def test_other_texts_are_no_plans(edit):
    with pytest.raises(UserError):
        Plan.from_json(edit(make().to_json()))


def test_the_job_of_a_plan_passes(app):
    assert PlanValidator().validate(str(app)) == ("", {})


def test_the_submitters_signature_may_lie_beside_it(app):
    for folder in (app, app / "config"):
        (folder / ".__nvfl_sig.json").write_text("{}")
        (folder / ".__nvfl_submitter.crt").write_text("")
    assert PlanValidator().validate(str(app)) == ("", {})


def edited(app: Path, side: str, **changes: object) -> None:
    path = app / "config" / f"config_fed_{side}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=1))


FILTER = [{"tasks": ["*"], "filters": [{"path": "nvflare.app_common.filters.exclude_vars.ExcludeVars"}]}]
ATTACKS = {
    "code of its own": lambda app: (app / "custom.py").write_text("print('mine')"),
    "a controller that checks nothing": lambda app: edited(
        app, "server", workflows=[{"id": "x", "path": "nvflare.app_common.workflows.fedavg.FedAvg"}]
    ),
    "a filter at the hospital": lambda app: edited(app, "client", task_result_filters=FILTER),
    "a component more": lambda app: edited(app, "server", components=[{"id": "x", "path": "a.b.C"}]),
    "no executor": lambda app: edited(app, "client", executors=[]),
    "another plan at the hospitals": lambda app: edited(
        app,
        "client",
        executors=[
            {
                "tasks": ["train"],
                "executor": {
                    "path": "fedbone.engines.flare.executor.HospitalExecutor",
                    "args": {"plan": replace(make(), seed=4).to_json()},
                },
            }
        ],
    ),
    "a file less": lambda app: (app / "config" / "config_fed_client.json").unlink(),
    "no configuration": lambda app: (app / "config" / "config_fed_server.json").write_text("{}"),
    "deep nonsense": lambda app: (app / "config" / "config_fed_server.json").write_text("[" * 5000),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_another_job_is_refused(app, attack):
    attack(app)
    problem, _ = PlanValidator().validate(str(app))
    assert problem.startswith("fedbone refuses the job")


def test_a_missed_quorum_names_who_is_missing_and_why():
    outcome = {"hospital_a": "took part", "hospital_b": "late", "hospital_c": "refused: NaN"}
    with pytest.raises(UserError, match=r"round 4: 1 of the 2 .*hospital_b late; hospital_c refused: NaN"):
        require_enough(make(), 4, ["hospital_a"], 2, outcome)
    require_enough(make(), 4, ["hospital_a", "hospital_c"], 2, outcome)
