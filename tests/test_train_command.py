"""The ``train`` command: what it writes, that it goes on after a kill, and what it starts from."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedbone import __main__ as shell
from fedbone.config import SAMPLE, get_profile
from fedbone.errors import UserError
from fedbone.federation import training_command
from fedbone.federation.arms import Arm, run_arms
from fedbone.federation.training_command import MODEL, RESULTS, STATE, first_model, main
from fedbone.imaging.coco import COCO_JOINTS
from fedbone.imaging.hospitals import training_hospitals
from fedbone.model import training
from fedbone.model.hrnet import build, load_model, save_model
from fedbone.vectors import load_checkpoint, sha256, state_arrays, to_vector
from tests.helpers import JOINTS, dot_hospital

HOSPITALS = [dot_hospital("a", (0, 1), 1, count=5), dot_hospital("b", (1, 2), 2, count=6)]
PROFILE = get_profile("cpu", rounds=2, batch=4, size_px=32)


def options(out, **changes) -> argparse.Namespace:
    values = {"data": None, "out": out, "profile": "cpu", "preset": None, "rounds": 2, "size": 32, "seed": 0}
    values |= {"start": None, "micro_batch": None, "checkpointing": False, "split_by_file": False}
    return argparse.Namespace(**(values | changes))


@pytest.fixture
def dots(monkeypatch):
    """The command on films of dots in place of generated or own ones."""
    monkeypatch.setattr(training_command, "load", lambda args, profile: (HOSPITALS, [], profile))


def test_it_trains_the_pooled_arm_and_writes_what_it_scored(dots, tmp_path, capsys):
    assert main(options(tmp_path / "out")) == 0
    summary = json.loads((tmp_path / "out" / RESULTS).read_text())
    pooled = run_arms({"pooled": Arm(get_profile("cpu", rounds=2))}, HOSPITALS)["pooled"]
    assert summary["vector_sha256"] == sha256(pooled.vector)
    model, metadata = load_model(tmp_path / "out" / MODEL)
    assert sha256(to_vector(model)) == summary["vector_sha256"]
    assert metadata["joints"] == summary["joints"] == list(JOINTS)
    assert summary["metrics"]["mre_px"] == pooled.curve[-1]["mre_px"]
    assert set(summary["metrics"]["per_hospital"]) == {"a", "b"}
    assert (summary["n_train"], summary["presentations"], len(summary["losses"])) == ({"a": 5, "b": 6}, 6, 2)
    assert summary["seconds"] >= 0 <= summary["cpu_seconds"]
    out, err = capsys.readouterr()
    assert "11 training films, 2 rounds: 6 presentations of a film in 2 steps\n" in err  # 3 films a round: a quarter
    assert "\nexpected time: less than a minute (estimate for 1 core like ours); measured after 20 steps\n" in err
    assert "mean radial error" in out


def test_the_time_left_is_shown_once_it_is_measured(monkeypatch):
    clock, texts = iter(range(100)), []
    monkeypatch.setattr(training_command.time, "monotonic", lambda: next(clock))
    on_step = training_command.shown(lambda done, total, text: texts.append(text))
    for done in range(1, 23):
        on_step(done, 141, 2.5)
    assert set(texts[:20]) == {"loss 2.50"}
    assert texts[20:] == ["loss 2.50, about 2 minutes left"] * 2  # a second a step, 120 and 119 steps left


def test_a_finished_training_says_so_and_trains_nothing(dots, tmp_path, capsys):
    main(options(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert main(options(tmp_path)) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != RESULTS} == {
        name: content for name, content in before.items() if name != RESULTS
    }
    out = capsys.readouterr().out
    assert "this training is finished; nothing was trained" in out
    assert "mean radial error" in out


def test_a_finished_training_is_scored_on_the_present_test_films(dots, tmp_path, monkeypatch):
    """And the model is written again if somebody removed it: what the command says is there, is there."""
    main(options(tmp_path))
    first = json.loads((tmp_path / RESULTS).read_text())
    (tmp_path / MODEL).unlink()
    moved = [replace(h, test=replace(h.test, keypoints=h.test.keypoints + np.float32([3, 0, 0]))) for h in HOSPITALS]
    monkeypatch.setattr(training_command, "load", lambda args, profile: (moved, [], profile))
    main(options(tmp_path))
    assert (tmp_path / MODEL).exists()
    again = json.loads((tmp_path / RESULTS).read_text())
    assert again["vector_sha256"] == first["vector_sha256"]
    assert again["metrics"]["mre_px"] != first["metrics"]["mre_px"]


def test_results_that_a_kill_prevented_are_written_without_training(dots, tmp_path):
    main(options(tmp_path))
    first = json.loads((tmp_path / RESULTS).read_text())
    (tmp_path / RESULTS).unlink()
    main(options(tmp_path))
    again = json.loads((tmp_path / RESULTS).read_text())
    varies = ("seconds", "cpu_seconds")
    assert {k: v for k, v in again.items() if k not in varies} == {k: v for k, v in first.items() if k not in varies}


def test_other_options_in_the_same_folder_are_refused(dots, tmp_path):
    main(options(tmp_path))
    with pytest.raises(UserError, match="rounds 2, now 3") as refused:
        main(options(tmp_path, rounds=3))
    assert "Delete it" in refused.value.remedy
    assert "--out" in refused.value.remedy


@pytest.mark.parametrize("content", ['{"schema_version": 2}', "[]", '{"comm', '{"command": "federate"}'])
def test_results_of_a_federation_are_not_overwritten(dots, tmp_path, content):
    (tmp_path / RESULTS).write_text(content)
    with pytest.raises(UserError, match="another --out"):
        main(options(tmp_path))
    assert (tmp_path / RESULTS).read_text() == content


def test_without_its_state_a_training_starts_anew(dots, tmp_path):
    """As the refusal of a state advises. The old results do not stand for the new training."""
    main(options(tmp_path))
    first = json.loads((tmp_path / RESULTS).read_text())
    (tmp_path / STATE).unlink()
    main(options(tmp_path, rounds=1))
    results = (tmp_path / RESULTS).read_text()
    assert json.loads(results)["vector_sha256"] != first["vector_sha256"]
    (tmp_path / RESULTS).write_text(json.dumps(first))  # as if a kill had come before the new results were written
    main(options(tmp_path, rounds=1))
    assert json.loads((tmp_path / RESULTS).read_text())["vector_sha256"] == json.loads(results)["vector_sha256"]


KILLED = """
    import os, sys
    from pathlib import Path
    from fedbone.federation import training_command
    from fedbone.model import fit as fitting
    from tests.test_train_command import HOSPITALS, options
    fitting.PATIENCE = 0
    training_command.load = lambda args, profile: (HOSPITALS, [], profile)
    stop = int(sys.argv[2])
    fit = training_command.fit
    def killed(*args, on_step, **more):
        def step(done, total, loss):
            on_step(done, total, loss)
            if done == stop:
                os.kill(os.getpid(), 9)
        return fit(*args, on_step=step, save_every_s=0.0, **more)
    training_command.fit = killed
    training_command.main(options(Path(sys.argv[1]), rounds=4))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")
def test_the_same_command_goes_on_after_a_kill(dots, tmp_path, monkeypatch):
    script, out = tmp_path / "train.py", tmp_path / "out"
    script.write_text(textwrap.dedent(KILLED))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    for stop in (1, 3):
        done = subprocess.run([sys.executable, script, out, str(stop)], env=environment, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (out / RESULTS).exists()
    steps = []
    monkeypatch.setattr(training_command, "shown", lambda bar: lambda *row: steps.append(row[0]))
    assert main(options(out, rounds=4)) == 0
    assert steps == [4]
    main(options(tmp_path / "undisturbed", rounds=4))
    found, expected = (json.loads((folder / RESULTS).read_text()) for folder in (out, tmp_path / "undisturbed"))
    assert found["vector_sha256"] == expected["vector_sha256"]
    assert found["losses"] == expected["losses"]


def test_a_folder_of_dicom_films(tmp_path):
    assert main(options(tmp_path / "out", data=SAMPLE, rounds=1)) == 0
    summary = json.loads((tmp_path / "out" / RESULTS).read_text())
    assert (summary["data"], summary["size_px"], summary["joints"]) == ("own", 32, list(COCO_JOINTS))
    assert sum(summary["n_train"].values()) + sum(summary["n_test"].values()) == 36


def test_without_a_folder_the_generated_hospitals_are_pooled(tmp_path, monkeypatch):
    few = training_hospitals(32, n_train=2, n_test=1, cache_dir=tmp_path)
    monkeypatch.setattr("fedbone.federation.command.training_hospitals", lambda *args, **kwargs: few)
    assert main(options(tmp_path / "out", rounds=1)) == 0
    summary = json.loads((tmp_path / "out" / RESULTS).read_text())
    assert (summary["data"], sum(summary["n_train"].values())) == ("generated", 6)


def test_memory_that_runs_out_leaves_no_results(dots, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.Trainer, "step", full)
    monkeypatch.setattr(training, "out_of_memory", lambda profile, size_px: UserError("gpu", f"{size_px} px", "less"))
    with pytest.raises(UserError, match="gpu: 32 px"):
        main(options(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_for_the_same_joints_is_taken_whole(tmp_path):
    path = save_model(tmp_path / "m.safetensors", build("w8n", 3, seed=5), joints=list(JOINTS))
    model, words = first_model(str(path), PROFILE, JOINTS, 0)
    assert sha256(to_vector(model)) == sha256(to_vector(build("w8n", 3, seed=5)))
    assert words.endswith("head included")


@pytest.mark.parametrize("joints", [("hip", "knee"), ("knee", "hip", "ankle")])
def test_a_checkpoint_for_other_joints_gives_its_body(tmp_path, joints):
    path = save_model(tmp_path / "m.safetensors", build("w8n", 3, seed=5), joints=list(JOINTS))
    model, words = first_model(str(path), PROFILE, joints, 7)
    theirs, fresh = state_arrays(build("w8n", 3, seed=5)), state_arrays(build("w8n", len(joints), seed=7))
    for name, array in state_arrays(model).items():
        assert np.array_equal(array, (fresh if name.startswith("final_layer") else theirs)[name]), name
    assert "new head" in words


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = save_model(tmp_path / "m.safetensors", build("w8n", 3, norm="batch"), joints=list(JOINTS))
    with pytest.raises(UserError, match="norm batch, expected group") as refused:
        first_model(str(path), PROFILE, JOINTS, 0)
    assert str(path) in str(refused.value)


def test_a_start_that_is_no_file_says_so(tmp_path):
    with pytest.raises(UserError, match="not a readable checkpoint"):
        first_model(str(tmp_path / "none.safetensors"), PROFILE, JOINTS, 0)


def test_imagenet_goes_to_the_warm_start(monkeypatch):
    started = []
    monkeypatch.setattr(training_command, "warm_start", lambda *given: started.append(given) or "5 tensors loaded")
    model, words = first_model("imagenet", PROFILE, JOINTS, 0)
    other, _ = first_model("imagenet=down/model.safetensors", PROFILE, JOINTS, 0)
    assert started == [(model, None), (other, Path("down/model.safetensors"))]
    assert words == "ImageNet, 5 tensors loaded"


def test_another_start_is_another_training(dots, tmp_path):
    main(options(tmp_path / "out"))
    with pytest.raises(UserError, match="other first weights"):
        main(options(tmp_path / "out", start=str(tmp_path / "out" / MODEL)))


def test_the_options_reach_the_profile(tmp_path):
    words = "train --out o --preset w18s --rounds 3 --micro-batch 2 --checkpointing --profile cpu --size 64"
    args = shell.parser().parse_args([*words.split(), "--norm", "batch", "--start", "imagenet", "--split-by-file"])
    profile = training_command.chosen_profile(args)
    assert (profile.preset, profile.rounds, profile.micro_batch, profile.checkpointing) == ("w18s", 3, 2, True)
    assert profile.norm == "batch"
    assert (args.start, args.split_by_file, args.seed) == ("imagenet", True, 0)
    plain = shell.parser().parse_args(["train", "--out", "o"])
    assert training_command.chosen_profile(plain) == get_profile("cpu")


def test_a_size_that_the_network_cannot_halve_is_refused_before_any_film_is_read(tmp_path):
    with pytest.raises(UserError, match="multiple of 32"):
        main(options(tmp_path, data=tmp_path / "nowhere", size=100))


def test_the_state_and_the_model_are_two_files(dots, tmp_path):
    """The state carries Adam's moments; what is handed on does not."""
    main(options(tmp_path))
    state, _ = load_checkpoint(tmp_path / STATE)
    model, _ = load_checkpoint(tmp_path / MODEL)
    assert {name.partition(".")[0] for name in state} == {"model", "exp_avg", "exp_avg_sq", "step"}
    assert not any(name.startswith("exp_avg") for name in model)


def test_a_network_with_batch_norm_trains_and_keeps_its_statistics(dots, tmp_path):
    main(options(tmp_path, norm="batch"))
    model, _ = load_model(tmp_path / MODEL)
    assert model.config.norm == "batch"
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert all(module.num_batches_tracked == 2 for module in norms)  # two rounds of one batch
