import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fedbone.config import REPOSITORY
from fedbone.engines.flare import machine, supervisor
from fedbone.engines.flare.kit import Kit, load_parties
from fedbone.engines.flare.processes import (
    end_processes,
    environment,
    only_supervisor,
    party_processes,
    require_linux,
    supervisors,
    temporary_files,
)
from fedbone.engines.flare.supervisor import FIRST_PAUSE_S, HEALTHY_S, LONGEST_PAUSE_S, SAY_S, Part, cap, parts
from fedbone.errors import UserError
from tests.kits import make_kits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a deployment runs on Linux only")
SLEEP = ["-c", "import time; time.sleep(300)"]
STUBBORN = ["-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(300)"]
# a process with a job process in a session of its own, as FLARE starts them
WITH_JOB = [
    "-c",
    "import subprocess, sys, time;"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True);"
    "print('both', flush=True); time.sleep(300)",
]


@pytest.fixture
def kit(tmp_path):
    """A kit with its settings only, whose processes are ended after the test."""
    kit = Kit(tmp_path / "my kits" / "north", "hospital", "north", "fedbone-0", "localhost", 9, ("north",), tmp_path)
    kit.own.mkdir(parents=True)
    kit.write_settings()
    yield kit
    end_processes(lambda: party_processes(kit), 0.0)


def until(what, within_s=20.0):
    ends = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)
    return found


def started(kit, part, command):
    return subprocess.Popen([sys.executable, *command], env=environment(kit, part), stdout=subprocess.PIPE, text=True)


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_processes_are_found_by_kit_and_part(kit, tmp_path):
    other = Kit(Path(f"{kit.folder}2"), "hospital", "north", "fedbone-0", "localhost", 9, ("north",), tmp_path)
    other.own.mkdir(parents=True)
    ours, theirs = started(kit, "hospital", SLEEP), started(other, "hospital", SLEEP)
    watchdog = started(kit, "watchdog", SLEEP)
    try:
        assert until(lambda: party_processes(kit) == {ours.pid, watchdog.pid})
        assert party_processes(kit, "hospital") == {ours.pid}
        assert party_processes(kit, "hosp") == set()
        assert party_processes(other) == {theirs.pid}
    finally:
        for process in (ours, theirs, watchdog):
            process.kill()
            process.communicate()
    assert party_processes(kit) == party_processes(other) == set()


def test_ending_finds_what_lost_its_parent_and_kills_what_is_deaf(kit):
    parent, deaf = started(kit, "hospital", WITH_JOB), started(kit, "hospital", STUBBORN)
    assert parent.stdout.readline() == "both\n"
    assert deaf.stdout.readline() == "deaf\n"
    orphan = until(lambda: party_processes(kit) - {parent.pid, deaf.pid})
    parent.kill()
    parent.wait()
    assert orphan <= party_processes(kit)
    assert end_processes(lambda: party_processes(kit), 0.5) == 2
    assert (deaf.wait(10), party_processes(kit)) == (-signal.SIGKILL, set())
    for process in (parent, deaf):
        process.communicate()


def test_ending_asks_before_it_kills(kit):
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('on', flush=True); time.sleep(300)"
    )
    polite = started(kit, "hospital", ["-c", code])
    polite.stdout.readline()
    end_processes(lambda: party_processes(kit))
    assert polite.wait(10) == 7
    polite.communicate()


def test_ending_reaches_what_is_started_meanwhile(kit):
    """A process that starts another one whenever it is asked to end."""
    code = """if True:
        import os, signal, subprocess, sys, time
        def again(*_):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
            sys.exit(0)
        signal.signal(15, again); print("on", flush=True); time.sleep(300)"""
    hydra = started(kit, "hospital", ["-c", code])
    hydra.stdout.readline()
    end_processes(lambda: party_processes(kit))
    assert party_processes(kit) == set()
    hydra.communicate()


def test_nothing_is_imported_from_the_kit(kit):
    """The kit is the working folder, and others may be able to write to it."""
    (kit.folder / "json.py").write_text("print('from the kit')")
    (kit.own / "__init__.py").write_text("print('from the kit')")
    code = "import json, fedbone; print(fedbone.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=kit.folder, env=environment(kit, "x"), capture_output=True, text=True
    )
    assert done.stdout == f"{REPOSITORY / 'fedbone' / '__init__.py'}\n", done.stderr


def test_environment_keeps_what_was_set(kit, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    env = environment(kit, "x")
    assert env["MALLOC_ARENA_MAX"] == "2"
    assert env["PYTHONPATH"].split(os.pathsep) == [str(REPOSITORY), "/elsewhere"]


def test_temporary_files_lie_in_the_kit_for_nobody_else(kit, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")
    code = "import tempfile; print(tempfile.gettempdir())"
    process = started(kit, "hospital", ["-c", code])
    assert process.communicate()[0] == f"{temporary_files(kit)}\n"
    assert temporary_files(kit).is_relative_to(kit.own)
    assert temporary_files(kit).stat().st_mode & 0o777 == 0o700


def test_only_one_supervisor(kit):
    assert supervisors(kit) == set()
    with only_supervisor(kit):
        assert supervisors(kit) == {os.getpid()}
        with pytest.raises(UserError, match=f"process {os.getpid()} runs north already"), only_supervisor(kit):
            pass
    assert supervisors(kit) == set()
    with only_supervisor(kit):
        pass


def test_a_longer_process_id_of_before_does_not_stay(kit):
    (kit.own / "supervisor.lock").write_text("123456789012")
    with only_supervisor(kit):
        assert supervisors(kit) == {os.getpid()}


def test_other_systems_are_told_so(monkeypatch):
    require_linux()
    for name in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", name)
        with pytest.raises(UserError, match="WSL2"):
            require_linux()


def looked(part: Part, now: float) -> int | None:
    """One look; the process id, if there is one now."""
    part.look(now)
    return part._process and part._process.pid


def test_a_killed_process_is_started_again_with_growing_pauses_for_ever(kit, capfd):
    part, now, pauses = Part(kit, "hospital", SLEEP), 1000.0, []
    for _ in range(10):
        process = looked(part, now)
        assert process
        os.kill(process, signal.SIGKILL)
        part._process.wait()
        assert looked(part, now) is None
        pause = part._not_before - now
        pauses.append(pause)
        assert looked(part, now + 0.99 * pause) is None
        now += pause
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert (FIRST_PAUSE_S, LONGEST_PAUSE_S) == (0.5, 30.0)
    assert "ended with code -9; next start in 0.5 s" in capfd.readouterr().out


def test_a_process_that_was_healthy_is_started_again_at_once(kit, capfd):
    part, now = Part(kit, "hospital", SLEEP), 1000.0
    for age, pause in ((0, 0.5), (HEALTHY_S - 1, 1.0), (HEALTHY_S, 0.5), (0, 1.0)):
        process = looked(part, now)
        os.kill(process, signal.SIGKILL)
        part._process.wait()
        now += age
        looked(part, now)
        assert part._not_before - now == pause
        now += pause


def test_job_processes_do_not_outlive_the_one_that_started_them(kit, capfd):
    part = Part(kit, "hospital", WITH_JOB)
    process = looked(part, 0.0)
    until(lambda: "both" in part.log.read_text())
    (job,) = until(lambda: party_processes(kit) - {process})
    other = started(kit, "watchdog", SLEEP)
    until(lambda: party_processes(kit, "watchdog"))
    os.kill(process, signal.SIGKILL)
    part._process.wait()
    part.look(0.0)
    assert gone(job)
    assert other.poll() is None, "another part of the party was ended too"
    other.kill()
    other.communicate()


def test_it_says_why_it_waits_at_most_every_ten_seconds(kit, capfd):
    problems = {"now": UserError("host:1", "refused", "Start it")}
    part = Part(kit, "hospital", SLEEP, lambda: problems["now"])
    for tenth in range(int(2.5 * SAY_S) * 10):
        assert looked(part, tenth / 10) is None
    assert capfd.readouterr().out.count("host:1: refused. Start it") == 3
    problems["now"] = UserError("host:1", "expired", "Renew it")
    assert looked(part, 100.0) is None
    assert "expired" in capfd.readouterr().out, "something new is said at once"
    problems["now"] = None
    assert looked(part, 101.0)
    problems["now"] = UserError("host:1", "expired", "Renew it")
    os.kill(part._process.pid, signal.SIGKILL)
    part._process.wait()
    looked(part, 102.0)
    capfd.readouterr()
    looked(part, 103.0)
    assert "expired" in capfd.readouterr().out, "after a start, the same is said again"


def test_output_goes_to_a_log_that_nobody_else_reads(kit, capfd):
    code = "import os, sys; print('out', os.getcwd()); sys.stderr.write('err\\n')"
    before = os.umask(0o077)  # as ``run`` sets it
    try:
        part = Part(kit, "hospital", ["-c", code])
        looked(part, 0.0)
        part._process.wait()
    finally:
        os.umask(before)
    assert sorted(part.log.read_text().splitlines()) == ["err", f"out {kit.folder}"]
    assert part.log.stat().st_mode & 0o777 == 0o600


def test_a_log_is_cut_short_under_whoever_writes_to_it(kit, monkeypatch):
    path = kit.own / "hospital.log"
    with open(path, "ab", buffering=0) as writer:
        writer.write(b"a" * 1000)
        monkeypatch.setattr(supervisor, "LOG_BYTES", 1000)
        cap(path)
        assert path.stat().st_size == 1000
        writer.write(b"b")
        cap(path)
        writer.write(b"c")
    assert path.read_bytes() == b"c"
    assert path.with_name("hospital.log.old").read_bytes() == b"a" * 1000 + b"b"


def test_what_runs_at_each_party(tmp_path):
    server, north, _ = load_parties(make_kits(tmp_path / "my kits"))
    assert [part.name for part in parts(server)] == ["server", "watchdog"]
    (hospital,) = parts(north)
    words = parts(server)[0].command + hospital.command
    assert not [word for word in words if " " in word], "FLARE splits its own command line at spaces"
    assert "uid=north" in hospital.command
    assert "refused" in str(hospital.ready())
    assert parts(server)[0].ready() is None


RUN = """if True:
    import sys
    from pathlib import Path
    from fedbone.engines.flare import supervisor
    supervisor.parts = lambda kit: [supervisor.Part(kit, "hospital", sys.argv[2:])]
    sys.exit(supervisor.run(Path(sys.argv[1])))"""


@contextmanager
def supervised(kit, command, output=subprocess.PIPE):
    """A supervisor process for ``command``, and the process that it runs."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(kit.folder), *command], env=env, stdout=output, text=True
    )
    try:
        yield process, until(lambda: party_processes(kit, "hospital"))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_supervisor_stops_and_leaves_nothing(kit, number):
    with supervised(kit, WITH_JOB) as (process, _):
        until(lambda: len(party_processes(kit, "hospital")) == 2)
        process.send_signal(number)
        assert process.wait(15) == 0
        assert party_processes(kit) == set()


def test_a_supervisor_in_a_terminal_is_ended_too(kit):
    """It carries no mark: only the lock tells of it."""
    with supervised(kit, SLEEP) as (process, _):
        assert process.pid in party_processes(kit)
        end_processes(lambda: party_processes(kit))
        assert process.wait(15) == 0


def test_supervisor_starts_again_what_was_killed(kit):
    with supervised(kit, SLEEP) as (_, (first,)):
        os.kill(first, signal.SIGKILL)
        assert until(lambda: party_processes(kit, "hospital") - {first})


def test_supervisor_ends_when_the_administrator_shuts_the_party_down(kit):
    with supervised(kit, SLEEP) as (process, _):
        (kit.folder / "shutdown.fl").touch()
        assert process.wait(15) == 0
    assert party_processes(kit) == set()
    with supervised(kit, SLEEP) as (process, _):  # and can be started again
        assert process.poll() is None


def test_nothing_outlives_a_killed_supervisor_for_long(kit):
    with supervised(kit, SLEEP) as (process, (child,)):
        process.kill()
        process.wait()
        until(lambda: gone(child))
        assert supervisors(kit) == set()


def test_a_new_supervisor_ends_what_a_killed_one_left(kit):
    with supervised(kit, WITH_JOB) as (process, _):
        until(lambda: "both" in (kit.own / "hospital.log").read_text())
        process.kill()
        process.wait()
        left = until(lambda: party_processes(kit))  # the job process: its parent died with the supervisor
        with supervised(kit, SLEEP):
            until(lambda: all(map(gone, left)))


def test_second_supervisor_is_refused(kit):
    with supervised(kit, SLEEP) as (first, _):
        done = subprocess.run(
            [sys.executable, "-m", "fedbone", "deploy", "start", str(kit.folder)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert f"process {first.pid} runs north already" in done.stderr
        assert first.poll() is None


def test_leftover_temporary_files_go_when_the_supervisor_starts(kit):
    temporary_files(kit).mkdir()
    (temporary_files(kit) / "leftover").write_bytes(b"?")
    with supervised(kit, SLEEP):
        assert list(temporary_files(kit).iterdir()) == []


FULL = Path("/dev/full")  # whoever writes to it is told that the disk is full


def test_a_supervisor_whose_log_is_on_a_full_disk_goes_on(kit):
    with FULL.open("w") as full, supervised(kit, SLEEP, full) as (process, (first,)):
        os.kill(first, signal.SIGKILL)
        assert until(lambda: party_processes(kit, "hospital") - {first})
        assert process.poll() is None


def test_a_part_that_cannot_be_started_is_tried_again(kit, capfd):
    """Its log cannot be made, as on a full disk."""
    stop, part = threading.Event(), Part(kit, "hospital", SLEEP)
    part.log.mkdir()
    loop = threading.Thread(target=supervisor._keep_running, args=(kit, [part], stop))
    loop.start()
    try:
        said = until(lambda: capfd.readouterr().out)
        part.log.rmdir()
        assert until(lambda: party_processes(kit, "hospital"))
    finally:
        stop.set()
        loop.join()
    assert "hospital.log" in said


def test_down_without_anything_running(tmp_path):
    said = []
    machine.down(make_kits(tmp_path / "my kits"), said.append)
    assert said[:3] == ["server: nothing ran", "north: nothing ran", "south: nothing ran"]
    assert said[3].startswith("no process is left")


def test_up_names_a_port_that_is_taken(tmp_path):
    import socket

    kits = make_kits(tmp_path / "my kits")
    with socket.create_server(("127.0.0.1", Kit.load(kits / "server").port)), pytest.raises(UserError, match="port"):
        machine.up(kits)
    assert not [kit for kit in load_parties(kits) if party_processes(kit)]


@pytest.mark.slow
def test_up_says_who_is_late_and_shows_the_end_of_the_log(tmp_path, monkeypatch):
    kits = make_kits(tmp_path / "my kits")
    (kits / "server/startup/server.key").write_text("not a key")
    monkeypatch.setattr(machine, "PATIENCE_S", 15.0)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    try:
        with pytest.raises(UserError, match="server: it is not up after 15 s") as caught:
            machine.up(kits, lambda _: None)
        notes = "\n".join(caught.value.__notes__)
        assert "server ended with code" in notes
        assert re.search(r"[Kk]ey|PEM", notes), notes
    finally:
        machine.down(kits, lambda _: None)
    assert not [kit for kit in load_parties(kits) if party_processes(kit)]


def deploy(*arguments: object) -> str:
    command = [sys.executable, "-m", "fedbone", "deploy", *map(str, arguments)]
    env = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    kits = make_kits(tmp_path_factory.mktemp("a folder with spaces") / "my kits", ("north", "south"))
    deploy("up", kits)
    yield kits
    deploy("down", kits)
    assert not [kit for kit in load_parties(kits) if party_processes(kit)]


def registrations(kits: Path, name: str) -> int:
    return (kits / "server/log.txt").read_text().count(f"New client {name}@")


@pytest.mark.slow
def test_up_starts_a_deployment_and_again_leaves_it_alone(running):
    before = {kit.name: party_processes(kit, kit.role) for kit in load_parties(running)}
    assert all(before.values())
    assert deploy("up", running).count("ran already") == 3
    assert {kit.name: party_processes(kit, kit.role) for kit in load_parties(running)} == before


@pytest.mark.slow
def test_running_kits_stay_closed_to_other_accounts(running):
    secrets = [path for path in running.rglob("*") if path.suffix in (".key", ".log", ".txt", ".pem")]
    assert not [path for path in secrets if path.stat().st_mode & 0o077]


@pytest.mark.slow
@pytest.mark.parametrize("party", ["north", "server"])
def test_killed_party_comes_back_and_registers(running, party):
    kit, known = Kit.load(running / party), registrations(running, "north")
    (process,) = party_processes(kit, kit.role)
    os.kill(process, signal.SIGKILL)
    until(lambda: party_processes(kit, kit.role) - {process}, 10.0)
    until(lambda: registrations(running, "north") > known or "Re-activate the client" in tail(running), 40.0)


def tail(kits: Path) -> str:
    return (kits / "server/log.txt").read_text()[-3000:]


@pytest.mark.slow
def test_up_mends_what_a_killed_supervisor_left(running):
    kit = Kit.load(running / "south")
    (first,) = supervisors(kit)
    os.kill(first, signal.SIGKILL)
    until(lambda: not party_processes(kit), 10.0)
    assert re.search("south: started.*\n", deploy("up", running))
    assert supervisors(kit) not in (set(), {first})


@pytest.mark.slow
def test_down_leaves_nothing_and_up_works_again(running):
    deploy("down", running)
    assert not [kit for kit in load_parties(running) if party_processes(kit)]
    assert deploy("up", running).count(": started") == 3


def test_a_full_disk_ends_no_supervisor(kit, monkeypatch):
    """Its own log lies on the same disk."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stop, looks = threading.Event(), []

    class Full:
        name = "hospital"

        def look(self, now: float) -> None:
            looks.append(now)
            stop.set() if len(looks) == 3 else full()

        def put_off(self, problem: Exception, now: float) -> None:
            supervisor.say(str(problem))

    (kit.own / "hospital.log").write_bytes(bytes(supervisor.LOG_BYTES + 1))
    monkeypatch.setattr(supervisor.shutil, "copyfile", full)
    monkeypatch.setattr("builtins.print", full)
    supervisor._keep_running(kit, [Full()], stop)
    assert len(looks) == 3
    assert (kit.own / "hospital.log").stat().st_size == 0
