"""What an option on the command line may be: argparse types."""

from __future__ import annotations

import argparse


def natural(text: str) -> int:
    """An argparse type: a whole number of 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of 0 or more")
    return int(text)


def positive(text: str) -> int:
    """An argparse type: a whole number of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of 1 or more")
    return int(text)


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0 to 1")
    return value


def margins(text: str) -> tuple[float, ...]:
    """An argparse type: one share of the film's side in per cent, or four: top, right, bottom, left."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) not in (1, 4) or not all(0 <= share < 50 for share in shares) or not any(shares):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one number or four between 0 and 50, such as 8,0,0,5")
    return tuple(shares * (4 // len(shares)))
