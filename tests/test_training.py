import cv2
import numpy as np
import pytest
import torch

from fedbone.model.hrnet import build
from fedbone.model.training import Trainer, augment, predict, reproducible, rotate, train_round
from fedbone.vectors import sha256, to_vector
from tests.helpers import dot_films, tiny_profile


@pytest.mark.parametrize("angle", [-15.0, -3.3, 0.0, 7.7, 15.0])
def test_a_dot_and_its_keypoint_turn_together(angle):
    side, xy = 129, np.array([40.0, 85.0])
    image = np.zeros((side, side), np.uint8)
    image[int(xy[1]) - 1 : int(xy[1]) + 2, int(xy[0]) - 1 : int(xy[0]) + 2] = 255
    turned, moved = rotate(image, np.array([[*xy, 2]], np.float32), angle)
    rows, cols = np.mgrid[:side, :side]
    centroid = [(turned * cols).sum() / turned.sum(), (turned * rows).sum() / turned.sum()]
    assert moved[0, :2] == pytest.approx(centroid, abs=0.02)


def test_a_rotation_there_and_back_moves_no_keypoint():
    points = np.array([[30.0, 90.0, 2], [64.0, 64.0, 1]], np.float32)
    image = np.zeros((128, 128), np.uint8)
    _, there = rotate(image, points, 13.0)
    _, back = rotate(image, there, -13.0)
    assert back == pytest.approx(points, abs=1e-3)


def test_a_joint_that_leaves_the_film_loses_its_label():
    _, moved = rotate(np.zeros((64, 64), np.uint8), np.array([[1.0, 1.0, 2], [32.0, 32.0, 2]], np.float32), 15.0)
    assert moved[:, 2].tolist() == [0, 2]


def test_augmented_films_stay_in_range_and_labels_are_not_touched_in_place():
    films = dot_films(4)
    before = films.keypoints.copy()
    images, keypoints = augment(films, np.arange(4), np.random.default_rng(0), tiny_profile())
    assert images.shape == (4, 1, 32, 32)
    assert 0 <= images.min() <= images.max() <= 1
    assert np.array_equal(films.keypoints, before)
    assert not np.allclose(keypoints.numpy(), before)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    profile, films = tiny_profile(), dot_films(10)

    def run(word):
        trainer = Trainer(build("w8n", 3), profile)
        train_round(trainer, films, 1, [word])
        return sha256(to_vector(trainer.model))

    assert run(1) == run(1) != run(2)


def test_an_epoch_shows_every_film_once(monkeypatch):
    seen = []
    original = augment

    def spy(films, index, rng, profile):
        seen.append(index)
        return original(films, index, rng, profile)

    monkeypatch.setattr("fedbone.model.training.augment", spy)
    Trainer(build("w8n", 3), tiny_profile()).epoch(dot_films(10), 1e-3, 0.0, np.random.default_rng(0))
    assert sorted(np.concatenate(seen)) == list(range(10))
    assert max(map(len, seen)) <= 4


def test_training_learns_the_dots():
    profile, films = tiny_profile(batch=8, rotation_deg=5.0), dot_films(48)
    trainer = Trainer(build("w8n", 3), profile)
    before = np.abs(predict(trainer.model, films.images, profile) - films.keypoints[..., :2]).mean()
    losses = [train_round(trainer, films, 0, [r])[0] for r in range(25)]
    after = np.abs(predict(trainer.model, films.images, profile) - films.keypoints[..., :2]).mean()
    assert losses[-1] < losses[0]
    assert after < 0.6 * before


def test_a_hospital_without_labels_for_a_joint_leaves_its_head_row_untouched():
    profile = tiny_profile()
    trainer = Trainer(build("w8n", 3), profile)
    row = trainer.model.final_layer.weight[1].detach().clone()
    train_round(trainer, dot_films(8, labelled=(0, 2)), 1, [0])
    assert torch.equal(trainer.model.final_layer.weight[1], row)


def test_process_wide_settings_come_back_also_after_an_error():
    before = torch.get_num_threads(), cv2.getNumThreads(), torch.are_deterministic_algorithms_enabled()

    def work():
        with reproducible("cpu"):
            assert torch.get_num_threads() == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert (torch.get_num_threads(), cv2.getNumThreads(), torch.are_deterministic_algorithms_enabled()) == before
