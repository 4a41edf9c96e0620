import pytest
import torch

from fedbone.model.decoding import array_to_heatmap, confidence, heatmap_to_array, soft_argmax


def peaked(x, y, side=32, sigma=1.5):
    grid = torch.arange(side, dtype=torch.float32)
    return -((grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2)[None, None] / (2 * sigma**2)


@pytest.mark.parametrize(("x", "y"), [(10.0, 20.0), (12.3, 17.8)])
def test_soft_argmax_finds_a_peak_between_pixels(x, y):
    torch.testing.assert_close(soft_argmax(peaked(x, y)), torch.tensor([[[x, y]]]), atol=1e-3, rtol=0)


def test_confidence_is_one_for_a_spike_and_low_for_a_flat_map():
    spike = torch.zeros(1, 1, 32, 32)
    spike[..., 5, 6] = 50
    assert confidence(spike).item() == pytest.approx(1, abs=1e-4)
    assert confidence(torch.zeros(1, 1, 32, 32)).item() == pytest.approx(9 / 1024, abs=1e-5)


def test_a_dot_painted_in_the_film_lands_where_the_map_says():
    film = torch.zeros(1, 1, 64, 64)
    film[..., 21, 38] = 1
    small = torch.nn.functional.avg_pool2d(film, 4)  # what a stride of 4 does to a pixel
    row, col = divmod(int(small.flatten().argmax()), 16)
    back = heatmap_to_array(torch.tensor([col, row], dtype=torch.float32), 4)
    assert (back - torch.tensor([38.0, 21.0])).abs().max() <= 1.5
    torch.testing.assert_close(array_to_heatmap(back, 4), torch.tensor([col, row], dtype=torch.float32))
