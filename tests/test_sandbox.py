"""Each promise is an attack: it succeeds in a free process, and fails in a confined one where the machine claims it."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedbone.engines import sandbox, system_calls
from fedbone.engines.sandbox import Protections, confine, protections, system_paths
from tests.helpers import all_ended

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="jobs need Linux or macOS")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the calls are Linux's")
ROOT = Path(__file__).resolve().parents[1]
DONE = "done"
REFUSED = {"EACCES", "EPERM", "EXDEV", "ENOTTY"}  # the last for a second name in another folder

# every attack by the part that has to stop it; OWN may be read, PLACE written, OTHER neither
ATTACKS = {
    "files": {
        "read another hospital's film": "open(OTHER + '/film').read()",
        "read the password file": "open('/etc/passwd').read()",
        "read the repository": "open(ROOT + '/README.md').read()",
        "list another folder": "os.listdir(OTHER)",
        "follow a link out of the own folder": "open(OWN + '/way_out').read()",
        "read the parent's environment": "open(f'/proc/{os.getppid()}/environ').read()",
        "reach the root through /proc": "open('/proc/self/root/etc/passwd').read()",
        "write elsewhere": "open(OTHER + '/new', 'w')",
        "change the own films": "open(OWN + '/film', 'a')",
        "add to the own folder": "open(OWN + '/new', 'w')",
        "remove an own film": "os.remove(OWN + '/spare')",
        "move an own film": "os.rename(OWN + '/spare2', PLACE + '/spare2')",
        "link to another file": "os.symlink(OTHER + '/film', PLACE + '/symbolic')",
        "give a film a second name": "os.link(OWN + '/film', PLACE + '/hard')",
        "leave a pipe": "os.mkfifo(PLACE + '/pipe')",
        "leave shared memory": "open('/dev/shm/' + NAME, 'w').close(); os.remove('/dev/shm/' + NAME)",
        "run another program": "os.execv(OTHER + '/program', ['program'])",
    },
    "writes": {
        "empty an own film while opening it": "os.open(OWN + '/emptied', os.O_RDONLY | os.O_TRUNC)",
    },
    "calls": {
        "TCP": "socket.create_connection(('127.0.0.1', TCP), 5)",
        "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP))",
        "Unix socket with a path": "socket.socket(socket.AF_UNIX).connect(UNIX)",
        "Unix socket without a path": "socket.socket(socket.AF_UNIX).connect(chr(0) + NAME)",
        "a pair of sockets, one of which connects anew": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "change the mode of a film": "os.chmod(OWN + '/film', 0o600)",
        "change its times": "os.utime(OWN + '/film')",
        "change its owner": "os.chown(OWN + '/film', os.getuid(), os.getgid())",
        "empty it by name": "os.truncate(OWN + '/spare3', 0)",
        "control an open film": "fcntl.ioctl(os.open(OWN + '/film', os.O_RDONLY), 0x541B, bytes(8))",  # FIONREAD
        "lease an open film": "fcntl.fcntl(os.open(OWN + '/film', os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
        "lock an open film": "fcntl.flock(os.open(OWN + '/film', os.O_RDONLY), fcntl.LOCK_SH)",
        "read a mark of another film": "os.listxattr(OTHER + '/film')",
        "memory without a file": "os.memfd_create('x')",
        "keys of the user": "call(KEYCTL, 0, ctypes.c_long(-4), 1)",
        "shared memory of System V": "call(SHMGET, 0, 4096, 0o1600)",
        "fork": "os.fork() or os._exit(0)",
        "a command": "subprocess.run(['/bin/true'], check=True)",
        "a spawned command": "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
        "signal the parent": "os.kill(os.getppid(), 0)",
        "signal the parent's thread": "call(TGKILL, os.getppid(), os.getppid(), 0)",
        "signal through a pipe's owner": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
        "limit the parent": "resource.prlimit(os.getppid(), resource.RLIMIT_CORE)",
        "change the pace of a process": "os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))",
        "outlive the parent": "call(PRCTL, 1, 0)",
    },
}
PERMITTED = {  # what honest jobs do
    "read": "open(OWN + '/film').read()",
    "list": "os.listdir(OWN)",
    "write and rename": "open(PLACE + '/a', 'w').write('x'); os.rename(PLACE + '/a', PLACE + '/b')",
    "overwrite": "open(PLACE + '/c', 'w').write('x'); open(PLACE + '/c', 'w').write('y')",
    "remove": "open(PLACE + '/d', 'w'); os.remove(PLACE + '/d')",
    "folders": "os.mkdir(PLACE + '/e'); open(PLACE + '/e/f', 'w').close(); shutil.rmtree(PLACE + '/e')",
    "temporary files": "tempfile.NamedTemporaryFile(dir=PLACE).write(b'x')",
    "threads": "threads()",
    "discard": "open('/dev/null', 'w').write('x')",
    "raise a signal for itself": "signal.signal(signal.SIGUSR1, print); signal.raise_signal(signal.SIGUSR1)",
    "look up names and sizes": "os.stat(OTHER + '/film').st_size; os.stat('/etc/passwd')",  # as the statement says
}
PRELUDE = """
import ctypes, errno, fcntl, json, os, resource, shutil, signal, socket, subprocess, sys, tempfile, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(*numbers):
    if libc.syscall(*(ctypes.c_long(n) if isinstance(n, int) else n for n in numbers)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def threads():
    seen = []
    thread = threading.Thread(target=seen.append, args=(1,))
    thread.start(); thread.join(10)
    assert seen == [1]
globals().update(json.loads(sys.argv[1]))
answers = {}
for name, code in json.loads(sys.argv[2]).items():
    try:
        exec(code)
        answers[name] = "done"
    except OSError as error:
        answers[name] = errno.errorcode[error.errno]
print(json.dumps(answers))
"""


def folders(root: Path) -> dict[str, str]:
    for folder in ("own", "other", "place"):
        (root / folder).mkdir()
        for film in ("film", "spare", "spare2", "spare3", "emptied"):
            (root / folder / film).write_text("pixels")
    (root / "other" / "program").write_text("#!/bin/sh\n")
    (root / "other" / "program").chmod(0o755)
    (root / "own" / "way_out").symlink_to(root / "other" / "film")
    return {"OWN": f"{root}/own", "OTHER": f"{root}/other", "PLACE": f"{root}/place"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A hospital's folders, another's, and servers that listen: names for the attacks."""
    name = f"fedbone-{os.getpid()}"
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    path, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    path.bind(f"/tmp/{name}")
    path.listen()
    if sys.platform == "linux":
        abstract.bind(f"\0{name}")
        abstract.listen()
    numbers = system_calls.known_numbers() or {}
    words = {
        **folders(tmp_path_factory.mktemp("a world")),
        **{
            "ROOT": str(ROOT),
            "NAME": name,
            "TCP": tcp.getsockname()[1],
            "UDP": udp.getsockname()[1],
            "UNIX": f"/tmp/{name}",
        },
        **{key: numbers.get(key.lower(), -1) for key in ("KEYCTL", "SHMGET", "TGKILL", "PRCTL")},
    }
    yield words
    for server in (tcp, udp, path, abstract):
        server.close()
    os.remove(f"/tmp/{name}")


def answers(world: dict, codes: dict[str, str], confined: bool = True) -> dict[str, str]:
    """What became of each code, all run in one process; confined to OWN and PLACE, or free."""
    readable = [*system_paths(), Path(world["OWN"])]
    writable = [Path(world["PLACE"]), Path(os.devnull)]
    ended = subprocess.run(
        [sys.executable, "-s", "-c", PRELUDE, json.dumps(world), json.dumps(codes)],
        preexec_fn=(lambda: confine(readable, writable)) if confined else None,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


EACH = [(part, name) for part, codes in ATTACKS.items() for name in codes]
ALL = {name: code for codes in ATTACKS.values() for name, code in codes.items()}
ALONE = "run another program"  # a success ends the attacker


@pytest.fixture(scope="module")
def confined_answers(world):
    """Before the free ones, which destroy what is attacked."""
    return answers(world, ALL)


@pytest.fixture(scope="module")
def free_answers(world, confined_answers):
    return answers(world, {name: code for name, code in ALL.items() if name != ALONE}, confined=False)


@linux
@pytest.mark.parametrize(("part", "name"), EACH, ids=[name for _, name in EACH])
def test_an_attack_fails_where_the_machine_claims_it(part, name, confined_answers):
    if not getattr(protections(), part):
        pytest.skip(f"this machine does not claim {part}: {protections().statement()}")
    assert confined_answers[name] in REFUSED


@linux
@pytest.mark.parametrize("name", [name for name in ALL if name != ALONE])
def test_the_same_attack_succeeds_in_a_free_process(name, free_answers):
    if free_answers[name] in REFUSED | {"ENOSYS"} and name == "keys of the user":
        pytest.skip("a container keeps the keys already")
    assert free_answers[name] == DONE


@pytest.mark.parametrize("name", PERMITTED)
def test_what_a_job_needs_still_works(name, world):
    assert answers(world, {name: PERMITTED[name]}) == {name: DONE}


@linux
def test_where_nothing_is_enforced_the_statement_says_so_and_it_is_true(world, monkeypatch):
    nothing = Protections(files=False, writes=False, calls=False)
    monkeypatch.setattr(sandbox, "protections", lambda: nothing)
    assert nothing.statement() == (
        "Nothing stops a job here from reading any file of this user. Nothing stops a job here from using the network."
    )
    tried = {name: ALL[name] for name in ("read another hospital's film", "TCP", "fork", "signal the parent")}
    assert set(answers(world, tried).values()) == {DONE}


def test_the_statement_names_what_is_held_and_what_is_not():
    everything = Protections(files=True, writes=True, calls=True)
    assert everything.statement() == (
        "The operating system sees to it that a job here opens only the files that it was given, reaches no network, "
        "starts no second process and kills no other process. "
        "Of other files it can still ask whether they exist, their size, times, mode and owner."
    )
    only_files = Protections(files=True, writes=False, calls=False)
    assert only_files.statement() == (
        "The operating system sees to it that a job here opens only the files that it was given. "
        "This kernel's Landlock is too old to stop a job from emptying a file that it may read. "
        "Nothing stops a job here from using the network. "
        "Of other files it can still ask whether they exist, their size, times, mode and owner."
    )


@linux
@pytest.mark.skipif(not protections().files, reason="this kernel offers no Landlock")
@pytest.mark.parametrize("version", range(1, 8))
def test_older_landlock_holds_what_it_knows(version, world, monkeypatch, tmp_path):
    if version > sandbox._landlock_version():
        pytest.skip("this kernel's Landlock is older")
    monkeypatch.setattr(sandbox, "_landlock_version", lambda: version)
    monkeypatch.setattr(sandbox, "protections", protections.__wrapped__)  # asked anew
    world = {**world, **folders(tmp_path)}
    found = answers(world, ATTACKS["files"] | ATTACKS["writes"] | PERMITTED)
    assert set(map(found.get, ATTACKS["files"])) <= REFUSED
    assert sandbox.protections().writes == (version >= 3)
    assert (found["empty an own film while opening it"] in REFUSED) == (version >= 3)
    assert {name: found[name] for name in PERMITTED} == dict.fromkeys(PERMITTED, DONE)


@linux
@pytest.mark.parametrize("part", ["_restrict_files", "_restrict_calls", "_drop_capabilities"])
def test_a_part_that_fails_keeps_the_process_from_starting(part, monkeypatch, capfd):
    if not (protections().files and protections().calls):
        pytest.skip(protections().statement())

    def fail(*_):
        raise OSError("this part is broken")

    monkeypatch.setattr(sandbox, part, fail)
    with pytest.raises(subprocess.SubprocessError):
        subprocess.run([sys.executable, "-c", "print('started')"], preexec_fn=lambda: confine(system_paths(), []))
    out, err = capfd.readouterr()
    assert out == ""
    assert "could not be confined (this part is broken)" in err


@linux
def test_roots_rights_are_gone_but_for_files_of_other_owners(world):
    """CapEff of /proc/self/status is the kernel's own account: bit 1 is CAP_DAC_OVERRIDE (linux/capability.h)."""
    script = "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapPrm'))])"
    ended = subprocess.run(
        [sys.executable, "-s", "-c", script],
        preexec_fn=lambda: confine([*system_paths(), Path("/proc/self")], []),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [int(word, 16) & ~2 for word in ended.stdout.split()] == [0, 0]
    assert os.getuid() != 0 or "0000000000000002" in ended.stdout


@linux
@pytest.mark.skipif(not protections().calls, reason="no table of system calls for this processor")
def test_calls_are_refused_without_landlock_too(world, monkeypatch):
    monkeypatch.setattr(sandbox, "protections", lambda: replace(protections(), files=False))
    tried = ATTACKS["calls"]
    assert set(answers(world, tried).values()) == {"EPERM", "ENOTTY"}  # the latter for ioctl


@linux
@pytest.mark.skipif(not protections().calls, reason="no table of system calls for this processor")
def test_every_call_of_the_table_is_refused_also_by_its_bare_number(world):
    """And under the second set of numbers, x32, that some kernels for x86_64 take; the arguments would be harmless."""
    old_forks = {"fork": 57, "vfork": 58} if platform.machine() == "x86_64" else {}  # the C library uses clone
    conditional = {"clone", "clone3", "tgkill", "fcntl", "prctl", "prlimit64", "ioctl", "seccomp"}
    numbers = {name: number for name, number in system_calls.known_numbers().items() if name not in conditional}
    assert len(numbers) > 40
    tried = {name: f"call({number}, -1, -1, -1, -1, -1)" for name, number in {**numbers, **old_forks}.items()}
    tried |= {f"{name} again": f"call({0x40000000 + number}, -1, -1, -1)" for name, number in numbers.items()}
    assert {name: found for name, found in answers(world, tried).items() if found != "EPERM"} == {}


@linux
@pytest.mark.parametrize(
    ("header", "machine"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "x86_64"), ("/usr/include/asm-generic/unistd.h", "aarch64")],
)
def test_numbers_are_the_kernels(header, machine, monkeypatch):
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    theirs = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    monkeypatch.setattr(system_calls.platform, "machine", lambda: machine)
    ours = system_calls.known_numbers()
    known = {name: number for name, number in ours.items() if name in theirs}
    assert len(known) >= 55
    assert known == {name: int(theirs[name]) for name in known}


def test_an_unknown_processor_claims_nothing_about_calls(monkeypatch):
    monkeypatch.setattr(system_calls.platform, "machine", lambda: "riscv64")
    claimed = protections.__wrapped__()
    assert not claimed.calls
    assert "using the network" in claimed.statement()


@linux
def test_a_confined_process_ends_with_its_parent():
    script = (
        "import subprocess, sys; from fedbone.engines.sandbox import *\n"
        "job = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " preexec_fn=lambda: confine(system_paths(), []))\n"
        "print(job.pid, flush=True); job.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    job = int(parent.stdout.readline())
    assert not all_ended([job], within_s=0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert all_ended([job])


@linux
def test_orphans_are_adopted():
    script = (
        "import os, time; from fedbone.engines.sandbox import *; adopt_orphans()\n"
        "me, (reader, writer) = os.getpid(), os.pipe()\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        while os.getppid() != me: time.sleep(0.01)\n"
        "        os.write(writer, b'adopted')\n"
        "    os._exit(0)\n"
        "os.wait(); print(os.read(reader, 7))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert ended.stdout.strip() == "b'adopted'", ended.stderr


TRAINING = """
import sys, torch, cv2, syft
from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.model.hrnet import build_for
from fedbone.vectors import sha256, to_vector
from helpers import dot_hospital, tiny_profile
start = to_vector(build_for(tiny_profile(), 3, 0))
print(sha256(Hospital(dot_hospital("a"), tiny_profile()).local_update(start, RoundTask(1, 7)).delta))
"""


@pytest.mark.slow
def test_a_round_of_training_gives_the_same_bytes_confined(tmp_path):
    """Through the same link to the package as a job's, and with torch, OpenCV and syft imported."""
    pytest.importorskip("syft")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "fedbone").symlink_to(ROOT / "fedbone")
    (tmp_path / "lib" / "helpers.py").write_bytes((ROOT / "tests" / "helpers.py").read_bytes())
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "lib")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path)}
    digests = [
        subprocess.run(
            [sys.executable, "-s", "-c", TRAINING],
            preexec_fn=enter,
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        for enter in (None, lambda: confine(system_paths(), [tmp_path, Path(os.devnull)]))
    ]
    assert [ended.returncode for ended in digests] == [0, 0], digests[1].stderr
    assert re.fullmatch(r"[0-9a-f]{64}\n", digests[0].stdout)
    assert digests[0].stdout == digests[1].stdout


def test_it_costs_little_to_load():
    script = "import time; import fedbone.engines.sandbox, sys; print(time.process_time(), 'numpy' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    seconds, numpy = ended.stdout.split()
    assert float(seconds) < 1
    assert numpy == "False"
