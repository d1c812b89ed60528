"""The rounding of singular values, by comparison with the gradient in a wider type."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from spectral_core.arrays.namespace import to_numpy
from spectral_core.curvature.problem import CurvatureProblem, KnowsRounding, LayerInfo
from spectral_core.curvature.result_checks import checked_gradient
from spectral_core.errors import LayerError
from spectral_core.measuring.directions import Window

__all__ = ["with_rounding", "without_rounding"]

SHARE = 0.1
"""Of a singular value: what may be rounding. Its first digit is then right (Theory 11.6)."""

SAMPLES = 8
"""What is looked at first: the rounding of a mean is at most about that of a part of it."""

DOUBT = 0.05
"""Of a singular value: where rounding in these samples comes to more, all data are looked at."""

Rounding = npt.NDArray[np.float64]


def with_rounding(
    problem: CurvatureProblem, layers: Sequence[LayerInfo], windows: Mapping[str, Window]
) -> dict[str, Window]:
    """Return the windows with the rounding of their singular values, as far as it is known.

    A gradient in a wider type costs more than one in the problem's, so a few samples are looked at
    first, and all data only for layers of which these raise a doubt. Where the problem says nothing
    of rounding, neither do the windows.
    """
    if not isinstance(problem, KnowsRounding):
        return dict(windows)
    known = [layer for layer in layers if layer.name in windows]
    found = _looked_at(problem, known, windows, SAMPLES)
    doubtful = [
        layer
        for layer in known
        if layer.name in found
        and not np.all(found[layer.name] <= DOUBT * windows[layer.name].sigma)
    ]
    if doubtful:
        found |= _looked_at(problem, doubtful, windows, None)
    return {name: replace(window, rounding=found.get(name)) for name, window in windows.items()}


def _looked_at(
    problem: KnowsRounding,
    layers: Sequence[LayerInfo],
    windows: Mapping[str, Window],
    samples: int | None,
) -> dict[str, Rounding]:
    errors = problem.gradient_errors([layer.name for layer in layers], samples=samples)
    found = {
        layer.name: _along(windows[layer.name], checked_gradient(layer, errors[layer.name]))
        for layer in layers
        if layer.name in errors
    }
    return {name: rounding for name, rounding in found.items() if np.all(np.isfinite(rounding))}


def _along(window: Window, error: Any) -> Rounding:
    """Return a bound on the distance of each σ_k from a singular value of the exact gradient G − E.

    The residuals of (u_k, v_k, σ_k) in G − E are −E v_k and −Eᵀ u_k, and the root of their mean
    square bounds the distance of σ_k from the nearest eigenvalue of the symmetric matrix whose
    eigenvalues are those singular values with both signs (Parlett, The Symmetric Eigenvalue
    Problem, 4.5). It is at most ‖E‖₂, Weyl's bound, and far less where the error lies elsewhere.
    """
    e, u, v = (to_numpy(a).astype(np.float64) for a in (error, window.u, window.v))
    squares = np.sum((e @ v) ** 2, axis=0) + np.sum((e.T @ u) ** 2, axis=0)
    found: Rounding = np.sqrt(squares / 2)
    return found


def without_rounding(layer: str, window: Window, precision: str | None) -> Window:
    """Return the window up to the first singular value of which too much may be rounding.

    `precision` is the type to which the model casts on the way, if it does.

    Raises
    ------
    LayerError
        If that singular value is the first one.
    """
    if window.rounding is None or np.all(window.rounding <= SHARE * window.sigma):
        return window
    count = int(np.argmin(window.rounding <= SHARE * window.sigma))
    said = (
        f"σ_{count + 1} = {window.sigma[count]:.2g} may be off by {window.rounding[count]:.2g}, "
        f"the gradient's own rounding; {_remedy(window, precision)}"
    )
    if count == 0:
        raise LayerError(layer, f"{said}.")
    return replace(
        window,
        u=window.u[:, :count],
        v=window.v[:, :count],
        sigma=window.sigma[:count],
        rounding=window.rounding[:count],
        notes=(
            *window.notes,
            f"window cut to {count} of {len(window.sigma)} directions by rounding: {said}",
        ),
    )


def _remedy(window: Window, precision: str | None) -> str:
    if array_api_compat.array_namespace(window.u).finfo(window.u.dtype).bits < 64:
        return "measure in float64 (dtype=torch.float64, or jax_enable_x64)"
    if precision:
        return f"take the casts to {precision} out of the model"
    return "float64 holds no more digits of it"
