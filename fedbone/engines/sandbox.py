"""What the operating system can hold one process to: files by Landlock, everything else by a list of system calls.

Landlock (Linux 5.13, Landlock in the kernel's userspace API guide) limits which files are opened, whoever owns them.
It knows no UDP, no Unix sockets with a path, no change of mode or owner: those calls are refused by seccomp instead.
Both hold for the process, cannot be taken off again, and need neither root nor a package.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fedbone.engines.system_calls import REFUSE, filter_program, known_numbers

# Landlock access rights (linux/landlock.h); a newer version knows more of them
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_REGULAR, _TRUNCATE, _IOCTL = 1 << 7, 1 << 8, 1 << 14, 1 << 15
_RIGHTS_OF_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REGULAR
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same number on every processor
_NO_NEW_PRIVILEGES, _DIE_WITH_PARENT, _ADOPT_ORPHANS, _FILTER_CALLS = 38, 1, 36, 22  # options of prctl
_CAP_DAC_OVERRIDE = 1 << 1


@dataclass(frozen=True)
class Protections:
    """What this machine enforces on a job: measured by asking its kernel, and demanded of every job that starts.

    files: opens only what it may. writes: nor empties what it may only read. calls: no socket of any kind, no second
    process, no signal to another one.
    """

    files: bool
    writes: bool
    calls: bool

    def statement(self) -> str:
        """One to three plain sentences: what is enforced here, and what is not."""
        held = ["opens only the files that it was given"] if self.files else []
        held += ["reaches no network, starts no second process and kills no other process"] if self.calls else []
        sentences = [f"The operating system sees to it that a job here {', '.join(held)}."] if held else []
        if not self.files:
            sentences.append("Nothing stops a job here from reading any file of this user.")
        elif not self.writes:
            sentences.append("This kernel's Landlock is too old to stop a job from emptying a file that it may read.")
        if not self.calls:
            sentences.append("Nothing stops a job here from using the network.")
        if self.files:
            sentences.append("Of other files it can still ask whether they exist, their size, times, mode and owner.")
        return " ".join(sentences)


@cache
def protections() -> Protections:
    """What the kernel of this machine offers to ``confine``, asked anew in every process."""
    version = _landlock_version()
    return Protections(files=version >= 1, writes=version >= 3, calls=_filters_calls())


def confine(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Hold this process, for good, to reading below ``readable`` and ``writable`` and to writing below ``writable``.

    For the moment between fork and exec. Of what ``protections`` names all is enforced; the parent's end is the end of
    this process. Raises, after a line on stderr, when a part fails: the process must not go on.
    """
    if sys.platform != "linux":
        return
    able = protections()
    try:
        _prctl(_NO_NEW_PRIVILEGES, 1)  # none from set-user-id programs; Landlock and seccomp demand it
        _drop_capabilities()
        if able.files:
            _restrict_files(readable, writable)
        _prctl(_DIE_WITH_PARENT, signal.SIGKILL)  # after the parts above, which may clear it
        if able.calls:
            _restrict_calls()
    except Exception as error:
        os.write(2, f"The job was not started: it could not be confined ({error}).\n".encode())
        raise


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends, so that none is lost sight of."""
    if sys.platform == "linux":
        _prctl(_ADOPT_ORPHANS, 1)


def system_paths() -> list[Path]:
    """What a Python with this environment's packages needs to start: its folders and the system's libraries.

    The least with which torch, OpenCV and syft were imported. Without /proc/cpuinfo torch works too, but with other
    instructions, and a round of training ends in other bytes.
    """
    package = Path(__file__).resolve().parents[1]  # not the folder above it: in a repository it holds films
    system = "/lib /lib64 /usr/lib /usr/lib64 /etc/ld.so.cache /proc/cpuinfo /sys/devices/system/cpu /dev/urandom"
    return [Path(path) for path in (sys.prefix, sys.base_prefix, package, *system.split())]


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


def _filters_calls() -> bool:
    """Whether seccomp is there, can refuse a call with an error (SECCOMP_GET_ACTION_AVAIL), and we know the numbers."""
    if sys.platform != "linux" or (numbers := known_numbers()) is None:
        return False
    try:
        action = ctypes.c_uint32(REFUSE)
        return _syscall(numbers["seccomp"], ctypes.c_uint(2), ctypes.c_uint(0), ctypes.byref(action)) == 0
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
    rules = _syscall(_CREATE_RULESET, struct.pack("<Q", handled), ctypes.c_size_t(8), ctypes.c_uint32(0))
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
    steps = filter_program(os.getpid())
    program = ctypes.create_string_buffer(steps, len(steps))
    described = ctypes.create_string_buffer(struct.pack("@HP", len(steps) // 8, ctypes.addressof(program)))
    _prctl(_FILTER_CALLS, 2, ctypes.addressof(described))  # 2: SECCOMP_MODE_FILTER
