"""The file from which a run goes on. What it must notice is tested with its users, in test_fit and test_rounds."""

import numpy as np
import pytest

from fedbone.errors import UserError
from fedbone.run_state import digest, load_state, save_state

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(3, np.int64), "empty": np.zeros((0, 4), np.float32)}
BELONGS = {"seed": 1, "names": ("a", "b"), "films": digest(ARRAYS, None)}


def test_what_was_written_comes_back(tmp_path):
    save_state(tmp_path / "state", "training", BELONGS, ARRAYS, {"place": {"round": 2, "loss": 0.1}})
    arrays, header = load_state(tmp_path / "state", "training", BELONGS)
    assert (arrays.keys(), header["place"]) == (ARRAYS.keys(), {"round": 2, "loss": 0.1})
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


def test_there_is_no_state_yet(tmp_path):
    assert load_state(tmp_path / "no folder" / "state", "training", BELONGS) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 2}, "another training: seed 1, now 2. Delete"),
        ({"films": digest({}, None), "seed": 2}, "another training: seed 1, now 2, other films. Delete"),
        ({"names": ["a"]}, "another training: names ['a', 'b'], now ['a']. Delete"),
        ({"rounds": 3}, "another training: rounds None, now 3. Delete"),
    ],
)
def test_what_differs_is_named(tmp_path, changes, words):
    save_state(tmp_path / "state", "training", BELONGS, ARRAYS, {})
    with pytest.raises(UserError) as refused:
        load_state(tmp_path / "state", "training", {**BELONGS, **changes})
    assert words in str(refused.value)


def test_what_a_killed_save_left_is_removed_whatever_the_name(tmp_path):
    path = tmp_path / "x [a].safetensors"
    left_over = tmp_path / f".{path.name}.abc"
    left_over.write_text("half")
    assert load_state(path, "training", BELONGS) is None
    assert not left_over.exists()


def test_another_kind_of_run_is_refused(tmp_path):
    save_state(tmp_path / "state", "training", BELONGS, ARRAYS, {})
    with pytest.raises(UserError, match="not of a federation"):
        load_state(tmp_path / "state", "federation", BELONGS)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": np.arange(6.0).reshape(3, 2)},
        {"a": np.arange(6.0).reshape(2, 3).astype(np.float32)},
        {"c": ARRAYS["a"]},
        {"a": ARRAYS["a"] + 1e-15},
    ],
)
def test_the_digest_is_of_names_types_shapes_and_bytes(changed):
    assert digest({"a": ARRAYS["a"]}, None) != digest(changed, None)
