"""T on the singular values of a matrix, by the cheapest method that reaches the tolerance."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

from spectral_core._arrays import Array, floating
from spectral_core._factorize import on_cpu
from spectral_core._gram import Coefficients, Gram, ScaledMatrix
from spectral_core._gram_functions import (
    Product,
    by_eigenvalues,
    by_factor,
    by_shifts,
    eigen_ratios,
)
from spectral_core._method_choice import METHODS, Request, choose, relative_floor
from spectral_core.errors import InputError
from spectral_core.polar import polar_factor, polar_schedule
from spectral_core.transfer import check_exponent, damped_ratio, peak

__all__ = ["precondition"]

NORMALIZATIONS = ("none", "spectral", "rms")
UPDATE_RMS = 0.2  # of AdamW's updates, as usually seen


def precondition(
    gradient: Array,
    alpha: float | Array,
    damping: float | Array = 0.1,
    *,
    damping_mode: str = "spectral",
    method: str = "auto",
    tolerance: float | None = None,
    normalize: str = "none",
) -> Array:
    """Return ``U T(Σ) Vᵀ`` of ``G = U Σ Vᵀ`` with ``T(σ) = σ / (σ^α + d)`` (Theory 9).

    Parameters
    ----------
    gradient : array, shape (..., m, n)
        G: one matrix, or a batch of independent ones. Float16 and bfloat16 are computed in float32.
    alpha : float or 0-d array
        In [0, 4]. 0 leaves the direction of G, 1 without damping gives its polar factor, 2 is a
        Newton step where curvature goes with σ².
    damping : float or 0-d array
        δ or d, not negative; positive if α > 1. Arrays, traced ones too, are for methods "eigh" and
        "svd", and their values are not checked.
    damping_mode : {"spectral", "absolute"}
        ``d = δ σ_max^α`` with the largest singular value of each matrix, or d itself.
    method : {"auto", "closed", "shifts", "eigh", "svd", "polar"}
        See the notes.
    tolerance : float, optional
        Largest error that the method may bring; 0.01 by default.
    normalize : {"none", "spectral", "rms"}
        ``"spectral"`` divides by ``max T`` over [0, σ_max] (Theory 9.5): the spectral norm is at
        most 1. ``"rms"`` gives ``√(mean T²) = 0.2`` over the entries, as AdamW's updates have; a
        zero matrix stays zero.

    Returns
    -------
    array, shape (..., m, n)
        In the dtype of the gradient. Exactly zero for a zero matrix; a matrix that holds a NaN or
        an infinity gives NaN throughout and leaves the others of the batch alone.

    Raises
    ------
    InputError
        If an argument is out of range, or the method does not serve the request.

    Notes
    -----
    Errors are ``‖T̂ − T‖₂ / ‖T‖₂``, and for single singular values relative to
    ``T(max(σ, floor · σ_max))``; the floor is 5e-3 in float32 and 1e-3 in float64. With k rows on
    the small side and machine precision ε, ``η = (4 + √k) ε`` is what rounding does to the Gram matrix
    (over its largest eigenvalue), and ``ρ = max_σ |T(√(σ² ± η)) − T(σ)| / max T`` what that does to
    T: about η/δ for α ≥ 2. For σ below √η (some 1e-3 to 2e-3 σ_max in float32) what is left of σ
    is noise, which T damps where δ does not vanish.

    ======== =================== ==================================== ===============================
    method   serves              computes                             error
    ======== =================== ==================================== ===============================
    closed   α = 0, 2, 4         Cholesky of ``B^(α/2) + δ I``        ρ + λ
    shifts   0 < α < 2           ``w_0 + Σ w_j (B + p_j I)⁻¹``        tolerance + ρ + λ
    eigh     any α               eigenvalues of B                     ρ
    svd      any α               singular values of G                 ε times a small multiple of √k
    polar    α = 1, damping = 0  odd polynomials (Polar Express)      tolerance, for σ ≥ 1e-3 σ_max
    ======== =================== ==================================== ===============================

    ``B = G Gᵀ / σ_max²`` on the small side. "closed" and "shifts" know σ_max from 12 Lanczos steps,
    from below; an error e of its square is ``λ ≤ (α/2) e``: 0.5 % of ``α/2`` for square Gaussian
    matrices of 768 rows, rounding for spectra that fall off. Below the η of their size they refuse
    a spectral damping. With absolute damping, whose ratio to σ_max^α is not known beforehand,
    "closed" raises it to ``η σ_max^α`` where it is below; "shifts" is for spectral damping.

    "auto" takes "polar" and α = 0 where they serve; otherwise the first of "closed", "shifts" and
    "eigh" that serves with ρ within the tolerance; otherwise, with absolute damping and with arrays
    for α or the damping, "svd".
    """
    xp, (gradient,) = floating(gradient=gradient)
    _check(gradient, alpha, damping, damping_mode, method, tolerance, normalize)
    scaled = ScaledMatrix.of(xp, gradient)
    wide = scaled.wide
    request = Request(
        alpha, damping, damping_mode, method, tolerance,
        *wide.shape[-2:], float(xp.finfo(wide.dtype).eps), on_cpu(xp, wide),
    )  # fmt: skip
    filtered = _METHODS[choose(request)](xp, scaled, request, normalize)
    result = scaled.restore(xp, filtered.normalized(xp, normalize))
    return xp.astype(result, gradient.dtype, copy=False)


@dataclass(frozen=True)
class _Filtered:
    """``T(G) = product · size``, where T has its maximum ``peak · size`` over [0, σ_max]."""

    product: Product
    size: Array
    peak: Array

    def normalized(self, xp: Any, normalize: str) -> Array:
        if normalize == "none":
            return self.product.times(self.size)
        if normalize == "spectral":
            return self.product.times(1 / self.peak)
        matrix = self.product.multiplied().wide
        rms = xp.sqrt(xp.mean(matrix * matrix, axis=(-2, -1), keepdims=True))
        return matrix * (UPDATE_RMS / xp.where(rms > 0, rms, xp.ones_like(rms)))


def _closed(xp: Any, scaled: ScaledMatrix, request: Request, normalize: str) -> _Filtered:
    if request.alpha != 0:
        return _by_gram(xp, scaled, request)
    if normalize == "spectral":
        root = xp.sqrt(Gram.of(xp, scaled).top)
    else:  # σ_max is not needed
        root = xp.ones_like(scaled.scale)
    return _Filtered(Product(scaled.wide, 1.0), scaled.scale / (1 + request.damping), root)


def _shifts(xp: Any, scaled: ScaledMatrix, request: Request, normalize: str) -> _Filtered:
    return _by_gram(xp, scaled, request)


def _by_gram(xp: Any, scaled: ScaledMatrix, request: Request) -> _Filtered:
    """Methods that take σ_max from Lanczos steps."""
    gram, alpha = Gram.of(xp, scaled), float(request.alpha)
    root = xp.sqrt(gram.top)
    terms = _coefficients(xp, scaled, request, root)
    if alpha < 2:
        product = by_shifts(xp, gram, scaled.wide, request.table())
    else:
        offset = terms.offset
        if request.damping_mode == "absolute":
            offset = xp.maximum(offset, request.shift * terms.slope)
        product = by_factor(xp, gram, scaled.wide, alpha, terms.slope, offset)
    return _filtered(xp, product, root, terms, alpha)


def _eigh(xp: Any, scaled: ScaledMatrix, request: Request, normalize: str) -> _Filtered:
    gram = scaled.finite(xp, scaled.wide @ xp.matrix_transpose(scaled.wide))
    undamped = request.known and request.damping == 0
    vectors, ratios, root = eigen_ratios(xp, gram, undamped)
    terms = _coefficients(xp, scaled, request, root)
    product = by_eigenvalues(
        xp, vectors, ratios, scaled.wide, request.alpha, terms.slope, terms.offset
    )
    return _filtered(xp, product, root, terms, request.alpha)


def _svd(xp: Any, scaled: ScaledMatrix, request: Request, normalize: str) -> _Filtered:
    u, sigma, vh = xp.linalg.svd(scaled.finite(xp, scaled.wide), full_matrices=False)
    sigma = sigma[..., None, :]
    top = sigma[..., :1]
    root = xp.where(top > 0, top, xp.ones_like(top))
    ratios = sigma / root
    if request.known and request.damping == 0:  # what is rounding of zero has no direction
        kept = ratios > request.columns * request.epsilon
        ratios = xp.where(kept, ratios, xp.zeros_like(ratios))
    terms = _coefficients(xp, scaled, request, root)
    values = damped_ratio(xp, ratios, request.alpha, terms.slope, terms.offset)
    spoiled = scaled.scale / scaled.scale  # NaN for a matrix that is not finite, otherwise 1
    product = Product((u * (values * spoiled)) @ vh, 1.0)
    return _filtered(xp, product, xp.ones_like(root), terms, request.alpha)


def _polar(xp: Any, scaled: ScaledMatrix, request: Request, normalize: str) -> _Filtered:
    """The spectral norm is brought below 1 with a margin for the error of the Lanczos steps."""
    top = xp.sqrt(Gram.of(xp, scaled).top) * POLAR_MARGIN
    schedule = polar_schedule(POLAR_FLOOR / POLAR_MARGIN, request.target)
    matrix = polar_factor(xp, scaled.wide / top, schedule)
    return _Filtered(Product(matrix, 1.0), xp.ones_like(top), xp.ones_like(top))


POLAR_FLOOR, POLAR_MARGIN = 1e-3, 1.05

_METHODS = {
    "closed": _closed, "shifts": _shifts, "eigh": _eigh, "svd": _svd, "polar": _polar,
}  # fmt: skip


def _coefficients(xp: Any, scaled: ScaledMatrix, request: Request, root: Array) -> Coefficients:
    return Coefficients.of(
        xp, request.alpha, request.damping, request.damping_mode, scaled.scale * root
    )


def _filtered(
    xp: Any, product: Product, root: Array, terms: Coefficients, alpha: float | Array
) -> _Filtered:
    """The product is `root` times too large for singular values over σ_max."""
    top = peak(xp, alpha, terms.slope, terms.offset, root)
    return _Filtered(product, terms.factor / root, top * root)


def _check(
    gradient: Array,
    alpha: float | Array,
    damping: float | Array,
    damping_mode: str,
    method: str,
    tolerance: float | None,
    normalize: str,
) -> None:
    shape = tuple(gradient.shape)
    if gradient.ndim < 2 or 0 in shape[-2:]:
        raise InputError(
            f"gradient: has shape {shape}; pass a matrix (m, n) or a batch (..., m, n) of them "
            "(leave vectors to another optimizer, reshape convolution kernels)."
        )
    check_exponent(alpha, damping, damping_mode)
    if method not in METHODS:
        raise InputError(f"method: {method!r} is none of {', '.join(METHODS)}.")
    if normalize not in NORMALIZATIONS:
        raise InputError(f"normalize: {normalize!r} is none of {', '.join(NORMALIZATIONS)}.")
    if tolerance is not None and not (isinstance(tolerance, Real) and 0 < tolerance < 1):
        raise InputError(f"tolerance: {tolerance} is not between 0 and 1; 0.01 is the default.")
