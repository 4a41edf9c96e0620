"""From the hospitals' updates to the next global model. Each strategy is a function on flat vectors.

FedAvg: McMahan et al., AISTATS 2017, algorithm 1. Server momentum (FedAvgM): Hsu, Qi and Brown, 2019, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


def equal_weights(hospitals: int) -> np.ndarray:
    """(n,) weights 1 / n: a public constant. Weighting by films would publish each hospital's size every round."""
    return np.full(hospitals, 1 / hospitals)


def weighted_mean(deltas: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(P,) float64 mean of ``deltas`` with ``weights`` that sum to 1: the share is applied once, and once only.

    Give the deltas in an order that does not depend on arrival (hospital names sorted): float sums are then identical.
    Raises ValueError for weights that do not sum to 1, or shapes that differ.
    """
    if len(deltas) != len(weights) or abs(float(np.sum(weights)) - 1) > 1e-9:
        raise ValueError(f"{len(deltas)} updates need as many weights that sum to 1, got {list(weights)}")
    mean = np.zeros(deltas[0].shape)
    for delta, weight in zip(deltas, weights, strict=True):
        if delta.shape != mean.shape:
            raise ValueError(f"updates have shapes {mean.shape} and {delta.shape}")
        mean += weight * delta.astype(np.float64)
    return mean


def joint_factor(labelled: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(K,) public factor 1 / (weight of the hospitals that label joint j), and 0 for a joint nobody labels.

    A hospital without labels for joint j returns zero for that head row, so the plain mean divides the others' step by
    hospitals that had nothing to say. The booleans are published before the run and stay as they are: under
    differential privacy the factor is then post-processing of the noisy mean (and scales the noise of those rows too).
    ``VectorLayout.row_factor`` spreads it over the vector.
    """
    share = np.asarray(labelled, dtype=np.float64).T @ weights
    return np.divide(1.0, share, out=np.zeros_like(share), where=share > 0)


@dataclass
class ServerMomentum:
    """v <- momentum v + mean; global <- global + v. Makes up for the few sequential steps of a federation."""

    momentum: float
    velocity: np.ndarray | float = field(default=0.0)

    def step(self, global_vector: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """The next global vector (P,) float32."""
        self.velocity = self.momentum * self.velocity + mean
        return (global_vector + self.velocity).astype(np.float32)
