"""A posed human skeleton: myo-sim's bones moved by MuJoCo's kinematics, with exact COCO-17 joint centres.

World frame, metres: x to the patient's left, y to the back, z up. A film that looks from the front has the patient's
right on its left side, so its columns run along x and its rows along -z.
Bones: https://github.com/MyoHub/myo_sim (meshes CC BY 3.0, from OpenSim models). Trunk and legs move by that model's
joints, arms by ``fedbone.imaging.upper_limbs``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from fedbone.imaging.bones import GIRDLE, GROUPS, HEAD, RIBS, VERTEBRA, Bone, body_group, read_bone
from fedbone.imaging.meshes import sample_surface
from fedbone.imaging.spine import STRAIGHT, SpineCurve
from fedbone.imaging.upper_limbs import ArmAngles, pose_arm

_CENTRES = {5: "humerus", 7: "ulna", 9: "lunate", 11: "femur", 15: "talus"}  # COCO index of the left joint: its body
# Skull mesh frame turned upright, metres: nasion, orbit centres, acoustic openings (read off the mesh's depth map)
_FACE = np.array([(0, -77, -12), (34, -60, -18), (-34, -60, -18), (62, 3, -42), (-62, 3, -42)]) / 1000


@dataclass(frozen=True)
class Patient:
    """scale: size of each of GROUPS, mineral: density of bone, flesh: thickness; 1 = the model's adult."""

    scale: tuple[float, ...] = (1.0,) * len(GROUPS)
    mineral: float = 1.0
    flesh: float = 1.0


@dataclass(frozen=True)
class PosedSkeleton:
    """Bones in the world: row i of ``turn`` (N, 3, 3), ``place`` (N, 3) metres and ``size`` (N,) belongs to bones[i].

    joints_mm (17, 3) in COCO order; vertebrae_mm (17, 3): centres of T1 to L5; cobb_deg: angle between the two most
    tilted vertebrae in the frontal plane; angles: every joint angle by name (radians, slides in metres at size 1).
    facing (3, 3): how the patient is turned in the beam; joints and vertebrae are turned already.
    """

    bones: tuple[Bone, ...]
    turn: np.ndarray
    place: np.ndarray
    size: np.ndarray
    patient: Patient
    curve: SpineCurve
    joints_mm: np.ndarray
    vertebrae_mm: np.ndarray
    cobb_deg: float
    angles: dict[str, float]
    facing: np.ndarray = field(default_factory=lambda: np.eye(3))

    def seen_from(self, degrees: float) -> PosedSkeleton:
        """The patient turned about the vertical: 0 faces the source, 90 shows the left side to the detector."""
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        facing = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        return replace(
            self,
            facing=facing @ self.facing,
            joints_mm=self.joints_mm @ facing.T,
            vertebrae_mm=self.vertebrae_mm @ facing.T,
        )

    def world(self, index: int, points: np.ndarray) -> np.ndarray:
        """Points (P, 3) of bone ``index`` in its own frame, moved to the world."""
        # einsum, not @: BLAS threads cost more than they save here, and sum in another order on another machine
        turned = np.einsum("pj,ij->pi", points, (self.turn[index] * self.size[index]).astype(points.dtype))
        turned += self.place[index].astype(points.dtype)
        bent = self.curve.bend(turned) if self.bones[index].follows == RIBS else turned
        return np.einsum("pj,ij->pi", bent, self.facing.astype(points.dtype))


@dataclass
class Skeleton:
    """The loaded model. ``pose`` overwrites all that depends on the patient, so calls do not influence each other."""

    model: object
    data: object
    bones: tuple[Bone, ...]
    group: np.ndarray  # (bodies,)
    in_arm: np.ndarray  # (bodies,) bool: shoulder girdle and arms
    rest: dict[str, np.ndarray]
    couplings: tuple[tuple[int, int, np.ndarray], ...]  # joint, leading joint or -1, polynomial coefficients
    knees: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def pose(
        self,
        patient: Patient,
        angles: dict[str, float],
        curve: SpineCurve = STRAIGHT,
        arms: tuple[ArmAngles, ArmAngles] = (ArmAngles(), ArmAngles()),
    ) -> PosedSkeleton:
        """The skeleton of ``patient`` with ``angles`` of trunk and legs (radians, by MuJoCo name) and left, right arm.

        Angles beyond a joint's range stop at its end; coupled joints follow their polynomial. ``curve`` then displaces
        every vertebra, and with them ribs, shoulder girdle, arms and head. Raises KeyError for a joint that is
        unknown or part of an arm.
        """
        import mujoco

        model, data = self.model, self.data
        size = np.asarray(patient.scale)[self.group]
        model.body_pos[:] = self.rest["body_pos"] * size[model.body_parentid][:, None]
        model.geom_pos[:] = self.rest["geom_pos"] * size[model.geom_bodyid][:, None]
        model.jnt_pos[:] = self.rest["jnt_pos"] * size[model.jnt_bodyid][:, None]
        slide = model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE
        model.jnt_axis[slide] = self.rest["jnt_axis"][slide] * size[model.jnt_bodyid][slide][:, None]
        mujoco.mj_resetData(model, data)
        for name, value in angles.items():
            joint = model.joint(name).id
            if self.in_arm[model.jnt_bodyid[joint]]:
                raise KeyError(f"{name}: arms are posed by ArmAngles")
            data.qpos[model.jnt_qposadr[joint]] = np.clip(value, *model.jnt_range[joint])
        for joint, leader, polynomial in self.couplings:
            lead = 0.0 if leader < 0 else data.qpos[model.jnt_qposadr[leader]]
            value = np.polynomial.polynomial.polyval(lead, polynomial)
            data.qpos[model.jnt_qposadr[joint]] = np.clip(value, *model.jnt_range[joint])
        mujoco.mj_kinematics(model, data)
        return _assemble(self, patient, size, curve, arms)


@lru_cache(maxsize=1)
def load_skeleton() -> Skeleton:
    """myo-sim's full body, loaded once a process (about 3 s); legs and vertebrae are smoothed here."""
    model = _load_model()
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    # a shortcut for meshes that lie in their body's inertial frame: with it a changed geom_pos is not looked at
    model.geom_sameframe[:] = mujoco.mjtSameFrame.mjSAMEFRAME_NONE
    bodies = [model.body(b).name for b in range(model.nbody)]
    group = np.array([body_group(name) for name in bodies])
    in_arm = np.array([name.startswith("clavicle") for name in bodies])
    for body, parent in enumerate(model.body_parentid):  # parents come first
        in_arm[body] |= in_arm[parent]
    bones = []
    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH):
        bones.append(read_bone(model, int(geom), bodies, group, data.geom_xmat[geom].reshape(3, 3)))
    rest = {name: getattr(model, name).copy() for name in ("body_pos", "geom_pos", "jnt_pos", "jnt_axis")}
    equal = np.flatnonzero(model.eq_type == mujoco.mjtEq.mjEQ_JOINT)
    pairs = tuple((int(model.eq_obj1id[e]), int(model.eq_obj2id[e]), model.eq_data[e, :5].copy()) for e in equal)
    skeleton = Skeleton(model, data, tuple(bones), group, in_arm, rest, pairs)
    skull = next(bone for bone in bones if bone.name == "hat_skull")
    skeleton.rest["skull_turn"] = skeleton.data.geom_xmat[skull.geom].reshape(3, 3).copy()
    skeleton.knees = {side: _knee_surfaces(skeleton, side) for side in "lr"}
    return skeleton


def _load_model() -> object:
    """The MuJoCo model, loaded silently: MuJoCo's own warning handler writes MUJOCO_LOG.TXT into the working folder."""
    import mujoco
    import myo_sim

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return myo_sim.load_model("myofullbody")
    finally:
        mujoco.set_mju_user_warning(before)


def _knee_surfaces(skeleton: Skeleton, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Middle of the condyles' lowest points, and of the tibial plateau under them, in femur and tibia body frames."""
    data = skeleton.data
    cloud, frame = {}, {}
    for bone in skeleton.bones:
        for name in ("femur", "tibia"):
            if bone.name == f"{side}_{name}":
                turn = data.geom_xmat[bone.geom].reshape(3, 3)
                points = sample_surface(bone.vertices, bone.faces, 0.001).point.T
                cloud[name] = points @ turn.T + data.geom_xpos[bone.geom]
                frame[name] = data.xmat[bone.body].reshape(3, 3), data.xpos[bone.body]
    middle = frame["femur"][1][0]
    condyles, plateau = [], []
    for half in (-1, 1):
        near = cloud["femur"][(cloud["femur"][:, 0] - middle) * half > 0.01]
        lowest = near[near[:, 2] < near[:, 2].min() + 0.001].mean(axis=0)
        under = cloud["tibia"][np.hypot(*(cloud["tibia"] - lowest)[:, :2].T) < 0.006]
        condyles.append(lowest)
        plateau.append(under[under[:, 2] > under[:, 2].max() - 0.001].mean(axis=0))
    points = np.mean(condyles, axis=0), np.mean(plateau, axis=0)
    return tuple((p - place) @ turn for p, (turn, place) in zip(points, (frame["femur"], frame["tibia"]), strict=False))


def _assemble(
    skeleton: Skeleton, patient: Patient, body_size: np.ndarray, curve: SpineCurve, arms: tuple[ArmAngles, ArmAngles]
) -> PosedSkeleton:
    """Moves the arms, then bends the spine with all that hangs on it."""
    data, bones, model = skeleton.data, skeleton.bones, skeleton.model
    geoms = np.array([bone.geom for bone in bones])
    turn, place = data.geom_xmat[geoms].reshape(-1, 3, 3).copy(), data.geom_xpos[geoms].copy()
    size = body_size[[bone.body for bone in bones]]
    joints = _joint_centres(skeleton, body_size, turn, place)
    for left, arm in zip((True, False), arms, strict=True):
        pose_arm(bones, turn, place, size, joints, left, arm)
    curve, spine, cobb_deg = _bend_spine(bones, turn, place, joints, curve)
    angles = {
        model.joint(j).name: float(data.qpos[model.jnt_qposadr[j]]) for j in range(model.njnt) if model.jnt_limited[j]
    }
    return PosedSkeleton(
        bones, turn, place, size, patient, curve, joints * 1000, place[spine] * 1000, cobb_deg, angles
    )


def _bend_spine(
    bones: tuple[Bone, ...], turn: np.ndarray, place: np.ndarray, joints: np.ndarray, curve: SpineCurve
) -> tuple[SpineCurve, np.ndarray, float]:
    """Vertebrae, head and shoulder girdle moved in place as rigid bodies (ribs bend in ``world``).

    Returns the curve laid on this spine, the indices of T1 to L5 among the bones, and the Cobb angle in degrees.
    """
    follows = np.array([bone.follows for bone in bones])
    spine = np.flatnonzero(follows == VERTEBRA)
    spine = spine[np.argsort(-place[spine, 2])]  # T1 first
    curve = curve.on(place[spine])
    top = place[spine[0]].copy()
    for kind, moved in ((HEAD, slice(0, 5)), (GIRDLE, slice(5, 11))):
        rotation, shift = curve.rigid(top)
        chosen = follows == kind
        turn[chosen] = rotation @ turn[chosen]
        place[chosen] = (place[chosen] - top) @ rotation.T + top + shift
        joints[moved] = (joints[moved] - top) @ rotation.T + top + shift
    tilt = np.zeros(len(spine))
    for i, bone in enumerate(spine):
        rotation, shift = curve.rigid(place[bone], twist=True)
        tilt[i] = np.degrees(curve.tilt(place[bone, 2]))
        turn[bone], place[bone] = rotation @ turn[bone], place[bone] + shift
    return curve, spine, float(np.ptp(tilt))


def _joint_centres(skeleton: Skeleton, size: np.ndarray, turn: np.ndarray, place: np.ndarray) -> np.ndarray:
    """COCO-17 joint centres (17, 3) in metres before the spine is bent."""
    data, model = skeleton.data, skeleton.model
    joints = np.zeros((17, 3))
    skull = next(i for i, bone in enumerate(skeleton.bones) if bone.name == "hat_skull")
    upright = skeleton.rest["skull_turn"]
    joints[:5] = (_FACE * size[skeleton.bones[skull].body]) @ upright @ turn[skull].T + place[skull]
    for left, name in _CENTRES.items():
        for offset, side in enumerate("lr"):
            joints[left + offset] = data.xpos[model.body(f"{name}_{side}").id]
    for offset, side in enumerate("lr"):
        ends = []
        for name, point in zip(("femur", "tibia"), skeleton.knees[side], strict=False):
            body = model.body(f"{name}_{side}").id
            ends.append(data.xmat[body].reshape(3, 3) @ (point * size[body]) + data.xpos[body])
        joints[13 + offset] = np.mean(ends, axis=0)
    return joints
