"""Figures of a report: curvature, decay, transfer, depth and decomposition."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spectral_adapters.plots.canvas import COLOURS, new_axes, saved, short_name, small_multiples
from spectral_core._extras import require
from spectral_core.reporting.report import SpectralReport
from spectral_core.reporting.rows import half_width
from spectral_core.reporting.spectrum import LayerSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "alpha_over_k_figure",
    "curvature_figure",
    "plot_alpha_by_depth",
    "plot_alpha_over_k",
    "plot_curvature",
    "plot_decomposition",
    "plot_rank_profile",
    "plot_transfer",
    "rank_profile_figure",
    "save_figures",
]

_FORMS = {"power_law": "#0072B2", "exponential": "#D55E00", "log_normal": "#009E73"}
_TERMS = {"beta": "#0072B2", "phi": "#D55E00", "kappa": "#009E73", "nu": "#CC79A7"}
_PARTS_OF_KAPPA = {"kappa_positions": "#009E73", "kappa_dependence": "#E69F00"}
_SYMBOLS = {
    "beta": "β: eigenvalues of the factors", "phi": "φ: alignment", "kappa": "κ: dependence",
    "nu": "ν: beyond Gauss-Newton", "kappa_positions": "κ^pos: positions acting together",
    "kappa_dependence": "κ^dep: dependence of δ and a",
}  # fmt: skip
_GREY = "#777777"


def plot_curvature(spectrum: LayerSpectrum, ax: Axes | None = None) -> Axes:
    """Draw h against σ on logarithmic axes, with the fit of α and its interval.

    Directions dropped from the fit (h <= 0 or not finite) are crosses at the lower edge; one that
    carries the fit has a ring. The number behind ± is the sampling error where there is one.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> plot_curvature(report["0"]).get_xscale()
    'log'
    """
    ax = ax or new_axes()
    sigma, h, fit = spectrum.sigma, spectrum.curvature, spectrum.alpha
    kept = (h > 0) & np.isfinite(h)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.scatter(sigma[kept], h[kept], s=14, color=COLOURS[0], linewidths=0, zorder=3)
    if not kept.all():
        ax.scatter(
            sigma[~kept], np.full(int((~kept).sum()), 0.03), marker="x", s=18, color=COLOURS[1],
            transform=ax.get_xaxis_transform(), clip_on=False, zorder=3,
        )  # fmt: skip
    if carrying := [k - 1 for k in spectrum.carried_by]:
        ax.scatter(
            sigma[carrying], h[carrying], s=50, facecolors="none", edgecolors=COLOURS[1],
            linewidths=1, zorder=3,
        )  # fmt: skip
    if not fit.reason:
        x = np.log(np.asarray([sigma[kept].min(), sigma[kept].max()]))
        x_mean, y_mean = np.log(sigma[kept]).mean(), np.log(h[kept]).mean()
        lines = [np.exp(y_mean + slope * (x - x_mean)) for slope in (fit.exponent, *fit.interval)]
        ax.plot(np.exp(x), lines[0], color="black", linewidth=1, zorder=2)
        xs = np.linspace(x[0], x[1], 50)
        low, high = (np.exp(y_mean + slope * (xs - x_mean)) for slope in fit.interval)
        ax.fill_between(np.exp(xs), low, high, color=_GREY, alpha=0.25, linewidth=0, zorder=1)
        sampling = spectrum.sampling
        half = half_width(fit) if sampling is None else sampling.alpha.half_width
        of = "" if sampling is None else " (sample)"
        _annotate(ax, f"α = {fit.exponent:.2f} ± {half:.2f}{of}", "upper left")
    ax.set_xlabel("singular value σ")
    ax.set_ylabel("curvature h")
    return ax


def plot_rank_profile(spectrum: LayerSpectrum, ax: Axes | None = None) -> Axes:
    """Draw σ against rank with the three fitted forms; the BIC's choice is the solid line.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> plot_rank_profile(report["0"]).get_yscale()
    'log'
    """
    ax = ax or new_axes()
    k = np.arange(1, len(spectrum.sigma) + 1)
    ax.set_yscale("log")
    ax.scatter(k, spectrum.sigma, s=14, color="black", linewidths=0, zorder=3)
    fits = spectrum.rank_profile
    curves: dict[str, Callable[[Any], Any]] = {
        "power_law": lambda p: p["log_prefactor"] - p["gamma"] * np.log(k),
        "exponential": lambda p: p["log_prefactor"] - p["beta"] * k,
        "log_normal": lambda p: p["log_prefactor"] + p["a"] * np.log(k) + p["b"] * np.log(k) ** 2,
    }
    for name, curve in curves.items():
        wins = fits.winner == name
        ax.plot(
            k, np.exp(curve(getattr(fits, name).parameters)), color=_FORMS[name],
            linestyle="-" if wins else ":", linewidth=1.6 if wins else 1, zorder=2 if wins else 1,
            label=name.replace("_", "-"),
        )  # fmt: skip
    chosen = fits.winner.replace("_", "-")
    _annotate(ax, chosen if fits.winner == "undecided" else f"{chosen}, ΔBIC {fits.delta_bic:.0f}")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("rank k")
    ax.set_ylabel("singular value σ")
    return ax


def plot_transfer(report: SpectralReport, ax: Axes | None = None) -> Axes:
    """Draw measured s against αγ, layer by layer, with the a-priori band of the defect.

    The bar at each point is ``αγ ± bound`` (Theory 3.2). It shows where s in σ order must lie,
    apart from the term of dropped directions. Filled points are s in sorted order, and open points
    are s in σ order.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> axes = plot_transfer(report)
    """
    ax = ax or new_axes()
    colours = _colours_by_kind(report)
    usable = [s for s in report.values() if math.isfinite(s.s.exponent)]
    values = [v for s in usable for v in (s.triangle.predicted_s, s.s.exponent)]
    if values:
        low, high = min(values), max(values)
        margin = 0.08 * (high - low) or 0.1
        ax.plot([low - margin, high + margin], [low - margin, high + margin], color="black",
                linewidth=0.8, zorder=1)  # fmt: skip
    for spectrum in usable:
        triangle = spectrum.triangle
        colour = colours[spectrum.kind]
        ax.errorbar(
            triangle.predicted_s, triangle.predicted_s, yerr=triangle.defect_bound, color=colour,
            alpha=0.45, linewidth=1.2, capsize=0, zorder=2,
        )  # fmt: skip
        ax.scatter(triangle.predicted_s, triangle.s_index, s=22, facecolors="white",
                   edgecolors=colour, linewidths=0.9, zorder=3)  # fmt: skip
        ax.scatter(triangle.predicted_s, triangle.s_sorted, s=22, color=colour, linewidths=0,
                   zorder=4)  # fmt: skip
    _kind_legend(ax, colours)
    ax.set_xlabel("predicted αγ")
    ax.set_ylabel("measured s  (filled: sorted, open: σ order)")
    return ax


def plot_alpha_by_depth(report: SpectralReport, ax: Axes | None = None) -> Axes:
    """Draw α of each layer in the order of the forward pass, with its intervals.

    The thin one says how well a line fits; the wide bar, with sampling errors, where α would lie
    with other data. A hollow point is marked as noise.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> axes = plot_alpha_by_depth(report)
    """
    ax = ax or new_axes(width=max(6.4, 0.3 * len(report) + 2))
    colours = _colours_by_kind(report)
    ax.axhline(2, color=_GREY, linewidth=0.8, linestyle="--", zorder=1)
    for position, spectrum in enumerate(report.values()):
        fit = spectrum.alpha
        if fit.reason:
            continue
        low, high = fit.interval
        colour = colours[spectrum.kind]
        ax.errorbar(
            position, fit.exponent, yerr=[[fit.exponent - low], [high - fit.exponent]], fmt="o",
            markersize=4, color=colour, linewidth=1, capsize=2, zorder=2,
            markerfacecolor="white" if "noise" in spectrum.flags else colour,
        )  # fmt: skip
        if spectrum.sampling is not None:
            ax.vlines(
                position, *spectrum.sampling.alpha.interval, color=colour, linewidth=6, alpha=0.25,
                zorder=1,
            )  # fmt: skip
    if report.sampled():
        ax.vlines([], [], [], color=_GREY, linewidth=1, label="± line")
        ax.vlines([], [], [], color=_GREY, linewidth=6, alpha=0.25, label="± sample")
        ax.scatter([], [], s=22, facecolors="white", edgecolors=_GREY, label="mostly noise")
    _kind_legend(ax, colours)
    ax.set_xticks(
        range(len(report)), [short_name(name) for name in report], rotation=90, fontsize=7
    )
    ax.set_xlim(-0.7, len(report) - 0.3)
    ax.set_ylabel("α  (h ∝ σ^α)")
    return ax


def plot_decomposition(report: SpectralReport, ax: Axes | None = None) -> Axes:
    """Draw ``α = β + φ + κ + ν`` as bars, layer by layer; negative terms hang below zero.

    The diamond is α, the sum of its bars, with its interval. κ has two bars, κ^pos and κ^dep, where
    it is split (Theory 5.3).

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4, decompose=True)
    >>> axes = plot_decomposition(report)
    """
    layers = [
        s for s in report.decomposed() if s.decomposition and not s.decomposition.alpha.reason
    ]
    ax = ax or new_axes(width=max(6.4, 0.3 * len(layers) + 2))
    ax.axhline(0, color="black", linewidth=0.8, zorder=3)
    ax.axhline(2, color=_GREY, linewidth=0.8, linestyle="--", zorder=1)
    for position, spectrum in enumerate(layers):
        fits: Any = spectrum.decomposition
        tops = {True: 0.0, False: 0.0}
        for name, colour in _parts(fits).items():
            value = getattr(fits, name).exponent
            ax.bar(position, value, 0.7, bottom=tops[value > 0], color=colour, zorder=2)
            tops[value > 0] += value
        low, high = fits.alpha.interval
        alpha = fits.alpha.exponent
        ax.errorbar(
            position, alpha, yerr=[[alpha - low], [high - alpha]], fmt="D", markersize=4,
            color="black", markerfacecolor="white", linewidth=1, capsize=2, zorder=4,
        )  # fmt: skip
    patch: Any = require("matplotlib.patches", "plots", "A plot").Patch
    line: Any = require("matplotlib.lines", "plots", "A plot").Line2D
    drawn = {name for spectrum in layers for name in _parts(spectrum.decomposition)}
    every = {**_TERMS, **_PARTS_OF_KAPPA}
    handles = [
        patch(color=colour, label=_SYMBOLS[name]) for name, colour in every.items() if name in drawn
    ]
    handles.append(line([], [], marker="D", color="black", markerfacecolor="white", label="α"))
    ax.figure.legend(
        handles=handles, loc="outside upper center", ncols=5, frameon=False, fontsize=7
    )
    ax.use_sticky_edges = False  # room below the lowest bar
    names = [short_name(spectrum.name) for spectrum in layers]
    ax.set_xticks(range(len(layers)), names, rotation=90, fontsize=7)
    ax.set_xlim(-0.7, len(layers) - 0.3)
    ax.set_ylabel("slope on log σ")
    return ax


def _parts(fits: Any) -> dict[str, str]:
    """Return the terms that a layer's bars show, with their colours."""
    if fits.kappa_positions is None:
        return _TERMS
    return {k: v for k, v in _TERMS.items() if k != "kappa"} | _PARTS_OF_KAPPA


def curvature_figure(report: SpectralReport) -> Figure:
    """Return one panel of `plot_curvature` per layer.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> curvature_figure(report).savefig("curvature.png")
    """
    return small_multiples(report, plot_curvature)


def plot_alpha_over_k(spectrum: LayerSpectrum, ax: Axes | None = None) -> Axes:
    """Draw α of the first K directions against K, with its interval (Theory 11.8).

    A curve that does not settle says that α depends on the window.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> plot_alpha_over_k(report["0"]).get_xlabel()
    'directions K'
    """
    ax = ax or new_axes()
    fits = spectrum.alpha_over_k
    k, alpha = np.arange(1, len(fits.exponent) + 1), np.asarray(fits.exponent)
    low, high = map(np.asarray, fits.interval)
    ax.axhline(2, color=_GREY, linewidth=0.8, linestyle="--", zorder=1)
    ax.fill_between(k, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, zorder=1)
    ax.plot(k, alpha, color=COLOURS[0], linewidth=1.2, zorder=2)
    settled = k >= min(6, len(k))  # intervals of three or four points fill any axis
    if np.isfinite(alpha[settled]).any():
        bottom, top = np.nanmin(alpha[settled]) - 1, np.nanmax(alpha[settled]) + 1
        ax.set_ylim(min(bottom, 1.5), max(top, 2.5))
    if spectrum.line_check.rejected:
        _annotate(ax, "curved", "upper left")
    ticks: Any = require("matplotlib.ticker", "plots", "A plot")
    ax.xaxis.set_major_locator(ticks.MaxNLocator(integer=True))
    ax.set_xlabel("directions K")
    ax.set_ylabel("α")
    return ax


def alpha_over_k_figure(report: SpectralReport) -> Figure:
    """Return one panel of `plot_alpha_over_k` per layer.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> alpha_over_k_figure(report).savefig("alpha_over_k.png")
    """
    return small_multiples(report, plot_alpha_over_k)


def rank_profile_figure(report: SpectralReport) -> Figure:
    """Return one panel of `plot_rank_profile` per layer.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> rank_profile_figure(report).savefig("rank_profiles.png")
    """
    figure = small_multiples(report, plot_rank_profile)
    line: Any = require("matplotlib.lines", "plots", "A plot").Line2D
    handles = [line([], [], color=c, label=name.replace("_", "-")) for name, c in _FORMS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def save_figures(report: SpectralReport, folder: str | Path) -> list[Path]:
    """Write every figure of a report as PNG.

    Parameters
    ----------
    report : SpectralReport
        A report with at least one layer.
    folder : path
        The folder to write to. It is created if it does not exist.

    Returns
    -------
    list of Path
        ``curvature.png``, ``transfer.png``, ``alpha_by_depth.png``, ``rank_profiles.png``,
        ``alpha_over_k.png``, and ``decomposition.png`` if a layer has one.

    Raises
    ------
    ReportError
        If the folder cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import DenseNetwork
    >>> from spectral_core import measure
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> report = measure(network.problem(network.init(), [batch]), top_k=4)
    >>> [path.name for path in save_figures(report, "figures")][:2]
    ['curvature.png', 'transfer.png']
    """
    folder = Path(folder)
    figures: dict[str, Callable[[], Figure]] = {
        "curvature.png": lambda: curvature_figure(report),
        "transfer.png": lambda: plot_transfer(report).figure,  # type: ignore[dict-item, return-value]
        "alpha_by_depth.png": lambda: plot_alpha_by_depth(report).figure,  # type: ignore[dict-item, return-value]
        "rank_profiles.png": lambda: rank_profile_figure(report),
        "alpha_over_k.png": lambda: alpha_over_k_figure(report),
    }
    if report.decomposed():
        figures["decomposition.png"] = lambda: plot_decomposition(report).figure  # type: ignore[assignment, return-value]
    return saved(figures, folder)


def _annotate(ax: Axes, text: str, where: str = "lower left") -> None:
    y, align = (0.97, "top") if where == "upper left" else (0.03, "bottom")
    ax.text(0.04, y, text, transform=ax.transAxes, va=align, ha="left", fontsize=7, zorder=5)


def _colours_by_kind(report: SpectralReport) -> dict[str, str]:
    kinds = dict.fromkeys(spectrum.kind for spectrum in report.values())
    return {kind: COLOURS[index % len(COLOURS)] for index, kind in enumerate(kinds)}


def _kind_legend(ax: Axes, colours: dict[str, str]) -> None:
    for kind, colour in colours.items():
        ax.scatter([], [], s=22, color=colour, label=kind)
    # Above the axes: to look for the best place inside takes seconds where there are many layers.
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
