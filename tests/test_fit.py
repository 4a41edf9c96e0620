"""A training that is interrupted anywhere and started again ends as if nobody had disturbed it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fedbone.errors import UserError
from fedbone.model import fit as module
from fedbone.model.fit import _Run, fit
from fedbone.model.hrnet import build_for
from fedbone.model.training import Trainer, train_round
from fedbone.vectors import save_checkpoint, sha256, state_arrays, to_vector
from tests.helpers import dot_films, tiny_profile

FILMS = dot_films(5)  # batches of 3 and 2
PROFILE = tiny_profile(size_px=32, rounds=2, local_epochs=2)
STEPS = 8  # two rounds of two epochs of two batches


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A save after every step and round that may have one, however long it takes here."""
    monkeypatch.setattr(module, "PATIENCE", 0)


class Interrupted(Exception):
    pass


def fingerprint(model) -> str:
    """Of all weights and buffers, to the byte."""
    digest = hashlib.sha256()
    for array in state_arrays(model).values():
        digest.update(array.tobytes())
    return digest.hexdigest()


def train(profile=PROFILE, path=None, stop_after=None, films=FILMS, save_every_s=0.0, seed=0, start=0):
    """(fingerprint of the model, Fit) after a training, which raises Interrupted after ``stop_after`` steps."""
    model, seen = build_for(profile, 3, start), []

    def on_step(done, total, loss):
        seen.append((done, total))
        if len(seen) == stop_after:
            raise Interrupted

    done = fit(model, films, profile, seed, path, on_step=on_step, save_every_s=save_every_s)
    return fingerprint(model), done, seen


@pytest.fixture(scope="module")
def undisturbed():
    return train()


def test_fit_is_train_round_after_train_round(undisturbed):
    trainer = Trainer(build_for(PROFILE, 3), PROFILE)
    losses = [train_round(trainer, FILMS, index, [0]) for index in range(2)]
    assert undisturbed[0] == fingerprint(trainer.model)
    assert undisturbed[1].losses == losses
    assert undisturbed[2] == [(i, STEPS) for i in range(1, STEPS + 1)]


def test_writing_states_changes_nothing(undisturbed, tmp_path):
    assert train(path=tmp_path / "state")[0] == undisturbed[0]


@pytest.mark.parametrize("save_every_s", [0.0, 1e9], ids=["saved after each step", "saved after each round"])
@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_an_interruption_after_any_step_changes_nothing(undisturbed, tmp_path, stop, save_every_s):
    path = tmp_path / "state"
    with pytest.raises(Interrupted):
        train(path=path, stop_after=stop, save_every_s=save_every_s)
    found, done, seen = train(path=path)
    saved = stop if save_every_s == 0 else (stop - 1) // 4 * 4
    assert (done.new_steps, seen) == (STEPS - saved, [(i, STEPS) for i in range(saved + 1, STEPS + 1)])
    assert found == undisturbed[0]
    assert done.losses == undisturbed[1].losses


def test_an_interruption_between_rounds_repeats_only_their_report(undisturbed, tmp_path):
    """on_round raises before the round's end is saved: the last step was."""
    model, rounds = build_for(PROFILE, 3), []

    def on_round(index, losses):
        rounds.append(index)
        if len(rounds) == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(model, FILMS, PROFILE, 0, tmp_path / "state", on_round, save_every_s=0.0)
    model = build_for(PROFILE, 3)
    assert fit(model, FILMS, PROFILE, 0, tmp_path / "state", on_round).new_steps == 4
    assert rounds == [0, 0, 1]
    assert fingerprint(model) == undisturbed[0]


KINDS = [
    {"norm": "batch"},
    {"precision": "bf16"},
    {"precision": "fp16"},
    {"micro_batch": 2},
    {"norm": "batch", "precision": "fp16", "checkpointing": True},
]


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_many_interruptions_of_every_kind_of_training(tmp_path, changes):
    """BatchNorm's statistics and the loss scale are state too."""
    profile, path = replace(PROFILE, **changes), tmp_path / "state"
    for stop in (1, 2, 1, 3):
        with pytest.raises(Interrupted):
            train(profile, path, stop)
    found, done, _ = train(profile, path)
    assert done.new_steps == 1
    assert found == train(profile)[0]


def test_the_loss_scale_survives(tmp_path):
    """With its count of steps without overflow, after which it doubles."""
    profile, path = replace(PROFILE, precision="fp16"), tmp_path / "state"
    with pytest.raises(Interrupted):
        train(profile, path, 3)
    scaler = header_of(path)["place"]["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (1024, 3)
    run = _Run(build_for(profile, 3), FILMS, profile, 0, path)
    run.resume()
    assert run.trainer.scaler.state_dict() == scaler


def header_of(path) -> dict:
    with safe_open(str(path), framework="np") as file:
        return json.loads(file.metadata()["fedbone"])


KILLED = """
    import sys
    from pathlib import Path
    import fedbone.model.fit
    from fedbone.model.fit import fit
    from fedbone.model.hrnet import build_for
    from tests.test_fit import FILMS, PROFILE, fingerprint
    fedbone.model.fit.PATIENCE = 0
    model = build_for(PROFILE, 3)
    step = lambda done, total, loss: print(done, flush=True)
    fit(model, FILMS, PROFILE, 0, Path(sys.argv[1]), on_step=step, save_every_s=float(sys.argv[2]))
    print(fingerprint(model))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")
def test_a_process_killed_again_and_again_ends_with_the_same_bytes(undisturbed, tmp_path):
    script, path = tmp_path / "train.py", tmp_path / "a folder" / "state"
    script.write_text(textwrap.dedent(KILLED))
    started = []
    for stop, save_every_s in ((3, 1e9), (2, 0.0), (4, 0.0), (1, 1e9)):  # the first leaves no state: mid-round
        with run(script, path, save_every_s) as child:
            lines = [child.stdout.readline().strip() for _ in range(stop)]
            child.send_signal(signal.SIGKILL)
        started.append(int(lines[0]))
    with run(script, path, 0.0) as child:
        *steps, found = child.stdout.read().split()
    assert started[:2] == [1, 1]
    assert started[1] < started[2] < started[3] <= int(steps[0]) <= STEPS
    assert found == undisturbed[0]
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] == ["state"]


def run(script, path, save_every_s) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(script), str(path), str(save_every_s)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
    )


def test_a_slow_disk_is_asked_less_often(tmp_path, monkeypatch):
    """A save takes three seconds here and a step one: a minute passes before the next."""
    now, saved_at = [0.0], []

    def save(self, path):
        now[0] += 3.0
        saved_at.append(now[0])

    monkeypatch.setattr(module, "PATIENCE", 20)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(_Run, "save", save)
    profile = replace(PROFILE, rounds=20)

    def on_step(done, total, loss):
        now[0] += 1.0

    fit(build_for(profile, 3), FILMS, profile, 0, tmp_path / "state", on_step=on_step, save_every_s=30.0)
    # the first after the first round, then a minute's steps apart, and one at the end
    assert saved_at == [7.0, 70.0, 89.0]


def test_a_finished_training_is_not_trained_again(undisturbed, tmp_path):
    path = tmp_path / "state"
    first = train(path=path)[1]
    found, done, seen = train(path=path)
    assert (found, done.new_steps, seen, done.losses) == (undisturbed[0], 0, [], first.losses)
    seconds, cpu_seconds = header_of(path)["clocks"]
    assert done.seconds > seconds > 0
    assert done.cpu_seconds > cpu_seconds > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profile": replace(PROFILE, rounds=3, sigma_px=2.0)}, "rounds 2, now 3, sigma_px 1.5, now 2.0"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"films": dot_films(5, seed=1)}, "other films"),
        ({"films": replace(FILMS, keypoints=FILMS.keypoints + np.float32(0.5))}, "other films"),
        ({"start": 1}, "other first weights"),
    ],
)
def test_the_state_of_another_training_is_refused_and_kept(tmp_path, changes, words):
    path = tmp_path / "state"
    train(path=path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="the state of another training: ") as refused:
        train(path=path, **changes)
    assert words in str(refused.value)
    assert "--out" in refused.value.remedy
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The bytes of a state in the middle of an epoch."""
    path = tmp_path_factory.mktemp("written") / "state"
    with pytest.raises(Interrupted):
        train(path=path, stop_after=3)
    return path.read_bytes()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans())
def test_a_flipped_bit_anywhere_is_noticed(written, tmp_path_factory, share, bit, in_header):
    header = 8 + int.from_bytes(written[:8], "little")
    place = int(share * (header if in_header else len(written)))
    damaged = bytearray(written)
    damaged[place] ^= 1 << bit
    refused(tmp_path_factory, bytes(damaged))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.floats(0, 1, exclude_max=True))
def test_a_shortened_state_is_noticed(written, tmp_path_factory, share):
    refused(tmp_path_factory, written[: int(share * len(written))])


def refused(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("damaged") / "state"
    path.write_bytes(content)
    with pytest.raises(UserError, match="Delete it") as error:
        train(path=path)
    assert str(path) in str(error.value)


def test_another_checkpoint_is_not_taken_for_a_state(tmp_path):
    save_checkpoint(tmp_path / "state", state_arrays(build_for(PROFILE, 3)), {})
    with pytest.raises(UserError, match="not the state of a training"):
        train(path=tmp_path / "state")


def test_memory_formats_of_the_moments_come_back(tmp_path):
    """Otherwise Adam would take another path through memory, and whether the bytes agree would be chance."""
    path = tmp_path / "state"
    with pytest.raises(Interrupted):
        train(path=path, stop_after=3)
    run = _Run(build_for(PROFILE, 3), FILMS, PROFILE, 0, path)
    run.resume()
    state = run.trainer.optimiser.state
    strides = [(p.stride(), state[p]["exp_avg"].stride()) for p in run.trainer.model.parameters()]
    assert any(not p.is_contiguous() for p in run.trainer.model.parameters())
    assert all(own == moment for own, moment in strides)


def test_a_diverged_training_names_who(tmp_path):
    with pytest.raises(UserError, match=r"^north: training diverged in round 0"):
        fit(build_for(PROFILE, 3), FILMS, replace(PROFILE, learning_rate=1e30), who="north")


def test_the_vector_is_that_of_the_model(undisturbed):
    model = build_for(PROFILE, 3)
    fit(model, FILMS, PROFILE)
    again = build_for(PROFILE, 3)
    fit(again, FILMS, PROFILE)
    assert sha256(to_vector(model)) == sha256(to_vector(again))


def test_a_loss_that_half_precision_cannot_hold_is_divergence():
    """The scaler skips every step then, so that the parameters stay finite, and untrained."""
    profile = replace(PROFILE, precision="fp16")
    model = build_for(profile, 3)
    torch.nn.init.constant_(model.final_layer.bias, 7e4)
    with pytest.raises(UserError, match="its loss is not finite"):
        fit(model, FILMS, profile)


def test_what_a_kill_in_the_middle_of_a_save_left_is_removed(tmp_path):
    (tmp_path / ".state.x1y2").write_bytes(b"half a state")
    (tmp_path / ".other.x1y2").write_bytes(b"not ours")
    train(path=tmp_path / "state")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.x1y2", "state"]


def test_who_ran_out_of_memory_goes_on_with_smaller_passes(tmp_path):
    with pytest.raises(Interrupted):
        train(path=tmp_path / "state", stop_after=3)
    _, done, _ = train(replace(PROFILE, micro_batch=1, checkpointing=True), tmp_path / "state")
    assert done.new_steps == STEPS - 3
