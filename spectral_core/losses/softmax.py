"""A softmax cross-entropy of any make: classes, probabilities, ignored targets, class weights."""

from collections.abc import Sequence
from math import prod
from typing import Any

from spectral_core.arrays.namespace import Array, at_least, device_of
from spectral_core.losses.base import OutputCurvature, eps_of, norm, only_where, take_one
from spectral_core.losses.protocols import Draws, Fit, OutputLoss

__all__ = ["Softmax"]


class Softmax(OutputCurvature):
    """A Hessian of ``ω (diag(p) − p pᵀ)`` for each term (Theory 4.4).

    The number of root vectors is one less than that of classes. They are the columns of the
    Cholesky factor, known in closed form (Tanabe and Sagae, J. R. Stat. Soc. B 54, 1992).
    """

    def __init__(self, loss: OutputLoss, count: Any, axis: int = -1) -> None:
        super().__init__(loss, count, axis)
        self._p = self._in_front(_softmax(self._xp, self.outputs, axis))
        self._weights, self._misfit_at_zero = self._weights_at_zero()  # ω, shaped for z

    @staticmethod
    def axes(shape: Sequence[int]) -> Sequence[int]:
        """Return the last axis and the one behind the samples, where they hold two classes."""
        candidates = dict.fromkeys((len(shape) - 1, 1))
        return [axis for axis in candidates if 0 < axis < len(shape) and shape[axis] > 1]

    @staticmethod
    def columns_in(shape: Sequence[int], axis: int) -> int:
        """Return one less than the classes for each term."""
        return prod(shape[1:]) // shape[axis] * (shape[axis] - 1)

    @staticmethod
    def terms_in(shape: Sequence[int], axis: int) -> int:
        """Return the number of positions, each of which has a cross-entropy of its own."""
        return prod(shape[1:]) // shape[axis]

    def column(self, index: Any) -> Array:
        """Return a column of the Cholesky factor of one term's block."""
        xp, p, classes = self._xp, self._p, self._p.shape[-1]
        rows = xp.reshape(p, (p.shape[0], -1, classes))
        term, c = index // (classes - 1), index % (classes - 1)
        own = take_one(xp, rows, term, 1)
        # The joint probability of classes c, c + 1, … is summed from behind: nothing cancels.
        tail = xp.flip(xp.cumulative_sum(xp.flip(own, axis=1), axis=1), axis=1)
        here, behind = take_one(xp, tail, c, 1), take_one(xp, tail, c + 1, 1)
        size = xp.sqrt(take_one(xp, own, c, 1) * _ratio(xp, here=here, part=behind))[:, None]
        place = xp.arange(classes, dtype=xp.int32, device=device_of(p))
        below = -_ratio(xp, here=behind[:, None], part=only_where(xp, place > c, own))
        column = size * xp.where(place == c, xp.ones_like(below), below)
        chosen = self._is(term, rows, 1)[:, None]
        wide = xp.reshape(only_where(xp, chosen, column[:, None, :]), p.shape)
        return xp.sqrt(self._weights) * self._back(wide)

    def mixture(self, draws: Draws) -> Array:
        """Return ``(diag(√p) − p √pᵀ) ε`` for random signs ε: it costs no more than one column."""
        xp, p = self._xp, self._p
        scaled = xp.sqrt(p) * draws.signs(p)
        rows = scaled - p * xp.sum(scaled, axis=-1, keepdims=True)
        return xp.sqrt(self._weights) * self._back(rows)

    def sampled(self, draws: Draws) -> Array:
        """Return ``√ω (p − e_ỹ)`` for classes ỹ drawn with probabilities p."""
        off = self._p - draws.one_hot(self._p)
        return self._xp.sqrt(self._weights) * self._back(off)

    def fit(self) -> Fit:
        """Return how well a cross-entropy with weights, flat along ones, describes the loss."""
        xp, probe, eps = self._xp, self._loss.probe, eps_of(self._xp, self.outputs)
        # If every probability is saturated, the Hessian is a difference of near equals.
        rounding = 16 * eps * norm(xp, self._weights * probe)
        expected = self._weights * _softmax_product(xp, self.outputs, probe, self._axis)
        off = self._relative(self._product(probe), expected, rounding)
        # A small regulariser shows best where a cross-entropy has no curvature.
        along_ones = self._product(xp.ones_like(probe))
        is_flat = norm(xp, along_ones) <= 16 * eps * norm(
            xp, xp.broadcast_to(self._weights, probe.shape)
        )
        is_one = is_flat & (self._misfit_at_zero <= eps**0.5) & xp.any(self._weights > 0)
        return self._fit(xp.where(is_one, off, xp.full_like(off, float("inf"))), self._weights)

    @property
    def sample_weights(self) -> Array:
        """Number of terms of each sample: the weights that the curvature shows."""
        return self._xp.sum(self._xp.reshape(self._weights, (self._weights.shape[0], -1)), axis=1)

    @property
    def terms(self) -> Array:
        """Gradients of single terms, classes last."""
        rows = self._in_front(self._over_root(self.gradient, self._weights))
        return self._xp.reshape(rows, (rows.shape[0], -1, rows.shape[-1]))

    def _weights_at_zero(self) -> tuple[Array, Array]:
        """Return the weight ω of each term, were this a cross-entropy, and how far it is from one.

        Both are read off at logits of zero, where no probability is saturated.
        """
        xp, axis, probe = self._xp, self._axis, self._loss.probe
        zero = xp.zeros_like(self.outputs)
        found = self._loss.at(zero).products(probe[None, ...])[0, ...]
        expected = _softmax_product(xp, zero, probe, axis)
        squares = xp.sum(expected * expected, axis=axis, keepdims=True)
        weights = xp.sum(found * expected, axis=axis, keepdims=True) / squares
        return at_least(xp, weights, 0.0), self._relative(found, weights * expected)

    def _in_front(self, array: Array) -> Array:
        return self._xp.moveaxis(array, self._axis, -1)

    def _back(self, rows: Array) -> Array:
        return self._xp.moveaxis(rows, -1, self._axis)

    def _like_outputs(self, terms: Array) -> Array:
        return self._back(self._xp.reshape(terms, self._p.shape))


def _softmax(xp: Any, logits: Array, axis: int) -> Array:
    powers = xp.exp(logits - xp.max(logits, axis=axis, keepdims=True))
    return powers / xp.sum(powers, axis=axis, keepdims=True)


def _softmax_product(xp: Any, logits: Array, vector: Array, axis: int) -> Array:
    p = _softmax(xp, logits, axis)
    return p * (vector - xp.sum(p * vector, axis=axis, keepdims=True))


def _ratio(xp: Any, *, part: Array, here: Array) -> Array:
    """Return the quotient of two sums of probabilities, and zero if the divisor is zero."""
    return part / xp.where(here > 0, here, xp.ones_like(here))
