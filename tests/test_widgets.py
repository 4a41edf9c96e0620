import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.dataset import FilmSet, HospitalData
from fedbone.teaching import widgets
from fedbone.teaching.dashboard import EDGES, PLACES, accuracy_colour, joint_words
from fedbone.teaching.plots import show
from fedbone.teaching.shapes import GROUND
from fedbone.teaching.widgets import Dashboard
from fedbone.teaching.workbook import execute, normalise
from tests.notebook_guards import problems

LEGS, FACE = ("left_knee", "right_knee", "left_ankle"), ("nose", "left_eye", "right_eye")
ROOT = Path(__file__).resolve().parents[1]


def hospital(name: str, labels: tuple[str, ...], joints: tuple[str, ...] = COCO_JOINTS, films: int = 5) -> HospitalData:
    points = np.zeros((films, len(joints), 3), np.float32)
    points[:, [joints.index(label) for label in labels], 2] = 2
    spacing, patients = np.ones((films, 2), np.float32), tuple(map(str, range(films)))
    some = FilmSet(np.zeros((films, 2, 2), np.uint8), points, spacing, patients)
    return HospitalData(name, joints, some, some)


def two(rounds: int = 4) -> Dashboard:
    return Dashboard([hospital("A", LEGS), hospital("B", FACE, films=7)], rounds)


def own(status: str = "took part", reason: str = "", **changes: object) -> dict:
    return {"status": status, "reason": reason, "weight": 0.5, "update_norm": 1.25, "loss": None, **changes}


def row(number: int, joints: dict | None = None, error_px: float | None = None, **hospitals: dict) -> dict:
    named = {"A": own(), "B": own(), **hospitals}
    return {"round": number, "hospitals": named, "per_joint": joints, "mre_px": error_px}


def texts(dashboard: Dashboard) -> list[str]:
    return [text.get_text() for axes in dashboard.figure().axes for text in axes.texts]


def page(dashboard: Dashboard) -> str:
    return dashboard.widget.children[0].value


class Reader(HTMLParser):
    """The visible words of a page, its tags, those left open, and the names of its pictures."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words, self.tags, self.open, self.labels = [], [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.labels += [value for name, value in attrs if name == "aria-label"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        if self.open[-1] != "style":
            self.words.append(data)


def test_edges_are_those_of_coco():
    published = [  # https://cocodataset.org/#format-data, person category: 1-based pairs
        (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9), (8, 10), (9, 11),
        (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
    ]  # fmt: skip
    assert {frozenset(COCO_JOINTS[i - 1] for i in pair) for pair in published} == set(map(frozenset, EDGES))
    assert set(PLACES) == set(COCO_JOINTS)


def test_the_patients_left_is_on_the_right_as_on_a_film():
    assert all(PLACES[name][0] > 0 for name in COCO_JOINTS if name.startswith("left"))


def test_before_the_first_round_nothing_is_measured_and_nobody_reported():
    shown = texts(two())
    assert "Before round 1 of 4" in shown
    assert shown.count("waiting") == 2
    assert {"knee –", "nose –", "hip ✕", "not measured yet"} <= set(shown)
    assert not [text for text in shown if "loss" in text]


def test_figure_and_page_tell_the_same():
    dashboard = two()
    dashboard.update(row(0, {"left_knee": 0.4}, 12.0))
    dashboard.update(row(1, None, None, A=own("refused", "norm 90", weight=0, update_norm=None), B=own(loss=0.75)))
    found = Reader(page(dashboard))
    spoken = "".join(found.words)
    for text in texts(dashboard):
        assert text in spoken, text
    assert {"knee 40 %", "✕ refused: norm 90", "loss: 0.75", "12 px"} <= set(texts(dashboard))
    assert not found.open


def test_a_loss_is_shown_only_where_it_was_released():
    dashboard = two()
    dashboard.update(row(0, B=own(loss=0.125)))
    losses = [text for text in texts(dashboard) if text.startswith("loss")]
    assert losses == ["loss: not released", "loss: 0.125"]
    dashboard.update(row(1, A=own("absent"), B=own(loss=None)))
    assert [text for text in texts(dashboard) if text.startswith("loss")] == ["loss: –", "loss: not released"]
    assert "0.125" not in page(dashboard)


def test_joints_keep_what_was_measured_last():
    dashboard = two()
    dashboard.update(row(0, {"left_knee": 0.25, "nose": 0.5}))
    dashboard.update(row(1, {"left_knee": 0.75, "nose": None}))
    dashboard.update(row(2))
    assert {"knee 75 %", "nose 50 %", "knee –", "hip ✕"} <= set(texts(dashboard))
    assert "accuracy measured after round 2" in dashboard.alt()


def test_alt_text_has_the_numbers_and_the_worst_joint_first():
    dashboard = two(rounds=3)
    dashboard.update(row(0, {"nose": 0.5, "left_knee": 0.25, "left_eye": 0.9}, 30.0))
    dashboard.update(row(1, None, 7.5, A=own("late", "over 60 s")))
    told = dashboard.alt()
    assert "Round 2 of 3: 1 of 2 hospitals took part" in told
    assert "worst first: left knee 25 %, nose 50 %, left eye 90 %." in told
    assert "30 px after round 1, 7.5 px after round 2" in told
    assert "A: late (over 60 s)" in told
    assert "took part in 1 of 2, 1 late" in told
    assert re.search(r"Not measured yet: [^.]*left ankle", told)
    assert re.search(r"Labelled by nobody: [^.]*left wrist", told)


@given(st.permutations(range(4)), st.lists(st.integers(0, 3)))
def test_order_and_repetition_of_rows_change_nothing(order, again):
    rows = [row(n, {"nose": n / 4}, 10.0 - n, B=own("late") if n == 2 else own()) for n in range(4)]
    straight, mixed = two(), two()
    for number in range(4):
        straight.update(rows[number])
    for number in (*order, *again):
        mixed.update(rows[number])
    assert mixed.alt() == straight.alt()


def test_a_row_that_changes_afterwards_is_not_ours():
    dashboard, given_row = two(), row(0)
    dashboard.update(given_row)
    given_row["hospitals"]["A"]["status"] = "late"
    assert "2 of 2 hospitals took part" in dashboard.alt()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (row(0, C=own()), "'C' is not one of its hospitals. It was made for 'A', 'B'"),
        (row(4), "round 4 is not one of 0 to 3"),
        (row(-1), "round -1"),
        (row(0, A=own("asleep")), "unknown status 'asleep'"),
        (row(0, {"tail": 0.5}), "'tail'"),
        (row(0, {"nose": 97.0}), "not in percent"),
    ],
)
def test_rows_of_another_federation_are_refused_whole(wrong, words):
    dashboard = two()
    with pytest.raises(ValueError, match=re.escape(words)):
        dashboard.update(wrong)
    assert "Before round 1" in dashboard.alt()


def test_a_dashboard_needs_hospitals_and_rounds():
    for hospitals, rounds in (([], 3), ([hospital("A", LEGS)], 0)):
        with pytest.raises(ValueError, match="at least one"):
            Dashboard(hospitals, rounds)


def test_names_and_reasons_are_text_and_never_markup():
    name, reason = '<script>A</script> "B" & $x^$', "<img src=x onerror=alert(1)>"
    dashboard = Dashboard([hospital(name, LEGS)], 2)
    dashboard.update({"round": 0, "hospitals": {name: own("failed", reason)}, "per_joint": None, "mre_px": None})
    found = Reader(page(dashboard))
    assert not {"script", "img"} & set(found.tags)
    assert name in found.words
    assert reason in "".join(found.words)
    assert {name, f"✕ failed: {reason}"} <= set(texts(dashboard))
    picture = show(dashboard.figure(), alt=dashboard.alt()).data  # as a formula "$x^$" would stop it
    assert picture.count("<") == 1


@pytest.mark.parametrize("name", ["W" * 400, "Klinikum " * 50, "a\n\tb"])
def test_long_names_stay_inside_their_card(name):
    dashboard = Dashboard([hospital(name, LEGS)], 2)
    assert all(text.get_clip_on() and "\n" not in text.get_text() for text in dashboard.figure().axes[1].texts)
    assert len(dashboard.alt()) < 1500
    assert "overflow-wrap: anywhere" in page(dashboard)


def test_no_words_leave_a_picture_at_full_accuracy():
    dashboard = Dashboard([hospital("A", COCO_JOINTS)], 2)
    hundred = {"round": 1, "hospitals": {"A": own()}, "per_joint": dict.fromkeys(COCO_JOINTS, 1.0), "mre_px": 123.456}
    dashboard.update(hundred)
    figure = dashboard.figure()
    renderer = FigureCanvasAgg(figure).get_renderer()
    body = {f"{joint.split('_')[-1]} 100 %" for joint in COCO_JOINTS}
    for axes in figure.axes:
        frame = axes.get_window_extent(renderer).padded(1)
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        for text, box in zip(axes.texts, boxes, strict=True):
            assert frame.x0 <= box.x0 <= box.x1 <= frame.x1, text.get_text()
            assert sum(box.overlaps(other) for other in boxes) == 1, text.get_text()
            if text.get_text() in body:
                discs = [patch.get_window_extent(renderer) for patch in axes.patches]
                assert not any(box.overlaps(disc) for disc in discs), text.get_text()


def test_colours_follow_accuracy_and_stay_ordered_in_grey():
    shades = [accuracy_colour(value / 10) for value in range(11)]
    assert len(set(shades)) == 11
    grey = [sum(w * int(s[i : i + 2], 16) for w, i in ((0.299, 1), (0.587, 3), (0.114, 5))) for s in shades]
    assert grey == sorted(grey)
    assert accuracy_colour(1) == accuracy_colour(1.0) != accuracy_colour(0)  # a whole number is a share too


def test_each_joint_has_the_colour_of_its_accuracy():
    dashboard = two()
    dashboard.update(row(0, {"nose": 0.1, "left_knee": 0.9}))
    fills = [patch.get_facecolor() for axes in dashboard.figure().axes for patch in axes.patches]
    shades = {"#" + "".join(f"{round(255 * part):02x}" for part in fill[:3]) for fill in fills}
    assert {accuracy_colour(0.1), accuracy_colour(0.9), GROUND.lower()} <= shades
    assert accuracy_colour(0.33) not in shades


def test_joints_that_coco_does_not_know_are_listed():
    dashboard = Dashboard([hospital("A", ("sella",), ("sella", "nasion", "menton"))], 2)
    dashboard.update({"round": 0, "hospitals": {"A": own()}, "per_joint": {"sella": 0.5}, "mre_px": None})
    assert {"sella 50 %", "nasion ✕", "menton ✕"} <= set(texts(dashboard))
    assert "labels: sella (1 of 3)" in texts(dashboard)


def test_joint_names_of_own_data_are_text_too():
    joint = 'a<b>"'
    dashboard = Dashboard([hospital("A", (joint,), (joint,))], 2)
    dashboard.update({"round": 0, "hospitals": {"A": own()}, "per_joint": {joint: 0.5}, "mre_px": None})
    found = Reader(page(dashboard))
    assert f"{joint} 50 %" in found.words
    assert f"{joint} 50 %" in found.labels[0]
    assert f"labels: {joint} (1 of 1)" in "".join(found.words)


def test_pairs_of_joints_become_one_word():
    assert joint_words(frozenset({"nose", "left_hip", "right_hip", "left_knee", "sella"})) == (
        "nose, hips, left knee, sella"
    )
    assert joint_words(frozenset()) == "none"


def test_many_updates_draw_seldom_and_the_last_is_always_drawn(monkeypatch):
    now, drawn = [0.0], []
    monkeypatch.setattr(widgets.time, "monotonic", lambda: now[0])
    dashboard = two(rounds=200)
    dashboard.widget.children[0].observe(lambda change: drawn.append(change.new), "value")
    for number in range(200):
        now[0] += 0.01  # 200 updates in two seconds: ten pictures at five a second
        dashboard.update(row(number))
    assert 5 <= len(drawn) <= 11
    dashboard.close()
    assert "Round 200 of 200" in drawn[-1]


def test_the_slider_goes_back_to_earlier_rounds():
    dashboard = two()
    for number in range(3):
        dashboard.update(row(number, {"nose": number / 4}))
    slider = dashboard.widget.children[1]
    assert slider.value == 3
    slider.value = 1
    assert "Round 1 of 4" in page(dashboard)
    assert "nose 0 %" in page(dashboard)
    slider.value = 0
    assert "Before round 1" in page(dashboard)
    dashboard.update(row(3))
    dashboard.close()
    assert "Round 4 of 4" in page(dashboard)


def test_figure_needs_no_widgets():
    code = (
        "import sys; from tests.test_widgets import two, row; d = two(); d.update(row(0)); d.figure(); d.alt(); "
        "d.close(); print('ipywidgets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_a_notebook_without_a_front_end_keeps_a_sentence_and_the_figure(tmp_path):
    cells = [
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tests.test_widgets import two, row\n"
        "from fedbone.teaching.plots import show\ndashboard = two()\ndashboard",
        "for number in range(4):\n    dashboard.update(row(number, {'nose': number / 4}))\ndashboard.close()",
        "show(dashboard.figure(), alt=dashboard.alt())",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    path = tmp_path / "00_dashboard.ipynb"
    nbformat.write(notebook, path)
    done = normalise(execute(path))
    assert done.cells[0].outputs[0].data == {"text/plain": widgets.IN_TEXT}
    assert not done.cells[1].outputs
    assert 'alt="Dashboard of a federation. Round 4 of 4' in done.cells[2].outputs[0].data["text/html"]
    found = " ".join(problems(json.dumps(done).encode()))
    assert "widget" not in found
    assert "alt" not in found
