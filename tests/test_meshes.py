"""Surfaces: smoothing keeps the shape, walls inside and crumpled ends go, samples keep area and volume."""

from __future__ import annotations

import numpy as np
import pytest

from fedbone.imaging.meshes import outer_faces, outer_skin, sample_surface, smooth_mesh, sphere_samples


def icosphere(radius: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A sphere's vertices and faces by projected subdivision of an octahedron."""
    vertices = [np.array(v, float) for v in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))]
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    for _ in range(steps):
        split, middle = [], {}
        for face in faces:
            m = []
            for a, b in zip(face, face[1:] + face[:1], strict=True):
                key = (min(a, b), max(a, b))
                if key not in middle:
                    point = vertices[a] + vertices[b]
                    vertices.append(point / np.linalg.norm(point))
                    middle[key] = len(vertices) - 1
                m.append(middle[key])
            a, b, c = face
            split += [(a, m[0], m[2]), (b, m[1], m[0]), (c, m[2], m[1]), tuple(m)]
        faces = split
    return np.array(vertices) * radius, np.array(faces)


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


def test_smoothing_keeps_a_spheres_volume_and_rounds_it() -> None:
    vertices, faces = icosphere(30.0, 2)
    fine, triangles = smooth_mesh(vertices, faces, 4.0)
    assert len(triangles) > 4 * len(faces)
    radius = np.linalg.norm(fine, axis=1)
    assert radius.max() - radius.min() < 1.0
    assert radius.mean() == pytest.approx(30, rel=0.02)


def test_inner_walls_are_dropped() -> None:
    vertices, faces = icosphere(0.03, 2)
    wall = np.array([[0, 1, 2], [0, 2, 1], [0, 1, 4]])  # through the middle
    kept = outer_faces(vertices, np.concatenate([faces, wall]))
    assert {tuple(f) for f in kept} == {tuple(f) for f in faces}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_outer_skin_keeps_a_long_solid_and_hides_what_is_inside(axis: int) -> None:
    vertices, faces = icosphere(0.03, 4)
    vertices[:, axis] *= 3
    small, more = icosphere(0.01, 1)
    both = np.concatenate([vertices, small]), np.concatenate([faces, more[:, ::-1] + len(vertices)])
    skin, triangles = outer_skin(*both, 0.003)
    assert volume(skin, triangles) == pytest.approx(4 / 3 * np.pi * 0.03**3 * 3, rel=0.03)  # outward: positive
    assert np.abs(skin[:, axis]).max() == pytest.approx(0.09, rel=0.02)
    edges = np.sort(triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()  # closed


@pytest.mark.parametrize("spacing", [0.002, 0.02])
def test_samples_keep_area_and_volume_also_when_merged(spacing: float) -> None:
    samples = sample_surface(*icosphere(0.03, 4), spacing)
    assert samples.area.sum() == pytest.approx(4 * np.pi * 0.03**2, rel=0.02)
    assert np.abs(samples.normal.sum(axis=1)).max() < 1e-7
    for k in range(3):  # the flux through a closed surface along each axis is its volume
        assert samples.flux[k].sum() == pytest.approx(4 / 3 * np.pi * 0.03**3, rel=0.02)


def test_a_ball_is_sampled_evenly() -> None:
    ball = sphere_samples(2.0)
    assert np.linalg.norm(ball.point, axis=0) == pytest.approx(np.full(800, 2.0), rel=1e-5)
    assert np.abs(ball.point.mean(axis=1)).max() < 0.01
    assert ball.flux[:3].sum(axis=1) == pytest.approx(np.full(3, 4 / 3 * np.pi * 8), rel=0.01)
