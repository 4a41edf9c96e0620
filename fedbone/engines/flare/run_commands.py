"""What ``python -m fedbone deploy`` does about runs: submit one, and take its model out of a vault."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from fedbone.config import get_profile
from fedbone.custody.vault import Context, architecture_of
from fedbone.engines.flare.admission import require_free
from fedbone.engines.flare.hospital_side import FINAL
from fedbone.engines.flare.jobs import ADMINISTRATOR, session, submit, wait_for_start
from fedbone.engines.flare.kit import ADMIN, SERVER, Kit, names_of, read_directory
from fedbone.engines.flare.plan import Plan
from fedbone.engines.flare.run_folder import last_release, read_plan, read_status
from fedbone.errors import UserError
from fedbone.model.hrnet import build_for, save_model
from fedbone.privacy.accounting import epsilon
from fedbone.progress import Bar
from fedbone.vectors import layout_of, load_vector, sha256

DP_DELTA = 1e-5  # at which central differential privacy is told


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that the options ask for. Raises UserError for what makes no sense."""
    names = names_of(args.kits)
    directory = read_directory(args.kits, names)
    asked = {"rounds": args.rounds, "size_px": args.size}
    hidden = args.sums != "none"
    noise = args.central_noise and dict(zip(("noise_multiplier", "clip_norm"), args.central_noise, strict=True))
    patient = args.patient_noise and {
        **dict(zip(("noise_multiplier", "clip_norm"), args.patient_noise, strict=True)),
        "batch": args.patient_batch,
    }
    return Plan(
        run=args.run,
        profile=get_profile(args.profile, **{name: value for name, value in asked.items() if value}),
        seed=args.seed,
        hospitals=names,
        joints=tuple(next(iter(directory.values()))["joints"]),
        labels={name: tuple(entry["labels"]) for name, entry in directory.items()},
        min_hospitals=args.min_hospitals or (len(names) if hidden else -(-2 * len(names) // 3)),
        deadline_s=args.deadline,
        grace_s=args.grace,
        optimiser=args.optimiser,
        proximal_mu=args.proximal_mu,
        noise=noise,
        patient=patient,
        sums=args.sums,
        lanes={"range": args.range, "bits": args.bits} if hidden else None,
    )


def run_submit(args: argparse.Namespace) -> int:
    """Hand the plan in, and say what it protects."""
    plan = plan_of(args)
    server = Kit.load(args.kits / SERVER) if args.wait else None
    with session(ADMINISTRATOR, args.kits / ADMIN) as opened:
        job = submit(opened, plan)
        wait_for_start(opened, job, plan.run)
    print(f"run {plan.run} has started (job {job}): {plan.profile.rounds} rounds, {plan.min_hospitals} of ", end="")
    print(f"{len(plan.hospitals)} hospitals a round\n{protection(plan)}")
    return wait_for_end(server, plan) if args.wait else 0


def protection(plan: Plan) -> str:
    """In words, what guards the hospitals' updates in this run."""
    lines = {
        "none": "The server sees each hospital's update.",
        "masks": "The server sees the sum of the updates, and no single one.",
        "paillier": "The server sees neither an update nor their sum: it holds no private key.",
    }
    text = lines[plan.sums]
    if plan.noise:
        z, rounds = plan.noise["noise_multiplier"], plan.profile.rounds
        spent = epsilon(noise_multiplier=z, rounds=rounds, dp_delta=DP_DELTA)
        told = f"epsilon {spent:.2f} at delta {DP_DELTA:g} for one hospital, {rounds} rounds"
        text += f" To whoever sees the models: {told}."
    if plan.patient:
        text += " DP-SGD in each hospital: its own ledger says what a patient has spent."
    if not (plan.noise or plan.patient):
        text += " No differential privacy."
    return text


def wait_for_end(server: Kit, plan: Plan) -> int:
    """Follow ``status.json`` until the run is finished; 0 then. The run goes on when this is stopped.

    Raises UserError when the server's run of this name has another plan, or is cancelled.
    """
    folder, shown, problem = server.run_folder(plan.run), 0, ""
    with Bar("training", "round") as bar:
        while True:
            require_free(folder, plan)
            status = read_status(folder)
            done = len(status.get("history", []))
            if done > shown:
                bar(done, plan.profile.rounds, f"round {done}")
                shown = done
            if status.get("state") == "finished":
                print(f"run {plan.run} is finished: model {status['model']}")
                return 0
            if status.get("state") == "failed" and status["problem"] != problem:
                problem = status["problem"]
                print(f"a job of run {plan.run} ended: {problem}. The watchdog starts another one", file=sys.stderr)
            time.sleep(0.3)


def run_model(args: argparse.Namespace) -> int:
    """Open the last model in a party's vault, check it against its audit log, and write it in clear."""
    kit = Kit.load(args.kit)
    plan, index, vector = open_model(kit, args.run)
    model = build_for(plan.profile, len(plan.joints))
    load_vector(model, vector)
    about = {"joints": list(plan.joints), "size_px": plan.profile.size_px, "rounds": index + 1, "seed": plan.seed}
    kit.audit().append("release", run=args.run, round=index, model=sha256(vector), detail="written in clear")
    save_model(args.out, model, private=True, sigma_px=plan.profile.sigma_px, **about)
    print(f"{args.out}: the model after {index + 1} rounds, in clear: guard it as you guard the vault")
    return 0


def open_model(kit: Kit, run: str) -> tuple[Plan, int, np.ndarray]:
    """(plan, last round, model (P,)) of what this party's vault keeps of ``run``.

    Raises UserError when it keeps none, or not the one that its audit log names.
    """
    folder = kit.run_folder(run)
    plan = read_plan(folder)
    index, model = last_release(kit, run)
    hidden = kit.role == "server" and plan.sums != "none"
    if index < 0 or hidden:
        problem = "the server cannot open what hospitals sealed" if hidden else "no model has come to this vault yet"
        raise UserError(folder, problem, "Give a hospital's kit, after the run is finished")
    path = folder / (f"round_{index:04d}.sealed" if kit.role == "server" else FINAL)
    layout = layout_of(build_for(plan.profile, len(plan.joints)))
    arrays, _ = kit.vault().open(path, Context(kit.name, run, index, architecture_of(layout)))
    if sha256(arrays["vector"]) != model:
        raise UserError(path, "it is not the model that the audit log names", "Find out who can write to this folder")
    return plan, index, arrays["vector"]
