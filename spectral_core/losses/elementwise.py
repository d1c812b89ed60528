"""A loss of single elements, such as a squared error."""

from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any

from spectral_core.arrays.namespace import Array, at_least
from spectral_core.losses.base import OutputCurvature, only_where
from spectral_core.losses.protocols import Draws, Fit, OutputLoss
from spectral_core.losses.term_weights import TermWeights, term_weights

__all__ = ["Elementwise"]


class Elementwise(OutputCurvature):
    """A diagonal Hessian: one root vector per element. Targets are drawn from a Gaussian."""

    def __init__(self, loss: OutputLoss, count: Any, axis: int = -1) -> None:
        super().__init__(loss, count, axis)
        self._diagonal = self._product(self._xp.ones_like(self.outputs))
        self._root = self._xp.sqrt(at_least(self._xp, self._diagonal, 0.0))

    @staticmethod
    def terms_in(shape: Sequence[int], axis: int) -> int:
        """Return the number of vectors along the last axis: each is a term."""
        return prod(shape[1:-1])

    @cached_property
    def _term_weights(self) -> TermWeights:
        return term_weights(self._xp, self._loss, self.n_terms, self._count, elementwise=True)

    def column(self, index: Any) -> Array:
        """Return the root of one element of every sample."""
        root = self._xp.reshape(self._root, (self._root.shape[0], -1))
        return self._like_outputs(only_where(self._xp, self._is(index, root, 1), root))

    def mixture(self, draws: Draws) -> Array:
        """Return the roots of all elements with random signs."""
        return self._root * draws.signs(self._root)

    def sampled(self, draws: Draws) -> Array:
        """Return the gradient of a squared error with targets drawn from a normal distribution."""
        return self._root * draws.normal(self._root)

    def fit(self) -> Fit:
        """Return how well a diagonal, the Hessian's product with ones, makes the Hessian."""
        probe = self._loss.probe
        off = self._relative(self._product(probe), self._diagonal * probe)
        return self._fit(off, self._diagonal)
