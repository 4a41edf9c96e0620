"""The bone meshes of myo-sim's full body: cleaned, smoothed, and sorted by what they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedbone.imaging.meshes import outer_faces, pieces, smooth_mesh

GROUPS = ("trunk", "head", "arms", "pelvis", "legs")
_LEGS = ("femur", "tibia", "patella", "talus", "calcn", "toes")
_TRUNK = ("Full Body", "lumbar", "torso", "Abdomen", "head_attach", "neck", "Arm_att", "chest", "cervical", "myoarm")
_GIRDLE = ("clav", "scap")
_FACE_M2 = 8e-6  # mean face of a smoothed bone: edges of 4 mm on a smooth surface show no facets at 512 px
_RIB_VERTICES = range(45, 1000)  # the rib cage mesh also holds an emblem: one huge piece and flat ones of under 45
HEAD, GIRDLE, RIBS, VERTEBRA, STILL = range(5)  # how a bone follows the spine's curve


@dataclass(frozen=True)
class Bone:
    """One bone mesh in its own frame (metres); ``geom`` and ``body`` index MuJoCo's model."""

    name: str
    geom: int
    body: int
    group: int
    follows: int
    vertices: np.ndarray
    faces: np.ndarray

    @cached_property
    def corners(self) -> np.ndarray:
        """Corners (8, 3) of the box around the bone, in its own frame."""
        ends = self.vertices.min(axis=0), self.vertices.max(axis=0)
        return np.array([[ends[i][0], ends[j][1], ends[k][2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])


def body_group(body: str) -> int:
    """Index into GROUPS of a MuJoCo body, by its name."""
    if body.startswith(_LEGS):
        return GROUPS.index("legs")
    if body in ("sacrum", "pelvis", "myolegs_root"):
        return GROUPS.index("pelvis")
    if body == "head":
        return GROUPS.index("head")
    return GROUPS.index("trunk") if body.startswith(_TRUNK + _GIRDLE) else GROUPS.index("arms")


def read_bone(model: object, geom: int, bodies: list[str], group: np.ndarray) -> Bone:
    """The bone of one mesh geom: inner faces and emblems dropped, coarse faces smoothed."""
    mesh, body = int(model.geom_dataid[geom]), int(model.geom_bodyid[geom])
    name, owner = model.mesh(mesh).name, bodies[body]
    start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices = model.mesh_vert[start : start + count].astype(np.float64)
    faces = model.mesh_face[model.mesh_faceadr[mesh] :][: model.mesh_facenum[mesh]].astype(np.int64)
    if len(faces) < 1000:
        faces = outer_faces(vertices, faces)
    if "ribcage" in name:
        follows = RIBS
        faces = _without_emblem(vertices, faces)
    elif owner == "torso" or owner.startswith("lumbar"):
        follows = VERTEBRA
    elif owner in ("neck", "head"):
        follows = HEAD
    else:
        follows = GIRDLE if owner.startswith(_GIRDLE) or group[body] == GROUPS.index("arms") else STILL
    vertices, faces = smooth_mesh(vertices, faces, _FACE_M2)
    return Bone(name, geom, body, int(group[body]), follows, vertices, faces)


def _without_emblem(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces of ribs, cartilage and sternum only."""
    label = pieces(faces, len(vertices))
    bones = [piece for piece in np.unique(label) if len(np.unique(faces[label == piece])) in _RIB_VERTICES]
    return faces[np.isin(label, bones)]
