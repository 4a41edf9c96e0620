"""The ``evaluate`` command: what it scores and writes, for one model and for several, and what it refuses."""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest
from referencing import Registry, Resource

from fedbone import __main__ as shell
from fedbone.config import SAMPLE, get_profile
from fedbone.errors import UserError
from fedbone.federation import evaluation_command as command
from fedbone.federation.evaluation import evaluate, predict_all
from fedbone.imaging.coco import COCO_JOINTS
from fedbone.model.hrnet import build, load_model, save_model
from fedbone.vectors import sha256, to_vector
from tests.helpers import JOINTS, dot_hospital

HERE = Path(__file__).parent
HOSPITALS = [dot_hospital("a", (0, 1), 1), dot_hospital("b", (1, 2), 2)]
WRITTEN = ["evaluation.json", "gallery.jpg", "per_joint.csv"]


def validate(summary: dict) -> None:
    """Against tests/evaluation.schema.json, which refers to that of results.json."""
    schemas = {n: json.loads((HERE / n).read_text()) for n in ("evaluation.schema.json", "results.schema.json")}
    registry = Registry().with_resources([(name, Resource.from_contents(s)) for name, s in schemas.items()])
    jsonschema.Draft202012Validator(schemas["evaluation.schema.json"], registry=registry).validate(summary)


def weights(path: Path, heatmaps: int = 3, weights_seed: int = 0, **metadata) -> Path:
    about = {"joints": JOINTS, "size_px": 32, "sigma_px": 1.5, "seed": 0}
    return save_model(path, build("w8n", heatmaps, weights_seed), **(about | metadata))


def options(out: Path, *given: object, **changes) -> argparse.Namespace:
    values = {"weights": [str(one) for one in given], "data": None, "out": out, "all_films": False, "seed": None}
    return argparse.Namespace(**{**values, "split_by_file": False, "profile": "cpu", **changes})


@pytest.fixture
def dots(monkeypatch):
    """The command on films of dots in place of generated or own ones."""
    asked = []

    def load(args, profile):
        asked.append(args)
        return HOSPITALS, [UserError("film 3", "it is damaged", "Mend it")], profile

    monkeypatch.setattr(command, "load", load)
    return asked


def table(path: Path) -> list[dict]:
    return list(csv.DictReader(path.open()))


def test_one_model_is_scored_as_everywhere_else(dots, tmp_path, capsys):
    path = weights(tmp_path / "mine.safetensors")
    assert command.main(options(tmp_path / "out", path)) == 0
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    validate(summary)
    model, _ = load_model(path)
    expected = evaluate(predict_all(model, HOSPITALS, get_profile("cpu")), HOSPITALS)
    assert summary["models"]["mine"]["metrics"] == json.loads(json.dumps(expected))
    assert summary["models"]["mine"]["vector_sha256"] == sha256(to_vector(model))
    assert (summary["n_films"], summary["n_patients"]) == ({"a": 4, "b": 4}, {"a": 4, "b": 4})
    assert (summary["data"], summary["films"], summary["seed"], summary["left_out"]) == ("generated", "test", 0, 1)
    assert summary["matrix"] is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == WRITTEN
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "films: the workbook's generated test films; seed 0"
    assert "1 films or annotations were left out" in out
    assert "matrix" not in out


def test_per_joint_is_tidy_and_worst_first(dots, tmp_path):
    command.main(options(tmp_path / "out", weights(tmp_path / "mine.safetensors")))
    rows = table(tmp_path / "out" / "per_joint.csv")
    columns = "model hospital joint n_labels n_patients pck_0_05 mre_px mre_mm low_95 high_95".split()
    assert list(rows[0]) == columns
    assert {(row["hospital"], row["joint"]) for row in rows} == {
        ("a", "hip"), ("a", "knee"), ("b", "knee"), ("b", "ankle")
    }  # fmt: skip
    order = [(float(row["pck_0_05"]), -float(row["mre_px"])) for row in rows]
    assert order == sorted(order)
    metrics = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]["mine"]["metrics"]
    for row in rows:
        same = metrics["per_hospital"][row["hospital"]]["per_joint"][row["joint"]]
        assert (float(row["pck_0_05"]), int(row["n_labels"])) == (same["pck_0_05"], same["n"])
        assert float(row["mre_px"]) == pytest.approx(same["mre_px"])


def test_the_gallery_is_a_picture_of_every_film_there_is(dots, tmp_path):
    command.main(options(tmp_path / "out", weights(tmp_path / "mine.safetensors")))
    picture = cv2.imread(str(tmp_path / "out" / "gallery.jpg"))
    assert picture.shape[0] > 4 * 224  # six worst and two others, in pairs of films two to a row
    assert picture.shape[1] > 4 * 224


def test_several_models_make_a_matrix_and_their_ensemble_where_each_is_a_hospital_s(dots, tmp_path, capsys):
    paths = [weights(tmp_path / f"{name}.safetensors", weights_seed=n) for n, name in enumerate("ab")]
    assert command.main(options(tmp_path / "out", *paths)) == 0
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    validate(summary)
    assert list(summary["models"]) == ["a", "b", "ensemble"]
    assert summary["models"]["ensemble"]["vector_sha256"] is None
    rows = table(tmp_path / "out" / "matrix.csv")
    assert list(rows[0]) == ["trained_at", "tested_at", "pck_0_05", "mre_px", "low_95", "high_95"]
    assert [(r["trained_at"], r["tested_at"]) for r in rows] == [(m, h) for m in ("a", "b", "ensemble") for h in "ab"]
    for row in rows:
        same = summary["models"][row["trained_at"]]["metrics"]["per_hospital"][row["tested_at"]]
        assert float(row["pck_0_05"]) == same["pck_0_05"]
        assert [float(row["low_95"]), float(row["high_95"])] == same["interval_95"]["pck_0_05"]
    own = {
        name: summary["models"][name]["metrics"]["per_hospital"]["a"]["per_joint"]["hip"] for name in summary["models"]
    }
    assert own["ensemble"]["mre_px"] == pytest.approx(own["a"]["mre_px"])  # b does not label hips
    assert {row["model"] for row in table(tmp_path / "out" / "per_joint.csv")} == {"a", "b", "ensemble"}
    assert "of the model, by row, at the hospital, by column" in capsys.readouterr().out


def test_the_tables_carry_the_ends_of_each_interval(dots, tmp_path, monkeypatch):
    """A stand-in for the network that misses every joint of each hospital's first film and nothing else."""
    answers = {}
    for h in HOSPITALS:
        for number, (image, truth) in enumerate(zip(h.test.images, h.test.truth, strict=True)):
            answers[image.tobytes()] = truth + np.float32([30 * (number == 0), 0, -1.5])
    monkeypatch.setattr(command, "predict", lambda _, images, profile: np.stack([answers[i.tobytes()] for i in images]))
    command.main(options(tmp_path / "out", *(weights(tmp_path / f"{name}.safetensors") for name in "xy")))
    for file in ("matrix.csv", "per_joint.csv"):
        for row in table(tmp_path / "out" / file):
            assert (float(row["pck_0_05"]), float(row["mre_px"])) == (0.75, pytest.approx(7.5, abs=1e-4))
            assert 0 <= float(row["low_95"]) <= 0.5 < float(row["high_95"]) == 1


def test_models_of_other_names_make_no_ensemble_and_old_files_do_not_stay(dots, tmp_path):
    path = weights(tmp_path / "m.safetensors")
    command.main(options(tmp_path / "out", f"a={path}", f"new={path}"))
    assert {row["trained_at"] for row in table(tmp_path / "out" / "matrix.csv")} == {"a", "new"}
    command.main(options(tmp_path / "out", path))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == WRITTEN


def test_names_and_files(tmp_path):
    given = ["north=x/m.safetensors", "results/lr=1/model.safetensors", "plain.safetensors"]
    assert command.named_weights(given) == {
        "north": Path("x/m.safetensors"),
        "model": Path("results/lr=1/model.safetensors"),
        "plain": Path("plain.safetensors"),
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a/model.safetensors", "b/model.safetensors"], "two models are called 'model'"),
        (["=m.safetensors"], "does not give a name and a file"),
        (["north="], "does not give a name and a file"),
        (["ensemble=m.safetensors"], "does not give a name and a file"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(given, words):
    with pytest.raises(UserError, match=words) as refused:
        command.named_weights(given)
    assert "NAME=" in refused.value.remedy or "north=" in refused.value.remedy


def test_missing_weights_are_refused_and_nothing_is_written(dots, tmp_path):
    with pytest.raises(UserError, match="not a readable checkpoint"):
        command.main(options(tmp_path / "out", tmp_path / "none.safetensors"))
    assert not (tmp_path / "out").exists()
    assert not dots  # no film was read for it


@pytest.mark.parametrize(
    "metadata", [{"joints": None}, {"size_px": 33}, {"sigma_px": "wide"}, {"joints": ["hip", "knee"]}]
)
def test_weights_that_do_not_say_what_they_are_for_are_refused(dots, tmp_path, metadata):
    with pytest.raises(UserError, match=r"joints|names"):
        command.main(options(tmp_path / "out", weights(tmp_path / "m.safetensors", **metadata)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("joints", [("hip", "ankle", "knee"), ("hip", "knee"), (*JOINTS, "toe")])
def test_a_model_for_other_joints_is_refused(dots, tmp_path, joints):
    path = weights(tmp_path / "m.safetensors", len(joints), joints=joints)
    with pytest.raises(UserError, match=rf"3 joints, the model {len(joints)}; joint \d is") as refused:
        command.main(options(tmp_path / "out", path, data=tmp_path))
    assert "labelled" in refused.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("heatmaps", "changes", "words"),
    [(3, {"size_px": 64}, "films of 64 px, a of 32"), (2, {"joints": ("hip", "knee")}, "2 joints, a 3")],
)
def test_models_that_do_not_fit_each_other_are_refused(dots, tmp_path, heatmaps, changes, words):
    first, other = weights(tmp_path / "a.safetensors"), weights(tmp_path / "b.safetensors", heatmaps, **changes)
    with pytest.raises(UserError, match=words):
        command.main(options(tmp_path / "out", first, other))
    assert not dots


def test_a_hospital_without_labels_is_refused(tmp_path, monkeypatch):
    silent = replace(
        HOSPITALS[1], test=replace(HOSPITALS[1].test, keypoints=np.zeros_like(HOSPITALS[1].test.keypoints))
    )
    monkeypatch.setattr(command, "load", lambda args, profile: ([HOSPITALS[0], silent], [], profile))
    with pytest.raises(UserError, match="b: none of its 4 test films has a label"):
        command.main(options(tmp_path / "out", weights(tmp_path / "m.safetensors")))
    assert not (tmp_path / "out").exists()


def test_a_model_that_diverged_is_refused(dots, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "predict", lambda model, images, profile: np.full((len(images), 3, 3), np.nan))
    with pytest.raises(UserError, match="not finite"):
        command.main(options(tmp_path / "out", weights(tmp_path / "m.safetensors")))
    assert not (tmp_path / "out").exists()


def test_options_that_make_no_sense_are_refused_before_any_work(dots, tmp_path):
    path = weights(tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="models are trained on"):
        command.main(options(tmp_path / "out", path, all_films=True))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="expected a folder"):
        command.main(options(tmp_path / "file", path))
    assert (tmp_path / "file").read_text() == "mine"
    assert not dots


def test_the_split_is_that_of_the_training(dots, tmp_path):
    """Another seed would draw other test patients: the model would be tested on films it was trained on."""
    first, second = (weights(tmp_path / f"{name}.safetensors", seed=seed) for name, seed in (("a", 7), ("b", 8)))
    command.main(options(tmp_path / "out", first, data=tmp_path))
    assert (dots[0].seed, dots[0].size) == (7, 32)
    with pytest.raises(UserError, match="a: 7, b: 8"):
        command.main(options(tmp_path / "out", first, second, data=tmp_path))
    command.main(options(tmp_path / "out", first, second, data=tmp_path, seed=3))
    assert dots[-1].seed == 3
    command.main(options(tmp_path / "out", first, second))  # generated test films: nobody has seen any
    silent = weights(tmp_path / "c.safetensors", seed=None)
    with pytest.raises(UserError, match="c: None") as refused:
        command.main(options(tmp_path / "out", silent, data=tmp_path))
    assert "--seed" in refused.value.remedy


def test_all_films_are_those_of_both_sides_of_the_split(dots, tmp_path, capsys):
    path = weights(tmp_path / "m.safetensors")
    command.main(options(tmp_path / "out", path, data=tmp_path, all_films=True))
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    validate(summary)
    assert (summary["n_films"], summary["films"], summary["data"]) == ({"a": 12, "b": 12}, "all", "own")
    assert "all films: right only if no film was used for training" in capsys.readouterr().out


def test_the_progress_counts_every_film_of_every_model(dots, tmp_path):
    seen = []
    networks = command.load_networks({n: weights(tmp_path / f"{n}.safetensors") for n in ("x", "y")})
    found = command.predict_films(networks, HOSPITALS, get_profile("cpu"), lambda *row: seen.append(row))
    assert [row[:2] for row in seen] == [(4, 16), (8, 16), (12, 16), (16, 16)]
    assert seen[-1][2] == "y at b"
    assert found["x"]["a"].shape == (4, 3, 3)


def test_pieces_of_a_hospital_give_what_the_whole_gives(tmp_path):
    many = replace(HOSPITALS[0], test=HOSPITALS[0].train.take(np.arange(70) % 8))
    networks = command.load_networks({"x": weights(tmp_path / "x.safetensors")})
    found = command.predict_films(networks, [many], get_profile("cpu"), lambda *row: None)["x"]["a"]
    assert found == pytest.approx(predict_all(networks["x"].model, [many], get_profile("cpu"))["a"], abs=1e-4)
    assert found[:8] == pytest.approx(found[8:16], abs=1e-4)


def test_from_the_shell_on_a_folder_of_dicom_films(tmp_path, capsys):
    path = weights(tmp_path / "m.safetensors", len(COCO_JOINTS), joints=COCO_JOINTS)
    words = ["evaluate", "--weights", f"ours={path}", "--data", SAMPLE, "--out", tmp_path / "out", "--all-films"]
    assert shell.main([str(word) for word in words]) == 0
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    validate(summary)
    assert summary["n_films"] == {"hospital_a": 12, "hospital_b": 12, "hospital_c": 12}
    assert "worst hospital hospital_" in capsys.readouterr().out
    assert shell.main(["evaluate", "--weights", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert not (tmp_path / "o").exists()
