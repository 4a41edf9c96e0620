"""Clinical readings against hand-made geometry and its symmetries; limits of agreement against a published example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.dataset import FilmSet
from fedbone.model.clinical import (
    _t_quantile,
    agreement,
    agreements,
    clinical_readings,
    hip_knee_ankle_deg,
    leg_length_difference_mm,
    shoulder_tilt_deg,
)

JOINTS = tuple(f"{side}_{joint}" for joint in ("shoulder", "hip", "knee", "ankle") for side in ("left", "right"))
# peak flow of 17 people by two meters: Bland and Altman, Lancet 1986; 1: 307, table 1 (first readings)
LARGE_METER = (494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427)
MINI_METER = (512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451)


def body(**moved: tuple[float, float]) -> np.ndarray:
    """A straight patient from the front, left at the viewer's right, with some joints elsewhere."""
    rows = {"shoulder": 20.0, "hip": 120.0, "knee": 220.0, "ankle": 320.0}
    points = {f"{side}_{joint}": (x, y) for joint, y in rows.items() for side, x in (("left", 200.0), ("right", 100.0))}
    return np.array([(points | moved)[joint] for joint in JOINTS])


def films(keypoints: np.ndarray, kind: str = "object", side: int = 384) -> FilmSet:
    labels = np.concatenate([keypoints, np.full((*keypoints.shape[:2], 1), 2)], axis=-1).astype(np.float32)
    count = len(labels)
    images, spacing = np.zeros((count, side, side), np.uint8), np.full((count, 2), 0.5, np.float32)
    return FilmSet(images, labels, spacing, tuple(map(str, range(count))), None, (kind,) * count)


def mirrored(points: np.ndarray, exchange: bool) -> np.ndarray:
    flipped = points * [-1, 1] + [300, 0]
    return flipped.reshape(-1, 2, 2)[:, ::-1].reshape(-1, 2) if exchange else flipped


def test_an_ankle_that_lies_outwards_is_valgus_and_a_knee_that_lies_outwards_is_varus():
    out = 100 * np.tan(np.radians(5))
    assert hip_knee_ankle_deg(body(left_ankle=(200 + out, 320)), JOINTS, "left") == pytest.approx(5)
    assert hip_knee_ankle_deg(body(right_ankle=(100 - out, 320)), JOINTS, "right") == pytest.approx(5)
    assert hip_knee_ankle_deg(body(right_ankle=(100 + out, 320)), JOINTS, "right") == pytest.approx(-5)
    bow = -2 * np.degrees(np.arctan(10 / 100))
    assert hip_knee_ankle_deg(body(left_knee=(210, 220)), JOINTS, "left") == pytest.approx(bow)
    assert hip_knee_ankle_deg(body(right_knee=(90, 220)), JOINTS, "right") == pytest.approx(bow)
    assert hip_knee_ankle_deg(body(left_knee=(210, 220)), JOINTS, "right") == 0


def test_leg_length_is_left_minus_right_along_both_pitches():
    longer = body(left_ankle=(230.0, 160.0))  # 30 x 40 pixels from the hip
    assert leg_length_difference_mm(longer, JOINTS, np.array([0.4, 0.4])) == pytest.approx(20 - 80)
    assert leg_length_difference_mm(longer, JOINTS, np.array([0.4, 0.225])) == pytest.approx(15 - 45)
    assert np.isnan(leg_length_difference_mm(longer, JOINTS, np.array([np.nan, np.nan])))


def test_a_higher_left_shoulder_is_positive_on_a_mirrored_film_too():
    tilted = body(left_shoulder=(200, 10))
    assert shoulder_tilt_deg(tilted, JOINTS) == pytest.approx(np.degrees(np.arctan(0.1)))
    assert shoulder_tilt_deg(mirrored(tilted, exchange=False), JOINTS) == pytest.approx(np.degrees(np.arctan(0.1)))
    assert shoulder_tilt_deg(body(right_shoulder=(100, 10)), JOINTS) == pytest.approx(-np.degrees(np.arctan(0.1)))


@pytest.mark.parametrize("joint", JOINTS)
def test_a_missing_joint_leaves_out_its_readings_alone(joint):
    points = np.column_stack([body(), np.full(8, 2.0)])
    points[JOINTS.index(joint), 2] = 0
    side = joint.split("_")[0]
    needs = {
        "shoulder": {"shoulder_tilt_deg"},
        "knee": {f"hip_knee_ankle_{side}_deg"},
    }.get(joint.split("_")[1], {f"hip_knee_ankle_{side}_deg", "leg_length_difference_mm"})
    readings = clinical_readings(points, JOINTS, np.ones(2))
    assert {name for name, value in readings.items() if np.isnan(value)} == needs
    without = [name for name in JOINTS if name != joint]
    left = clinical_readings(body()[[JOINTS.index(name) for name in without]], without, np.ones(2))
    assert {name for name, value in left.items() if np.isnan(value)} == needs


@given(
    seed=st.integers(0, 2**32),
    shift=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    scale=st.floats(0.2, 5),
    turn_deg=st.floats(-15, 15),
)
def test_moving_scaling_turning_and_mirroring_a_film(seed, shift, scale, turn_deg):
    points = body() + np.random.default_rng(seed).normal(0, 5, (8, 2))
    pitch = np.full(2, 0.3)
    before = clinical_readings(points, JOINTS, pitch)
    moved = clinical_readings(points * scale + shift, JOINTS, pitch / scale)
    assert moved == pytest.approx(before, abs=1e-7)
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    turned = clinical_readings(points @ [[c, s], [-s, c]], JOINTS, pitch)
    assert turned == pytest.approx(before | {"shoulder_tilt_deg": before["shoulder_tilt_deg"] - turn_deg}, abs=1e-7)
    other = clinical_readings(mirrored(points, exchange=True), JOINTS, pitch)
    exchanged = {
        "hip_knee_ankle_left_deg": before["hip_knee_ankle_right_deg"],
        "hip_knee_ankle_right_deg": before["hip_knee_ankle_left_deg"],
        "leg_length_difference_mm": -before["leg_length_difference_mm"],
        "shoulder_tilt_deg": -before["shoulder_tilt_deg"],
    }
    assert other == pytest.approx(exchanged, abs=1e-7)


def test_many_films_read_as_each_alone():
    several = np.stack([body(), body(left_knee=(210, 220)), body(left_shoulder=(200, 10))])
    together = clinical_readings(several, JOINTS, np.full((3, 2), 0.5))
    for i, points in enumerate(several):
        alone = clinical_readings(points, JOINTS, np.full(2, 0.5))
        assert {name: values[i] for name, values in together.items()} == pytest.approx(alone)


def test_limits_of_agreement_of_the_published_example():
    result = agreement(np.subtract(LARGE_METER, MINI_METER), [str(i) for i in range(17)])
    assert result["bias"] == pytest.approx(-2.1, abs=0.05)
    assert result["sd"] == pytest.approx(38.8, abs=0.05)
    assert result["interval_95"]["bias"] == pytest.approx([-22.0, 17.8], abs=0.1)
    assert result["limits"] == pytest.approx([-2.12 - 1.96 * 38.77, -2.12 + 1.96 * 38.77], abs=0.05)
    for end in ("lower_limit", "upper_limit"):  # the paper takes 2 standard deviations: its widths are comparable
        low, high = result["interval_95"][end]
        assert high - low == pytest.approx(110.1 - 40.9, abs=0.3)
    assert (result["n_films"], result["n_patients"]) == (17, 17)


def test_films_of_one_patient_are_not_new_patients():
    difference, patients = np.subtract(LARGE_METER, MINI_METER), [str(i) for i in range(17)]
    once, copied = agreement(difference, patients), agreement(np.tile(difference, 3), patients * 3)
    for name in ("bias", "sd", "limits"):
        assert copied[name] == pytest.approx(once[name])
    for name, ends in once["interval_95"].items():
        assert copied["interval_95"][name] == pytest.approx(ends)


def test_the_spread_of_one_film_is_between_and_within_patients():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(8000), np.tile([1, 3], 4000))
    difference = rng.normal(0, 2, 8000)[patient] + rng.normal(0, 1, len(patient))
    assert agreement(difference, patient.astype(str))["sd"] == pytest.approx(np.sqrt(5), rel=0.02)
    alone = agreement(difference[:50], [str(i) for i in range(50)])
    assert alone["sd"] == pytest.approx(difference[:50].std(ddof=1))


def test_few_patients_have_a_bias_alone_and_none_has_nothing():
    two = agreement(np.array([1.0, 2.0, np.nan]), ["a", "b", "c"])
    assert two == {"bias": 1.5, "sd": None, "limits": None, "interval_95": None, "n_films": 2, "n_patients": 2}
    assert agreement(np.full(2, np.nan), ["a", "b"]) is None


@pytest.mark.parametrize(
    ("freedom", "tabled"), [(2, 4.303), (4, 2.776), (9, 2.262), (16, 2.120), (30, 2.042), (100, 1.984)]
)
def test_quantiles_of_student_t_against_the_table(freedom, tabled):
    assert _t_quantile(freedom) == pytest.approx(tabled, rel=0.01 if freedom == 2 else 0.0005)


def test_predictions_are_compared_with_the_labels_film_by_film():
    labels = np.stack([body(left_shoulder=(200, 20 + i)) for i in range(6)])
    predicted = labels.copy()
    predicted[:, JOINTS.index("left_ankle"), 1] += 3  # 1.5 mm
    result = agreements(predicted, films(labels, "detector"), JOINTS)
    legs = result["leg_length_difference_mm"]
    assert legs["bias"] == pytest.approx(1.5)
    assert legs["limits"] == pytest.approx([1.5, 1.5])
    assert (legs["unit"], legs["spacing_kinds"], legs["n_patients"]) == ("mm", ["detector"], 6)
    assert result["shoulder_tilt_deg"]["limits"] == pytest.approx([0, 0])
    assert (result["shoulder_tilt_deg"]["unit"], result["shoulder_tilt_deg"]["spacing_kinds"]) == ("deg", [])


def test_a_film_from_the_side_has_no_shoulder_tilt():
    lateral = body(left_shoulder=(110, 24), right_shoulder=(105, 20))
    labels = np.stack([body(), body(), body(), lateral])
    assert agreements(labels, films(labels), JOINTS)["shoulder_tilt_deg"]["n_films"] == 3


def test_a_reading_that_no_film_has_is_none():
    labels = np.full((3, 17, 2), 50.0)
    unlabelled = films(labels)
    unlabelled.keypoints[:] = 0
    assert agreements(labels, unlabelled, COCO_JOINTS) == dict.fromkeys(
        clinical_readings(labels, COCO_JOINTS, np.ones(2))
    )
