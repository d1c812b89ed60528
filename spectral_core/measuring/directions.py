"""The directions along which a layer is measured: the top singular vectors of its gradient."""

from dataclasses import dataclass
from typing import Any, Literal

import array_api_compat
import numpy as np
import numpy.typing as npt

from spectral_core.arrays.namespace import to_numpy
from spectral_core.arrays.products import exact_products
from spectral_core.curvature.problem import LayerInfo
from spectral_core.errors import LayerError

__all__ = ["Decomposition", "Window", "top_directions"]

Decomposition = Literal["exact", "randomized"]
"""How singular vectors are found."""

OVERSAMPLING, POWER_ITERATIONS = 12, 4


@dataclass(frozen=True)
class Window:
    """Top directions of a gradient.

    Parameters
    ----------
    u, v : array
        The directions, of shapes ``(m, K)`` and ``(n, K)``, in the gradient's own library.
    sigma : ndarray, shape (K,), float64
        The singular values, descending.
    notes : tuple of str
        The reasons why there are no more directions, and other limits.
    rounding : ndarray of shape (K,), float64, or None
        The largest distance of each σ_k from a singular value of the exact gradient, or None if it
        is not known.
    derivative : ndarray of shape (K,), float64, or None
        The derivative of the measured loss along the directions, if they are those of another
        problem. None stands for σ_k.
    """

    u: Any
    sigma: npt.NDArray[np.float64]
    v: Any
    notes: tuple[str, ...]
    rounding: npt.NDArray[np.float64] | None = None
    derivative: npt.NDArray[np.float64] | None = None


def top_directions(
    layer: LayerInfo, gradient: Any, top_k: int, svd: Decomposition = "exact"
) -> Window:
    """Return the top singular directions of a gradient, at most as many as its numerical rank.

    Parameters
    ----------
    layer : LayerInfo
        The layer of the gradient.
    gradient : array, shape (m, n)
        The gradient, an array of any library.
    top_k : int
        The largest number of directions to return.
    svd : {"exact", "randomized"}
        The algorithm. ``"exact"`` is the thin singular value decomposition; ``"randomized"`` is
        subspace iteration from random vectors (Halko, Martinsson and Tropp, SIAM Review 53, 2011),
        whose residual is stated in the notes.

    Raises
    ------
    LayerError
        If the gradient is zero or not finite.
    """
    xp = array_api_compat.array_namespace(gradient)
    if not bool(xp.all(xp.isfinite(gradient))):
        count = int(xp.sum(xp.astype(~xp.isfinite(gradient), xp.int64)))
        raise LayerError(
            layer.name,
            f"its gradient holds {count} NaN or infinite values; look for a division by zero, a "
            "square root at zero or an overflow on the way to this layer.",
        )
    some = top_k + OVERSAMPLING
    notes: tuple[str, ...] = ()
    if svd == "exact" or some >= min(layer.shape):
        u, singular, vh = xp.linalg.svd(gradient, full_matrices=False)
        v = xp.matrix_transpose(vh)
    else:
        with exact_products(xp, gradient):
            u, singular, v = _subspace_iteration(xp, gradient, some)
    sigma = to_numpy(singular).astype(np.float64)
    if not sigma[0] > 0:
        raise LayerError(
            layer.name, "its gradient is zero on these data; no direction can be measured."
        )
    # A singular value below this level is rounding of the largest (numpy's matrix_rank), and its
    # direction means nothing.
    floor = float(sigma[0]) * max(layer.shape) * float(xp.finfo(gradient.dtype).eps)
    rank = int(np.sum(sigma > floor))
    window = min(top_k, rank)
    if window < top_k:
        limit = "the gradient's numerical rank" if rank < min(layer.shape) else "the smaller side"
        notes = (f"window cut to {window} of {top_k} directions by {limit}",)
    gaps = sigma[:window] - np.append(sigma[1:], 0.0)[:window]
    if tied := [k + 1 for k in range(window) if gaps[k] <= floor]:
        notes += (
            "singular values tied to rounding after rank " + ", ".join(map(str, tied)) + ": "
            "directions inside a tie are arbitrary",
        )
    u, v = u[:, :window], v[:, :window]
    if svd == "randomized" and some < min(layer.shape):
        with exact_products(xp, gradient):
            residual = gradient @ v - u * singular[:window]
        error = to_numpy(xp.sqrt(xp.sum(residual * residual, axis=0))).astype(np.float64)
        notes += (
            "randomized singular vectors: each σ_k lies within "
            f"{float(np.max(error / sigma[:window])):.1e} of a singular value, relatively",
        )
    return Window(u, sigma[:window], v, notes)


def _subspace_iteration(xp: Any, gradient: Any, count: int) -> tuple[Any, Any, Any]:
    """Return approximate top singular triplets: u (m, count), σ (count,), v (n, count)."""
    start = np.random.default_rng(0).standard_normal((gradient.shape[1], count))
    device = array_api_compat.device(gradient)
    basis = xp.asarray(start, dtype=gradient.dtype, device=device)
    transposed = xp.matrix_transpose(gradient)
    for _ in range(POWER_ITERATIONS):  # orthonormal in between, or small σ drown in rounding
        basis = xp.linalg.qr(gradient @ basis)[0]
        basis = xp.linalg.qr(transposed @ basis)[0]
    basis = xp.linalg.qr(gradient @ basis)[0]
    u, sigma, vh = xp.linalg.svd(xp.matrix_transpose(basis) @ gradient, full_matrices=False)
    return basis @ u, sigma, xp.matrix_transpose(vh)
