"""The alignment of a layer's gradient directions with its Kronecker factors."""

from dataclasses import dataclass
from typing import Any, Self

from spectral_core.arrays.eigen import eigvalsh
from spectral_core.arrays.namespace import Array, check_broadcast, floating
from spectral_core.arrays.numbers import is_real
from spectral_core.arrays.products import exact_products
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.errors import InputError
from spectral_core.exponents.power_law_fit import to_floats
from spectral_core.participation.participation import entropy_rank

__all__ = ["FactorSpectrum", "SpectralAlignment", "effective_rank", "spectral_alignment"]


@dataclass(frozen=True)
class FactorSpectrum:
    """One Kronecker factor seen from the K singular directions of the gradient.

    Fields have the batch shape; those marked (K,) have an axis of directions behind it.

    Parameters
    ----------
    eigenvalues : array (K,)
        ``λ_k``, the K largest eigenvalues of the factor, descending.
    quadratic : array (K,)
        The quadratic form ``u_kᵀ C u_k``.
    rho : array (K,)
        ``ρ_k = u_kᵀ C u_k / λ_k`` (Theory 5.1); NaN where ``λ_k`` is rounding of ``λ_1``.
    tied : array of bool (K,)
        True where ``λ_k`` is nearer to a neighbour than the tolerance, relative to itself. Inside
        such a cluster eigenvectors are arbitrary, and so is the assignment of its eigenvalues to
        directions; ρ changes by at most the tolerance, whichever is chosen.
    rank : array of int
        The number of eigenvalues above rounding.
    effective_rank : array
        ``exp(−Σ p log p)`` with ``p = λ / Σ λ`` over all eigenvalues.
    condition : array
        ``λ_1 / λ_rank``, the condition number of the factor on its range.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> u, v = np.eye(3)[:, :2], np.eye(4)[:, :2]
    >>> c_delta, c_a = np.diag([3.0, 1.0, 0.5]), np.diag([4.0, 2.0, 1.0, 1.0])
    >>> factor = sc.spectral_alignment(u, v, c_delta, c_a).delta
    >>> factor.eigenvalues, factor.rho
    (array([3., 1.]), array([1., 1.]))
    """

    eigenvalues: Array
    quadratic: Array
    rho: Array
    tied: Array
    rank: Array
    effective_rank: Array
    condition: Array

    def to_floats(self) -> Self:
        """Return the result with NumPy arrays of directions; raises `InputError` for a batch."""
        return to_floats(self, ("eigenvalues", "quadratic", "rho", "tied"))


@dataclass(frozen=True)
class SpectralAlignment:
    """Alignment of the gradient's singular vectors with the Kronecker factors (Theory 5.1, 5.2).

    Parameters
    ----------
    delta : FactorSpectrum
        The spectrum of ``C_δ`` along the left singular vectors.
    a : FactorSpectrum
        The spectrum of ``C_A`` along the right singular vectors.
    kron : array, shape (..., K)
        ``h_k^Kron = (u_kᵀ C_δ u_k)(v_kᵀ C_A v_k) = Φ_k Λ_k``, computed without eigenvalues.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> u, v = np.eye(3)[:, :2], np.eye(4)[:, :2]
    >>> c_delta, c_a = np.diag([3.0, 1.0, 0.5]), np.diag([4.0, 2.0, 1.0, 1.0])
    >>> alignment = sc.spectral_alignment(u, v, c_delta, c_a)
    >>> alignment.kron, alignment.phi * alignment.lam
    (array([12.,  2.]), array([12.,  2.]))
    """

    delta: FactorSpectrum
    a: FactorSpectrum
    kron: Array

    @property
    def rho_delta(self) -> Array:
        """``ρ_k^δ``, shape (..., K)."""
        return self.delta.rho

    @property
    def rho_a(self) -> Array:
        """``ρ_k^A``, shape (..., K)."""
        return self.a.rho

    @property
    def phi(self) -> Array:
        """``Φ_k = ρ_k^δ ρ_k^A``, shape (..., K)."""
        return self.delta.rho * self.a.rho

    @property
    def lam(self) -> Array:
        """``Λ_k = λ_k^δ λ_k^A``, shape (..., K)."""
        return self.delta.eigenvalues * self.a.eigenvalues

    def to_floats(self) -> Self:
        """Return the result with NumPy arrays of directions; raises `InputError` for a batch."""
        return to_floats(self, ("kron",))


@in_working_precision
def spectral_alignment(
    u: Array,
    v: Array,
    c_delta: Array,
    c_a: Array,
    *,
    rtol: float | None = None,
    gap_tolerance: float = 1e-3,
) -> SpectralAlignment:
    """Measure the alignment of singular directions with the Kronecker factors (Theory 5).

    Parameters
    ----------
    u, v : array, shapes (..., m, K) and (..., n, K)
        The left and right singular vectors of the gradient as columns, in the order of σ.
    c_delta, c_a : array, shapes (..., m, m) and (..., n, n)
        The Kronecker factors, symmetric and positive semi-definite, in any units. Only the
        symmetric part counts, as in any quadratic form.
    rtol : float, optional
        Eigenvalues below ``rtol λ_1`` count as zero. The default is the machine precision times the
        size of the factor.
    gap_tolerance : float
        The relative gap below which neighbouring eigenvalues count as tied.

    Returns
    -------
    SpectralAlignment
        The alignment, in the dtype of the arrays. A factor that is not finite gives NaN. The
        function runs under `jax.jit`.

    Raises
    ------
    InputError
        If an array is not real floating point, shapes do not fit each other, or a tolerance is
        outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> u, v = np.eye(3)[:, :2], np.eye(4)[:, :2]
    >>> c_delta, c_a = np.diag([1.0, 3.0, 0.5]), np.diag([4.0, 2.0, 1.0, 1.0])
    >>> sc.spectral_alignment(u, v, c_delta, c_a).rho_delta
    array([0.33333333, 3.        ])
    """
    for name, tolerance in (
        ("rtol", 0.0 if rtol is None else rtol),
        ("gap_tolerance", gap_tolerance),
    ):
        if not (is_real(tolerance) and 0 <= tolerance < 1):
            raise InputError(f"{name}: {tolerance!r} is not in [0, 1); it is relative, say 1e-3.")
    xp, (u, v, c_delta, c_a) = floating(u=u, v=v, c_delta=c_delta, c_a=c_a)
    _check_shapes("u", u, "c_delta", c_delta)
    _check_shapes("v", v, "c_a", c_a)
    if u.shape[-1] != v.shape[-1]:
        raise InputError(
            f"u and v hold {u.shape[-1]} and {v.shape[-1]} directions; pass as many of both."
        )
    check_broadcast(u=u[..., 0, 0], v=v[..., 0, 0], c_delta=c_delta[..., 0, 0], c_a=c_a[..., 0, 0])
    delta = _spectrum(xp, u, c_delta, rtol, gap_tolerance)
    a = _spectrum(xp, v, c_a, rtol, gap_tolerance)
    return SpectralAlignment(delta, a, delta.quadratic * a.quadratic)


@in_working_precision
def effective_rank(covariance: Array) -> Array:
    """Return ``exp(−Σ p log p)`` with ``p = λ / Σ λ`` over the eigenvalues (Roy and Vetterli 2007).

    Parameters
    ----------
    covariance : array, shape (..., n, n)
        A symmetric positive semi-definite matrix or a batch of them, in any units.

    Returns
    -------
    array, shape (...)
        The effective rank, between 1 and n. It is NaN for a matrix of zeros and for one that is not
        finite.

    Raises
    ------
    InputError
        If `covariance` is not real floating point, or is no square matrix or batch of them.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> float(sc.effective_rank(np.diag([2.0, 2.0, 0.0])))
    2.0
    """
    xp, (covariance,) = floating(covariance=covariance)
    _check_square("covariance", covariance)
    return entropy_rank(_eigenvalues(xp, covariance))


def _spectrum(
    xp: Any, directions: Array, covariance: Array, rtol: float | None, gap_tolerance: float
) -> FactorSpectrum:
    eigenvalues = _eigenvalues(xp, covariance)
    size, window = covariance.shape[-1], directions.shape[-1]
    tolerance = size * float(xp.finfo(covariance.dtype).eps) if rtol is None else rtol
    present = eigenvalues > tolerance * eigenvalues[..., :1]
    rank = xp.count_nonzero(present, axis=-1)
    smallest = xp.min(xp.where(present, eigenvalues, eigenvalues[..., :1]), axis=-1)
    nan = xp.full_like(eigenvalues, float("nan"))
    shown = xp.where(present, eigenvalues, nan)[..., :window]
    with exact_products(xp, covariance):
        quadratic = xp.sum(directions * (covariance @ directions), axis=-2)
    shown = xp.broadcast_to(shown, quadratic.shape)
    return FactorSpectrum(
        eigenvalues=shown,
        quadratic=quadratic,
        rho=quadratic / shown,
        tied=xp.broadcast_to(
            (present & _tied(xp, eigenvalues, gap_tolerance))[..., :window], shown.shape
        ),
        rank=rank,
        effective_rank=entropy_rank(xp.where(present, eigenvalues, xp.zeros_like(eigenvalues))),
        condition=eigenvalues[..., 0] / xp.where(rank > 0, smallest, nan[..., 0]),
    )


def _eigenvalues(xp: Any, covariance: Array) -> Array:
    """Return all eigenvalues of the symmetric part, descending; NaN if one entry is not finite."""
    symmetric = covariance / 2 + xp.matrix_transpose(covariance) / 2
    finite = xp.all(xp.isfinite(symmetric), axis=(-2, -1))
    # On NaN, some libraries raise and some do not return.
    safe = xp.where(finite[..., None, None], symmetric, xp.zeros_like(symmetric))
    values = xp.flip(eigvalsh(xp, safe), axis=-1)
    return xp.where(finite[..., None], values, xp.full_like(values, float("nan")))


def _tied(xp: Any, eigenvalues: Array, tolerance: float) -> Array:
    close = eigenvalues[..., :-1] - eigenvalues[..., 1:] <= tolerance * eigenvalues[..., :-1]
    edge = xp.zeros_like(xp.astype(eigenvalues[..., :1], xp.bool))
    return xp.concat([edge, close], axis=-1) | xp.concat([close, edge], axis=-1)


def _check_shapes(name: str, directions: Array, factor: str, covariance: Array) -> None:
    _check_square(factor, covariance)
    shape = tuple(directions.shape)
    if directions.ndim < 2 or shape[-1] == 0 or shape[-2] != covariance.shape[-1]:
        size = covariance.shape[-1]
        raise InputError(
            f"{name}: has shape {shape}; {factor} is {size}×{size}, so pass ({size}, K) with K of "
            "1 or more directions as columns."
        )
    if shape[-1] > shape[-2]:
        raise InputError(
            f"{name}: holds {shape[-1]} directions of {shape[-2]} dimensions; singular vectors are "
            "at most as many."
        )


def _check_square(name: str, covariance: Array) -> None:
    shape = tuple(covariance.shape)
    if covariance.ndim < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise InputError(f"{name}: has shape {shape}; pass a square matrix, or a batch of them.")
