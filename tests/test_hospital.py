import numpy as np
import pytest

from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.federation.rounds import initial_vector
from fedbone.vectors import sha256
from tests.helpers import dot_hospital, tiny_profile


@pytest.fixture(scope="module")
def start():
    return initial_vector(tiny_profile(), 3, 0)


def test_an_update_depends_on_vector_round_and_seed_alone(start):
    hospital = Hospital(dot_hospital("a", (0, 2)), tiny_profile())
    first = hospital.local_update(start, RoundTask(1, 7))
    hospital.local_update(start + np.float32(0.01), RoundTask(2, 7))  # must leave no trace
    again = hospital.local_update(start, RoundTask(1, 7))
    assert sha256(first.delta) == sha256(again.delta)
    assert sha256(first.delta) != sha256(hospital.local_update(start, RoundTask(1, 8)).delta)
    assert first.labelled_joints.tolist() == [True, False, True]


def test_what_leaves_a_hospital_is_a_vector_of_the_models_size_and_k_booleans(start):
    update = Hospital(dot_hospital("a"), tiny_profile()).local_update(start, RoundTask(0, 0))
    assert update.delta.shape == start.shape
    assert update.delta.dtype == np.float32
    assert np.abs(update.delta).max() > 0
    assert update.labelled_joints.dtype == bool


def test_two_hospitals_with_the_same_films_draw_different_augmentations(start):
    a = Hospital(dot_hospital("a"), tiny_profile()).local_update(start, RoundTask(0, 0))
    b = Hospital(dot_hospital("b"), tiny_profile()).local_update(start, RoundTask(0, 0))
    assert sha256(a.delta) != sha256(b.delta)


def test_divergence_is_an_error_not_an_update(start):
    hospital = Hospital(dot_hospital("a"), tiny_profile(learning_rate=1e30))
    with pytest.raises(ValueError, match="diverged"):
        hospital.local_update(start, RoundTask(0, 0))
