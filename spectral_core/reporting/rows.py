"""The columns of a report: in its tables, in flat rows, and so in CSV and data frames.

This list is the only place that defines them. A column shows one quantity of a layer.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spectral_core.alignment.decomposition import ExponentDecomposition
from spectral_core.exponents.power_law import PowerLawFit
from spectral_core.reporting.spectrum import LayerSpectrum

__all__ = [
    "LAYER_COLUMNS",
    "NOISE_COLUMNS",
    "OF_SAMPLE",
    "SAMPLING_COLUMNS",
    "TERM_COLUMNS",
    "Column",
    "half_width",
    "row",
    "shown",
    "table",
]


@dataclass(frozen=True)
class Column:
    """One quantity of a layer: its header and cell in a table, its keys and values in a flat row.

    Parameters
    ----------
    header : str
        The column's header in a table.
    cell : callable
        A function that returns the text in the table.
    figures : callable
        A function that returns the figures of a flat row, by name and in full precision. By default
        there are none.
    shown_for : callable
        A function that says whether a layer has the quantity; by default all do. A column that no
        layer has is left out.
    """

    header: str
    cell: Callable[[LayerSpectrum], str]
    figures: Callable[[LayerSpectrum], Mapping[str, Any]] = lambda spectrum: {}
    shown_for: Callable[[LayerSpectrum], bool] = lambda spectrum: True


def shown(columns: Iterable[Column], spectra: Sequence[LayerSpectrum]) -> list[Column]:
    """Return the columns that at least one of the layers has something in."""
    return [column for column in columns if not spectra or any(map(column.shown_for, spectra))]


def table(
    columns: Iterable[Column], spectra: Iterable[LayerSpectrum]
) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of a table with a line for each layer."""
    spectra = list(spectra)
    columns = shown(columns, spectra)
    lines = [[column.cell(spectrum) for column in columns] for spectrum in spectra]
    return [column.header for column in columns], lines


def row(columns: Iterable[Column], spectrum: LayerSpectrum) -> dict[str, Any]:
    """Return the figures of a layer as one flat dict."""
    found: dict[str, Any] = {}
    for column in columns:
        found |= column.figures(spectrum)
    return found


def half_width(fit: PowerLawFit) -> float:
    """Return half of the width of a fit's interval, the number that is written behind ±."""
    low, high = fit.interval
    return float(high - low) / 2


def _fit(name: str, fit: PowerLawFit) -> dict[str, Any]:
    return {
        name: fit.exponent,
        f"{name}_low": fit.interval[0],
        f"{name}_high": fit.interval[1],
        f"{name}_r_squared": fit.r_squared,
        f"{name}_n": fit.n,
    }


_NAME = Column("layer", lambda s: s.name, lambda s: {"layer": s.name})

OF_SAMPLE = Column(
    "± sample", lambda s: "" if s.sampling is None else f"{s.sampling.alpha.half_width:.3f}"
)
"""The column that a table has only if a layer has sampling errors."""

LAYER_COLUMNS = (
    _NAME,
    Column("kind", lambda s: s.kind, lambda s: {"kind": s.kind}),
    Column(
        "shape",
        lambda s: f"{s.shape[0]}×{s.shape[1]}",
        lambda s: {"m": s.shape[0], "n": s.shape[1]},
    ),
    Column("α", lambda s: f"{s.alpha.exponent:.3f}", lambda s: _fit("alpha", s.alpha)),
    Column("± line", lambda s: f"{half_width(s.alpha):.3f}"),
    OF_SAMPLE,
    Column("mark", lambda s: ", ".join(s.flags) or "ok", lambda s: {"flags": " ".join(s.flags)}),
    Column("R²", lambda s: f"{s.alpha.r_squared:.3f}"),
    Column("γ", lambda s: f"{s.gamma.exponent:.3f}", lambda s: _fit("gamma", s.gamma)),
    Column("s", lambda s: f"{s.s.exponent:.3f}", lambda s: _fit("s", s.s)),
    Column(
        "αγ",
        lambda s: f"{s.triangle.predicted_s:.3f}",
        lambda s: {"predicted_s": s.triangle.predicted_s},
    ),
    Column(
        "|s−αγ|/s",
        lambda s: f"{100 * s.triangle.relative_error:.1f} %",
        lambda s: {"relative_error": s.triangle.relative_error},
    ),
    Column(
        "|τ| ≤ bound",
        lambda s: f"{abs(s.triangle.defect):.3f} ≤ {s.triangle.defect_bound:.3f}",
        lambda s: {"defect": s.triangle.defect, "defect_bound": s.triangle.defect_bound},
    ),
    Column(
        "PR",
        lambda s: f"{s.participation.ratio:.2f}",
        lambda s: {"participation_ratio": s.participation.ratio},
    ),
    Column(
        "≤ cert.",
        lambda s: f"{s.participation.certified_bound:.2f}",
        lambda s: {"certified_bound": s.participation.certified_bound},
    ),
    Column(
        "ζ(s)²/ζ(2s)",
        lambda s: f"{s.participation.zeta_bound:.2f}",
        lambda s: {"zeta_bound": s.participation.zeta_bound},
    ),
    Column(
        "profile",
        lambda s: s.rank_profile.winner.replace("_", "-"),
        lambda s: {"rank_profile": s.rank_profile.winner},
    ),
    Column(
        "dropped",
        lambda s: f"{s.alpha.n_dropped}/{len(s.sigma)}",
        lambda s: {"dropped": s.alpha.n_dropped},
    ),
)
"""The columns of every layer."""


def _sampled(header: str, name: str) -> Column:
    """Return the column of the sampling error and the drift of a number."""

    def cell(spectrum: LayerSpectrum) -> str:
        number = getattr(spectrum.sampling, name)
        drift = "" if math.isnan(number.drift) else f", drift {number.drift:+.2f}"
        return f"{number.half_width:.2f}{drift}"

    def figures(spectrum: LayerSpectrum) -> dict[str, Any]:
        number = getattr(spectrum.sampling, name, None)
        names = (f"{name}_sampling_stderr", f"{name}_drift")
        values = (number.stderr, number.drift) if number else (math.nan, math.nan)
        return dict(zip(names, values, strict=True))

    return Column(header, cell, figures)


def _median_share(spectrum: LayerSpectrum) -> float:
    if spectrum.sampling is None:
        return math.nan
    shares = spectrum.sampling.signal_shares
    return float(np.median(shares[np.isfinite(shares)])) if np.isfinite(shares).any() else math.nan


SAMPLING_COLUMNS = (
    _NAME,
    Column(
        "signal of ‖G‖²",
        lambda s: f"{s.sampling.signal_share:.2f}" if s.sampling else "",
        lambda s: {"signal_share": s.sampling.signal_share if s.sampling else math.nan},
    ),
    Column(
        "of σ_k, median",
        lambda s: f"{_median_share(s):.2f}",
        lambda s: {"signal_share_median": _median_share(s)},
    ),
    _sampled("± α", "alpha"),
    _sampled("± γ", "gamma"),
    _sampled("± s", "s"),
    _sampled("± PR", "participation"),
    Column("directions", lambda s: s.sampling.directions if s.sampling else ""),
)
"""The columns of the sampling errors; rows of layers without hold NaN."""


def _beside_noise(header: str, name: str) -> Column:
    """Return the column of an exponent beside its interval under noise alone."""

    def cell(spectrum: LayerSpectrum) -> str:
        found = getattr(spectrum.noise, name)
        low, high = found.interval
        side = "inside" if found.inside else "outside"
        return f"{found.value:.2f} {side} {low:.2f}–{high:.2f}, p {found.p_value:.2g}"

    def figures(spectrum: LayerSpectrum) -> dict[str, Any]:
        found = getattr(spectrum.noise, name, None)
        names = [f"noise_{name}_{end}" for end in ("low", "high", "p")]
        values = (*found.interval, found.p_value) if found else (math.nan,) * 3
        return dict(zip(names, values, strict=True))

    return Column(header, cell, figures)


NOISE_COLUMNS = (
    _NAME,
    _beside_noise("α of h^Kron", "alpha"),
    _beside_noise("γ", "gamma"),
    _beside_noise("s of h^Kron", "s"),
)
"""The columns of the comparison with noise; rows of layers without hold NaN."""


def _terms(spectrum: LayerSpectrum) -> ExponentDecomposition:
    """Return the decomposition of a layer that has one."""
    assert spectrum.decomposition is not None
    return spectrum.decomposition


def _with_interval(fit: PowerLawFit) -> str:
    return f"{fit.exponent:z.2f} ± {half_width(fit):.2f}"  # "z": no sign if it rounds to 0


def _term(header: str, name: str) -> Column:
    """Return the column of a term of α."""

    def cell(spectrum: LayerSpectrum) -> str:
        return _with_interval(getattr(_terms(spectrum), name))

    def figures(spectrum: LayerSpectrum) -> dict[str, Any]:
        fit = getattr(spectrum.decomposition, name, None)
        value, (low, high) = (fit.exponent, fit.interval) if fit else (math.nan, (math.nan,) * 2)
        return {name: value, f"{name}_low": low, f"{name}_high": high}

    return Column(header, cell, figures)


def _part_of_kappa(header: str, name: str) -> Column:
    """Return the column of a part of κ, which tables show only if a layer has it."""
    column = _term(header, name)

    def is_known(spectrum: LayerSpectrum) -> bool:
        return getattr(spectrum.decomposition, name, None) is not None

    def cell(spectrum: LayerSpectrum) -> str:
        return column.cell(spectrum) if is_known(spectrum) else ""

    return replace(column, cell=cell, shown_for=is_known)


def _of_chi(show: Callable[[Any], str]) -> Callable[[LayerSpectrum], str]:
    """Return a cell that shows something of the χ that are known, or nothing if none is."""

    def cell(spectrum: LayerSpectrum) -> str:
        chi = _terms(spectrum).chi
        chi = chi[np.isfinite(chi)]
        return show(chi) if len(chi) else ""

    return cell


TERM_COLUMNS = (
    _NAME,
    Column("α", lambda s: _with_interval(_terms(s).alpha)),  # its figures are those of the layer
    _term("β", "beta"),
    _term("φ", "phi"),
    _term("of it φδ", "phi_delta"),
    _term("φA", "phi_a"),
    _term("κ", "kappa"),
    _part_of_kappa("of it κ^pos", "kappa_positions"),
    _part_of_kappa("κ^dep", "kappa_dependence"),
    _term("ν", "nu"),
    Column(
        "closure",
        lambda s: f"{abs(_terms(s).closure):.0e}",
        lambda s: {"closure": getattr(s.decomposition, "closure", math.nan)},
    ),
    Column("χ median", _of_chi(lambda chi: f"{np.median(chi):.3g}")),
    Column("χ range", _of_chi(lambda chi: f"{chi.min():.2g}–{chi.max():.2g}")),
    Column("n", lambda s: f"{_terms(s).alpha.n}/{len(s.sigma)}"),
)
"""The columns of α's decomposition; rows of layers without one hold NaN."""
