import re
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from fedbone.errors import UserError
from fedbone.model import imagenet
from fedbone.model.hrnet import PRESETS, HRNet, build
from fedbone.model.imagenet import PUBLISHED, warm_start
from tests.test_hrnet import timm_branches


@pytest.fixture(scope="module")
def theirs():
    return timm_branches("hrnet_w18_small")


@pytest.fixture(scope="module")
def weights(theirs, tmp_path_factory) -> Path:
    """A file as timm publishes it: the branches above, and a classifier of its own on top."""
    whole = {**timm.create_model("hrnet_w18_small").state_dict(), **theirs.state_dict()}
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, path)
    return path


def all_branches(in_channels: int) -> HRNet:
    return HRNet(replace(PRESETS["w18s"], in_channels=in_channels, norm="batch", outputs=4)).eval()


def test_three_channels_give_timms_branches_to_the_bit(theirs, weights):
    model, film = all_branches(3), torch.rand(1, 3, 64, 64)
    warm_start(model, weights)
    with torch.inference_mode():
        pairs = zip(model.stage_outputs(film)[-1], theirs(film), strict=True)
        assert all(torch.equal(ours, other) for ours, other in pairs)


def test_a_grey_film_gives_what_three_equal_channels_give(theirs, weights):
    model, film = all_branches(1), torch.rand(1, 1, 64, 64)
    warm_start(model, weights)
    with torch.inference_mode():
        for ours, other in zip(model.stage_outputs(film)[-1], theirs(film.expand(-1, 3, -1, -1)), strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_batch_norm_takes_everything_but_the_head(weights):
    model = build("w18s", 5, norm="batch")
    head = model.final_layer.weight.clone()
    report = warm_start(model, weights.parent)  # the folder of a downloaded repository does too
    assert report.source == weights
    assert set(report.loaded) | set(report.new) == set(model.state_dict())
    assert report.new == ("final_layer.weight", "final_layer.bias")
    assert torch.equal(model.final_layer.weight, head)
    tensors = load_file(weights)
    assert torch.equal(model.state_dict()["stem.4.running_var"], tensors["bn2.running_var"])
    assert len(report.loaded) + len(report.unused) == len(tensors)
    known = r"incre_modules|downsamp_modules|final_layer|classifier|stage4\.0\.fuse_layers\.[123]\."
    assert all(re.match(known, name) for name in report.unused)


def test_group_norm_takes_the_convolutions_and_says_so(weights):
    model, fresh = build("w18s", 5), build("w18s", 5)
    report = warm_start(model, weights)
    assert "convolutions only" in str(report)
    assert "convolutions only" not in str(warm_start(build("w18s", 5, norm="batch"), weights))
    before = fresh.state_dict()
    for name, tensor in model.state_dict().items():
        is_body_convolution = tensor.ndim == 4 and not name.startswith("final_layer")
        assert (name in report.loaded) == is_body_convolution
        assert torch.equal(tensor, before[name]) != is_body_convolution


def test_a_file_without_batch_counters_is_complete(weights, tmp_path):
    tensors = {n: t for n, t in load_file(weights).items() if not n.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "few.safetensors")
    model = build("w18s", 5, norm="batch")
    report = warm_start(model, tmp_path / "few.safetensors")
    assert {name.rsplit(".", 1)[-1] for name in report.new[:-2]} == {"num_batches_tracked"}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda t: t.pop("stage3.0.branches.1.0.conv1.weight"), "1 missing: stage3"),
        (lambda t: t.pop("stage4.0.fuse_layers.2.0.0.1.running_mean"), "1 missing: stage4"),
        (lambda t: t.update(extra=torch.zeros(2)), "1 unexpected: extra"),
        (lambda t: t.update({"conv1.weight": torch.zeros(64, 1, 3, 3)}), "1 of another shape: conv1.weight"),
    ],
)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_file_of_another_network_changes_nothing(weights, tmp_path, spoil, problem, norm):
    tensors = load_file(weights)
    spoil(tensors)
    save_file(tensors, tmp_path / "other.safetensors")
    model = build("w18s", 5, norm=norm)
    with pytest.raises(UserError, match=problem) as caught:
        warm_start(model, tmp_path / "other.safetensors")
    assert "hrnet_w18_small" in str(caught.value)
    before = build("w18s", 5, norm=norm).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_size_of_hrnet_is_refused(weights):
    with pytest.raises(UserError, match=r"not the weights of timm's hrnet_w18\.ms_aug_in1k"):
        warm_start(build("w18", 5), weights)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("hrnet.pth", b"", "pickle"),
        ("pytorch_model.bin", b"", "pickle"),
        ("model.safetensors", None, "no such file"),
        ("model.safetensors", b"not a file of tensors", "not a readable safetensors file"),
    ],
)
def test_files_that_are_not_read(tmp_path, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        warm_start(build("w18s", 5), tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("model", [("w8n", 1), ("w18s", 2)])
def test_networks_without_published_weights(model):
    with pytest.raises(UserError, match="none are published"):
        warm_start(build(model[0], 5, in_channels=model[1]))


def test_timm_publishes_weights_by_these_names():
    for preset, name in PUBLISHED.items():
        assert timm.models.get_pretrained_cfg(name).hf_hub_id in ("timm/", f"timm/{name}")
        with torch.device("meta"):
            trunk = timm.create_model(name.split(".")[0], head="")
        ours = HRNet(replace(PRESETS[preset], in_channels=3, norm="batch", outputs=4))
        head = sum(p.numel() for p in ours.final_layer.parameters())
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in trunk.parameters()) + head


def fake_hub(monkeypatch, cached: Path | None, online: Path | None) -> list:
    """A Hugging Face client that has the file in its cache, on the net, or not at all; returns its calls."""
    calls = []

    def download(repository: str, file: str, local_files_only: bool = False) -> str:
        calls.append((repository, file, local_files_only))
        found = cached if local_files_only else online
        if found is None:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not found")
        return str(found)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


def test_the_cache_comes_before_the_network(monkeypatch, weights):
    repository = ("timm/hrnet_w18_small.ms_in1k", "model.safetensors")
    calls = fake_hub(monkeypatch, cached=weights, online=None)
    assert warm_start(build("w18s", 5)).source == weights
    assert calls == [(*repository, True)]
    calls = fake_hub(monkeypatch, cached=None, online=weights)
    assert warm_start(build("w18s", 5)).source == weights
    assert calls == [(*repository, True), (*repository, False)]


def test_without_weights_the_message_says_what_to_do(monkeypatch):
    fake_hub(monkeypatch, cached=None, online=None)
    url = "https://huggingface.co/timm/hrnet_w32.ms_in1k/resolve/main/model.safetensors"
    with pytest.raises(UserError, match=re.escape(url)) as caught:
        imagenet.hub_file(PUBLISHED["w32"])
    assert huggingface_hub.constants.HF_HUB_CACHE in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="not installed") as caught:
        imagenet.hub_file(PUBLISHED["w32"])
    assert url in str(caught.value)
