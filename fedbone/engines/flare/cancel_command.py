"""``python -m fedbone deploy cancel``: end a run for good, on the server's machine."""

from __future__ import annotations

import argparse

from fedbone.engines.flare.kit import server_kit
from fedbone.engines.flare.run_folder import CANCELLED, FINISHED, read_plan
from fedbone.errors import UserError
from fedbone.files import sync_folder, write_atomic


def run_cancel(args: argparse.Namespace) -> int:
    """Note it in the run's folder and in the audit log; the watchdog ends the job, now or when it is up again."""
    kit = server_kit(args.kits)
    folder = kit.run_folder(args.run)
    read_plan(folder)  # raises UserError where there is no such run
    if (folder / FINISHED).exists():
        raise UserError(f"run {args.run}", "it is finished", "Its model can be taken out with `deploy model`")
    if (folder / CANCELLED).exists():
        print(f"run {args.run} was cancelled before")
        return 0
    audit = kit.audit()
    audit.append("stop", run=args.run, outcome="cancelled", detail="by the server's staff")
    audit.sign_head()
    write_atomic(folder / CANCELLED, b"")
    sync_folder(folder)
    print(f"run {args.run} is cancelled: the watchdog ends its job; what its rounds released stays sealed")
    return 0
