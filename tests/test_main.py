"""The command line: what reaches the workers, and how errors end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pydicom
import pytest

from fedbone import __main__ as main
from fedbone.errors import UserError
from tests.dicom_cases import film, ramp, save

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


def test_dicom_says_one_line_a_file_and_goes_on(tmp_path, capsys):
    """Refused films stand among the others; the bar would be on standard error, which is no terminal here."""
    source = tmp_path / "films"
    (source / "ward\n2").mkdir(parents=True)
    for name in ("monochrome1", "multi_frame", "burned_in"):
        shutil.copy(ROOT / "tests" / "dicom_cases" / f"{name}.dcm", source)
    shutil.copy(ROOT / "tests" / "dicom_cases" / "bits_8.dcm", source / "ward\n2" / "\x1b[31mred.dcm")
    assert main.main(["dicom", str(source), str(tmp_path / "out"), "--size", "64"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    burned, first, frames, odd, summary = out.splitlines()
    assert first == (
        "monochrome1.dcm -> film_0002.png  96 x 72, 12 bit MONOCHROME1, uncompressed, window LINEAR, no millimetres"
    )
    assert burned.startswith("burned_in.dcm -> film_0001.png  ")
    assert burned.endswith("; warning: BurnedInAnnotation is YES: names may be readable in the picture")
    assert frames.startswith("multi_frame.dcm: refused, it has 2 frames, expected a single film. ")
    assert odd.startswith("ward\\n2/\\x1b[31mred.dcm -> film_0003.png  ")
    assert summary == "films written: 3, files refused: 1"
    assert "\x1b" not in out


def test_dicom_fails_where_nothing_can_be_read(tmp_path, capsys):
    (tmp_path / "films").mkdir()
    assert main.main(["dicom", str(tmp_path / "films"), str(tmp_path / "out")]) == 2
    assert "holds no films" in capsys.readouterr().err
    shutil.copy(ROOT / "tests" / "dicom_cases" / "report.dcm", tmp_path / "films")
    assert main.main(["dicom", str(tmp_path / "films"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "films written: 0, files refused: 1"


def deidentify(folder: Path, *options: str) -> int:
    return main.main(["deidentify", str(folder / "in"), str(folder / "out"), "--key", str(folder / "key"), *options])


def test_deidentify_makes_a_key_once_and_never_shows_it(tmp_path, capsys):
    save(tmp_path / "in" / "doe_jane.dcm", film(ramp(), BitsStored=12))
    assert deidentify(tmp_path) == 0
    out, err = capsys.readouterr()
    assert "A new key was written to" in out
    assert "films written: 1, label files: 0, not written: 0" in out
    assert err == ""
    assert (tmp_path / "key").read_text().strip() not in out
    assert deidentify(tmp_path) == 0
    assert "new key" not in capsys.readouterr().out


def test_deidentify_counts_bad_files_without_naming_them(tmp_path, capsys):
    save(tmp_path / "in" / "doe_jane.dcm", film(ramp(), BitsStored=12, BurnedInAnnotation="YES"))
    assert deidentify(tmp_path) == 2
    save(tmp_path / "in" / "roe.dcm", film(ramp(), BitsStored=12))
    capsys.readouterr()
    assert deidentify(tmp_path) == 1
    out, err = capsys.readouterr()
    first, order = err.splitlines()
    assert first.startswith("file 1 of 2: text is burned into the picture")
    assert "find IN -type f" in order
    assert "doe" not in (out + err).replace(str(tmp_path), "")


def test_deidentify_hands_over_its_options(tmp_path):
    dataset = film(ramp(100, 100), BitsStored=12, BurnedInAnnotation="YES", PatientAge="044Y", StudyDate="20260302")
    save(tmp_path / "in" / "a.dcm", dataset)
    assert deidentify(tmp_path, "--blank-margins", "8,0,0,5", "--remove-dates", "--keep-characteristics") == 0
    new = pydicom.dcmread(next((tmp_path / "out").glob("*.dcm")))
    assert (new.PatientAge, new.StudyDate, new.BurnedInAnnotation) == ("044Y", "", "NO")
    values, old = new.pixel_array, ramp(100, 100)
    assert (values[8:, 5:] == old[8:, 5:]).all()
    assert set(values[:8].ravel()) | set(values[:, :5].ravel()) == {old[8, 5]}  # the darkest inside


@pytest.mark.parametrize("text", ["", "x", "0", "50", "-1", "1,2", "1,2,3", "1,2,3,4,5", "nan", "0,0,0,0"])
def test_margins_are_one_or_four_shares(text, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        deidentify(tmp_path, f"--blank-margins={text}")
    assert stop.value.code == 2
    assert "between 0 and 50" in capsys.readouterr().err


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
    commands = [recipe.removeprefix("$(PYTHON) -m fedbone ").removesuffix(" $(profile)") for recipe in recipes]
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


def test_the_written_out_names_are_those_of_the_modules():
    from fedbone.config import PROFILES
    from fedbone.model.hrnet import PRESETS

    assert set(PROFILES) == set(main.PROFILE_NAMES)
    assert set(PRESETS) == set(main.PRESET_NAMES)
