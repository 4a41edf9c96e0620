"""Shoulder girdle and arms, moved by joint angles of our own about centres and axes read off the bone meshes.

Each bone is turned rigidly: wrist, forearm rotation, elbow, humerus about its shaft, elevation at the shoulder, and a
shoulder girdle that follows the arm. Angles in radians; 0 everywhere is the arm hanging with the thumb to the front.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedbone.imaging.bones import Bone

# ranges of motion in radians: American Academy of Orthopaedic Surgeons, Joint motion, 1965
LIMITS = {
    "elevation": (0.0, 3.14), "plane": (-0.5, 2.3), "rotation": (-1.2, 1.6), "elbow": (0.0, 2.6),
    "pronation": (-1.4, 1.4), "wrist": (-1.2, 1.4),
}  # fmt: skip
SCAPULA_SHARE = 1 / 3  # of the arm's elevation: Inman, Saunders and Abbott, J Bone Joint Surg 26, 1944
CLAVICLE_SHARE = 0.12  # of it, up to 18 degrees in the frontal plane, with the scapula riding on it
_FINGERS = ("mc_", "proxph_", "midph_", "distph_", "thumb")
_CARPUS = ("lunate", "scaphoid", "pisiform", "triquetrum", "capitate", "trapezium", "trapezoid", "hamate")


@dataclass(frozen=True)
class ArmAngles:
    """One arm. elevation: of the humerus from hanging, in the plane turned by ``plane`` from sideways to the front;
    rotation: of the humerus outward about its shaft; elbow and wrist: flexion; pronation: thumb inward.
    """

    elevation: float = 0.0
    plane: float = 0.0
    rotation: float = 0.0
    elbow: float = 0.0
    pronation: float = 0.0
    wrist: float = 0.0

    def limited(self) -> ArmAngles:
        """The same with every angle stopped at the end of its range."""
        return ArmAngles(**{name: float(np.clip(getattr(self, name), *ends)) for name, ends in LIMITS.items()})


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) by ``angle`` radians about ``axis`` (3,) (Rodrigues)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


class _Chain:
    """Bones and joints of one arm, proximal to distal, turned in place."""

    def __init__(self, bones: tuple[Bone, ...], turn: np.ndarray, place: np.ndarray, joints: np.ndarray, left: bool):
        self.bones, self.turn, self.place, self.joints = bones, turn, place, joints
        self.shoulder, self.elbow, self.wrist = (5, 7, 9) if left else (6, 8, 10)
        names = [bone.name for bone in bones]
        end = "_l" if left else "_r"
        own = [i for i, name in enumerate(names) if name.endswith(end)]
        self.hand = [i for i in own if names[i].startswith(_CARPUS) or any(part in names[i] for part in _FINGERS)]
        self.clavicle, self.scapula, self.humerus, self.ulna, self.radius = (
            names.index(name + end) for name in ("clavicle", "scapula", "humerus", "ulna", "radius")
        )

    def points(self, bone: int, size: np.ndarray) -> np.ndarray:
        """Vertices (V, 3) of a bone where it stands now."""
        return self.bones[bone].vertices @ (self.turn[bone] * size[bone]).T + self.place[bone]

    def move(self, bones: list[int], joints: list[int], turn: np.ndarray, centre: np.ndarray) -> None:
        """Turn bones and joints about ``centre``."""
        self.turn[bones] = turn @ self.turn[bones]
        self.place[bones] = (self.place[bones] - centre) @ turn.T + centre
        self.joints[joints] = (self.joints[joints] - centre) @ turn.T + centre

    def shift(self, bones: list[int], joints: list[int], by: np.ndarray) -> None:
        """Carry bones and joints along."""
        self.place[bones] += by
        self.joints[joints] += by


def pose_arm(
    bones: tuple[Bone, ...],
    turn: np.ndarray,
    place: np.ndarray,
    size: np.ndarray,
    joints: np.ndarray,
    left: bool,
    angles: ArmAngles,
) -> None:
    """Move one arm from hanging to ``angles``, in place.

    turn (N, 3, 3), place (N, 3) metres and size (N,) of all bones; joints (17, 3) metres in COCO order. Angles beyond
    LIMITS stop there.
    """
    chain, angles, side = _Chain(bones, turn, place, joints, left), angles.limited(), 1.0 if left else -1.0
    hinge = _elbow_hinge(chain, size)
    medial, lateral = _clavicle_ends(chain, size, side)
    forearm, arm = [chain.ulna, chain.radius, *chain.hand], [chain.humerus, chain.ulna, chain.radius, *chain.hand]
    shaft = joints[chain.elbow] - joints[chain.shoulder]
    ulna_axis = joints[chain.wrist] - joints[chain.elbow]
    chain.move(chain.hand, [], rotation_about(side * np.array([0.0, -1.0, 0.0]), angles.wrist), joints[chain.wrist])
    around = rotation_about(side * ulna_axis, angles.pronation)
    chain.move([chain.radius, *chain.hand], [chain.wrist], around, joints[chain.elbow])
    chain.move(forearm, [chain.wrist], rotation_about(hinge, angles.elbow), joints[chain.elbow])
    outward = rotation_about(-side * shaft, angles.rotation)
    chain.move(arm, [chain.elbow, chain.wrist], outward, joints[chain.shoulder])
    up = np.array([side * np.cos(angles.plane), -np.sin(angles.plane), 0.0])
    raised = rotation_about(np.cross([0.0, 0.0, -1.0], up), angles.elevation)
    chain.move(arm, [chain.elbow, chain.wrist], raised, joints[chain.shoulder])
    _lift_girdle(chain, arm, medial, lateral, side, angles.elevation)


def _lift_girdle(
    chain: _Chain, arm: list[int], medial: np.ndarray, lateral: np.ndarray, side: float, elevation: float
) -> None:
    """Clavicle about its medial end, scapula about its joint with the clavicle; the arm rides along, not turned."""
    upward = np.array([0.0, -side, 0.0])
    before = chain.joints[chain.shoulder].copy()
    beyond = max(elevation - 0.5, 0.0)  # the first 30 degrees come from the arm alone
    scapula = rotation_about(upward, SCAPULA_SHARE * beyond)
    chain.move([chain.scapula], [chain.shoulder], scapula, lateral)
    clavicle = rotation_about(upward, CLAVICLE_SHARE * beyond)
    ride = (lateral - medial) @ clavicle.T + medial - lateral
    chain.move([chain.clavicle], [], clavicle, medial)
    chain.shift([chain.scapula], [chain.shoulder], ride)
    limb = [chain.elbow, chain.wrist]
    chain.shift(arm, limb, chain.joints[chain.shoulder] - before)


def _elbow_hinge(chain: _Chain, size: np.ndarray) -> np.ndarray:
    """Axis of elbow flexion (3,): through the epicondyles, the widest place of the humerus at the elbow."""
    points = chain.points(chain.humerus, size)
    near = points[np.abs(points[:, 2] - chain.joints[chain.elbow][2]) < 0.02 * size[chain.humerus]]
    flat = near[:, :2] - near[:, :2].mean(axis=0)
    x, y = np.linalg.svd(flat, full_matrices=False)[2][0]
    return np.array([-abs(x), -y * np.sign(x), 0.0])  # pointing to the patient's right, flexion brings the hand forward


def _clavicle_ends(chain: _Chain, size: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Medial and lateral end (3,) of the clavicle: the middle of its outermost 4 mm on either side."""
    points = chain.points(chain.clavicle, size)
    across = points[:, 0] * side
    near, far = points[across < across.min() + 0.004], points[across > across.max() - 0.004]
    return near.mean(axis=0), far.mean(axis=0)
