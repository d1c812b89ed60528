"""Kronecker factors of many layers, a few at a time, and the alignment of directions in them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from spectral_core._renamed import by_new_names
from spectral_core.alignment.alignment import SpectralAlignment, spectral_alignment
from spectral_core.arrays.namespace import to_numpy
from spectral_core.arrays.products import exact_products
from spectral_core.curvature.factors_along import HasFactors, factors_along
from spectral_core.curvature.problem import (
    FisherType,
    KfacApprox,
    KroneckerFactors,
    LayerInfo,
)
from spectral_core.errors import InputError, LayerError
from spectral_core.measuring.subsampling.grouped_problem import GroupedFactors
from spectral_core.measuring.subsampling.resampling import Resampling
from spectral_core.sampling import NoiseNull, noise_null

__all__ = ["Aligned", "FactorSource"]

MAX_ELEMENTS = 2**27
"""Of all factors held together: 1 GiB in float64."""


@dataclass(frozen=True)
class Aligned:
    """A layer's directions in its factors.

    Parameters
    ----------
    alignment : SpectralAlignment
        The alignment, with NumPy arrays.
    notes : tuple of str
        The remarks on the factors.
    of_subsamples : tuple of SpectralAlignment
        The alignment of each subsample's directions in its own factors, if there are subsamples.
    diagonal : ndarray, shape (K,), float64, or None
        The curvatures ``h^diag`` of single positions, if the problem knows them.
    null : NoiseNull or None
        Draws of noise from the factors, if they are wanted.
    """

    alignment: SpectralAlignment
    notes: tuple[str, ...]
    of_subsamples: tuple[SpectralAlignment, ...] = ()
    diagonal: npt.NDArray[np.float64] | None = None
    null: NoiseNull | None = None


class FactorSource:
    """Fetches factors from a problem in groups: one pass over the data serves several layers.

    Parameters
    ----------
    problem : CurvatureProblem
        The problem that computes the factors.
    layers : sequence of LayerInfo
        The layers in the order in which they will be asked for.
    directions : mapping of str to (u, v)
        The directions of each layer, of shapes (m, K) and (n, K).
    fisher_type, kfac_approx
        The options of `CurvatureProblem.kronecker_factors`.
    resampling : Resampling or None
        The groups of samples of which `problem` gives the factors as well.
    noise_draws : int
        The number of draws of noise for the null model of each layer; 0 for none.
    """

    def __init__(
        self,
        problem: HasFactors,
        layers: Sequence[LayerInfo],
        directions: Mapping[str, tuple[Any, Any]],
        fisher_type: FisherType,
        kfac_approx: KfacApprox,
        resampling: Resampling | None = None,
        noise_draws: int = 0,
    ) -> None:
        self._noise_draws = noise_draws
        self._resampling = resampling
        self._problem, self._fisher_type, self._kfac_approx = problem, fisher_type, kfac_approx
        self._directions = directions
        held = 1 if resampling is None else 1 + len(resampling.subsamples.shares)
        self._groups = _groups(layers, MAX_ELEMENTS // held)
        self._found: dict[str, Aligned | LayerError] = {}
        self._gradients_factors: dict[str, KroneckerFactors] = {}

    def take(self, layer: LayerInfo) -> "Aligned":
        """Return the alignment of the layer's directions with its factors, on the host.

        Raises
        ------
        LayerError
            If the layer has no factors.
        """
        if layer.name not in self._found:
            self._fetch(next(group for group in self._groups if layer in group))
        found = self._found.pop(layer.name)
        if isinstance(found, LayerError):
            raise found
        return found

    def prepare(self) -> None:
        """Fetch the first factors, so that an error of the loss is raised at once."""
        if self._groups:
            self._fetch(self._groups[0])

    def _fetch(self, group: list[LayerInfo]) -> None:
        """Align a group of layers; one that has no factors is left out of another try."""
        todo = list(group)
        while todo:
            try:
                factors = factors_along(
                    self._problem,
                    [layer.name for layer in todo],
                    {layer.name: self._directions[layer.name] for layer in todo},
                    fisher_type=self._fisher_type,
                    kfac_approx=self._kfac_approx,
                )
            except LayerError as error:
                self._found[error.layer] = error
                todo = [layer for layer in todo if layer.name != error.layer]
                continue
            for layer in todo:
                found = self._align(layer, factors[layer.name])
                self._found[layer.name] = self._with_null(layer, found, factors[layer.name])
            return

    def _with_null(
        self, layer: LayerInfo, found: "Aligned", factors: KroneckerFactors
    ) -> "Aligned":
        """Return an alignment with draws of noise, if they are wanted and the factors allow."""
        if not self._noise_draws:
            return found
        try:
            empirical = factors
            if self._fisher_type != "empirical":
                empirical = self._empirical(layer)
            top_k = int(self._directions[layer.name][0].shape[1])
            null = noise_null(
                empirical, factors, 1, c_delta=factors, top_k=top_k, n_draws=self._noise_draws
            )  # no exponent depends on the number of terms
        except (LayerError, InputError) as error:
            note = f"not compared with noise: {getattr(error, 'reason', error)}"
            return replace(found, notes=(*found.notes, note))
        return replace(found, null=null)

    def _empirical(self, layer: LayerInfo) -> KroneckerFactors:
        """Return the factors of the gradients themselves, of all layers that go together."""
        if layer.name not in self._gradients_factors:
            names = [each.name for each in next(g for g in self._groups if layer in g)]
            self._gradients_factors = dict(
                by_new_names(self._problem.kronecker_factors)(
                    [name for name in names if not isinstance(self._found.get(name), LayerError)],
                    fisher_type="empirical",
                    kfac_approx=self._kfac_approx,
                )
            )
        return self._gradients_factors.pop(layer.name)

    def _align(self, layer: LayerInfo, factors: KroneckerFactors) -> "Aligned":
        c_delta, c_a = factors.output_covariance, factors.input_covariance
        xp = array_api_compat.array_namespace(c_delta)
        u, v = self._directions[layer.name]
        # The factors are sums of squares: below the square of the gradients' rounding they are
        # noise, however wide the sums are.
        precision = max(float(xp.finfo(c_delta.dtype).eps), float(xp.finfo(u.dtype).eps) ** 2)
        rtol = max(layer.shape) * precision

        def aligned(u: Any, v: Any, c_delta: Any, c_a: Any) -> SpectralAlignment:
            u, v = (xp.astype(d, c_delta.dtype) for d in (u, v))
            return spectral_alignment(u, v, c_delta, c_a, rtol=rtol)

        found = aligned(u, v, c_delta, c_a)
        notes = factors.notes + _notes(xp, factors, xp.astype(u, c_delta.dtype), found)
        of_subsamples = self._of_subsamples(layer.name, factors, aligned)
        return Aligned(found.to_floats(), notes, of_subsamples, _diagonal(factors, u.shape[1]))

    def _of_subsamples(
        self, name: str, factors: KroneckerFactors, aligned: Callable[..., SpectralAlignment]
    ) -> tuple[SpectralAlignment, ...]:
        """Return the alignment of each subsample, if the factors come by groups."""
        if self._resampling is None or not isinstance(factors, GroupedFactors):
            return ()
        subsamples = self._resampling.subsamples
        sides = [
            [p.output_covariance for p in factors.parts],
            [p.input_covariance for p in factors.parts],
        ]
        return tuple(
            aligned(u, v, *(subsamples.mean(s, side) for side in sides)).to_floats()
            for s, (u, v) in zip(subsamples, self._resampling.directions(name), strict=False)
        )


def _groups(layers: Sequence[LayerInfo], most: int) -> list[list[LayerInfo]]:
    groups: list[list[LayerInfo]] = []
    room = 0
    for layer in layers:
        size = layer.shape[0] ** 2 + layer.shape[1] ** 2
        if size > room:
            groups.append([])
            room = most
        groups[-1].append(layer)
        room -= size
    return groups


def _diagonal(factors: KroneckerFactors, count: int) -> npt.NDArray[np.float64] | None:
    """Return ``h^diag`` on the host; None where it is not known or is not a number."""
    if factors.diagonal is None:
        return None
    found = to_numpy(factors.diagonal).astype(np.float64)
    return found if found.shape == (count,) and np.isfinite(found).all() else None


def _notes(
    xp: Any, factors: KroneckerFactors, u: Any, alignment: SpectralAlignment
) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if factors.output_noise is not None:
        with exact_products(xp, u):
            noise = to_numpy(xp.sum(u * (factors.output_noise @ u), axis=-2))
        error = float(np.sqrt(np.mean((noise / to_numpy(alignment.delta.quadratic)) ** 2)))
        notes = (f"standard error of uᵀ C_δ u: {error:.1%} (root mean square over the window)",)
    for symbol, factor in (("C_δ", alignment.delta), ("C_A", alignment.a)):
        if tied := [str(k + 1) for k, t in enumerate(to_numpy(factor.tied)) if t]:
            notes += (
                f"eigenvalues of {symbol} nearly tied at ranks {', '.join(tied)}: which of a tied "
                "cluster stands beside which direction is arbitrary, within the gap",
            )
    return notes
