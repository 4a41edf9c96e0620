"""Keeps the processes of one party running: `python -m fedbone deploy start KIT`, in the foreground.

FLARE's own start script waits 5 s before each start, gives up after five, and cannot stand a space in a path.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.preflight import port_problem, preflight
from fedbone.engines.flare.processes import (
    die_with,
    end_processes,
    environment,
    only_supervisor,
    party_processes,
    temporary_files,
)
from fedbone.errors import UserError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # before a start; doubled with each end
HEALTHY_S = 60.0  # a process that lived as long is no crash loop
LOOK_S, SAY_S, CAP_S = 0.1, 10.0, 5.0  # between two looks, two equal complaints, two looks at the log's size
WATCHDOG_S = 6.0  # after its supervisor: it needs the server, and would only slow down its start
LOG_BYTES = 5_000_000
FLARE = ("-u", "-m", "nvflare.private.fed.app")
SHUT_DOWN = "shutdown.fl"  # FLARE leaves it in the kit when the administrator shuts a party down


class Part:
    """One process of a party, started again whenever it ends.

    ready: says what must be mended before a start; after: time.monotonic() before which it is not started.
    """

    def __init__(
        self,
        kit: Kit,
        name: str,
        command: list[str],
        ready: Callable[[], UserError | None] = lambda: None,
        after: float = 0.0,
    ) -> None:
        self.kit, self.name, self.command, self.ready = kit, name, command, ready
        self.log = kit.own / f"{name}.log"
        self._process: subprocess.Popen | None = None
        self._pause_s, self._not_before, self._started = FIRST_PAUSE_S, after, 0.0
        self._said, self._said_at = "", -SAY_S

    def look(self, now: float) -> None:
        """Start the process if it is not there; ``now``: time.monotonic()."""
        if self._process is None:
            if now >= self._not_before:
                self._start(now)
        elif self._process.poll() is not None:
            self._ended(now)

    def put_off(self, problem: Exception, now: float) -> None:
        """Say why it was not started, and try again later."""
        self._not_before = now + FIRST_PAUSE_S
        self._complain(str(problem), now)

    def _start(self, now: float) -> None:
        if problem := self.ready():
            self.put_off(problem, now)
            return
        with open(self.log, "ab") as log:  # for appending, so that it can be cut short under the process
            self._process = subprocess.Popen(
                [sys.executable, *self.command],
                cwd=self.kit.folder,
                env=environment(self.kit, self.name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with(os.getpid()),
            )
        self._started, self._said = now, ""
        say(f"{self.kit.name}: {self.name} started as process {self._process.pid}")

    def _ended(self, now: float) -> None:
        code, self._process = self._process.returncode, None
        end_processes(lambda: party_processes(self.kit, self.name), 0.0)  # its job processes: nobody else would
        if now - self._started >= HEALTHY_S:
            self._pause_s = FIRST_PAUSE_S
        self._not_before = now + self._pause_s
        say(f"{self.kit.name}: {self.name} ended with code {code}; next start in {self._pause_s:g} s, log: {self.log}")
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _complain(self, problem: str, now: float) -> None:
        if problem != self._said or now - self._said_at >= SAY_S:
            self._said, self._said_at = problem, now
            say(f"{self.kit.name}: {problem}")


def parts(kit: Kit) -> list[Part]:
    """What runs at a party: FLARE, and beside the server the watchdog."""
    common = ("secure_train=true", "org=fedbone", "config_folder=config")
    if kit.role == "server":
        flare = [*FLARE[:-1], f"{FLARE[-1]}.server.server_train", "-m", ".", "-s", "fed_server.json", "--set", *common]
        watchdog = ["-u", "-m", "fedbone", "deploy", "watch", str(kit.folder)]
        return [
            Part(kit, "server", flare, lambda: port_problem(kit)),
            Part(kit, "watchdog", watchdog, after=time.monotonic() + WATCHDOG_S),
        ]
    flare = [*FLARE[:-1], f"{FLARE[-1]}.client.client_train", "-m", ".", "-s", "fed_client.json", "--set", *common]
    flare += [f"uid={kit.name}", "heart_beat_interval=2"]
    return [Part(kit, "hospital", flare, lambda: preflight(kit))]


def run(folder: Path) -> int:
    """Run the party in ``folder`` until SIGTERM, Ctrl-C or the administrator's shutdown; nothing of it is left then."""
    kit = Kit.load(folder)
    os.umask(0o077)  # FLARE's logs name hospitals and jobs
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with only_supervisor(kit):
        end_processes(lambda: party_processes(kit))  # of a supervisor that was killed
        shutil.rmtree(temporary_files(kit), ignore_errors=True)  # no process is left that could need them
        (kit.folder / SHUT_DOWN).unlink(missing_ok=True)
        try:
            _keep_running(kit, parts(kit), stop)
        finally:
            end_processes(lambda: party_processes(kit))
    say(f"{kit.name}: stopped")
    return 0


def _keep_running(kit: Kit, running: list[Part], stop: threading.Event) -> None:
    capped = 0.0
    while not stop.is_set() and not (kit.folder / SHUT_DOWN).exists():
        now = time.monotonic()
        for part in running:
            try:
                part.look(now)
            except OSError as error:  # a full disk, or no more processes: it may pass, and the party goes on
                part.put_off(error, now)
        if now - capped >= CAP_S:
            capped = now
            for path in kit.own.glob("*.log"):
                cap(path)
        stop.wait(LOOK_S)


def cap(path: Path) -> None:
    """Move the content of a log that grew over LOG_BYTES into ``NAME.old``; whoever writes to it goes on."""
    if path.stat().st_size > LOG_BYTES:
        with suppress(OSError):  # a full disk: the shortening is what helps
            shutil.copyfile(path, path.with_name(f"{path.name}.old"))
        os.truncate(path, 0)


def say(text: str) -> None:
    """One line with the time, on standard output; on a full disk there is none, and the party goes on."""
    with suppress(OSError):
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}", flush=True)
