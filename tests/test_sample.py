"""The committed sample: its films, labels and weights belong to the code beside them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fedbone.config import SAMPLE, WEIGHTS, get_profile
from fedbone.federation.evaluation import evaluate, predict_all
from fedbone.imaging.dataset import pool
from fedbone.imaging.folder import load_hospitals
from fedbone.imaging.hospitals import training_hospitals, write_sample
from fedbone.model.hrnet import load_model

HOSPITALS = ("hospital_a", "hospital_b", "hospital_c")


def test_size_and_shape():
    assert sum(file.stat().st_size for file in SAMPLE.rglob("*") if file.is_file()) < 12e6
    assert [len(list((SAMPLE / name).glob("*.dcm"))) for name in HOSPITALS] == [12, 12, 12]


def test_the_trained_weights_find_the_joints_of_every_hospital():
    model, metadata = load_model(WEIGHTS / "federated_cpu.safetensors")
    hospitals, problems = load_hospitals(SAMPLE, metadata["size_px"])
    assert not problems
    assert metadata["joints"] == list(hospitals[0].joints)
    # all twelve films: a split of one with exchanged sides among three films would measure that film
    hospitals = [replace(h, test=pool([h.train, h.test])) for h in hospitals]
    scores = evaluate(predict_all(model, hospitals, get_profile("cpu")), hospitals)["per_hospital"]
    assert min(score["pck_0_05"] for score in scores.values()) > 0.85


@pytest.mark.slow
def test_one_command_writes_the_sample_again(tmp_path):
    write_sample(tmp_path)
    for name in HOSPITALS:
        again, stored = (json.loads((top / name / "annotations.json").read_text()) for top in (tmp_path, SAMPLE))
        assert again["images"] == stored["images"]
        for one, other in zip(again["annotations"], stored["annotations"], strict=True):
            assert one["keypoints"] == pytest.approx(other["keypoints"], abs=0.01)
        for file in sorted((SAMPLE / name).glob("*.dcm")):
            assert same_picture(file, tmp_path / name / file.name), file.name


def same_picture(stored: Path, again: Path) -> bool:
    """Equal bytes on the machine that wrote the sample; elsewhere rounding may move a few grey values."""
    if stored.read_bytes() == again.read_bytes():
        return True
    first, second = (pydicom.dcmread(path).pixel_array.astype(int) for path in (stored, again))
    return first.shape == second.shape and np.mean(np.abs(first - second) > 2) < 0.01


def test_the_public_weights_know_the_regions_and_not_the_hospitals():
    """From there private training starts: better than nothing, and worse than the hospitals' own model."""
    profile = get_profile("cpu")
    hospitals = training_hospitals(profile.size_px, n_train=1, n_test=20)
    errors = {}
    for name in ("public_cpu", "federated_cpu"):
        model, _ = load_model(WEIGHTS / f"{name}.safetensors")
        errors[name] = evaluate(predict_all(model, hospitals, profile), hospitals)["mre_px"]
    assert 3 * errors["federated_cpu"] < errors["public_cpu"] < 10  # pixels of the 128
