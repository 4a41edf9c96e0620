from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbone.federation.evaluation import (
    cross_matrix,
    ensemble,
    evaluate,
    fairness,
    film_error_px,
    joint_rows,
    paired_difference,
    telling_films,
    unseen_miss_share,
    worst_joint,
)
from fedbone.model.metrics import Errors, join, radial_errors, worst_first
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


def errors_of(hits, patients, mm=None):
    """Errors (N, K) whose share of the reference is 0.01 for a hit (1), 0.2 for a miss (0), NaN without a label."""
    hits = np.array(hits, dtype=float)
    share = np.where(np.isnan(hits), np.nan, np.where(hits == 1, 0.01, 0.2))
    mm = np.full_like(share, np.nan) if mm is None else np.where(np.isnan(hits), np.nan, mm)
    return Errors(share * 100, mm, share, tuple(patients), ("unknown",) * len(hits), np.ones(len(hits)))


def test_joints_come_worst_first_with_their_own_labels_and_patients():
    table = [[1, 0, np.nan, 1], [1, 0, np.nan, np.nan], [1, 1, np.nan, 0], [1, 0, np.nan, np.nan]]
    rows = joint_rows(errors_of(table, ["p", "p", "q", "r"]), ("hip", "knee", "wrist", "ankle"))
    assert [row["joint"] for row in rows] == ["knee", "ankle", "hip"]  # nobody labels the wrist
    knee, ankle, hip = rows
    assert (knee["n_labels"], knee["n_patients"], knee["pck_0_05"]) == (4, 3, 0.25)
    assert knee["mre_px"] == pytest.approx((20 + 20 + 1 + 20) / 4)
    assert knee["mre_mm"] is None
    assert (ankle["n_labels"], ankle["n_patients"], ankle["pck_0_05"]) == (2, 2, 0.5)
    assert ankle["interval_95"] == [0, 1]
    assert hip["interval_95"] == [1, 1]


def test_a_joint_of_one_patient_has_no_interval_however_many_films():
    first, second = joint_rows(errors_of([[1, 0], [1, 1], [np.nan, 1]], ["p", "p", "q"], mm=3.0), ("hip", "knee"))
    assert (first["joint"], second["joint"]) == ("knee", "hip")
    assert second["interval_95"] is None
    assert second["mre_mm"] == 3


def test_the_interval_of_a_joint_is_over_patients_not_films():
    """One miss in four films of one patient: the films say 0.75, three patients in four none."""
    films = [[1.0]] * 40
    patients = [f"p{i // 10}" for i in range(40)]
    films[:10] = [[0.0]] * 10
    (row,) = joint_rows(errors_of(films, patients), ("hip",))
    low, high = row["interval_95"]
    assert (low, high) == (0.25, 1)  # 40 independent films would give about 0.62 to 0.88


def test_joint_rows_agree_with_the_metrics_of_the_same_films():
    hospitals = [dot_hospital("a", (0, 1), 1), dot_hospital("b", (1, 2), 2)]
    rng = np.random.default_rng(0)
    predictions = {h.name: h.test.truth[..., :2] + rng.normal(0, 0.6, (4, 3, 2)) for h in hospitals}
    metrics = evaluate(predictions, hospitals)
    rows = joint_rows(join([radial_errors(predictions[h.name], h.test) for h in hospitals]), JOINTS)
    assert [row["joint"] for row in rows] == list(metrics["per_joint"])
    for row in rows:
        same = metrics["per_joint"][row["joint"]]
        assert (row["pck_0_05"], row["n_labels"]) == (same["pck_0_05"], same["n"])
        assert (row["mre_px"], row["mre_mm"]) == (pytest.approx(same["mre_px"]), pytest.approx(same["mre_mm"]))


def test_what_no_miss_leaves_possible():
    """59 is the number that quality control takes to exclude 5 % defects with 95 % confidence: 58 are too few."""
    assert unseen_miss_share(59) < 0.05 < unseen_miss_share(58)
    assert unseen_miss_share(1) == pytest.approx(0.95)
    assert unseen_miss_share(1000) == pytest.approx(3 / 1000, rel=0.01)
    misses = np.random.default_rng(0).random((20_000, 20)) < unseen_miss_share(20)
    assert (~misses).all(axis=1).mean() == pytest.approx(0.05, abs=0.005)


def test_every_model_meets_every_hospital_with_its_own_labels():
    hospitals = [dot_hospital("a", (0,), 1), dot_hospital("b", (1, 2), 2)]
    right = {h.name: h.test.truth[..., :2].copy() for h in hospitals}
    knows_hips = {name: xy.copy() for name, xy in right.items()}
    for xy in knows_hips.values():
        xy[:, 1:] += 30
    rows = cross_matrix({"a": knows_hips, "both": right}, hospitals)
    table = {(row["trained_at"], row["tested_at"]): row for row in rows}
    assert list(table) == [("a", "a"), ("a", "b"), ("both", "a"), ("both", "b")]
    assert [row["pck_0_05"] for row in rows] == [1, 0, 1, 1]
    assert table["a", "b"]["mre_px"] == pytest.approx(np.hypot(30, 30), rel=1e-6)
    assert table["a", "b"]["interval_95"] == [0, 0]
    alone = evaluate(knows_hips, hospitals)["per_hospital"]["b"]
    assert table["a", "b"]["pck_0_05"] == alone["pck_0_05"]


def found(*joints):
    """One film's prediction (1, K, 3)."""
    return np.array([joints], np.float32)


def test_the_ensemble_asks_only_those_who_label_a_joint():
    first = found((10, 10, 0.9), (0, 0, 0.8), (4, 4, 0.2))
    second = found((99, 99, 0.9), (8, 4, 0.8), (8, 8, 0.6))
    third = found((50, 50, 0.1), (2, 2, 0.2), (6, 6, 0.2))
    labelled = [np.array([True, False, False]), np.array([False, True, False]), np.array([False, True, False])]
    mean = ensemble([first, second, third], labelled)
    assert mean[0, 0] == pytest.approx([10, 10, 0.9])  # the first alone
    assert mean[0, 1] == pytest.approx([(8 * 0.8 + 2 * 0.2), (4 * 0.8 + 2 * 0.2), 0.5])
    assert mean[0, 2] == pytest.approx([(4 * 0.2 + 8 * 0.6 + 6 * 0.2), (4 * 0.2 + 8 * 0.6 + 6 * 0.2), 1 / 3])


def test_models_without_any_confidence_count_alike():
    mean = ensemble([found((0, 0, 0)), found((4, 2, 0))], [np.array([True])] * 2)
    assert mean[0, 0].tolist() == [2, 1, 0]


@pytest.mark.parametrize("labelled", [[], [np.ones(1, bool)] * 2])
def test_an_ensemble_needs_the_labels_of_each_model(labelled):
    with pytest.raises(ValueError, match="expected one each"):
        ensemble([found((0, 0, 1))] * len(labelled[1:]), labelled)


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_ensemble_lies_among_its_models_in_any_order(models, seed):
    rng = np.random.default_rng(seed)
    predictions = [rng.uniform(0, 1, (2, 3, 3)).astype(np.float32) for _ in range(models)]
    labelled = [rng.random(3) < 0.5 for _ in range(models)]
    mean = ensemble(predictions, labelled)
    assert (mean >= np.min(predictions, axis=0) - 1e-6).all()
    assert (mean <= np.max(predictions, axis=0) + 1e-6).all()
    order = rng.permutation(models)
    again = ensemble([predictions[i] for i in order], [labelled[i] for i in order])
    assert again == pytest.approx(mean, abs=1e-6)
    assert ensemble(predictions[:1] * 3, [np.ones(3, bool)] * 3) == pytest.approx(predictions[0], abs=1e-6)


def test_fairness_names_the_worst_and_how_far_it_is_behind():
    hospitals = [dot_hospital("a", (0,), 1), dot_hospital("b", (0, 1, 2), 2)]
    predictions = {h.name: h.test.truth[..., :2].copy() for h in hospitals}
    predictions["b"][:, 2] += 30
    result = fairness(evaluate(predictions, hospitals))
    assert result["hospital"] == {
        "worst": "b",
        "pck_0_05": pytest.approx(2 / 3),
        "mre_px": pytest.approx(np.hypot(30, 30) / 3, rel=1e-6),
        "spread": pytest.approx(1 / 3),
    }
    assert (result["joint"]["worst"], result["joint"]["pck_0_05"], result["joint"]["spread"]) == ("ankle", 0, 1)


def test_the_telling_films_are_the_worst_and_some_that_nobody_chose():
    hospitals = [dot_hospital("a", (0,), 1), dot_hospital("b", (0, 1, 2), 2)]
    off = {"a": [0.0, 7, 3, 1], "b": [5.0, 2, 6, 4]}
    predictions = {}
    for h in hospitals:
        predictions[h.name] = h.test.truth[..., :2].astype(float)
        predictions[h.name][..., 0] += np.array(off[h.name])[:, None]
    rows = telling_films(predictions, hospitals, worst=2, ordinary=1)
    assert [(row["hospital"], row["film"], row["kind"]) for row in rows] == [
        ("a", 1, "worst"),
        ("b", 2, "worst"),
        ("a", 2, "ordinary"),  # of 5, 4, 3, 2, 1, 0 px: either of the two in the middle
    ]
    assert [row["mre_px"] for row in rows] == pytest.approx([7, 6, 3], abs=1e-5)
    hospitals[0].test.keypoints[:] = 0  # films without a label have no error
    every = telling_films(predictions, hospitals, worst=9)
    assert [(row["hospital"], row["kind"]) for row in every] == [("b", "worst")] * 4
    assert len(telling_films(predictions, hospitals, worst=2, ordinary=3)) == 4  # two are left, none is shown twice
