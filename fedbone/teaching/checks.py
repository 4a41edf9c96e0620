"""Statements that are checked where they are made, and exercises that grade themselves."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from numbers import Integral

import numpy as np
import psutil
from IPython.display import display

from fedbone.config import is_full_run, own_data
from fedbone.errors import UserError
from fedbone.teaching.prose import FIGURES

# CPU seconds for each chapter on a machine with machine.STEP_CPU_S
CPU_BUDGETS_S = dict(zip((f"{n:02}" for n in range(11)), (5, 20, 60, 150, 60, 200, 90, 90, 90, 60, 45), strict=True))
BUSY = 1.3  # runnable threads a core: a chapter by itself has at most one, and waiting makes CPU seconds grow


class ClaimError(AssertionError):
    """A statement of the workbook that does not hold on this machine."""


def claim(statement: str, holds: bool, *, full_run: bool = False, figures: Mapping[str, object] | None = None) -> None:
    """Print ``statement`` as held, or raise ClaimError.

    full_run: the statement is about the workbook's own hospitals after all rounds; with FEDBONE_ROUNDS or
    FEDBONE_DATA set it is printed as not checked. figures: numbers that ``holds`` has checked and that the chapter's
    text quotes, name -> text (fedbone.teaching.prose).
    """
    if full_run and (not is_full_run() or own_data()):
        print(f"not checked in a short run or on own films: {statement}")
    elif not holds:
        raise ClaimError(f"does not hold: {statement}")
    elif figures:
        carried = {name: str(text) for name, text in figures.items()}
        display({"text/plain": f"holds: {statement}"}, raw=True, metadata={FIGURES: carried})
    else:
        print(f"holds: {statement}")


def claim_cpu_seconds(what: str, seconds: float, limit: float, *, full_run: bool = False) -> None:
    """Claim that ``what`` took at most ``limit`` CPU seconds of the machine that the workbook's times come from.

    Where it took more, a training step is timed: a slower machine gets as many times more, and the claim says so. It is
    printed as not checked on a machine that other work keeps busy. full_run: as in ``claim``.
    """
    statement = f"{what}: at most {limit:g} CPU seconds"
    if seconds > limit:
        from fedbone.teaching.machine import slowness  # here, because it imports torch: chapters 00 and 01 need none

        factor = slowness()
        statement += f", times {factor:.1f}: so much longer does a training step take here than where the limit was set"
        limit *= factor
    if seconds > limit and (load := _load_per_core()) > BUSY:
        print(f"not checked, as other work keeps this machine busy ({load:.1f} runnable threads a core): {statement}")
    else:
        claim(statement, seconds <= limit, full_run=full_run)


def _load_per_core() -> float:
    """Runnable threads a core in the last five minutes; 0 where the system does not say."""
    return psutil.getloadavg()[1] / (psutil.cpu_count() or 1)


def grade(answer: Callable, cases: Sequence[tuple[tuple, object]], hint: str) -> bool:
    """Try the reader's function on ``cases`` of (arguments, expected value), show the first failure; True without one.

    An unfinished exercise returns None or ``...``. Each case gets copies of its arguments. Whole numbers are compared
    exactly, other numbers and arrays to a relative 1e-6.
    """
    for number, (arguments, expected) in enumerate(cases, 1):
        name = answer.__name__ if getattr(answer, "__name__", "").isidentifier() else "your function"
        tried = f"not yet, case {number} of {len(cases)}: {name}({', '.join(map(_short, arguments))})"
        try:
            value = answer(*copy.deepcopy(arguments))
        except Exception as error:  # the reader's code may fail in any way, and the notebook goes on
            print(f"{tried}\n  stopped with {type(error).__name__}: {error}\nHint: {hint}")
            return False
        if value is None or value is Ellipsis:
            print(f"not solved yet. Hint: {hint}")
            return False
        if not _same(value, expected):
            print(f"{tried}\n  came     {_short(value)}\n  expected {_short(expected)}\nHint: {hint}")
            return False
    print("solved: all cases agree")
    return True


def predicted(guess: object, answer: object, unit: str = "") -> None:
    """Print the reader's guess beside the answer, with a word of judgement.

    Words are right or wrong. A number is close within a tenth of the larger of the two, near within a half.
    """
    if isinstance(answer, str):
        print(f"you said {guess}: {'right' if guess == answer else f'it was {answer}'}")
        return
    guess, answer = float(guess), float(answer)
    off, largest = abs(guess - answer), max(abs(guess), abs(answer))
    words = {0.0: "right", 0.1: "close", 0.5: "near", math.inf: "far off: what did you not think of?"}
    verdict = next(word for share, word in words.items() if off <= share * largest or share == math.inf)
    with_unit = f" {unit}" if unit else ""
    print(f"you said {guess:g}{with_unit}, it was {answer:.3g}{with_unit}: {verdict}")


def outcome_of(action: Callable, *arguments: object, **options: object) -> str:
    """What ``action`` says to this: accepted, or refused and why. Only a UserError is a refusal."""
    try:
        action(*arguments, **options)
    except UserError as error:
        return f"refused: {error.problem}"
    return "accepted"


def _same(value: object, expected: object) -> bool:
    """Whether two values are equal, whatever mix of Python's, NumPy's and torch's own types they come in."""
    if isinstance(expected, (Set, str)):
        kind = Set if isinstance(expected, Set) else str
        return isinstance(value, kind) and value == expected
    try:
        value, expected = np.asarray(value), np.asarray(expected)
        if value.shape != expected.shape or value.dtype.kind in "SU":  # numpy would read the text "4" as a number
            return False
        if all(isinstance(number, (Integral, np.bool_)) for number in (*value.flat, *expected.flat)):
            return bool((value == expected).all())
        value, expected = value.astype(np.float64), expected.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        return False
    return np.allclose(value, expected, rtol=1e-6, atol=1e-9, equal_nan=True)


def _short(value: object) -> str:
    """A value in at most 160 characters, the same text for Python's and NumPy's types."""
    text = _text(value)
    return text if len(text) <= 160 else f"{text[:100]} ... {text[-50:]}"


def _text(value: object) -> str:
    if isinstance(value, np.ndarray) and value.ndim:
        shape = f", shape {value.shape}" if value.size > 8 else ""
        with np.printoptions(threshold=8, edgeitems=3, precision=6):
            return f"array({' '.join(str(value).split())}{shape})"
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.8g}"
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**100 else f"a whole number of {int(value).bit_length()} bits"
    if isinstance(value, (list, tuple, Set)):
        parts = [_short(part) for part in (sorted(value, key=repr) if isinstance(value, Set) else value[:10])]
        inside = ", ".join(parts + ["..."] * (len(value) > len(parts)))
        if isinstance(value, Set):
            return f"{{{inside}}}" if parts else "set()"
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    try:
        return repr(value)
    except Exception:  # a class of the reader's own, half written
        return f"a {type(value).__name__}"


def budget(chapter: str, started: float, gigabytes: float, *, others_cpu_s: float = 0.0) -> None:
    """Print what a chapter took since ``started`` (time.perf_counter); claim its limits in CPU seconds and memory.

    CPU seconds: of this kernel, of its processes that have ended, and ``others_cpu_s`` of processes that it does not
    own. The limits are those of a full run on the workbook's own films with the CPU profile; elsewhere they are printed
    as not checked (``make test`` runs two notebooks at a time).
    """
    spent = os.times()
    cpu_s = spent.user + spent.system + spent.children_user + spent.children_system + others_cpu_s
    minutes, peak, limit_s = (time.perf_counter() - started) / 60, peak_memory_gb(), CPU_BUDGETS_S[chapter]
    print(f"{cpu_s:.0f} CPU seconds, {minutes:.1f} minutes, {peak:.1f} GB at the peak")
    if os.environ.get("FEDBONE_PROFILE", "cpu") != "cpu":
        print(f"not checked on a GPU profile: {limit_s} CPU seconds and {gigabytes:g} GB")
        return
    claim_cpu_seconds("this chapter", cpu_s, limit_s, full_run=True)
    figures = {"cpu_s": f"{cpu_s:.0f}", "minutes": f"{minutes:.1f}", "memory_gb": f"{peak:.1f}"}
    claim(f"this notebook's own process: under {gigabytes:g} GB", peak < gigabytes, full_run=True, figures=figures)


def peak_memory_gb() -> float:
    """The largest resident memory of this process so far; its child processes are not counted."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
