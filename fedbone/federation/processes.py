"""Hospitals at work: one after the other in this process, or side by side in worker processes with one thread each.

Both give an ``Answer`` for every hospital that is asked, with the same bytes. Only a process can be stopped when it is
late, and only there does a crash leave the other hospitals alone.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import pickle
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

import numpy as np
import torch

from fedbone.errors import UserError
from fedbone.federation.history import FAILED, LATE, TOOK_PART
from fedbone.federation.hospital import Hospital, RoundTask, Update
from fedbone.workers import begin_worker

States = dict[str, dict[str, np.ndarray]]  # by hospital: what stays there between rounds


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking a hospital: its ``update`` and its new ``state``, or the ``error`` that kept it out.

    loss: of its last pass over films, None where its policy keeps it.
    """

    name: str
    status: str
    update: Update | None = None
    state: dict[str, np.ndarray] = field(default_factory=dict)
    loss: float | None = None
    error: Exception | None = None


Ask = Callable[[list[str], np.ndarray, RoundTask, States], Iterator[Answer]]


@contextlib.contextmanager
def at_work(hospitals: list[Hospital], processes: int, deadline_s: float | None = None) -> Iterator[Ask]:
    """``ask(names, vector, task, states)``: the answers of these hospitals, in this process or in ``processes`` others.

    Raises ValueError for a deadline without processes: nothing could stop a hospital that is late.
    """
    if processes > 1:
        with HospitalProcesses(hospitals, processes, deadline_s) as pool:
            yield pool.ask
        return
    if deadline_s is not None:
        raise ValueError(f"deadline_s={deadline_s} needs processes > 1: only a process can be stopped when it is late")
    by_name = {hospital.name: hospital for hospital in hospitals}

    def in_turn(names: list[str], vector: np.ndarray, task: RoundTask, states: States) -> Iterator[Answer]:
        for name in names:  # the next one trains when this answer was taken: one update at a time is in memory
            yield answer_of(by_name[name], vector, task, states[name])

    yield in_turn


def answer_of(hospital: Hospital, vector: np.ndarray, task: RoundTask, state: dict[str, np.ndarray]) -> Answer:
    """One hospital's round, from the ``state`` it was left in; an error is an answer too."""
    try:
        hospital.restore(state)
        update = hospital.local_update(vector, task)
        return Answer(hospital.name, TOOK_PART, update, hospital.state(), hospital.released_loss(update))
    except Exception as error:
        return Answer(hospital.name, FAILED, error=error)


class _Worker:
    """A process with the hospitals, our end of its pipe, and the hospital that it works for at the moment."""

    def __init__(self, packed: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, packed), daemon=True)
        self.process.start()
        theirs.close()  # or its end would not be noticed: the pipe would still have a writer
        self.ready, self.name = False, ""

    def stop(self) -> None:
        self.process.kill()  # terminate would wait for a process that is stopped
        self.process.join()
        self.connection.close()


class HospitalProcesses:
    """``count`` worker processes that serve ``hospitals``; a context manager, which ends them.

    They start with the first question. A worker that ends or is late is replaced; workers end with this process.
    Hospitals must be picklable: their classes cannot be defined in a notebook's cell.
    """

    def __init__(self, hospitals: list[Hospital], count: int, deadline_s: float | None = None) -> None:
        self._hospitals, self._count, self.deadline_s = hospitals, min(count, len(hospitals)), deadline_s
        self._workers: list[_Worker] = []

    def __enter__(self) -> HospitalProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def ask(self, names: list[str], vector: np.ndarray, task: RoundTask, states: States) -> Iterator[Answer]:
        """The answers of the hospitals ``names``, as they arrive.

        After ``deadline_s`` wall seconds, counted from when all processes are ready, the missing ones are late.
        Raises UserError when a process cannot start.
        """
        self._fill()
        for worker in self._workers:  # imports take seconds, and a deadline is for the hospitals' work
            while not worker.ready:
                list(self._receive(worker))
        ends = math.inf if self.deadline_s is None else time.monotonic() + self.deadline_s
        waiting = deque(names)
        while waiting or any(worker.name for worker in self._workers):
            if waiting:
                self._fill()
            yield from self._hand_out(waiting, vector, task, states)
            heard = self._listen(ends - time.monotonic())
            if not heard and time.monotonic() >= ends:
                yield from self._give_up(waiting)
                return
            for worker in heard:
                yield from self._receive(worker)

    def _fill(self) -> None:
        """Start a process in the place of each one that is not there: not yet, or not any more."""
        for worker in [w for w in self._workers if w.ready and not w.name and not w.process.is_alive()]:
            self._drop(worker)  # it was killed while idle: no hospital is to blame
        if missing := self._count - len(self._workers):
            packed = pickle.dumps(self._hospitals)
            self._workers += [_Worker(packed) for _ in range(missing)]

    def _drop(self, worker: _Worker) -> None:
        worker.stop()
        self._workers.remove(worker)

    def _listen(self, timeout_s: float) -> list[_Worker]:
        """The workers that have said something, or ended."""
        speaking = {w.connection: w for w in self._workers if w.name or not w.ready}
        if not speaking:  # the last one just ended; to wait for nobody would take forever
            return []
        return [speaking[c] for c in wait(list(speaking), None if timeout_s == math.inf else max(0.0, timeout_s))]

    def _hand_out(self, waiting: deque[str], vector: np.ndarray, task: RoundTask, states: States) -> Iterator[Answer]:
        """Give every idle worker the next hospital."""
        for worker in [worker for worker in self._workers if worker.ready and not worker.name]:
            if not waiting:
                return
            worker.name = waiting.popleft()
            try:
                worker.connection.send((worker.name, vector, task, states[worker.name]))
            except OSError:
                yield self._ended(worker)

    def _receive(self, worker: _Worker) -> Iterator[Answer]:
        """The answer of ``worker``; none when it only says that it is ready."""
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            yield self._ended(worker)
            return
        if answer is None:
            worker.ready = True
            return
        worker.name = ""
        yield answer

    def _ended(self, worker: _Worker) -> Answer:
        """What to say for the hospital of a worker whose process ended."""
        worker.process.join()
        code = worker.process.exitcode
        if not worker.ready:
            problem = f"a process ended (exit code {code}) before it was ready"
            remedy = "Its message is above. Scripts need `if __name__ == '__main__':`; processes=1 needs none"
            raise UserError("hospitals in processes", problem, remedy)
        self._drop(worker)
        return Answer(worker.name, FAILED, error=left_out(worker.name, f"its process ended (exit code {code})"))

    def _give_up(self, waiting: deque[str]) -> Iterator[Answer]:
        """End the processes that are still at work; every hospital without an answer is late."""
        late = f"no answer within {self.deadline_s:g} s"
        for worker in [worker for worker in self._workers if worker.name]:
            self._drop(worker)
            yield Answer(worker.name, LATE, error=left_out(worker.name, late))
        for name in waiting:
            yield Answer(name, LATE, error=left_out(name, f"{late}: it was still waiting for a process"))


def left_out(name: str, problem: str) -> UserError:
    """The error for a hospital without an answer; not raised here."""
    return UserError(name, problem, "Run it again; with min_hospitals a round goes on without those that are missing")


def _serve(connection: Connection, packed: bytes) -> None:
    """The life of a worker: say that it is ready, then answer until the pipe is closed."""
    begin_worker()
    torch.set_num_threads(1)
    hospitals = {hospital.name: hospital for hospital in pickle.loads(packed)}
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one imports for seconds
    connection.send(None)
    while True:
        try:
            name, vector, task, state = connection.recv()
        except EOFError:  # the parent has ended
            return
        answer = answer_of(hospitals[name], vector, task, state)
        connection.send(answer if answer.error is None else Answer(name, FAILED, error=_portable(answer.error)))


def _portable(error: Exception) -> Exception:
    """``error`` as another process can read it, with the traceback as a note: pickling drops it."""
    if not isinstance(error, UserError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception whose constructor takes other arguments than its message
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
