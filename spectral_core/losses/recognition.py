"""The curvature of a loss in the network's outputs, and vectors whose outer products make it.

The Hessian of ``Σ_i l_i`` in the outputs z falls into one block per sample, and each block into a
sum of outer products of *root vectors*. Sent back through the network they are the output gradients
δ of the Gauss-Newton factor (Theory 4.4). Which form a loss has is decided in `output_form`.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import array_api_compat

from spectral_core.arrays.eigen import eigh
from spectral_core.arrays.namespace import Array, at_least, device_of
from spectral_core.errors import InputError
from spectral_core.losses.form import OutputForm
from spectral_core.losses.term_weights import TermWeights, counted_weights, term_weights

__all__ = ["Draws", "Fit", "OutputCurvature", "OutputLoss", "output_curvature"]


class OutputLoss(Protocol):
    """``Σ_i l_i`` of one batch as a function of the outputs, with its derivatives at one point."""

    @property
    def outputs(self) -> Array:
        """The point z, samples along its first axis."""

    @property
    def gradient(self) -> Array:
        """``∂ Σ_i l_i / ∂z``, shaped like z."""

    def products(self, vectors: Array) -> Array:
        """Return the Hessian at z times each of ``(n, *z.shape)``."""

    def at(self, outputs: Array) -> "OutputLoss":
        """Return the same loss at another point."""

    @property
    def probe(self) -> Array:
        """An array like z whose entries have no structure, always the same."""


class Draws(Protocol):
    """Random numbers of a backend."""

    def signs(self, like: Array) -> Array:
        """Return −1 and 1 with equal chances."""

    def normal(self, like: Array) -> Array:
        """Return standard normal numbers."""

    def bernoulli(self, p: Array) -> Array:
        """Return 1 with probability p, else 0, in the dtype of p."""

    def one_hot(self, p: Array) -> Array:
        """Return, along the last axis, 1 for a class drawn with probabilities p and 0 else."""


class Fit(NamedTuple):
    """How well a form describes a loss; numbers that may be traced."""

    misfit: Array
    """Relative error of ``Σ r rᵀ`` against the Hessian, on the probe."""
    least: Array
    """Smallest curvature."""
    largest: Array
    """Largest absolute curvature."""
    slope: Array
    """Largest absolute gradient."""


class OutputCurvature:
    """Root vectors of one batch's loss; each is an array like the outputs.

    A column holds one root vector of every sample: samples must not meet in the network. All of it
    may be traced, an index of a column too.

    Parameters
    ----------
    form : OutputForm
        Of the loss.
    loss : OutputLoss
        At the outputs.
    count : float or array
        The number of terms of the batch; of no matter for `column`, `mixture`, `sampled` and `fit`.
    """

    def __init__(self, form: OutputForm, loss: OutputLoss, count: Any) -> None:
        self._form, self._loss, self._count = form, loss, count
        self.outputs, self.gradient = loss.outputs, loss.gradient
        self._xp = array_api_compat.array_namespace(self.outputs)

    @property
    def n_columns(self) -> int:
        """Number of root vectors of a sample."""
        return self._form.n_columns(self.outputs.shape)

    @property
    def n_terms(self) -> int:
        """Number of terms of a sample."""
        return self._form.n_terms(self.outputs.shape)

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
        return self._like_outputs(_where(self._xp, self._is(index, terms, 1)[:, None], terms))

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
        size, off = _norm(xp, found), _norm(xp, found - expected)
        tiny = float(xp.finfo(found.dtype).smallest_normal)
        return at_least(xp, off - rounding, 0.0) / at_least(xp, size, tiny)


class _Softmax(OutputCurvature):
    """``ω (diag(p) − p pᵀ)`` for each term (Theory 4.4).

    It has one root vector less than classes: the columns of its Cholesky factor, known in closed
    form (Tanabe and Sagae, J. R. Stat. Soc. B 54, 1992).
    """

    def __init__(self, form: OutputForm, loss: OutputLoss, count: Any) -> None:
        super().__init__(form, loss, count)
        self._p = self._in_front(_softmax(self._xp, self.outputs, form.axis))
        self._weights, self._misfit_at_zero = self._weights_at_zero()  # ω, shaped for z

    def column(self, index: Any) -> Array:
        xp, p, classes = self._xp, self._p, self._p.shape[-1]
        rows = xp.reshape(p, (p.shape[0], -1, classes))
        term, c = index // (classes - 1), index % (classes - 1)
        own = _take(xp, rows, term, 1)
        # What classes c, c + 1, … have together: summed from behind, so that nothing cancels.
        tail = xp.flip(xp.cumulative_sum(xp.flip(own, axis=1), axis=1), axis=1)
        here, behind = _take(xp, tail, c, 1), _take(xp, tail, c + 1, 1)
        size = xp.sqrt(_take(xp, own, c, 1) * _ratio(xp, here=here, part=behind))[:, None]
        place = xp.arange(classes, dtype=xp.int32, device=device_of(p))
        below = -_ratio(xp, here=behind[:, None], part=_where(xp, place > c, own))
        column = size * xp.where(place == c, xp.ones_like(below), below)
        chosen = self._is(term, rows, 1)[:, None]
        wide = xp.reshape(_where(xp, chosen, column[:, None, :]), p.shape)
        return xp.sqrt(self._weights) * self._back(wide)

    def mixture(self, draws: Draws) -> Array:
        xp, p = self._xp, self._p
        scaled = xp.sqrt(p) * draws.signs(p)
        rows = scaled - p * xp.sum(scaled, axis=-1, keepdims=True)
        return xp.sqrt(self._weights) * self._back(rows)

    def sampled(self, draws: Draws) -> Array:
        off = self._p - draws.one_hot(self._p)
        return self._xp.sqrt(self._weights) * self._back(off)

    def fit(self) -> Fit:
        xp, probe, eps = self._xp, self._loss.probe, _eps(self._xp, self.outputs)
        # Where every probability is saturated the Hessian is a difference of near equals.
        rounding = 16 * eps * _norm(xp, self._weights * probe)
        expected = self._weights * _softmax_product(xp, self.outputs, probe, self._form.axis)
        off = self._relative(self._product(probe), expected, rounding)
        # What a small regulariser adds shows best where a cross-entropy has no curvature.
        along_ones = self._product(xp.ones_like(probe))
        is_flat = _norm(xp, along_ones) <= 16 * eps * _norm(
            xp, xp.broadcast_to(self._weights, probe.shape)
        )
        is_one = is_flat & (self._misfit_at_zero <= eps**0.5) & xp.any(self._weights > 0)
        return self._fit(xp.where(is_one, off, xp.full_like(off, float("inf"))), self._weights)

    @property
    def sample_weights(self) -> Array:
        return self._xp.sum(self._xp.reshape(self._weights, (self._weights.shape[0], -1)), axis=1)

    @property
    def terms(self) -> Array:
        rows = self._in_front(self._over_root(self.gradient, self._weights))
        return self._xp.reshape(rows, (rows.shape[0], -1, rows.shape[-1]))

    def _weights_at_zero(self) -> tuple[Array, Array]:
        """Return the weight ω of each term, were this a cross-entropy, and how far it is from one.

        It is read off at logits of zero, where no probability is saturated.
        """
        xp, axis, probe = self._xp, self._form.axis, self._loss.probe
        zero = xp.zeros_like(self.outputs)
        found = self._loss.at(zero).products(probe[None, ...])[0, ...]
        expected = _softmax_product(xp, zero, probe, axis)
        squares = xp.sum(expected * expected, axis=axis, keepdims=True)
        weights = xp.sum(found * expected, axis=axis, keepdims=True) / squares
        return at_least(xp, weights, 0.0), self._relative(found, weights * expected)

    def _in_front(self, array: Array) -> Array:
        return self._xp.moveaxis(array, self._form.axis, -1)

    def _back(self, rows: Array) -> Array:
        return self._xp.moveaxis(rows, -1, self._form.axis)

    def _like_outputs(self, terms: Array) -> Array:
        return self._back(self._xp.reshape(terms, self._p.shape))


class _Elementwise(OutputCurvature):
    """A diagonal Hessian: one root vector per element. Targets are drawn from a Gaussian."""

    def __init__(self, form: OutputForm, loss: OutputLoss, count: Any) -> None:
        super().__init__(form, loss, count)
        self._diagonal = self._product(self._xp.ones_like(self.outputs))
        self._root = self._xp.sqrt(at_least(self._xp, self._diagonal, 0.0))

    @cached_property
    def _term_weights(self) -> TermWeights:
        return term_weights(self._xp, self._loss, self.n_terms, self._count, elementwise=True)

    def column(self, index: Any) -> Array:
        root = self._xp.reshape(self._root, (self._root.shape[0], -1))
        return self._like_outputs(_where(self._xp, self._is(index, root, 1), root))

    def mixture(self, draws: Draws) -> Array:
        return self._root * draws.signs(self._root)

    def sampled(self, draws: Draws) -> Array:
        return self._root * draws.normal(self._root)

    def fit(self) -> Fit:
        probe = self._loss.probe
        off = self._relative(self._product(probe), self._diagonal * probe)
        return self._fit(off, self._diagonal)


class _Logistic(_Elementwise):
    """``ω p (1 − p)`` with ``p = 1 / (1 + exp(−z))`` for each element; targets are coins."""

    def sampled(self, draws: Draws) -> Array:
        xp, p = self._xp, _sigmoid(self._xp, self.outputs)
        # The variance of p − ỹ is p (1 − p).
        variance = at_least(xp, p * (1 - p), float(xp.finfo(p.dtype).smallest_normal))
        return self._root / xp.sqrt(variance) * (p - draws.bernoulli(p))

    def fit(self) -> Fit:
        xp, probe = self._xp, self._loss.probe
        elementwise = super().fit()
        # At the probe and at zero, where two losses that agree at the outputs do not.
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
        """ω of each element, read off at zero."""
        return 4 * self._diagonal_at(self._xp.zeros_like(self.outputs))

    def _diagonal_at(self, z: Array) -> Array:
        ones = self._xp.ones_like(z)
        return self._loss.at(z).products(ones[None, ...])[0, ...]


class _Dense(OutputCurvature):
    """Any convex loss of few outputs: a root of each sample's dense block."""

    def __init__(self, form: OutputForm, loss: OutputLoss, count: Any) -> None:
        super().__init__(form, loss, count)
        xp, z = self._xp, self.outputs
        size = self.n_columns
        units = xp.eye(size, dtype=z.dtype, device=device_of(z))
        wide = xp.broadcast_to(units[:, None, :], (size, z.shape[0], size))
        found = loss.products(xp.reshape(wide, (size, *z.shape)))
        blocks = xp.permute_dims(xp.reshape(found, wide.shape), (1, 2, 0))
        self._blocks = (blocks + xp.matrix_transpose(blocks)) / 2
        self._values, vectors = eigh(xp, self._blocks)
        self._roots = vectors * xp.sqrt(at_least(xp, self._values, 0.0))[:, None, :]

    def column(self, index: Any) -> Array:
        return self._like_outputs(_take(self._xp, self._roots, index, 2))

    def mixture(self, draws: Draws) -> Array:
        return self._like_outputs(self._roots @ draws.signs(self._roots[:, 0, :, None]))

    def sampled(self, draws: Draws) -> Array:
        raise InputError(
            "delta 'fisher-mc' draws targets from the model and needs to know its distribution: a "
            "cross-entropy, a squared error or a logistic loss. Choose 'ggn'."
        )

    def fit(self) -> Fit:
        probe = self._loss.probe
        flat = self._xp.reshape(probe, (*self._blocks.shape[:2], 1))
        off = self._relative(self._product(probe), self._like_outputs(self._blocks @ flat))
        return self._fit(off, self._values)


class _Gradient(_Dense):
    """A loss of which only the gradients of terms are wanted, each sample's being one."""

    def __init__(self, form: OutputForm, loss: OutputLoss, count: Any) -> None:
        OutputCurvature.__init__(self, form, loss, count)

    def fit(self) -> Fit:
        return self._fit(self._xp.zeros_like(self._xp.sum(self.gradient)), self.gradient)


def output_curvature(form: OutputForm, loss: OutputLoss, count: Any = 1.0) -> OutputCurvature:
    """Return the root vectors of a batch's loss, were it of a form; may be traced.

    Parameters
    ----------
    form : OutputForm
        Of the loss; whether it has it, `OutputCurvature.fit` says.
    loss : OutputLoss
        At the outputs of the network.
    count : float or array
        The number of terms of the batch, for the gradients of single ones.
    """
    kinds: dict[str, Callable[[OutputForm, OutputLoss, Any], OutputCurvature]] = {
        "softmax": _Softmax,
        "logistic": _Logistic,
        "elementwise": _Elementwise,
        "dense": _Dense,
        "gradient": _Gradient,
    }
    return kinds[form.kind](form, loss, count)


def _softmax(xp: Any, logits: Array, axis: int) -> Array:
    powers = xp.exp(logits - xp.max(logits, axis=axis, keepdims=True))
    return powers / xp.sum(powers, axis=axis, keepdims=True)


def _softmax_product(xp: Any, logits: Array, vector: Array, axis: int) -> Array:
    p = _softmax(xp, logits, axis)
    return p * (vector - xp.sum(p * vector, axis=axis, keepdims=True))


def _sigmoid(xp: Any, z: Array) -> Array:
    small = xp.exp(-xp.abs(z))  # never overflows
    return xp.where(z >= 0, xp.ones_like(z), small) / (1 + small)


def _ratio(xp: Any, *, part: Array, here: Array) -> Array:
    """Return part of what is here, of probabilities, and zero of nothing, whose parts are zero."""
    return part / xp.where(here > 0, here, xp.ones_like(here))


def _where(xp: Any, condition: Array, array: Array) -> Array:
    return xp.where(condition, array, xp.zeros_like(array))


def _take(xp: Any, array: Array, index: Any, axis: int) -> Array:
    """Return one slice along an axis; the index may be traced."""
    place = xp.reshape(xp.asarray(index, dtype=xp.int32, device=device_of(array)), (1,))
    return xp.squeeze(xp.take(array, place, axis=axis), axis=axis)


def _norm(xp: Any, array: Array) -> Array:
    return xp.linalg.vector_norm(array)


def _eps(xp: Any, array: Array) -> float:
    return float(xp.finfo(array.dtype).eps)
