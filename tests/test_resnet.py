from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.feature_extraction import create_feature_extractor

from fedbone.errors import UserError
from fedbone.model.resnet import build_resnet50
from fedbone.model.training import Trainer, predict, train_round
from fedbone.vectors import layout_of, load_vector, sha256, to_vector
from tests.helpers import dot_films, tiny_profile

SIDE = 64


def test_the_published_parameter_count():
    """pose_resnet_50 of the paper's repository: 34.0 M; torchvision's backbone and the three layers add up to it."""
    backbone = sum(p.numel() for name, p in resnet50().named_parameters() if not name.startswith("fc."))
    head = 2048 * 256 * 16 + 2 * 256 * 256 * 16 + 3 * 2 * 256 + 256 * 17 + 17
    count = sum(p.numel() for p in build_resnet50(17, in_channels=3, norm="batch").parameters())
    assert count == backbone + head == 33_999_697
    assert round(count / 1e6, 1) == 34.0
    assert sum(p.numel() for p in build_resnet50(17).parameters()) == count - 2 * 64 * 7 * 7  # grey films


def test_the_backbone_is_torchvisions():
    """Oracle: the features of torchvision.models.resnet50 with the same weights, bit for bit."""
    ours, oracle = build_resnet50(4, in_channels=3, norm="batch").eval(), resnet50().eval()
    result = oracle.load_state_dict(ours.backbone.state_dict(), strict=False)
    assert set(result.missing_keys) == {"fc.weight", "fc.bias"}
    assert not result.unexpected_keys
    film = torch.rand(2, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        layers = create_feature_extractor(oracle.to(memory_format=torch.channels_last), {"layer4": "out"})
        assert torch.equal(ours.backbone(film), layers(film)["out"])


@pytest.mark.parametrize(("norm", "channels"), [("group", 1), ("batch", 3)])
def test_heatmaps_have_a_quarter_of_the_side(norm, channels):
    model = build_resnet50(5, in_channels=channels, norm=norm).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, channels, SIDE, 96)).shape == (1, 5, SIDE // 4, 24)


def test_the_seed_decides_the_weights_and_nothing_else_moves():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a, b, c = (sha256(to_vector(build_resnet50(3, seed))) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(1), expected)
    assert a == b != c


def test_a_vector_is_the_whole_model():
    model, other = build_resnet50(3, 1).eval(), build_resnet50(3, 2).eval()
    assert [slot.name for slot in layout_of(model).slots if slot.kind == "head"] == [
        "final_layer.weight",
        "final_layer.bias",
    ]
    load_vector(other, to_vector(model))
    film = torch.rand(1, 1, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.equal(model(film), other(film))


def test_every_parameter_receives_a_gradient():
    model = build_resnet50(4)
    model(torch.rand(2, 1, SIDE, SIDE)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_it_trains_and_predicts_like_an_hrnet(precision):
    profile = tiny_profile(size_px=SIDE, batch=4, precision=precision, rotation_deg=0.0)
    films, trainer = dot_films(4, side=SIDE), Trainer(build_resnet50(3), profile)
    losses = [train_round(trainer, films, 0, [r])[0] for r in range(10)]
    assert losses[-1] < losses[0] - 0.5
    found = predict(trainer.model, films.images, profile)
    assert found.shape == (4, 3, 3)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert trainer.model.upsample[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_unknown_norm():
    with pytest.raises(UserError, match="instance"):
        build_resnet50(3, norm="instance")
