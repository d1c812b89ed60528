"""JSON files that a user keeps: written as a whole or not at all, and read with reasons."""

import json
from pathlib import Path
from typing import Any

from spectral_core.errors import ReportError
from spectral_core.storage.files import as_path, read_text, write_atomically
from spectral_core.storage.json_values import UNREADABLE, parse

__all__ = ["read_json", "write_json"]


def write_json(path: str | Path, values: dict[str, Any]) -> None:
    """Write JSON values, atomically; a symbolic link is replaced by the file.

    Raises
    ------
    InputError
        If `path` is no path.
    ReportError
        If the file cannot be written; what it held before is still there.
    """
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    write_atomically(as_path("path", path), text)


def read_json(path: str | Path, what: str) -> Any:
    """Return the values of a JSON file; `what` says in errors what should be saved again.

    Raises
    ------
    InputError
        If `path` is no path.
    ReportError
        If the file is missing, truncated, no JSON or over 256 MiB.
    """
    text = read_text(as_path("path", path))
    try:
        return parse(text)
    except UNREADABLE as error:
        raise ReportError(
            f"{path}: is not JSON or was cut short ({error}); save the {what} again."
        ) from error
