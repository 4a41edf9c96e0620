"""The hospital's own supervisor of a job: starts code/main.py confined, watches it, checks the files that it leaves.

Run as ``python -P -s -m fedbone.engines.job_host`` in the folder of a submitted job. It needs no network and no secret.
Its exit code is one of ENDINGS, never one that the job chose, and it prints nothing: syft passes both on. What a job
can choose (its output, the names of its files) goes to the hospital's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

import fedbone
from fedbone.engines import sandbox
from fedbone.engines.job_folder import bytes_below, fault, fresh_folder
from fedbone.engines.job_log import Log
from fedbone.files import write_json

DONE, RAISED, KILLED, LATE, PRINTED, LEFT, MEMORY, WROTE, STOPPED, NOT_STARTED, LOST = 0, *range(10, 20)
ENDINGS = {
    DONE: "done",
    RAISED: "raised an error",
    KILLED: "was killed",
    LATE: "took longer than allowed",
    PRINTED: "printed more than allowed",
    LEFT: "left other files than allowed",
    MEMORY: "used more memory or threads than allowed",
    WROTE: "wrote more than allowed",
    STOPPED: "was stopped",
    NOT_STARTED: "could not be started under its rules",
    LOST: "could not be watched to its end",
}
LOOK_S = 0.1  # between two looks at the job
SLACK_BYTES = 16_000_000  # of files that a job may write and remove again, beyond its outputs
MOST_OPEN_FILES = MOST_THREADS = 256


@dataclass(frozen=True)
class JobRules:
    """What a hospital lets one job do.

    outputs: name of each file it has to leave -> most bytes. readable: folders with the hospital's data. timeout_s:
    wall seconds. log_bytes: of stdout and stderr together. memory_mb: resident, of all its processes.
    """

    outputs: dict[str, int]
    readable: tuple[str, ...]
    timeout_s: float
    log_bytes: int = 1_000_000
    memory_mb: int = 4000

    @property
    def most_bytes(self) -> int:
        """Of all files that the job has at one time; where the system counts (Linux), of all that it ever writes."""
        return sum(self.outputs.values()) + SLACK_BYTES


def ending(return_code: int) -> str:
    """The fixed words for a supervisor's return code; a code that is not in ENDINGS means that it ended too early."""
    return ENDINGS.get(return_code, "was lost together with its supervisor")


def write_rules(syftbox_folder: Path, rules: JobRules) -> Path:
    """The rules for the next job of this hospital, beside its syftbox folder, where no job may read or write."""
    return write_json(_beside(syftbox_folder, "rules.json"), asdict(rules))


def read_rules(syftbox_folder: Path) -> JobRules:
    """What ``write_rules`` wrote. Raises OSError or ValueError where there is no such file."""
    words = json.loads(_beside(syftbox_folder, "rules.json").read_text(encoding="utf-8"))
    return JobRules(**{**words, "readable": tuple(words["readable"])})


def log_file(syftbox_folder: Path) -> Path:
    """Where the log of this hospital's last job lies: beside its syftbox folder, so that syft passes nothing on."""
    return _beside(syftbox_folder, "log.txt")


def main() -> int:
    """Run the job of the present folder by the rules of the hospital that SYFTBOX_FOLDER names; a key of ENDINGS."""
    try:
        return _run_job()
    except Exception:  # a full disk, say; its traceback would be read by the submitter
        return LOST


def _run_job() -> int:
    watch = _Watch(os.getppid())
    box, code = Path(os.environ["SYFTBOX_FOLDER"]), Path.cwd() / "code"
    sandbox.adopt_orphans()
    try:
        rules, outputs = read_rules(box), fresh_folder(code / "outputs")
    except (OSError, ValueError, TypeError, KeyError):
        return NOT_STARTED
    with _scratch_folder(box) as scratch, Log(log_file(box), rules.log_bytes) as log:
        ended = watch.run(rules, code, outputs, scratch, log)
        if ended == DONE and (wrong := fault(outputs, rules.outputs)):
            log.say(f"The files that the job left were deleted: {wrong[:2000]}")
            ended = LEFT
    if ended != DONE:
        fresh_folder(outputs)
    return ended


class _Watch:
    """A job from its start to the end of its last process. parent: the process whose end ends the job too."""

    def __init__(self, parent: int) -> None:
        self._parent, self._stopped = parent, False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def run(self, rules: JobRules, code: Path, outputs: Path, scratch: Path, log: Log) -> int:
        """Start, supervise, end: afterwards nothing is left of the job but files."""
        try:
            job = _start(rules, code, outputs, scratch, log.writer)
        except (OSError, subprocess.SubprocessError) as error:
            log.say(f"The job was not started: {error}")
            job = None
        log.close_writer()
        if job is None:
            log.finish()  # what confine had to say
            return NOT_STARTED
        deadline, broken = time.monotonic() + rules.timeout_s, None
        try:
            while broken is None and job.poll() is None:
                log.move(LOOK_S)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.wait(0 if log.open else LOOK_S)
                broken = LATE if time.monotonic() > deadline else self._broken(rules, job, log, (outputs, scratch))
            returned = job.returncode
        finally:
            _end_all(job)
        log.finish()
        if returned is None:
            return broken
        broken = self._broken(rules, job, log, (outputs, scratch))  # since the last look
        return broken or (DONE if returned == 0 else RAISED if returned > 0 else KILLED)

    def _broken(self, rules: JobRules, job: subprocess.Popen, log: Log, folders: tuple[Path, ...]) -> int | None:
        """The first rule that the running job breaks at this moment."""
        if self._stopped or os.getppid() != self._parent:
            return STOPPED
        if log.bytes > rules.log_bytes:
            return PRINTED
        resident, threads, written = _used(job)
        if resident > rules.memory_mb * 1_000_000 or threads > MOST_THREADS:
            return MEMORY
        written = max(written, sum(bytes_below(folder, rules.most_bytes) for folder in folders))
        return WROTE if written > rules.most_bytes else None


def _start(rules: JobRules, code: Path, outputs: Path, scratch: Path, log: int) -> subprocess.Popen:
    """The job as a confined process in its own session."""
    (scratch / "lib").mkdir()
    package = Path(fedbone.__file__).resolve().parent
    (scratch / "lib" / "fedbone").symlink_to(package)  # the folder above it may hold anything and stays closed
    environment = {
        **{name: os.environ[name] for name in ("SYFTBOX_FOLDER", "SYFTBOX_EMAIL")},
        **{name: str(scratch) for name in ("HOME", "TMPDIR")},
        **{"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "SYFT_IS_IN_JOB": "true"},
        **{"PYTHONPATH": str(scratch / "lib"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
    }
    readable = [*sandbox.system_paths(), *map(Path, rules.readable), code]
    writable = [outputs, scratch, Path(os.devnull)]
    supervisor = os.getpid()

    def confine() -> None:
        _limit("RLIMIT_CORE", 1)  # none, whereas 0 would still hand one to a program that collects them
        _limit("RLIMIT_FSIZE", rules.most_bytes + 1)  # one more, so that _broken sees it
        _limit("RLIMIT_NOFILE", MOST_OPEN_FILES)
        sandbox.confine(readable, writable)
        if os.getppid() != supervisor:  # it ended before we asked to be ended with it
            os._exit(1)

    return subprocess.Popen(
        [sys.executable, "-s", "main.py"],
        cwd=code,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=confine,
    )


def _limit(name: str, most: int) -> None:
    import resource  # not on Windows, where this module is imported but runs no job

    kind = getattr(resource, name)
    allowed = resource.getrlimit(kind)[1]
    lowest = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(kind, (lowest, lowest))


def _descendants() -> list[psutil.Process]:
    """Every process of the job: orphans too are ours, where the platform gives them to us."""
    return psutil.Process().children(recursive=True)


def _used(job: subprocess.Popen) -> tuple[int, int, int]:
    """Resident bytes, threads, and bytes ever written, of all processes of the job."""
    alone = sandbox.protections().calls  # then there is no need to look through all processes of the machine
    used = [0, 0, 0]
    with contextlib.suppress(psutil.Error):
        for process in [psutil.Process(job.pid)] if alone else _descendants():
            with contextlib.suppress(psutil.Error, OSError):
                used[0] += process.memory_info().rss
                used[1] += process.num_threads()
                if sys.platform == "linux":  # also into files that it has removed and holds open or mapped
                    counters = process.io_counters()
                    used[2] += max(counters.write_bytes, counters.write_chars)
    return tuple(used)


def _end_all(job: subprocess.Popen) -> None:
    """Kill until nothing is left: a process may be born between a look and a kill."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers so for a group that has ended
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    while left := _descendants():
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=LOOK_S)


def _beside(folder: Path, ending: str) -> Path:
    folder = Path(folder)
    return folder.with_name(f"{folder.name}-{ending}")


@contextlib.contextmanager
def _scratch_folder(syftbox_folder: Path) -> Iterator[Path]:
    """The job's home and place for temporary files, new and for this user only; a killed supervisor's goes first."""
    scratch = fresh_folder(_beside(syftbox_folder, "scratch"))
    try:
        yield scratch
    finally:
        fresh_folder(scratch).rmdir()


if __name__ == "__main__":
    sys.exit(main())
