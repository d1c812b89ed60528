"""The spectrum of one layer, and the provenance of the measurement that it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spectral_core.alignment.alignment import SpectralAlignment
from spectral_core.alignment.decomposition import ExponentDecomposition
from spectral_core.curvature.certificate import Certificate
from spectral_core.exponents.exponent_curve import exponent_over_window
from spectral_core.exponents.influence import carrying_points
from spectral_core.exponents.line_check import LineCheck, check_line
from spectral_core.exponents.power_law import PowerLawFit, fit_power_law
from spectral_core.exponents.rank_profile import RankProfileFits
from spectral_core.exponents.transfer_identity import ExponentTriangle
from spectral_core.reporting.flags import flags_of
from spectral_core.reporting.noise import NoiseComparison
from spectral_core.reporting.sampling import LayerSampling
from spectral_core.storage.json_values import decode, encode

__all__ = ["LayerSpectrum", "ParticipationSummary", "Provenance"]


@dataclass(frozen=True)
class ParticipationSummary:
    """The number of directions that carry a layer's curvature (Theory 7).

    Parameters
    ----------
    ratio : float
        The ratio ``PR = (Σ h)² / Σ h²`` over the positive curvatures (7.1).
    entropy_rank : float
        The entropy rank ``exp(H(p))`` with ``p = h / Σ h``.
    count : int
        The number of positive curvatures, an upper bound of both.
    window_bound : float
        The ratio ``PR_K(s)`` of a pure power law with the fitted s (7.2). It is a prediction, no
        certificate.
    zeta_bound : float
        The limit ``ζ(s)²/ζ(2s)`` of that ratio for a window without end; infinite for s <= 1.
    certified_exponent : float
        The largest exponent that the sorted curvatures respect at every rank (7.3).
    certified_bound : float
        The ratio ``PR_K`` of that exponent. It holds for these data without any fit.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> network = DenseNetwork((6, 8, 5), activation="tanh", loss="squared")
    >>> data = [(rng.normal(size=(64, 6)), rng.normal(size=(64, 5)))]
    >>> problem = network.problem(network.init(), data)
    >>> summary = sc.measure(problem, "head", top_k=5, progress=False)["head"].participation
    >>> 1 <= summary.ratio <= summary.entropy_rank <= summary.count
    True
    """

    ratio: float
    entropy_rank: float
    count: int
    window_bound: float
    zeta_bound: float
    certified_exponent: float
    certified_bound: float


@dataclass(frozen=True)
class LayerSpectrum:
    """Curvature along one layer's gradient singular directions, and its exponents.

    Parameters
    ----------
    name, kind : str
        The name and kind of the layer, see `LayerInfo`.
    shape : tuple of int
        The shape ``(m, n)`` of the weight matrix.
    sigma : ndarray, shape (K,), float64
        The singular values of the gradient, descending, in units of the loss per unit of weight.
    curvature : ndarray, shape (K,), float64
        The curvatures ``h_k = <D_k, H[D_k]>`` along ``D_k = u_k v_kᵀ``, in units of the loss per
        weight squared.
    triangle : ExponentTriangle
        The exponents α, γ and s with the exact transfer identity (Theory 2, 3).
    participation : ParticipationSummary
        The participation ratio and its bounds (Theory 7).
    rank_profile : RankProfileFits
        The form of log σ over rank, by BIC (Theory 8).
    notes : tuple of str
        The remarks that a reader of the numbers needs: dropped directions, a clipped window, near
        ties.
    ggn : ndarray, shape (K,), float64, or None
        The Gauss-Newton curvatures of the same directions, with ``decompose=True``.
    alignment : SpectralAlignment or None
        The alignment of the directions with the Kronecker factors (Theory 5.1), with
        ``decompose=True``.
    decomposition : ExponentDecomposition or None
        The decomposition of α as β + φ + κ + ν (Theory 5.5), with ``decompose=True``.
    certificate : Certificate or None
        The way in which the curvatures were computed, and the evidence that they are right. None in
        reports of versions before 0.2.
    rounding : ndarray, shape (K,), float64, or None
        The largest distance of each σ_k from a singular value of the gradient in a wider type,
        caused by the gradient's own rounding (Theory 11.6): at most a tenth of σ_k. It is estimated
        from a few samples if they raise no doubt. None means that it is not known, as in float64
        itself.
    sampling : LayerSampling or None
        The sampling errors of the exponents, and how much of the gradient is signal (Theory 11),
        with ``sampling=``.
    derivative : ndarray, shape (K,), float64, or None
        The derivatives ``<G, D_k>`` of the measured loss, with ``directions_from=``: `sigma` is
        then that of the problem that chose the directions (Theory 11.9). None stands for `sigma`.
    diagonal : ndarray, shape (K,), float64, or None
        The curvatures ``h^diag`` that single positions give along the same directions (Theory 5.3),
        with ``decompose=True`` where the problem knows them.
    noise : NoiseComparison or None
        The exponents of h^Kron among those that noise alone would show (Theory 11.3), with
        ``noise_draws=``.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> network = DenseNetwork((6, 8, 5), activation="tanh", loss="squared")
    >>> data = [(rng.normal(size=(64, 6)), rng.normal(size=(64, 5)))]
    >>> problem = network.problem(network.init(), data)
    >>> spectrum = sc.measure(problem, "head", top_k=5, progress=False)["head"]
    >>> spectrum.name, spectrum.shape, spectrum.sigma.shape, spectrum.alpha.n
    ('head', (5, 8), (5,), 5)
    """

    name: str
    kind: str
    shape: tuple[int, int]
    sigma: npt.NDArray[np.float64]
    curvature: npt.NDArray[np.float64]
    triangle: ExponentTriangle
    participation: ParticipationSummary
    rank_profile: RankProfileFits
    notes: tuple[str, ...] = ()
    ggn: npt.NDArray[np.float64] | None = None
    alignment: SpectralAlignment | None = None
    decomposition: ExponentDecomposition | None = None
    certificate: Certificate | None = None
    rounding: npt.NDArray[np.float64] | None = None
    sampling: LayerSampling | None = None
    derivative: npt.NDArray[np.float64] | None = None
    diagonal: npt.NDArray[np.float64] | None = None
    noise: NoiseComparison | None = None

    @property
    def alpha(self) -> PowerLawFit:
        """Fit of ``h ∝ σ^α`` (Theory 2.1)."""
        return self.triangle.alpha

    @property
    def gamma(self) -> PowerLawFit:
        """Fit of ``σ ∝ k^−γ`` (Theory 2.2)."""
        return self.triangle.gamma

    @property
    def s(self) -> PowerLawFit:
        """Fit of ``h ∝ k^−s`` (Theory 2.3)."""
        return self.triangle.s

    @property
    def cross_fitted(self) -> PowerLawFit:
        """Fit of h on the derivative along directions that other data chose (Theory 11.9).

        Derivatives that are not positive are dropped and counted. Without ``directions_from=`` it
        is the fit of α.
        """
        along = self.sigma if self.derivative is None else self.derivative
        confidence = self.alpha.confidence
        return fit_power_law(along, self.curvature, confidence=confidence).to_floats()

    @property
    def line_check(self) -> LineCheck:
        """Check of whether log h is straight over log σ, as α takes it to be (Theory 11.8)."""
        confidence = self.alpha.confidence
        return check_line(self.sigma, self.curvature, confidence=confidence).to_floats()

    @property
    def alpha_over_k(self) -> PowerLawFit:
        """α of the first 1, 2, …, K directions, in arrays of shape ``(K,)`` (Theory 11.8)."""
        confidence = self.alpha.confidence
        return exponent_over_window(self.sigma, self.curvature, confidence=confidence)

    @property
    def carried_by(self) -> tuple[int, ...]:
        """The ranks k, from 1, of the directions that carry α (Theory 11.6).

        A direction of leverage above 1/2 does, and one without which α lies farther away than half
        of the width of its interval.
        """
        confidence = self.alpha.confidence
        return carrying_points(fit_power_law(self.sigma, self.curvature, confidence=confidence))

    @property
    def flags(self) -> tuple[str, ...]:
        """The marks ``"noise"``, ``"moving"``, ``"one point"`` and ``"curved"`` that apply."""
        return tuple(self.flag_reasons)

    @property
    def flag_reasons(self) -> dict[str, str]:
        """The marks that apply, each with a sentence on why; see `flags_of`."""
        confidence = self.alpha.confidence
        fit = fit_power_law(self.sigma, self.curvature, confidence=confidence).to_floats()
        return flags_of(fit, self.carried_by, self.line_check, self.sampling)

    def to_dict(self) -> dict[str, Any]:
        """Return the spectrum as JSON values."""
        return dict(encode(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LayerSpectrum":
        """Rebuild a spectrum from `to_dict`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If the data are no spectrum.
        """
        spectrum = decode(cls, data)
        spectrum._check_directions()
        spectrum._check_fits()
        return spectrum

    def _check_directions(self) -> None:
        """Raise `ValueError` unless every array has one number for each direction."""
        arrays = [array for array in vars(self).values() if isinstance(array, np.ndarray)]
        if self.decomposition is not None:
            arrays.append(self.decomposition.chi)
        arrays += [array for fit in self._fits() for array in _of_each_point(fit)]
        if self.sigma.ndim != 1 or len({len(array) for array in arrays}) > 1:
            raise ValueError(f"layer {self.name!r} has unequal numbers of σ and h")

    def _fits(self) -> list[PowerLawFit]:
        """Return the power laws of the triangle and of the decomposition."""
        results = [vars(each) for each in (self.triangle, self.decomposition) if each is not None]
        return [fit for each in results for fit in each.values() if isinstance(fit, PowerLawFit)]

    def _check_fits(self) -> None:
        """Raise unless all fits are of single numbers, not batches, with a valid status."""
        for fits in (self.triangle, self.rank_profile, self.decomposition):
            if fits is not None:
                fits.to_floats()
        for fit in (self.alpha, self.gamma, self.s):
            fit.reason  # noqa: B018
        self.rank_profile.winner  # noqa: B018


def _of_each_point(fit: PowerLawFit) -> list[npt.NDArray[np.float64]]:
    """Return the arrays of a fit that have a number for each direction, if it has them."""
    arrays = (fit.leverage, fit.without_each)
    return [np.atleast_1d(array) for array in arrays if array is not None]


@dataclass(frozen=True)
class Provenance:
    """The provenance of a measurement: the problem, the versions and the options.

    Parameters
    ----------
    problem : mapping
        The backend's description: backend, versions, dtype, device, seed, loss, term count; and
        `precision`, the type that the model casts to inside, where that is narrower than `dtype`.
    versions : mapping
        The versions of this library, NumPy and Python.
    top_k : int
        The window K that was asked for.
    curvature : str
        The curvature that was measured: ``"hessian"`` or ``"ggn"``.
    confidence : float
        The confidence level of every interval in the report.
    factors : mapping, optional
        The options ``delta`` and ``sharing`` of the Kronecker factors; None without a
        decomposition.
    engine : str
        The engine that was asked for.
    svd : str
        The algorithm that found the directions.
    sampling : int or None
        The number of groups of samples behind the sampling errors; None without.
    sampling_directions : str or None
        The directions along which parts of the data were to be measured; None without.
    directions_from : mapping or None
        The description of the problem that chose the directions, if it was another one.
    noise_draws : int
        The number of draws of noise behind each comparison with it.

    Examples
    --------
    >>> import spectral_core as sc
    >>> provenance = sc.Provenance({"backend": "numpy"}, {}, 20, "hessian", 0.95)
    >>> provenance.engine, provenance.svd, provenance.factors
    ('auto', 'exact', None)
    """

    problem: Mapping[str, Any]
    versions: Mapping[str, str]
    top_k: int
    curvature: str
    confidence: float
    factors: Mapping[str, str] | None = None
    engine: str = "auto"
    svd: str = "exact"
    sampling: int | None = None
    sampling_directions: str | None = None
    directions_from: Mapping[str, Any] | None = None
    noise_draws: int = 0
