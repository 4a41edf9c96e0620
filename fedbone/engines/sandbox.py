"""What the operating system can hold one process to: files by Landlock, everything else by a list of system calls.

Landlock (Linux 5.13, Landlock in the kernel's userspace API guide) limits which files are opened, whoever owns them.
It knows no UDP, no Unix sockets with a path, no change of mode or owner: those calls are refused by seccomp instead.
Both hold for the process, cannot be taken off again, and need neither root nor a package.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Landlock access rights (linux/landlock.h); a newer version knows more of them
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_REGULAR, _TRUNCATE, _IOCTL = 1 << 7, 1 << 8, 1 << 14, 1 << 15
_RIGHTS_OF_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REGULAR
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same number on every processor

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column below, AUDIT_ARCH of linux/audit.h
_REFUSED = {  # why: numbers on x86_64, numbers on aarch64 (asm/unistd.h)
    "any socket, also UDP, Unix and vsock: socket, socketpair, io_uring_setup": ((41, 53, 425), (198, 199, 425)),
    "a second process: fork, vfork": ((57, 58), ()),
    "signals to others: kill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal": (
        (62, 200, 129, 297, 424),
        (129, 130, 138, 240, 424),
    ),
    "memory of others: ptrace, process_vm_readv, process_vm_writev, pidfd_getfd": (
        (101, 310, 311, 438),
        (117, 270, 271, 438),
    ),
    "memory that outlives a process or no one counts: shm*, sem*, msg*, mq_open, memfd_create, memfd_secret": (
        (29, 30, 31, *range(64, 72), 220, 240, 319, 447),
        (*range(186, 198), 180, 279, 447),
    ),
    "the user's keys: add_key, request_key, keyctl": ((248, 249, 250), (217, 218, 219)),
    "mode, owner, times, attributes: chmod*, chown*, utime*, *setxattr*, *removexattr*, file_setattr": (
        (90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199, 463, 466, 469),
        (52, 53, 452, 54, 55, 88, 5, 6, 7, 14, 15, 16, 463, 466, 469),
    ),
    "emptying by name, which old Landlock allows: truncate": ((76,), (45,)),
    "watching what others do: inotify_init, inotify_init1, fanotify_init": ((253, 294, 300), (26, 262)),
    "the pace of others: setpriority, sched_setparam, sched_setscheduler, sched_setattr, sched_setaffinity, ioprio_set": (
        (141, 142, 144, 314, 203, 251),
        (140, 118, 119, 274, 122, 30),
    ),
    "other namespaces: unshare, setns": ((272, 308), (97, 268)),
}
_CLONE, _CLONE3, _TGKILL, _FCNTL, _PRCTL, _PRLIMIT = range(6)
_ASKED = {0: (56, 435, 234, 72, 157, 302), 1: (220, 435, 131, 25, 167, 261)}  # calls whose first arguments decide
_THREAD, _F_SETOWN, _F_SETOWN_EX, _PR_SET_PDEATHSIG = 0x10000, 8, 15, 1
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_CAP_DAC_OVERRIDE = 1 << 1


@dataclass(frozen=True)
class Protections:
    """What this machine enforces on a job: measured by asking its kernel, and demanded of every job that starts.

    files: opens only what it may. writes: nor empties what it may only read. network: no socket of any kind.
    signals: cannot end another process. single_process: starts no second process.
    """

    files: bool
    writes: bool
    network: bool
    signals: bool
    single_process: bool

    def statement(self) -> str:
        """One to three plain sentences: what is enforced here, and what is not."""
        held = [
            (self.files, "opens only the files that it was given"),
            (self.network, "reaches no network"),
            (self.single_process, "starts no second process"),
            (self.signals, "ends no other process"),
        ]
        sentences = []
        if any(able for able, _ in held):
            sentences.append(f"The kernel sees to it that a job here {_listed(text for able, text in held if able)}.")
        if not self.files:
            sentences.append("Nothing stops a job here from reading any file of this user.")
        elif not self.writes:
            sentences.append("This kernel's Landlock is too old to stop a job from emptying a file that it may read.")
        if not self.network:
            sentences.append("Nothing stops a job here from using the network.")
        if self.files:
            sentences.append("It can still ask whether a file exists, its size and its time.")
        return " ".join(sentences)


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


@cache
def protections() -> Protections:
    """What the kernel of this machine offers to ``confine``, asked anew in every process."""
    calls = _column() is not None and _filters_calls()
    version = _landlock_version()
    return Protections(version >= 1, version >= 3, calls, calls or version >= 6, calls)


def confine(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Hold this process, for good, to reading below ``readable`` and ``writable`` and to writing below ``writable``.

    For the moment between fork and exec. Of what ``protections`` names all is enforced; the parent's end is the end of
    this process. Raises OSError, after a line on stderr, when a part fails: the process must not go on.
    """
    if sys.platform != "linux":
        return
    able = protections()
    try:
        _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS: no gain from set-user-id programs; both parts below demand it
        _drop_capabilities()
        if able.files:
            _restrict_files(readable, writable)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the parts above, which may clear it
        if able.network:
            _restrict_calls()
    except OSError as error:
        os.write(2, f"The job was not started: it could not be confined ({error}).\n".encode())
        raise


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends, so that none is lost sight of."""
    if sys.platform == "linux":
        _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def system_paths() -> list[Path]:
    """What a Python with this environment's packages needs to start: its folders and the system's libraries."""
    here = Path(__file__).resolve().parents[1]
    own = [sys.prefix, sys.base_prefix, sys.exec_prefix, here]
    system = "/lib /lib64 /usr/lib /usr/lib64 /etc/ld.so.cache /proc/cpuinfo /sys/devices/system/cpu /dev/urandom"
    return [Path(path) for path in (*own, *system.split())]


def _syscall(number: int, *arguments: object) -> int:
    result = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> None:
    padded = (ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4])
    if _libc().prctl(ctypes.c_int(option), *padded) < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _landlock_version() -> int:
    """0 where the kernel has no Landlock or has it switched off."""
    if sys.platform != "linux":
        return 0
    try:
        return _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def _column() -> int | None:
    known = sys.platform == "linux" and sys.maxsize > 2**32 and platform.machine() in _MACHINES
    return _MACHINES[platform.machine()][0] if known else None


def _filters_calls() -> bool:
    """Whether seccomp is there and can refuse a call with an error (SECCOMP_GET_ACTION_AVAIL)."""
    try:
        action = ctypes.c_uint32(_ERROR)
        return _syscall((317, 277)[_column()], ctypes.c_uint(2), ctypes.c_uint(0), ctypes.byref(action)) == 0
    except OSError:
        return False


def _drop_capabilities() -> None:
    """Root's rights but one: its files may belong to another user, and Landlock still decides which it opens."""
    header, sets = struct.pack("<Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    if _libc().capget(header, sets) < 0:
        raise OSError(ctypes.get_errno(), "capget")
    low = [rights & _CAP_DAC_OVERRIDE for rights in struct.unpack("<6I", sets.raw)[:3]]
    if _libc().capset(header, struct.pack("<6I", *low, 0, 0, 0)) < 0:
        raise OSError(ctypes.get_errno(), "capset")


def _restrict_files(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    version = _landlock_version()
    handled = _RIGHTS_OF_VERSION[max(known for known in _RIGHTS_OF_VERSION if known <= version)]
    attributes = struct.pack("<QQQ", handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)  # TCP; scopes
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for paths, rights in ((readable, _READ), (writable, _WRITE)):
            for path in paths:
                _allow_below(rules, path, rights & handled)
        _syscall(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)


def _allow_below(rules: int, path: Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # nothing that it could have read
        return
    try:
        if not os.path.isdir(path):
            rights &= _OF_A_FILE
        rule = struct.pack("<Qi", rights, handle)
        _syscall(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0))
    finally:
        os.close(handle)


def _restrict_calls() -> None:
    program = b"".join(_program())
    buffer = ctypes.create_string_buffer(program, len(program))
    filled = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    _prctl(22, 2, ctypes.addressof(filled))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _program() -> list[bytes]:
    """A classic BPF program over (number, architecture, arguments): linux/seccomp.h, struct seccomp_data."""
    column, architecture = _MACHINES[platform.machine()]
    refuse, numbers = _ERROR | errno.EPERM, _ASKED[column]
    load, equal, at_least, common_bit, result = 0x20, 0x15, 0x35, 0x45, 0x06

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("<HBBI", code, if_true, if_false, value)

    def argument(call: int, index: int, test: int, value: int, refused: bool) -> list[bytes]:
        """Refuse the call when the low half of its argument passes the test, or when it does not."""
        jumps = (0, 1) if refused else (1, 0)
        body = [step(load, 16 + 8 * index), step(test, value, *jumps), step(result, refuse)]
        return [step(load, 0), step(equal, numbers[call], 0, 3), *body]

    steps = [step(load, 4), step(equal, architecture, 1, 0), step(result, _KILL)]
    steps += [step(load, 0), step(at_least, 0x40000000, 0, 1), step(result, refuse)]  # x86_64's second set of numbers
    for number in [one for both in _REFUSED.values() for one in both[column]]:
        steps += [step(equal, number, 0, 1), step(result, refuse)]
    steps += [step(equal, numbers[_CLONE3], 0, 1), step(result, _ERROR | errno.ENOSYS)]  # the C library then uses clone
    steps += argument(_CLONE, 0, common_bit, _THREAD, refused=False)
    steps += argument(_TGKILL, 0, equal, os.getpid(), refused=False)
    steps += argument(_PRLIMIT, 0, equal, 0, refused=False)
    steps += argument(_FCNTL, 1, equal, _F_SETOWN, refused=True)
    steps += argument(_FCNTL, 1, equal, _F_SETOWN_EX, refused=True)
    steps += argument(_PRCTL, 0, equal, _PR_SET_PDEATHSIG, refused=True)
    return [*steps, step(result, _ALLOW)]
