"""Figures of reports and convergences. Functions draw on the axes they are given and return them.

Nothing global is touched: figures are made without pyplot, so the caller's backend and settings
stay as they are.
"""

from spectral_adapters.plots.convergence import alpha_by_size_figure as alpha_by_size_figure
from spectral_adapters.plots.convergence import plot_alpha_by_size as plot_alpha_by_size
from spectral_adapters.plots.convergence import plot_sigma_by_size as plot_sigma_by_size
from spectral_adapters.plots.convergence import save_convergence_figures as save_convergence_figures
from spectral_adapters.plots.convergence import sigma_by_size_figure as sigma_by_size_figure
from spectral_adapters.plots.report import alpha_over_k_figure as alpha_over_k_figure
from spectral_adapters.plots.report import curvature_figure as curvature_figure
from spectral_adapters.plots.report import plot_alpha_by_depth as plot_alpha_by_depth
from spectral_adapters.plots.report import plot_alpha_over_k as plot_alpha_over_k
from spectral_adapters.plots.report import plot_curvature as plot_curvature
from spectral_adapters.plots.report import plot_decomposition as plot_decomposition
from spectral_adapters.plots.report import plot_rank_profile as plot_rank_profile
from spectral_adapters.plots.report import plot_transfer as plot_transfer
from spectral_adapters.plots.report import rank_profile_figure as rank_profile_figure
from spectral_adapters.plots.report import save_figures as save_figures

__all__ = [
    "alpha_by_size_figure",
    "alpha_over_k_figure",
    "curvature_figure",
    "plot_alpha_by_depth",
    "plot_alpha_by_size",
    "plot_alpha_over_k",
    "plot_curvature",
    "plot_decomposition",
    "plot_rank_profile",
    "plot_sigma_by_size",
    "plot_transfer",
    "rank_profile_figure",
    "save_convergence_figures",
    "save_figures",
    "sigma_by_size_figure",
]
