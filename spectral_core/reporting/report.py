"""What a measurement returns: one `LayerSpectrum` per layer, in a `SpectralReport`."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spectral_core.alignment.alignment import SpectralAlignment
from spectral_core.alignment.decomposition import ExponentDecomposition
from spectral_core.curvature.certificate import Certificate
from spectral_core.errors import ReportError
from spectral_core.exponents.power_law import PowerLawFit
from spectral_core.exponents.rank_profile import RankProfileFits
from spectral_core.exponents.transfer_identity import ExponentTriangle
from spectral_core.reporting.text_table import printable, text_table
from spectral_core.storage.files import as_path, read_text, write_atomically
from spectral_core.storage.json_values import UNREADABLE, decode, encode, parse

__all__ = ["LayerSpectrum", "ParticipationSummary", "Provenance", "SpectralReport"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ParticipationSummary:
    """How many directions carry a layer's curvature (Theory 7).

    Parameters
    ----------
    ratio : float
        ``PR = (Σ h)² / Σ h²`` over the positive curvatures (7.1).
    entropy_rank : float
        ``exp(H(p))`` with ``p = h / Σ h``.
    count : int
        Number of positive curvatures; an upper bound of both.
    window_bound : float
        ``PR_K(s)`` of a pure power law with the fitted s (7.2): a prediction, no certificate.
    zeta_bound : float
        ``ζ(s)²/ζ(2s)``, its limit for a window without end; infinite for s <= 1.
    certified_exponent : float
        Largest exponent that the sorted curvatures respect at every rank (7.3).
    certified_bound : float
        ``PR_K`` of that exponent: holds for these data without any fit.
    """

    ratio: float
    entropy_rank: float
    count: int
    window_bound: float
    zeta_bound: float
    certified_exponent: float
    certified_bound: float


@dataclass(frozen=True)
class LayerSpectrum:
    """Curvature along one layer's gradient singular directions, and its exponents.

    Parameters
    ----------
    name, kind : str
        As in `LayerInfo`.
    shape : tuple of int
        ``(m, n)`` of the weight matrix.
    sigma : ndarray, shape (K,), float64
        Singular values of the gradient, descending, in units of the loss per unit of weight.
    curvature : ndarray, shape (K,), float64
        ``h_k = <D_k, H[D_k]>`` along ``D_k = u_k v_kᵀ``, in units of the loss per weight squared.
    triangle : ExponentTriangle
        α, γ and s with the exact transfer identity (Theory 2, 3).
    participation : ParticipationSummary
        Participation ratio and its bounds (Theory 7).
    rank_profile : RankProfileFits
        The form of log σ over rank, by BIC (Theory 8).
    notes : tuple of str
        What a reader must know: dropped directions, a clipped window, near ties.
    ggn : ndarray, shape (K,), float64, or None
        Gauss-Newton curvatures of the same directions; with ``decompose=True``.
    alignment : SpectralAlignment or None
        The directions in the Kronecker factors (Theory 5.1); with ``decompose=True``.
    decomposition : ExponentDecomposition or None
        α as β + φ + κ + ν (Theory 5.5); with ``decompose=True``.
    certificate : Certificate or None
        How the curvatures were computed, and what shows that they are right. None in reports of
        versions before 0.2.
    rounding : ndarray, shape (K,), float64, or None
        How far each σ_k may be from a singular value of the gradient in a wider type, by the
        gradient's own rounding (Theory 11.6): at most a tenth of it. From a few samples, where they
        raise no doubt. None where it is not known, as in float64 itself.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    sigma: npt.NDArray[np.float64]
    curvature: npt.NDArray[np.float64]
    triangle: ExponentTriangle
    participation: ParticipationSummary
    rank_profile: RankProfileFits
    notes: tuple[str, ...] = ()
    ggn: npt.NDArray[np.float64] | None = None
    alignment: SpectralAlignment | None = None
    decomposition: ExponentDecomposition | None = None
    certificate: Certificate | None = None
    rounding: npt.NDArray[np.float64] | None = None

    def _check_shown(self) -> None:
        """Raise what showing it raises: what can be shown is of the right types all through."""
        _cells(self)
        _row(self)
        for fit in (self.alpha, self.gamma, self.s):
            fit.reason  # noqa: B018
        if self.decomposition is not None:
            _term_cells(self)
            _term_row(self.decomposition)

    @property
    def alpha(self) -> PowerLawFit:
        """Fit of ``h ∝ σ^α`` (Theory 2.1)."""
        return self.triangle.alpha

    @property
    def gamma(self) -> PowerLawFit:
        """Fit of ``σ ∝ k^−γ`` (Theory 2.2)."""
        return self.triangle.gamma

    @property
    def s(self) -> PowerLawFit:
        """Fit of ``h ∝ k^−s`` (Theory 2.3)."""
        return self.triangle.s

    def to_dict(self) -> dict[str, Any]:
        """Return the spectrum as JSON values."""
        return dict(encode(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LayerSpectrum":
        """Rebuild a spectrum from `to_dict`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If the data are none.
        """
        spectrum = decode(cls, data)
        lengths = {len(spectrum.sigma), len(spectrum.curvature)}
        if (
            len(lengths) > 1
            or spectrum.sigma.ndim != 1
            or any(
                known is not None and len(known) not in lengths
                for known in (spectrum.ggn, spectrum.rounding)
            )
        ):
            raise ValueError(f"layer {spectrum.name!r} has unequal numbers of σ and h")
        spectrum._check_shown()
        return spectrum


@dataclass(frozen=True)
class Provenance:
    """What was measured, with what, and how.

    Parameters
    ----------
    problem : mapping
        The backend's description: backend, versions, dtype, device, seed, loss, term count; and
        `precision`, the type that the model casts to inside, where that is narrower than `dtype`.
    versions : mapping
        Versions of this library, NumPy and Python.
    top_k : int
        The window K that was asked for.
    curvature : str
        ``"hessian"`` or ``"ggn"``.
    confidence : float
        Of every interval in the report.
    factors : mapping, optional
        ``delta`` and ``sharing`` of the Kronecker factors; None without a decomposition.
    engine : str
        The engine that was asked for.
    svd : str
        How the directions were found.
    """

    problem: Mapping[str, Any]
    versions: Mapping[str, str]
    top_k: int
    curvature: str
    confidence: float
    factors: Mapping[str, str] | None = None
    engine: str = "auto"
    svd: str = "exact"


@dataclass(frozen=True)
class SpectralReport(Mapping[str, LayerSpectrum]):
    """Every measured layer by name, what was skipped and why, and where the numbers come from.

    ``print(report)`` shows a table; ``report["layer2.0.conv1"].alpha`` is a fit with its interval.
    """

    provenance: Provenance
    spectra: tuple[LayerSpectrum, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LayerSpectrum:
        """Return the spectrum of the layer called `name`; `KeyError` says which there are."""
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
        """Return one flat dict per layer: what tables and data frames are made of.

        Columns of the decomposition are there if any layer has one.
        """
        terms = bool(self.decomposed())
        return [
            _row(spectrum) | (_term_row(spectrum.decomposition) if terms else {})
            for spectrum in self.spectra
        ]

    def summary(self) -> str:
        """Return the report as a table for a terminal, with its provenance and what was skipped."""
        parts = [self._heading(), text_table(*self.table())]
        if self.decomposed():
            parts.append("α = β + φ + κ + ν, slopes on log σ; χ = κν")
            parts.append(text_table(*self.decomposition_table()))
        notes = [f"  {s.name}: {note}" for s in self.spectra for note in s.notes]
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

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the formatted cells of the summary's table."""
        return list(_COLUMNS), [_cells(spectrum) for spectrum in self.spectra]

    def decomposed(self) -> list[LayerSpectrum]:
        """Return the layers that have a decomposition."""
        return [spectrum for spectrum in self.spectra if spectrum.decomposition is not None]

    def decomposition_table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and formatted cells of the decompositions of α."""
        return list(_TERM_COLUMNS), [_term_cells(spectrum) for spectrum in self.decomposed()]

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
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        write_atomically(as_path("path", path), text)

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
        text = read_text(as_path("path", path))
        try:
            data = parse(text)
        except UNREADABLE as error:
            raise ReportError(
                f"{path}: is not JSON or was cut short ({error}); save the report again."
            ) from error
        return cls.from_dict(data, source=str(path))

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
            report._heading()
            return replace(report, spectra=spectra)
        except UNREADABLE as error:
            raise ReportError(
                f"{source}: is not a complete report ({error!r}); save it again."
            ) from error


_COLUMNS = (
    "layer", "kind", "shape", "α", "±", "R²", "γ", "s", "αγ", "|s−αγ|/s", "|τ| ≤ bound",
    "PR", "≤ cert.", "ζ(s)²/ζ(2s)", "profile", "dropped",
)  # fmt: skip


def _cells(spectrum: LayerSpectrum) -> list[str]:
    triangle, participation = spectrum.triangle, spectrum.participation
    return [
        spectrum.name,
        spectrum.kind,
        f"{spectrum.shape[0]}×{spectrum.shape[1]}",
        f"{triangle.alpha.exponent:.3f}",
        f"{_half_width(triangle.alpha):.3f}",
        f"{triangle.alpha.r_squared:.3f}",
        f"{triangle.gamma.exponent:.3f}",
        f"{triangle.s.exponent:.3f}",
        f"{triangle.predicted_s:.3f}",
        f"{100 * triangle.relative_error:.1f} %",
        f"{abs(triangle.defect):.3f} ≤ {triangle.defect_bound:.3f}",
        f"{participation.ratio:.2f}",
        f"{participation.certified_bound:.2f}",
        f"{participation.zeta_bound:.2f}",
        spectrum.rank_profile.winner.replace("_", "-"),
        f"{triangle.alpha.n_dropped}/{len(spectrum.sigma)}",
    ]


_TERM_COLUMNS = (
    "layer", "α", "β", "φ", "of it φδ", "φA", "κ", "ν", "closure", "χ median", "χ range", "n",
)  # fmt: skip


def _term_cells(spectrum: LayerSpectrum) -> list[str]:
    fits = spectrum.decomposition
    assert fits is not None
    chi = fits.chi[np.isfinite(fits.chi)]
    shown = (fits.alpha, fits.beta, fits.phi, fits.phi_delta, fits.phi_a, fits.kappa, fits.nu)
    return [
        spectrum.name,
        # "z": what rounds to zero has no sign
        *(f"{fit.exponent:z.2f} ± {_half_width(fit):.2f}" for fit in shown),
        f"{abs(fits.closure):.0e}",
        f"{np.median(chi):.3g}" if len(chi) else "",
        f"{chi.min():.2g}–{chi.max():.2g}" if len(chi) else "",
        f"{fits.alpha.n}/{len(spectrum.sigma)}",
    ]


def _row(spectrum: LayerSpectrum) -> dict[str, Any]:
    triangle = spectrum.triangle
    row: dict[str, Any] = {
        "layer": spectrum.name,
        "kind": spectrum.kind,
        "m": spectrum.shape[0],
        "n": spectrum.shape[1],
    }
    for name, fit in (("alpha", triangle.alpha), ("gamma", triangle.gamma), ("s", triangle.s)):
        row |= {
            name: fit.exponent,
            f"{name}_low": fit.interval[0],
            f"{name}_high": fit.interval[1],
            f"{name}_r_squared": fit.r_squared,
            f"{name}_n": fit.n,
        }
    row |= {
        "predicted_s": triangle.predicted_s,
        "relative_error": triangle.relative_error,
        "defect": triangle.defect,
        "defect_bound": triangle.defect_bound,
        "participation_ratio": spectrum.participation.ratio,
        "certified_bound": spectrum.participation.certified_bound,
        "zeta_bound": spectrum.participation.zeta_bound,
        "rank_profile": spectrum.rank_profile.winner,
        "dropped": triangle.alpha.n_dropped,
    }
    return row


def _term_row(fits: ExponentDecomposition | None) -> dict[str, Any]:
    """Return the flat columns of a decomposition; NaN for a layer without one."""
    row: dict[str, Any] = {}
    for name in ("beta", "phi", "phi_delta", "phi_a", "kappa", "nu"):
        fit = getattr(fits, name, None)
        low, high = fit.interval if fit else (math.nan, math.nan)
        row |= {
            name: fit.exponent if fit else math.nan, f"{name}_low": low, f"{name}_high": high,
        }  # fmt: skip
    return row | {"closure": fits.closure if fits else math.nan}


def _half_width(fit: PowerLawFit) -> float:
    low, high = fit.interval
    return float(high - low) / 2
