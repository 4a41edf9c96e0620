from dataclasses import replace

import numpy as np
import pytest

from fedbone.federation.evaluation import evaluate, film_error_px, paired_difference, worst_joint
from fedbone.model.metrics import worst_first
from tests.helpers import JOINTS, dot_hospital


def test_each_hospital_is_scored_on_its_own_labels_and_hidden_joints_apart():
    hospitals = [dot_hospital("a", (0,), 1), dot_hospital("b", (1, 2), 2)]
    predictions = {h.name: h.test.truth[..., :2].copy() for h in hospitals}
    predictions["b"][:, 2] += 30  # far outside the reference length of 12 px times 0.05
    result = evaluate(predictions, hospitals)
    assert set(result["per_hospital"]["a"]["per_joint"]) == {"hip"}
    assert result["per_hospital"]["a"]["pck_0_05"] == 1
    assert result["per_hospital"]["b"]["pck_0_05"] == 0.5
    assert result["pck_0_05"] == pytest.approx(2 / 3)
    assert result["pck_0_05_unlabelled"] == 1  # knee and ankle at a, hip at b: all predicted exactly
    assert worst_joint(result) == ("ankle", 0.0)
    assert list(worst_first(result["per_hospital"])) == ["b", "a"]


def test_readings_are_those_of_each_hospital_s_labels():
    names = ("left_shoulder", "right_shoulder")
    shoulders, hips = dot_hospital("a"), dot_hospital("b", seed=1)
    for h, joints in ((shoulders, slice(0, 2)), (hips, slice(2, 3))):
        h.test.keypoints[:] = 0
        h.test.keypoints[:, joints] = 2
    shoulders.test.keypoints[:, :2, :2] = [[28, 10], [4, 10]]
    both = [replace(h, joints=(*names, "left_hip")) for h in (shoulders, hips)]
    predictions = {h.name: h.test.keypoints[..., :2].copy() for h in both}
    predictions["a"][:, 0, 1] -= 24 * np.tan(np.radians(2))  # the left shoulder two degrees too high
    readings = evaluate(predictions, both)["readings"]
    assert readings["a"]["shoulder_tilt_deg"]["bias"] == pytest.approx(2, abs=1e-4)
    assert readings["b"]["shoulder_tilt_deg"] is None


def test_film_error_is_the_mean_over_labelled_joints():
    films = dot_hospital("a", (0, 2)).test
    off = np.zeros((4, len(JOINTS), 2))
    off[:, 0, 0], off[:, 2, 1], off[:, 1] = 3, 1, 99
    assert film_error_px(films.truth[..., :2] + off, films) == pytest.approx([2, 2, 2, 2], abs=1e-5)


def test_the_paired_interval_sees_what_the_unpaired_spread_would_hide():
    films = dot_hospital("a", (0,), count=8).train
    spread = np.linspace(0, 20, 8)[:, None] * [1, 0]
    second = films.truth[..., :2] + spread[:, None]
    first = second.copy()
    first[..., 0] += 0.5
    result = paired_difference(first, second, films)
    assert result["mre_px"] == pytest.approx(0.5, abs=1e-5)
    low, high = result["interval_95"]
    assert 0.49 < low <= high < 0.51
    assert paired_difference(first[:1], second[:1], films.take(np.arange(1)))["interval_95"] is None
    reverse = paired_difference(second, first, films)
    assert reverse["mre_px"] == pytest.approx(-0.5, abs=1e-5)
