"""The exponents that sampling noise alone would show, drawn from a layer's own factors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_core.arrays.namespace import Array, floating, to_numpy
from spectral_core.arrays.numbers import check_confidence, is_real
from spectral_core.curvature import KroneckerFactors
from spectral_core.errors import InputError
from spectral_core.exponents import exponent_triangle, fit_power_law

__all__ = ["NoiseNull", "noise_null"]

Float64 = NDArray[np.float64]

# A factor that was computed in float32 and widened has the rounding of float32.
_EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class NoiseNull:
    """Exponents of simulated gradients that are nothing but noise (Theory 11.3).

    Parameters
    ----------
    exponents : dict of str to array (n_draws,)
        By name, the value in each draw: ``"alpha"``, ``"gamma"``, ``"s"``, ``"beta"``, ``"phi"``,
        and ``"transfer_error"``, which is ``|s − αγ| / |s|`` and says nothing where s is near 0.
    sigma : array (n_draws, K)
        The singular values of each draw. Those of a layer that exceed them are signal.
    n_terms : int
        The number of terms N of the mean gradient.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> factor = np.diag(1 / np.arange(1.0, 65.0))
    >>> null = sc.noise_null(factor, factor, n_terms=1024)
    >>> low, high = null.interval("alpha")
    >>> 2 < low < high < 3, null.p_value("alpha", 1.2) < 0.05, null.contains("alpha", 2.5)
    (True, True, True)
    """

    exponents: dict[str, Float64]
    sigma: Float64
    n_terms: int

    def interval(self, name: str, confidence: float = 0.95) -> tuple[float, float]:
        """Return the central interval of an exponent under noise, NaN if it has no value.

        Parameters
        ----------
        name : str
            One of the names in `exponents`.
        confidence : float
            The share of the draws in the interval, in (0, 1).

        Raises
        ------
        InputError
            If there is no exponent of that name, or the confidence is outside (0, 1).
        """
        check_confidence(confidence)
        values = self._values(name)
        if not values.size:
            return float("nan"), float("nan")
        low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def p_value(self, name: str, value: float) -> float:
        """Return the two-sided p-value of a measured exponent, NaN if there is none.

        Twice the smaller of ``(r + 1)/(n + 1)``, with r the draws at least as low and at least as
        high, and at most 1. Under the null it is at most p with probability p, or less. The
        smallest possible one is ``2/(n_draws + 1)``.

        Parameters
        ----------
        name : str
            One of the names in `exponents`.
        value : float
            The exponent as measured, with the same number of directions.

        Raises
        ------
        InputError
            If there is no exponent of that name.
        """
        values = self._values(name)
        if not values.size or not np.isfinite(value):
            return float("nan")
        extreme = min(np.count_nonzero(values <= value), np.count_nonzero(values >= value))
        return min(1.0, 2 * (int(extreme) + 1) / (len(values) + 1))

    def contains(self, name: str, value: float, confidence: float = 0.95) -> bool:
        """Return whether a measured exponent lies in the central interval under noise."""
        low, high = self.interval(name, confidence)
        return low <= value <= high

    def _values(self, name: str) -> Float64:
        """Return the draws in which the exponent has a value."""
        if name not in self.exponents:
            raise InputError(
                f"name: {name!r} is unknown; choose one of {', '.join(self.exponents)}."
            )
        values = self.exponents[name]
        return values[np.isfinite(values)]


def noise_null(
    c_delta_gradient: Array | KroneckerFactors,
    c_a: Array | KroneckerFactors,
    n_terms: int,
    *,
    c_delta: Array | KroneckerFactors | None = None,
    top_k: int = 20,
    n_draws: int = 100,
    seed: int = 0,
) -> NoiseNull:
    """Draw gradients of nothing but sampling noise, and fit their exponents (Theory 11.3).

    A draw is ``Z / √N`` with ``Z = C_δ^{1/2} X C_A^{1/2}`` and X standard normal: the mean gradient
    of N terms without signal. σ is of its singular value decomposition, and
    ``h_k = (u_kᵀ C_δ u_k)(v_kᵀ C_A v_k)`` along its top directions. The result is exact up to the
    Gaussian and the Kronecker assumption: that the mean of N terms is normal, that its covariance
    is ``C_δ ⊗ C_A / N``, and that the curvature is ``C_δ ⊗ C_A`` with the Gauss-Newton ``C_δ``.
    Compare it with the α of ``h^Kron``, which is ``β + φ``; the slopes of κ and ν are beyond it.

    Parameters
    ----------
    c_delta_gradient : array (m, m) or KroneckerFactors
        The output factor ``C_δ`` of the gradients themselves: of ``fisher_type="empirical"``.
    c_a : array (n, n) or KroneckerFactors
        The input factor.
    n_terms : int
        The number of terms N of the measured gradient. σ goes with ``N^{−1/2}``, and no exponent
        depends on it.
    c_delta : array (m, m) or KroneckerFactors, optional
        The output factor of the curvature, of ``fisher_type="ggn"``. The default is
        `c_delta_gradient`, as for labels that the model itself would draw.
    top_k : int
        The number of directions of a draw, as in the measurement. There are no more than the ranks
        of the factors.
    n_draws : int
        The number of draws. Each takes a product and an eigendecomposition of the smaller side;
        the eigenvalues of the factors are computed once.
    seed : int
        The seed of the draws, which are NumPy's in float64, whatever the library of the factors.

    Returns
    -------
    NoiseNull
        The exponents of each draw. With fewer than 3 directions they are NaN.

    Raises
    ------
    InputError
        If a factor is not real floating point, finite, square and positive semi-definite (negative
        eigenvalues of the size of float32's rounding count as 0), or is zero, if sizes do not fit,
        or a count or the seed is no whole number in range.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> c_delta, c_a = np.diag(1 / np.arange(1.0, 33.0)), np.diag(1 / np.arange(1.0, 65.0))
    >>> null = sc.noise_null(c_delta, c_a, n_terms=2048, n_draws=50)
    >>> low, high = null.interval("alpha")
    >>> 2 < low < high < 3, null.sigma.shape
    (True, (50, 20))
    """
    for name, value in (("n_terms", n_terms), ("top_k", top_k), ("n_draws", n_draws)):
        _check_count(name, value, 1)
    _check_count("seed", seed, 0)
    output = _factor("c_delta_gradient", c_delta_gradient, "output_covariance")
    inputs = _factor("c_a", c_a, "input_covariance")
    curvature = output if c_delta is None else _factor("c_delta", c_delta, "output_covariance")
    if curvature.matrix.shape != output.matrix.shape:
        raise InputError(
            f"c_delta: has shape {curvature.matrix.shape}, and c_delta_gradient "
            f"{output.matrix.shape}; pass the factors of one layer."
        )
    # In the eigenbases of the gradient's factors X keeps its distribution, and Z is X scaled.
    scale = np.sqrt(output.eigenvalues)[:, None] * np.sqrt(inputs.eigenvalues)
    count = min(top_k, output.rank, inputs.rank)
    sigma, u, v = _draws(scale, count, n_draws, np.random.default_rng(seed))
    if c_delta is None:
        along_u = output.eigenvalues @ u**2
    else:
        basis = np.linalg.eigh(output.matrix)[1]
        along_u = np.sum(u * ((basis.T @ curvature.matrix @ basis) @ u), axis=-2)
    h = along_u * (inputs.eigenvalues @ v**2)
    paired = curvature.descending(count) * inputs.descending(count)
    unit = np.sqrt(output.unit) * np.sqrt(inputs.unit) / np.sqrt(n_terms)
    return NoiseNull(_exponents(sigma, h, paired), unit * sigma, int(n_terms))


def _exponents(sigma: Float64, h: Float64, paired: Float64) -> dict[str, Float64]:
    """Return α, γ, s, β and φ of each draw, with ``Λ_k`` the same in all (Theory 5.5)."""
    triangle = exponent_triangle(sigma, h)
    return {
        "alpha": triangle.alpha.exponent,
        "gamma": triangle.gamma.exponent,
        "s": triangle.s.exponent,
        "beta": fit_power_law(sigma, paired).exponent,
        "phi": fit_power_law(sigma, h / paired).exponent,
        "transfer_error": triangle.relative_error,
    }


def _draws(
    scale: Float64, count: int, n_draws: int, rng: np.random.Generator
) -> tuple[Float64, Float64, Float64]:
    """Return σ (n_draws, K), u (n_draws, m, K) and v (n_draws, n, K) of scaled normal matrices."""
    found = [
        _top_directions(scale * rng.standard_normal(scale.shape), count) for _ in range(n_draws)
    ]
    sigma, u, v = (np.stack(parts) for parts in zip(*found, strict=True))
    return sigma, u, v


def _top_directions(matrix: Float64, count: int) -> tuple[Float64, Float64, Float64]:
    """Return the first singular values and vectors, by the Gram matrix of the smaller side."""
    if matrix.shape[0] > matrix.shape[1]:
        sigma, v, u = _top_directions(matrix.T, count)
        return sigma, u, v
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    values, u = values[::-1][:count], vectors[:, ::-1][:, :count]
    # Squares lose what is below √ε of the largest; at 10⁻⁵ they still have five digits.
    if values[-1] <= 1e-10 * values[0]:
        u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
        return sigma[:count], u[:, :count], vt[:count].T
    sigma = np.sqrt(values)
    return sigma, u, matrix.T @ u / sigma


@dataclass(frozen=True)
class _Factor:
    """A factor in float64 on the host, its eigenvalues, and how many are above rounding.

    Both are in units of the largest entry, so that no product leaves the range of float64.
    """

    unit: float
    matrix: Float64
    eigenvalues: Float64  # ascending
    rank: int

    def descending(self, count: int) -> Float64:
        """Return the largest eigenvalues, NaN where they are rounding."""
        largest = self.eigenvalues[::-1][:count]
        return np.where(np.arange(count) < self.rank, largest, np.nan)


def _factor(name: str, value: Array | KroneckerFactors, side: str) -> _Factor:
    """Return a factor, checked: finite, square and positive semi-definite up to rounding."""
    if isinstance(value, KroneckerFactors):
        value = getattr(value, side)
    _, (value,) = floating(**{name: value})
    given = to_numpy(value)
    if given.ndim != 2 or given.shape[0] != given.shape[1] or not given.size:
        raise InputError(f"{name}: has shape {given.shape}; pass a square matrix.")
    if not np.all(np.isfinite(given)):
        raise InputError(f"{name}: has entries that are not finite; look at the layer's gradients.")
    unit = float(np.max(np.abs(given)))
    if unit == 0:
        raise InputError(
            f"{name}: is zero; a layer without gradients or inputs has no directions to draw."
        )
    matrix = np.asarray(given, dtype=np.float64) / unit
    matrix = matrix / 2 + matrix.T / 2
    values = np.linalg.eigvalsh(matrix)
    low, high, size = float(values[0]), float(values[-1]), len(values)
    if low < -_EPS * size * max(high, 0.0):
        raise InputError(
            f"{name}: has the eigenvalue {low * unit:.3g} beside a largest one of "
            f"{high * unit:.3g}; a covariance has none below 0. Pass a factor as "
            "kronecker_factors returns it."
        )
    # Negative eigenvalues show the size of rounding, if the factor came from a narrower type.
    rounding = max(float(np.finfo(given.dtype).eps) * size * high, -4 * low)
    return _Factor(unit, matrix, np.maximum(values, 0), int(np.sum(values > rounding)))


def _check_count(name: str, value: Any, least: int) -> None:
    if not (is_real(value) and isinstance(value, int | np.integer) and value >= least):
        raise InputError(f"{name}: {value!r} is not a whole number of {least} or more.")
