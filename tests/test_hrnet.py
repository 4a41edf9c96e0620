import pytest
import torch

from fedbone.errors import UserError
from fedbone.model.hrnet import build


@pytest.mark.parametrize(("preset", "channels", "parameters"), [("w32", 3, 28_536_113), ("w8n", 1, 303_465)])
def test_parameter_counts(preset, channels, parameters):
    model = build(preset, 17, in_channels=channels)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("preset", "side"), [("w8n", 128), ("w8n", 256), ("w32", 64)])
def test_heatmaps_have_a_quarter_of_the_side(preset, side):
    with torch.inference_mode():
        assert build(preset, 4)(torch.rand(2, 1, side, side)).shape == (2, 4, side // 4, side // 4)


def test_a_film_does_not_depend_on_its_batch():
    model, films = build("w8n", 4).eval(), torch.rand(3, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(films)[1:2], model(films[1:2]), rtol=1e-4, atol=1e-6)


def test_the_seed_decides_the_weights_and_nothing_else_moves():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a, b, c = build("w8n", 4, seed=5), build("w8n", 4, seed=5), build("w8n", 4, seed=6)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(a.stem[0].weight, b.stem[0].weight)
    assert not torch.equal(a.stem[0].weight, c.stem[0].weight)


def test_every_parameter_receives_a_gradient():
    model = build("w8n", 4)
    model(torch.rand(2, 1, 64, 64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_unknown_preset():
    with pytest.raises(UserError, match="w9"):
        build("w9", 17)
