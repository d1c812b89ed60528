"""Subsamples of a measurement: their directions before it, and the sampling errors after it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from spectral_core.alignment.alignment import SpectralAlignment
from spectral_core.arrays.namespace import to_numpy
from spectral_core.arrays.products import exact_products
from spectral_core.curvature.certificate import LayerCurvature
from spectral_core.curvature.problem import (
    CurvatureProblem,
    KnowsSamples,
    LayerInfo,
    ManyLayers,
    SampleGroup,
)
from spectral_core.curvature.result_checks import checked_gradient
from spectral_core.errors import InputError, LayerError
from spectral_core.measuring.directions import Decomposition, Window
from spectral_core.measuring.subsampling.grouped_problem import DirectionsOfGroups, GroupedProblem
from spectral_core.measuring.subsampling.own_directions import (
    exponents_of_each,
    further_directions,
    means_over_subsamples,
    own_windows,
)
from spectral_core.measuring.subsampling.subsamples import Subsamples
from spectral_core.measuring.subsampling.terms import TERMS, terms_of_each
from spectral_core.reporting.sampling import LayerSampling, SampledNumber
from spectral_core.reporting.spectrum import LayerSpectrum
from spectral_core.sampling import cross_fitted, jackknife, sampling_error, signal_share

__all__ = ["LayerSamples", "Resampling", "divided", "resampling_of"]

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerSamples:
    """The gradients of a layer's subsamples, as far as they are needed after the SVD.

    Parameters
    ----------
    windows : tuple of Window
        The top directions of each subsample.
    along : ndarray, shape (subsamples, K), float64
        The derivative of each subsample's loss along the directions of all data.
    signal_share : float
        The signal share of the layer (Theory 11.1).
    cross_fitted : ndarray, shape (K,), float64
        The cross-fitted derivatives c_k (11.2). NaN where a subsample has no k-th direction.
    """

    windows: tuple[Window, ...]
    along: Values
    signal_share: float
    cross_fitted: Values


@dataclass(frozen=True)
class Resampling:
    """The groups of a measurement, and the subsamples of every layer.

    Parameters
    ----------
    problem : GroupedProblem
        The problem to measure: its curvatures come with those of the groups.
    subsamples : Subsamples
        Which groups each subsample has.
    layers : mapping of str to LayerSamples
        The layers that all subsamples have directions for.
    failures : mapping of str to str
        The reason for each other layer.
    """

    problem: GroupedProblem
    subsamples: Subsamples
    layers: Mapping[str, LayerSamples]
    failures: Mapping[str, str]

    def sampling_of(
        self,
        spectrum: LayerSpectrum,
        found: LayerCurvature,
        alignments: Sequence[SpectralAlignment] = (),
    ) -> LayerSampling:
        """Return the sampling errors of a layer that was measured.

        Parameters
        ----------
        spectrum : LayerSpectrum
            The layer, measured on all data.
        found : LayerCurvature
            Its curvatures, with those of the groups.
        alignments : sequence of SpectralAlignment
            The alignment of each subsample's directions, or nothing.

        Raises
        ------
        LayerError
            If the layer has none, with the reason.
        """
        name = spectrum.name
        if name not in self.layers:
            raise LayerError(name, self.failures.get(name, "it has no subsamples"))
        if not found.parts:
            raise LayerError(name, "its curvatures do not come by groups")
        samples = self.layers[name]
        own = all(part.more is not None for part in found.parts)
        sigma, h, ggn = self._values(name, samples, found, own)
        estimates = exponents_of_each(sigma, h)
        if ggn is not None and spectrum.decomposition is not None and len(alignments) == len(h):
            estimates |= terms_of_each(sigma, h, ggn, alignments)
        sampled = {
            key: self._sampled(values, _of_all(spectrum, key), spectrum.alpha.confidence, own)
            for key, values in estimates.items()
        }
        return LayerSampling(
            groups=len(self.problem.groups),
            directions="own" if own else "fixed",
            signal_share=samples.signal_share,
            signal_shares=samples.cross_fitted / spectrum.sigma,
            **sampled,
        )

    def directions(self, name: str) -> list[tuple[Any, Any]]:
        """Return the directions of each subsample of a layer, or none if it has none."""
        samples = self.layers.get(name)
        return [] if samples is None else [(window.u, window.v) for window in samples.windows]

    def _values(
        self, name: str, samples: LayerSamples, found: LayerCurvature, own: bool
    ) -> tuple[list[Values], list[Values], list[Values] | None]:
        """Return σ, h and h^GGN of each subsample; h^GGN only where every group has it."""
        if own:
            sigma = [window.sigma for window in samples.windows]
            h = self._own(samples, [part.more for part in found.parts])
            ggn = self._own(samples, [part.more_ggn for part in found.parts])
        else:
            sigma = list(samples.along)
            h = self._fixed([part.values for part in found.parts])
            ggn = self._fixed([part.ggn for part in found.parts])
        assert h is not None
        return sigma, h, ggn

    def _own(self, samples: LayerSamples, more: Sequence[Any]) -> list[Values] | None:
        """Return the means over each subsample of values along its own directions."""
        if any(values is None for values in more):
            return None
        return means_over_subsamples(samples.windows, self.subsamples, more)

    def _fixed(self, values: Sequence[Any]) -> list[Values] | None:
        """Return the means over each subsample of values along the directions of all data."""
        if any(of_one is None for of_one in values):
            return None
        host = [to_numpy(of_one).astype(np.float64) for of_one in values]
        return [self.subsamples.mean(subsample, host) for subsample in self.subsamples]

    def _sampled(
        self, values: Values, of_all: float, confidence: float, own: bool
    ) -> SampledNumber:
        """Return the sampling error of a number, from its values on the subsamples."""
        count, weights = len(self.subsamples.shares), np.asarray(self.subsamples.shares)
        if not own:
            fixed = jackknife(values[:count], weights=weights, confidence=confidence).to_floats()
            return SampledNumber(fixed.stderr, _around(of_all, fixed.half_width))
        halves, quarters = np.reshape(values[count:-4], (-1, 2)), values[-4:]
        found = sampling_error(values[:count], halves, weights=weights, confidence=confidence)
        found = found.to_floats()
        return SampledNumber(
            stderr=found.stderr,
            interval=_around(of_all, found.half_width),
            drift=float(np.mean(halves)) - of_all,
            quarters=float(np.mean(quarters)),
        )


def _around(center: float, half_width: float) -> tuple[float, float]:
    return center - half_width, center + half_width


def resampling_of(
    problem: CurvatureProblem,
    layers: Sequence[LayerInfo],
    windows: Mapping[str, Window],
    count: int,
    svd: Decomposition,
    choice: DirectionsOfGroups,
) -> Resampling:
    """Divide the samples of a problem into groups, and find the directions of the subsamples.

    Parameters
    ----------
    problem : CurvatureProblem
        The problem of all data.
    layers : sequence of LayerInfo
        The layers to measure.
    windows : mapping of str to Window
        Their directions on all data; each subsample has at most as many.
    count : int
        The number of groups.
    svd : {"exact", "randomized"}
        The algorithm that finds directions.
    choice : {"auto", "own", "fixed"}
        Along which directions subsamples are measured.

    Raises
    ------
    InputError
        If the problem knows no samples, or they cannot be divided.
    """
    groups = divided(problem, count)
    shares = tuple(group.share for group in groups)
    plan = Subsamples.for_jackknife if choice == "fixed" else Subsamples.for_sampling_errors
    subsamples = plan(shares)
    names = [layer.name for layer in layers if layer.name in windows]
    gradients = [dict(group.problem.gradients(names)) for group in groups]
    samples: dict[str, LayerSamples] = {}
    failures: dict[str, str] = {}
    for layer in layers:
        if layer.name not in windows:
            continue
        of_groups = [checked_gradient(layer, each.pop(layer.name, None)) for each in gradients]
        try:
            samples[layer.name] = _samples(layer, windows[layer.name], of_groups, subsamples, svd)
        except LayerError as error:
            failures[layer.name] = f"on a part of the data {error.reason}"
    own = {name: each.windows for name, each in samples.items()}
    more = [further_directions(own, subsamples, group) for group in range(count)]
    return Resampling(GroupedProblem(problem, groups, more, choice), subsamples, samples, failures)


def divided(problem: CurvatureProblem, count: int) -> list[SampleGroup]:
    """Return the samples of a problem in groups.

    Raises
    ------
    InputError
        If the problem knows no samples, or they cannot be divided.
    """
    if not isinstance(problem, KnowsSamples):
        raise InputError(
            f"sampling: a {type(problem).__name__} does not divide its samples into groups; give "
            "it a method sample_groups, or pass sampling=None."
        )
    groups = list(problem.sample_groups(count))
    if not all(isinstance(group.problem, ManyLayers) for group in groups):
        raise InputError("sampling: the problems of the groups have no method layer_curvatures.")
    return groups


def _samples(
    layer: LayerInfo,
    window: Window,
    gradients: Sequence[Any],
    subsamples: Subsamples,
    svd: Decomposition,
) -> LayerSamples:
    """Return the subsamples of one layer from the gradients of its groups."""
    xp = array_api_compat.array_namespace(window.u)
    count, top_k = len(gradients), len(window.sigma)
    found, along = own_windows(layer, gradients, subsamples, top_k, svd), []
    for subsample in subsamples:
        gradient = subsamples.mean(subsample, gradients)
        with exact_products(xp, gradient):
            along.append(to_numpy(xp.sum(window.u * (gradient @ window.v), axis=0)))
    groups, weights = xp.stack(list(gradients)), np.asarray(subsamples.shares)
    shortest = min(len(each.sigma) for each in found[:count])
    u, v = (
        xp.stack([getattr(each, side)[:, :shortest] for each in found[:count]]) for side in "uv"
    )
    c = np.full(top_k, np.nan)
    c[:shortest] = to_numpy(cross_fitted(groups, u, v, weights))
    return LayerSamples(
        found, np.stack(along).astype(np.float64), float(signal_share(groups, weights)), c
    )


def _of_all(spectrum: LayerSpectrum, key: str) -> float:
    """Return a number of a layer by the name that its sampling error has."""
    if key == "participation":
        return spectrum.participation.ratio
    holder: Any = spectrum.decomposition if key in TERMS else spectrum
    return float(getattr(holder, key).exponent)
