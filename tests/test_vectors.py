import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from fedbone.errors import UserError
from fedbone.model.hrnet import build, load_model, save_model
from fedbone.vectors import (
    l2_norm,
    layout_of,
    load_checkpoint,
    load_vector,
    save_checkpoint,
    sha256,
    state_arrays,
    to_vector,
)


@pytest.fixture(scope="module")
def model():
    return build("w8n", 5, seed=3)


def test_round_trip_keeps_every_bit_in_any_memory_format(model):
    vector = to_vector(model)
    other = build("w8n", 5, seed=4).to(memory_format=torch.contiguous_format)
    load_vector(other, vector)
    assert sha256(to_vector(other)) == sha256(vector)
    film = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(model(film), other(film), rtol=1e-5, atol=1e-6)


def test_training_never_reaches_the_callers_vector():
    model = build("w8n", 5)
    vector = to_vector(model)
    before = vector.copy()
    load_vector(model, vector)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert np.array_equal(vector, before)
    assert np.allclose(to_vector(model) - vector, 1.0, atol=1e-5)


def test_layout_names_every_parameter_once_and_in_order(model):
    layout, vector = layout_of(model), to_vector(model)
    assert layout.size == len(vector) == sum(p.numel() for p in model.parameters())
    for slot, (name, parameter) in zip(layout.slots, model.named_parameters(), strict=True):
        assert slot.name == name
        assert np.array_equal(vector[slot.start : slot.stop], parameter.detach().contiguous().numpy().ravel())


def test_row_factor_touches_the_head_rows_of_its_joint_only(model):
    layout = layout_of(model)
    full = layout.row_factor(np.array([1, 1, 7, 1, 1]))
    changed = build("w8n", 5, seed=3)
    load_vector(changed, (to_vector(model) + (full == 7)).astype(np.float32))
    film = torch.rand(1, 1, 64, 64)
    moved = (changed(film) - model(film)).abs().amax((0, 2, 3))
    assert moved[2] > 0.5
    assert moved[[0, 1, 3, 4]].max() < 1e-5
    assert (full == 7).sum() == 8 + 1


def test_running_buffers_are_refused():
    with pytest.raises(ValueError, match="GroupNorm"):
        layout_of(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))


def test_a_local_norm_keeps_batchnorms_buffers_and_no_others():
    batch = build("w8n", 5, norm="batch")
    assert layout_of(batch, local_norm=True) == layout_of(build("w8n", 5))
    batch.register_buffer("steps", torch.zeros(1))
    with pytest.raises(ValueError, match=r"\(steps, \.\.\.\)"):
        layout_of(batch, local_norm=True)


def test_every_place_is_of_the_kind_of_its_parameter(model):
    layout = layout_of(model)
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert layout.is_kind("norm").sum() == sum(2 * m.num_channels for m in norms)
    assert layout.is_kind("head").nonzero()[0].tolist() == list(range(layout.size - 5 * 9, layout.size))
    assert (layout.is_kind("norm") ^ layout.is_kind("head") ^ layout.is_kind("body")).all()
    assert to_vector(model)[layout.is_kind("norm")].tolist() == [1 - i for m in norms for i in (0, 1) for _ in m.weight]


@pytest.mark.parametrize(
    "spoil", [lambda v: v[:-1], lambda v: v.astype(np.float64), lambda v: np.where(np.arange(len(v)) == 7, np.nan, v)]
)
def test_a_vector_that_does_not_fit_is_refused(model, spoil):
    with pytest.raises(ValueError, match=r"model needs|NaN"):
        load_vector(build("w8n", 5), spoil(to_vector(model)))


def test_checkpoint_round_trip_and_damage(tmp_path, model):
    path = save_model(tmp_path / "a b.safetensors", model, rounds=3)
    again, metadata = load_model(path)
    assert metadata["rounds"] == 3
    assert sha256(to_vector(again)) == sha256(to_vector(model))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a b\.safetensors"):
        load_model(path)


def test_foreign_checkpoints_are_refused(tmp_path, model):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="no fedbone metadata"):
        load_checkpoint(tmp_path / "foreign.safetensors")
    header = {"fedbone": json.dumps({"config": {"width": 8, "modules": [1, 1, 1]}})}
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "wrong.safetensors", header)
    with pytest.raises(UserError, match="do not fit"):
        load_model(tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_model(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_stored_model_predicts_the_same(tmp_path, norm):
    """With BatchNorm that takes its running statistics, moved here by a pass in training mode."""
    model = build("w8n", 5, norm=norm, checkpointing=True)
    model(torch.rand(4, 1, 64, 64))
    again, metadata = load_model(save_model(tmp_path / "m.safetensors", model))
    assert metadata["config"]["norm"] == norm
    assert [name for name, _ in again.named_buffers()] == [name for name, _ in model.named_buffers()]
    film = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.eval()(film), again(film))


def test_a_file_from_before_the_norm_was_a_choice_still_loads(tmp_path, model):
    config = {name: value for name, value in asdict(model.config).items() if name not in ("norm", "outputs")}
    path = save_checkpoint(tmp_path / "old.safetensors", state_arrays(model), {"config": config})
    again, _ = load_model(path)
    assert again.config == model.config
    assert sha256(to_vector(again)) == sha256(to_vector(model))


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"architecture": "resnet"}, "describes no HRNet .*KeyError: 'config'"),
        ({"config": ["w8n"]}, "describes no HRNet"),
        ({"config": {"modules": [1, 1, 1], "colour": "red"}}, "describes no HRNet .*colour"),
        ({"config": {"modules": [1, 1], "width": 8}}, "describes no HRNet"),
        ([], "describes no HRNet"),
    ],
)
def test_headers_of_other_networks_are_refused(tmp_path, model, header, problem):
    path = save_checkpoint(tmp_path / "other.safetensors", state_arrays(model), header)
    with pytest.raises(UserError, match=problem) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda t: t.pop("stem.0.weight"), "1 missing: stem.0.weight"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), "1 unexpected: extra"),
        (lambda t: t.update({"stem.1.bias": np.zeros(2, np.float32)}), "1 of another shape: stem.1.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, model, spoil, problem):
    tensors = state_arrays(model)
    spoil(tensors)
    path = save_checkpoint(tmp_path / "m.safetensors", tensors, {"config": asdict(model.config)})
    with pytest.raises(UserError, match=problem):
        load_model(path)


def test_a_header_that_is_not_json(tmp_path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "m.safetensors", {"fedbone": "{"})
    with pytest.raises(UserError, match="not JSON"):
        load_checkpoint(tmp_path / "m.safetensors")


def test_stored_arrays_are_copies(model):
    arrays = state_arrays(model)
    arrays["stem.0.weight"][:] = 7
    assert not (model.stem[0].weight == 7).any()


def test_the_length_of_a_vector_is_summed_in_float64():
    vector = np.array([3e25, 4e25], np.float32)  # its squares overflow float32
    assert l2_norm(vector) == pytest.approx(5e25, rel=1e-7)
    many = np.random.default_rng(0).normal(0, 1e-3, 300_000).astype(np.float32)
    assert l2_norm(many) == pytest.approx(math.sqrt(math.fsum(float(x) ** 2 for x in many)), rel=1e-12)
    assert math.isnan(l2_norm(np.array([np.nan, 1.0])))


def test_a_checkpoint_of_views_holds_their_numbers(tmp_path):
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {"turned": whole.T, "every second": whole[:, ::2], "single": np.float32(7)}
    back, _ = load_checkpoint(save_checkpoint(tmp_path / "views", tensors, {}))
    assert all(np.array_equal(back[name], tensor) for name, tensor in tensors.items())
