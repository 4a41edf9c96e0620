"""The bone meshes of myo-sim's full body: cleaned, smoothed, and sorted by what they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedbone.imaging.meshes import outer_faces, outer_skin, pieces, smooth_mesh

GROUPS = ("trunk", "head", "arms", "pelvis", "legs")
_LEGS = ("femur", "tibia", "patella", "talus", "calcn", "toes")
_TRUNK = ("Full Body", "lumbar", "torso", "Abdomen", "head_attach", "neck", "Arm_att", "chest", "cervical", "myoarm")
_GIRDLE = ("clav", "scapula", "scapphant")
_LONG = {  # long bones: cortex in metres at mid-shaft
    "femur": 0.0065, "tibia": 0.0055, "fibula": 0.003, "humerus": 0.0045, "radius": 0.0028, "ulna": 0.003,
}  # fmt: skip
_END_CORTEX_M = 0.0008  # and at the ends
_FACE_M2 = 8e-6  # mean face of a smoothed bone: edges of 4 mm on a smooth surface show no facets at 512 px
_RIB_VERTICES = range(45, 1000)  # the rib cage mesh also holds an emblem: one huge piece and flat ones of under 45
HEAD, GIRDLE, RIBS, VERTEBRA, STILL = range(5)  # how a bone follows the spine's curve


@dataclass(frozen=True)
class Bone:
    """One bone mesh in its own frame (metres); ``geom`` and ``body`` index MuJoCo's model.

    marrow: vertices of the surface under the cortex of a long bone, with the same faces; None: a thin shell all over.
    """

    name: str
    geom: int
    body: int
    group: int
    follows: int
    vertices: np.ndarray
    faces: np.ndarray
    marrow: np.ndarray | None

    @cached_property
    def axis(self) -> tuple[np.ndarray, np.ndarray]:
        """Middle (3,) and long axis (3,), a unit vector, in its own frame."""
        middle = self.vertices.mean(axis=0)
        return middle, np.linalg.svd(self.vertices - middle, full_matrices=False)[2][0]

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


def read_bone(model: object, geom: int, bodies: list[str], group: np.ndarray, upright: np.ndarray) -> Bone:
    """The bone of one mesh geom: inner faces and emblems dropped, coarse faces smoothed.

    upright (3, 3): turns the mesh as it stands in the resting body.
    """
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
    if name.startswith("sacrum"):
        vertices = _tilt_sacral_base(vertices @ upright.T) @ upright
    vertices, faces = smooth_mesh(vertices, faces, _FACE_M2)
    if name.endswith("_tibia"):  # its lower end has walls within walls
        vertices, faces = outer_skin(vertices, faces, 0.003)
    cortex = next((thick for part, thick in _LONG.items() if part in name), None)
    marrow = None if cortex is None else _marrow(vertices, faces, cortex)
    return Bone(name, geom, body, int(group[body]), follows, vertices, faces, marrow)


def _tilt_sacral_base(vertices: np.ndarray) -> np.ndarray:
    """Upright vertices (V, 3) of the sacrum with its flat, level top made a promontory with sloping wings.

    The top of the mesh lies in the beam's plane and would show as one bright line. A sacral slope of about 40 degrees
    is normal: Legaye et al., Eur Spine J 7, 1998.
    """
    x, y, z = vertices.T
    middle = (y[z > z.max() - 0.012].min() + y[z > z.max() - 0.012].max()) / 2
    top = np.clip((z - (z.max() - 0.05)) / 0.05, 0, 1) ** 2
    wings = np.maximum(np.abs(x - x.mean()) - 0.024, 0)
    lowered = 0.75 * np.clip(middle - y, -0.006, 0.02) + 0.55 * wings
    return vertices - np.stack([0 * x, 0 * y, top * lowered], axis=1)


def _marrow(vertices: np.ndarray, faces: np.ndarray, cortex_m: float) -> np.ndarray:
    """The surface (V, 3) under the cortex: thick along the shaft, thin at both ends of the bone's long axis."""
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outward = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(outward, faces[:, k], normal)
    outward /= np.maximum(np.linalg.norm(outward, axis=1), 1e-12)[:, None]
    centred = vertices - vertices.mean(axis=0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    along = (along - along.min()) / np.ptp(along)
    rise = np.clip(np.minimum(along, 1 - along) / 0.3, 0, 1)
    shaft = rise * rise * (3 - 2 * rise)
    return vertices - outward * (_END_CORTEX_M + (cortex_m - _END_CORTEX_M) * shaft)[:, None]


def _without_emblem(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces of ribs, cartilage and sternum only."""
    label = pieces(faces, len(vertices))
    bones = [piece for piece in np.unique(label) if len(np.unique(faces[label == piece])) in _RIB_VERTICES]
    return faces[np.isin(label, bones)]
