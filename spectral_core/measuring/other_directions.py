"""Directions of another problem: what the measured loss does along them (Theory 11.9)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import array_api_compat
import numpy as np

from spectral_core.arrays.namespace import as_like, to_numpy
from spectral_core.arrays.products import exact_products
from spectral_core.curvature.problem import CurvatureProblem, LayerInfo
from spectral_core.curvature.result_checks import checked_gradient
from spectral_core.measuring.directions import Window

__all__ = ["along_gradients"]


def along_gradients(
    problem: CurvatureProblem, layers: Sequence[LayerInfo], windows: Mapping[str, Window]
) -> dict[str, Window]:
    """Return windows of another problem with the derivatives ``<G, D_k>`` of this one.

    The directions become arrays of this problem. Rounding of their σ_k says nothing of it.
    """
    known = [layer for layer in layers if layer.name in windows]
    gradients = dict(problem.gradients([layer.name for layer in known]))
    found = {}
    for layer in known:
        gradient, window = checked_gradient(layer, gradients[layer.name]), windows[layer.name]
        xp = array_api_compat.array_namespace(gradient)
        u, v = (as_like(xp, to_numpy(side), gradient) for side in (window.u, window.v))
        with exact_products(xp, gradient):
            derivative = to_numpy(xp.sum(u * (gradient @ v), axis=0)).astype(np.float64)
        found[layer.name] = replace(window, u=u, v=v, rounding=None, derivative=derivative)
    return found
