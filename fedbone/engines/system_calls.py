"""The system calls that a job does without, and the program by which the kernel refuses them (seccomp).

Files are Landlock's business; here is what it does not know. The numbers are those of the kernel's asm/unistd.h.
"""

from __future__ import annotations

import errno
import platform
import struct
import sys

# why: name, number on x86_64, number on aarch64 (- where it has none)
_REFUSED = """
sockets of any kind, also UDP and Unix: socket 41 198, socketpair 53 199, io_uring_setup 425 425
a second process: fork 57 -, vfork 58 -
signals to others: kill 62 129, tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240
signals to others: pidfd_send_signal 424 424
memory of others: ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, pidfd_getfd 438 438
the pace of others: setpriority 141 140, ioprio_set 251 30, sched_setparam 142 118, sched_setscheduler 144 119
the pace of others: sched_setattr 314 274, sched_setaffinity 203 122
memory that outlives its process: shmget 29 194, shmat 30 196, shmctl 31 195, mq_open 240 180
memory that outlives its process: msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187
memory that outlives its process: semget 64 190, semop 65 193, semctl 66 191, semtimedop 220 192
memory that nobody counts: memfd_create 319 279, memfd_secret 447 447
keys of the user: add_key 248 217, request_key 249 218, keyctl 250 219
mode and owner of a file: chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452
mode and owner of a file: chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54
marks on a file: utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, file_setattr 469 469
marks on a file: setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, setxattrat 463 463
marks on a file: removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, removexattrat 466 466
marks on a file: getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, getxattrat 464 464
marks on a file: listxattr 194 11, llistxattr 195 12, flistxattr 196 13, listxattrat 465 465
marks on a file: flock 73 32
disk space that is not written: fallocate 285 47
emptying by name, which old Landlock allows: truncate 76 45
watching files of others: inotify_init 253 -, inotify_init1 294 26, fanotify_init 300 262
other namespaces: unshare 272 97, setns 308 268
"""
_ASKED = """
decided by an argument: clone 56 220, clone3 435 435, tgkill 234 131, fcntl 72 25
decided by an argument: ioctl 16 29
decided by an argument: prctl 157 167, prlimit64 302 261
"""
_NEEDED = "used here: seccomp 317 277"
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_* of linux/audit.h
_CLONE_THREAD, _F_SETOWN, _F_SETOWN_EX, _F_SETLEASE, _F_NOTIFY, _PR_SET_PDEATHSIG = 0x10000, 8, 15, 1024, 1026, 1
_ALLOW, REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*; an error number is added to REFUSE
_LOAD, _EQUAL, _AT_LEAST, _COMMON_BIT, _RESULT = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF


def known_numbers() -> dict[str, int] | None:
    """Number of every call named above on this processor; None on a processor that the table does not know."""
    if sys.maxsize < 2**32 or platform.machine() not in _MACHINES:
        return None
    return _numbers(f"{_REFUSED}{_ASKED}{_NEEDED}", _MACHINES[platform.machine()][0])


def filter_program(own_pid: int) -> bytes:
    """The filter over struct seccomp_data (number, architecture, arguments) of linux/seccomp.h, 8 bytes a step."""
    column, architecture = _MACHINES[platform.machine()]
    asked = _numbers(_ASKED, column)
    steps = [_step(_LOAD, 4), _step(_EQUAL, architecture, 1, 0), _step(_RESULT, _KILL)]
    second_set = [
        _step(_AT_LEAST, 0x40000000, 0, 1),
        _step(_RESULT, REFUSE | errno.EPERM),
    ]  # x86_64 calls again, as x32
    steps += [_step(_LOAD, 0), *second_set]
    for number in _numbers(_REFUSED, column).values():
        steps += [_step(_EQUAL, number, 0, 1), _step(_RESULT, REFUSE | errno.EPERM)]
    # clone3 hides its flags from us; told that there is none, the C library uses clone
    steps += [_step(_EQUAL, asked["clone3"], 0, 1), _step(_RESULT, REFUSE | errno.ENOSYS)]
    # an open file can be marked by it (FS_IOC_SETFLAGS); told that there is no terminal, programs go on
    steps += [_step(_EQUAL, asked["ioctl"], 0, 1), _step(_RESULT, REFUSE | errno.ENOTTY)]
    steps += _refuse_unless(asked["clone"], 0, _COMMON_BIT, _CLONE_THREAD)
    steps += _refuse_unless(asked["tgkill"], 0, _EQUAL, own_pid)
    steps += _refuse_unless(asked["prlimit64"], 0, _EQUAL, 0)
    steps += _refuse_if(asked["fcntl"], 1, _F_SETOWN)  # who gets the signal of a file
    steps += _refuse_if(asked["fcntl"], 1, _F_SETOWN_EX)
    steps += _refuse_if(asked["fcntl"], 1, _F_SETLEASE)
    steps += _refuse_if(asked["fcntl"], 1, _F_NOTIFY)
    steps += _refuse_if(asked["prctl"], 0, _PR_SET_PDEATHSIG)
    return b"".join([*steps, _step(_RESULT, _ALLOW)])


def _numbers(table: str, column: int) -> dict[str, int]:
    calls = [call.split() for line in filter(None, table.splitlines()) for call in line.split(":")[1].split(",")]
    return {name: int(numbers[column]) for name, *numbers in calls if numbers[column] != "-"}


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _argument(number: int, index: int) -> list[bytes]:
    """Load the low half of a call's argument; another call jumps over the two steps that follow."""
    return [_step(_LOAD, 0), _step(_EQUAL, number, 0, 3), _step(_LOAD, 16 + 8 * index)]


def _refuse_unless(number: int, index: int, test: int, value: int) -> list[bytes]:
    return [*_argument(number, index), _step(test, value, 1, 0), _step(_RESULT, REFUSE | errno.EPERM)]


def _refuse_if(number: int, index: int, value: int) -> list[bytes]:
    return [*_argument(number, index), _step(_EQUAL, value, 0, 1), _step(_RESULT, REFUSE | errno.EPERM)]
