"""Probes of a round: how many hospitals a model rests on, and what a message can carry."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedbone.custody.audit_log import AuditLog, read_log
from fedbone.custody.compliance import Evidence
from fedbone.custody.vault import create_key
from fedbone.encryption.signing import SigningKey
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.messages import ROOM_BYTES, read_update, update_message
from fedbone.engines.flare.plan import Plan
from fedbone.engines.flare.record_probes import NO_RUN, runs_of
from fedbone.engines.flare.run_folder import RunFolder, last_release
from fedbone.engines.flare.server import OpenServer
from fedbone.engines.flare.wire import pack
from fedbone.errors import UserError
from fedbone.federation.aggregation import Aggregation, Server
from fedbone.federation.hospital import Update
from fedbone.model.hrnet import build_for
from fedbone.vectors import layout_of

FLOAT_BYTES = 4


def minimum_hospitals(parties: Sequence[Kit]) -> Evidence:
    """Every released round had its quorum, and a round with one hospital fewer is not released. Raises UserError."""
    server, *_ = parties
    plans, details = runs_of(server), {}
    if not plans:
        return Evidence("No run was looked at.", undecided=NO_RUN)
    entries = read_log(server.own / "audit.jsonl")
    for plan in plans:
        counted = _accepted(entries, plan, last_release(server, plan.run)[0])
        least = min(counted, default=plan.min_hospitals)
        if least < plan.min_hospitals:
            problem = f"a model was released after {least} updates, and {plan.min_hospitals} were agreed"
            raise UserError(f"run {plan.run}", problem, "Withdraw it, and find out how it came about")
        accepted = ", ".join(map(str, counted)) or "none yet"
        details[plan.run] = f"{plan.min_hospitals} of {len(plan.hospitals)} agreed; by round, accepted: {accepted}"
        _require_quorum(server, plan)
    text = "No round was released with fewer updates than agreed. A server's round made up for the trial, given one "
    text += "update fewer, released nothing; given enough, it did."
    alone = [plan.run for plan in plans if plan.min_hospitals < 2]
    undecided = f"A minimum of 1, in {', '.join(alone)}, releases a single hospital's update." if alone else ""
    return Evidence(text, details, undecided)


def _accepted(entries: list[dict], plan: Plan, last: int) -> list[int]:
    """By round, how many hospitals the log says a model rests on."""
    sums = {e["round"]: e["hospitals"] for e in entries if (e["run"], e["event"]) == (plan.run, "aggregation")}
    return [len(sums.get(index, "").split(",")) if sums.get(index) else 0 for index in range(last + 1)]


def _require_quorum(server: Kit, plan: Plan) -> None:
    """Raises UserError when a round of this plan is released with too few updates, or is not with enough."""
    single = replace(plan, sums="none", lanes=None, profile=replace(plan.profile, rounds=1))
    for count in (plan.min_hospitals - 1, plan.min_hospitals):
        with tempfile.TemporaryDirectory(prefix="fedbone_check_") as folder:
            released = _released(replace(server, folder=Path(folder)), single, count)
        if released != (count == plan.min_hospitals):
            problem = f"a trial round with {count} updates was {'' if released else 'not '}released"
            raise UserError(f"run {plan.run}", problem, "Report it: this is an error")


def _released(kit: Kit, plan: Plan, count: int) -> bool:
    """Whether the server releases a model when ``count`` hospitals send an update of zeros."""
    create_key(kit.own / "vault.key")
    folder = RunFolder(kit, plan, AuditLog(kit.own / "audit.jsonl", SigningKey.create(), kit.name))
    (kit.own / "audit.pub").write_text(folder.audit.key.public.hex())

    def ask(task: str, _index: int, _message: bytes, _model: str, names: list[str], _enough: int, accept: Callable):
        for name in names[:count] if task == "train" else []:
            update = Update(np.zeros(_layout(plan).size, np.float32), plan.labelled[name], {})
            accept(name, update_message(update, None))
        return dict.fromkeys(names, "a trial")

    with folder.opened():
        with suppress(UserError):
            OpenServer(kit, plan, folder).run(ask)
        return folder.finished()[0] == 0


def _layout(plan: Plan):
    return layout_of(build_for(plan.profile, len(plan.joints)))


def images_never_sent(parties: Sequence[Kit]) -> Evidence:
    """An update has a place for numbers of the model and for nothing else. Raises UserError when more is accepted."""
    server, *_ = parties
    plans, details = runs_of(server), {}
    if not plans:
        return Evidence("No run was looked at.", undecided=NO_RUN)
    for plan in plans:
        details[plan.run] = _try_messages(plan)
    text = "An update with a film in it, one that is longer than the model, and one of too many bytes were refused."
    limit = (
        "This is a limit and no proof: a hospital's own program could hide a film in the numbers of an update, and "
        "notebook 07 gets films back from honest ones. Only reading the hospital's code, and sums, go further."
    )
    return Evidence(text, details, limit)


def _try_messages(plan: Plan) -> str:
    """What the largest message allowed is, beside a film."""
    layout, name = _layout(plan), plan.hospitals[0]
    joints, side = len(plan.joints), plan.profile.size_px
    delta, labelled = np.zeros(layout.size, np.float32), plan.labelled[name]
    film = np.zeros((side, side), np.uint8)

    def update_of(numbers: int) -> bytes:
        return update_message(Update(np.zeros(numbers, np.float32), labelled, {}), None)

    good = update_of(layout.size)
    bad = {
        "with a film in it": pack({"loss": None}, {"delta": delta, "labelled_joints": labelled, "film": film}),
        "longer than the model": update_of(layout.size + 1),
        "of too many bytes": update_of(2 * layout.size + ROOM_BYTES),
    }
    server = Server(layout, plan.labelled, plan.strategy, None)

    def accept(message: bytes) -> None:
        Aggregation(server, len(plan.hospitals)).add(name, read_update(name, message, layout.size, joints))

    accept(good)
    for what, message in bad.items():
        try:
            accept(message)
        except UserError:
            continue
        raise UserError(f"run {plan.run}", f"an update {what} was accepted", "Report it: this is an error")
    most = 2 * FLOAT_BYTES * layout.size + joints + ROOM_BYTES
    fit = f"an update has {len(good)} bytes, at most {most} are read; a film of {side} x {side} pixels has {film.size}"
    return f"{fit}, so {len(good) // film.size} would have room in an update"
