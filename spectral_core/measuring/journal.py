"""Finished layers on disk, one JSON line each, so that an interrupted measurement resumes."""

import json
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spectral_core.errors import ReportError
from spectral_core.reporting.report import SCHEMA_VERSION
from spectral_core.reporting.spectrum import LayerSpectrum, Provenance
from spectral_core.storage.exclusive import exclusively
from spectral_core.storage.files import append_line, as_path, check_regular, check_size
from spectral_core.storage.json_values import UNREADABLE, encode, parse
from spectral_core.storage.lone_file import LoneFile

__all__ = ["Journal"]


class Journal:
    """The layers that a measurement has finished, appended and synced one by one.

    The first line describes the measurement. A journal is continued only by the same measurement,
    and a file that is no journal is never written to. Each other line carries a checksum. A line
    that was cut short by a crash or damaged since is passed over, and its layer is measured again.
    A layer that could not be measured is no finished layer: a resumed run tries again, perhaps with
    more memory. Only one process at a time can write to the file: several would write its header
    twice, measure the same layers, and cut off a line that another is writing. Threads may share
    it.

    Parameters
    ----------
    path : path or None
        The file, which is created with its folder. None keeps the layers in memory only.
    provenance : Provenance
        The description of the measurement.
    shapes : dict of str to tuple of int
        The selected layers and the shapes of their matrices.

    Raises
    ------
    InputError
        If `path` is no path.
    ReportError
        If the file cannot be written, belongs to another measurement, or another process is
        writing to it.
    """

    def __init__(
        self, path: str | Path | None, provenance: Provenance, shapes: dict[str, tuple[int, int]]
    ) -> None:
        self.spectra: dict[str, LayerSpectrum] = {}
        self._shapes = shapes
        self._file: LoneFile | None = None
        if path is None:
            return
        self._path = as_path("resume", path)
        self._open(
            {
                "schema_version": SCHEMA_VERSION,
                **encode({"provenance": provenance, "layers": shapes}),
            }
        )

    def __contains__(self, name: str) -> bool:
        """Return whether the layer is finished."""
        return name in self.spectra

    def add(self, spectrum: LayerSpectrum) -> None:
        """Keep a measured layer; raises `ReportError` if the file cannot be written."""
        self.spectra[spectrum.name] = spectrum
        if self._file is None:
            return
        try:
            append_line(self._file.handle, _line_of(spectrum))
        except OSError as error:
            raise ReportError(
                f"{self._path}: cannot be written ({error.strerror}); the layers before this one "
                "are kept. Free space and run again to resume."
            ) from error

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, header: dict[str, Any]) -> None:
        path = self._path
        try:
            check_regular(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with exclusively():  # one of the threads that share the file writes the header
                self._file = LoneFile(path)
                self._read(self._file.handle, header)
        except OSError as error:
            self._close()
            raise ReportError(
                f"{path}: cannot be written ({error.strerror}); free space or choose "
                "another folder."
            ) from error
        except BaseException:
            self._close()
            raise

    def _read(self, handle: int, header: dict[str, Any]) -> None:
        check_size(self._path, os.fstat(handle).st_size)
        with os.fdopen(os.dup(handle), "rb") as stream:
            content = stream.read()
        first = json.dumps(header, allow_nan=False).encode() + b"\n"
        if first.startswith(content):  # new, or cut short while it was begun
            os.ftruncate(handle, 0)
            append_line(handle, first)
            return
        lines = content.split(b"\n")
        self._check_header(self._parsed_header(lines[0]), header)
        for line in lines[1:-1]:
            spectrum = _finished(line)
            if spectrum is not None and spectrum.name in self._shapes:
                self.spectra[spectrum.name] = spectrum
        if lines[-1]:  # otherwise another thread may have added a line since
            os.ftruncate(handle, len(content) - len(lines[-1]))

    def _parsed_header(self, line: bytes) -> Any:
        try:
            return parse(line)
        except UNREADABLE as error:
            raise ReportError(
                f"{self._path}: is no journal, its first line is not JSON ({error}); choose "
                "another file."
            ) from error

    def _check_header(self, found: Any, expected: dict[str, Any]) -> None:
        if found == expected:
            return
        if not isinstance(found, dict) or "provenance" not in found:
            raise ReportError(f"{self._path}: is no journal of a measurement; choose another file.")
        changed = sorted(
            key
            for key in _flatten(found).keys() | _flatten(expected).keys()
            if _flatten(found).get(key) != _flatten(expected).get(key)
        )
        raise ReportError(
            f"{self._path}: belongs to another measurement; what differs: {', '.join(changed)}. "
            "Delete the file or choose another to start anew."
        )


def _line_of(spectrum: LayerSpectrum) -> bytes:
    """Return a finished layer as a line with a checksum."""
    text = json.dumps(spectrum.to_dict(), allow_nan=False)
    return f'{{"crc32": {zlib.crc32(text.encode())}, "spectrum": {text}}}\n'.encode()


def _finished(line: bytes) -> LayerSpectrum | None:
    """Return the layer of a line, or None for one that is damaged."""
    try:
        spectrum = LayerSpectrum.from_dict(parse(line)["spectrum"])
    except UNREADABLE:
        return None
    return spectrum if _line_of(spectrum) == line + b"\n" else None


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    items = (_flatten(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
    return {key: leaf for item in items for key, leaf in item.items()}
