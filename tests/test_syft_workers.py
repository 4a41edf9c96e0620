"""Hospitals as syft datasites: what they publish, rounds through their jobs, and what is left behind."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedbone.config import Profile
from fedbone.engines import syft_workers
from fedbone.engines.owner import DONE
from fedbone.engines.syft_workers import MOCK_FILMS, Datasites, SyftHospital, mock_films, training_files
from fedbone.errors import UserError
from fedbone.federation.history import FAILED, NOT_ASKED, TOOK_PART
from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.federation.rounds import Outcome, RoundRules, run_rounds
from fedbone.imaging.dataset import HospitalData
from tests.fake_hospitals import FakeHospital
from tests.helpers import JOINTS, all_ended, dot_films, dot_hospital, tiny_profile
from tests.syft_jobs import (
    COUNT,
    FAULTS,
    GOOD,
    MARK,
    PROFILE,
    SAVES,
    TRAINING,
    VECTOR,
    approved,
    datasites,
    private_file,
    private_strings,
    readable,
)

ROOT = Path(__file__).resolve().parents[1]
PINS = ("syft", "syft-rds", "syft-job", "syft-dataset")
posix = pytest.mark.skipif(os.name != "posix", reason="not run: jobs need Linux or macOS")


def test_the_packages_are_the_pinned_ones() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("#")[0].strip().split("==") for line in lines if line.startswith("syft"))
    assert pins == {name: version(name) for name in PINS}


def test_syft_still_has_the_private_names_that_the_workbook_uses() -> None:
    try:
        with datasites("nord") as sites:
            assert sites.coordinator.mock("nord").images.shape == (MOCK_FILMS, 32, 32)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        pytest.fail(
            f"{error!r}. The workbook stands on two private names of syft-rds 0.6.1, both in syft_workers._client: "
            "SyftRDSClientConfig._base_config_for_testing and SyftRDSClient.sync_engine._add_connection. See how "
            "SyftRDSClient.pair_with_mock_drive_service_connection of the new version makes its two clients."
        )


def test_the_mock_films_have_the_form_of_the_private_ones_and_none_of_their_content() -> None:
    data = dot_hospital("nord", labelled=(0, 2), count=5)
    with Datasites([data]) as sites:
        mock = sites.coordinator.mock("nord")
        with np.load(private_file(sites, "nord")) as file:
            private = {name: file[name] for name in file.files}
    assert np.array_equal(private["images"], data.train.images)
    assert np.array_equal(private["keypoints"], data.train.keypoints)
    assert "truth" not in private  # of the simulation; no hospital has it
    assert mock.images.shape[1:] == data.train.images.shape[1:]
    assert mock.images.dtype == data.train.images.dtype
    assert (mock.keypoints[..., 2] > 0).tolist() == [[True, False, True]] * MOCK_FILMS
    assert not set(mock.patients) & set(data.train.patients)
    assert np.array_equal(mock.images, mock_films(replace(data.train, images=255 - data.train.images)).images)


def test_the_mock_films_do_not_depend_on_the_films() -> None:
    one, other = dot_films(4, (0, 1), seed=1), dot_films(9, (0, 1), seed=2)
    for name, array in mock_films(one).to_arrays().items():
        assert np.array_equal(array, mock_films(other).to_arrays()[name])


def test_the_coordinator_has_the_mock_and_not_one_private_film() -> None:
    with datasites("nord", "sued") as sites:
        found = readable(sites)
        for hospital in ("nord", "sued"):
            private = private_strings(sites, hospital)
            assert len(private) == 4 + 4 + 1
            assert [part for part in private if part in found] == []
            assert sites.coordinator.mock(hospital).images.tobytes() in found  # where it would have been found
            assert private_file(sites, hospital).read_bytes() not in found


@posix
def test_names_of_hospitals_may_hold_spaces_capitals_and_letters_of_any_language() -> None:
    names = ["Klinikum München Süd", "St. Mary's HOSPITAL", "Ålesund 2/3", "Σ"]
    with datasites(*names) as sites:
        assert list(sites.owners) == names
        for name in names:
            owner, job = sites.owners[name], approved(sites, name, COUNT)
            owner.release(owner.run(job))
            assert sites.coordinator.collect(name, job) == {"count.json": b'{"films": 4.0}'}
            assert sites.coordinator.dataset_id(name) == SyftHospital(sites, name, PROFILE).films_digest()
        assert len({owner.email for owner in sites.owners.values()}) == 4
        for path in sites.path.rglob("*"):
            path.relative_to(sites.path).as_posix().encode("ascii")


@pytest.mark.parametrize("names", [["nord", "nord"], ["Klinik A", "klinik-a"], ["ä", "ö"], ["Coordinator", "nord"]])
def test_hospitals_with_one_address_are_refused_and_leave_no_folder(names, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="these hospitals get no address each of their own"):
        datasites(*names)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_removed_with_the_context(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with contextlib.suppress(KeyError), datasites("nord") as sites:
        assert [path.name for path in tmp_path.iterdir()] == [sites.path.name]
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_job_without_main_py_is_not_sent() -> None:
    with datasites("nord") as sites:
        with pytest.raises(UserError, match=r"it has no main\.py"):
            sites.coordinator.submit("nord", "job", {"code.py": ""})
        assert sites.owners["nord"].receive() == []


def test_the_training_job_carries_the_vector_bit_by_bit() -> None:
    vector = np.array([1.5, -0.0, 1e-45, np.float32(1) / 3], np.float32)
    files = training_files(vector, RoundTask(3, 7, 0.1), "nord", JOINTS, PROFILE)
    assert set(files) == {"main.py", "inputs/vector.b64", "inputs/task.json"}
    decoded = np.frombuffer(base64.b64decode(files["inputs/vector.b64"]), "<f4")
    assert decoded.tobytes() == vector.tobytes()
    task = json.loads(files["inputs/task.json"])
    assert RoundTask(**task["round"]) == RoundTask(3, 7, 0.1)
    assert Profile(**task["profile"]) == PROFILE


def test_a_syft_hospital_says_what_it_labels_and_keeps_no_state() -> None:
    with Datasites([dot_hospital("nord", labelled=(0, 2))]) as sites:
        hospital = SyftHospital(sites, "nord", PROFILE)
        assert hospital.labelled.tolist() == [True, False, True]
        assert (hospital.name, hospital.joints, hospital.state()) == ("nord", JOINTS, {})
        hospital.restore({})
        with pytest.raises(UserError, match="a syft job keeps nothing between rounds"):
            hospital.restore({"norm": np.zeros(1)})


def trained(data: list[HospitalData], rounds: int, jobs: int) -> tuple[Outcome, Outcome]:
    """The same rounds in this process, and with ``jobs`` of the hospitals through syft jobs."""
    profile = tiny_profile(rounds=rounds)
    plain = run_rounds([Hospital(each, profile) for each in data], profile, 5)
    with Datasites(data) as sites:
        approve(sites, rounds)
        hospitals = [SyftHospital(sites, each.name, profile) for each in data[:jobs]]
        hospitals += [Hospital(each, profile, release_losses=False) for each in data[jobs:]]
        through_jobs = run_rounds(hospitals, profile, 5)
        found = readable(sites)
        assert [part for each in data for part in private_strings(sites, each.name) if part in found] == []
    return plain, through_jobs


def approve(sites: Datasites, rounds: int = 1, names: tuple[str, ...] = ()) -> None:
    """All owners, or those of ``names``, approve the training job for ``rounds`` rounds; what they read never runs."""
    for name in names or sites.owners:
        owner = sites.owners[name]
        files = syft_workers.training_files(VECTOR, RoundTask(0, 0), name, JOINTS, PROFILE)
        submission = owner.review(_arrived(sites, name, files))
        owner.approve(submission, "read", TRAINING, repeats=rounds)


def _arrived(sites: Datasites, name: str, files: dict[str, str]) -> str:
    job = sites.coordinator.submit(name, "review", files)
    sites.owners[name].receive()
    return job


@posix
def test_a_round_through_jobs_gives_the_bytes_of_a_round_in_process() -> None:
    data = [dot_hospital("nord", (0, 1), 1), dot_hospital("sued", (1, 2), 2, count=5)]
    plain, jobs = trained(data, rounds=1, jobs=1)
    assert jobs.vector.tobytes() == plain.vector.tobytes()
    assert not np.array_equal(plain.vector, VECTOR)
    for ours, theirs in zip(jobs.history, plain.history, strict=True):
        assert ours.vector_sha256 == theirs.vector_sha256
        assert {name: (row.weight, row.update_norm, row.loss) for name, row in ours.hospitals.items()} == {
            name: (row.weight, row.update_norm, None) for name, row in theirs.hospitals.items()
        }


@posix
@pytest.mark.slow
def test_two_rounds_of_three_hospitals_through_jobs_give_the_bytes_of_rounds_in_process() -> None:
    labelled = {"nord": (0, 1), "sued": (1, 2), "West 2": (0, 1, 2)}
    data = [dot_hospital(name, joints, seed) for seed, (name, joints) in enumerate(labelled.items())]
    plain, jobs = trained(data, rounds=2, jobs=3)
    assert [record.vector_sha256 for record in jobs.history] == [record.vector_sha256 for record in plain.history]
    assert len({record.vector_sha256 for record in plain.history}) == 2


JOBS: dict[str, str] = {}  # main.py by hospital, where it is not GOOD


@pytest.fixture
def sites(monkeypatch) -> Iterator[Datasites]:
    """Owners whose training jobs are those of JOBS."""
    monkeypatch.setattr(syft_workers, "training_files", lambda *given: {"main.py": JOBS.get(given[2], GOOD)})
    with datasites("nord", "sued") as found:
        yield found


def rounds_of(hospitals: list, min_hospitals: int | None) -> Outcome:
    return run_rounds(hospitals, tiny_profile(rounds=1), rules=RoundRules(min_hospitals=min_hospitals))


@posix
@pytest.mark.parametrize("fault", FAULTS)
def test_a_round_goes_on_without_a_hospital_that_fails_or_stops_naming_it(sites, monkeypatch, fault: str) -> None:
    job, words = FAULTS[fault]
    monkeypatch.setitem(JOBS, "sued", job)
    sites.owners["sued"].timeout_s = 2.0 if fault == "hangs" else 60.0
    approve(sites, rounds=2, names=("sued",))
    hospitals = [FakeHospital("a"), SyftHospital(sites, "sued", PROFILE)]
    outcome = rounds_of(hospitals, min_hospitals=1)
    (record,) = outcome.history
    assert (record.hospitals["a"].status, record.hospitals["sued"].status) == (TOOK_PART, FAILED)
    assert record.hospitals["sued"].reason == f"its job {words}"
    assert np.array_equal(outcome.vector, rounds_of([FakeHospital("a")], 1).vector)
    with pytest.raises(UserError, match="sued: its job ") as stopped:
        rounds_of(hospitals, min_hospitals=None)
    told = "".join([str(stopped.value), *stopped.value.__notes__, str(outcome.history)])
    assert words in told
    assert "hospital sued, round 0: failed" in told
    assert MARK not in told


def both(sites: Datasites) -> list[SyftHospital]:
    return [SyftHospital(sites, name, PROFILE) for name in sites.owners]


@posix
def test_a_round_with_too_few_hospitals_stops_and_names_who_is_missing(sites, monkeypatch) -> None:
    monkeypatch.setitem(JOBS, "sued", FAULTS["raises"][0])
    approve(sites)
    with pytest.raises(UserError, match=r"1 of the 2 hospitals it needs took part: sued failed \(its job raised"):
        rounds_of(both(sites), min_hospitals=2)


@posix
def test_a_hospital_whose_owner_did_not_approve_the_code_takes_no_part(sites, monkeypatch) -> None:
    approve(sites)
    monkeypatch.setitem(JOBS, "sued", GOOD + "\n")
    (record,) = rounds_of(both(sites), min_hospitals=1).history
    assert record.hospitals["sued"].status == FAILED
    assert record.hospitals["sued"].reason.startswith("it is not what sued approved")
    assert not list(sites.path.glob("sued/**/returncode.txt"))


@posix
def test_a_hospital_that_is_not_asked_gets_no_job(sites) -> None:
    approve(sites)
    rules = RoundRules(participation=0.5)
    (record,) = run_rounds(both(sites), tiny_profile(rounds=1), rules=rules).history
    (left_out,) = (name for name, row in record.hospitals.items() if row.status == NOT_ASKED)
    assert not [name for name in sites.owners[left_out].receive() if "round" in name]
    assert len(list(sites.path.glob("*/*/app_data/job/review/*/*/*round-0/returncode.txt"))) == 2  # there and its copy


@posix
def test_what_both_sides_have_fetched_leaves_the_drive_and_both_go_on(sites, monkeypatch) -> None:
    draws = "update['delta'][:] = np.random.default_rng().normal(size=update['delta'].shape)\n"  # cannot be packed
    monkeypatch.setitem(JOBS, "nord", GOOD.replace(SAVES, draws + SAVES))
    approve(sites, rounds=3, names=("nord",))
    hospital, held = SyftHospital(sites, "nord", PROFILE), []
    for round_index in range(3):
        update = hospital.local_update(VECTOR, RoundTask(round_index, 0))
        assert update.delta.std() == pytest.approx(1, abs=0.1)
        held.append(sum(len(file.content) for file in sites.store.files.values()))
    assert held[-1] - held[0] < update.delta.nbytes / 10
    assert sites.owners["sued"].run(approved(sites, "sued", COUNT)).status == DONE  # its own messages are still there


def script(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "script" / "run.py"
    path.parent.mkdir()
    path.write_text("from tests.syft_jobs import *\nfrom fedbone.engines.syft_workers import *\n" + "\n".join(lines))
    return path


def environment(tmp_path: Path) -> dict[str, str]:
    """Empty folders for all that a program might write to, no network, and none of our variables."""
    for name in ("home", "cwd", "tmp"):
        (tmp_path / name).mkdir()
    path = os.pathsep.join([str(ROOT / "tests" / "offline"), str(ROOT)])
    own = {"HOME": "home", "TMPDIR": "tmp", "FEDBONE_OFFLINE_LOG": "tried.log"}
    own = {name: str(tmp_path / place) for name, place in own.items()}
    fixed = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**own, **fixed}


def left_in(tmp_path: Path) -> set[str]:
    """Files in the folders of ``environment``, and which addresses were tried."""
    return {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} - {
        *("home", "cwd", "tmp", "script", "script/run.py")
    }


WHOLE = (
    "with datasites('nord', 'sued') as sites:",
    "    name = approved(sites, 'nord', COUNT)",
    "    sites.owners['nord'].release(sites.owners['nord'].run(name))",
    "    print(sites.coordinator.collect('nord', name), str(sites.path))",
)


@posix
def test_nothing_is_written_outside_the_temporary_folder_and_no_network_is_tried(tmp_path) -> None:
    """To the end of a script, and where it forgets to close."""
    files = script(tmp_path, *WHOLE, "forgotten = datasites('nord')")
    options = {"env": environment(tmp_path), "cwd": tmp_path / "cwd", "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, files], **options)
    assert done.returncode == 0, done.stderr
    assert '{"films": 4.0}' in done.stdout
    assert str(tmp_path / "tmp") in done.stdout  # that is where it was
    assert left_in(tmp_path) == set()


HANGING = (
    "with datasites('nord') as sites:",
    "    name = approved(sites, 'nord', LEAVES_A_TRACE + 'import time; time.sleep(1000)')",
    "    sites.owners['nord'].run(name)",
)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_job_ends_with_the_process_that_runs_it(tmp_path, number: signal.Signals) -> None:
    files = script(tmp_path, *HANGING)
    options = {"env": environment(tmp_path), "cwd": tmp_path / "cwd", "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, files], **options)
    try:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("tmp/*/nord/**/code/outputs/ran")) and time.monotonic() < end:
            time.sleep(0.05)
        pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert len(pids) >= 2  # the supervisor and the job
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0
    assert all_ended(pids)
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
        assert left_in(tmp_path) == set()


def test_an_interrupt_while_the_folder_is_removed_leaves_none(monkeypatch) -> None:
    sites = datasites("nord")
    clean, tries = sites._folder.cleanup, []

    def interrupted() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise KeyboardInterrupt
        clean()

    monkeypatch.setattr(sites._folder, "cleanup", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sites.close()
    assert not sites.path.exists()


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="at least one hospital"):
        Datasites([])
    with datasites("nord") as sites:
        with pytest.raises(UserError, match=r"hospital ost: there is none of this name. One of nord"):
            sites.coordinator.submit("ost", "job", {"main.py": GOOD})
        with pytest.raises(UserError, match="none was submitted to nord"):
            sites.coordinator.collect("nord", "003-job")
        with pytest.raises(UserError, match="stays at a hospital"):
            SyftHospital(sites, "nord", tiny_profile(norm="batch"))
        with pytest.raises(UserError, match="reaches no GPU"):
            SyftHospital(sites, "nord", tiny_profile(device="cuda"))
    with pytest.raises(UserError, match="it is gone: close"):
        sites.coordinator.submit("nord", "job", {"main.py": GOOD})
