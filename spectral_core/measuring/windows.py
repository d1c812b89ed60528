"""The directions of every layer, within the rank and the rounding of its gradient."""

from collections.abc import Sequence

from spectral_core.curvature.problem import CurvatureProblem, LayerInfo
from spectral_core.curvature.result_checks import checked_gradient
from spectral_core.errors import LayerError
from spectral_core.measuring.directions import Decomposition, Window, top_directions
from spectral_core.measuring.gradient_rounding import with_rounding, without_rounding

__all__ = ["windows_of"]


def windows_of(
    problem: CurvatureProblem,
    layers: Sequence[LayerInfo],
    top_k: int,
    svd: Decomposition,
    precision: str | None,
    skipped: dict[str, str],
) -> dict[str, Window]:
    """Return the directions of each layer; those that have none go to `skipped`."""
    gradients = dict(problem.gradients([layer.name for layer in layers]))
    windows: dict[str, Window] = {}
    for layer in layers:
        try:
            gradient = checked_gradient(layer, gradients.pop(layer.name, None))
            windows[layer.name] = top_directions(layer, gradient, top_k, svd)
        except LayerError as error:
            skipped[layer.name] = error.reason
    for name, window in with_rounding(problem, layers, windows).items():
        try:
            windows[name] = without_rounding(name, window, precision)
        except LayerError as error:
            del windows[name]
            skipped[name] = error.reason
    return windows
