"""The posed skeleton: joint truth against the bone surfaces, joint limits, couplings, scoliosis, no litter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedbone.config import REPOSITORY
from fedbone.imaging.skeleton import Patient, PosedSkeleton, load_skeleton
from fedbone.imaging.spine import SpineCurve
from fedbone.imaging.upper_limbs import ArmAngles

BIG = Patient((1.1, 1.05, 1.12, 1.08, 1.15))
CURVE = SpineCurve(((0.6, 0.3, 45.0), (0.2, 0.22, -20.0)), twist=6.0)


def surface(posed: PosedSkeleton, name: str) -> np.ndarray:
    """Vertices (V, 3) of one bone in the world, mm."""
    index = [bone.name for bone in posed.bones].index(name)
    return posed.world(index, posed.bones[index].vertices) * 1000


@pytest.fixture(scope="module")
def posed() -> PosedSkeleton:
    angles = {"hip_flexion_l": 0.15, "hip_adduction_r": -0.2, "knee_angle_l": 0.2, "knee_angle_r": 0.0}
    raised = ArmAngles(elevation=2.3, elbow=0.8)
    return load_skeleton().pose(BIG, angles, CURVE, (raised, raised))


@pytest.mark.parametrize(
    ("joint", "bone", "radius_mm"), [(11, "l_femur", 30), (12, "r_femur", 30), (5, "humerus_l", 32)]
)
def test_ball_joints_lie_in_the_middle_of_their_round_head(posed, joint, bone, radius_mm) -> None:
    centre = posed.joints_mm[joint]
    ray = surface(posed, bone) - centre
    length = np.linalg.norm(ray, axis=1)
    near = length < radius_mm
    directions = ray[near] / length[near, None]
    # bone all around except where the neck leaves: a centre outside the head would see it on one side only
    rng = np.random.default_rng(0)
    probes = rng.standard_normal((200, 3))
    probes /= np.linalg.norm(probes, axis=1)[:, None]
    covered = (directions @ probes.T).max(axis=0) > np.cos(np.radians(35))
    assert covered.mean() > 0.75
    assert np.ptp(np.percentile(length[near], [10, 90])) < 12


def compartment(points: np.ndarray, knee: np.ndarray, half: int) -> np.ndarray:
    """Heights of the surface points 12-35 mm beside the knee's centre and up to 20 mm before or behind it."""
    across = (points[:, 0] - knee[0]) * half
    near = (across > 12) & (across < 35) & (np.abs(points[:, 1] - knee[1]) < 20)
    return points[near & (np.abs(points[:, 2] - knee[2]) < 40), 2]


@pytest.mark.parametrize(("joint", "side"), [(13, "l"), (14, "r")])
@pytest.mark.parametrize("size", [0.85, 1.15])
def test_knee_lies_between_condyles_and_plateau(size, joint, side) -> None:
    posed = load_skeleton().pose(Patient((1, 1, 1, 1, size)), {})
    knee = posed.joints_mm[joint]
    femur, tibia = surface(posed, f"{side}_femur"), surface(posed, f"{side}_tibia")
    for half in (-1, 1):
        assert compartment(femur, knee, half).min() > knee[2] - 4
        assert compartment(tibia, knee, half).max() < knee[2] + 4
    assert femur[:, 2].min() - 12 < knee[2] < femur[:, 2].min() + 12


def test_knee_follows_the_bones_when_the_leg_grows() -> None:
    small, big = (load_skeleton().pose(Patient((1, 1, 1, 1, s)), {}).joints_mm for s in (0.85, 1.15))
    thigh = [np.linalg.norm(j[11] - j[13]) for j in (small, big)]
    assert thigh[1] / thigh[0] == pytest.approx(1.15 / 0.85, rel=0.01)


def test_face_points_lie_on_the_skull(posed) -> None:
    skull = surface(posed, "hat_skull")
    face = posed.joints_mm[:5]
    low, high = skull.min(axis=0), skull.max(axis=0)
    assert ((face[:, [0, 2]] > low[[0, 2]]) & (face[:, [0, 2]] < high[[0, 2]])).all()
    gaps = np.linalg.norm(skull[None] - face[:, None], axis=2).min(axis=1)
    assert gaps[[0, 3, 4]].max() < 15  # nasion and ears touch bone
    assert gaps[[1, 2]].min() > 10
    assert gaps[[1, 2]].max() < 35
    assert face[1, 0] > face[0, 0] > face[2, 0]
    assert face[3, 0] > face[1, 0]


def test_elbow_wrist_and_ankle_touch_the_bones_they_join(posed) -> None:
    for joint, one, other in ((7, "humerus_l", "ulna_l"), (8, "humerus_r", "ulna_r"), (15, "l_tibia", "l_talus")):
        for bone in (one, other):
            assert np.linalg.norm(surface(posed, bone) - posed.joints_mm[joint], axis=1).min() < 25, bone


def test_limits_and_couplings_hold() -> None:
    skeleton = load_skeleton()
    rng = np.random.default_rng(1)
    names = ["knee_angle_l", "hip_flexion_l", "ankle_angle_r", "lat_bending"]
    model = skeleton.model
    for _ in range(5):
        posed = skeleton.pose(BIG, {name: float(rng.uniform(-4, 4)) for name in names})
        for name, value in posed.angles.items():
            low, high = model.joint(name).range
            assert low - 1e-9 <= value <= high + 1e-9, name
        for e in range(model.neq):
            joint, lead = (
                model.joint(int(i[e])).name if i[e] >= 0 else None for i in (model.eq_obj1id, model.eq_obj2id)
            )
            x = posed.angles[lead] if lead else 0.0
            wanted = sum(c * x**k for k, c in enumerate(model.eq_data[e, :5]))
            assert posed.angles[joint] == pytest.approx(np.clip(wanted, *model.joint(joint).range), abs=1e-6)


def test_an_unknown_joint_is_refused() -> None:
    with pytest.raises(KeyError):
        load_skeleton().pose(Patient(), {"third_leg": 1.0})
    with pytest.raises(KeyError, match="ArmAngles"):  # the package's arm joints are not used
        load_skeleton().pose(Patient(), {"shoulder_elv_r": 1.0})


def test_cobb_angle_is_that_of_the_displaced_vertebrae(posed) -> None:
    x, _, z = posed.vertebrae_mm.T
    assert (np.diff(z) < 0).all()
    assert len(z) == 17
    tilt = np.degrees(np.arctan2(x[:-1] - x[1:], z[:-1] - z[1:]))  # from neighbours' centres, coarser than a tangent
    assert posed.cobb_deg == pytest.approx(np.ptp(tilt), abs=4)
    assert 40 < posed.cobb_deg < 60
    assert load_skeleton().pose(Patient(), {}).cobb_deg == 0


def test_shoulders_follow_the_bent_spine() -> None:
    arms = (ArmAngles(elevation=2.3), ArmAngles(elevation=2.3))
    lean = SpineCurve(((1.0, 0.9, 30.0),))  # T1 itself is displaced
    straight, bent = (load_skeleton().pose(Patient(), {}, curve, arms) for curve in (SpineCurve(), lean))
    moved = bent.joints_mm - straight.joints_mm
    top = bent.vertebrae_mm[0] - straight.vertebrae_mm[0]
    assert abs(top[0]) > 40
    assert np.abs(moved[:11, 0] - top[0]).max() < 15
    for joint, bone in ((5, "humerus_l"), (6, "humerus_r"), (5, "scapula_l")):
        before, after = (np.linalg.norm(surface(p, bone) - p.joints_mm[joint], axis=1).min() for p in (straight, bent))
        assert after == pytest.approx(before, abs=0.01)
    assert np.abs(moved[11:]).max() < 1e-9


@pytest.mark.parametrize("size", [0.8, 1.15])
def test_every_bone_keeps_its_place_in_its_body_when_the_patient_is_scaled(size) -> None:
    skeleton = load_skeleton()
    skeleton.pose(Patient((size,) * 5), {"knee_angle_l": 0.3})
    model, data = skeleton.model, skeleton.data
    for bone in skeleton.bones:
        own = data.xmat[bone.body].reshape(3, 3) @ (skeleton.rest["geom_pos"][bone.geom] * size)
        assert data.geom_xpos[bone.geom] == pytest.approx(data.xpos[bone.body] + own, abs=1e-9), bone.name
    assert model.ngeom > 0


def test_the_neck_stands_on_the_first_thoracic_vertebra() -> None:
    for size in (0.8, 1.0, 1.15):
        posed = load_skeleton().pose(Patient((size,) * 5), {})
        gap = surface(posed, "hat_cervical")[:, 2].min() - posed.vertebrae_mm[0, 2]
        assert gap / size == pytest.approx(7.0, abs=4), size


def test_turning_the_patient_turns_bones_joints_and_vertebrae_alike(posed) -> None:
    side = posed.seen_from(90)
    left_to_back = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    for turned, straight in ((side.joints_mm, posed.joints_mm), (side.vertebrae_mm, posed.vertebrae_mm)):
        assert turned == pytest.approx(straight @ left_to_back.T)
    for name in ("l_femur", "humerus_r", "torso_geom_13_ribcage_s"):
        assert surface(side, name) == pytest.approx(surface(posed, name) @ left_to_back.T, abs=1e-3), name
    twice = posed.seen_from(30).seen_from(60)
    assert twice.joints_mm == pytest.approx(side.joints_mm)
    assert surface(twice, "l_femur") == pytest.approx(surface(side, "l_femur"), abs=1e-3)
    nose, ears = side.joints_mm[0], side.joints_mm[3:5].mean(axis=0)
    assert nose[0] > ears[0] + 50  # a left lateral film faces to its right


def test_poses_do_not_influence_each_other() -> None:
    skeleton = load_skeleton()
    first = skeleton.pose(Patient(), {"knee_angle_l": 0.3})
    skeleton.pose(BIG, {"hip_flexion_l": 1.0}, CURVE, (ArmAngles(1.0), ArmAngles(2.0)))
    again = skeleton.pose(Patient(), {"knee_angle_l": 0.3})
    assert (first.joints_mm == again.joints_mm).all()
    assert (first.place == again.place).all()


def test_loading_is_silent_and_writes_nothing(tmp_path: Path) -> None:
    code = "from fedbone.imaging.skeleton import load_skeleton as s, Patient; s().pose(Patient(), {})"
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
