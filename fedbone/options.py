"""What an option on the command line may be (argparse types), and the options of some commands."""

from __future__ import annotations

import argparse
from pathlib import Path


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


def predict_options(sub: argparse.ArgumentParser) -> None:
    """The options of ``python -m fedbone predict``."""
    sub.add_argument("film", type=Path, metavar="FILM", help="a DICOM file")
    sub.add_argument("--out", type=Path, required=True, metavar="PNG", help="the film with its joints, a PNG")
    sub.add_argument("--weights", type=Path, metavar="FILE", help="default: those of data/sample")
    sub.add_argument("--threshold", type=share, help="confidence from which a joint is sure; default: by the weights")
    sub.add_argument("--json", type=Path, metavar="FILE", help="also write the coordinates as JSON")


def evaluate_options(sub: argparse.ArgumentParser) -> None:
    """The options of ``python -m fedbone evaluate``."""
    text = "a trained model; again for more models, which gives the cross-hospital matrix"
    sub.add_argument("--weights", action="append", required=True, metavar="[NAME=]FILE", help=text)
    sub.add_argument("--data", type=Path, help="folder with one sub-folder per hospital (default: generated hospitals)")
    sub.add_argument("--out", type=Path, required=True, help="folder for evaluation.json, the tables and the gallery")
    sub.add_argument("--all-films", action="store_true", help="not the test films alone: no film was used for training")
    sub.add_argument("--seed", type=natural, help="of the split into training and test; default: the models' own")
    sub.add_argument("--split-by-file", action="store_true", help="films without a patient id may be split by file")
