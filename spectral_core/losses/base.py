"""The common base of all forms of a loss: root vectors, gradients of single terms, and the fit.

The Hessian of ``Σ_i l_i`` in the outputs z falls into one block per sample, and each block into a
sum of outer products of *root vectors*. Sent back through the network they are the output gradients
δ of the Gauss-Newton factor (Theory 4.4). A form is a class that knows its root vectors, in a file
of its own; `form.FORMS` lists them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array, at_least, device_of
from spectral_core.losses.protocols import Draws, Fit, OutputLoss
from spectral_core.losses.term_weights import TermWeights, term_weights

__all__ = ["OutputCurvature", "eps_of", "norm", "only_where", "take_one"]

TOLERANCE = 1e-8
"""Relative error below which a form fits in double precision; in single precision 100 eps."""


class OutputCurvature(ABC):
    """Root vectors of one batch's loss; each is an array like the outputs.

    A column holds one root vector of every sample: samples must not meet in the network.
    Everything may be traced, the index of a column too.

    Parameters
    ----------
    loss : OutputLoss
        The loss at the outputs.
    count : float or array
        The number of terms of the batch. `column`, `mixture`, `sampled` and `fit` do not depend on
        it.
    axis : int
        The axis of the classes, for a form that has classes.
    """

    def __init__(self, loss: OutputLoss, count: Any, axis: int = -1) -> None:
        self._loss, self._count, self._axis = loss, count, axis
        self.outputs, self.gradient = loss.outputs, loss.gradient
        self._xp = array_api_compat.array_namespace(self.outputs)

    @staticmethod
    def axes(shape: Sequence[int]) -> Sequence[int]:
        """Return the axes along which outputs of a shape may have this form, the likeliest first.

        A form without an axis of classes has −1 alone. A form that is never looked for has none.
        """
        return (-1,)

    @staticmethod
    def columns_in(shape: Sequence[int], axis: int) -> int:
        """Return the number of root vectors of a sample for outputs of a shape."""
        return prod(shape[1:])

    @staticmethod
    @abstractmethod
    def terms_in(shape: Sequence[int], axis: int) -> int:
        """Return the number of terms of a sample, each of which has a gradient of its own."""

    @staticmethod
    def tolerance(eps: float) -> float:
        """Return the misfit up to which the form fits; eps is that of the dtype of the outputs."""
        return max(100 * eps, TOLERANCE)

    @property
    def n_columns(self) -> int:
        """Number of root vectors of a sample."""
        return self.columns_in(self.outputs.shape, self._axis)

    @property
    def n_terms(self) -> int:
        """Number of terms of a sample."""
        return self.terms_in(self.outputs.shape, self._axis)

    @abstractmethod
    def column(self, index: Any) -> Array:
        """Return one of the columns: over all of them ``Σ r rᵀ`` is each sample's Hessian."""

    @abstractmethod
    def mixture(self, draws: Draws) -> Array:
        """Return the sum of all root vectors of all samples, each with a random sign."""

    @abstractmethod
    def sampled(self, draws: Draws) -> Array:
        """Return the gradient of the terms with targets drawn from the model."""

    @abstractmethod
    def fit(self) -> Fit:
        """Return how well the root vectors make the Hessian."""

    @property
    def sample_weights(self) -> Array:
        """Number of terms of each sample, up to a common factor, shape ``(B,)``."""
        return self._term_weights.samples

    @property
    def terms(self) -> Array:
        """Gradients of single terms, shape ``(B, terms, outputs of a term)``.

        A term of weight ω enters ``Σ_i l_i`` ω times: its outer product ω times, not ω².
        """
        rows = self._over_root(self.gradient, self._term_weights.elements)
        return self._xp.reshape(rows, (rows.shape[0], self.n_terms, -1))

    def term_column(self, index: Any) -> Array:
        """Return the gradients of single terms, one of every sample."""
        terms = self.terms
        return self._like_outputs(only_where(self._xp, self._is(index, terms, 1)[:, None], terms))

    def term_mixture(self, draws: Draws) -> Array:
        """Return the sum of the gradients of all terms, each with a random sign."""
        terms = self.terms
        return self._like_outputs(terms * draws.signs(terms[..., :1]))

    @cached_property
    def _term_weights(self) -> TermWeights:
        return term_weights(self._xp, self._loss, self.n_terms, self._count, elementwise=False)

    def _over_root(self, gradient: Array, weights: Array) -> Array:
        xp = self._xp
        return gradient / xp.sqrt(xp.where(weights > 0, weights, xp.ones_like(weights)))

    def _like_outputs(self, terms: Array) -> Array:
        return self._xp.reshape(terms, self.outputs.shape)

    def _product(self, vector: Array) -> Array:
        return self._loss.products(vector[None, ...])[0, ...]

    def _is(self, index: Any, like: Array, axis: int) -> Array:
        places = self._xp.arange(like.shape[axis], dtype=self._xp.int32, device=device_of(like))
        return places == index

    def _fit(self, misfit: Array, curvatures: Array) -> Fit:
        xp = self._xp
        return Fit(
            misfit, xp.min(curvatures), xp.max(xp.abs(curvatures)), xp.max(xp.abs(self.gradient))
        )

    def _relative(self, found: Array, expected: Array, rounding: Any = 0.0) -> Array:
        xp = self._xp
        size, off = norm(xp, found), norm(xp, found - expected)
        tiny = float(xp.finfo(found.dtype).smallest_normal)
        return at_least(xp, off - rounding, 0.0) / at_least(xp, size, tiny)


def only_where(xp: Any, condition: Array, array: Array) -> Array:
    """Return an array with zeros where a condition does not hold."""
    return xp.where(condition, array, xp.zeros_like(array))


def take_one(xp: Any, array: Array, index: Any, axis: int) -> Array:
    """Return one slice along an axis; the index may be traced."""
    place = xp.reshape(xp.asarray(index, dtype=xp.int32, device=device_of(array)), (1,))
    return xp.squeeze(xp.take(array, place, axis=axis), axis=axis)


def norm(xp: Any, array: Array) -> Array:
    """Return the Euclidean norm of all entries."""
    return xp.linalg.vector_norm(array)


def eps_of(xp: Any, array: Array) -> float:
    """Return the relative precision of an array's dtype."""
    return float(xp.finfo(array.dtype).eps)
