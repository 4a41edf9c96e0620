import weakref

import cv2
import numpy as np
import pytest
import torch

from fedbone.errors import UserError
from fedbone.model.hrnet import build, build_for
from fedbone.model.losses import keypoint_loss
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
    train_round(Trainer(build("w8n", 3), tiny_profile()), dot_films(10), 0, [0])
    assert sorted(np.concatenate(seen)) == list(range(10))
    assert max(map(len, seen)) <= 4


def test_training_learns_the_dots():
    profile, films = tiny_profile(batch=8, rotation_deg=5.0), dot_films(48)
    trainer = Trainer(build("w8n", 3), profile)
    before = np.abs(predict(trainer.model, films.images, profile)[..., :2] - films.keypoints[..., :2]).mean()
    losses = [train_round(trainer, films, 0, [r])[0] for r in range(25)]
    after = np.abs(predict(trainer.model, films.images, profile)[..., :2] - films.keypoints[..., :2]).mean()
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


def uneven_batch(count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Films with none, one, two or three labels."""
    films = dot_films(count)
    images, keypoints = augment(films, np.arange(count), np.random.default_rng(0), tiny_profile())
    for film in range(count):
        keypoints[film, film % 4 :, 2] = 0
    return images, keypoints


def gradient(batch, **changes) -> tuple[float, list[torch.Tensor]]:
    """(loss, gradient of each parameter) in float64, where sums in another order differ by far less than 1e-6."""
    profile, sizes = tiny_profile(**changes), []
    trainer = Trainer(build("w8n", 3).double(), profile, double_loss)
    trainer.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    images, keypoints = batch
    loss = trainer.gradient(images.double(), keypoints.double(), 0.02)
    assert max(sizes) <= (profile.micro_batch or len(images))
    assert sum(sizes) == len(images)
    return loss, [p.grad for p in trainer.model.parameters()]


def double_loss(logits, keypoints, size_px, sigma, wing_weight):
    """A mean over labelled joints that stays in float64, unlike the package's."""
    labelled = keypoints[..., 2] > 0
    peak = logits.flatten(2).softmax(-1).square().sum(-1)
    return (peak * labelled).sum() / labelled.sum().clamp_min(1) * sigma


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 7, 8])
def test_passes_add_up_to_the_gradient_of_the_batch(micro_batch):
    """Seven films in passes of 2 leave one film over, and each pass has another number of labels."""
    loss, whole = gradient(uneven_batch())
    summed, parts = gradient(uneven_batch(), micro_batch=micro_batch)
    assert summed == pytest.approx(loss, rel=1e-9)
    length = torch.cat([g.flatten() for g in whole]).norm()  # the head's bias has none: softmax does not see it
    for a, b in zip(whole, parts, strict=True):
        assert (a - b).norm() <= 1e-6 * a.norm() + 1e-12 * length


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_the_proximal_term_is_autograds_and_is_added_once_a_step(micro_batch):
    """The oracle: mu / 2 ||w - w_start||^2 as part of the loss of the whole batch, away from the start."""
    mu, (images, keypoints) = 0.7, uneven_batch()
    images, keypoints = images.double(), keypoints.double()
    trainer = Trainer(build("w8n", 3).double(), tiny_profile(micro_batch=micro_batch), double_loss, proximal_mu=mu)
    start = [p.detach().clone() for p in trainer.model.parameters()]
    shift = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.add_(torch.randn(p.shape, generator=shift, dtype=p.dtype), alpha=0.01)
    parameters = list(trainer.model.parameters())
    plain = double_loss(trainer.model(images), keypoints, 32, 1.5, 0.0)
    distance = sum((p - s).square().sum() for p, s in zip(parameters, start, strict=True))
    expected = torch.autograd.grad(plain + mu / 2 * distance, parameters)
    assert trainer.gradient(images, keypoints, 0.0) == pytest.approx(float(plain.detach()), rel=1e-9)
    for p, gradient_of_both in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient_of_both, rtol=1e-6, atol=1e-9)


def test_the_proximal_term_is_scaled_as_the_loss_is():
    """Two scales that both fit give the same step: unscaled, the pull would all but vanish behind fp16's gradients."""
    steps = {}
    for mu in (0.0, 5.0):
        for scale in (2.0**4, 2.0**10):
            trainer = Trainer(build("w8n", 3), tiny_profile(precision="fp16"), proximal_mu=mu)
            trainer.scaler = torch.amp.GradScaler("cpu", scale)
            for _ in range(2):  # before the first step there is nothing to be pulled back to
                trainer.step(*uneven_batch(), 1e-2, 0.0)
            assert trainer.scaler.get_scale() == scale
            steps[mu, scale] = to_vector(trainer.model)
    apart = np.linalg.norm(steps[5.0, 2.0**10] - steps[0.0, 2.0**10])
    assert np.linalg.norm(steps[5.0, 2.0**10] - steps[5.0, 2.0**4]) < 0.2 * apart


def test_the_pull_keeps_a_training_near_its_start():
    profile, films = tiny_profile(local_epochs=3), dot_films(8, labelled=(0, 2))
    moved = []
    for mu in (0.0, 1.0, 100.0):
        trainer = Trainer(build("w8n", 3), profile, proximal_mu=mu)
        before, row = to_vector(trainer.model), trainer.model.final_layer.weight[1].detach().clone()
        train_round(trainer, films, 1, [0])
        moved.append(np.linalg.norm(to_vector(trainer.model) - before))
        assert torch.equal(trainer.model.final_layer.weight[1], row)  # of a joint that nobody labels here
    assert moved[0] > moved[1] > moved[2]


def test_an_average_over_passes_would_be_another_gradient():
    """What the weights by labelled joints are for: films with one label would count as much as films with three."""
    batch = uneven_batch()
    _, whole = gradient(batch)
    passes = [gradient((films, points))[1] for films, points in zip(*(t.split(2) for t in batch), strict=True)]
    naive = [sum(parts) / len(passes) for parts in zip(*passes, strict=True)]
    assert any((a - b).norm() > 1e-2 * a.norm() for a, b in zip(whole, naive, strict=True))


def test_a_batch_without_labels_leaves_the_weights_alone():
    images, keypoints = uneven_batch()
    keypoints[..., 2] = 0
    for micro_batch in (None, 2):
        trainer = Trainer(build("w8n", 3), tiny_profile(micro_batch=micro_batch))
        before = to_vector(trainer.model)
        assert trainer.step(images, keypoints, 1e-3, 0.02) == 0
        assert np.array_equal(to_vector(trainer.model), before)


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 4}, {"checkpointing": True}], ids=str)
def test_one_pass_gives_the_bytes_of_the_plain_loop(changes):
    """The oracle: forward, loss, backward and Adam written out."""
    profile, films = tiny_profile(**changes), dot_films(8)
    trainer, model = Trainer(build_for(profile, 3), profile), build("w8n", 3)
    train_round(trainer, films, 1, [3])
    adam, rng = torch.optim.Adam(model.parameters(), lr=1e-3 * profile.round_decay), np.random.default_rng([3, 1])
    with reproducible("cpu"):
        for index in np.array_split(rng.permutation(8), 2):
            images, keypoints = augment(films, index, rng, profile)
            loss = keypoint_loss(model(images), keypoints, 32, profile.sigma_px, profile.wing_weight)
            adam.zero_grad()
            loss.backward()
            adam.step()
    assert sha256(to_vector(trainer.model)) == sha256(to_vector(model))


def test_another_loss_takes_the_place_of_the_own_one():
    seen = []

    def only_the_first_joint(logits, keypoints, size_px, sigma, wing_weight):
        seen.append((logits.shape, keypoints.shape, size_px, sigma, wing_weight))
        return logits[:, 0].square().mean()

    profile = tiny_profile()
    trainer = Trainer(build("w8n", 3), profile, only_the_first_joint)
    head = trainer.model.final_layer.weight.detach().clone()
    train_round(trainer, dot_films(4), 1, [0])
    assert seen == [((4, 3, 8, 8), (4, 3, 3), 32, profile.sigma_px, profile.wing_weight)]
    assert not torch.equal(trainer.model.final_layer.weight[0], head[0])
    assert torch.equal(trainer.model.final_layer.weight[1:], head[1:])


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_batch_that_overflows_fp16_is_repeated_at_half_the_scale(micro_batch):
    """All its passes are, also those before the one that overflowed: the step is that of a scale that fits at once."""
    profile, batch = tiny_profile(precision="fp16", micro_batch=micro_batch), uneven_batch()
    high, low = (Trainer(build("w8n", 3), profile, steep) for _ in range(2))
    before = to_vector(high.model)
    high.scaler = torch.amp.GradScaler("cpu", 2.0**24)
    loss = high.step(*batch, 1e-3, 0.0)
    scale = high.scaler.get_scale()
    assert 1 <= scale < 2.0**24
    low.scaler = torch.amp.GradScaler("cpu", scale)
    assert low.step(*batch, 1e-3, 0.0) == loss
    assert low.scaler.get_scale() == scale
    assert sha256(to_vector(high.model)) == sha256(to_vector(low.model)) != sha256(before)
    assert {int(state["step"]) for state in high.optimiser.state.values()} == {1}


def steep(logits, keypoints, size_px, sigma, wing_weight):
    return 100 * keypoint_loss(logits, keypoints, size_px, sigma, wing_weight)


def test_weights_that_overflow_at_any_scale_do_not_repeat_for_ever():
    trainer = Trainer(build("w8n", 3), tiny_profile(precision="fp16"))
    with torch.no_grad():
        trainer.model.final_layer.weight.fill_(float("inf"))
    assert not np.isfinite(trainer.step(*uneven_batch(), 1e-3, 0.0))


def test_prediction_takes_no_more_films_at_once_than_training(monkeypatch):
    sizes, model = [], build("w8n", 3)
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    films = dot_films(7).images
    found = predict(model, films, tiny_profile(micro_batch=3))
    assert sizes == [3, 3, 1]
    assert found == pytest.approx(predict(model, films, tiny_profile()), abs=1e-4)


def test_memory_that_runs_out_is_explained_and_given_back(monkeypatch):
    """The error that the reader keeps must not keep the activations that did not fit."""
    kept, asked = [], []

    class Full(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, films):
            activations = films * self.weight
            kept.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")

    def explain(profile, size_px):
        asked.append((profile.name, size_px, kept[0]() is None))
        return UserError("profile cpu", "does not fit", "Take less")

    monkeypatch.setattr("fedbone.model.training.out_of_memory", explain)
    with pytest.raises(UserError, match="does not fit") as error:
        train_round(Trainer(Full(), tiny_profile()), dot_films(4), 0, [0])
    assert asked == [("cpu", 32, True)]
    assert error.value.__context__ is None


def test_a_computer_without_memory_is_explained_and_other_errors_are_not(monkeypatch):
    class Failing(torch.nn.Module):
        def __init__(self, text):
            super().__init__()
            self.weight, self.text = torch.nn.Parameter(torch.ones(1)), text

        def forward(self, films):
            raise RuntimeError(self.text)

    full = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
    with pytest.raises(UserError, match="does not fit into the memory of this computer"):
        train_round(Trainer(Failing(full), tiny_profile()), dot_films(4), 0, [0])
    with pytest.raises(RuntimeError, match="a defect"):
        train_round(Trainer(Failing("a defect"), tiny_profile()), dot_films(4), 0, [0])
