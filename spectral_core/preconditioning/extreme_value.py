"""The largest eigenvalue of a Gram matrix by a fixed number of Lanczos steps."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_core.arrays.eigen import top_eigenvalue
from spectral_core.arrays.host import host_constant, on_device
from spectral_core.arrays.namespace import Array, device_of

__all__ = ["largest_eigenvalue"]

STEPS = 16
PASSES = 2  # orthogonalisations; one leaves spurious values if the rank is below the steps
DIRECT_SIZE = 160  # up to this size all eigenvalues are cheaper than the steps


def largest_eigenvalue(xp: Any, gram: Array, steps: int = STEPS) -> Array:
    """Estimate ``λ_max`` of symmetric positive semi-definite matrices from below.

    Up to 160 rows the estimate is exact to rounding. For more rows it is the largest Ritz value of
    a Krylov space: Lanczos steps start from a fixed pseudo-random vector, with full
    reorthogonalisation, twice. The estimate is never above λ_max. For k rows and s steps it is
    below by at most ``0.103 (ln(k (s−1)⁴) / (s−1))²`` of λ_max in the mean over start vectors
    (Kuczyński and Woźniakowski 1992). The errors that were seen are far smaller. For 60 Gaussian
    matrices of 130 to 768 rows, whose dense upper edge is the slowest to find, they were 0.07 % in
    the median and 3 % in the worst; if singular values fall off, they are rounding.

    Parameters
    ----------
    gram : array, shape (..., k, k)
        The matrices. Their entries must not overflow when squared.
    steps : int
        The number of matrix-vector products.

    Returns
    -------
    array, shape (..., 1, 1)
        The eigenvalue. It is zero for a matrix that is zero or not finite. The function runs under
        `jax.jit`.
    """
    size = gram.shape[-1]
    if size <= DIRECT_SIZE:
        return _largest(xp, gram)
    start = on_device(xp, _start, size, gram)
    vector = xp.broadcast_to(start[:, None], (*gram.shape[:-1], 1))
    # Columns are added to an array of zeros, as constant shapes are compiled once.
    places = xp.eye(steps, dtype=gram.dtype, device=device_of(gram))
    basis, nothing = vector * places[0, :], xp.zeros_like(vector)
    rounding = 8 * float(xp.finfo(gram.dtype).eps) * _frobenius_norm(xp, gram)
    for step in range(1, steps):
        vector = gram @ vector
        for _ in range(PASSES):
            vector = vector - basis @ (xp.matrix_transpose(basis) @ vector)
        length = xp.sqrt(xp.sum(vector * vector, axis=(-2, -1), keepdims=True))
        # If only rounding is left, a column of zeros adds an eigenvalue 0.
        vector = xp.where(length > rounding, vector / xp.maximum(length, rounding), nothing)
        basis = basis + vector * places[step, :]
    projected = xp.matrix_transpose(basis) @ (gram @ basis)
    return _largest(xp, (projected + xp.matrix_transpose(projected)) / 2)


def _largest(xp: Any, matrix: Array) -> Array:
    """Return the largest eigenvalue, shape (..., 1, 1), to rounding; 0 for a matrix not finite."""
    finite = xp.all(xp.isfinite(matrix), axis=(-2, -1), keepdims=True)
    safe = xp.where(finite, matrix, xp.zeros_like(matrix))  # some libraries raise on NaN
    return top_eigenvalue(xp, safe)


def _frobenius_norm(xp: Any, matrix: Array) -> Array:
    """Return the norm in shape (..., 1, 1), made positive also for a matrix of zeros."""
    norm = xp.sqrt(xp.sum(matrix * matrix, axis=(-2, -1), keepdims=True))
    return xp.where(norm > 0, norm, xp.ones_like(norm))


@host_constant
def _start(size: int) -> NDArray[np.float64]:
    """Return a fixed dense unit vector, almost surely with a component along every eigenvector."""
    vector = np.random.default_rng(2024).standard_normal(size)
    return np.asarray(vector / np.linalg.norm(vector))
