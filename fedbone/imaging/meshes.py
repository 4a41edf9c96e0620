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

    point (3, P); area (P,) m2; normal (3, P) m2: sum of (area x unit normal); flux (6, P) m3: the symmetric part of the
    sum of (area x point x normal) in the order xx, yy, zz, yz, xz, xy. A ray along the unit vector b that counts depth
    from c metres behind the origin crosses (b.flux.b - c normal.b) / cross-section metres of bone there.
    """

    point: np.ndarray
    area: np.ndarray
    normal: np.ndarray
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
    return Samples(*(np.concatenate(pair, axis=-1) for pair in zip(single, merged, strict=True)))


def sphere_samples(radius: float, count: int = 800) -> Samples:
    """Samples of a sphere around the origin, spread evenly by the golden angle."""
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = np.arange(count) * np.pi * (3 - np.sqrt(5))
    unit = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], axis=1)
    return Samples(*_sum_samples(unit * radius, unit * (4 * np.pi * radius**2 / count), None))


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
    """The fields of Samples, float32, summed over each ``group`` (P,) if given; |normal| is the area."""
    area = np.linalg.norm(normal, axis=1) + 1e-15
    x, y, z = point.T
    nx, ny, nz = normal.T
    flux = [x * nx, y * ny, z * nz, (y * nz + z * ny) / 2, (x * nz + z * nx) / 2, (x * ny + y * nx) / 2]
    if group is not None:
        total = np.bincount(group, area)
        x, y, z = (np.bincount(group, area * axis) / total for axis in (x, y, z))
        nx, ny, nz = (np.bincount(group, axis) for axis in (nx, ny, nz))
        area, flux = total, [np.bincount(group, f) for f in flux]
    return tuple(np.array(v, np.float32) for v in ((x, y, z), area, (nx, ny, nz), flux))


def outer_skin(vertices: np.ndarray, faces: np.ndarray, step: float, angles: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A closed surface around a long mesh with crumpled or inner faces: slices every ``step`` metres across its long
    axis, in each the farthest wall seen from the slice's middle in ``angles`` directions.
    """
    axis = int(np.argmax(np.ptp(vertices, axis=0)))
    across = [i for i in range(3) if i != axis]
    low, high = vertices[:, axis].min() + step / 4, vertices[:, axis].max() - step / 4
    turn = 2 * np.pi * np.arange(angles) / angles
    direction = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    rings, corners = [], vertices[faces]
    for height in np.linspace(low, high, int((high - low) / step) + 1):
        start, end = _cut(corners[..., axis] - height, corners[..., across])
        length = np.linalg.norm(end - start, axis=1)
        middle = (length[:, None] * (start + end) / 2).sum(axis=0) / length.sum()
        ring = np.empty((angles, 3))
        ring[:, across] = middle + direction * _farthest(start - middle, end - middle, direction)[:, None]
        ring[:, axis] = height
        rings.append(ring)
    return _tube(np.stack(rings), flip=axis == 1)


def _cut(height: np.ndarray, corner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segments (N, 2) in which faces with corners (F, 3, 2) at heights (F, 3) cross height 0."""
    crossing = (height > 0).any(axis=1) & (height <= 0).any(axis=1)
    height, corner = height[crossing], corner[crossing]
    above = height > 0
    lone = np.where(above.sum(axis=1) == 1, above.argmax(axis=1), (~above).argmax(axis=1))  # one corner on its own side
    rows = np.arange(len(lone))
    ends = []
    for k in (1, 2):
        other = (lone + k) % 3
        share = height[rows, lone] / (height[rows, lone] - height[rows, other])
        ends.append(corner[rows, lone] + share[:, None] * (corner[rows, other] - corner[rows, lone]))
    return ends[0], ends[1]


def _farthest(start: np.ndarray, end: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Distance (A,) from the origin to the farthest of the segments (N, 2) in each direction (A, 2)."""

    def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]

    run, d = (end - start)[None], direction[:, None]
    slope = cross(d, run)
    slope = np.where(np.abs(slope) < 1e-15, 1e-15, slope)
    distance, share = cross(start[None], run) / slope, cross(start[None], d) / slope
    hit = (share >= 0) & (share <= 1) & (distance > 0)
    return np.where(hit, distance, 0).max(axis=1)


def _tube(rings: np.ndarray, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and outward faces of rings (R, A, 3), closed at both ends."""
    count, angles, _ = rings.shape
    vertices = np.concatenate([rings.reshape(-1, 3), rings[[0, -1]].mean(axis=1)])
    here = np.arange(count * angles).reshape(count, angles)
    beside = np.roll(here, -1, axis=1)
    a, b, c, d = here[:-1].ravel(), beside[:-1].ravel(), here[1:].ravel(), beside[1:].ravel()
    first, last = np.full(angles, count * angles), np.full(angles, count * angles + 1)
    sides = [(a, b, d), (a, d, c), (first, beside[0], here[0]), (last, here[-1], beside[-1])]
    faces = np.concatenate([np.stack(t, axis=1) for t in sides])
    return vertices, faces[:, ::-1] if flip else faces
