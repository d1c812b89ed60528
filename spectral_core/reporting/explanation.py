"""One sentence on the term that carries a layer's deviation from α = 2, which claims no more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spectral_core.errors import InputError
from spectral_core.exponents.student_t import student_t_quantile
from spectral_core.reporting.rows import half_width
from spectral_core.reporting.spectrum import LayerSpectrum

__all__ = ["Explanation", "Term", "explain"]

NAMES = {
    "beta": "β − 2, the eigenvalues of the Kronecker factors",
    "phi": "φ, the alignment of the gradient's directions with the factors",
    "kappa": "κ, the dependence across samples and positions",
    "nu": "ν, what the Hessian has beyond Gauss-Newton",
}


PARTS_OF_KAPPA = (
    "the positions of a sample acting together carry most of it",
    "the dependence of δ and a carries most of it",
)


@dataclass(frozen=True)
class Term:
    """One term of ``α − 2 = (β − 2) + φ + κ + ν``.

    Parameters
    ----------
    value : float
        The contribution of the term to α.
    interval : tuple of float
        The confidence interval of the value.
    share : float
        The share ``|value|`` of the sum of all terms' absolute values.
    share_interval : tuple of float
        The confidence interval of the share, by the joint covariance of the slopes, within [0, 1].
    """

    value: float
    interval: tuple[float, float]
    share: float
    share_interval: tuple[float, float]


@dataclass(frozen=True)
class Explanation:
    """The explanation of a layer's α by its terms.

    Parameters
    ----------
    sentence : str
        The explanation in plain words, which ``str()`` gives.
    alpha : float
        The exponent over the common window.
    dominating : str or None
        ``"beta"``, ``"phi"``, ``"kappa"`` or ``"nu"``, where the intervals support it: the term
        has the sign of ``α − 2``, its interval excludes zero, and so do those of its lead over
        each other term (Bonferroni over the three).
    terms : mapping of str to Term
        All four terms by name.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> network = DenseNetwork((6, 8, 5), activation="tanh", loss="squared")
    >>> data = [(rng.normal(size=(64, 6)), rng.normal(size=(64, 5)))]
    >>> problem = network.problem(network.init(), data)
    >>> report = sc.measure(problem, "head", top_k=5, decompose=True, progress=False)
    >>> list(sc.explain(report["head"]).terms)
    ['beta', 'phi', 'kappa', 'nu']
    """

    sentence: str
    alpha: float
    dominating: str | None
    terms: Mapping[str, Term]

    def __str__(self) -> str:
        """Return the sentence."""
        return self.sentence


def explain(layer: LayerSpectrum) -> Explanation:
    """Name the term that carries a layer's deviation from α = 2 (Theory 5.5, 6).

    All terms are slopes on the same log σ, so their joint covariance is that of their residuals
    over ``Σ(x − x̄)²``; intervals of shares and leads come from it. Residuals along a spectrum are
    seldom independent, so the intervals are rather too narrow than too wide. If the layer has
    sampling errors of its terms, the intervals of α and of each term are the wider of both, and a
    term carries the deviation only if it stands against sampling too (Theory 11.4). Where that term
    is κ and the layer knows ``h^diag``, a second sentence says whether the positions of a sample
    acting together or the dependence of δ and a carries it (5.3), by intervals of the line alone.

    Parameters
    ----------
    layer : LayerSpectrum
        A layer of a report that was measured with ``decompose=True``.

    Raises
    ------
    InputError
        If `layer` is no layer of a report, or has no decomposition.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> network = DenseNetwork((6, 8, 5), activation="tanh", loss="squared")
    >>> data = [(rng.normal(size=(64, 6)), rng.normal(size=(64, 5)))]
    >>> problem = network.problem(network.init(), data)
    >>> report = sc.measure(problem, "head", top_k=5, decompose=True, progress=False)
    >>> explanation = sc.explain(report["head"])
    >>> str(explanation) == explanation.sentence
    True
    >>> abs(explanation.alpha - 2 - sum(term.value for term in explanation.terms.values())) < 1e-9
    True
    """
    if not isinstance(layer, LayerSpectrum):
        raise InputError(
            f"layer: a {type(layer).__name__} was passed; pass one of a report, report['name']."
        )
    if layer.decomposition is None or layer.alignment is None or layer.ggn is None:
        raise InputError(
            f"layer {layer.name!r}: has no decomposition; measure it with decompose=True."
        )
    fits = layer.decomposition
    if fits.alpha.reason:
        return Explanation(
            f"{layer.name}: nothing can be said of α: {fits.alpha.reason}.", np.nan, None, {}
        )
    values, covariance, dof = _joint_slopes(layer)
    confidence = fits.alpha.confidence
    sampled = _sampling_half_widths(layer)
    terms = _terms(values, covariance, student_t_quantile((1 + confidence) / 2, dof), sampled[1:])
    alpha = float(fits.alpha.exponent)
    half = max(half_width(fits.alpha), sampled[0])
    head = f"{layer.name}: α = {alpha:.2f} ± {half:.2f}"
    if abs(alpha - 2) <= half:
        return Explanation(f"{head} is compatible with 2{_cancelling(terms)}.", alpha, None, terms)
    side = "below" if alpha < 2 else "above"
    corrected = student_t_quantile(1 - (1 - confidence) / 6, dof)
    leading = _leading(alpha - 2, values, covariance, corrected)
    dominating = None if leading is None else list(NAMES)[leading]
    if dominating is not None and abs(terms[dominating].value) <= _half(terms[dominating]):
        dominating = None  # it does not stand against sampling
    if dominating is None:
        largest = max(terms, key=lambda name: terms[name].share)
        return Explanation(
            f"{head} lies {side} 2, and no single term is shown to carry it; the largest is "
            f"{NAMES[largest]} ({_amount(terms[largest])}).",
            alpha, None, terms,
        )  # fmt: skip
    term = terms[dominating]
    more = _parts_of_kappa(layer) if dominating == "kappa" else ""
    return Explanation(
        f"{head} lies {side} 2 mostly by {NAMES[dominating]} ({_amount(term)}).{more}",
        alpha, dominating, terms,
    )  # fmt: skip


def _sampling_half_widths(layer: LayerSpectrum) -> list[float]:
    """Return half of the sampling intervals of α and of its terms; 0 where there is none."""
    found = [getattr(layer.sampling, name, None) for name in ("alpha", *NAMES)]
    halves = [0.0 if number is None else number.half_width for number in found]
    return [half if half == half else 0.0 for half in halves]  # NaN tells nothing


def _half(term: Term) -> float:
    return (term.interval[1] - term.interval[0]) / 2


def _joint_slopes(
    layer: LayerSpectrum,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int]:
    """Return β − 2, φ, κ, ν, their covariance, and its degrees of freedom."""
    assert layer.alignment is not None and layer.ggn is not None
    alignment = layer.alignment
    sigma, lam, phi, ggn, kron, h = _logs_in_window(
        layer, layer.sigma, alignment.lam, alignment.phi, layer.ggn, alignment.kron, layer.curvature
    )
    return _slopes(sigma, np.stack([lam - 2 * sigma, phi, ggn - kron, h - ggn]))


def _parts_of_kappa(layer: LayerSpectrum) -> str:
    """Return a sentence on κ^pos and κ^dep, or nothing where κ is not split."""
    fits = layer.decomposition
    if fits is None or fits.kappa_positions is None or fits.kappa_dependence is None:
        return ""
    if layer.alignment is None or layer.ggn is None or layer.diagonal is None:
        return ""
    sigma, ggn, diagonal, kron = _logs_in_window(
        layer, layer.sigma, layer.ggn, layer.diagonal, layer.alignment.kron
    )
    values, covariance, dof = _slopes(sigma, np.stack([ggn - diagonal, diagonal - kron]))
    quantile = student_t_quantile((1 + fits.kappa.confidence) / 2, dof)
    leading = _leading(float(values.sum()), values, covariance, quantile)
    said = "none of its parts is shown to carry it" if leading is None else PARTS_OF_KAPPA[leading]
    positions, dependence = fits.kappa_positions, fits.kappa_dependence
    return (
        f" Of κ, {said}: κ^pos {positions.exponent:+.2f} ± {half_width(positions):.2f}, "
        f"κ^dep {dependence.exponent:+.2f} ± {half_width(dependence):.2f}."
    )


def _logs_in_window(
    layer: LayerSpectrum, *spectra: npt.NDArray[np.float64]
) -> list[npt.NDArray[np.float64]]:
    """Return the logarithms of spectra on the common window of a layer's decomposition."""
    assert layer.decomposition is not None
    window = np.isfinite(layer.decomposition.chi)
    return [np.log(values[window]) for values in spectra]


def _slopes(
    sigma: npt.NDArray[np.float64], logs: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int]:
    """Return the slopes of rows of `logs` on log σ, their covariance, and degrees of freedom."""
    x, y = sigma - sigma.mean(), logs - logs.mean(1, keepdims=True)
    slopes = y @ x / (x @ x)
    residuals = y - slopes[:, None] * x
    dof = len(x) - 2
    return slopes, residuals @ residuals.T / dof / (x @ x), dof


def _terms(
    values: npt.NDArray[np.float64],
    covariance: npt.NDArray[np.float64],
    quantile: float,
    sampled: Sequence[float],
) -> dict[str, Term]:
    total = np.abs(values).sum()
    terms = {}
    for index, name in enumerate(NAMES):
        half = max(quantile * np.sqrt(covariance[index, index]), sampled[index])
        share = abs(values[index]) / total if total else np.nan
        # d share = (d|t_i| − share Σ_j d|t_j|) / Σ|t|
        slope = (np.eye(4)[index] - share) * np.sign(values) / (total or np.nan)
        spread = quantile * max(float(slope @ covariance @ slope), 0.0) ** 0.5
        terms[name] = Term(
            value=float(values[index]),
            interval=(float(values[index] - half), float(values[index] + half)),
            share=float(share),
            share_interval=(float(max(share - spread, 0)), float(min(share + spread, 1))),
        )
    return terms


def _leading(
    deviation: float,
    values: npt.NDArray[np.float64],
    covariance: npt.NDArray[np.float64],
    quantile: float,
) -> int | None:
    """Return the index of the summand of a deviation that is shown to carry it, or None."""
    towards = values * np.sign(deviation)  # a term that brings α away from 2 counts as positive
    first = int(np.argmax(np.abs(towards)))
    if towards[first] <= quantile * np.sqrt(covariance[first, first]):
        return None
    signs = np.sign(values)
    for other in range(len(values)):
        if other == first:
            continue
        contrast = np.zeros(len(values))
        contrast[first], contrast[other] = signs[first], -signs[other]
        lead = abs(values[first]) - abs(values[other])
        if lead <= quantile * max(float(contrast @ covariance @ contrast), 0.0) ** 0.5:
            return None
    return first


def _cancelling(terms: Mapping[str, Term]) -> str:
    large = [name for name, term in terms.items() if not term.interval[0] <= 0 <= term.interval[1]]
    if not large:
        return ""
    parts = " and ".join(
        f"{NAMES[name].split(',')[0]} ({terms[name].value:+.2f})" for name in large
    )
    if {terms[name].value > 0 for name in large} == {True, False}:
        return f", as {parts} cancel within the uncertainty"
    return f", though {parts} {'is' if len(large) == 1 else 'are'} not zero"


def _amount(term: Term) -> str:
    low, high = term.share_interval
    return (
        f"{term.value:+.2f} ± {_half(term):.2f}, {term.share:.0%} of the terms' absolute sum, "
        f"{low:.0%} to {high:.0%}"
    )
