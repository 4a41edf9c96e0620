import numpy as np
import pytest

from fedbone.imaging.dataset import FilmSet, pool
from fedbone.model.metrics import DETECTED_MM, join, macro, pck, radial_errors, reference_px, summarise, worst_first


def films(keypoints, spacing=(0.5, 0.25), side=128, kinds=()):
    keypoints = np.asarray(keypoints, np.float32)
    n = len(keypoints)
    images, spacing_mm = np.zeros((n, side, side), np.uint8), np.tile(np.float32(spacing), (n, 1))
    return FilmSet(images, keypoints, spacing_mm, tuple(map(str, range(n))), None, kinds)


def moved(s, off):
    """Predictions that are ``off`` (N, K) pixels to the right of the labels."""
    return s.keypoints[..., :2] + np.stack([off, np.zeros_like(off)], axis=-1)


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


def test_success_detection_rate_against_a_plain_loop():
    rng = np.random.default_rng(0)
    keypoints = np.full((30, 3, 3), 2, np.float32)
    keypoints[..., :2] = 60
    keypoints[rng.random((30, 3)) < 0.3] = 0
    s = films(keypoints, spacing=(0.5, 0.25))
    s.spacing_mm[:5] = np.nan
    off = rng.uniform(0, 30, (30, 3))
    result = summarise(radial_errors(moved(s, off), s), ("a", "b", "c"))
    known = (keypoints[..., 2] > 0) & (np.arange(30) >= 5)[:, None]
    for limit in DETECTED_MM:
        inside = [off[i, k] * 0.5 <= limit for i, k in zip(*np.nonzero(known), strict=True)]
        assert result[f"sdr_{limit}_mm"] == pytest.approx(np.mean(inside))
        low, high = result["interval_95"][f"sdr_{limit}_mm"]
        assert low < np.mean(inside) < high
        of_b = [off[i, 1] * 0.5 <= limit for i in np.flatnonzero(known[:, 1])]
        assert result["per_joint"]["b"][f"sdr_{limit}_mm"] == pytest.approx(np.mean(of_b))
    assert result["per_joint"]["b"]["mre_mm"] == pytest.approx(0.5 * off[known[:, 1], 1].mean())


def test_an_error_of_exactly_the_limit_is_within_it():
    s = films([[[20, 60, 2], [100, 60, 2]]], spacing=(0.5, 0.5))
    result = summarise(radial_errors(moved(s, np.array([[4.0, 8.0]])), s), ("a", "b"))
    assert [result[f"sdr_{limit}_mm"] for limit in DETECTED_MM] == [0.5, 1, 1]


def test_without_spacing_there_is_no_success_detection_rate():
    s = films([[[20, 60, 2]], [[20, 60, 2]]], spacing=(np.nan, np.nan))
    result = summarise(radial_errors(s.keypoints[..., :2], s), ("a",))
    assert result["sdr_2_mm"] is result["interval_95"]["sdr_2_mm"] is result["per_joint"]["a"]["sdr_2_mm"] is None
    assert result["per_joint"]["a"]["mre_mm"] is None
    assert result["mre_mm_by_kind"] == {}


def test_millimetres_of_different_kinds_stay_apart():
    two = films(np.full((2, 1, 3), 60), kinds=("detector", "calibrated"))
    other = films(np.full((1, 1, 3), 60))
    off = np.array([[2.0], [4.0]])
    result = summarise(join([radial_errors(moved(two, off), two), radial_errors(moved(other, off[:1]), other)]), ("a",))
    assert result["mre_mm_by_kind"] == pytest.approx({"calibrated": 2.0, "detector": 1.0, "unknown": 1.0})
    assert two.take(np.array([1])).spacing_kind == ("calibrated",)
    assert pool([two, other]).spacing_kind == ("detector", "calibrated", "unknown")


def test_joints_and_hospitals_come_worst_first():
    s = films([[[10, 60, 2], [40, 60, 2], [70, 60, 2], [110, 60, 2]]])
    result = summarise(radial_errors(moved(s, np.array([[1.0, 20.0, 30.0, 2.0]])), s), ("a", "b", "c", "d"))
    assert list(result["per_joint"]) == ["c", "b", "d", "a"]
    rows = {"x": {"pck_0_05": 0.9, "mre_px": 1.0}, "y": {"pck_0_05": 0.2, "mre_px": 0.5}}
    assert list(worst_first(rows)) == ["y", "x"]
