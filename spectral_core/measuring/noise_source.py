"""The comparison of layers with noise alone, from their Kronecker factors (Theory 11.3)."""

import numpy as np
import numpy.typing as npt

from spectral_core.exponents.transfer_identity import exponent_triangle
from spectral_core.reporting.noise import AgainstNoise, NoiseComparison
from spectral_core.sampling import NoiseNull

__all__ = ["compare_with_noise"]


def compare_with_noise(
    sigma: npt.NDArray[np.float64],
    kron: npt.NDArray[np.float64],
    null: NoiseNull,
    confidence: float,
) -> NoiseComparison:
    """Return where a layer's exponents lie among those of draws of noise.

    Parameters
    ----------
    sigma, kron : ndarray, shape (K,), float64
        The singular values of the gradient, and h^Kron along its directions.
    null : NoiseNull
        The draws.
    confidence : float
        The confidence level of the intervals.
    """
    triangle = exponent_triangle(sigma, kron).to_floats()

    def against(name: str, value: float) -> AgainstNoise:
        return AgainstNoise(value, null.interval(name, confidence), null.p_value(name, value))

    return NoiseComparison(
        len(null.exponents["alpha"]),
        against("alpha", triangle.alpha.exponent),
        against("gamma", triangle.gamma.exponent),
        against("s", triangle.s.exponent),
    )
