"""Inversion reaches the film and its controls do not; noise, sums and clips; the smuggled film; SSIM by two oracles."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.federation.rounds import initial_vector
from fedbone.imaging.dataset import FilmSet, HospitalData
from fedbone.imaging.hospitals import simulate_film
from fedbone.model.hrnet import build_for
from fedbone.model.losses import keypoint_loss
from fedbone.model.training import augment
from fedbone.privacy import attacks
from fedbone.privacy.accounting import epsilon
from fedbone.privacy.dp import clip
from fedbone.vectors import load_vector
from tests.helpers import dot_films, dot_hospital, tiny_profile

SIDE, PATIENTS, TARGETS = 32, 20, 3


@cache
def films() -> FilmSet:
    """The first PATIENTS patients of hospital B, one film each."""
    shown = [simulate_film("hospital_b", 0, index, SIDE) for index in range(PATIENTS * 3 // 2)]
    images, points = np.stack([f.image for f in shown]), np.stack([f.keypoints[13:17] for f in shown])
    all_films = FilmSet(images, points, np.ones((len(shown), 2), np.float32), tuple(f.patient for f in shown))
    return all_films.take(attacks.one_per_patient(all_films)[:PATIENTS])


def pictures() -> np.ndarray:
    return films().images.astype(np.float32) / 255


def others(index: int) -> np.ndarray:
    return np.delete(pictures(), index, axis=0)


def attack(chosen: list[int], seed: int, change=lambda seen: seen, **options) -> attacks.Inversion:
    """Inversion of the mean gradient of the ``chosen`` films, after ``change``; the labels are known."""
    net, points = attacks.coordinate_net(4, SIDE, seed), torch.from_numpy(films().keypoints[chosen])

    def gradient(batch):
        return attacks.flat_gradient(attacks.coordinate_loss(net(batch), points, SIDE), net)

    seen = gradient(torch.from_numpy(pictures()[chosen][:, None]).double()).detach().numpy()
    return attacks.invert(gradient, change(seen), SIDE, films=len(chosen), seed=seed, **options)


def noised(z: float):
    def change(seen: np.ndarray) -> np.ndarray:
        return seen + z * np.linalg.norm(seen) * np.random.default_rng(5).normal(size=seen.shape)

    return change


@cache
def raw(index: int) -> attacks.Inversion:
    return attack([index], seed=index)


def test_a_film_is_found_from_one_gradient_and_another_patient_is_not_as_like_it():
    for index in range(TARGETS):
        film, found = pictures()[index], raw(index)
        bars = attacks.controls(film, others(index))
        assert attacks.ssim(found.films[0], film) >= max(0.85, bars["nearest other"])
        assert attacks.recognised(found.films[0], film, others(index))
        assert found.mismatch < 1e-3
    alike = [attacks.controls(pictures()[index], others(index))["another patient"] for index in range(PATIENTS)]
    assert np.median(alike) < 0.4


def test_from_pure_noise_nothing_is_found():
    film = pictures()[0]
    for seed in range(2):
        found = attack([0], seed, lambda seen: np.random.default_rng(1).normal(size=seen.shape), smoothness=1e-2)
        assert attacks.ssim(found.films[0], film) < attacks.controls(film, others(0))["mean film"]
        assert found.mismatch > 0.5


@pytest.mark.slow
def test_more_noise_leaves_less_and_what_stops_this_attack_is_no_privacy():
    medians = []
    for z in (0.0, 1e-3, 1e-2, 1e-1):
        found = [attack([i], i, noised(z), smoothness=1e-2 if z else 1e-3).films[0] for i in range(TARGETS)]
        medians.append(np.median([attacks.ssim(picture, pictures()[i]) for i, picture in enumerate(found)]))
    assert all(before > after + 0.05 for before, after in itertools.pairwise(medians)), medians
    assert medians[2] < 0.4
    assert epsilon(noise_multiplier=1e-2, rounds=1, dp_delta=1e-5) > 5000


def test_patient_level_noise_leaves_nothing():
    film = pictures()[1]
    for z in (0.6, 3.73):  # epsilon 8 and 1 for one release
        assert attacks.ssim(attack([1], 1, noised(z), smoothness=1e-2).films[0], film) < 0.15


def test_in_a_sum_of_eight_no_single_film_is_recognised():
    found, film = attack([1, *range(6, 13)], 1).films, pictures()[1]
    assert len(found) == 8
    assert attacks.ssim(found[0], film) < attacks.controls(film, others(1))["nearest other"]
    assert not attacks.recognised(found[0], film, others(1))


def test_a_clip_only_makes_the_update_shorter():
    found = attack([0], 0, lambda seen: clip(seen, 1e-3))
    assert attacks.ssim(found.films[0], pictures()[0]) > 0.85


def test_an_inversion_repeats_to_the_bit_and_shows_its_way():
    calls = []
    first, second = (attack([0], 3, steps=20, frames=4, progress=lambda *call: calls.append(call)) for _ in range(2))
    assert first.films.tobytes() == second.films.tobytes()
    assert first.mismatch == second.mismatch
    steps = [step for step, _ in first.frames]
    assert steps[0] == 0
    assert steps[-1] == 20
    assert steps == sorted(set(steps))
    assert len(steps) == 4
    np.testing.assert_array_equal(first.frames[-1][1], first.films[0])
    assert abs(first.frames[0][1].mean() - 0.5) < 0.02
    assert [done for done, total, _ in calls] == 2 * list(range(1, 21))
    assert attack([0], 4, steps=20).films.tobytes() != first.films.tobytes()


def test_an_attack_can_start_from_a_picture_that_the_attacker_has():
    start = others(0).mean(axis=0)
    first = attack([0], 0, steps=1, frames=2, start=start).frames[0][1]
    assert np.corrcoef(first.ravel(), start.ravel())[0, 1] > 0.9


def test_the_net_has_the_size_that_the_chapter_states_and_its_seed_decides():
    net = attacks.coordinate_net(4, SIDE, 0)
    assert sum(p.numel() for p in net.parameters()) == 13_688
    same, other = (attacks.coordinate_net(4, SIDE, seed) for seed in (0, 1))
    assert torch.equal(net[0].weight, same[0].weight)
    assert not torch.equal(net[0].weight, other[0].weight)
    assert attacks.coordinate_net(2, 33, 0)(torch.zeros(3, 1, 33, 33).double()).shape == (3, 4)


def test_the_loss_counts_labelled_joints_only():
    points = torch.tensor([[[31.0, 0, 2], [9, 9, 0]]])
    found = torch.tensor([[0.5, 0.5, 7, 7]]).double()
    assert float(attacks.coordinate_loss(found, points, SIDE)) == pytest.approx((0.5**2 + 0.5**2) / 2)


def test_the_flat_gradient_is_backwards_and_can_be_differentiated():
    net, batch = attacks.coordinate_net(1, 32, 0), torch.rand(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    flat = attacks.flat_gradient(net(batch).square().sum(), net)
    net(batch).square().sum().backward()
    torch.testing.assert_close(flat, torch.cat([p.grad.reshape(-1) for p in net.parameters()]))
    assert torch.autograd.grad(flat.square().sum(), batch)[0].abs().max() > 0


# SSIM


def slow_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Window by window in plain loops, from the paper's equation."""
    offset = np.arange(11) - 5
    weights = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / 4.5)
    weights /= weights.sum()
    values = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            a, b = (film[top : top + 11, left : left + 11].astype(float) for film in (first, second))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb, ab = ((weights * x).sum() for x in ((a - ma) ** 2, (b - mb) ** 2, (a - ma) * (b - mb)))
            values.append((2 * ma * mb + 1e-4) * (2 * ab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return float(np.mean(values))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_ssim_is_the_papers_equation(seed, share):
    rng = np.random.default_rng(seed)
    first, noise = rng.random((14, 17)), rng.random((14, 17))
    second = share * first + (1 - share) * noise
    value = attacks.ssim(first, second)
    assert value == pytest.approx(slow_ssim(first, second), abs=1e-9)
    assert value == pytest.approx(attacks.ssim(second, first), abs=1e-12)
    assert value <= 1 + 1e-12


def test_ssim_is_that_of_scikit_image():
    """By skimage 0.26 structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)."""
    rng = np.random.default_rng(7)
    first = rng.random((20, 31))
    near, far = np.clip(first + rng.normal(0, 0.2, first.shape), 0, 1), rng.random((20, 31))
    y, x = np.mgrid[:20, :31]
    ramp = (x / 30 + y / 19) / 2
    pairs = [(first, near), (first, far), (first, ramp), (ramp, ramp * 0.5 + 0.2)]
    known = [0.8208515749751248, 0.0008242603508882263, 0.012151772181074765, 0.8401385426384336]
    assert [attacks.ssim(a, b) for a, b in pairs] == pytest.approx(known, abs=1e-9)
    assert attacks.ssim(first, first) == pytest.approx(1)


@pytest.mark.parametrize("shapes", [((12, 12), (12, 13)), ((10, 12), (10, 12))])
def test_ssim_refuses_films_it_cannot_compare(shapes):
    with pytest.raises(ValueError, match="11 pixels or more"):
        attacks.ssim(*map(np.zeros, shapes))


# controls


def test_one_film_a_patient_and_each_picture_once():
    shown = dot_films(5)
    images = shown.images[[0, 1, 1, 2, 3]]  # the third film is the second one under another name
    given_films = FilmSet(images, shown.keypoints, shown.spacing_mm, ("a", "b", "c", "b", "d"))
    assert attacks.one_per_patient(given_films).tolist() == [0, 1, 4]


def test_controls_are_what_nobody_needs_an_update_for():
    film, rest = pictures()[0], others(0)
    bars = attacks.controls(film, rest)
    alike = sorted(attacks.ssim(film, other) for other in rest)
    assert bars["nearest other"] == alike[-1]
    assert bars["another patient"] == pytest.approx(np.median(alike))
    assert bars["even grey"] < 0.1 < bars["mean film"] < 1
    assert attacks.controls(film, pictures())["nearest other"] == pytest.approx(1)  # had we left the film in
    assert not attacks.recognised(rest[3], film, rest)
    assert attacks.recognised(film, film, rest)


# the real update


def test_the_real_update_of_one_film_tells_which_film_it_was():
    """Even where no picture comes out: the film itself explains the signs of Adam's first step best."""
    profile, count = tiny_profile(rounds=1, rotation_deg=0.0, brightness=0.0), 4
    data = dot_hospital("north", count=count)
    vector = initial_vector(profile, 3, 0)
    model = build_for(profile, 3)
    load_vector(model, vector)

    def direction(index: int) -> np.ndarray:
        batch, points = augment(data.train, np.array([index]), np.random.default_rng(0), profile)
        loss = keypoint_loss(model(batch), points, SIDE, profile.sigma_px, 0.0)
        return np.sign(attacks.flat_gradient(loss, model).detach().numpy())

    for index in range(count):
        one = data.train.take(np.array([index]))
        update = Hospital(HospitalData("north", data.joints, one, one), profile).local_update(vector, RoundTask(0, 0))
        fits = [np.corrcoef(direction(candidate), -update.delta)[0, 1] for candidate in range(count)]
        assert np.argmax(fits) == index
        assert max(fits) > 0.9


# the smuggled film


def likeness(picture: np.ndarray, film: np.ndarray) -> float:
    return float(np.corrcoef(picture.ravel(), film.ravel())[0, 1])


def test_fine_print_survives_a_copy_and_nothing_else():
    rng, film = np.random.default_rng(0), pictures()[0]
    honest = rng.normal(0, 1e-3, 5000).astype(np.float32)
    sent = attacks.write_fine(honest, film)
    assert sent.dtype == np.float32
    assert np.linalg.norm(sent - honest) < 1e-2 * np.linalg.norm(honest)
    np.testing.assert_allclose(attacks.read_fine(sent, SIDE), film, atol=0.01)  # float32 keeps that of the grid
    np.testing.assert_array_equal(sent[film.size :], honest[film.size :])
    for ruined in (honest, sent + rng.normal(0, 1e-5, sent.shape), sent * 0.9, sent + 0.3 * honest):
        assert abs(likeness(attacks.read_fine(ruined, SIDE), film)) < 0.15


def test_a_loud_film_survives_a_clip_and_a_sum_and_drowns_as_the_theory_says():
    rng, film = np.random.default_rng(0), pictures()[0]
    sent = attacks.write_loud(film, 1.0, 20_000)
    assert np.linalg.norm(sent) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(attacks.read_loud(clip(sent, 1.0), film), film, atol=1e-3)
    peers = [clip(rng.normal(0, 1, sent.size), 1.0) for _ in range(2)]
    assert likeness(attacks.read_loud(sent + sum(peers), film), film) > 0.9
    for mu in (300.0, 20.0, 0.3):
        seen = sent + rng.normal(0, 1 / mu, sent.size)
        expected = 1 / math.sqrt(1 + (SIDE / mu) ** 2)  # signal to noise of mu^2 spread over all pixels
        raw_likeness = likeness(seen[: film.size], film)
        assert raw_likeness == pytest.approx(expected, abs=0.1)


def test_no_number_of_weights_carries_more_bits_than_mu_allows():
    for mu in (0.27, 1.7, 21.0):
        shared = [count / 2 * math.log2(1 + mu**2 / count) for count in (1, 100, 10**7)]
        assert max(shared) <= attacks.smuggled_bits(mu) == pytest.approx(shared[-1], rel=1e-3)
