"""Finished layers on disk, one JSON line each, so that an interrupted measurement resumes."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spectral_core._json import encode
from spectral_core.errors import ReportError
from spectral_core.report import SCHEMA_VERSION, LayerSpectrum, Provenance

__all__ = ["Journal"]


class Journal:
    """The layers that a measurement has finished, appended and synced one by one.

    The first line says what is measured; a journal is continued only by the same measurement. A
    last line that was cut short by a crash is dropped, and its layer is measured again. A layer
    that could not be measured is no finished layer: a resumed run tries again, perhaps with more
    memory.

    Parameters
    ----------
    path : path or None
        The file; created with its folder. None keeps the layers in memory only.
    provenance : Provenance
        What is measured.
    shapes : dict of str to tuple of int
        The selected layers and the shapes of their matrices.

    Raises
    ------
    ReportError
        If the file cannot be written, or belongs to another measurement.
    """

    def __init__(
        self, path: str | Path | None, provenance: Provenance, shapes: dict[str, tuple[int, int]]
    ) -> None:
        self.spectra: dict[str, LayerSpectrum] = {}
        self._path = None if path is None else Path(path)
        header = {
            "schema_version": SCHEMA_VERSION,
            **encode({"provenance": provenance, "layers": shapes}),
        }
        self._stream = None if self._path is None else self._open(self._path, header)

    def __contains__(self, name: str) -> bool:
        """Say whether the layer is finished."""
        return name in self.spectra

    def add(self, spectrum: LayerSpectrum) -> None:
        """Keep a measured layer."""
        self.spectra[spectrum.name] = spectrum
        self._append({"spectrum": spectrum.to_dict()})

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
        if self._stream is not None:
            self._stream.close()

    def _open(self, path: Path, header: dict[str, Any]) -> Any:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+b")
        except OSError as error:
            raise ReportError(
                f"{path}: cannot be written ({error.strerror}); choose another folder."
            ) from error
        try:
            self._read(stream, header)
        except BaseException:
            stream.close()
            raise
        return stream

    def _read(self, stream: Any, header: dict[str, Any]) -> None:
        stream.seek(0)
        whole = [line for line in stream.read().splitlines(keepends=True) if line.endswith(b"\n")]
        if not whole:
            stream.truncate(0)
            self._write(stream, header)
            return
        self._check_header(_parse(self._path, whole[0]), header)
        for line in whole[1:]:
            self._take(_parse(self._path, line))
        stream.truncate(sum(map(len, whole)))

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

    def _take(self, record: Any) -> None:
        try:
            spectrum = LayerSpectrum.from_dict(record["spectrum"])
            self.spectra[spectrum.name] = spectrum
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReportError(
                f"{self._path}: has a line that is no finished layer ({error!r}); delete the file."
            ) from error

    def _append(self, record: dict[str, Any]) -> None:
        if self._stream is None:
            return
        try:
            self._write(self._stream, record)
        except OSError as error:
            raise ReportError(
                f"{self._path}: cannot be written ({error.strerror}); the layers before this one "
                "are kept. Free space and run again to resume."
            ) from error

    @staticmethod
    def _write(stream: Any, record: dict[str, Any]) -> None:
        stream.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _parse(path: Path | None, line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ReportError(
            f"{path}: holds a line that is not JSON ({error}); delete the file."
        ) from error


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    items = (_flatten(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
    return {key: leaf for item in items for key, leaf in item.items()}
