from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import nn

from fedbone.config import get_profile
from fedbone.errors import UserError
from fedbone.model.hrnet import PRESETS, HRNet, build, build_for
from fedbone.model.imagenet import timm_name
from fedbone.vectors import to_vector

TIMM = {"w32": "hrnet_w32", "w18": "hrnet_w18", "w18s": "hrnet_w18_small"}
# entries of the flat vector of build("w8n", 3, 0), as the version wrote them whose weights are in data/sample
EARLIER = {0: -0.172065273, 5000: 0.123614125, 100_000: 0.0204823911, 200_000: 0.0346430503, -27: 0.000649223628}


def timm_branches(name: str) -> nn.Module:
    """timm's network without a classifier: random weights, random BatchNorm parameters and statistics."""
    torch.manual_seed(7)
    model = timm.create_model(name, head="").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


def branches_of(stage: nn.Module, found: list) -> None:
    """Let a stage of timm's report what it returns; cloned, since its next stage writes into the list."""
    stage.register_forward_hook(lambda *call: found.append([x.clone() for x in call[-1]]))


@pytest.mark.parametrize(("preset", "side"), [("w32", 128), ("w18", 64), ("w18s", 64)])
def test_every_branch_of_every_stage_equals_timm(preset, side):
    theirs, found = timm_branches(TIMM[preset]), []
    theirs.layer1.register_forward_hook(lambda *call: found.append([call[-1].clone()]))
    for stage in (theirs.stage2, theirs.stage3, theirs.stage4):
        branches_of(stage, found)
    ours = HRNet(replace(PRESETS[preset], in_channels=3, norm="batch", outputs=4)).eval()
    state, source = ours.state_dict(), theirs.state_dict()
    body = {name: source[timm_name(name)] for name in state if not name.startswith("final_layer")}
    assert len(body) == len(source)  # nothing of timm's is left over
    ours.load_state_dict({**state, **body}, strict=True)
    film = torch.rand(1, 3, side, side)
    with torch.inference_mode():
        theirs(film)
        outputs = ours.stage_outputs(film)
        assert torch.equal(ours(film), ours.final_layer(outputs[-1][0]))
    assert [len(stage) for stage in outputs] == [1, 2, 3, 4]
    assert outputs[-1][0].std() > 0.1  # not a comparison of zeros
    for mine, other in zip(outputs, found, strict=True):
        assert [float((a - b).abs().max()) for a, b in zip(mine, other, strict=True)] == [0.0] * len(mine)


@pytest.mark.parametrize(
    ("preset", "channels", "parameters"),
    [("w32", 3, 28_536_113), ("w18", 3, 9_318_215), ("w18s", 3, 1_284_961), ("w8n", 1, 303_465)],
)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_parameter_counts(preset, channels, parameters, norm):
    with torch.device("meta"):
        model = HRNet(replace(PRESETS[preset], in_channels=channels, norm=norm))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("preset", "side"), [("w8n", 128), ("w8n", 256), ("w18s", 64), ("w32", 64)])
def test_heatmaps_have_a_quarter_of_the_side(preset, side):
    with torch.inference_mode():
        assert build(preset, 4)(torch.rand(2, 1, side, side)).shape == (2, 4, side // 4, side // 4)


def test_stages_show_what_each_branch_sees():
    shapes = [[tuple(x.shape) for x in stage] for stage in build("w8n", 4).stage_outputs(torch.rand(2, 1, 64, 64))]
    assert shapes == [
        [(2, 16, 16, 16)],
        [(2, 8, 16, 16), (2, 16, 8, 8)],
        [(2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4)],
        [(2, 8, 16, 16)],
    ]


def test_a_film_does_not_depend_on_its_batch():
    model, films = build("w8n", 4).eval(), torch.rand(3, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(films)[1:2], model(films[1:2]), rtol=1e-4, atol=1e-6)


def test_forward_changes_neither_the_film_nor_a_lists_branches():
    model, film = build("w8n", 4), torch.rand(1, 1, 64, 64)
    exchange, kept = model.stages[0][0], film.clone()
    xs = [torch.rand(1, 8, 16, 16), torch.rand(1, 16, 8, 8)]
    before = [x.clone() for x in xs]
    same = list(xs)
    exchange(xs)
    model(film)
    assert torch.equal(film, kept)
    assert all(a is b for a, b in zip(xs, same, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(xs, before, strict=True))


def test_the_seed_decides_the_weights_and_nothing_else_moves():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a, b, c = build("w8n", 4, seed=5), build("w8n", 4, seed=5), build("w8n", 4, seed=6)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(a.stem[0].weight, b.stem[0].weight)
    assert not torch.equal(a.stem[0].weight, c.stem[0].weight)


def test_weights_for_a_seed_are_those_of_earlier_versions():
    """The stored federated model and every committed figure began with these numbers, in this order."""
    vector = to_vector(build("w8n", 3, 0))
    assert vector[list(EARLIER)] == pytest.approx(list(EARLIER.values()), rel=1e-5)


def test_every_parameter_receives_a_gradient():
    model = build("w8n", 4)
    model(torch.rand(2, 1, 64, 64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("half", [False, True])
def test_checkpointing_changes_no_bit(norm, half):
    """Neither outputs nor gradients, nor the statistics of BatchNorm, which must count every film once."""
    film = torch.rand(2, 1, 64, 64)
    states = []
    for checkpointing in (False, True):
        model = build("w8n", 4, norm=norm, checkpointing=checkpointing)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = model(film)
        output.float().square().sum().backward()
        states.append([output, *(p.grad for p in model.parameters()), *model.buffers()])
    assert [tuple(x.shape) for x in states[0]] == [tuple(x.shape) for x in states[1]]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_checkpointing_computes_every_unit_again_and_names_nothing_new():
    model, calls = build("w8n", 4, checkpointing=True), []
    for unit in model.units():
        unit.register_forward_pre_hook(lambda module, _: calls.append(module))
    model(torch.rand(1, 1, 64, 64)).sum().backward()
    assert [calls.count(unit) for unit in model.units()] == [2] * 5  # stem, one block, three exchanges
    with torch.inference_mode():
        model(torch.rand(1, 1, 64, 64))
    assert [calls.count(unit) for unit in model.units()] == [3] * 5
    assert list(model.state_dict()) == list(build("w8n", 4).state_dict())


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_half_precision_stays_half_between_the_layers(device):
    """One float32 tensor in the sum of an exchange would make every later activation of that branch float32."""
    model = build("w8n", 4).to(device)
    types = set()
    for module in model.modules():
        if not isinstance(module, HRNet | nn.ModuleList):
            module.register_forward_hook(lambda *call: types.update(x.dtype for x in flat(call[-1])))
    with torch.autocast(device, torch.bfloat16):
        model(torch.rand(1, 1, 64, 64, device=device))
    assert types == {torch.bfloat16}


def test_pixels_are_repeated_outside_autocast(monkeypatch):
    """CUDA's autocast makes them float32; the CPU's does not, so the switch itself is looked at here."""
    seen, enlarge = [], nn.functional.interpolate

    def spy(x, *args, **options):
        seen.append(torch.is_autocast_enabled(x.device.type))
        return enlarge(x, *args, **options)

    monkeypatch.setattr(nn.functional, "interpolate", spy)
    with torch.autocast("cpu", torch.bfloat16):
        build("w8n", 4)(torch.rand(1, 1, 64, 64))
    assert seen == [False] * 7  # 1 path to a finer branch in stage 2, 3 in stage 3, 3 in stage 4


def flat(output) -> list:
    return output if isinstance(output, list) else [output]


def test_batch_norm_takes_the_place_of_every_group_norm():
    group, batch = build("w8n", 4, 2), build("w8n", 4, 2, norm="batch")
    kinds = {type(module) for module in batch.modules()}
    assert nn.BatchNorm2d in kinds
    assert not any(issubclass(kind, nn.GroupNorm) for kind in kinds)
    assert [(n, p.shape) for n, p in group.named_parameters()] == [(n, p.shape) for n, p in batch.named_parameters()]
    assert np.array_equal(to_vector(group), to_vector(batch))


def test_a_profile_decides_preset_norm_and_checkpointing():
    model = build_for(get_profile("cpu", norm="batch", checkpointing=True), 5, seed=1)
    assert (model.config.norm, model.checkpointing, model.config.joints) == ("batch", True, 5)
    assert np.array_equal(to_vector(build_for(get_profile("cpu"), 5, seed=1)), to_vector(build("w8n", 5, 1)))


@pytest.mark.parametrize("changes", [{"preset": "w9"}, {"norm": "layer"}])
def test_unknown_names(changes):
    with pytest.raises(UserError, match=next(iter(changes.values()))):
        build(**{"preset": "w8n", "joints": 17, **changes})
