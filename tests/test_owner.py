"""Nothing runs that was not approved as it is, and nothing leaves that was not released; with the real syft."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from fedbone.engines import sandbox
from fedbone.engines.owner import DONE, FAILED, REFUSED, RUN_SCRIPT, quiet
from fedbone.engines.release import Numbers
from fedbone.engines.syft_workers import UPDATE, Datasites
from fedbone.errors import UserError
from tests.helpers import all_ended
from tests.syft_jobs import (
    COUNT,
    COUNTS,
    FAULTS,
    GOOD,
    LEAVES_A_TRACE,
    MARK,
    OTHER_FILES,
    TRAINING,
    approved,
    datasites,
    private_file,
    private_strings,
    ran,
    readable,
    received,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="not run: jobs need Linux or macOS")
HANGS = LEAVES_A_TRACE + "import time\ntime.sleep(1000)\n"
confined = pytest.mark.skipif(
    not sandbox.protections().files, reason="not run: this kernel cannot keep a job from other files (Landlock)"
)


@pytest.fixture
def sites() -> Iterator[Datasites]:
    with datasites("nord", "sued") as found:
        yield found


def refused(sites: Datasites, name: str) -> str:
    """What ``run`` says; afterwards nothing ran."""
    with pytest.raises(UserError) as error:
        sites.owners["nord"].run(name)
    assert not ran(sites.owners["nord"])
    return str(error.value)


def told(sites: Datasites, name: str) -> str:
    """What the coordinator is told instead of outputs."""
    with pytest.raises(UserError) as error:
        sites.coordinator.collect("nord", name)
    return str(error.value)


def test_a_job_runs_after_approval_and_its_outputs_arrive_after_release(sites) -> None:
    owner, submission = sites.owners["nord"], received(sites, "nord", COUNT, note="42")
    assert submission.files["code/main.py"] == COUNT.encode()
    assert submission.files["code/inputs/note.txt"] == b"42"
    assert (submission.hospital, submission.submitted_by) == ("nord", "coordinator@example.org")
    owner.approve(submission, "read", COUNTS)
    result = owner.run(submission.name)
    assert (result.status, result.problem, result.outputs) == (DONE, "", {"count.json": b'{"films": 4.0}'})
    owner.release(result)
    assert sites.coordinator.collect("nord", submission.name) == {"count.json": b'{"films": 4.0}'}
    assert owner.receive() == []
    with pytest.raises(UserError, match="it waits no longer: it is done"):
        owner.run(submission.name)


def test_jobs_wait_in_the_order_of_their_arrival_each_at_its_hospital(sites) -> None:
    names = [received(sites, "nord", COUNT).name for _ in range(3)]
    assert sites.owners["nord"].receive() == names
    assert sites.owners["sued"].receive() == []
    with pytest.raises(UserError, match=f"job {names[0]}: it is not at sued"):
        sites.owners["sued"].review(names[0])


def test_a_pending_job_does_not_run(sites) -> None:
    submission = received(sites, "nord", LEAVES_A_TRACE)
    assert "nothing of this title was approved" in refused(sites, submission.name)
    with quiet():
        sites.owners["nord"].client.job_runner.process_approved_jobs(stream_output=False)
    assert not ran(sites.owners["nord"])
    assert "received, and nothing is released" in told(sites, submission.name)


def test_the_reason_of_a_rejection_arrives_and_the_job_never_runs(sites) -> None:
    submission, owner = received(sites, "nord", LEAVES_A_TRACE), sites.owners["nord"]
    owner.approve(submission, "read", COUNTS, repeats=5)
    owner.reject(submission.name, "it copies films")
    assert "rejected the job: it copies films" in told(sites, submission.name)
    assert owner.receive() == []
    assert "it waits no longer" in refused(sites, submission.name)


def test_a_job_that_was_run_and_not_released_leaves_nothing_with_the_coordinator(sites) -> None:
    job = GOOD + "print(MARK)\nprint(MARK, file=sys.stderr)\n"
    job += "import syft\nPATH = syft.resolve_dataset_file_path('films')\nprint(np.load(PATH)['patients'])\n"
    owner, name = sites.owners["nord"], approved(sites, "nord", job, TRAINING)
    result = owner.run(name)
    assert (result.status, set(result.outputs)) == (DONE, {UPDATE})
    assert result.log.count(MARK) == 2
    assert "p0-3" in result.log  # it did read the private films
    owner.receive()  # any sync of syft sends what may be read
    assert "nothing is released" in told(sites, name)
    found = readable(sites)
    assert [part for part in private_strings(sites, "nord") if part in found] == []
    assert MARK.encode() not in found
    assert result.outputs[UPDATE] not in found
    owner.release(result)
    assert sites.coordinator.collect("nord", name) == result.outputs
    found = readable(sites)
    assert result.outputs[UPDATE] in found  # where it would have been found
    assert b"raise" not in result.outputs[UPDATE]
    assert MARK.encode() not in found
    assert [part for part in private_strings(sites, "nord") if part in found] == []


SWAPS = {
    "main.py": lambda job: (job / "code" / "main.py").write_text(LEAVES_A_TRACE),
    "one more space": lambda job: (job / "code" / "main.py").write_text(COUNT + " "),
    "run.sh": lambda job: (job / "run.sh").write_text("touch code/outputs/ran\n"),
    "an input": lambda job: (job / "code" / "inputs" / "note.txt").write_text("43"),
    "a file more": lambda job: (job / "code" / "json.py").write_text(LEAVES_A_TRACE),
    "a file more beside the code": lambda job: (job / "code.py").write_text(LEAVES_A_TRACE),
    "an empty file more": lambda job: (job / "code" / "numpy.py").touch(),
}


@pytest.mark.parametrize("what", SWAPS)
def test_a_job_that_was_swapped_after_its_approval_does_not_run(sites, what: str) -> None:
    owner, name = sites.owners["nord"], approved(sites, "nord", COUNT, note="42")
    before = owner.review(name)
    (job,) = sites.path.glob(f"coordinator/nord@example.org/app_data/job/inbox/*/*/{name}")
    SWAPS[what](job)
    with quiet():
        sites.coordinator.client.sync_engine.push_job_files(job)
    owner.receive()
    after = owner.review(name)
    assert after.files != before.files  # the swap did arrive
    assert owner.changes(after)
    assert "it is not what nord approved (changed: " in refused(sites, name)
    sites.coordinator.resend("nord", name, "code/inputs/note.txt", "44")
    owner.receive()
    refused(sites, name)


def test_a_job_that_was_swapped_back_is_what_was_approved(sites) -> None:
    owner, name = sites.owners["nord"], approved(sites, "nord", COUNT)
    for text in (LEAVES_A_TRACE, COUNT):
        sites.coordinator.resend("nord", name, "code/main.py", text)
        owner.receive()
    assert owner.run(name).status == DONE


def test_a_job_that_plain_syft_has_approved_is_not_run_along(sites) -> None:
    owner, name = sites.owners["nord"], approved(sites, "nord", COUNT)
    other = received(sites, "nord", LEAVES_A_TRACE)
    with quiet():
        next(job for job in owner.client.job_client.jobs if job.name == other.name).approve("by its name")
    assert owner.run(name).status == DONE
    (folder,) = owner.client.syftbox_folder.glob(f"*/app_data/job/review/*/*/{other.name}")
    assert {path.name for path in folder.rglob("*")} == {"state.yaml"}
    with pytest.raises(UserError, match="it waits no longer: it is approved"):
        owner.run(other.name)


def test_an_approval_is_for_one_run(sites) -> None:
    owner, name = sites.owners["nord"], approved(sites, "nord", COUNT)
    assert owner.run(name).status == DONE
    again = received(sites, "nord", COUNT)
    with pytest.raises(UserError, match="no more runs of this code are approved"):
        owner.run(again.name)


def test_a_copy_of_a_job_byte_by_byte_is_not_approved_with_it(sites) -> None:
    owner, name = sites.owners["nord"], approved(sites, "nord", COUNT)
    copy = received(sites, "nord", COUNT).name
    sites.coordinator.resend("nord", copy, "config.yaml", owner.review(name).files["config.yaml"].decode())
    owner.receive()
    assert owner.review(copy).digest == owner.review(name).digest
    assert owner.run(name).status == DONE
    with pytest.raises(UserError, match="no more runs of this code are approved"):
        owner.run(copy)


def test_repeats_cover_other_inputs_and_no_other_code_and_count_down(sites) -> None:
    owner, name = sites.owners["nord"], approved(sites, "nord", COUNT, repeats=2, note="0")
    assert owner.run(name).status == DONE
    other = received(sites, "nord", COUNT + "\n", note="1")
    with pytest.raises(UserError, match="it is not what nord approved"):
        owner.run(other.name)
    for note in ("1", "2"):
        assert owner.run(received(sites, "nord", COUNT, note=note).name).status == DONE
    with pytest.raises(UserError, match="it is not what nord approved"):
        owner.run(received(sites, "nord", COUNT, note="3").name)
    with pytest.raises(UserError):  # an approval is one owner's
        sites.owners["sued"].run(received(sites, "sued", COUNT, note="1").name)


def test_an_approval_ends_with_another_version_of_the_software(sites, monkeypatch) -> None:
    name = approved(sites, "nord", COUNT, repeats=5)
    monkeypatch.setattr("fedbone.engines.review.version", lambda _: "9.9")
    assert "it is not what nord approved (changed: software)" in refused(sites, name)


@pytest.mark.parametrize("script", ["", RUN_SCRIPT + "\n", RUN_SCRIPT.replace("env -i", "env"), "python main.py\n"])
def test_another_start_script_cannot_be_approved(sites, script: str) -> None:
    name = sites.coordinator.submit("nord", "job", {"main.py": LEAVES_A_TRACE}, run_script=script)
    owner = sites.owners["nord"]
    owner.receive()
    submission = owner.review(name)
    with pytest.raises(UserError, match=r"its run\.sh is not the one that starts the sandbox"):
        owner.approve(submission, "read", COUNTS, repeats=5)
    refused(sites, name)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_that_fails_is_named_at_the_hospital_and_tells_the_coordinator_fixed_words(sites, fault: str) -> None:
    job, words = FAULTS[fault]
    owner, name = sites.owners["nord"], approved(sites, "nord", job, TRAINING)
    owner.timeout_s = 2.0 if fault == "hangs" else 60.0
    result = owner.run(name)
    assert result.status == (REFUSED if words.startswith(UPDATE) else FAILED)
    assert (result.problem, result.outputs) == (words, {})
    assert MARK in result.log
    owner.release(result)
    assert told(sites, name) == f"nord: its job {words}. Its owner has the log; change the job, or ask there"
    assert MARK.encode() not in readable(sites)
    assert owner.run(approved(sites, "nord", COUNT)).status == DONE  # the hospital works on


def test_what_a_job_prints_is_text_in_the_log_and_no_reason_to_fail(sites) -> None:
    job = COUNT + "import os\nos.write(1, b'\\xff\\xfe begin\\x1b[2J \\x00')\nos.write(2, bytes(range(256)) + b'end')\n"
    result = sites.owners["nord"].run(approved(sites, "nord", job))
    assert result.status == DONE
    assert "begin" in result.log
    assert "end" in result.log
    assert all(character.isprintable() or character in "\n\t" for character in result.log)


@confined
def test_a_job_reads_its_own_hospital_s_films_and_nothing_else(sites) -> None:
    earlier = approved(sites, "nord", COUNT, note="of an earlier job")
    assert sites.owners["nord"].run(earlier).status == DONE
    inbox, review = (
        sites.owners["nord"].review(earlier) and folder
        for folder in sites.owners["nord"].client.syftbox_folder.glob(f"*/app_data/job/*/*/*/{earlier}")
    )
    closed = [private_file(sites, "sued"), *(path for f in (inbox, review) for path in f.rglob("*") if path.is_file())]
    closed += [*sites.path.glob("sued/**/*.npz"), *sites.path.glob("coordinator/**/*.npz")]
    closed += [*sites.path.glob("nord-events/*"), *sites.path.glob("nord-rules.json"), *sites.path.glob("nord/*.json")]
    assert len(closed) > 10
    job = f"""
import json
count = 0
for path in {[str(path) for path in closed]!r}:
    try:
        open(path, 'rb').read()
        print('read', path)
    except PermissionError:
        count += 1
open({str(private_file(sites, "nord"))!r}, 'rb').read()
json.dump({{'films': count}}, open('outputs/count.json', 'w'))
"""
    result = sites.owners["nord"].run(approved(sites, "nord", job))
    assert result.log == ""
    assert result.outputs == {"count.json": f'{{"films": {len(closed)}.0}}'.encode()}


def test_a_link_to_another_hospital_s_film_brings_nothing(sites) -> None:
    target = str(private_file(sites, "sued"))
    for make in ("symlink_to", "hardlink_to"):
        job = f"import pathlib\npathlib.Path('outputs/count.json').{make}({target!r})\n"
        owner, name = sites.owners["nord"], approved(sites, "nord", job)
        result = owner.run(name)
        assert result.status == FAILED
        assert result.problem in (OTHER_FILES, "raised an error")  # refused by the kernel, or found by the supervisor
        owner.release(result)
        assert result.problem in told(sites, name)
    found = readable(sites)
    assert [part for part in private_strings(sites, "sued") if part in found] == []


def test_a_job_inherits_none_of_our_variables(sites, monkeypatch) -> None:
    monkeypatch.setenv("FEDBONE_SECRET", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("PYTHONSTARTUP", "hunter2")
    job = "import os\nfor pair in os.environ.items():\n    print(*pair)\n" + COUNT
    log = sites.owners["nord"].run(approved(sites, "nord", job)).log
    assert "hunter2" not in log
    names = {line.split()[0] for line in log.splitlines()}
    assert names >= {"PATH", "HOME", "SYFTBOX_FOLDER", "SYFTBOX_EMAIL"}
    assert not [name for name in names if name.startswith(("FEDBONE", "AWS", "CUDA", "PYTEST"))]
    assert names <= set(
        "PATH HOME TMPDIR LANG LC_CTYPE OMP_NUM_THREADS PYTHONPATH PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE "
        "SYFTBOX_FOLDER SYFTBOX_EMAIL SYFT_IS_IN_JOB".split()
    )


def interrupt_when(ready: Callable[[], bool]) -> threading.Thread:
    """Ctrl+C for this process, as soon as ``ready``."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not ready() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_an_interrupt_ends_the_job_and_the_hospital_works_on(sites) -> None:
    owner, name = sites.owners["nord"], approved(sites, "nord", HANGS)
    traces, mine, seen = sites.path / "nord", psutil.Process(), set()

    def started() -> bool:
        seen.update(child.pid for child in mine.children(recursive=True))
        return bool(list(traces.rglob("code/outputs/ran")))

    thread = interrupt_when(started)
    with pytest.raises(KeyboardInterrupt):
        owner.run(name)
    thread.join()
    assert len(seen) >= 2  # the supervisor and the job
    assert all_ended(seen, within_s=0.5)
    with pytest.raises(UserError, match="it waits no longer"):
        owner.run(name)
    other = approved(sites, "nord", COUNT)
    owner.release(owner.run(other))
    assert sites.coordinator.collect("nord", other) == {"count.json": b'{"films": 4.0}'}


@pytest.mark.parametrize(("killed", "words"), [("job", "was killed"), ("supervisor", "was lost together with its sup")])
def test_a_job_or_supervisor_that_is_killed_is_reported(sites, killed: str, words: str) -> None:
    owner, name = sites.owners["nord"], approved(sites, "nord", HANGS)
    pids = []

    def kill() -> None:
        while not list(sites.path.glob("nord/**/code/outputs/ran")):
            time.sleep(0.02)
        (supervisor,) = psutil.Process().children()
        (job,) = supervisor.children()
        pids.extend([job.pid, supervisor.pid])
        (job if killed == "job" else supervisor).kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    result = owner.run(name)
    thread.join()
    assert result.status == FAILED
    assert result.problem.startswith(words)
    assert result.outputs == {}
    assert all_ended(pids)
    owner.release(result)
    assert words in told(sites, name)
    assert owner.run(approved(sites, "nord", COUNT)).status == DONE


def test_numbers_are_released_as_the_policy_says(sites) -> None:
    job = "import json\njson.dump({'a': 1, 'b': 2}, open('outputs/count.json', 'w'))\n"
    owner = sites.owners["nord"]
    for names, status in ((("a", "b"), DONE), (("a",), REFUSED)):
        result = owner.run(approved(sites, "nord", job, {"count.json": Numbers(names)}))
        assert result.status == status


def test_two_jobs_of_one_name_are_refused(sites) -> None:
    """syft still reads the inbox of its first version, and would run whichever of the two is approved."""
    name, owner = approved(sites, "nord", COUNT), sites.owners["nord"]
    twin = owner.review(name)
    inbox = sites.coordinator._job("nord", name).job_submission_path
    old = inbox.parents[1] / name
    shutil.copytree(inbox, old)
    (old / "run.sh").write_text("touch ran")
    with quiet():
        sites.coordinator.client.sync_engine.push_job_files(old)
    owner.receive()
    with quiet():
        jobs = [job for job in owner.client.job_client.jobs if job.name == twin.name]
    assert len(jobs) == 2
    with pytest.raises(UserError, match="two jobs have this name"):
        owner.run(name)
    assert not ran(owner)


def test_a_rejection_withdraws_the_approval(sites) -> None:
    submission, owner = received(sites, "nord", COUNT), sites.owners["nord"]
    owner.approve(submission, "read", COUNTS, repeats=5)
    owner.reject(submission.name, "on second thoughts")
    again = received(sites, "nord", COUNT)
    assert again.code_digest == submission.code_digest
    refused(sites, again.name)
    assert not ran(owner)


@pytest.mark.parametrize("file", ["refusal.json", "syft.pub.yaml", "a/x.json", "../x.json", "", ".", ".."])
def test_a_policy_names_plain_files(sites, file) -> None:
    submission = received(sites, "nord", COUNT)
    with pytest.raises(UserError, match="no job can hand out"):
        sites.owners["nord"].approve(submission, "read", {file: Numbers(("films",))})
