"""A layer's exponents beside those that sampling noise alone would show (Theory 11.3)."""

from dataclasses import dataclass

__all__ = ["AgainstNoise", "NoiseComparison"]


@dataclass(frozen=True)
class AgainstNoise:
    """An exponent, and where it would lie if the gradient were nothing but noise.

    Parameters
    ----------
    value : float
        The exponent of the layer.
    interval : tuple of float
        The central interval of the exponent under noise alone.
    p_value : float
        The two-sided p-value: the share of draws of noise that are as far out.

    Examples
    --------
    >>> import spectral_core as sc
    >>> sc.AgainstNoise(2.1, (1.9, 2.4), 0.6).inside
    True
    """

    value: float
    interval: tuple[float, float]
    p_value: float

    @property
    def inside(self) -> bool:
        """Whether the exponent is one that noise alone shows."""
        return self.interval[0] <= self.value <= self.interval[1]


@dataclass(frozen=True)
class NoiseComparison:
    """A layer against the null model of noise from its own Kronecker factors.

    The null has no dependence of δ and a, and no curvature beyond Gauss-Newton, so its curvature is
    h^Kron: what is compared are the exponents of h^Kron, of which α is ``β + φ``.

    Parameters
    ----------
    n_draws : int
        The number of draws of noise.
    alpha, gamma, s : AgainstNoise
        The exponents of h^Kron on σ, of σ over rank, and of h^Kron over rank.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> network = DenseNetwork((6, 8, 5), activation="tanh", loss="squared")
    >>> data = [(rng.normal(size=(64, 6)), rng.normal(size=(64, 5)))]
    >>> problem = network.problem(network.init(), data)
    >>> options = {"decompose": True, "noise_draws": 50, "progress": False}
    >>> sc.measure(problem, "head", top_k=5, **options)["head"].noise.n_draws
    50
    """

    n_draws: int
    alpha: AgainstNoise
    gamma: AgainstNoise
    s: AgainstNoise
