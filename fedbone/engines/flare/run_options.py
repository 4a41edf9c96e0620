"""The options of the ``deploy`` commands about runs; what the commands need is imported when one runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedbone.config import PROFILES
from fedbone.options import natural, positive

OPTIMISERS = ("fedavgm", "fedadam")  # of the server
SUMS = ("none", "masks", "paillier")  # how each update is hidden from the server
RANGE, BITS = 0.01, 16  # of a number in such a sum: notebook 08 chooses them


def submit_options(sub: argparse.ArgumentParser) -> None:
    """Of ``deploy submit``."""
    _kits(sub)
    sub.add_argument("--run", required=True, help="its name: small letters, digits, - and _")
    sub.add_argument("--profile", choices=list(PROFILES), help="default: FEDBONE_PROFILE, else cpu")
    sub.add_argument("--size", type=positive, metavar="PX", help="side of the square input; default: the profile's")
    sub.add_argument("--rounds", type=positive, help="default: the profile's")
    sub.add_argument("--seed", type=natural, default=0)
    sub.add_argument("--min-hospitals", type=positive, metavar="K", help="default: two thirds, with --sums all")
    sub.add_argument("--deadline", type=float, default=600.0, metavar="S", help="seconds of a round (default 600)")
    sub.add_argument("--grace", type=float, default=10.0, metavar="S", help="for the others, after K (default 10)")
    sub.add_argument("--optimiser", choices=OPTIMISERS, default="fedavgm", help="of the server (default fedavgm)")
    sub.add_argument("--proximal-mu", type=float, default=0.0, metavar="MU", help="FedProx (default 0: without)")
    text = "central DP: noise multiplier and clip norm of a hospital's update, such as 1.0,0.5"
    sub.add_argument("--central-noise", type=two_numbers, metavar="Z,C", help=text)
    text = "DP-SGD in each hospital: noise multiplier and clip norm of a patient's gradient, such as 1.0,1.0"
    sub.add_argument("--patient-noise", type=two_numbers, metavar="Z,C", help=text)
    sub.add_argument("--patient-batch", type=positive, default=4, metavar="B", help="patients a step (default 4)")
    text = "hide each update from the server: by masks, or masks under Paillier encryption (default none)"
    sub.add_argument("--sums", choices=SUMS, default="none", help=text)
    sub.add_argument("--range", type=float, default=RANGE, metavar="R", help=f"of updates, with --sums ({RANGE})")
    sub.add_argument("--bits", type=positive, default=BITS, metavar="B", help=f"of a number, with --sums ({BITS})")
    sub.add_argument("--wait", action="store_true", help="until the run is finished, where the server is this machine")


def status_options(sub: argparse.ArgumentParser) -> None:
    """Of ``deploy status``."""
    _kits(sub)
    sub.add_argument("--json", action="store_true", help="for programs")


def cancel_options(sub: argparse.ArgumentParser) -> None:
    """Of ``deploy cancel``."""
    sub.add_argument("kits", type=Path, metavar="KITS", help="the server's folder, or the folder of `deploy init`")
    sub.add_argument("--run", required=True)


def model_options(sub: argparse.ArgumentParser) -> None:
    """Of ``deploy model``."""
    sub.add_argument("kit", type=Path, metavar="KIT", help="a hospital's folder: its vault is opened")
    sub.add_argument("--run", required=True)
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="the model as safetensors, in clear")


def consent_options(sub: argparse.ArgumentParser) -> None:
    """Of ``deploy consent``."""
    sub.add_argument("kit", type=Path, metavar="KIT", help="a hospital's folder")
    sub.add_argument("--key", type=Path, required=True, metavar="FILE", help="the officer's private key")
    consent_terms(sub)


def consent_terms(sub: argparse.ArgumentParser) -> None:
    """What a consent says."""
    sub.add_argument("--purpose", default="training a joint model of bone keypoints")
    sub.add_argument("--legal-basis", default="not stated")
    sub.add_argument("--officer", default="data protection officer", help="a role, never a person's name")
    sub.add_argument("--runs", default="*", metavar="A,B,...", help="the runs that it covers (default: any)")
    sub.add_argument("--days", type=positive, default=90, help="from now (default 90)")
    sub.add_argument("--withdraw", action="store_true", help="end the use: no further round")


def check_options(sub: argparse.ArgumentParser) -> None:
    """Of ``deploy check``."""
    _kits(sub)
    sub.add_argument("--out", type=Path, required=True, metavar="REPORT", help="the report, one HTML page")
    text = "also try to log in over the network with a forged key: the server's audit log keeps the attempt"
    sub.add_argument("--intrude", action="store_true", help=text)
    text = "search this folder too for models in clear, such as one for temporary files; again for more"
    sub.add_argument("--also", type=Path, action="append", default=[], metavar="FOLDER", help=text)


def watch_options(sub: argparse.ArgumentParser) -> None:
    """Of ``deploy watch``, which ``deploy start`` calls beside the server."""
    sub.add_argument("kit", type=Path, metavar="KIT", help="the server's folder")


def two_numbers(text: str) -> tuple[float, float]:
    """An argparse type: two numbers with a comma between them."""
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected two numbers such as 1.0,0.5") from None
    return first, second


def _kits(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("kits", type=Path, metavar="KITS", help="the folder of `deploy init`")
