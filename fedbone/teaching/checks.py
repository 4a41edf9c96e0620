"""Statements that are checked where they are made, and exercises that grade themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedbone.config import is_full_run, own_data


class ClaimError(AssertionError):
    """A statement of the workbook that does not hold on this machine."""


def claim(statement: str, holds: bool, *, full_run: bool = False) -> None:
    """Print ``statement`` as held, or raise ClaimError.

    full_run: the statement is about the workbook's own hospitals after all rounds; with FEDBONE_ROUNDS or
    FEDBONE_DATA set it is printed as not checked.
    """
    if full_run and (not is_full_run() or own_data()):
        print(f"not checked in a short run or on own films: {statement}")
    elif holds:
        print(f"holds: {statement}")
    else:
        raise ClaimError(f"does not hold: {statement}")


def grade(answer: Callable, cases: Sequence[tuple[tuple, object]], hint: str) -> bool:
    """Try the reader's function on ``cases`` of (arguments, expected value) and say what happened; True when all agree.

    An unfinished exercise returns None or ``...``. Numbers and arrays are compared to a relative 1e-6.
    """
    for arguments, expected in cases:
        try:
            value = answer(*arguments)
        except Exception as error:  # the reader's code may fail in any way, and the notebook goes on
            print(f"not yet: {type(error).__name__}: {error}. Hint: {hint}")
            return False
        if value is None or value is Ellipsis:
            print(f"not solved yet. Hint: {hint}")
            return False
        if not _same(value, expected):
            print(f"not yet: one of the hidden cases differs. Hint: {hint}")
            return False
    print("solved: all cases agree")
    return True


def _same(value: object, expected: object) -> bool:
    if isinstance(expected, (str, bool, set)):
        return value == expected
    try:
        value, expected = np.asarray(value, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return value.shape == expected.shape and np.allclose(value, expected, rtol=1e-6, atol=1e-9, equal_nan=True)
