import pytest
import torch

from fedbone.model.losses import gaussian_targets, keypoint_loss, wing


def test_wing_is_continuous_and_has_its_published_slopes():
    below, at, above = wing(torch.tensor([9.9999, 10.0, 10.0001], dtype=torch.float64))
    assert at.item() == pytest.approx(17.9176, abs=1e-4)  # 10 ln 6
    assert (above - below).item() < 3e-4
    distance = torch.tensor([0.0, 5.0, 20.0], requires_grad=True)
    wing(distance).sum().backward()
    torch.testing.assert_close(distance.grad, torch.tensor([5.0, 10 / 7, 1.0]))


def test_targets_sum_to_one_and_are_centred():
    target = gaussian_targets(torch.tensor([[[7.25, 3.5]]]), 16, 16, 1.5)
    x = (target.sum(-2) * torch.arange(16)).sum()
    y = (target.sum(-1) * torch.arange(16)).sum()
    assert target.sum().item() == pytest.approx(1, abs=1e-5)
    assert (x.item(), y.item()) == (pytest.approx(7.25, abs=0.01), pytest.approx(3.5, abs=0.05))


def loss(logits, keypoints, weight=0.02):
    return keypoint_loss(logits, keypoints, 32, 1.5, weight)


def test_unlabelled_joints_do_not_count_wherever_they_are():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    keypoints = torch.rand(2, 3, 3) * 31
    keypoints[..., 2] = torch.tensor([2.0, 1.0, 0.0])
    moved = keypoints.clone()
    moved[:, 2, :2] = 1e6
    assert loss(logits, keypoints).item() == loss(logits, moved).item()
    loss(logits, keypoints).backward()
    assert logits.grad[:, 2].abs().max() == 0
    assert logits.grad[:, :2].abs().min() > 0


def test_no_label_at_all_gives_zero_and_no_nan():
    logits = torch.randn(1, 2, 8, 8, requires_grad=True)
    value = loss(logits, torch.zeros(1, 2, 3))
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


def test_cross_entropy_equals_torchs_own_on_soft_targets():
    torch.manual_seed(0)
    logits, keypoints = torch.randn(2, 3, 8, 8), torch.full((2, 3, 3), 2.0)
    keypoints[..., :2] = torch.rand(2, 3, 2) * 31
    target = gaussian_targets((keypoints[..., :2] + 0.5) / 4 - 0.5, 8, 8, 1.5)
    oracle = torch.nn.functional.cross_entropy(logits.reshape(6, 64), target.reshape(6, 64))
    assert loss(logits, keypoints, 0.0).item() == pytest.approx(oracle.item(), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.02])
def test_the_loss_falls_towards_the_label(weight):
    keypoints = torch.tensor([[[13.0, 17.0, 2.0]]])
    grid = torch.arange(8, dtype=torch.float32)

    def at(x, y):
        return -((grid[None] - x) ** 2 + (grid[:, None] - y) ** 2)[None, None] / 4.5

    right = (13.5 / 4 - 0.5, 17.5 / 4 - 0.5)
    assert loss(at(*right), keypoints, weight) < loss(at(right[0] + 1, right[1]), keypoints, weight)
