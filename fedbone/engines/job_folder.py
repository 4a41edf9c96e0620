"""The folders that a job may write: made empty, measured while it runs, checked afterwards, following no link."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

LEAST_BYTES = 4096  # that a file or folder counts for, so that empty ones are limited too


def fresh_folder(folder: Path) -> Path:
    """``folder`` as a real and empty one, whatever it was and however deep; no link is followed."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        folder.unlink()
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in os.scandir(entry.path):
                if inner.is_dir(follow_symlinks=False):  # moved up: a path of thousands of folders is too long
                    os.chmod(inner.path, 0o700)
                    os.rename(inner.path, folder / secrets.token_hex(16))
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)
    return folder


def bytes_below(folder: Path, most: float) -> float:
    """Size of everything in ``folder``, counted no further than beyond ``most``, so that no folder takes long.

    Infinite when a job made it so that it cannot be looked at.
    """
    total, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += max(entry.stat(follow_symlinks=False).st_size, LEAST_BYTES)
                    if total > most:
                        return total
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except FileNotFoundError:  # removed while we looked
            continue
        except OSError:
            return float("inf")
    return total


def fault(outputs: Path, allowed: dict[str, int]) -> str | None:
    """What is wrong with the files that a job left; None, and files that their owner can read, when nothing is.

    A link would be followed by whoever copies the outputs, with the rights of the hospital.
    """
    if outputs.is_symlink() or not outputs.is_dir():
        return "outputs is no longer a folder"
    found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(outputs)}
    if set(found) != set(allowed):
        return f"{sorted(found)!a} instead of {sorted(allowed)!a}"
    for name, status in found.items():
        if not stat.S_ISREG(status.st_mode):
            return f"{name} is not a regular file"
        if status.st_nlink != 1:
            return f"{name} has a second name elsewhere"
        if status.st_size > allowed[name]:
            return f"{name} has {status.st_size} bytes, {allowed[name]} are allowed"
        os.chmod(outputs / name, 0o600)
    return None
