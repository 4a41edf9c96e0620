import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule

from fedbone.model.hrnet import build_for
from fedbone.model.losses import keypoint_loss
from fedbone.privacy import dpsgd
from fedbone.privacy.accounting import epsilon
from fedbone.privacy.dp import GaussianNoise
from fedbone.privacy.dpsgd import (
    PARTS,
    PatientPrivacy,
    clipped_sum,
    draw_patients,
    films_of_patients,
    private_steps,
    trained_parameters,
)
from fedbone.vectors import layout_of, to_vector
from tests.helpers import dot_films, tiny_profile

LOSS = partial(keypoint_loss, size_px=32, sigma=1.5, wing_weight=0.02)
OWNERS = np.array([0, 0, 1, 2, 2, 2, 3])  # seven films of four patients
PRIVACY = PatientPrivacy(clip_norm=0.5, noise_multiplier=1.0, patients=12, batch=6)


def model(seed=0):
    """Not in channels_last, of which Opacus' hooks compute wrong gradients in silence."""
    return build_for(tiny_profile(), 3, seed).to(memory_format=torch.contiguous_format)


def batch(count=7, seed=0):
    films = dot_films(count, seed=seed)
    return torch.from_numpy(films.images[:, None].astype(np.float32) / 255), torch.from_numpy(films.keypoints)


@pytest.fixture(scope="module")
def film_gradients():
    """(7, P): each film's own gradient, by Opacus' hooks."""
    net, (images, keypoints) = model(), batch()
    for module in net.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False  # its hooks cannot follow an activation that is overwritten
    wrapped = GradSampleModule(net, loss_reduction="sum")
    logits = wrapped(images)
    torch.stack([LOSS(logits[i : i + 1], keypoints[i : i + 1]) for i in range(len(images))]).sum().backward()
    return torch.cat([p.grad_sample.flatten(1) for p in net.parameters()], dim=1).double()


def by_hand(gradients, clip_norm):
    patients = torch.stack([gradients[owner == OWNERS].mean(0) for owner in range(4)])
    norms = patients.norm(dim=1)
    return (patients * (clip_norm / norms).clamp(max=1)[:, None]).sum(0), norms


@pytest.mark.parametrize("vmap_below_px", [0, 1000], ids=["loop", "vmap"])
@pytest.mark.parametrize("films_at_once", [2, 32])
@pytest.mark.parametrize("clipped", [4, 2, 0])
def test_the_clipped_sum_is_that_of_opacus(film_gradients, vmap_below_px, films_at_once, clipped, monkeypatch):
    """Clips below all four norms, between them, and above them all."""
    _, norms = by_hand(film_gradients, 1.0)
    clip_norm = float(norms.sort(descending=True).values[clipped] if clipped < 4 else norms.min() / 10)
    clip_norm *= 1.001
    monkeypatch.setattr(dpsgd, "VMAP_BELOW_PX", vmap_below_px)
    monkeypatch.setitem(dpsgd.FILMS_AT_ONCE, "cpu", films_at_once)
    total, found = clipped_sum(model(), *batch(), OWNERS, clip_norm, LOSS)
    expected, norms = by_hand(film_gradients, clip_norm)
    assert float((total - expected).norm() / expected.norm()) < 3e-6  # float32: about 1e-6, more or less by processor
    assert np.allclose(found, norms, rtol=1e-5)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_has_the_gradient_of_its_own_parameters_alone(film_gradients, part, monkeypatch):
    layout = layout_of(model())
    kept = np.any([layout.is_kind(kind) for kind in PARTS[part]], axis=0)
    expected, norms = by_hand(film_gradients[:, kept], 1.0)
    for below in (0, 1000):
        monkeypatch.setattr(dpsgd, "VMAP_BELOW_PX", below)
        total, found = clipped_sum(model(), *batch(), OWNERS, 1.0, LOSS, part)
        assert total.shape == (kept.sum(),)
        assert float((total - expected).norm() / expected.norm()) < 3e-6
        assert np.allclose(found, norms, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.floats(1e-3, 3.0), st.integers(0, 2**20))
def test_one_patient_moves_the_sum_by_no_more_than_the_clip(films, others, clip_norm, seed):
    """However many films the patient has, whoever the others are."""
    net, (images, keypoints) = model(seed % 3), batch(films + others, seed)
    owners = np.concatenate([np.arange(others), np.full(films, others)])
    with_them, _ = clipped_sum(net, images, keypoints, owners, clip_norm, LOSS, "head")
    without, _ = clipped_sum(net, images[:others], keypoints[:others], owners[:others], clip_norm, LOSS, "head")
    moved = float((with_them.double() - without.double()).norm())
    assert moved <= clip_norm + 1e-6 * others  # float32 sums of vectors of length clip_norm
    assert moved > 0


def test_no_patient_gives_a_sum_of_zero():
    images, keypoints = batch()
    total, norms = clipped_sum(model(), images[:0], keypoints[:0], OWNERS[:0], 1.0, LOSS, "head")
    assert not total.any()
    assert len(norms) == 0


@pytest.mark.parametrize("part", ["head", "all"])
@pytest.mark.parametrize("below_px", [0, 1000], ids=["loop", "vmap"])
def test_a_patient_whose_gradient_no_scaling_bounds_counts_as_zero(part, below_px, monkeypatch):
    """An error would tell everybody that the patient was drawn."""
    monkeypatch.setattr(dpsgd, "VMAP_BELOW_PX", below_px)
    images, keypoints = batch()
    others = OWNERS != 1  # the film at place 2 is this patient's only one
    expected, _ = clipped_sum(model(), images[others], keypoints[others], OWNERS[others], 1.0, LOSS, part)
    images[2] = math.nan
    total, _ = clipped_sum(model(), images, keypoints, OWNERS, 1.0, LOSS, part)
    assert torch.allclose(total, expected, atol=1e-6)


def test_labels_beyond_the_announced_list_and_places_without_a_label_change_nothing():
    films = dot_films(4)
    silent = dot_films(4, (0, 2))
    odd = films.keypoints.copy()
    odd[:, 0, :2][:2], odd[:2, 0, 2] = math.nan, 0
    hidden = films.keypoints.copy()
    hidden[:2, 0] = 0
    privacy = PatientPrivacy(0.5, 0.0, 4, 4, part="all")

    def step(keypoints):
        one = replace(privacy, rng=np.random.default_rng(0))
        return moved(one, replace(films, keypoints=keypoints), (True, False, True))

    assert np.array_equal(step(films.keypoints), step(silent.keypoints))
    assert np.array_equal(step(odd), step(hidden))


def test_the_noise_of_every_step_is_new():
    """With nobody drawn a step is noise alone: four of them are twice as long as one, and no two runs agree."""
    nobody = replace(PRIVACY, part="all", patients=10**9)
    one, four = (moved(replace(nobody, steps=n, rng=np.random.default_rng(1)), dot_films(4)).std() for n in (1, 4))
    assert four == pytest.approx(2 * one, rel=0.02)
    runs = [moved(nobody, dot_films(4)) for _ in range(2)]
    assert abs(np.corrcoef(*runs)[0, 1]) < 0.02


@pytest.mark.parametrize("patients", [1, 8])
def test_the_number_of_steps_does_not_follow_from_the_films(patients):
    nobody = replace(PRIVACY, part="all", patients=10**9, steps=4, rng=np.random.default_rng(1))
    assert moved(nobody, dot_films(patients)).std() == pytest.approx(2 * 0.5 / 6, rel=0.02)


def test_films_of_one_patient_belong_together():
    films = replace(dot_films(5), patients=("x", "y", "x", "z", "y"))
    assert [group.tolist() for group in films_of_patients(films)] == [[0, 2], [1, 4], [3]]


def test_every_patient_is_drawn_by_a_coin_of_their_own():
    rng, rate, steps = np.random.default_rng(0), 0.3, 20_000
    drawn = np.zeros((steps, 4))
    for row in drawn:
        row[draw_patients(4, rate, rng)] = 1
    assert np.allclose(drawn.mean(0), rate, atol=4 * math.sqrt(rate * (1 - rate) / steps))
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 4 / math.sqrt(steps)
    assert np.abs(np.mean(drawn[1:] * drawn[:-1], axis=0) - rate**2).max() < 0.015  # nor on the step before
    assert (drawn.sum(1) == 0).mean() == pytest.approx((1 - rate) ** 4, abs=0.015)  # empty batches are among them


def moved(privacy, films, labelled=(True, True, True), rate=1.0, **options):
    net = model()
    before = to_vector(net)
    private_steps(net, films, np.array(labelled), privacy, tiny_profile(), rate, **options)
    return to_vector(net).astype(np.float64) - before


def test_noise_is_clip_times_multiplier_over_the_expected_batch_on_every_parameter():
    """With nobody drawn the step is noise alone: as much as ever, and counted."""
    privacy = replace(PRIVACY, part="all", patients=10**9, rng=np.random.default_rng(1))
    step = moved(privacy, dot_films(4))
    expected = privacy.noise_multiplier * privacy.clip_norm / privacy.batch
    for slot in layout_of(model()).slots:
        piece = step[slot.start : slot.stop]
        if piece.size > 400:
            assert piece.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * piece.size))
    assert abs(step.mean()) < 4 * expected / math.sqrt(step.size)


def test_rows_of_joints_that_the_hospital_does_not_label_stay_still():
    layout = layout_of(model())
    step = moved(replace(PRIVACY, rng=np.random.default_rng(1)), dot_films(12, (0, 2)), (True, False, True))
    for slot in layout.slots:
        rows = step[slot.start : slot.stop].reshape(slot.shape[0], -1)
        assert rows.any(axis=1).tolist() == ([True, False, True] if slot.kind == "head" else [False] * len(rows))


def test_noise_and_sampling_are_new_in_every_run_and_equal_only_for_a_given_generator():
    films = dot_films(12)
    assert not np.array_equal(moved(PRIVACY, films), moved(PRIVACY, films))
    first, second = (moved(replace(PRIVACY, rng=np.random.default_rng(5)), films) for _ in range(2))
    assert np.array_equal(first, second)


def test_the_denominator_does_not_follow_who_was_drawn():
    """The same two patients' gradient, divided by 2 and by 6 for the batch that was announced."""
    films = dot_films(2)
    steps = [
        moved(PatientPrivacy(0.5, 0.0, batch, batch, rng=np.random.default_rng(0)), films) for batch in (2, 6)
    ]  # everybody is drawn: batch = patients as announced
    assert np.allclose(steps[0], 3 * steps[1], rtol=1e-3, atol=1e-7)


def test_copies_of_a_film_are_one_patients_and_stay_within_one_clip():
    films = replace(dot_films(3), patients=("x", "x", "x"))
    step = moved(PatientPrivacy(1e-3, 0.0, 1, 1, copies=4, rng=np.random.default_rng(0)), films)
    assert 0.9e-3 < np.linalg.norm(step) <= 1e-3 * (1 + 1e-3)  # float32 weights round the step


def test_the_pull_of_fedprox_needs_no_film():
    """Two steps without a patient: the second starts away from the start and is pulled back by mu."""
    privacy = replace(PRIVACY, patients=10**9, steps=2)
    free, pulled = (
        moved(replace(privacy, rng=np.random.default_rng(3)), dot_films(4), proximal_mu=mu) for mu in (0.0, 0.5)
    )
    first = moved(replace(privacy, steps=1, rng=np.random.default_rng(3)), dot_films(4))
    assert np.allclose(pulled, free - 0.5 * first, atol=1e-6)


def test_training_without_noise_lowers_the_loss():
    films = dot_films(24)
    images, keypoints = batch(24)
    net = model()
    before = LOSS(net(images), keypoints).item()
    privacy = PatientPrivacy(1.0, 0.0, 24, 12, steps=25, part="all", rng=np.random.default_rng(0))
    private_steps(net, films, np.full(3, True), privacy, tiny_profile(), 0.5)
    assert LOSS(net(images), keypoints).item() < 0.9 * before


def test_the_unit_is_said():
    assert (PatientPrivacy.unit, GaussianNoise.unit) == ("patient", "hospital")


def test_epsilon_is_that_of_all_steps_at_the_announced_rate():
    privacy = PatientPrivacy(1.0, 1.0, 5000, 32, steps=10)
    assert privacy.sampling_rate == 0.0064
    assert privacy.epsilon(780, 1e-5) == pytest.approx(3.23, abs=0.01)  # 7,800 steps
    assert privacy.epsilon(780, 1e-5) == epsilon(
        noise_multiplier=1.0, sampling_rate=0.0064, rounds=7800, dp_delta=1e-5
    )
    assert replace(privacy, noise_multiplier=0.0).epsilon(1, 1e-5) == math.inf


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": math.nan}, "clip_norm"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"batch": 2.5}, "whole numbers"),
        ({"copies": True}, "whole numbers"),
        ({"batch": 13}, "batch of patients"),
        ({"batch": 0}, "batch of patients"),
        ({"steps": 0}, "steps"),
        ({"copies": 0}, "copies"),
        ({"part": "tail"}, "part is 'tail'"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(PRIVACY, **changes)


def test_the_parts_are_in_the_order_of_the_vector():
    names = [name for name, _ in model().named_parameters()]
    for part in PARTS:
        found = [name for name, _ in trained_parameters(model(), part)]
        assert found == [name for name in names if name in found]
    assert [name for name, _ in trained_parameters(model(), "head")] == ["final_layer.weight", "final_layer.bias"]
