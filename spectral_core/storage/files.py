"""Reading within bounds, and writing so that neither a crash nor a full disk leaves half a file."""

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from spectral_core.errors import InputError, ReportError

MAX_BYTES = 2**28
"""Of a report or a journal: that of 10,000 layers with a decomposition takes a quarter of it."""


def as_path(name: str, path: Any) -> Path:
    """Return an argument as a path.

    Raises
    ------
    InputError
        If `path` is no path.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or "\0" in text:
        raise InputError(f"{name}: {path!r} is no path of a file; pass a text or a Path.")
    return Path(text)


def check_regular(path: Path) -> None:
    """Raise `ReportError` if the path exists and is no file: reading a pipe may never end."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise ReportError(f"{path}: is no regular file; choose another name.")


def check_size(path: Path, size: int) -> None:
    """Raise `ReportError` for a file that no measurement has written."""
    if size > MAX_BYTES:
        raise ReportError(
            f"{path}: has {size} bytes, more than the {MAX_BYTES} that are read; it is no report "
            "or journal of this library, choose another file."
        )


def read_text(path: Path) -> str:
    """Return the text of a regular file of bounded size.

    Raises
    ------
    ReportError
        If the file cannot be read, is too long, or is no text.
    """
    try:
        check_regular(path)
        check_size(path, path.stat().st_size)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: is not JSON ({error}); choose a report of `save`.") from error


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file in the same folder.

    A symbolic link is replaced; what it points to stays as it is.

    Raises
    ------
    ReportError
        If the folder cannot be created or written, or `path` is a folder or a device; what it held
        before is still there.
    """
    # The file has the permissions of any new file, unlike the files of `tempfile`. Its name has no
    # part of the requested name, since a long name would become too long.
    temporary = path.parent / f".spectral-core.{secrets.token_hex(8)}"
    try:
        check_regular(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise ReportError(
            f"{path}: cannot be written ({error.strerror}); choose another folder."
        ) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ReportError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def append_line(handle: int, line: bytes) -> None:
    """Append a line to an open file and wait until it is on the disk."""
    while line:
        line = line[os.write(handle, line) :]
    os.fsync(handle)
