"""Files that are either whole or not there: write beside the target, fsync, rename."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, write: bytes | Callable[[BinaryIO], None]) -> Path:
    """Write bytes, or call ``write`` with the open binary file; a kill at any moment leaves the old or the new file.

    The parent folder is made. Returns ``path``. Raises OSError, naming ``path``, as the file system does; the temporary
    file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file) if callable(write) else file.write(write)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide results from a colleague's account
        os.replace(name, path)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError) and error.filename is None:  # a full disk says only that it is full
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    return path


def write_json(path: Path, value: object) -> Path:
    """``value`` as indented UTF-8 JSON; NaN and infinity are refused, since no other JSON reader takes them."""
    return write_atomic(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())
