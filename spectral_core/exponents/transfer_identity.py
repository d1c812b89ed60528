"""The three exponents and the exact identity between them."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from spectral_core.arrays.namespace import Array, ArrayLike, finite_log, positive, ranks, spectra
from spectral_core.arrays.numbers import check_confidence
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.errors import InputError
from spectral_core.exponents.least_squares import fit_line
from spectral_core.exponents.line import centre
from spectral_core.exponents.power_law_fit import PowerLawFit, to_floats

__all__ = ["ExponentTriangle", "exponent_triangle"]


@dataclass(frozen=True)
class ExponentTriangle:
    """``h ∝ σ^α``, ``σ ∝ k^−γ``, ``h ∝ k^−s``, and the terms of ``s − αγ``, without remainder.

    ``s − αγ = defect + ordering_term + window_term`` holds to rounding for any positive data
    (Theory 3.3). Each field has the batch shape.

    Parameters
    ----------
    alpha : PowerLawFit
        The fit of h on σ, where both are positive (Theory 2.1).
    gamma : PowerLawFit
        The decay of σ with rank, on all positive σ (Theory 2.2). The exponent is γ, not −γ.
    s : PowerLawFit
        The decay of h with rank, where both are positive, in the chosen order (Theory 2.3).
    order : str
        The order of h: ``"sorted"`` or ``"index"``.
    predicted_s : array
        The product αγ.
    s_index, s_sorted : array
        The exponent s in either order.
    gamma_window : array
        The exponent γ on the window of α.
    defect : array
        The defect ``τ = s_index − α γ_window = −<ε, x>/<x, x>`` (Theory 3.1).
    ordering_term : array
        The contribution of sorting, ``s − s_index``.
    window_term : array
        The contribution of the directions dropped for h <= 0, ``α (γ_window − γ)``.
    defect_bound : array
        The bound ``|τ| <= (‖z‖/‖x‖) sqrt((1 − R²_α)(1 − R²_γ))`` (Theory 3.2).
    relative_error : array
        The paper's figure ``|s − αγ| / |s|``. It is NaN if s is 0.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> sigma = 1 / np.arange(1.0, 9.0)
    >>> curvature = np.array([1.0, -0.1, 0.2, 0.05, 0.04, 0.03, 0.01, 0.02])
    >>> triangle = sc.exponent_triangle(sigma, curvature).to_floats()
    >>> triangle.alpha.n, triangle.alpha.n_dropped, abs(triangle.closure) < 1e-12
    (7, 1, True)
    """

    alpha: PowerLawFit
    gamma: PowerLawFit
    s: PowerLawFit
    order: str
    predicted_s: Array
    s_index: Array
    s_sorted: Array
    gamma_window: Array
    defect: Array
    ordering_term: Array
    window_term: Array
    defect_bound: Array
    relative_error: Array

    @property
    def closure(self) -> Array:
        """The remainder of ``s − αγ`` after its three terms, which is rounding."""
        explained = self.defect + self.ordering_term + self.window_term
        return self.s.exponent - self.predicted_s - explained

    def to_floats(self) -> Self:
        """Return the result with Python numbers; raises `InputError` for a batch."""
        return to_floats(self)


@in_working_precision
def exponent_triangle(
    sigma: ArrayLike,
    curvature: ArrayLike,
    *,
    order: Literal["sorted", "index"] = "sorted",
    confidence: float = 0.95,
) -> ExponentTriangle:
    """Fit α, γ and s, and account for ``s − αγ`` exactly (Theory 2, 3).

    Parameters
    ----------
    sigma : array, shape (..., K)
        The singular values, descending.
    curvature : array, shape (..., K)
        The directional curvatures h in the same order. Those not positive are dropped and counted.
    order : {"sorted", "index"}
        The ranks for s. ``"sorted"`` sorts the positive h descending and ranks them anew (the
        paper's tables); ``"index"`` takes the rank of σ.
    confidence : float
        The confidence level of the intervals, in (0, 1).

    Returns
    -------
    ExponentTriangle
        The exponents, in the dtype of the data, of shape ``(...)``. The function runs under
        `jax.jit`.

    Raises
    ------
    InputError
        For arrays that are not floating point or do not fit, an unknown order, or a confidence
        outside (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> sigma = np.arange(1.0, 9.0) ** -0.5
    >>> triangle = sc.exponent_triangle(sigma, sigma**2).to_floats()
    >>> [round(fit.exponent, 6) for fit in (triangle.alpha, triangle.gamma, triangle.s)]
    [2.0, 0.5, 1.0]
    """
    if order not in ("sorted", "index"):
        raise InputError(f"order: {order!r} is unknown; choose 'sorted' or 'index'.")
    check_confidence(confidence)
    xp, (sigma, curvature) = spectra(sigma=sigma, curvature=curvature)
    on_sigma = positive(xp, sigma)
    window = on_sigma & positive(xp, curvature)
    log_sigma = finite_log(xp, sigma, on_sigma)
    log_h = finite_log(xp, curvature, window)
    log_k = xp.broadcast_to(xp.log(ranks(xp, sigma)), sigma.shape)
    sorted_h, sorted_window = _sorted_descending(xp, log_h, window)

    alpha = fit_line(xp, log_sigma, log_h, window, None, confidence)
    gamma = decay(fit_line(xp, log_k, log_sigma, on_sigma, None, confidence))
    gamma_window = decay(fit_line(xp, log_k, log_sigma, window, None, confidence))
    s_index = decay(fit_line(xp, log_k, log_h, window, None, confidence))
    s_sorted = decay(fit_line(xp, log_k, sorted_h, sorted_window, None, confidence))
    s = s_sorted if order == "sorted" else s_index
    defect, bound = _defect(xp, log_k, log_sigma, log_h, window)
    predicted = alpha.exponent * gamma.exponent
    return ExponentTriangle(
        alpha=alpha,
        gamma=gamma,
        s=s,
        order=order,
        predicted_s=predicted,
        s_index=s_index.exponent,
        s_sorted=s_sorted.exponent,
        gamma_window=gamma_window.exponent,
        defect=defect,
        ordering_term=s.exponent - s_index.exponent,
        window_term=alpha.exponent * (gamma_window.exponent - gamma.exponent),
        defect_bound=bound,
        relative_error=_relative(xp, s.exponent - predicted, s.exponent),
    )


def decay(fit: PowerLawFit) -> PowerLawFit:
    """Return the fit with the sign of its exponent turned: a decay as a positive number."""
    low, high = fit.interval
    without_each = None if fit.without_each is None else -fit.without_each
    return replace(fit, exponent=-fit.exponent, interval=(-high, -low), without_each=without_each)


def _relative(xp: Array, difference: Array, reference: Array) -> Array:
    defined = reference != 0
    safe = xp.where(defined, reference, xp.ones_like(reference))
    return xp.where(defined, xp.abs(difference / safe), xp.full_like(safe, float("nan")))


def _sorted_descending(xp: Array, log_h: Array, window: Array) -> tuple[Array, Array]:
    """Return the window's values sorted to the front, zeros behind, and where they are."""
    lowest = xp.full_like(log_h, -float("inf"))
    in_order = xp.sort(xp.where(window, log_h, lowest), axis=-1, descending=True)
    usable = xp.isfinite(in_order)
    return xp.where(usable, in_order, xp.zeros_like(in_order)), usable


def _defect(
    xp: Array, log_k: Array, log_sigma: Array, log_h: Array, window: Array
) -> tuple[Array, Array]:
    """Return τ = −<ε, x>/<x, x> and its bound; both from residuals, stable where R² is near 1."""
    mask = xp.astype(window, log_h.dtype)
    x, y, z = (centre(xp, values, mask, mask)[1] for values in (log_k, log_sigma, log_h))
    xx, yy = xp.sum(x * x, axis=-1), xp.sum(y * y, axis=-1)
    nan = xp.full_like(xx, float("nan"))
    usable = (xp.sum(mask, axis=-1) >= 3) & (xx > 0) & (yy > 0)
    xx = xp.where(usable, xx, xp.ones_like(xx))
    yy = xp.where(usable, yy, xp.ones_like(yy))
    residual_z = z - (xp.sum(y * z, axis=-1) / yy)[..., None] * y
    residual_x = x - (xp.sum(x * y, axis=-1) / yy)[..., None] * y
    # y ⟂ ε, so only the part of x that y does not explain meets ε; this form does not cancel.
    defect = -xp.sum(residual_z * residual_x, axis=-1) / xx
    bound = xp.sqrt(xp.sum(residual_z**2, axis=-1) * xp.sum(residual_x**2, axis=-1)) / xx
    return xp.where(usable, defect, nan), xp.where(usable, bound, nan)
