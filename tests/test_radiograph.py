"""Radiographs: path lengths against solids of known size, no sampling pattern, bones where the joints say they are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fedbone.imaging.meshes import outer_faces, sample_surface, smooth_mesh
from fedbone.imaging.radiograph import _SPACING, View, _splat, bone_maps, to_grey
from fedbone.imaging.sites import render
from fedbone.imaging.skeleton import Patient, load_skeleton


def icosphere(radius: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A sphere's vertices and faces by projected subdivision of an octahedron."""
    vertices = [np.array(v, float) for v in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))]
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    for _ in range(steps):
        split, middle = [], {}
        for face in faces:
            m = []
            for a, b in zip(face, face[1:] + face[:1], strict=False):
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


def sphere_path(px: float, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(measured, exact) path lengths in mm through a turned 40 mm sphere, (64, 64)."""
    samples = sample_surface(*icosphere(40.0, 4), _SPACING * px)
    view = View(-32 * px, 32 * px, 64 * px, 64 * px, 64, 64)
    b = turn[1]
    form = np.array([b[0] ** 2, b[1] ** 2, b[2] ** 2, 2 * b[1] * b[2], 2 * b[0] * b[2], 2 * b[0] * b[1]])
    xy = view.to_pixels(samples.point @ turn.T)
    measured = _splat(xy[:, 0], xy[:, 1], [samples.flux @ form], view)[0] / px**2
    centre = (np.arange(64) - 31.5) * px
    exact = 2 * np.sqrt(np.maximum(40.0**2 - centre[None] ** 2 - centre[:, None] ** 2, 0))
    return measured, exact


@pytest.mark.parametrize("px", [1.5, 3.0, 5.0])
def test_path_through_a_sphere_is_its_chord(px: float) -> None:
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    measured, exact = sphere_path(px, turn)
    assert measured.sum() * px**2 == pytest.approx(4 / 3 * np.pi * 40**3, rel=0.01)
    inside = exact > 60
    assert np.abs(measured - exact)[inside].mean() < 0.03 * 80


def test_flat_bone_shows_no_dot_pattern() -> None:
    """A slanted plate has the same path everywhere; what is left after the render's blur is sampling pattern."""
    corners = np.array([(x, y + 0.3 * x, z) for y in (-5.0, 5.0) for x in (-60, 60) for z in (-60, 60)], float)
    quads = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    cos, sin = np.cos(0.35), np.sin(0.35)  # samples in line with the pixels would be a special case
    corners = corners @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    view = View(-32, 32, 64, 64, 64, 64)
    samples = sample_surface(corners, faces, _SPACING)
    xy = view.to_pixels(samples.point)
    path = np.abs(_splat(xy[:, 0], xy[:, 1], [samples.flux[:, 1]], view)[0])
    path = cv2.GaussianBlur(path, (0, 0), 0.6)[8:-8, 8:-8]
    assert path.mean() == pytest.approx(10, rel=0.02)
    assert path.std() < 0.012 * path.mean()


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


def test_bone_surrounds_the_hips_and_none_lies_between_the_legs() -> None:
    posed = load_skeleton().pose(Patient(), {})
    hips = posed.joints_mm[11:13] / 1000
    view = View(hips[:, 0].mean() - 0.2, hips[0, 2] + 0.2, 0.4, 0.4, 160, 160)
    solid, shell = bone_maps(posed, view)
    for x, y in view.to_pixels(hips):
        disc = solid[int(y) - 5 : int(y) + 6, int(x) - 5 : int(x) + 6]
        assert disc.min() > 0.02  # metres: a femoral head is 45 mm across
    x, y = view.to_pixels(hips.mean(axis=0))
    assert solid[int(y) + 55, int(x)] < 1e-4
    assert shell[int(y) + 55, int(x)] < 1e-4


def test_to_grey_is_bone_bright_and_clips() -> None:
    film = np.array([[0.0, 1.0, 2.0, 3.0, 9.0]])
    assert to_grey(film, (1.0, 3.0)).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("hospital", ["hospital_a", "hospital_b", "hospital_c"])
def test_films_have_noise_of_quanta_and_use_the_grey_range(hospital: str) -> None:
    exposure = render(hospital, 5, 3, (128, 104), (640, 520))
    grey = to_grey(exposure.film, exposure.limits)
    assert np.isfinite(exposure.film).all()
    assert (grey == 255).mean() < 0.02
    assert grey.max() > 230
    assert len(np.unique(grey)) > 150
