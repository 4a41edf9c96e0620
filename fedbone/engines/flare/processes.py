"""The processes of a party, found by what they carry in their environment: also those whose parent was killed."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedbone.engines.flare.kit import Kit
from fedbone.errors import UserError

KIT, PART = "FEDBONE_KIT", "FEDBONE_PART"  # environment: the kit's absolute folder; which of its parts this is
GRACE_S = 3.0  # from SIGTERM to SIGKILL
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
LOCK = "supervisor.lock"
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def require_linux() -> None:
    """Raises UserError on a system without /proc and prctl."""
    if sys.platform != "linux":
        problem = "a deployment runs on Linux only, also in Windows' WSL2"
        raise UserError(sys.platform, problem, "Start it there; `python -m fedbone federate` trains on this machine")


def environment(kit: Kit, part: str) -> dict[str, str]:
    """The environment of a process of this party: what marks it, where it finds fedbone and keeps temporary files.

    The folder of those is made. It lies in the kit, so that it is searched and guarded with the kit.
    """
    import fedbone

    temporary = temporary_files(kit)
    temporary.mkdir(mode=0o700, exist_ok=True)
    package = str(Path(fedbone.__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {KIT: str(kit.folder), PART: part, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(temporary)}
    ours["PYTHONSAFEPATH"] = "1"  # nothing is imported from the kit, which is the working folder
    return {"MALLOC_ARENA_MAX": "4", **os.environ, **ours}  # as FLARE's own start script: half the memory


def temporary_files(kit: Kit) -> Path:
    """The folder that a party's processes have for temporary files; its supervisor empties it when it starts."""
    return kit.own / "temporary"


def party_processes(kit: Kit, part: str | None = None) -> set[int]:
    """The process ids of a party, or of one part of it, without this one."""
    marks = {f"{KIT}={kit.folder}".encode(), *([f"{PART}={part}".encode()] if part else [])}
    found = set() if part else supervisors(kit)
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # ended meanwhile, or of another account
            if marks <= set(Path("/proc", name, "environ").read_bytes().split(b"\0")):
                found.add(int(name))
    return found - {os.getpid()}


def end_processes(find: Callable[[], set[int]], grace_s: float = GRACE_S) -> int:
    """Ask what ``find`` finds to end, kill what is there after ``grace_s``, until nothing is; how many there were.

    ``find`` is asked again and again, so that what is started meanwhile is ended too.
    """
    asked: set[int] = set()
    ends = time.monotonic() + grace_s
    while found := find():
        for process in found if time.monotonic() > ends else found - asked:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if time.monotonic() > ends else signal.SIGTERM)
        asked |= found
        time.sleep(0.05)
    return len(asked)


def die_with(supervisor: int) -> Callable[[], None]:
    """A ``preexec_fn``: the new process is killed when ``supervisor``, its parent, ends in any way."""

    def ask() -> None:
        _LIBC.prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != supervisor:  # it ended before it could be asked
            os._exit(1)

    return ask


@contextmanager
def only_supervisor(kit: Kit) -> Iterator[None]:
    """Be the one supervisor of a kit. Raises UserError, naming the process, when there is one."""
    with open(kit.own / LOCK, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = f"process {', '.join(map(str, supervisors(kit))) or 'unknown'} runs {kit.name} already"
            raise UserError(kit.folder, problem, "End it with Ctrl-C or `python -m fedbone deploy down`") from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        yield


def supervisors(kit: Kit) -> set[int]:
    """The process id of the kit's supervisor, if there is one."""
    with suppress(OSError, ValueError), open(kit.own / LOCK, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return {int(file.read())}
    return set()
