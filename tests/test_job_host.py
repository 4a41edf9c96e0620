"""A job is run as syft runs it, and attacks: how does it end, what is left of it, and what does it get to see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fedbone.engines.job_folder import bytes_below, fault, fresh_folder
from fedbone.engines.job_host import (
    DONE,
    ENDINGS,
    KILLED,
    LATE,
    LEFT,
    LOST,
    MEMORY,
    NOT_STARTED,
    PRINTED,
    RAISED,
    STOPPED,
    WROTE,
    JobRules,
    ending,
    log_file,
    read_rules,
    write_rules,
)
from fedbone.engines.sandbox import protections
from tests.helpers import all_ended

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="jobs need Linux or macOS")
linux = pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans and ending with the parent are Linux's")
confines = pytest.mark.skipif(
    not (protections().files and protections().calls), reason=f"not confined here: {protections().statement()}"
)
ROOT = Path(__file__).resolve().parents[1]
HOST = [sys.executable, "-P", "-s", "-m", "fedbone.engines.job_host"]
# the supervisor alone, as on a machine that enforces nothing
NOTHING_ENFORCED = """
import sys
from fedbone.engines import job_host, sandbox
nothing = sandbox.Protections(False, False, False)
sandbox.protections = lambda: nothing
sys.exit(job_host.main())
"""
FREE_HOST = [sys.executable, "-P", "-s", "-c", NOTHING_ENFORCED]
RULES = JobRules(outputs={"a.txt": 1000}, readable=(), timeout_s=20.0)
GOOD = "open('outputs/a.txt', 'w').write('x')\n"
SLEEP = "import time; time.sleep(60)\n"


class Site:
    """A hospital's syftbox folder and one submitted job."""

    def __init__(self, root: Path) -> None:
        self.box, self.job = root / "my box", root / "my box" / "inbox" / "a job"
        self.code, self.outputs = self.job / "code", self.job / "code" / "outputs"
        self.outputs.mkdir(parents=True)

    def begin(self, main: str, rules: JobRules = RULES, host: list[str] = HOST, **options) -> subprocess.Popen:
        (self.code / "main.py").write_text(main)
        write_rules(self.box, rules)
        environment = {"PATH": "/usr/bin:/bin", "SYFTBOX_FOLDER": str(self.box), "SYFTBOX_EMAIL": "a@example.org"}
        environment |= {"PYTHONPATH": str(ROOT), "PLANTED_SECRET": "swordfish"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.box.with_name("typed").write_text("what a person types")
        with open(self.box.with_name("typed")) as typed:
            return subprocess.Popen(host, cwd=self.job, env=environment, stdin=typed, text=True, **pipes, **options)

    def run(self, main: str, rules: JobRules = RULES, host: list[str] = HOST) -> tuple[int, str, str]:
        """The ending, the log, and what the supervisor itself printed, which syft would pass on."""
        supervisor = self.begin(main, rules, host)
        printed = "".join(supervisor.communicate(timeout=60))
        log = log_file(self.box)
        return supervisor.returncode, log.read_text(encoding="utf-8") if log.exists() else "", printed

    def left(self) -> list[str]:
        return sorted(path.name for path in self.outputs.iterdir())

    def pids(self, count: int = 1) -> list[int]:
        """Those that the job wrote into its outputs, once they are all there."""
        while True:
            found = [path.read_text().split() for path in self.outputs.glob("pid*")]
            if sum(map(len, found)) >= count and all(found):
                return [int(pid) for each in found for pid in each]
            time.sleep(0.02)


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    yield site
    subprocess.run(["rm", "-rf", site.box], check=True)  # pytest cannot remove folders that lie 3,000 deep


def test_a_good_job_is_done_and_its_file_is_there(site):
    assert site.run("print('hello')\n" + GOOD) == (DONE, "hello\n", "")
    assert site.left() == ["a.txt"]
    assert (site.outputs / "a.txt").read_text() == "x"
    assert not list(site.box.parent.glob("*scratch*"))


ENDS = {
    "an exception": ("1/0", RAISED),
    "exit without outputs": ("raise SystemExit", LEFT),
    "a signal": ("import signal; signal.raise_signal(9)", KILLED),
    "abort": ("import os; os.abort()", KILLED),
    "an endless loop": ("while True: pass", LATE),
    "a deadlock": ("import threading; threading.Lock().acquire(); threading.Event().wait()", LATE),
    "closed output, then sleep": ("import os; os.close(1); os.close(2)\n" + SLEEP, LATE),
    "100 MB of prints": ("for _ in range(100): print('x' * 1_000_000)", PRINTED),
    "100 MB to stderr": ("import sys\nfor _ in range(100): sys.stderr.write('x' * 1_000_000)", PRINTED),
    "1 GB of memory": ("kept = bytearray(10**9)\n" + SLEEP, MEMORY),
    "200 MB of output": ("open('outputs/a.txt', 'wb').write(bytes(200_000_000))", WROTE),
    "200 MB of temporary files": (
        "import os\nfor i in range(50): open(f'{os.environ[\"TMPDIR\"]}/{i}', 'wb').write(bytes(4_000_000))\n" + GOOD,
        WROTE,
    ),
    "10,000 empty files": ("for i in range(10_000): open(f'outputs/{i}', 'w')\n" + SLEEP, WROTE),
    "folders 3,000 deep": (
        "import os; os.chdir('outputs')\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\n" + SLEEP,
        WROTE,
    ),
    "another file": (GOOD + "open('outputs/b.txt', 'w')", LEFT),
    "a file of another name": ("open('outputs/b.txt', 'w')", LEFT),
    "a hidden file": (GOOD + "open('outputs/.b', 'w')", LEFT),
    "too large a file": ("open('outputs/a.txt', 'wb').write(bytes(1001))", LEFT),
    "a folder in its place": ("import os; os.mkdir('outputs/a.txt')", LEFT),
}


@pytest.mark.parametrize("host", [HOST, FREE_HOST], ids=["confined", "free"])
@pytest.mark.parametrize("name", ENDS)
def test_every_bad_end_has_its_words_and_leaves_nothing(name, host, site):
    main, expected = ENDS[name]
    if host is HOST and not protections().files:
        pytest.skip("the same as free here")
    rules = replace(RULES, timeout_s=1.0 if expected == LATE else 20.0, memory_mb=300)
    ended, log, printed = site.run(main, rules, host)
    assert ENDINGS[ended] == ENDINGS[expected], log
    assert printed == ""
    assert site.left() == []
    assert len(log) == rules.log_bytes if expected == PRINTED else len(log) < 10_000
    assert not list(site.box.parent.glob("*scratch*"))


FORGED = {  # what only an unconfined job can leave
    "a symbolic link": "import os; os.symlink(SECRET, 'outputs/a.txt')",
    "a second name": "import os; os.link(SECRET, 'outputs/a.txt')",
    "a pipe": "import os; os.mkfifo('outputs/a.txt')",
    "a link for a folder": "import os; os.rmdir('outputs'); os.symlink(os.path.dirname(SECRET), 'outputs')",
    "a file for the folder": "import os; os.rmdir('outputs'); open('outputs', 'w')",
    "no folder": "import os; os.rmdir('outputs')",
    "a locked folder": "import os; os.makedirs('outputs/a/b'); os.chmod('outputs/a', 0); os.chmod('outputs', 0)",
}


@pytest.mark.parametrize("name", FORGED)
def test_links_are_refused_and_never_followed(name, site, tmp_path):
    """syft's runner would copy what a link points to, with the hospital's rights."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("film of another hospital")
    ended, err, _ = site.run(f"SECRET = {str(tmp_path / 'other' / 'a.txt')!r}\n" + FORGED[name], host=FREE_HOST)
    assert ENDINGS[ended] in (ENDINGS[LEFT], ENDINGS[WROTE]), err
    assert site.outputs.is_dir()
    assert not site.outputs.is_symlink()
    assert site.left() == []
    assert (tmp_path / "other" / "a.txt").read_text() == "film of another hospital"


def test_a_job_cannot_pretend_another_ending(site):
    """Its own exit code never becomes ours: 0 with its file is done, all others are an error."""
    for code in sorted({1, 2, 126, 127, 128, 137, 143, 254, 255, *ENDINGS} - {DONE}):
        assert site.run(GOOD + f"import os; os._exit({code})", host=HOST)[0] == RAISED
    assert site.run(GOOD + "import os; os._exit(256)")[0] == DONE  # the system keeps 8 bits: this is 0


def test_the_words_hold_nothing_of_the_job():
    assert ending(0) == "done"
    assert ending(LATE) == "took longer than allowed"
    lost = ending(-9)
    assert {ending(code) for code in range(-64, 256)} == {*ENDINGS.values(), lost}
    assert lost not in ENDINGS.values()
    assert all(0 <= code < 126 for code in ENDINGS)  # a shell uses the codes above


def test_what_a_job_sees(site, tmp_path):
    """Its siblings, its home and the words it needs: no secret of ours, no open file, no terminal."""
    (site.code / "sibling.py").write_text("WORD = 'from beside'")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "film").write_text("pixels")
    main = (
        "import json, os, sys, sibling, fedbone\n"
        "home = os.environ['HOME']\n"
        "open(home + '/kept', 'w').write('x')\n"
        "seen = {'environment': dict(os.environ), 'sibling': sibling.WORD, 'cwd': os.getcwd()}\n"
        "seen |= {'home': os.listdir(home), 'mode': os.stat(home).st_mode & 0o777, 'stdin': sys.stdin.read()}\n"
        "seen |= {'leader': os.getsid(0) == os.getpid(),"
        " 'fedbone': fedbone.__version__, 'film': open(FILM).read(), 'open': []}\n"
        "for fd in range(3, 256):\n"
        "    try: os.fstat(fd); seen['open'].append(fd)\n"
        "    except OSError: pass\n"
        "json.dump(seen, open('outputs/a.txt', 'w'))\n"
    )
    rules = replace(RULES, outputs={"a.txt": 10_000}, readable=(str(tmp_path / "films"), str(tmp_path / "nowhere")))
    ended, err, _ = site.run(f"FILM = {str(tmp_path / 'films' / 'film')!r}\n" + main, rules)
    assert ended == DONE, err
    seen = json.loads((site.outputs / "a.txt").read_text())
    words = seen.pop("environment")
    scratch = words["HOME"]
    assert words.pop("LC_CTYPE", "C.UTF-8") == "C.UTF-8"  # which Python may add
    assert words.pop("GOMP_SPINCOUNT") == "2000"  # by the job's own import of fedbone
    assert words == {
        **{"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
        **{"PYTHONPATH": f"{scratch}/lib", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
        **{"SYFTBOX_FOLDER": str(site.box), "SYFTBOX_EMAIL": "a@example.org", "SYFT_IS_IN_JOB": "true"},
    }
    assert Path(scratch).parent == site.box.parent
    assert not Path(scratch).exists()
    assert not (site.code / "__pycache__").exists()
    assert sorted(seen.pop("home")) == ["kept", "lib"]
    assert seen.pop("fedbone")
    assert seen == {
        **{"sibling": "from beside", "cwd": str(site.code), "mode": 0o700, "stdin": "", "leader": True},
        **{"film": "pixels", "open": []},
    }


@confines
def test_a_job_is_confined(site, tmp_path):
    """That the rules reach the sandbox; its own attacks are in test_sandbox.py."""
    (tmp_path / "film").write_text("pixels")
    attacks = {
        "film": f"open({str(tmp_path / 'film')!r})",
        "passwords": "open('/etc/passwd')",
        "repository": f"open({str(ROOT / 'README.md')!r})",
        "samples": f"os.listdir({str(ROOT / 'data' / 'sample')!r})",
        "rules": f"open({str(site.box) + '-rules.json'!r})",
        "box": f"os.listdir({str(site.box)!r})",
        "submission": "os.listdir('..')",
        "supervisor": "open(f'/proc/{os.getppid()}/environ')",
        "own code": "open('main.py', 'a')",
        "new outputs": "os.rename('outputs', 'other')",
        "network": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "signal": "os.kill(os.getppid(), 15)",
        "fork": "os.fork()",
    }
    main = (
        "import json, os, socket\nfound = {}\n"
        f"for name, code in {attacks!r}.items():\n"
        "    try: exec(code); found[name] = 'done'\n"
        "    except OSError as error: found[name] = 'refused'\n"
        "json.dump(found, open('outputs/a.txt', 'w'))\n"
    )
    ended, err, _ = site.run(main)
    assert ended == DONE, err
    assert json.loads((site.outputs / "a.txt").read_text()) == dict.fromkeys(attacks, "refused")


def test_the_log_is_plain_text(site):
    main = (
        "import os; os.write(1, b'a\\x1b[2Jb\\xffc\\r\\n\\xc3'); os.write(1, b'\\xa4\\n'); os.write(2, b'\\xe2\\x82')\n"
    )
    assert site.run(main + GOOD) == (DONE, "a\ufffd[2Jb\ufffdc\ufffd\n\u00e4\n\ufffd", "")


ORPHANS = """
import os, time
for i in range({count}):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            open(f"outputs/pid{{i}}", "w").write(str(os.getpid()))
            time.sleep(60)
        os._exit(0)
pids = []
while len(pids) < {count}:
    time.sleep(0.01)
    pids = [pid for name in os.listdir("outputs") if (pid := open("outputs/" + name).read())]
print(*pids)
"""


@linux
def test_orphans_in_their_own_sessions_are_found_and_ended(site):
    ended, out, _ = site.run(ORPHANS.format(count=20), host=FREE_HOST)
    assert ended == LEFT, out
    pids = [int(pid) for pid in out.split("\n")[0].split()]
    assert len(pids) == 20
    assert all_ended(pids, within_s=0)


@linux
def test_the_memory_of_all_processes_counts(site):
    main = "import os, time\nfor _ in range(3): os.fork()\nkept = os.urandom(50_000_000)\n" + SLEEP
    assert site.run(main, replace(RULES, memory_mb=300), host=FREE_HOST)[0] == MEMORY
    one = "kept = bytes(50_000_000)\n" + GOOD
    assert site.run(one, replace(RULES, memory_mb=300), host=FREE_HOST)[0] == DONE


CHURN = """
import mmap, os, time
for _ in range(40):
    time.sleep(0.02)  # the supervisor looks ten times a second
    with open("outputs/b", "wb+") as file:
        os.remove("outputs/b")
        file.write(bytes(1_000_000)); file.flush()
        kept = mmap.mmap(file.fileno(), 0)
"""


@linux
def test_files_that_were_removed_count_too(site):
    assert site.run(CHURN + GOOD)[0] == WROTE
    assert site.run(CHURN.replace("40", "4") + GOOD)[0] == DONE


def test_thousands_of_threads_are_too_many(site):
    main = "import threading, time\nfor _ in range(400): threading.Thread(target=time.sleep, args=(3,)).start()\n"
    assert site.run(main + SLEEP, host=FREE_HOST)[0] == MEMORY


@confines
def test_a_job_opens_no_more_than_its_number_of_files(site):
    main = "import os\nwhile True: os.open('main.py', os.O_RDONLY)\n"
    ended, log, _ = site.run(main)
    assert (ended, "Too many open files" in log) == (RAISED, True)


def test_a_supervisor_that_fails_says_nothing_of_the_job(site):
    """A full disk, say: its traceback would go to the coordinator."""
    broken = NOTHING_ENFORCED.replace(
        "sys.exit(", "def broken(*_): raise OSError('no space')\njob_host.fault = broken\nsys.exit("
    )
    assert site.run(GOOD, host=[*HOST[:3], "-c", broken]) == (LOST, "", "")


WAITS = "import os\nopen('outputs/pid', 'w').write(str(os.getpid()))\n" + SLEEP


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_supervisor_stops_its_job(number, site):
    """SIGINT as a notebook sends it: to the whole group of processes."""
    supervisor = site.begin(WAITS, start_new_session=True)
    job = site.pids()
    os.killpg(supervisor.pid, number)
    supervisor.communicate(timeout=30)
    assert supervisor.returncode == STOPPED
    assert all_ended(job, within_s=0)
    assert site.left() == []


@linux
@pytest.mark.parametrize("host", [HOST, FREE_HOST], ids=["confined", "free"])
def test_a_killed_supervisor_takes_the_job_with_it(host, site):
    supervisor = site.begin(WAITS, host=host)
    job = site.pids()
    supervisor.kill()
    supervisor.communicate()
    assert all_ended(job)
    assert ending(supervisor.returncode) not in ENDINGS.values()
    assert site.run(GOOD)[0] == DONE  # what the killed one left behind is in nobody's way
    assert not list(site.box.parent.glob("*scratch*"))


@linux
def test_the_job_ends_when_the_process_that_runs_it_is_gone(site):
    """The runner, a notebook's kernel, is killed: its supervisor notices."""
    site.begin(WAITS).kill()  # writes the rules and main.py
    fresh_folder(site.outputs)
    environment = {"SYFTBOX_FOLDER": str(site.box), "SYFTBOX_EMAIL": "a@example.org", "PYTHONPATH": str(ROOT)}
    script = f"import subprocess; p = subprocess.Popen({HOST!r}); print(p.pid, flush=True); p.wait()"
    options = {"cwd": site.job, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    runner = subprocess.Popen([sys.executable, "-c", script], text=True, **options)
    supervisor = int(runner.stdout.readline())
    job = site.pids()
    runner.kill()
    runner.wait()
    assert all_ended([*job, supervisor])
    assert site.left() == []


def test_a_job_that_cannot_be_confined_is_not_started(site):
    broken = NOTHING_ENFORCED.replace(
        "sys.exit(",
        "def broken(*_): raise OSError('no more rules')\nsandbox._drop_capabilities = broken\nsys.exit(",
    )
    ended, log, printed = site.run("print('started')\n" + GOOD, host=[*HOST[:3], "-c", broken])
    assert (ended, printed) == (NOT_STARTED, "")
    assert "started" not in log.splitlines()
    if sys.platform == "linux":
        assert "could not be confined (no more rules)" in log


def test_without_rules_nothing_starts(site):
    (site.code / "main.py").write_text(GOOD)
    for content in (None, "{}", "no JSON", '{"outputs": {}, "readable": [], "timeout_s": 1, "unknown": 1}'):
        if content is not None:
            site.box.with_name("my box-rules.json").write_text(content)
        environment = {"SYFTBOX_FOLDER": str(site.box), "SYFTBOX_EMAIL": "a@example.org", "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(HOST, cwd=site.job, env=environment, capture_output=True, text=True)
        assert ended.returncode == NOT_STARTED, ended.stderr
        assert site.left() == []


def test_rules_come_back_as_they_were_written(tmp_path):
    rules = JobRules({"a": 1, "b c": 2}, ("/one", "/two words"), 1.5, 10, 20)
    path = write_rules(tmp_path / "box", rules)
    assert path == tmp_path / "box-rules.json"
    assert read_rules(tmp_path / "box") == rules


def test_what_was_there_before_the_run_is_gone(site):
    """A submission may bring an outputs folder of its own."""
    (site.outputs / "a.txt").write_text("planted")
    assert site.run("pass")[0] == LEFT
    assert site.left() == []


def test_the_size_of_a_folder_counts_every_entry(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "small").write_bytes(b"x")
    (tmp_path / "large").write_bytes(bytes(10_000))
    (tmp_path / "link").symlink_to("/")
    assert bytes_below(tmp_path, 1e6) == 10_000 + 3 * 4096
    for number in range(100):
        (tmp_path / "a" / str(number)).touch()
    assert 20_000 < bytes_below(tmp_path, 20_000) <= 20_000 + 10_000  # stopped at the first entry beyond it


def test_a_file_that_only_its_owner_could_not_read_is_made_readable(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0)
    assert fault(tmp_path, {"a": 1}) is None
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_the_supervisor_costs_little(site):
    """Processor seconds of the supervisor itself, from outside; a generous bound for a slow machine."""
    script = "import time; from fedbone.engines import job_host; import sys; print(time.process_time(), *sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    seconds, *modules = out.split()
    assert float(seconds) < 1
    assert not {"numpy", "torch", "syft", "pydantic"} & set(modules)
