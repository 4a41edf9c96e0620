"""OKS and AP against pycocotools, on films with random labels, errors and scores."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.dataset import FilmSet
from fedbone.model.metrics import radial_errors, reference_px, summarise
from fedbone.model.oks import FEWEST_JOINTS, FLAT_SIGMA, average_precision, coco_sigmas, similarity

SIDE = 128
UNIT = st.floats(0, 1, allow_nan=False)


def random_films(seed: int, count: int, tied: bool) -> tuple[FilmSet, np.ndarray]:
    """Films of which some carry no or few labels, and predictions from near to hopeless with confidences."""
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(0, SIDE - 1, (count, 17, 3)).astype(np.float32)
    keypoints[..., 2] = rng.integers(0, 3, (count, 17)) * (rng.random((count, 17)) < rng.random((count, 1)))
    keypoints[rng.random(count) < 0.2, :, 2] = 0
    keypoints[keypoints[..., 2] == 0] = 0
    far = 10 ** rng.uniform(-1, 1.3, (count, 1, 1))
    predicted = np.concatenate(
        [keypoints[..., :2] + rng.normal(0, far, (count, 17, 2)), rng.random((count, 17, 1))], -1
    )
    if tied:
        predicted[..., 2] = np.round(predicted[:, :1, 2], 1)
    images, spacing = np.zeros((count, SIDE, SIDE), np.uint8), np.full((count, 2), np.nan, np.float32)
    return FilmSet(images, keypoints, spacing, tuple(map(str, range(count)))), predicted.astype(np.float32)


def pycocotools_ap(films: FilmSet, predicted: np.ndarray, sigmas: np.ndarray) -> float:
    """AP of the films with enough labels, the area of a film being the square of its reference length."""
    labels = (films.keypoints[..., 2] > 0).sum(1)
    areas = np.where(labels > 0, reference_px(films.keypoints, SIDE), 1.0).astype(np.float64) ** 2
    truth, found = COCO(), []
    truth.dataset = {"info": {}, "categories": [{"id": 1, "name": "person"}], "images": [], "annotations": []}
    for i in range(len(films)):
        points = films.keypoints[i].astype(float).ravel().tolist()
        common = {"image_id": i + 1, "category_id": 1}
        truth.dataset["images"].append({"id": i + 1, "width": SIDE, "height": SIDE})
        its = {"id": i + 1, "iscrowd": 0, "bbox": [0, 0, SIDE, SIDE], "num_keypoints": int(labels[i])}
        truth.dataset["annotations"].append({**common, **its, "area": areas[i], "keypoints": points})
        score = float(predicted[i, :, 2].astype(float).mean())
        found.append({**common, "keypoints": predicted[i].astype(float).ravel().tolist(), "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "keypoints")
        evaluation.params.imgIds = [i + 1 for i in range(len(films)) if labels[i] >= FEWEST_JOINTS]
        evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), tied=st.booleans())
def test_both_figures_equal_pycocotools(seed, count, tied):
    films, predicted = random_films(seed, count, tied)
    result = summarise(radial_errors(predicted, films), COCO_JOINTS)
    if not ((films.keypoints[..., 2] > 0).sum(1) >= FEWEST_JOINTS).any():
        assert result["ap_coco"] is result["ap_0_025"] is None
        return
    for name, sigmas in (("ap_coco", coco_sigmas(COCO_JOINTS)), ("ap_0_025", np.full(17, FLAT_SIGMA))):
        assert result[name] == pytest.approx(pycocotools_ap(films, predicted, sigmas), abs=1e-9)


def test_a_hundred_films_of_middling_quality_equal_pycocotools():
    """Recalls of exactly k/100, where a rounding would choose another precision."""
    films, predicted = random_films(3, 400, tied=False)
    films = films.take(np.flatnonzero((films.keypoints[..., 2] > 0).sum(1) >= FEWEST_JOINTS)[:100])
    predicted = predicted[[int(name) for name in films.patients]]
    result = summarise(radial_errors(predicted, films), COCO_JOINTS)
    assert 0.05 < result["ap_0_025"] < 0.95
    assert result["ap_0_025"] == pytest.approx(pycocotools_ap(films, predicted, np.full(17, FLAT_SIGMA)), abs=1e-9)


def test_sigmas_are_those_of_pycocotools_by_name():
    assert coco_sigmas(COCO_JOINTS) == pytest.approx(Params("keypoints").kpt_oks_sigmas, abs=1e-15)
    assert coco_sigmas(("left_ankle", "nose")).tolist() == [0.089, 0.026]
    assert coco_sigmas(("left_ankle", "sacrum")) is None


def test_an_error_of_two_sigma_gives_the_root_of_one_over_e():
    share = np.full((1, 4), 2 * FLAT_SIGMA)
    assert similarity(share, np.full(4, FLAT_SIGMA)) == pytest.approx(np.exp(-0.5))


def test_films_with_three_labelled_joints_take_no_part():
    share = np.zeros((3, 5))
    share[0, :2] = share[1, 0] = np.nan
    assert np.isnan(similarity(share, np.full(5, FLAT_SIGMA))).tolist() == [True, False, False]


def test_what_is_not_known_is_none():
    films, predicted = random_films(0, 12, tied=False)
    named = (*COCO_JOINTS[:-1], "sacrum")
    result = summarise(radial_errors(predicted, films), named)
    assert result["ap_coco"] is None
    assert result["ap_0_025"] is not None
    assert summarise(radial_errors(predicted[..., :2], films), named)["ap_0_025"] is None  # no confidence, no ranking
    assert average_precision(np.full(3, np.nan), np.ones(3)) is None


@given(oks=arrays(float, 12, elements=UNIT), scores=arrays(float, 12, elements=st.sampled_from([0.1, 0.4, 0.9])))
def test_only_the_order_of_scores_counts_and_idle_films_do_not(oks, scores):
    ap = average_precision(oks, scores)
    assert 0 <= ap <= 1
    assert average_precision(oks, 3 * scores**3 - 1) == ap
    assert average_precision(np.append(oks, np.nan), np.append(scores, 0.5)) == ap


@given(
    oks=arrays(float, 12, elements=UNIT), gain=arrays(float, 12, elements=UNIT), scores=arrays(float, 12, elements=UNIT)
)
def test_nearer_joints_never_lower_the_figure(oks, gain, scores):
    assert average_precision(np.minimum(oks + gain, 1), scores) >= average_precision(oks, scores) - 1e-12
    assert average_precision(np.ones(12), scores) == pytest.approx(1)
