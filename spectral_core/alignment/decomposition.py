"""The decomposition of α into slopes of an exact product, which add up."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from spectral_core.alignment.alignment import SpectralAlignment
from spectral_core.arrays.namespace import Array, ArrayLike, finite_log, positive, spectra
from spectral_core.arrays.numbers import check_confidence
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.errors import InputError
from spectral_core.exponents.least_squares import fit_line
from spectral_core.exponents.power_law_fit import PowerLawFit, to_floats

__all__ = ["ExponentDecomposition", "decompose_exponent"]


@dataclass(frozen=True)
class ExponentDecomposition:
    """``α = β + φ + κ + ν``, slopes on log σ over one common window (Theory 5.3, 5.5, 5.6).

    Each term is a fit with its own interval. The sum is exact, whatever the data.

    Parameters
    ----------
    alpha : PowerLawFit
        The fit of h on σ over the common window, where all of σ, h, h^GGN, h^Kron and Λ are
        positive.
    beta : PowerLawFit
        The fit of ``Λ_k``, the paired eigenvalues of the factors. Its exponent is 2 under perfect
        alignment of independent factors (5.7).
    phi : PowerLawFit
        The fit of the alignment ``Φ_k``.
    kappa : PowerLawFit
        The fit of ``κ_k = h^GGN / h^Kron``, which measures dependence across samples and positions.
    nu : PowerLawFit
        The fit of ``ν_k = h / h^GGN``, the part of the Hessian beyond Gauss-Newton.
    phi_delta, phi_a : PowerLawFit
        The fits of ``ρ_k^δ`` and ``ρ_k^A``. Their exponents add up to φ.
    full_alignment : PowerLawFit
        The fit of ``Φ̂_k = h_k / σ_k²``. Its exponent is ``α − 2`` (5.6).
    chi : array, shape (..., K)
        The paper's ratio ``χ_k = κ_k ν_k = h / h^Kron`` (dimensionless, 4.5). It is NaN off the
        window.
    closure : array
        The remainder ``α − (β + φ + κ + ν)``, which is rounding.
    kappa_positions : PowerLawFit or None
        The fit of ``κ^pos = h^GGN / h^diag``, which measures how the positions of a sample act
        together (5.3). Its exponent and that of `kappa_dependence` add up to κ. None without
        ``h^diag``.
    kappa_dependence : PowerLawFit or None
        The fit of ``κ^dep = h^diag / h^Kron``, which measures the dependence of δ and a.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> sigma = np.array([1.0, 0.5, 0.25, 0.125])
    >>> alignment = sc.spectral_alignment(np.eye(4), np.eye(4), np.diag(sigma), np.diag(sigma))
    >>> terms = sc.decompose_exponent(sigma, 2.0 * sigma**3, sigma**2, alignment).to_floats()
    >>> round(terms.alpha.exponent, 6), round(terms.beta.exponent, 6), round(terms.nu.exponent, 6)
    (3.0, 2.0, 1.0)
    >>> abs(terms.closure) < 1e-12
    True
    """

    alpha: PowerLawFit
    beta: PowerLawFit
    phi: PowerLawFit
    kappa: PowerLawFit
    nu: PowerLawFit
    phi_delta: PowerLawFit
    phi_a: PowerLawFit
    full_alignment: PowerLawFit
    chi: Array
    closure: Array
    kappa_positions: PowerLawFit | None = None
    kappa_dependence: PowerLawFit | None = None

    def to_floats(self) -> Self:
        """Return the result with Python numbers, χ as an array; raises `InputError` for a batch."""
        return to_floats(self, ("chi",))


@in_working_precision
def decompose_exponent(
    sigma: ArrayLike,
    curvature: ArrayLike,
    ggn: ArrayLike,
    alignment: SpectralAlignment,
    *,
    diagonal: ArrayLike | None = None,
    confidence: float = 0.95,
) -> ExponentDecomposition:
    """Split α into the slopes of Λ, Φ, κ and ν on log σ, exactly (Theory 5.5).

    Ordinary least squares is linear in log h, so on one window the slopes of the factors of
    ``h = Λ Φ κ ν`` add up to that of h.

    Parameters
    ----------
    sigma, curvature, ggn : array, shape (..., K)
        The singular values, and the Hessian and Gauss-Newton curvatures along the directions.
    alignment : SpectralAlignment
        The alignment of the same directions.
    diagonal : array, shape (..., K), optional
        The curvatures ``h^diag`` of single positions along the directions, which split κ (5.3).
        The common window then takes only directions where they are positive.
    confidence : float
        The confidence level of every interval, in (0, 1).

    Returns
    -------
    ExponentDecomposition
        The fits, in the dtype of the data. With fewer than 3 usable points they are NaN with a
        reason. The function runs under `jax.jit`.

    Raises
    ------
    InputError
        If the arrays are not real floating point or their shapes do not fit, if `alignment` is
        none, or the confidence is outside (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> sigma = np.array([1.0, 0.5, 0.25, 0.125])
    >>> alignment = sc.spectral_alignment(np.eye(4), np.eye(4), np.diag(sigma), np.diag(sigma))
    >>> terms = sc.decompose_exponent(sigma, sigma**3, sigma**2, alignment).to_floats()
    >>> round(terms.alpha.exponent, 6), round(terms.beta.exponent, 6), round(terms.nu.exponent, 6)
    (3.0, 2.0, 1.0)
    >>> terms = sc.decompose_exponent(sigma, sigma**3, sigma**2, alignment, diagonal=sigma**2.5)
    >>> round(float(terms.kappa_positions.exponent), 6), round(float(terms.kappa.exponent), 6)
    (-0.5, 0.0)
    """
    check_confidence(confidence)
    if not isinstance(alignment, SpectralAlignment):
        raise InputError(
            f"alignment: a {type(alignment).__name__} was passed; pass what spectral_alignment "
            "returned for these directions."
        )
    rho_delta, rho_a = alignment.rho_delta, alignment.rho_a
    split = {} if diagonal is None else {"diagonal": diagonal}
    xp, arrays = spectra(
        sigma=sigma, curvature=curvature, ggn=ggn, kron=alignment.kron, lam=alignment.lam,
        rho_delta=rho_delta, rho_a=rho_a, **split,
    )  # fmt: skip
    window = positive(xp, arrays[0])
    for values in arrays[1:]:
        window = window & positive(xp, values)
    x, h, g, kron, lam, delta, a, *diag = (finite_log(xp, values, window) for values in arrays)

    terms = {
        "alpha": h, "beta": lam, "phi": delta + a, "kappa": g - kron, "nu": h - g,
        "phi_delta": delta, "phi_a": a, "full_alignment": h - 2 * x,
    }  # fmt: skip
    if diag:
        terms |= {"kappa_positions": g - diag[0], "kappa_dependence": diag[0] - kron}
    fits = _fit_together(xp, x, terms, window, confidence)
    parts = [fits[name].exponent for name in ("beta", "phi", "kappa", "nu")]
    return ExponentDecomposition(
        **fits,
        chi=_masked(xp, xp.exp(h - kron), window),
        closure=fits["alpha"].exponent - sum(parts[1:], parts[0]),
    )


def _fit_together(
    xp: Any, x: Array, terms: Mapping[str, Array], window: Array, confidence: float
) -> dict[str, PowerLawFit]:
    """Return the fit of each term on x: one fit of all of them, taken apart again."""
    _, *ys = xp.broadcast_arrays(x, *terms.values())
    fits = fit_line(xp, x, xp.stack(ys, axis=0), window, None, confidence)
    assert fits.without_each is not None
    low, high = fits.interval
    return {
        name: replace(
            fits,  # what does not depend on the ordinates is of all terms
            exponent=fits.exponent[i, ...],
            log_prefactor=fits.log_prefactor[i, ...],
            r_squared=fits.r_squared[i, ...],
            stderr=fits.stderr[i, ...],
            interval=(low[i, ...], high[i, ...]),
            without_each=fits.without_each[i, ...],
        )
        for i, name in enumerate(terms)
    }


def _masked(xp: Any, values: Array, window: Array) -> Array:
    return xp.where(window, values, xp.full_like(values, float("nan")))
