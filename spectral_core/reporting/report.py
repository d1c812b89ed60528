"""The result of a measurement: one `LayerSpectrum` per layer, in a `SpectralReport`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spectral_core.errors import ReportError
from spectral_core.reporting.rows import (
    LAYER_COLUMNS,
    NOISE_COLUMNS,
    OF_SAMPLE,
    SAMPLING_COLUMNS,
    TERM_COLUMNS,
    Column,
    row,
    shown,
    table,
)
from spectral_core.reporting.spectrum import LayerSpectrum, Provenance
from spectral_core.reporting.text_table import printable, text_table
from spectral_core.storage.json_files import read_json, write_json
from spectral_core.storage.json_values import UNREADABLE, decode, encode

__all__ = ["SCHEMA_VERSION", "SpectralReport"]

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class SpectralReport(Mapping[str, LayerSpectrum]):
    """Every measured layer by name, the skipped layers with reasons, and the provenance.

    ``print(report)`` shows a table; ``report["layer2.0.conv1"].alpha`` is a fit with its interval.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> network = DenseNetwork((6, 8, 5), activation="tanh", loss="squared")
    >>> data = [(rng.normal(size=(64, 6)), rng.normal(size=(64, 5)))]
    >>> problem = network.problem(network.init(), data)
    >>> report = sc.measure(problem, top_k=5, progress=False)
    >>> len(report), report.skipped
    (2, {})
    >>> list(sc.SpectralReport.from_dict(report.to_dict()))
    ['0', 'head']
    """

    provenance: Provenance
    spectra: tuple[LayerSpectrum, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LayerSpectrum:
        """Return the spectrum of the layer called `name`; a `KeyError` lists the names."""
        for spectrum in self.spectra:
            if spectrum.name == name:
                return spectrum
        if name in self.skipped:
            raise KeyError(f"layer {name!r} was skipped: {self.skipped[name]}")
        raise KeyError(f"no layer {name!r}; there are: {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the measured layers, in the order of the forward pass."""
        return (spectrum.name for spectrum in self.spectra)

    def __len__(self) -> int:
        """Return the number of measured layers."""
        return len(self.spectra)

    def __str__(self) -> str:
        """Return the summary."""
        return self.summary()

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat dict per layer, from which tables and data frames are made.

        Columns of sampling errors and of the decomposition are there if any layer has them.
        """
        columns: tuple[Column, ...] = LAYER_COLUMNS
        columns += SAMPLING_COLUMNS if self.sampled() else ()
        columns += NOISE_COLUMNS if self.beside_noise() else ()
        columns += TERM_COLUMNS if self.decomposed() else ()
        return [row(shown(columns, self.spectra), spectrum) for spectrum in self.spectra]

    def summary(self) -> str:
        """Return the report as a table for a terminal, with its provenance and what was skipped."""
        parts = [self._heading(), text_table(*self.table()), self._meaning()]
        if self.sampled():
            parts.append(
                f"sampling errors from {self.provenance.sampling} groups of samples; drift: what "
                "half of the data would add"
            )
            parts.append(text_table(*self.sampling_table()))
        if self.beside_noise():
            parts.append(
                f"exponents beside those of noise alone ({self.provenance.noise_draws} draws from "
                "each layer's factors)"
            )
            parts.append(text_table(*table(NOISE_COLUMNS, self.beside_noise())))
        if self.decomposed():
            parts.append("α = β + φ + κ + ν, slopes on log σ; χ = κν")
            parts.append(text_table(*self.decomposition_table()))
        notes = [
            f"  {s.name}: {note}"
            for s in self.spectra
            for note in (*s.flag_reasons.values(), *s.notes)
        ]
        if notes:
            parts.append("notes\n" + "\n".join(notes))
        if self.skipped:
            parts.append("skipped\n" + "\n".join(f"  {n}: {r}" for n, r in self.skipped.items()))
        return printable("\n\n".join(parts))

    def _heading(self) -> str:
        provenance, problem = self.provenance, self.provenance.problem
        loss = problem.get("loss")
        known = "unknown" if loss is None else f"{loss:.6g}"
        dtype = problem.get("dtype", "?")
        if precision := problem.get("precision"):
            dtype = f"{dtype} ({precision} inside the model)"
        return (
            f"{provenance.curvature} curvature along the top {provenance.top_k} gradient singular "
            f"directions of {len(self)} layers; loss {known} over "
            f"{problem.get('n_terms') or 'an unknown number of'} terms; "
            f"{problem.get('backend', '?')} {dtype} on "
            f"{problem.get('device', '?')}"
        )

    def _meaning(self) -> str:
        """Return what is meant by ±."""
        line = f"± line: how well a line fits these K points ({self.provenance.confidence:.0%})"
        if self.sampled():
            return f"{line}; ± sample: how far α moves with another sample as large as this one"
        return f"{line}, not how far α would move with other data: measure with sampling=8 for that"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the formatted cells of the summary's table."""
        columns = [c for c in LAYER_COLUMNS if self.sampled() or c is not OF_SAMPLE]
        return table(columns, self.spectra)

    def sampled(self) -> list[LayerSpectrum]:
        """Return the layers that have sampling errors."""
        return [spectrum for spectrum in self.spectra if spectrum.sampling is not None]

    def sampling_table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and formatted cells of the sampling errors."""
        return table(SAMPLING_COLUMNS, self.sampled())

    def beside_noise(self) -> list[LayerSpectrum]:
        """Return the layers that were compared with noise alone."""
        return [spectrum for spectrum in self.spectra if spectrum.noise is not None]

    def decomposed(self) -> list[LayerSpectrum]:
        """Return the layers that have a decomposition."""
        return [spectrum for spectrum in self.spectra if spectrum.decomposition is not None]

    def decomposition_table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and formatted cells of the decompositions of α."""
        return table(TERM_COLUMNS, self.decomposed())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, with its schema version."""
        return {"schema_version": SCHEMA_VERSION, **encode(self)}

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, atomically; a symbolic link is replaced by the file.

        Raises
        ------
        InputError
            If `path` is no path.
        ReportError
            If the file cannot be written; what it held before is still there.
        """
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "SpectralReport":
        """Read a report that `save` wrote.

        Raises
        ------
        InputError
            If `path` is no path.
        ReportError
            If the file is missing, truncated, not a report, over 256 MiB or of a newer schema.
        """
        return cls.from_dict(read_json(path, "report"), source=str(path))

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "report") -> "SpectralReport":
        """Rebuild a report from `to_dict`; `source` names it in errors.

        Raises
        ------
        ReportError
            If the data are no report, or of a newer schema.
        """
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, bool) or not isinstance(version, int):
            raise ReportError(
                f"{source}: holds no 'schema_version'; it is not a spectral-core report, choose "
                "a file that `save` wrote."
            )
        if version > SCHEMA_VERSION:
            raise ReportError(
                f"{source}: has schema {version}, this version reads up to {SCHEMA_VERSION}; "
                "upgrade with: pip install -U spectral-core"
            )
        try:
            report = decode(cls, data | {"spectra": []})
            spectra = tuple(LayerSpectrum.from_dict(item) for item in data["spectra"])
            if len({spectrum.name for spectrum in spectra}) < len(spectra):
                raise ValueError("two layers of one name")
            report = replace(report, spectra=spectra)
            report.summary(), report.rows()  # data that cannot be shown are no report
            return report
        except UNREADABLE as error:
            raise ReportError(
                f"{source}: is not a complete report ({error!r}); save it again."
            ) from error
