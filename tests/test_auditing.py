"""The audits must clear what is right, and accuse what is wrong, on the server's real path."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
from scipy.stats import beta, norm

from fedbone.federation.aggregation import Aggregation, Server
from fedbone.federation.hospital import Update
from fedbone.federation.strategies import FedAvgM, Strategy, equal_weights
from fedbone.privacy.accounting import calibrate, gaussian_epsilon
from fedbone.privacy.auditing import LENGTHS, Mechanism, audit, largest_move
from fedbone.privacy.dp import GaussianNoise, clip, sensitivity
from fedbone.vectors import Slot, VectorLayout

D, NAMES = 1e-5, ("a", "b", "c")
LAYOUT = VectorLayout((Slot("body", 0, (4,), "body"), Slot("final_layer.weight", 4, (2, 2), "head")))
LABELLED = {"a": np.array([True, True]), "b": np.array([True, False]), "c": np.array([True, False])}
ALLOWED = sensitivity(equal_weights(3), 1.0)
Z = calibrate(epsilon=1.0, rounds=1, dp_delta=D)


@pytest.fixture(autouse=True)
def _same_noise_each_time(monkeypatch):
    """The audits call thousands of times: with seeds that count up the tests say the same in every run."""
    seeds = count()
    monkeypatch.setattr("fedbone.privacy.dp.secrets.randbits", lambda bits: next(seeds))


def server_with(noise: GaussianNoise, *, joint_rows: bool = True) -> Mechanism:
    """The mean update that fedbone's own server publishes."""
    server = Server(LAYOUT, LABELLED, Strategy(server=FedAvgM(0.0), joint_rows=joint_rows), noise)
    start = np.zeros(LAYOUT.size, np.float32)

    def publish(updates):
        round_ = Aggregation(server, len(NAMES))
        for name, update in zip(NAMES, updates, strict=True):
            if update is not None:
                round_.add(name, Update(update, LABELLED[name], {}))
        return round_.step(start, {})[1]

    return publish


def gaussian(mu: float, rng: np.random.Generator) -> Mechanism:
    """Exactly mu-GDP, for one hospital whose update is clipped to 1."""

    def publish(updates):
        return rng.normal(size=8) + (0 if updates[0] is None else mu * updates[0] / np.linalg.norm(updates[0]))

    return publish


@pytest.mark.slow
def test_the_servers_real_path_passes_the_audit():
    """The bound comes near the truth, or a mistake would not be seen either."""
    for joint_rows in (True, False):
        mechanism = server_with(GaussianNoise(Z * ALLOWED, 1.0), joint_rows=joint_rows)
        assert 0.5 < audit(mechanism, 1.0, D) <= 1.0


def test_the_servers_real_path_has_the_sensitivity_that_it_claims():
    mechanism = server_with(GaussianNoise(0.0, 1.0), joint_rows=False)
    assert largest_move(mechanism, 1.0) == pytest.approx(ALLOWED, rel=1e-6)


@pytest.mark.parametrize("joint_rows", [True, False])
def test_a_server_without_a_clip_is_accused(joint_rows):
    assert audit(server_with(GaussianNoise(Z * ALLOWED), joint_rows=joint_rows), 1.0, D) > 5
    assert largest_move(server_with(GaussianNoise(0.0), joint_rows=joint_rows), 1.0) > 9 * ALLOWED


def test_a_server_with_a_tenth_less_noise_than_claimed_is_accused_by_enough_calls():
    """What the size of a sample can show: 20,000 calls do not see a tenth, 400,000 do."""
    rng = np.random.default_rng(0)
    assert audit(gaussian(1.1 / Z, rng), 1.0, D) < 1
    assert audit(gaussian(1.1 / Z, rng), 1.0, D, calls=400_000) > 1


def test_false_alarms_are_rarer_than_the_confidence_says():
    """At a confidence of 75 % at most 50 of 200, and in fact some; at the default none of 200."""
    rng = np.random.default_rng(1)
    bounds = [audit(gaussian(1 / Z, rng), 1.0, D, calls=1000, confidence=0.75) for _ in range(200)]
    assert 0 < sum(bound > 1 for bound in bounds) <= 50
    assert not any(audit(gaussian(1 / Z, rng), 1.0, D, calls=1000) > 1 for _ in range(200))


def counting(hits: int, alarms: int) -> Callable:
    """A mechanism whose answers after the pilot are right and wrong as often as is asked."""
    answers = iter([*[1.0] * 50, *[0.0] * 50, *[1.0] * hits, *[0.0] * (450 - hits), *[1.0] * alarms, *[0.0] * 450])
    return lambda updates: np.full(2, next(answers))


def test_the_bound_is_clopper_and_pearsons():
    """By hand: 300 hits and 90 false alarms of 450 each; with 100 hits and 100 alarms nothing is shown."""
    hit, alarm = beta.ppf(0.005, 300, 151), beta.ppf(0.995, 91, 360)
    expected = gaussian_epsilon(norm.ppf(hit) - norm.ppf(alarm), D)
    assert audit(counting(300, 90), 1.0, D, size=2, calls=1000) == pytest.approx(expected, rel=1e-9)
    assert audit(counting(100, 100), 1.0, D, size=2, calls=1000) == 0.0


@pytest.mark.parametrize("hospital", [0, 1, 2])
def test_the_move_of_every_hospital_is_tried(hospital):
    weights = np.full(3, 0.1)
    weights[hospital] = 0.8

    def publish(updates):
        return sum(w * u / max(1, np.linalg.norm(u)) for w, u in zip(weights, updates, strict=True) if u is not None)

    assert largest_move(publish, 1.0) == pytest.approx(0.8, rel=1e-6)


def test_peers_are_adversarial():
    """A product is harmless unless a peer is large, and a peer's update may be."""

    def publish(updates):
        came = [u for u in updates if u is not None]
        return np.sum(came, axis=0) if len(came) == 3 else np.zeros(8)

    assert largest_move(publish, 1.0) == pytest.approx(3 * max(LENGTHS), rel=1e-6)


def test_noise_that_is_one_number_for_all_coordinates_is_found():
    """Whoever looks across the canary's own direction sees no noise at all."""
    rng = np.random.default_rng(0)

    def publish(updates):
        return sum(clip(update, 1.0) for update in updates if update is not None) / 3 + rng.normal(0, Z * ALLOWED)

    assert audit(publish, 1.0, D, calls=4000) > 10


@pytest.mark.parametrize("begins", [2.0, 9.0, 100.0])
def test_a_clip_that_begins_too_late_is_found(begins):
    def publish(updates):
        kept = [u if np.linalg.norm(u) < begins else clip(u, 1.0) for u in updates if u is not None]
        return np.sum(kept, axis=0) / 3 if kept else np.zeros(8)

    assert largest_move(publish, 1.0) > 1.4 * ALLOWED
