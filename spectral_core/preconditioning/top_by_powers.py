"""The largest eigenvalue of a Gram matrix from the powers of its square, by few operations."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_core.arrays.fused import add_product, frobenius_norm
from spectral_core.arrays.host import host_constant, on_device
from spectral_core.arrays.namespace import Array

__all__ = ["CENTRE", "squared_top"]

VECTORS, STEPS = 8, 6
TRACE = 1e-34
CENTRE = 1.03
"""The factor that brings the root of the estimate amid what is seen: 0.95 to 1 of λ_max."""


def squared_top(xp: Any, square: Array) -> Array:
    """Estimate ``λ_max²`` of positive semi-definite matrices B from ``S = B²``.

    Eight pseudo-random vectors V are multiplied by S seven times. ``‖S⁷V‖ / ‖S⁶V‖`` is the root of
    a Rayleigh quotient of S², a mean of its eigenvalues with the weights ``λ²⁴``, so that no bound
    of the spectrum is needed beforehand.

    Parameters
    ----------
    square : array, shape (..., k, k)
        The matrices S. The seventh power of their eigenvalues must be in the range of float32.

    Returns
    -------
    array, shape (..., 1, 1)
        The estimate, in float32 or wider. It is 1 for a matrix of zeros and NaN for one that is
        not finite.
    """
    wide = xp.astype(square, xp.float32) if xp.finfo(square.dtype).bits < 32 else square
    vectors = on_device(xp, _start, wide.shape[-1], wide)
    vectors = xp.broadcast_to(vectors, (*wide.shape[:-1], VECTORS))
    start = before = vectors
    for _ in range(STEPS):
        # A trace of the start, far below anything else, is what remains of a matrix of zeros.
        before, vectors = vectors, add_product(xp, start, TRACE, wide, vectors, 1.0)
    return frobenius_norm(xp, vectors) / frobenius_norm(xp, before)


@host_constant
def _start(size: int) -> NDArray[np.float64]:
    """Return fixed dense vectors, almost surely with a component along every eigenvector."""
    drawn = np.random.default_rng(2024).standard_normal((size, VECTORS))
    return np.asarray(drawn / np.linalg.norm(drawn))
