"""A logistic loss of single elements: a binary cross-entropy of logits."""

from functools import cached_property
from typing import Any

from spectral_core.arrays.namespace import Array, at_least
from spectral_core.losses.elementwise import Elementwise
from spectral_core.losses.protocols import Draws, Fit
from spectral_core.losses.term_weights import TermWeights, counted_weights

__all__ = ["Logistic"]


class Logistic(Elementwise):
    """A Hessian of ``ω p (1 − p)``, ``p = 1 / (1 + exp(−z))``, for each element; binary targets."""

    def sampled(self, draws: Draws) -> Array:
        """Return ``√ω (p − ỹ)`` for targets ỹ that are 1 with probability p."""
        xp, p = self._xp, _sigmoid(self._xp, self.outputs)
        # The variance of p − ỹ is p (1 − p).
        variance = at_least(xp, p * (1 - p), float(xp.finfo(p.dtype).smallest_normal))
        return self._root / xp.sqrt(variance) * (p - draws.bernoulli(p))

    def fit(self) -> Fit:
        """Return how well weighted logistic losses describe the loss."""
        xp, probe = self._xp, self._loss.probe
        elementwise = super().fit()
        # Two losses that agree at the outputs differ at the probe and at zero.
        here, weights = self._diagonal_at(probe), self._weights
        p = _sigmoid(xp, probe)
        off = self._relative(here, weights * p * (1 - p))
        off = xp.where(xp.any(weights > 0), off, xp.full_like(off, float("inf")))
        return elementwise._replace(misfit=xp.maximum(elementwise.misfit, off))

    @cached_property
    def _term_weights(self) -> TermWeights:
        return counted_weights(self._xp, self._weights, self.n_terms, self._count)

    @cached_property
    def _weights(self) -> Array:
        """The weight ω of each element, read off at zero."""
        return 4 * self._diagonal_at(self._xp.zeros_like(self.outputs))

    def _diagonal_at(self, z: Array) -> Array:
        ones = self._xp.ones_like(z)
        return self._loss.at(z).products(ones[None, ...])[0, ...]


def _sigmoid(xp: Any, z: Array) -> Array:
    small = xp.exp(-xp.abs(z))  # never overflows
    return xp.where(z >= 0, xp.ones_like(z), small) / (1 + small)
