"""The comparison of layers with noise alone, from their Kronecker factors (Theory 11.3)."""

import numpy as np
import numpy.typing as npt

from spectral_core.curvature.problem import KroneckerFactors
from spectral_core.exponents.transfer_identity import exponent_triangle
from spectral_core.reporting.noise import AgainstNoise, NoiseComparison
from spectral_core.sampling import NoiseNull, noise_null

__all__ = ["compare_with_noise"]


def compare_with_noise(
    sigma: npt.NDArray[np.float64],
    kron: npt.NDArray[np.float64],
    factors: KroneckerFactors,
    empirical: KroneckerFactors,
    n_draws: int,
    confidence: float,
) -> NoiseComparison:
    """Return where a layer's exponents lie among those of draws of noise.

    Parameters
    ----------
    sigma, kron : ndarray, shape (K,), float64
        The singular values of the gradient, and h^Kron along its directions.
    factors : KroneckerFactors
        The factors that make h^Kron.
    empirical : KroneckerFactors
        The factors of the gradients themselves, with ``fisher_type="empirical"``.
    n_draws : int
        The number of draws.
    confidence : float
        The confidence level of the intervals.
    """
    null = noise_null(
        empirical, factors, 1, c_delta=factors, top_k=len(sigma), n_draws=n_draws
    )  # no exponent depends on the number of terms
    triangle = exponent_triangle(sigma, kron).to_floats()
    return NoiseComparison(
        n_draws,
        _against(null, "alpha", triangle.alpha.exponent, confidence),
        _against(null, "gamma", triangle.gamma.exponent, confidence),
        _against(null, "s", triangle.s.exponent, confidence),
    )


def _against(null: NoiseNull, name: str, value: float, confidence: float) -> AgainstNoise:
    return AgainstNoise(
        float(value), null.interval(name, confidence), float(null.p_value(name, value))
    )
