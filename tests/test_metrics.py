import numpy as np
import pytest

from fedbone.imaging.dataset import FilmSet
from fedbone.model.metrics import join, macro, pck, radial_errors, reference_px, summarise


def films(keypoints, spacing=(0.5, 0.25), side=128):
    keypoints = np.asarray(keypoints, np.float32)
    n = len(keypoints)
    return FilmSet(
        np.zeros((n, side, side), np.uint8), keypoints, np.tile(np.float32(spacing), (n, 1)), tuple(map(str, range(n)))
    )


def test_the_reference_length_never_collapses():
    one = [[[50, 50, 2], [0, 0, 0]]]
    two = [[[10, 50, 2], [110, 60, 1]]]
    assert reference_px(np.float32(one), 128) == pytest.approx([48])
    assert reference_px(np.float32(two), 128) == pytest.approx([100])


def test_errors_in_pixels_and_anisotropic_millimetres():
    s = films([[[10, 20, 2], [70, 80, 2]]])
    errors = radial_errors(np.array([[[13, 24], [70, 80]]], float), s)
    assert errors.px[0] == pytest.approx([5, 0])
    assert errors.mm[0] == pytest.approx([np.hypot(1.5, 1.0), 0])
    assert errors.share[0] == pytest.approx([5 / 60, 0])


def test_unlabelled_joints_and_unknown_spacing_are_not_counted():
    s = films([[[10, 20, 2], [0, 0, 0]]], spacing=(np.nan, np.nan))
    result = summarise(radial_errors(np.full((1, 2, 2), 99.0), s), ("a", "b"))
    assert list(result["per_joint"]) == ["a"]
    assert result["mre_mm"] is None
    assert result["interval_95"]["mre_mm"] is None
    assert result["pck_0_05"] == 0


def test_macro_weighs_joints_equally_and_micro_labels():
    keypoints = np.full((10, 2, 3), 2, np.float32)
    keypoints[..., :2] = 60
    keypoints[1:, 1, 2] = 0  # joint b is labelled on one film only
    predicted = np.full((10, 2, 2), 60.0)
    predicted[0, 1] = 0  # and there it is missed
    result = summarise(radial_errors(predicted, films(keypoints)), ("a", "b"))
    assert result["pck_0_05"] == pytest.approx(0.5)
    assert result["pck_0_05_micro"] == pytest.approx(10 / 11)


def test_pck_against_a_plain_loop():
    rng = np.random.default_rng(0)
    share = rng.uniform(0, 0.1, (20, 5))
    share[rng.random(share.shape) < 0.3] = np.nan
    expected = [np.mean([e <= 0.05 for e in column if not np.isnan(e)]) for column in share.T]
    assert macro(*pck(share, 0.05)) == pytest.approx(np.mean(expected))


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        keypoints = np.full((40, 1, 3), 2, np.float32)
        keypoints[..., :2] = 60
        predicted = keypoints[..., :2] + np.stack([rng.exponential(2.0, (40, 1)), np.zeros((40, 1))], -1)
        low, high = summarise(radial_errors(predicted, films(keypoints)), ("a",), trial)["interval_95"]["mre_px"]
        covered += low <= 2.0 <= high
    assert 50 <= covered <= 60


def test_films_of_one_patient_are_resampled_together():
    keypoints = np.full((40, 1, 3), 2, np.float32)
    keypoints[..., :2] = 60
    predicted = keypoints[..., :2] + np.repeat(np.random.default_rng(0).normal(0, 3, (4, 1, 2)), 10, axis=0)
    s = films(keypoints)
    grouped = FilmSet(s.images, s.keypoints, s.spacing_mm, tuple(str(i // 10) for i in range(40)))
    wide = summarise(radial_errors(predicted, grouped), ("a",))["interval_95"]["mre_px"]
    narrow = summarise(radial_errors(predicted, s), ("a",))["interval_95"]["mre_px"]
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


def test_equal_pseudonyms_of_two_hospitals_stay_two_patients():
    s = films([[[60, 60, 2]]])
    e = radial_errors(np.full((1, 1, 2), 60.0), s)
    assert len(set(join([e, e]).patients)) == 2
