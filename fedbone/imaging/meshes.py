"""Bone surfaces: smooth subdivision of coarse meshes, and the surface samples that a radiograph is summed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def _loop_once(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One step of Loop subdivision: (V, 3), (F, 3) to (V + E, 3), (4F, 3); the first V stay the old vertices.

    Edges with one or more than two faces are creases, so open and non-manifold meshes pass too.
    Source: C. Loop, Smooth subdivision surfaces based on triangles, 1987; the weights of Warren and Weimer.
    """
    n = len(vertices)
    sides = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    edges, edge_of, uses = np.unique(sides, axis=0, return_inverse=True, return_counts=True)
    edge_of = edge_of.reshape(-1)
    smooth = uses == 2
    opposite = np.zeros((len(edges), 3))
    np.add.at(opposite, edge_of, vertices[faces[:, [2, 0, 1]].reshape(-1)])
    ends = vertices[edges].sum(axis=1)
    middle = np.where(smooth[:, None], 0.375 * ends + 0.125 * opposite, 0.5 * ends)
    moved = _loop_old_vertices(vertices, edges, smooth)
    a, b, c = (n + edge_of.reshape(-1, 3)).T
    i, j, k = faces.T
    corners = [np.stack(t, axis=1) for t in ((i, a, c), (j, b, a), (k, c, b), (a, b, c))]
    return np.concatenate([moved, middle]), np.concatenate(corners)


def _loop_old_vertices(vertices: np.ndarray, edges: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    """Loop's new place of the old vertices (V, 3); a vertex on a crease uses only its crease edges."""
    n = len(vertices)
    total, valence = np.zeros((2, n, 3)), np.zeros((2, n))
    for kind in (0, 1):  # 0 crease edges, 1 smooth edges
        chosen = edges[smooth == bool(kind)]
        for one, other in ((0, 1), (1, 0)):
            np.add.at(total[kind], chosen[:, one], vertices[chosen[:, other]])
            valence[kind] += np.bincount(chosen[:, one], minlength=n)
    count = np.maximum(valence[1], 1)
    beta = np.where(valence[1] == 3, 3 / 16, 3 / (8 * count))[:, None]
    inner = (1 - count[:, None] * beta) * vertices + beta * total[1]
    crease = 0.75 * vertices + 0.125 * total[0]
    moved = np.where((valence[0] == 2)[:, None], crease, vertices)
    return np.where((valence[0] == 0)[:, None], inner, moved)


def smooth_mesh(vertices: np.ndarray, faces: np.ndarray, face_m2: float) -> tuple[np.ndarray, np.ndarray]:
    """Loop subdivision until the mean face is below ``face_m2``; corners keep their place, so no volume is lost."""
    corners = vertices[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    steps = max(int(np.ceil(np.log(area / len(faces) / face_m2) / np.log(4))), 0)
    control = vertices
    for _ in range(2 if steps else 0):  # move the control points until the smooth surface passes the old vertices
        surface = _subdivide(control, faces, min(steps, 2))[0][: len(vertices)]
        control = control + 0.7 * (vertices - surface)
    return _subdivide(control, faces, steps)


def pieces(faces: np.ndarray, n_vertices: int) -> np.ndarray:
    """A label for each face (F,): faces that share a vertex, directly or through others, share their label."""
    label = np.arange(n_vertices)
    while True:
        smallest = label[faces].min(axis=1)
        spread = label.copy()
        for k in range(3):
            np.minimum.at(spread, faces[:, k], smallest)
        if (spread == label).all():
            return label[faces[:, 0]]
        label = spread


def outer_faces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces (F', 3) that bound the solid: walls inside it, left over from joining surfaces, are dropped.

    A face is an inner wall if the generalised winding number just in front of it is above one half
    (Jacobson et al., Robust inside-outside segmentation using generalized winding numbers, 2013, eq. 5).
    """
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1), 1e-12)[:, None]
    front = (a + b + c) / 3 + 2e-4 * normal
    return faces[_winding(front, a, b, c) < 0.5]


def _winding(points: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Generalised winding number (P,) of triangles a, b, c (F, 3) around points (P, 3)."""
    p, q, r = (corner[None] - points[:, None] for corner in (a, b, c))
    lp, lq, lr = (np.linalg.norm(v, axis=2) for v in (p, q, r))
    volume = (p * np.cross(q, r)).sum(axis=2)
    below = lp * lq * lr + (p * q).sum(axis=2) * lr + (q * r).sum(axis=2) * lp + (r * p).sum(axis=2) * lq
    return np.arctan2(volume, below).sum(axis=1) / (2 * np.pi)


def _subdivide(vertices: np.ndarray, faces: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    for _ in range(steps):
        vertices, faces = _loop_once(vertices, faces)
    return vertices, faces


@dataclass(frozen=True)
class Samples:
    """Surface samples of one mesh in its own frame (metres): what a beam needs to know of the surface around a point.

    point (P, 3); area (P,) m2; flux (P, 6) m3: the symmetric part of the sum of (area x point x normal) in the order
    xx, yy, zz, yz, xz, xy, so that a beam along the unit vector b crosses b.flux.b / pixel area metres of bone there.
    """

    point: np.ndarray
    area: np.ndarray
    flux: np.ndarray


def sample_surface(vertices: np.ndarray, faces: np.ndarray, spacing: float) -> Samples:
    """Samples of a mesh with triangles of sides up to ``spacing`` metres; much finer faces are merged without loss."""
    corner, edge_1, edge_2 = vertices[faces[:, 0]], *(vertices[faces[:, k]] - vertices[faces[:, 0]] for k in (1, 2))
    normal = np.cross(edge_1, edge_2) / 2
    longest = np.linalg.norm([edge_1, edge_2, edge_2 - edge_1], axis=2).max(axis=0)
    parts = np.maximum(np.ceil(longest / spacing).astype(int), 1)
    points, normals = [np.zeros((0, 3))], [np.zeros((0, 3))]
    for count in np.unique(parts[parts > 1]):
        chosen = parts == count
        u, v = _barycentric(count)
        grid = corner[chosen, None] + edge_1[chosen, None] * u[:, None] + edge_2[chosen, None] * v[:, None]
        points.append(grid.reshape(-1, 3))
        normals.append(np.repeat(normal[chosen] / len(u), len(u), axis=0))
    single = _sum_samples(np.concatenate(points), np.concatenate(normals), None)
    fine = parts == 1
    centre = corner[fine] + (edge_1[fine] + edge_2[fine]) / 3
    merged = _sum_samples(centre, normal[fine], _cubes(centre, 0.4 * spacing))
    return Samples(*(np.concatenate(pair) for pair in zip(single, merged, strict=False)))


def _barycentric(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids of the count**2 equal triangles of a triangle, in edge coordinates."""
    i, j = np.meshgrid(np.arange(count), np.arange(count), indexing="ij")
    up, down = i + j < count, i + j < count - 1
    third = 1 / 3
    u = np.concatenate([(i[up] + third) / count, (i[down] + 2 * third) / count])
    v = np.concatenate([(j[up] + third) / count, (j[down] + 2 * third) / count])
    return u, v


def _cubes(point: np.ndarray, side: float) -> np.ndarray:
    """A number (P,) from 0 for the cube of a grid that each point lies in."""
    index = np.floor(point / side).astype(np.int64)
    index -= index.min(axis=0, initial=0)
    size = index.max(axis=0, initial=0) + 1
    return np.unique((index[:, 0] * size[1] + index[:, 1]) * size[2] + index[:, 2], return_inverse=True)[1]


def _sum_samples(point: np.ndarray, normal: np.ndarray, group: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Point, area and flux (float32) of samples, summed over each ``group`` (P,) if given; |normal| is the area."""
    area = np.linalg.norm(normal, axis=1) + 1e-15
    x, y, z = point.T
    nx, ny, nz = normal.T
    flux = [x * nx, y * ny, z * nz, (y * nz + z * ny) / 2, (x * nz + z * nx) / 2, (x * ny + y * nx) / 2]
    if group is not None:
        total = np.bincount(group, area)
        point = np.stack([np.bincount(group, area * axis) / total for axis in (x, y, z)], axis=1)
        area, flux = total, [np.bincount(group, f) for f in flux]
    return point.astype(np.float32), area.astype(np.float32), np.stack(flux, axis=1).astype(np.float32)
