"""A file that one process at a time writes to."""

import contextlib
import os
import weakref
from pathlib import Path

from spectral_core.errors import ReportError
from spectral_core.storage.exclusive import exclusively

try:
    import fcntl
except ImportError:  # Windows lacks it, and nobody is kept out there
    fcntl = None  # type: ignore[assignment]

__all__ = ["LoneFile", "delete_alone"]


class LoneFile:
    """A file to read and append that no other process has open as a `LoneFile`.

    It is created if it does not exist. Threads of one process share it. A file system that knows no
    locks keeps nobody out. A file that Ctrl-C leaves open is closed with the last reference to it.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    handle : int
        The file descriptor, or -1 once the file is closed.

    Raises
    ------
    ReportError
        If another process has the file open.
    OSError
        If the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.handle = -1
        with exclusively():  # one of two threads makes the lock that both share
            while True:
                self._lock = _lock_of(path)
                self.handle = _opened(path)
                with contextlib.suppress(FileNotFoundError):
                    if self._lock.key == _key(self.handle) == _key(path):
                        return
                self.close()  # its last owner deleted it meanwhile: open the present file

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)
        self._lock = None  # type: ignore[assignment]

    def __del__(self) -> None:
        """Close the file."""
        self.close()


def delete_alone(path: Path) -> None:
    """Delete a file, if it exists, unless someone has it open as a `LoneFile`.

    Raises
    ------
    ReportError
        If someone has it open, or it cannot be deleted.
    """
    try:
        if fcntl is None:  # where an open file cannot be deleted either
            path.unlink(missing_ok=True)
        elif path.exists():
            file = LoneFile(path)
            try:
                os.unlink(path)
            finally:
                file.close()
    except OSError as error:
        raise ReportError(
            f"{path}: cannot be deleted ({error.strerror}); choose another name."
        ) from error


_Key = tuple[int, ...]


class _Lock:
    """A lock that this process has on a file, as long as something refers to it."""

    def __init__(self, path: Path) -> None:
        self._handle, self._process = -1, os.getpid()
        self._handle = _opened(path)
        self.key = _key(self._handle)
        try:
            if fcntl is not None:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ReportError(
                f"{path}: another process is writing to it; give each process or rank a file of "
                'its own, such as f"run.{rank}.journal", or let one of them measure, or wait until '
                "it has ended."
            ) from error
        except OSError:  # a network file system without locks
            return

    def __del__(self) -> None:
        """Release the lock, but not in a forked process, which has none of its own."""
        if self._handle < 0:
            return
        # Processes that were forked since may still have the file open, and with it the lock.
        if fcntl is not None and self._process == os.getpid():
            with contextlib.suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)
        os.close(self._handle)


_locks: weakref.WeakValueDictionary[_Key, _Lock] = weakref.WeakValueDictionary()
"""Of files that this process has open."""


def _lock_of(path: Path) -> _Lock:
    """Return the lock on a file, which other threads may have made."""
    with contextlib.suppress(FileNotFoundError):
        held = _locks.get(_key(path))
        if held is not None:
            return held
    lock = _Lock(path)
    _locks[lock.key] = lock
    return lock


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)


def _key(file: Path | int) -> _Key:
    """Return what identifies a file in this process."""
    found = os.stat(file)
    return os.getpid(), found.st_dev, found.st_ino
