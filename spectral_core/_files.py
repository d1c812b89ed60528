"""Reading within bounds, and writing so that neither a crash nor a full disk leaves half a file."""

import contextlib
import os
import secrets
import stat
import threading
from pathlib import Path
from typing import Any

from spectral_core.errors import InputError, ReportError

try:
    import fcntl
except ImportError:  # not on Windows, where nobody is kept out
    fcntl = None  # type: ignore[assignment]

MAX_BYTES = 2**28
"""Of a report or a journal: that of 10,000 layers with a decomposition takes a quarter of it."""


def as_path(name: str, path: Any) -> Path:
    """Return an argument as a path.

    Raises
    ------
    InputError
        If it is none.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or "\0" in text:
        raise InputError(f"{name}: {path!r} is no path of a file; pass a text or a Path.")
    return Path(text)


def check_regular(path: Path) -> None:
    """Raise `ReportError` for what is there and is no file: reading a pipe may never end."""
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
        If it cannot be read, is too long, or no text.
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
    # With the permissions that any new file has, which the files of `tempfile` have not. No part of
    # the name that was asked for: with it, a long one would be too long.
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


def open_alone(path: Path) -> int:
    """Open a file to read and append, made if it is not there, that no other process has open so.

    Threads of one process share it. `close_alone` closes it. A file system that knows no locks
    keeps nobody out.

    Raises
    ------
    ReportError
        If another process has it open.
    OSError
        If it cannot be opened.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _hold(handle)
        except BlockingIOError as error:
            os.close(handle)
            raise ReportError(
                f"{path}: another process is writing to it; give each process or rank a file of "
                'its own, such as f"run.{rank}.journal", or let one of them measure, or wait until '
                "it has ended."
            ) from error
        except BaseException:
            os.close(handle)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        close_alone(handle)  # whoever had it open deleted it meanwhile: take what is there now


def close_alone(handle: int) -> None:
    """Close a file of `open_alone`."""
    key = _key(handle)
    with _turn:
        os.close(handle)
        users, lock = _held[key]
        if users > 1:
            _held[key] = users - 1, lock
            return
        del _held[key]
        if fcntl is not None:  # processes forked since may still have it open, and with it the lock
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def delete_alone(path: Path) -> None:
    """Delete a file, if it is there, that nobody has open by `open_alone`.

    Raises
    ------
    ReportError
        If someone has, or it cannot be deleted.
    """
    try:
        if fcntl is None:  # where an open file cannot be deleted either
            path.unlink(missing_ok=True)
        elif path.exists():
            handle = open_alone(path)
            try:
                os.unlink(path)
            finally:
                close_alone(handle)
    except OSError as error:
        raise ReportError(
            f"{path}: cannot be deleted ({error.strerror}); choose another name."
        ) from error


_held: dict[tuple[int, ...], tuple[int, int]] = {}
"""Files that this process has open: by how many users, and the descriptor that has the lock."""

_turn = threading.Lock()


def _key(handle: int) -> tuple[int, ...]:
    found = os.fstat(handle)
    return os.getpid(), found.st_dev, found.st_ino  # a forked process has no lock of its own


def _hold(handle: int) -> None:
    """Lock a file for this process; raises `BlockingIOError` if another has it locked."""
    key = _key(handle)
    with _turn:
        if key in _held:
            users, lock = _held[key]
            _held[key] = users + 1, lock
            return
        _lock(handle)
        _held[key] = 1, os.dup(handle)


def _lock(handle: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a network file system without locks
        return


def append_line(handle: int, line: bytes) -> None:
    """Append a line to an open file and wait until it is on the disk."""
    while line:
        line = line[os.write(handle, line) :]
    os.fsync(handle)
