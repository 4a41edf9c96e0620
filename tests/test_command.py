import argparse
import csv
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedbone.errors import UserError
from fedbone.federation.arms import Arm
from fedbone.federation.command import at_size_of, federate, main, score_lines, standard_arms
from fedbone.federation.strategies import Strategy
from fedbone.imaging.hospitals import write_sample
from fedbone.model.hrnet import load_model
from fedbone.vectors import sha256, to_vector
from tests.helpers import JOINTS, dot_hospital, tiny_profile

SCHEMA = json.loads(Path(__file__).with_name("results.schema.json").read_text())
HOSPITALS = [dot_hospital("a", (0, 1), 1), dot_hospital("b", (1, 2), 2)]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("a folder") / "out"
    return out, *federate(HOSPITALS, tiny_profile(), out, arms=standard_arms(HOSPITALS, tiny_profile()))


def test_results_follow_the_schema_with_every_arm(compared):
    out, summary, _ = compared
    written = json.loads((out / "results.json").read_text())
    jsonschema.validate(written, SCHEMA)
    assert written == summary
    assert set(written["local"]) == {"a", "b"}
    assert set(written["local"]["a"]["per_hospital"]) == {"a"}
    assert written["joints"] == list(JOINTS)
    assert written["federated_minus_local"]["a"]["interval_95"][0] <= written["federated_minus_local"]["a"]["mre_px"]


def test_keys_are_there_and_null_where_an_arm_was_not_run(tmp_path):
    summary, _ = federate(HOSPITALS, tiny_profile(), tmp_path)
    jsonschema.validate(summary, SCHEMA)
    assert summary["pooled"] is None
    assert summary["local"] == {"a": None, "b": None}


def test_the_written_model_is_the_one_that_was_scored(compared):
    out, summary, arms = compared
    model, metadata = load_model(out / "model.safetensors")
    assert sha256(to_vector(model)) == summary["vector_sha256"] == sha256(arms["federated"].vector)
    assert metadata["joints"] == list(JOINTS)


def test_the_history_has_a_row_per_round_and_hospital_and_ends_with_the_written_vector(compared):
    out, summary, _ = compared
    rows = list(csv.DictReader((out / "history.csv").open()))
    assert [(row["round"], row["hospital"]) for row in rows] == [(r, h) for r in "01" for h in "ab"]
    assert rows[-1]["vector_sha256"] == summary["vector_sha256"]
    assert all(row["status"] == "took part" and float(row["weight"]) == 0.5 for row in rows)
    assert all(float(row["loss"]) > 0 and float(row["update_norm"]) > 0 for row in rows)


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_stopped(tmp_path, compared):
    arms, stopped = standard_arms(HOSPITALS, tiny_profile()), []

    def stop(name, row):
        stopped.append(name)
        if len(stopped) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(HOSPITALS, tiny_profile(), tmp_path, arms=arms, resume=True, on_row=stop)
    assert not (tmp_path / "results.json").exists()
    seen = []
    summary, _ = federate(
        HOSPITALS, tiny_profile(), tmp_path, arms=arms, resume=True, on_row=lambda *row: seen.append(row)
    )
    assert len(seen) < 2 * len(arms)  # some rounds were not trained again
    without_time = {key: value for key, value in summary.items() if key != "seconds"}
    assert without_time == {key: value for key, value in compared[1].items() if key != "seconds"}


def test_curves_go_on_where_they_stopped_and_a_finished_run_keeps_them(tmp_path):
    def steps():
        events = EventAccumulator(str(tmp_path / "tensorboard" / "federated")).Reload()
        return [event.step for event in events.Scalars("test/mre_px")]

    def stop(name, row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(HOSPITALS, tiny_profile(), tmp_path, resume=True, on_row=stop)
    assert steps() == [1]
    for _ in range(2):
        federate(HOSPITALS, tiny_profile(), tmp_path, resume=True)
        assert steps() == [1, 2]


def test_norms_of_their_own_leave_no_one_model_to_write(tmp_path):
    arms = {"federated": Arm(tiny_profile(norm="batch"), Strategy(local_norm=True))}
    with pytest.raises(ValueError, match="FedBN leaves no one model"):
        federate(HOSPITALS, tiny_profile(norm="batch"), tmp_path, arms=arms)


def test_unknown_spacing_gives_null_millimetres(tmp_path):
    hospital = dot_hospital("a")
    hospital.test.spacing_mm[:] = np.nan
    summary, _ = federate([hospital], tiny_profile(rounds=1), tmp_path)
    jsonschema.validate(json.loads((tmp_path / "results.json").read_text()), SCHEMA)
    assert summary["federated"]["mre_mm"] is None
    assert " mm" not in score_lines("federated", summary["federated"])[0]


@pytest.mark.slow
def test_one_hospital_alone_can_be_compared(tmp_path):
    summary, arms = federate(HOSPITALS[:1], tiny_profile(), tmp_path, arms=standard_arms(HOSPITALS[:1], tiny_profile()))
    assert summary["local"]["a"] is not None
    assert not arms["a"].history  # trained alone, not as a federation of one
    assert sha256(arms["a"].vector) == sha256(arms["pooled"].vector)


def test_a_hospital_with_the_name_of_an_arm_is_refused():
    with pytest.raises(UserError, match="Rename"):
        standard_arms([dot_hospital("pooled")], tiny_profile())


def command_line(**changes) -> argparse.Namespace:
    values = {"data": None, "out": None, "profile": "cpu", "rounds": 1, "size": 32, "seed": 0}
    values |= {"compare": False, "split_by_file": False, "preset": None, "micro_batch": None, "checkpointing": False}
    return argparse.Namespace(**(values | changes))


def test_the_command_trains_on_a_folder_of_dicom_films(tmp_path, capsys):
    write_sample(tmp_path / "films", films=6)
    (tmp_path / "films" / "hospital_a" / "note.dcm").write_text("not a film, and not annotated")
    assert main(command_line(data=tmp_path / "films", out=tmp_path / "out")) == 0
    summary = json.loads((tmp_path / "out" / "results.json").read_text())
    jsonschema.validate(summary, SCHEMA)
    assert summary["data"] == "own"
    assert sum(summary["n_train"].values()) + sum(summary["n_test"].values()) == 18
    assert set(summary["federated"]["mre_mm_by_kind"]) == {"calibrated", "detector", "object"}
    printed = capsys.readouterr().out
    assert "mean radial error" in printed
    assert "share within 2 / 4 / 10 mm" in printed
    assert "worst hospital hospital_" in printed


def test_the_report_names_the_worst_and_the_limits_of_agreement(compared):
    _, summary, _ = compared
    arm = summary["federated"]
    entry = {"bias": 0.5, "limits": [-1.0, 2.0], "unit": "deg", "n_patients": 7}
    lines = score_lines("federated", arm | {"readings": {"a": {"shoulder_tilt_deg": entry, "none": None}}})
    hospitals = arm["per_hospital"]
    worst = min(hospitals, key=lambda name: (hospitals[name]["pck_0_05"], -hospitals[name]["mre_px"]))
    assert f"worst hospital {worst}: " in lines[1]
    assert f"mm (unknown {arm['mre_mm']:.2f}); share within 2 / 4 / 10 mm: {arm['sdr_2_mm']:.2f} / " in lines[0]
    assert lines[2:] == ["  a, shoulder_tilt_deg: bias +0.50, 95 % limits of agreement -1.00 to +2.00 deg, 7 patients"]


def test_a_size_that_the_network_cannot_halve_is_refused_before_any_film_is_read(tmp_path):
    with pytest.raises(UserError, match="multiple of 32"):
        main(command_line(data=tmp_path / "nowhere", out=tmp_path, size=100))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the test is about")
def test_a_gpu_profile_without_a_gpu_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="--profile cpu"):
        main(command_line(profile="t4", out=tmp_path))


def test_the_estimate_counts_films_of_the_size_they_have():
    """Own films are larger than the profile's: at its size the time would be told several times too short."""
    assert at_size_of([dot_hospital("a")], tiny_profile(size_px=128)).size_px == 32
