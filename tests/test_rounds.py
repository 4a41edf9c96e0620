from dataclasses import replace

import numpy as np
import pytest

from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital
from fedbone.federation.rounds import initial_vector, run_rounds
from fedbone.privacy.dp import GaussianNoise
from fedbone.vectors import sha256
from tests.helpers import dot_hospital, tiny_profile


def hospitals(profile):
    data = [dot_hospital("a", (0,), 1), dot_hospital("b", (1,), 2), dot_hospital("c", (0, 2), 3)]
    return [Hospital(h, profile) for h in data]


def test_the_order_of_hospitals_does_not_change_a_bit():
    profile = tiny_profile()
    forward, history = run_rounds(hospitals(profile), profile, seed=4)
    backward, _ = run_rounds(hospitals(profile)[::-1], profile, seed=4)
    assert sha256(forward) == sha256(backward) == history[-1].vector_sha256
    assert [row.round for row in history] == [0, 1]


class Broken(Hospital):
    """A hospital whose update was damaged on the way."""

    damage = staticmethod(lambda delta: delta)

    def local_update(self, global_vector, task):
        update = super().local_update(global_vector, task)
        return replace(update, delta=self.damage(update.delta))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: np.where(np.arange(len(d)) == 5, np.nan, d).astype(np.float32), "NaN"),
        (lambda d: d[:-1], "the model needs"),
        (lambda d: d.astype(np.float64), "float64"),
    ],
)
def test_a_damaged_update_is_refused_and_its_hospital_named(damage, words):
    profile = tiny_profile(rounds=1)
    broken = Broken(dot_hospital("b", (1,), 2), profile)
    broken.damage = damage
    with pytest.raises(UserError, match=f"^b: its update.*{words}"):
        run_rounds([*hospitals(profile)[:1], broken], profile)


def test_callbacks_see_every_round_and_its_vector():
    profile, seen = tiny_profile(), []
    vector, _ = run_rounds(hospitals(profile), profile, on_round=lambda row, v: seen.append((row.round, sha256(v))))
    assert [index for index, _ in seen] == [0, 1]
    assert seen[-1][1] == sha256(vector)


def test_one_hospital_without_momentum_is_plain_local_training():
    profile = tiny_profile(rounds=1, server_momentum=0.0)
    hospital = Hospital(dot_hospital("a"), profile)
    vector, _ = run_rounds([hospital], profile, seed=2)
    from fedbone.federation.hospital import RoundTask

    start = initial_vector(profile, 3, 2)
    assert vector == pytest.approx(start + hospital.local_update(start, RoundTask(0, 2)).delta, abs=1e-7)


def test_clipping_bounds_the_round_and_noise_moves_it():
    profile = tiny_profile(rounds=1)
    start = initial_vector(profile, 3, 0)
    clipped, history = run_rounds(hospitals(profile), profile, noise=GaussianNoise(0.0, 1e-3))
    assert history[0].update_norm <= 3e-3  # a head row of one labelling hospital weighs three times as much
    assert np.abs(clipped - start).max() <= 3e-3
    noisy, _ = run_rounds(hospitals(profile), profile, noise=GaussianNoise(0.01, 1e-3, np.random.default_rng(0)))
    assert np.std((noisy - clipped)[:100_000]) == pytest.approx(0.01, rel=0.05)


def test_without_joint_rows_a_single_hospitals_joint_moves_a_third_as_far():
    start = initial_vector(tiny_profile(), 3, 0)
    steps = []
    for joint_rows in (True, False):
        profile = tiny_profile(rounds=1, joint_rows=joint_rows)
        steps.append(run_rounds(hospitals(profile), profile)[0] - start)
    knee, hip = slice(-3 - 3 * 8 + 8, -3 - 3 * 8 + 16), slice(-3 - 3 * 8, -3 - 3 * 8 + 8)
    assert steps[0][knee] == pytest.approx(3 * steps[1][knee], rel=1e-3, abs=1e-6)  # labelled by b alone
    assert steps[0][hip] == pytest.approx(1.5 * steps[1][hip], rel=1e-3, abs=1e-6)  # labelled by a and c
    assert np.array_equal(steps[0][: -3 - 3 * 8], steps[1][: -3 - 3 * 8])
