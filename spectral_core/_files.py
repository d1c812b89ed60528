"""Writing files so that a crash, a full disk or a second writer never leaves half of one."""

import contextlib
import os
import tempfile
from pathlib import Path

from spectral_core.errors import ReportError


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file in the same folder.

    Raises
    ------
    ReportError
        If the folder cannot be created or written; what `path` held before is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ReportError(
            f"{path}: cannot be written ({error.strerror}); choose another folder."
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise ReportError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder."
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _umask() -> int:
    # mkstemp makes private files; a report should have the permissions of any other file.
    mask = os.umask(0)
    os.umask(mask)
    return mask
