"""Path lengths of a point source's rays against solids of known size; no sampling pattern; bones where joints are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fedbone.imaging.bone_paths import _SPACING, Place, ball_path, bone_paths, ray_weights, splat
from fedbone.imaging.meshes import sample_surface
from fedbone.imaging.projection import Projection
from fedbone.imaging.skeleton import Patient, load_skeleton
from tests.test_meshes import icosphere


def film(width: float, pixels: int, source: tuple[float, float, float] = (0, -1, 0), gap: float = 0.1) -> Projection:
    """A square film behind the origin of the beam frame, with the source 1 m in front of it."""
    centre = np.array(source)
    half = width / 2 * (1 + gap)
    pitch = np.full(2, 2 * half / pixels)
    return Projection(centre, 1 + gap, 1.0, -half, half, pitch, pixels, pixels)


def chord(projection: Projection, radius: float, centre: np.ndarray) -> np.ndarray:
    """Exact metres of each pixel's ray inside a ball: analytic geometry of a line and a sphere."""
    columns, rows = np.meshgrid(np.arange(projection.cols), np.arange(projection.rows))
    x = projection.left + (columns + 0.5) * projection.pitch[0]
    z = projection.top - (rows + 0.5) * projection.pitch[1]
    y = np.full_like(x, projection.source[1] + projection.detector_m)
    ray = np.stack([x, y, z], axis=-1) - projection.source
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    to_centre = centre - projection.source
    nearest = (ray @ to_centre)[..., None] * ray - to_centre
    return 2 * np.sqrt(np.maximum(radius**2 - (nearest**2).sum(axis=-1), 0))


@pytest.mark.parametrize("pixels", [24, 48, 96])
@pytest.mark.parametrize("source", [(0, -1, 0), (0.25, -1, -0.3)])
@pytest.mark.parametrize("plane", [(0, 1, 0), (0.3, 1, -0.4)])
def test_path_through_a_sphere_is_its_chord(pixels: int, source: tuple, plane: tuple) -> None:
    projection = film(0.12, pixels, source)
    projection = Projection(**{**vars(projection), "left": projection.left - 0.1 * source[0]})
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    centre = np.array([0.004, 0.01, -0.006])
    sphere = sample_surface(*icosphere(0.04, 4), _SPACING * projection.pitch[0] / 1.1)
    normal = np.array(plane) / np.linalg.norm(plane)
    xy, solid, _ = ray_weights(sphere, Place(turn, centre, 1.0), normal, centre, projection)
    measured, exact = splat(xy, [solid], projection)[0], chord(projection, 0.04, centre)
    assert measured.sum() == pytest.approx(exact.sum(), rel=0.01)
    inside = exact > 0.06
    assert inside.sum() > 40
    assert np.abs(measured - exact)[inside].mean() < 0.03 * 0.08


def test_a_smaller_solid_of_the_same_mesh_is_scaled() -> None:
    projection = film(0.12, 64)
    sphere = sample_surface(*icosphere(0.04, 4), 0.002)
    xy, solid, area = ray_weights(
        sphere, Place(np.eye(3), np.zeros(3), 0.5), np.array([0, 1.0, 0]), np.zeros(3), projection
    )
    assert splat(xy, [solid], projection)[0].sum() == pytest.approx(
        chord(projection, 0.02, np.zeros(3)).sum(), rel=0.01
    )
    shadow = splat(xy, [area], projection)[0].sum() * projection.pitch.prod() / 1.1**2
    assert shadow == pytest.approx(4 * np.pi * 0.02**2, rel=0.02)


def test_balls_have_their_volume_and_place() -> None:
    projection = film(0.12, 120, (0.03, -1, 0.01))
    centres = np.array([[0.02, 0.03, 0.01], [-0.03, -0.02, -0.02]])
    path = ball_path(centres, 0.003, projection)
    exact = sum(chord(projection, 0.003, centre) for centre in centres)
    assert path.sum() == pytest.approx(exact.sum(), rel=0.05)
    y, x = np.mgrid[:120, :120]
    for centre in centres:
        column, row = projection.to_pixels(centre)
        near = np.where(np.hypot(x - column, y - row) < 8, path, 0)
        assert [(near * axis).sum() / near.sum() for axis in (x, y)] == pytest.approx([column, row], abs=0.05)


def test_flat_bone_shows_no_dot_pattern() -> None:
    """A slanted plate has the same path nearly everywhere; what the render's blur leaves of it is sampling pattern."""
    half = 0.06
    corners = np.array([(x, y + 0.3 * x, z) for y in (-0.005, 0.005) for x in (-half, half) for z in (-half, half)])
    quads = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    cos, sin = np.cos(0.35), np.sin(0.35)  # samples in line with the pixels would be a special case
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    projection = film(0.064, 64)
    samples = sample_surface(corners, faces, _SPACING * projection.pitch[0] / 1.1)
    xy, solid, _ = ray_weights(samples, Place(turn, np.zeros(3), 1.0), np.array([0, 1.0, 0]), np.zeros(3), projection)
    path = np.abs(splat(xy, [solid], projection)[0])
    path = cv2.GaussianBlur(path, (0, 0), 0.6)[8:-8, 8:-8]
    assert path.mean() == pytest.approx(0.010, rel=0.02)
    assert path.std() < 0.012 * path.mean()


def test_a_sample_on_the_very_border_is_no_error() -> None:
    projection = film(0.1, 32)
    ends = np.float32([-1.0, 31.999998, 32.0, 0.0])
    total = splat(np.stack([ends, ends]), [np.ones(4, np.float32)], projection)[0]
    assert total.sum() <= 2


@pytest.fixture(scope="module")
def hips() -> tuple[Projection, np.ndarray, np.ndarray, np.ndarray]:
    posed = load_skeleton().pose(Patient(), {})
    joints = posed.joints_mm / 1000
    centre = joints[11:13].mean(axis=0)
    source = centre - [0, 1.0, 0]
    projection = Projection(source, 1.15, 1.0, centre[0] - 0.23, centre[2] + 0.23, np.full(2, 0.46 / 160), 160, 160)
    return projection, *bone_paths(posed, projection), joints


def test_bone_surrounds_the_hips_and_none_lies_between_the_legs(hips) -> None:
    projection, cortical, spongy, joints = hips
    for x, y in projection.to_pixels(joints[11:13]):
        disc = (spongy + cortical)[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5]
        assert disc.min() > 0.02  # metres: a femoral head is 45 mm across
    x, y = projection.to_pixels(joints[11:13].mean(axis=0))
    assert spongy[int(y) + 55, int(x)] < 1e-4
    assert cortical[int(y) + 55, int(x)] < 1e-4


def test_a_shaft_is_a_tube_of_cortex_around_marrow(hips) -> None:
    projection, cortical, spongy, joints = hips
    across = projection.to_pixels(joints[11] + [0, 0, -0.16])[1]
    row = slice(int(across) - 1, int(across) + 2)
    profile, inner = cortical[row, 80:].mean(axis=0), spongy[row, 80:].mean(axis=0)
    wall = np.flatnonzero(profile > 0.5 * profile.max())
    middle = (wall.min() + wall.max()) // 2
    assert profile[middle] < 0.8 * profile[wall].max()  # two bright lines
    assert inner[middle] > 0.9 * inner.max()
    assert 0.006 < profile[middle] < 0.02  # front and back wall of a femur, metres
