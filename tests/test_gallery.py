"""The gallery: what is drawn where, on both films of a pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedbone.model.gallery import GAP_PX, STRIP_PX, TILE_PX, Case, gallery
from fedbone.model.overlay import joint_colour

NAMES = ("nose", "left_hip", "right_hip")
TOP = GAP_PX + STRIP_PX  # of a film in the first row


def case(side: int = 64) -> Case:
    """Hips labelled, found 12 px (of 64) to the right of the label, the left one surely; the nose is not labelled."""
    unit = side / 64
    labelled = np.array([[0, 0, 0], [16 * unit, 40 * unit, 2], [40 * unit, 20 * unit, 2]], np.float32)
    predicted = np.array([[5, 5, 0.9], [28 * unit, 40 * unit, 0.8], [52 * unit, 20 * unit, 0.3]], np.float32)
    return Case(np.zeros((side, side), np.uint8), labelled, predicted, NAMES, 0.5, "worst: a film")


def films(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels' film and the prediction's of the first pair."""
    rows = picture[TOP : TOP + TILE_PX]
    return rows[:, GAP_PX : GAP_PX + TILE_PX], rows[:, GAP_PX + TILE_PX : GAP_PX + 2 * TILE_PX]


def centre(film: np.ndarray, name: str) -> tuple[float, float]:
    """Middle of the box around everything of a joint's colour."""
    colour = np.array(list(bytes.fromhex(joint_colour(name)[1:])[::-1]))
    y, x = np.nonzero(np.abs(film.astype(int) - colour).max(axis=2) < 40)
    return (x.min() + x.max()) / 2, (y.min() + y.max()) / 2


@pytest.mark.parametrize("side", [64, 448])
def test_labels_and_findings_stand_at_their_places_on_their_own_films(side):
    given = case(side)
    left, right = films(gallery([given]))
    for k in (1, 2):
        for film, points in ((left, given.labelled), (right, given.predicted)):
            expected = (points[k, :2] + 0.5) * TILE_PX / side - 0.5
            assert centre(film, NAMES[k]) == pytest.approx(expected, abs=1.5)


def test_a_line_leads_from_what_was_found_to_its_label():
    left, right = films(gallery([case()]))
    scale = TILE_PX / 64
    x, y = round(22.5 * scale - 0.5), round(40.5 * scale - 0.5)  # half way
    assert right[y - 2 : y + 3, x].max() > 150  # smoothed over two rows
    assert not left[y - 2 : y + 3, x].any()


def test_a_joint_without_a_label_is_drawn_on_neither_film():
    given = case()
    for film in films(gallery([given])):
        part = film[:40, :60]  # where the nose was "found"
        assert not part.any()


def test_sure_joints_are_filled_and_labels_are_rings():
    left, right = films(gallery([case()]))
    middle = [round((v + 0.5) * TILE_PX / 64 - 0.5) for v in (52, 20)]  # of the unsure one
    blue, orange = (np.array(list(bytes.fromhex(joint_colour(n)[1:])[::-1])) for n in ("right_hip", "left_hip"))
    assert np.abs(left[round(40.5 * 3.5), round(16.5 * 3.5)].astype(int) - orange).max() > 40
    assert np.abs(right[middle[1] + 2, middle[0] + 1].astype(int) - blue).max() > 40
    sure = [round((v + 0.5) * TILE_PX / 64 - 0.5) for v in (28, 40)]
    assert np.abs(right[sure[1] + 2, sure[0] + 1].astype(int) - orange).max() < 40


@pytest.mark.parametrize(("films", "rows"), [(1, 1), (2, 1), (3, 2)])
def test_rows_are_filled_and_the_last_one_padded(films, rows):
    picture = gallery([case()] * films)
    high, wide = GAP_PX + STRIP_PX + TILE_PX, GAP_PX + 2 * TILE_PX
    assert picture.shape[1] == 2 * wide
    assert picture.shape[0] - rows * high in range(40)  # and one line of explanation
    last = picture[-high - 20 : -60, wide:]
    assert last.any() == (films % 2 == 0)


def test_the_title_of_each_pair_is_its_own():
    one, other = gallery([case()]), gallery([replace(case(), title="ordinary: a film")])
    changed = np.nonzero((one != other).any(axis=(1, 2)))[0]
    assert changed.min() >= GAP_PX
    assert changed.max() < TOP
