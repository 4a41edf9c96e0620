import pickle
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.model.hrnet import build_for
from fedbone.model.training import Trainer, augment, predict, reproducible, train_round
from fedbone.privacy.dpsgd import PatientPrivacy
from fedbone.privacy.ledger import Ledger
from fedbone.vectors import layout_of, load_vector, sha256, to_vector
from tests.helpers import dot_hospital, tiny_profile


@pytest.fixture(scope="module")
def start():
    return to_vector(build_for(tiny_profile(), 3, 0))


def test_an_update_depends_on_vector_round_and_seed_alone(start):
    hospital = Hospital(dot_hospital("a", (0, 2)), tiny_profile())
    first = hospital.local_update(start, RoundTask(1, 7))
    hospital.local_update(start + np.float32(0.01), RoundTask(2, 7))  # must leave no trace
    again = hospital.local_update(start, RoundTask(1, 7))
    assert sha256(first.delta) == sha256(again.delta)
    assert sha256(first.delta) != sha256(hospital.local_update(start, RoundTask(1, 8)).delta)
    assert first.labelled_joints.tolist() == [True, False, True]
    assert hospital.state() == {}


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


def test_the_policy_decides_whether_a_loss_leaves(start):
    data, profile = dot_hospital("a"), tiny_profile(local_epochs=2)
    update = Hospital(data, profile).local_update(start, RoundTask(0, 0))
    assert len(update.report["losses"]) == 2
    assert Hospital(data, profile).released_loss(update) == update.report["losses"][1] > 0
    assert Hospital(data, profile, release_losses=False).released_loss(update) is None


def test_the_task_carries_fedprox(start):
    """The oracle: the loop written out with the penalty in the loss, for two steps."""
    data, profile, mu = dot_hospital("a"), tiny_profile(), 3.0
    update = Hospital(data, profile).local_update(start, RoundTask(1, 7, proximal_mu=mu))
    trainer = Trainer(build_for(profile, 3), profile)
    load_vector(trainer.model, start)
    first = [p.detach().clone() for p in trainer.model.parameters()]
    plain = trainer.loss

    def penalised(*inputs):
        distance = sum((p - s).square().sum() for p, s in zip(trainer.model.parameters(), first, strict=True))
        return plain(*inputs) + mu / 2 * distance

    trainer.loss = penalised
    train_round(trainer, data.train, 1, [7, zlib.crc32(b"a")])
    expected = to_vector(trainer.model) - start
    assert np.linalg.norm(update.delta - expected) < 1e-2 * np.linalg.norm(expected)
    without = Hospital(data, profile).local_update(start, RoundTask(1, 7)).delta
    assert np.linalg.norm(without - expected) > 5e-2 * np.linalg.norm(expected)


BATCH_NORM = {"norm": "batch", "rounds": 3}


def two_scanners() -> list[Hospital]:
    """Two hospitals with FedBN whose films are each other's negatives."""
    data = dot_hospital("bright")
    negative = replace(data.train, images=255 - data.train.images)
    other = replace(data, name="dark", train=negative, test=replace(data.test, images=255 - data.test.images))
    return [Hospital(d, tiny_profile(**BATCH_NORM), local_norm=True) for d in (data, other)]


def test_with_fedbn_the_norm_stays_and_differs_between_hospitals(start):
    layout = layout_of(build_for(tiny_profile(), 3))
    norm, vector = layout.is_kind("norm"), start
    hospitals = two_scanners()
    assert [h.state() for h in hospitals] == [{}, {}]
    for index in range(2):
        updates = [h.local_update(vector, RoundTask(index, 0)) for h in hospitals]
        for update in updates:
            assert not update.delta[norm].any()
            assert update.delta[~norm].any()
        vector = (vector + np.mean([u.delta for u in updates], axis=0)).astype(np.float32)
    bright, dark = (h.state() for h in hospitals)
    norms = [name for name, m in hospitals[0].model_for(vector).named_modules() if isinstance(m, nn.BatchNorm2d)]
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert sorted(bright) == sorted(f"{name}.{part}" for name in norms for part in parts)
    for part in parts[:-1]:
        assert not np.array_equal(bright[f"{norms[0]}.{part}"], dark[f"{norms[0]}.{part}"])
    assert int(bright[f"{norms[0]}.num_batches_tracked"]) == 2 * 2  # two rounds of two batches
    assert np.array_equal(vector[norm], start[norm])  # but it was trained
    assert not np.array_equal(bright[f"{norms[0]}.weight"], np.ones(16))


def test_fedbns_first_round_is_training_from_the_global_norm(start):
    hospital, profile = two_scanners()[0], tiny_profile(**BATCH_NORM)
    norm = layout_of(build_for(tiny_profile(), 3)).is_kind("norm")
    sent = start + np.where(norm, np.float32(0.25), np.float32(0))
    update = hospital.local_update(sent, RoundTask(0, 5))
    model = build_for(profile, 3)
    load_vector(model, sent)
    train_round(Trainer(model, profile), hospital.data.train, 0, [5, zlib.crc32(b"bright")])
    assert np.array_equal(update.delta[~norm], (to_vector(model) - sent)[~norm])
    for name, array in hospital.state().items():
        assert np.array_equal(array, model.state_dict()[name].numpy()), name


def test_a_restored_hospital_goes_on_with_the_same_bytes(start):
    first = two_scanners()[0]
    first.local_update(start, RoundTask(0, 0))
    state = pickle.loads(pickle.dumps(first.state()))
    expected = first.local_update(start, RoundTask(1, 0)).delta
    again = two_scanners()[0]
    again.restore(state)
    assert again.local_update(start, RoundTask(1, 0)).delta.tobytes() == expected.tobytes()
    assert {n: a.tobytes() for n, a in again.state().items()} == {n: a.tobytes() for n, a in first.state().items()}
    fresh = two_scanners()[0]
    assert fresh.local_update(start, RoundTask(1, 0)).delta.tobytes() != expected.tobytes()


def test_round_zero_begins_another_federation(start):
    hospital = two_scanners()[0]
    first, state = hospital.local_update(start, RoundTask(0, 0)).delta, hospital.state()
    hospital.local_update(start, RoundTask(1, 0))
    assert hospital.local_update(start, RoundTask(0, 0)).delta.tobytes() == first.tobytes()
    assert {n: a.tobytes() for n, a in hospital.state().items()} == {n: a.tobytes() for n, a in state.items()}


def test_a_state_is_a_copy_and_a_foreign_one_is_refused(start):
    hospital = two_scanners()[0]
    hospital.local_update(start, RoundTask(0, 0))
    state = hospital.state()
    state["stem.1.weight"][:] = 9
    assert not (hospital.state()["stem.1.weight"] == 9).any()
    kept = hospital.state()
    del state["stem.1.bias"]
    with pytest.raises(UserError, match=r"bright: its state is of another model: 1 missing: stem\.1\.bias"):
        hospital.restore(state)
    plain = Hospital(dot_hospital("a"), tiny_profile())
    with pytest.raises(UserError, match=r"a: its state is of another model: .* unexpected"):
        plain.restore(kept)
    plain.restore({})


def test_a_failed_round_leaves_the_norm_alone(start):
    hospital = two_scanners()[0]
    hospital.local_update(start, RoundTask(0, 0))
    before = {name: array.tobytes() for name, array in hospital.state().items()}
    with pytest.raises(UserError, match="diverged"):
        hospital.local_update(np.full_like(start, 3e38), RoundTask(1, 0))
    assert {name: array.tobytes() for name, array in hospital.state().items()} == before
    after = hospital.local_update(start, RoundTask(1, 0)).delta
    undisturbed = two_scanners()[0]
    undisturbed.local_update(start, RoundTask(0, 0))
    assert undisturbed.local_update(start, RoundTask(1, 0)).delta.tobytes() == after.tobytes()


def test_a_hospitals_model_has_its_own_norm(start):
    bright, dark = two_scanners()
    for hospital in (bright, dark):
        hospital.local_update(start, RoundTask(0, 0))
    models = [h.model_for(start) for h in (bright, dark)]
    assert not any(m.training for m in models)
    norm = layout_of(build_for(tiny_profile(), 3)).is_kind("norm")
    for hospital, model in zip((bright, dark), models, strict=True):
        assert np.array_equal(to_vector(model)[~norm], start[~norm])
        for name, array in hospital.state().items():
            assert np.array_equal(model.state_dict()[name].numpy(), array)
    film = bright.data.test.images[:1]
    assert not np.allclose(*(predict(m, film, bright.profile) for m in models))
    bright.local_update(start, RoundTask(1, 0))  # must not reach a model that was handed out
    assert not torch.equal(models[0].stem[1].running_mean, bright.model_for(start).stem[1].running_mean)


def test_the_model_of_a_plain_hospital_is_the_global_one(start):
    model = Hospital(dot_hospital("a"), tiny_profile()).model_for(start)
    assert sha256(to_vector(model)) == sha256(start)
    assert not model.training


@pytest.mark.parametrize(("norm", "local_norm"), [("batch", False), ("group", True)])
def test_norm_and_strategy_must_go_together(norm, local_norm):
    with pytest.raises(UserError, match=r"hospital a: norm='.*' and local_norm=.* do not go together"):
        Hospital(dot_hospital("a"), tiny_profile(norm=norm), local_norm=local_norm)


def test_personalising_the_head_leaves_the_body_and_is_adam_on_the_head(start):
    """The oracle: Adam on the head's two parameters alone, at a fifth of the federation's first rate."""
    data, profile = dot_hospital("a", (0, 2)), tiny_profile(rounds=4, round_decay=0.5, cooldown=0.5)
    vector = Hospital(data, profile).personalised(start, 2, seed=3)
    head = layout_of(build_for(profile, 3)).is_kind("head")
    assert vector.dtype == np.float32
    assert vector[~head].tobytes() == start[~head].tobytes()
    model = build_for(profile, 3)
    load_vector(model, start)
    adam = torch.optim.Adam(model.final_layer.parameters(), lr=1e-3 / 5)
    rng = np.random.default_rng([3, zlib.crc32(b"a"), 4])
    with reproducible("cpu"):
        for _ in range(2):
            for index in np.array_split(rng.permutation(8), 2):
                images, keypoints = augment(data.train, index, rng, profile)
                loss = Trainer(model, profile).loss(model(images), keypoints, 32, profile.sigma_px, profile.wing_weight)
                adam.zero_grad()
                loss.backward()
                adam.step()
    assert vector.tobytes() == to_vector(model).tobytes()
    assert np.abs(vector - start).max() > 1e-5
    rows = np.flatnonzero(head)[:24].reshape(3, 8)
    assert np.array_equal(vector[rows[1]], start[rows[1]])  # of the joint without labels


def test_personalising_everything_moves_the_body_and_leaves_the_hospital_as_it_was(start):
    hospital = Hospital(dot_hospital("a"), tiny_profile())
    before = hospital.local_update(start, RoundTask(1, 0)).delta
    vector = hospital.personalised(start, 1, seed=0, head_only=False)
    head = layout_of(build_for(tiny_profile(), 3)).is_kind("head")
    assert (vector != start)[~head].any()
    assert hospital.local_update(start, RoundTask(1, 0)).delta.tobytes() == before.tobytes()


def test_personalising_under_fedbn_leaves_the_norm(start):
    hospital = two_scanners()[0]
    hospital.local_update(start, RoundTask(0, 0))
    before = {name: array.tobytes() for name, array in hospital.state().items()}
    vector = hospital.personalised(start, 1, seed=0, head_only=False)
    norm = layout_of(build_for(tiny_profile(), 3)).is_kind("norm")
    assert vector[norm].tobytes() == start[norm].tobytes()
    assert (vector != start)[~norm].any()
    assert {name: array.tobytes() for name, array in hospital.state().items()} == before


PRIVACY = PatientPrivacy(clip_norm=0.5, noise_multiplier=1.0, patients=8, batch=4, steps=2, part="all")


def private_hospital(folder, privacy=PRIVACY, limit=None, labelled=(0, 1, 2)):
    ledger = Ledger(folder / "ledger.json", 1e-5, limit)
    return Hospital(dot_hospital("a", labelled), tiny_profile(), privacy=(privacy, ledger)), ledger


def test_a_private_update_is_paid_for_and_says_nothing_of_losses(tmp_path, start):
    hospital, ledger = private_hospital(tmp_path)
    update = hospital.local_update(start, RoundTask(0, 0))
    assert ledger.epsilon("a") == pytest.approx(PRIVACY.epsilon(1, 1e-5), rel=1e-9)
    assert hospital.released_loss(update) is None
    assert update.report == {}  # the number of films is as private as a patient
    hospital.local_update(start, RoundTask(1, 0))
    assert ledger.epsilon("a") == pytest.approx(PRIVACY.epsilon(2, 1e-5), rel=1e-9)


def test_a_round_beyond_the_limit_is_refused_before_a_film_is_touched(tmp_path, start, monkeypatch):
    hospital, ledger = private_hospital(tmp_path, limit=PRIVACY.epsilon(1, 1e-5) * 1.01)
    hospital.local_update(start, RoundTask(0, 0))
    spent = ledger.epsilon("a")
    monkeypatch.setattr("fedbone.federation.hospital.private_steps", lambda *_: pytest.fail("it trained"))
    with pytest.raises(UserError, match="limit"):
        hospital.local_update(start, RoundTask(1, 0))
    assert ledger.epsilon("a") == spent


def test_one_patient_with_a_label_more_changes_nothing_that_is_exact(tmp_path, start):
    """Neither the public list of joints, nor which rows have noise, nor what a state file holds."""
    with_it = dot_hospital("a", (0, 2))
    films = with_it.train
    keypoints = films.keypoints.copy()
    keypoints[0, 1] = films.truth[0, 1]
    extra = replace(with_it, train=replace(films, keypoints=keypoints))
    ledger, found = Ledger(tmp_path / "ledger.json", 1e-5), []
    for data in (with_it, extra):
        privacy = replace(PRIVACY, rng=np.random.default_rng(1))  # unseeded noise may leave a weight where it was
        hospital = Hospital(data, tiny_profile(), privacy=(privacy, ledger))
        update = hospital.local_update(start, RoundTask(0, 0))
        found.append((update.labelled_joints.tolist(), (update.delta == 0).tolist(), hospital.films_digest()))
    assert found[0] == found[1]
    assert found[0][0] == [True, False, True]


def test_a_list_of_labels_that_films_could_change_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", 1e-5)
    with pytest.raises(UserError, match="read off its films"):
        Hospital(replace(dot_hospital("a"), labels=None), tiny_profile(), privacy=(PRIVACY, ledger))


def test_a_round_that_breaks_off_has_cost_its_epsilon(tmp_path, start, monkeypatch):
    hospital, ledger = private_hospital(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedbone.federation.hospital.private_steps", killed)
    with pytest.raises(KeyboardInterrupt):
        hospital.local_update(start, RoundTask(0, 0))
    assert ledger.epsilon("a") == pytest.approx(PRIVACY.epsilon(1, 1e-5))


def test_the_noise_of_a_private_update_is_new_each_time_whatever_the_seed(tmp_path, start):
    hospital, _ = private_hospital(tmp_path, labelled=(0, 2))
    first, second = (hospital.local_update(start, RoundTask(0, 0)).delta for _ in range(2))
    assert not np.array_equal(first, second)
    head = layout_of(hospital.model_for(start)).slots[-2]
    rows = first[head.start : head.stop].reshape(3, -1)
    assert rows.any(axis=1).tolist() == [True, False, True]  # no noise on the joint that it does not label


def test_private_training_follows_the_profiles_cooldown(tmp_path, start):
    """In the last of four rounds of a cooldown the rate is a quarter."""
    privacy = replace(PRIVACY, noise_multiplier=0.0, patients=4, batch=4, rng=None, steps=1)
    profile = tiny_profile(rounds=4, cooldown=1.0)
    ledger = Ledger(tmp_path / "ledger.json", 1e-5)
    norms = []
    for index in (0, 3):
        one = replace(privacy, rng=np.random.default_rng(0))
        hospital = Hospital(dot_hospital("a"), profile, privacy=(one, ledger))
        norms.append(np.linalg.norm(hospital.local_update(start, RoundTask(index, 0)).delta))
    assert norms[1] == pytest.approx(norms[0] / 4, rel=1e-3)


def test_batch_norm_cannot_be_trained_privately(tmp_path):
    profile, ledger = tiny_profile(norm="batch"), Ledger(tmp_path / "ledger.json", 1e-5)
    with pytest.raises(UserError, match="mixes the patients"):
        Hospital(dot_hospital("a"), profile, local_norm=True, privacy=(PRIVACY, ledger))
