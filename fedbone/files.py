"""Files that are either whole or not there: write beside the target, fsync, rename. And files that hold a key."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedbone.errors import UserError

PRIVATE, SHARED = 0o600, 0o666  # for this account; for whom its umask allows, as with any program's files


def write_atomic(path: Path, write: bytes | Callable[[BinaryIO], None], *, private: bool = False) -> Path:
    """Write bytes, or call ``write`` with the open binary file; a kill at any moment leaves the old or the new file.

    private: for this account only, whatever the umask allows others. The parent folder is made. Returns ``path``.
    Raises OSError, naming ``path``, as the file system does; the temporary file is removed.
    """
    mode = PRIVATE if private else SHARED
    return _write_beside(Path(path), write, lambda name: os.replace(name, path), mode)


def _write_beside(
    path: Path, write: bytes | Callable[[BinaryIO], None], publish: Callable[[str], None], mode: int
) -> Path:
    """Write a new temporary file in the folder of ``path``, and let ``publish`` give it its name.

    mode: what the system makes the file with, less the umask: asking for the umask would change it for all threads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = str(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file) if callable(write) else file.write(write)
            file.flush()
            os.fsync(file.fileno())
        publish(name)
    except OSError as error:
        if error.filename is None:  # a full disk says only that it is full
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def write_json(path: Path, value: object) -> Path:
    """``value`` as indented UTF-8 JSON; NaN and infinity are refused, since no other JSON reader takes them."""
    return write_atomic(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_secret(path: Path, content: bytes) -> Path:
    """Write a key into a new file that only this account may read (mode 0600 from its first byte; whole or not there).

    The parent folder is made. Returns ``path``. Raises UserError when something is there already, also a broken link,
    and OSError as ``write_atomic`` does.
    """
    path = Path(path)
    # Neither replaces what is there. A rename would on POSIX; Windows refuses it, but knows links on NTFS only.
    publish = os.rename if os.name == "nt" else os.link
    try:
        _write_beside(path, content, lambda name: publish(name, path), PRIVATE)
    except FileExistsError:
        problem = "there is a file already, and a secret is never overwritten"
        raise UserError(path, problem, "Choose another name, or move the old file away") from None
    sync_folder(path.parent)
    return path


def read_secret(path: Path) -> bytes:
    """The content of a file that only this account may read.

    Raises UserError when it cannot be read, belongs to another account, or (POSIX) has a mode for group or others.
    """
    try:
        with open(path, "rb") as file:
            if os.name != "nt":  # Windows gives no owner or group here; a file inherits the rights of its folder
                _require_private(Path(path), os.fstat(file.fileno()))  # the opened file's, which no link can exchange
            return file.read()
    except OSError as error:
        remedy = "Check the name, and that this account may read the file"
        raise UserError(path, f"the secret cannot be read ({error.strerror})", remedy) from error


def _require_private(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        problem = f"the secret belongs to another account (user id {status.st_uid}), which could read or exchange it"
        raise UserError(path, problem, f"Make a copy that user id {os.geteuid()} owns, with mode 600")
    if status.st_mode & 0o077:  # the group's bits also show an access control list
        problem = f"group or others may use the secret (mode {status.st_mode & 0o777:03o})"
        raise UserError(path, problem, f"Run `chmod 600 {path}`, and replace the secret if others were on this machine")


def sync_folder(folder: Path) -> None:
    """Make new and changed names in ``folder`` survive a power failure; Windows cannot open a folder, and does not."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone(lock: Path) -> Iterator[BinaryIO]:
    """Hold the file ``lock``, open for appending: no other thread or process does. It ends with the process."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "ab") as file:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
