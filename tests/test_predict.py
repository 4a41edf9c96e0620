"""The joints of one film: back at the right pixel, drawn there, and bad inputs refused with nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file

from fedbone import __main__ as command
from fedbone.errors import UserError
from fedbone.imaging.dicom import read_film
from fedbone.imaging.frame import Frame, Spacing
from fedbone.model import predict as module
from fedbone.model.hrnet import build, save_model
from fedbone.model.overlay import Mark, draw, joint_colour
from fedbone.vectors import sha256, to_vector
from tests.dicom_cases import film, ramp, save

CASES = Path(__file__).parent / "dicom_cases"
FACTS = json.loads((CASES / "cases.json").read_text())
NAMES = ["nose", "left_hip", "right_hip"]
SIZE_PX = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    return save_model(path, build("w8n", len(NAMES)), joints=NAMES, size_px=SIZE_PX, sigma_px=1.5)


def run(path: Path, out: Path, *options: object) -> int:
    return command.main(["predict", str(path), "--out", str(out), *map(str, options)])


def mask(picture: np.ndarray, name: str) -> np.ndarray:
    """(H, W) bool: where the picture has the colour of a joint, up to the rim that blends with the film."""
    colour = np.array(list(bytes.fromhex(joint_colour(name)[1:])[::-1]))
    return np.abs(picture.astype(int) - colour).max(axis=2) < 40


def centroid(found: np.ndarray) -> tuple[float, float]:
    y, x = np.nonzero(found)
    return float(x.mean()), float(y.mean())


def dot(rows: int, cols: int, x: float, y: float, aspect: float) -> np.ndarray:
    """uint16 film with one bright dot, round in millimetres, at a pixel of the film."""
    yy, xx = np.mgrid[:rows, :cols]
    wide = max(rows * aspect, cols) / 20
    return np.round(4000 * np.exp(-((xx - x) ** 2 + ((yy - y) * aspect) ** 2) / (2 * wide**2))).astype(np.uint16)


def sees_the_dot(confidence: float):
    """A stand-in for the network: the centre of mass of the array it is given, for every joint."""

    def look(model: object, images: np.ndarray, profile: object) -> np.ndarray:
        light = images[0].astype(float)
        y, x = np.mgrid[: light.shape[0], : light.shape[1]]
        xy = [(light * x).sum() / light.sum(), (light * y).sum() / light.sum()]
        return np.tile(np.array([*xy, confidence], np.float32), (1, 1, 1))

    return look


FORMS = {
    "wide": (300, 611, 1.0),
    "tall": (611, 300, 1.0),
    "odd": (257, 251, 1.0),
    "high pixels": (250, 400, 2.0),
    "wide pixels": (500, 260, 0.5),
    "small": (90, 61, 1.0),
    "one column over": (65, 64, 1.0),
}


@pytest.mark.parametrize("sure", [True, False], ids=["filled", "hollow"])
@pytest.mark.parametrize("form", FORMS)
def test_a_dot_comes_back_at_its_own_pixel_and_is_marked_there(tmp_path, monkeypatch, form, sure):
    rows, cols, aspect = FORMS[form]
    x, y = 0.61 * cols, 0.36 * rows
    tags = {"WindowCenter": 2000, "WindowWidth": 4000, "ImagerPixelSpacing": [0.2 * aspect, 0.2]}
    path = save(tmp_path / "film.dcm", film(dot(rows, cols, x, y, aspect), BitsStored=12, **tags))
    one = save_model(tmp_path / "one.safetensors", build("w8n", 1), joints=["left_hip"], size_px=SIZE_PX)
    monkeypatch.setattr(module, "predict", sees_the_dot(0.9 if sure else 0.1))
    assert run(path, tmp_path / "o.png", "--json", tmp_path / "o.json", "--weights", one) == 0
    joint = json.loads((tmp_path / "o.json").read_text())["joints"][0]
    pixel = max(rows * aspect, cols) / SIZE_PX  # of the array, in columns of the film
    assert abs(joint["x_px"] - x) < 0.1 * pixel
    assert abs(joint["y_px"] - y) < 0.1 * pixel / aspect
    assert joint["x_mm"] == pytest.approx((joint["x_px"] + 0.5) * 0.2)
    assert joint["y_mm"] == pytest.approx((joint["y_px"] + 0.5) * 0.2 * aspect)
    picture = cv2.imread(str(tmp_path / "o.png"))
    assert picture.shape == (rows, cols, 3)
    reach = max(4, min(rows, cols) // 40)  # the name in the same colour stands farther away
    place = round(joint["x_px"]), round(joint["y_px"])
    left, top = place[0] - reach, place[1] - reach
    found = mask(picture, "left_hip")[top : place[1] + reach + 1, left : place[0] + reach + 1]
    marked = centroid(found)
    assert marked[0] + left == pytest.approx(joint["x_px"], abs=0.7)
    assert marked[1] + top == pytest.approx(joint["y_px"], abs=0.7)
    assert found[reach, reach] == sure  # the middle of a hollow mark shows the film


def test_the_picture_is_the_film_where_nothing_is_drawn(tmp_path, weights):
    path = save(tmp_path / "film.dcm", film(ramp(301, 420), BitsStored=12, WindowCenter=2048, WindowWidth=4096))
    assert run(path, tmp_path / "o.png", "--weights", weights) == 0
    picture = cv2.imread(str(tmp_path / "o.png"))
    same = np.abs(picture.astype(int) - (ramp(301, 420) / 4095 * 255)[..., None]).max(axis=2) <= 1
    assert same.mean() > 0.5


@pytest.mark.parametrize(("rows", "cols", "aspect"), [(500, 260, 0.5), (250, 400, 2.0)])
def test_pixels_that_are_not_square_keep_every_row_and_column(tmp_path, rows, cols, aspect):
    """Stripes one pixel wide, both ways, are still there in the picture."""
    y, x = np.mgrid[:rows, :cols]
    for stripes in (y % 2, x % 2):
        values = (stripes * 4000).astype(np.uint16)
        tags = {"WindowCenter": 2000, "WindowWidth": 4000, "ImagerPixelSpacing": [0.2 * aspect, 0.2]}
        path = save(tmp_path / "film.dcm", film(values, BitsStored=12, **tags))
        shown = module.picture(path, read_film(path, SIZE_PX).frame)
        assert np.abs(shown.astype(int) - stripes * 255).max() < 80  # softened: pixels were made square and back


def test_a_huge_film_is_scaled_down(tmp_path, monkeypatch, weights):
    monkeypatch.setattr(module, "LONGEST_PX", 300)
    path = save(tmp_path / "film.dcm", film(ramp(301, 900), BitsStored=12))
    assert run(path, tmp_path / "o.png", "--weights", weights, "--json", tmp_path / "o.json") == 0
    assert cv2.imread(str(tmp_path / "o.png")).shape == (100, 300, 3)
    joint = module.Joint("left_hip", 450, 150, None, None, 0.9, False, True)
    findings = module.Findings((joint,), 301, 900, "unknown", 0.4, "", ())
    marked = centroid(mask(module.overlay(np.zeros((100, 300), np.uint8), findings), "left_hip"))
    assert marked == pytest.approx((149.67, 49.5), abs=0.15)


@pytest.mark.parametrize("value", [0, 255])
def test_notice_legend_and_joints_read_on_dark_and_bright_films(value):
    """Contrast of at least 3 to 1 (WCAG 2.1, 1.4.11), and every joint is drawn, filled and hollow."""
    blank = np.full((400, 500), value, np.uint8)
    marks = [Mark("left_hip", 250, 100, True), Mark("right_hip", 250, 300, False), Mark("nose", 400, 200, True)]
    picture = draw(blank, marks, 0.4)
    for mark in marks:
        assert mask(picture, mark.name)[round(mark.y), round(mark.x)] == mark.sure
    changed = (picture != value).any(axis=2)
    plate = picture[260:, :200]
    assert changed.sum() > 2000
    light = cv2.cvtColor(plate, cv2.COLOR_BGR2GRAY).astype(float)
    luminance = (light / 255) ** 2.2
    assert (luminance.max() + 0.05) / (np.median(luminance[60:120, 40:120]) + 0.05) > 3


def test_names_neither_overlap_nor_leave_the_film(monkeypatch):
    written = []
    monkeypatch.setattr("fedbone.model.overlay._darken", lambda picture, box: written.append(box))
    marks = [Mark(f"left_joint_{i}", 200 + 3 * (i % 4), 195 + 3 * (i // 4), i % 2 == 0) for i in range(17)]
    draw(np.zeros((400, 400), np.uint8), marks, 0.4)
    assert len(written) == 18  # the legend's plate and a plate a name
    for number, a in enumerate(written):
        assert 0 <= a[0] < a[2] <= 400
        assert 0 <= a[1] < a[3] <= 400
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in written[:number])


@pytest.mark.parametrize("side", [300, 1500, 3000])
def test_text_stays_on_its_plate(monkeypatch, side):
    plates = []
    monkeypatch.setattr("fedbone.model.overlay._darken", lambda picture, box: plates.append(box))
    picture = draw(np.zeros((side, side), np.uint8), [Mark("right_shoulder", side / 2, side / 2, True)], 0.4)
    for left, top, right, bottom in plates:
        picture[top:bottom, left:right] = 0
    y, x = np.nonzero(picture.any(axis=2))
    assert np.hypot(x - side / 2, y - side / 2).max() < side / 40  # only the mark is left
    assert len(plates) == 2


# ---- what is printed and written


def test_lines_say_where_how_sure_and_in_which_millimetres(tmp_path, weights, monkeypatch, capsys):
    values = np.array([[[9.5, 9.5, 0.47], [31.5, 31.5, 0.2], [-9, 3, 0.9]]], np.float32)
    monkeypatch.setattr(module, "predict", lambda *_: values)
    kinds = {
        "detector": {"ImagerPixelSpacing": [0.5, 0.5]},
        "object": {"ImagerPixelSpacing": [0.6, 0.6], "EstimatedRadiographicMagnificationFactor": 1.2},
        "calibrated": {"PixelSpacing": [0.5, 0.5], "PixelSpacingCalibrationType": "FIDUCIAL"},
        "unknown": {},
    }
    for kind, tags in kinds.items():
        path = save(tmp_path / f"{kind}.dcm", film(ramp(128, 128), BitsStored=12, **tags))
        assert run(path, tmp_path / "o.png", "--weights", weights, "--json", tmp_path / "o.json") == 0
        nose, left, right, *rest = capsys.readouterr().out.splitlines()
        place = "unknown spacing" if kind == "unknown" else f"x   10.0  y   10.0 mm {kind}"
        assert nose == f"nose       x    19.5  y    19.5 px  {place}  confidence 0.470"
        assert left.endswith("confidence 0.200, below 0.40")
        assert right.endswith("confidence 0.900, beyond the film's edge")
        assert ("magnification" in rest[0]) == (kind in ("detector", "object"))
        assert rest[-1].startswith("not for diagnosis")
        written = json.loads((tmp_path / "o.json").read_text())
        assert written["spacing_kind"] == kind
        assert (written["joints"][0]["x_mm"] is None) == (kind == "unknown")
        assert [joint["below_threshold"] for joint in written["joints"]] == [False, True, False]
        assert [joint["on_film"] for joint in written["joints"]] == [True, True, False]
        assert written["threshold"] == 0.4
        assert written["notice"] == "not for diagnosis"
    model, _ = module.load_model(weights)
    assert written["model_sha256"] == sha256(to_vector(model))


def test_the_threshold_of_the_command_line_wins_even_if_it_is_0(tmp_path, weights, capsys):
    path = save(tmp_path / "film.dcm", film(ramp(), BitsStored=12))
    assert run(path, tmp_path / "o.png", "--weights", weights, "--threshold", "0") == 0
    assert "below" not in capsys.readouterr().out
    assert run(path, tmp_path / "o.png", "--weights", weights, "--threshold", "1") == 0
    assert capsys.readouterr().out.count("below 1.00") == len(NAMES)
    for text in ("1.1", "-0.1", "nan", "x"):
        with pytest.raises(SystemExit):
            run(path, tmp_path / "o.png", f"--threshold={text}")


def test_the_default_threshold_follows_the_spread_of_the_targets():
    """Against the 3 x 3 mass of Gaussians drawn at random places of a fine grid."""
    for sigma_px, expected in ((1.5, 0.40), (2.0, 0.26)):
        place = np.random.default_rng(0).uniform(-0.5, 0.5, (500, 2))
        axis = np.arange(-15, 16)
        mass = [np.exp(-((axis - p) ** 2) / (2 * sigma_px**2)) for p in place.T[..., None]]
        inner = np.prod([m[:, 14:17].sum(1) / m.sum(1) for m in mass], axis=0).mean()
        assert module.default_threshold(sigma_px) == expected
        assert expected == pytest.approx(0.86 * inner, abs=0.02)


def test_two_sure_joints_in_one_place_are_named():
    def joint(name: str, x: float, sure: bool = True) -> module.Joint:
        return module.Joint(name, x, 50.0, None, None, 0.5, not sure, True)

    frame = Frame(100, 200, SIZE_PX, Spacing(1, 1, "detector"))
    found = [joint("nose", 10), joint("left_eye", 11), joint("left_hip", 100), joint("left_ankle", 103)]
    assert module.same_places(found, frame) == (("left_hip", "left_ankle"),)
    found[3] = joint("left_ankle", 103, sure=False)
    assert module.same_places(found, frame) == ()
    found[3] = joint("left_ankle", 105)
    assert module.same_places(found, frame) == ()


def test_nothing_of_the_header_reaches_the_outputs(tmp_path, weights, capsys):
    path = save(tmp_path / "film.dcm", film(ramp(300, 300), BitsStored=12, StudyDescription="Roe^Richard"))
    assert run(path, tmp_path / "o.png", "--weights", weights, "--json", tmp_path / "o.json") == 0
    raw, text = (tmp_path / "o.png").read_bytes(), (tmp_path / "o.json").read_text() + "".join(capsys.readouterr())
    for secret in ("Doe", "Jane", "SECRET", "Roe", "film.dcm", str(tmp_path)):
        assert secret.encode() not in raw
        assert secret not in text
    kinds, at = [], 8
    while at < len(raw):
        kinds.append(raw[at + 4 : at + 8])
        at += 12 + int.from_bytes(raw[at : at + 4], "big")
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def test_doubts_about_the_film_are_said(tmp_path, weights, capsys):
    path = save(tmp_path / "film.dcm", film(ramp(), BitsStored=12, BurnedInAnnotation="YES"))
    assert run(path, tmp_path / "o.png", "--weights", weights) == 0
    assert "names may be readable in the picture" in capsys.readouterr().err


def test_the_command_imports_no_matplotlib(tmp_path, weights):
    code = (
        "import sys; from fedbone.__main__ import main; rc = main(); print('matplotlib' in sys.modules); sys.exit(rc)"
    )
    path = save(tmp_path / "film.dcm", film(ramp(), BitsStored=12))
    words = ["predict", path, "--out", tmp_path / "o.png", "--weights", weights]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


# ---- films of every kind


@pytest.mark.parametrize("name", FACTS)
def test_every_conformance_film_gives_a_picture_of_its_size_or_its_error(tmp_path, weights, name, capsys):
    path = CASES / f"{name}.dcm"
    code = run(path, tmp_path / "o.png", "--weights", weights)
    if "error" in FACTS[name]:
        assert code == 2
        assert re.search(FACTS[name]["error"], capsys.readouterr().err)
        assert list(tmp_path.iterdir()) == []
        return
    frame = read_film(path, SIZE_PX).frame
    assert code == 0
    assert cv2.imread(str(tmp_path / "o.png")).shape == (frame.rows, frame.cols, 3)


@pytest.mark.parametrize(
    "name", ["RG1_UNCR.dcm", "RG3_J2KR.dcm", "693_J2KI.dcm", "MR_small.dcm", "JPEGLSNearLossless_08.dcm"]
)
def test_real_films_of_bodies_that_the_network_never_saw(tmp_path, weights, name):
    path = Path(get_testdata_file(name))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    assert run(path, tmp_path / "o.png", "--weights", weights) == 0
    assert cv2.imread(str(tmp_path / "o.png")).shape == (header.Rows, header.Columns, 3)


def test_the_sample_weights_find_the_hips_of_a_sample_film(tmp_path, capsys):
    """With the defaults: within 5 % of the film's longer side of the first reader's labels."""
    labels = json.loads((module_sample() / "annotations.json").read_text())["annotations"][0]["keypoints"]
    assert run(module_sample() / "film_001.dcm", tmp_path / "o.png", "--json", tmp_path / "o.json") == 0
    joints = {joint["name"]: joint for joint in json.loads((tmp_path / "o.json").read_text())["joints"]}
    for number, name in ((11, "left_hip"), (12, "right_hip")):
        x, y, _ = labels[3 * number : 3 * number + 3]
        assert np.hypot(joints[name]["x_px"] - x, joints[name]["y_px"] - y) < 0.05 * 640
        assert not joints[name]["below_threshold"]
    assert capsys.readouterr().err == ""


def module_sample() -> Path:
    return Path(command.__file__).resolve().parents[1] / "data" / "sample" / "hospital_a"


# ---- bad inputs


def refused(tmp_path: Path, capsys, words: str, path: Path, out: Path, *options: object) -> None:
    """Exit code 2, one line, and not a file more than before."""
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert run(path, out, *options) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1, err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_bad_films(tmp_path, weights, capsys):
    out = tmp_path / "out" / "o.png"
    (tmp_path / "note.dcm").write_text("no film")
    whole = save(tmp_path / "whole.dcm", film(ramp(), BitsStored=12)).read_bytes()
    (tmp_path / "half.dcm").write_bytes(whole[: len(whole) // 2])
    shutil.copy(CASES / "multi_frame.dcm", tmp_path)
    words = {"missing": "cannot be read", "note": "not a DICOM file", "half": "cut short", "multi_frame": "2 frames"}
    for name, problem in words.items():
        refused(tmp_path, capsys, problem, tmp_path / f"{name}.dcm", out, "--weights", weights)
    refused(tmp_path, capsys, "it is a folder", tmp_path, out, "--weights", weights)


def test_bad_weights(tmp_path, capsys):
    path, out = save(tmp_path / "film.dcm", film(ramp(), BitsStored=12)), tmp_path / "o.png"
    (tmp_path / "text").write_text("no weights")
    save_model(tmp_path / "bare", build("w8n", 3))
    save_model(tmp_path / "odd", build("w8n", 3), joints=NAMES, size_px=100)
    save_model(tmp_path / "fewer", build("w8n", 3), joints=NAMES[:2], size_px=64)
    save_model(tmp_path / "colour", build("w8n", 3, in_channels=3), joints=NAMES, size_px=64)
    other = build("w8n", 3)
    other.final_layer = torch.nn.Conv2d(8, 5, 1)
    save_model(tmp_path / "other", other, joints=NAMES, size_px=64)
    lost = build("w8n", 3)
    torch.nn.init.constant_(lost.final_layer.weight, float("nan"))
    save_model(tmp_path / "nan", lost, joints=NAMES, size_px=64)
    words = {"nowhere": "not a readable checkpoint", "text": "not a readable checkpoint", "bare": "does not say"}
    words |= {"odd": "size of its input", "fewer": "2 names, 3 heatmaps", "colour": "3 input channels"}
    words |= {"other": "do not fit", "nan": "not finite"}
    for name, problem in words.items():
        refused(tmp_path, capsys, problem, path, out, "--weights", tmp_path / name)


def test_bad_targets(tmp_path, weights, capsys):
    path, out = save(tmp_path / "film.dcm", film(ramp(), BitsStored=12)), tmp_path / "o.png"
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.link(path, tmp_path / "hard.dcm")
    (tmp_path / "soft.dcm").symlink_to(path)
    copy = shutil.copy(weights, tmp_path)
    for target in (path, tmp_path / "hard.dcm", tmp_path / "soft.dcm", copy):
        refused(tmp_path, capsys, "overwrite", path, target, "--weights", copy)
        refused(tmp_path, capsys, "overwrite", path, out, "--weights", copy, "--json", target)
    refused(tmp_path, capsys, "overwrite", path, out, "--weights", weights, "--json", out)
    refused(tmp_path, capsys, "it is a folder", path, tmp_path / "folder", "--weights", weights)
    refused(tmp_path, capsys, "cannot be written", path, tmp_path / "file" / "o.png", "--weights", weights)
    refused(tmp_path, capsys, "cannot be written", path, out, "--weights", weights, "--json", tmp_path / "file" / "j")
    bad = tmp_path / "file" / "o.png"
    (tmp_path / "o.json").write_text("an older result stays")
    refused(tmp_path, capsys, "cannot be written", path, bad, "--weights", weights, "--json", tmp_path / "o.json")


def test_findings_are_data_too(weights):
    """The function behind the command, for a notebook: the same joints without any file written."""
    network = module.load_network(weights)
    findings, seen = module.find_joints(CASES / "bits_12.dcm", network, network.threshold)
    assert [joint.name for joint in findings.joints] == NAMES
    assert (findings.rows, findings.cols) == (seen.frame.rows, seen.frame.cols)
    with pytest.raises(UserError, match="missing"):
        module.find_joints(Path("missing.dcm"), network, 0.4)
