"""The sampling errors of a layer's numbers, as a report holds them (Theory 11)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LayerSampling", "SampledNumber"]


@dataclass(frozen=True)
class SampledNumber:
    """How far a number depends on the sample of terms from which it was measured.

    Parameters
    ----------
    stderr : float
        The standard error: the lesser of the jackknife's over groups of samples and that of halves
        (Theory 11.4). Along fixed directions it is the jackknife's.
    interval : tuple of float
        The Student t interval around the number of all data, on one degree of freedom less than
        there are groups.
    drift : float
        The mean over halves of the data less the number of all data (Theory 11.5). NaN along fixed
        directions, which hide it.
    quarters : float
        The mean over the four quarters of the data; NaN along fixed directions.

    Examples
    --------
    >>> import spectral_core as sc
    >>> sc.SampledNumber(0.1, (1.8, 2.2), drift=0.15, quarters=2.4).is_moving
    True
    """

    stderr: float
    interval: tuple[float, float]
    drift: float = float("nan")
    quarters: float = float("nan")

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.interval[1] - self.interval[0]) / 2

    @property
    def is_moving(self) -> bool:
        """Whether the drift is beyond the standard error: the number moves with the sample size."""
        return abs(self.drift) > self.stderr


@dataclass(frozen=True)
class LayerSampling:
    """What of a layer's numbers is signal, and what is noise of the sample (Theory 11).

    Parameters
    ----------
    groups : int
        The number of groups of samples B.
    directions : str
        ``"own"`` where each subsample was measured along the directions of its own gradient;
        ``"fixed"`` where all were measured along those of all data. The errors of α, s, PR and the
        terms then leave out that the directions would be others; that of s can be far too small.
    signal_share : float
        The share ``1 − ν/‖G‖²`` of the squared gradient that is the population's (11.1). It may be
        negative where there is none.
    signal_shares : ndarray, shape (K,), float64
        The share ``c_k/σ_k`` of each direction: the cross-fitted derivative of the population's
        loss over the singular value (11.2).
    alpha, gamma, s, participation : SampledNumber
        The exponents and the participation ratio.
    beta, phi, kappa, nu : SampledNumber or None
        The terms of α, with ``decompose=True``.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> network = DenseNetwork((6, 8, 5), activation="tanh", loss="squared")
    >>> data = [(rng.normal(size=(64, 6)), rng.normal(size=(64, 5)))]
    >>> problem = network.problem(network.init(), data)
    >>> layer = sc.measure(problem, "head", top_k=5, sampling=4, progress=False)["head"]
    >>> layer.sampling.groups, layer.sampling.signal_shares.shape
    (4, (5,))
    """

    groups: int
    directions: str
    signal_share: float
    signal_shares: npt.NDArray[np.float64]
    alpha: SampledNumber
    gamma: SampledNumber
    s: SampledNumber
    participation: SampledNumber
    beta: SampledNumber | None = None
    phi: SampledNumber | None = None
    kappa: SampledNumber | None = None
    nu: SampledNumber | None = None
