"""Figures of a convergence: exponents and singular values against the sample size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spectral_adapters.plots.canvas import COLOURS, new_axes, saved, small_multiples
from spectral_core.reporting.convergence import Convergence, LayerConvergence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "alpha_by_size_figure",
    "plot_alpha_by_size",
    "plot_sigma_by_size",
    "save_convergence_figures",
    "sigma_by_size_figure",
]


def plot_alpha_by_size(layer: LayerConvergence, ax: Axes | None = None) -> Axes:
    """Draw α against the number of terms, with a band of one standard error to both sides.

    The vertical line is the size from which on the drift lies within the standard error.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> found = sc.converge(network.problem(network.init(), [batch]), top_k=4)
    >>> plot_alpha_by_size(found["0"]).get_xscale()
    'log'
    """
    ax = ax or new_axes()
    _axis_of_sizes(ax, layer)
    low, high = layer.alpha - layer.stderr["alpha"], layer.alpha + layer.stderr["alpha"]
    ax.fill_between(layer.sizes, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, zorder=1)
    ax.plot(layer.sizes, layer.alpha, "o-", color=COLOURS[0], markersize=3.5, zorder=3)
    if layer.enough is not None:
        ax.axvline(layer.enough, color=COLOURS[1], linewidth=0.8, linestyle=":", zorder=2)
    ax.set_ylabel("α")
    return ax


def plot_sigma_by_size(layer: LayerConvergence, ax: Axes | None = None) -> Axes:
    """Draw singular values against the number of terms, beside lines of slope −1/2.

    The singular values of a gradient that is noise of the sample fall along these lines; those of
    the network stay. Of many directions some are drawn, spaced evenly in log k.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> found = sc.converge(network.problem(network.init(), [batch]), top_k=4)
    >>> plot_sigma_by_size(found["0"]).get_yscale()
    'log'
    """
    ax = ax or new_axes()
    ax.set_yscale("log")
    _axis_of_sizes(ax, layer)
    sigma = np.stack(layer.sigma)
    ranks = sorted({round(k) for k in np.geomspace(1, sigma.shape[1], 5)})
    for colour, k in zip(COLOURS, ranks, strict=False):
        values = sigma[:, k - 1]
        known = np.isfinite(values)
        ax.plot(layer.sizes, values, "o-", color=colour, markersize=3, linewidth=1, zorder=3)
        if known.any():
            first = np.flatnonzero(known)[0]
            line = values[first] * (layer.sizes / layer.sizes[first]) ** -0.5
            ax.plot(layer.sizes, line, color=colour, linewidth=0.7, linestyle=":", zorder=2)
        ax.annotate(
            f"{k}", (layer.sizes[-1], values[-1]), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=6, color=colour,
        )  # fmt: skip
    ax.set_ylabel("σ of rank k  (dotted: $N^{-1/2}$)")
    return ax


def alpha_by_size_figure(convergence: Convergence) -> Figure:
    """Return one panel of `plot_alpha_by_size` per layer.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> found = sc.converge(network.problem(network.init(), [batch]), top_k=4)
    >>> alpha_by_size_figure(found).savefig("alpha_by_size.png")
    """
    return small_multiples(convergence, plot_alpha_by_size)


def sigma_by_size_figure(convergence: Convergence) -> Figure:
    """Return one panel of `plot_sigma_by_size` per layer.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> found = sc.converge(network.problem(network.init(), [batch]), top_k=4)
    >>> sigma_by_size_figure(found).savefig("sigma_by_size.png")
    """
    return small_multiples(convergence, plot_sigma_by_size)


def save_convergence_figures(convergence: Convergence, folder: str | Path) -> list[Path]:
    """Write the figures of a convergence as PNG, into a folder that is created if need be.

    Returns
    -------
    list of Path
        ``alpha_by_size.png`` and ``sigma_by_size.png``.

    Raises
    ------
    ReportError
        If the folder cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> network, rng = DenseNetwork((8, 16, 4)), np.random.default_rng(0)
    >>> batch = (rng.normal(size=(64, 8)), rng.integers(0, 4, 64))
    >>> found = sc.converge(network.problem(network.init(), [batch]), top_k=4)
    >>> [path.name for path in save_convergence_figures(found, "figures")]
    ['alpha_by_size.png', 'sigma_by_size.png']
    """
    figures: dict[str, Callable[[], Figure]] = {
        "alpha_by_size.png": lambda: alpha_by_size_figure(convergence),
        "sigma_by_size.png": lambda: sigma_by_size_figure(convergence),
    }
    return saved(figures, Path(folder))


def _axis_of_sizes(ax: Axes, layer: LayerConvergence) -> None:
    """Give the axes a logarithmic axis of numbers of terms, with a tick at each measured size."""
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.set_xticks(layer.sizes, [f"{size:.0f}" for size in layer.sizes])
    ax.set_xlabel("terms N")
