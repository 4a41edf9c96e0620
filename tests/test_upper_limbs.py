"""Arms posed by our own angles: bones keep their lengths and joints, angles mean what they say, limits hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.imaging.skeleton import Patient, PosedSkeleton, load_skeleton
from fedbone.imaging.upper_limbs import LIMITS, ArmAngles, rotation_about

angles = st.builds(ArmAngles, **{name: st.floats(low, high) for name, (low, high) in LIMITS.items()})


def pose(left: ArmAngles, right: ArmAngles | None = None) -> PosedSkeleton:
    return load_skeleton().pose(Patient(), {}, arms=(left, right or ArmAngles()))


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


def surface(posed: PosedSkeleton, name: str) -> np.ndarray:
    index = [bone.name for bone in posed.bones].index(name)
    return posed.world(index, posed.bones[index].vertices) * 1000


@settings(max_examples=15, deadline=None)
@given(angles, angles)
def test_no_pose_tears_a_joint_or_changes_a_length(left: ArmAngles, right: ArmAngles) -> None:
    rest, posed = pose(ArmAngles()), pose(left, right)
    for side, shoulder in (("l", 5), ("r", 6)):
        for start, end in ((shoulder, shoulder + 2), (shoulder + 2, shoulder + 4)):
            lengths = [np.linalg.norm(p.joints_mm[start] - p.joints_mm[end]) for p in (rest, posed)]
            assert lengths[1] == pytest.approx(lengths[0], abs=1e-6)
        for joint, bone in (
            (shoulder, f"humerus_{side}"), (shoulder, f"scapula_{side}"), (shoulder + 2, f"humerus_{side}"),
            (shoulder + 2, f"ulna_{side}"), (shoulder + 4, f"radius_{side}"), (shoulder + 4, f"lunate_{side}"),
        ):  # fmt: skip
            gaps = [np.linalg.norm(surface(p, bone) - p.joints_mm[joint], axis=1).min() for p in (rest, posed)]
            assert gaps[1] == pytest.approx(gaps[0], abs=3), bone  # the radius turns about the forearm: a little


@pytest.mark.parametrize("elevation", [0.5, 1.2, 2.4])
def test_elevation_and_elbow_are_the_angles_between_the_bones(elevation: float) -> None:
    rest = pose(ArmAngles())
    posed = pose(ArmAngles(elevation=elevation, elbow=0.8), ArmAngles(elevation=elevation, plane=1.57, elbow=0.4))
    for shoulder, elbow, wrist, bend in ((5, 7, 9, 0.8), (6, 8, 10, 0.4)):
        upper = [p.joints_mm[elbow] - p.joints_mm[shoulder] for p in (rest, posed)]
        fore = [p.joints_mm[wrist] - p.joints_mm[elbow] for p in (rest, posed)]
        hanging = angle_deg(upper[0], np.array([0, 0, -1.0]))  # the arm hangs a few degrees off the vertical
        assert angle_deg(upper[1], np.array([0, 0, -1.0])) == pytest.approx(np.degrees(elevation), abs=hanging + 0.1)
        carrying = angle_deg(upper[0], fore[0])
        assert angle_deg(upper[1], fore[1]) == pytest.approx(np.degrees(bend), abs=carrying + 0.1)
    assert posed.joints_mm[7, 0] > posed.joints_mm[5, 0] + 50  # left arm to the left
    assert posed.joints_mm[8, 1] < posed.joints_mm[6, 1] - 50  # right arm to the front (y points to the back)


def test_flexion_brings_the_hand_forward_and_pronation_the_thumb_inward() -> None:
    rest, bent = pose(ArmAngles()), pose(ArmAngles(elbow=1.2), ArmAngles(elbow=1.2))
    assert (bent.joints_mm[[9, 10], 1] < rest.joints_mm[[9, 10], 1] - 100).all()
    turned = pose(ArmAngles(pronation=1.2), ArmAngles(pronation=1.2))
    for side, inward in (("l", -1), ("r", 1)):
        moved = [surface(p, f"thumbdist_{side}").mean(axis=0)[0] for p in (rest, turned)]
        assert (moved[1] - moved[0]) * inward > 15
    assert np.allclose(turned.joints_mm[[7, 8]], rest.joints_mm[[7, 8]])


def test_the_girdle_follows_the_arm() -> None:
    """A third of the elevation is the scapula's; its lower tip swings outward and the shoulder rises."""
    rest, raised = pose(ArmAngles()), pose(ArmAngles(elevation=2.4))
    tips = [surface(p, "scapula_l")[surface(rest, "scapula_l")[:, 2].argmin()] for p in (rest, raised)]
    assert tips[1][0] > tips[0][0] + 30
    assert raised.joints_mm[5, 2] > rest.joints_mm[5, 2] + 15
    assert np.allclose(raised.joints_mm[6], rest.joints_mm[6])  # the other side stays
    clavicles = [surface(p, "clavicle_l") for p in (rest, raised)]
    assert np.linalg.norm(clavicles[0] - clavicles[1], axis=1).min() < 1.5  # its medial end stays on the sternum


def test_the_sides_mirror_each_other() -> None:
    posed = pose(ArmAngles(1.1, 0.4, 0.5, 0.9, 0.3, 0.2), ArmAngles(1.1, 0.4, 0.5, 0.9, 0.3, 0.2))
    middle = posed.joints_mm[11:13, 0].mean()
    for left in (5, 7, 9):
        mirrored = posed.joints_mm[left] * [-1, 1, 1] + [2 * middle, 0, 0]
        assert mirrored == pytest.approx(posed.joints_mm[left + 1], abs=12)  # the two sides are scanned bones


def test_angles_stop_at_their_limits() -> None:
    for name, (low, high) in LIMITS.items():
        assert getattr(ArmAngles(**{name: 9.0}).limited(), name) == high
        assert getattr(ArmAngles(**{name: -9.0}).limited(), name) == low
    assert np.array_equal(pose(ArmAngles(elbow=9)).joints_mm, pose(ArmAngles(elbow=LIMITS["elbow"][1])).joints_mm)


def test_rotation_turns_by_the_right_hand() -> None:
    turn = rotation_about(np.array([0, 0, 2.0]), np.pi / 2)
    assert turn @ [1, 0, 0] == pytest.approx([0, 1, 0])
    assert turn @ turn.T == pytest.approx(np.eye(3))
