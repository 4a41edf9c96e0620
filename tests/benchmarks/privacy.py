"""What privacy costs in time and in accuracy: ``python tests/benchmarks/privacy.py`` (or -m, from the root).

``--skip-training`` leaves the last key null.

- dpsgd_vs_plain_step: CPU seconds of the clipped sum of all parameters' gradients over those of the plain gradient of
  the same batch, CPU profile, films of noise of its size; each film is a patient.
- dpsgd_vs_plain_step_64: the same with films of 64 pixels, which go through vmap.
- audit_cpu_s: CPU seconds of the mechanism audit, 20,000 calls of the server's own aggregation with three hospitals.
- error_by_epsilon: mean radial error (pixels of the 128) on the hospitals' test films by epsilon of a patient, after
  private training of the head with 100 films a hospital from the model of public films, which is epsilon 0; seed 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only its own folder is there

from fedbone.config import PROFILES
from fedbone.federation.strategies import equal_weights
from fedbone.model.hrnet import build_for
from fedbone.model.losses import keypoint_loss
from fedbone.model.training import as_batch, reproducible
from fedbone.options import positive
from fedbone.privacy.accounting import calibrate
from fedbone.privacy.auditing import audit
from fedbone.privacy.dp import GaussianNoise
from fedbone.privacy.dpsgd import clipped_sum
from notebooks.tables.make_privacy import CONTROL, EPSILONS, measure
from tests.benchmarks.gpu import noise_films
from tests.benchmarks.timing import cpu_seconds, medians
from tests.test_auditing import server_with

PROFILE, FILMS, DP_DELTA = PROFILES["cpu"], 16, 1e-5


def step_ratio(size_px: int, repeats: int) -> float:
    """The clipped sum over the plain gradient of the same films."""
    model, films = build_for(PROFILE, 17), noise_films(FILMS, size_px)
    images, keypoints = as_batch(films.images[:, None].astype(np.float32) / 255), torch.from_numpy(films.keypoints)
    loss = partial(keypoint_loss, size_px=size_px, sigma=PROFILE.sigma_px, wing_weight=PROFILE.wing_weight)

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        loss(model(images), keypoints).backward()

    def private() -> None:
        clipped_sum(model, images, keypoints, np.arange(FILMS), 1.0, loss)

    with reproducible("cpu"):
        plain_s, private_s = medians(repeats, plain, private)
    return private_s / plain_s


def audit_seconds(calls: int) -> float:
    """The audit of a mechanism that keeps its promise of epsilon 1."""
    sigma = calibrate(epsilon=1.0, rounds=1, dp_delta=DP_DELTA) * equal_weights(3).max()
    mechanism = server_with(GaussianNoise(sigma, 1.0), joint_rows=False)
    audit(mechanism, 1.0, DP_DELTA, calls=200)  # imports
    return cpu_seconds(lambda: audit(mechanism, 1.0, DP_DELTA, calls=calls))


def errors() -> dict[str, float]:
    """mre_px by epsilon, smallest first."""
    arms = {"0": CONTROL} | {f"{e:g}": f"head, epsilon {e:g}, 100 films" for e in sorted(EPSILONS)}
    return {epsilon: measure(arm, 0)[0]["mre_px"] for epsilon, arm in arms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--calls", type=positive, default=20_000, help="of the audited mechanism")
    parser.add_argument("--skip-training", action="store_true")
    args = parser.parse_args()
    figures = {
        "dpsgd_vs_plain_step": round(step_ratio(PROFILE.size_px, args.repeats), 2),
        "dpsgd_vs_plain_step_64": round(step_ratio(64, args.repeats), 2),
        "audit_cpu_s": round(audit_seconds(args.calls), 2),
        "error_by_epsilon": None if args.skip_training else errors(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
