"""The command line: what reaches the workers, and how errors end."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fedbone import __main__ as main
from fedbone.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def worker(monkeypatch, module: str, name: str, result: object = 0) -> list:
    """Put a recorder in place of module.name; ``result`` is returned, or raised when it is an exception."""
    calls = []

    def record(*args: object, **kwargs: object) -> object:
        calls.append((args, kwargs))
        if isinstance(result, BaseException):
            raise result
        return result

    stand_in = types.ModuleType(module)
    setattr(stand_in, name, record)
    monkeypatch.setitem(sys.modules, module, stand_in)
    package, _, leaf = module.rpartition(".")
    monkeypatch.setattr(sys.modules[package] if package in sys.modules else __import__(package), leaf, stand_in, False)
    return calls


def test_federate_hands_over_its_options(monkeypatch):
    calls = worker(monkeypatch, "fedbone.federation.command", "main", 0)
    words = "federate --data d --out o --profile t4 --rounds 3 --size 256 --seed 7 --compare --split-by-file"
    assert main.main(words.split()) == 0
    args = calls[0][0][0]
    assert (args.data, args.out, args.profile) == (Path("d"), Path("o"), "t4")
    assert (args.rounds, args.size, args.seed, args.compare, args.split_by_file) == (3, 256, 7, True, True)


def test_sample_and_its_defaults(monkeypatch):
    calls = worker(monkeypatch, "fedbone.imaging.hospitals", "write_sample")
    assert main.main(["sample", "out"]) == 0
    args, options = calls[0]
    assert args == (Path("out"),)
    assert (options["films"], options["seed"]) == (12, 0)


def test_dicom_lists_each_bad_film_and_fails(monkeypatch, capsys):
    bad = [UserError("a.dcm", "truncated", "Send it again"), UserError("b.dcm", "text", "Remove it")]
    calls = worker(monkeypatch, "fedbone.imaging.dicom", "convert", ([], bad))
    assert main.main(["dicom", "in", "out", "--size", "64"]) == 1
    assert calls[0][1]["size_px"] == 64
    assert capsys.readouterr().err.splitlines() == [str(bad[0]), str(bad[1])]


def test_user_error_is_one_line_and_2(monkeypatch, capsys):
    worker(monkeypatch, "fedbone.federation.command", "main", UserError("x.json", "empty", "Fill it"))
    assert main.main(["federate", "--out", "o"]) == 2
    assert capsys.readouterr().err == "x.json: empty. Fill it\n"


def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys):
    worker(monkeypatch, "fedbone.federation.command", "main", KeyboardInterrupt())
    assert main.main(["federate", "--out", "o"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_missing_package_names_the_set_up_command(monkeypatch, capsys):
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    worker(monkeypatch, "fedbone.federation.command", "main", error)
    assert main.main(["federate", "--out", "o"]) == 2
    assert "make run" in capsys.readouterr().err


def test_a_defect_of_ours_is_not_disguised(monkeypatch):
    error = ModuleNotFoundError("No module named 'fedbone.nothing'", name="fedbone.nothing")
    worker(monkeypatch, "fedbone.federation.command", "main", error)
    with pytest.raises(ModuleNotFoundError):
        main.main(["federate", "--out", "o"])


@pytest.mark.parametrize("words", ["federate --out o --rounds 0", "sample o --films x", "dicom a", "federate", "x"])
def test_bad_options_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(words.split())
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["workbook", "test", "test-all", "lab", "notebooks"])
def test_these_commands_make_the_environment_first(monkeypatch, command):
    class Entered(Exception):
        pass

    def enter(arguments: list[str]) -> None:
        raise Entered(arguments)

    monkeypatch.setattr(main.environment, "enter", enter)
    with pytest.raises(Entered, match=command):
        main.main([command])


def test_a_python_without_packages_is_told_what_to_do(tmp_path):
    """-S -I hides every installed package, as a bare system Python would."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from fedbone.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-S", "-I", "-c", code, "federate", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "make run" in done.stderr


def test_make_targets_delegate():
    lines = (ROOT / "Makefile").read_text().splitlines()
    recipes = [line.strip() for line in lines if line.startswith("\t")]
    commands = [recipe.removeprefix("$(PYTHON) -m fedbone ") for recipe in recipes]
    known = main.parser()._subparsers._group_actions[0].choices
    assert all(command in known for command in commands)
    assert {"workbook", "test", "test-all", "lab", "clean"} <= set(commands)


def test_clean_keeps_environment_and_data(tmp_path, monkeypatch):
    for name in ("build", ".venv", "data", "fedbone/__pycache__", "tests", "notebooks"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(main.environment, "REPOSITORY", tmp_path)
    assert main.main(["clean"]) == 0
    assert sorted(os.listdir(tmp_path)) == [".venv", "data", "fedbone", "notebooks", "tests"]
    assert not (tmp_path / "fedbone" / "__pycache__").exists()
