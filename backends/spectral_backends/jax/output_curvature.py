"""The curvature of a loss in the network's outputs, and vectors whose outer products make it.

The Hessian of ``Σ_i l_i`` in the outputs z falls into one block per sample, and each block into a
sum of outer products of *root vectors*. Sent back through the network they are the output gradients
δ of the Gauss-Newton factor (Theory 4.4). Three forms are recognised by what the Hessian does, not
by the name of the loss: softmax cross-entropy of any make (classes, probabilities, masked targets,
label smoothing, class weights), losses of single elements (squared error, logistic), and any convex
loss of few outputs. Which it is is decided on one batch, and each batch says whether it fits.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.scattered import scattered
from spectral_core.errors import InputError

__all__ = ["Form", "Root", "find_form", "make_root"]

TOLERANCE = 1e-8
"""Relative error below which a form fits in double precision; in single precision 100 eps."""

Array = jax.Array
LossOf = Callable[[Any], Any]


@dataclass(frozen=True)
class Form:
    """What a loss is as a function of the outputs.

    Parameters
    ----------
    kind : {"softmax", "elementwise", "general", "gradient"}
        ``"gradient"`` has no root, only the gradients of terms.
    axis : int
        Of the classes.
    logistic : bool
        Whether a loss of single elements is the logistic one, which says how to draw its targets.
    """

    kind: Literal["softmax", "elementwise", "general", "gradient"]
    axis: int = -1
    logistic: bool = False


class Root:
    """Root vectors of one batch's loss; each is an array like the outputs.

    A column holds one root vector of every sample: samples must not meet in the network.

    Parameters
    ----------
    outputs : array
        z, samples along its first axis.
    loss_of : callable
        The sum of the terms, of an array like z.
    """

    def __init__(self, outputs: Array, loss_of: LossOf) -> None:
        self.outputs, self._loss_of = outputs, loss_of
        self.gradient: Array = jax.grad(loss_of)(outputs)

    @property
    @abstractmethod
    def n_columns(self) -> int:
        """Number of root vectors of a sample."""

    @abstractmethod
    def column(self, index: Any) -> Array:
        """Return one of the columns: over all of them ``Σ r rᵀ`` is each sample's Hessian."""

    @abstractmethod
    def mixture(self, key: Any) -> Array:
        """Return the sum of all root vectors of all samples, each with a random sign."""

    @abstractmethod
    def sampled(self, key: Any) -> Array:
        """Return the gradient of the terms with targets drawn from the model."""

    @property
    @abstractmethod
    def misfit(self) -> Array:
        """Return the relative error of ``Σ r rᵀ`` against the Hessian, on a random vector."""

    @property
    def sample_weights(self) -> Array:
        """Number of terms of each sample, up to a common factor, shape ``(B,)``."""
        return jnp.ones(len(self.outputs), self.outputs.dtype)

    @property
    def terms(self) -> Array:
        """Gradients of single terms, shape ``(B, terms, outputs of a term)``."""
        width = self.gradient.shape[-1] if self.gradient.ndim > 1 else 1
        return self.gradient.reshape(len(self.gradient), -1, width)

    def term_column(self, index: Any) -> Array:
        """Return the gradients of single terms, one of every sample."""
        chosen = jnp.arange(self.terms.shape[1]) == index
        return self._like_outputs(jnp.where(chosen[:, None], self.terms, 0))

    def term_mixture(self, key: Any) -> Array:
        """Return the sum of the gradients of all terms, each with a random sign."""
        return self._like_outputs(self.terms * _signs(key, self.terms[..., :1]))

    def _like_outputs(self, terms: Array) -> Array:
        return terms.reshape(self.outputs.shape)

    def _relative(self, found: Array, expected: Array, rounding: Any = 0.0) -> Array:
        size = jnp.linalg.norm(found.ravel())
        off = jnp.linalg.norm((found - expected).ravel())
        return jnp.maximum(off - rounding, 0) / jnp.maximum(size, np.finfo(size.dtype).tiny)


class _Softmax(Root):
    """``ω (diag(p) − p pᵀ)`` for each term (Theory 4.4).

    It has one root vector less than classes: the columns of its Cholesky factor, known in closed
    form (Tanabe and Sagae, J. R. Stat. Soc. B 54, 1992).
    """

    def __init__(self, outputs: Array, loss_of: LossOf, axis: int) -> None:
        super().__init__(outputs, loss_of)
        self._axis = axis
        self._logits = jnp.moveaxis(outputs, axis, -1)
        self._p = jax.nn.softmax(self._logits, -1)
        self._weights = jnp.moveaxis(_softmax_weights(outputs, loss_of, axis)[0], axis, -1)

    @property
    def n_columns(self) -> int:
        return prod(self._p.shape[1:-1]) * (self._p.shape[-1] - 1)

    @property
    def sample_weights(self) -> Array:
        return self._weights.reshape(len(self._weights), -1).sum(1)

    def column(self, index: Any) -> Array:
        classes = self._p.shape[-1]
        p = self._p.reshape(len(self._p), -1, classes)
        term, c = index // (classes - 1), index % (classes - 1)
        own = jnp.take(p, term, axis=1)
        # What classes c, c + 1, … have together: summed from behind, so that nothing cancels.
        tail = jnp.cumsum(own[:, ::-1], axis=1)[:, ::-1]
        here, behind = jnp.take(tail, c, axis=1), jnp.take(tail, c + 1, axis=1)
        size = jnp.sqrt(jnp.take(own, c, axis=1) * _ratio(behind, here))[:, None]
        place = jnp.arange(classes)
        below = jnp.where(place > c, -_ratio(own, behind[:, None]), 0)
        column = size * jnp.where(place == c, 1, below)
        chosen = (jnp.arange(p.shape[1]) == term)[:, None]
        wide = jnp.where(chosen, column[:, None, :], 0).reshape(self._p.shape)
        return self._back(jnp.sqrt(self._weights) * wide)

    def mixture(self, key: Any) -> Array:
        scaled = jnp.sqrt(self._p) * _signs(key, self._p)
        rows = scaled - self._p * scaled.sum(-1, keepdims=True)
        return self._back(jnp.sqrt(self._weights) * rows)

    def sampled(self, key: Any) -> Array:
        drawn = jax.random.categorical(key, jnp.log(self._p), axis=-1)
        labels = jax.nn.one_hot(drawn, self._p.shape[-1], dtype=self._p.dtype)
        return self._back(jnp.sqrt(self._weights) * (self._p - labels))

    @property
    def misfit(self) -> Array:
        z, test = self.outputs, _test_vector(self.outputs)
        weights = self._back(self._weights)
        expected = weights * _softmax_product(z, test, self._axis)
        # Where every probability is saturated the Hessian is a difference of near equals.
        eps = np.finfo(z.dtype).eps
        rounding = 16 * eps * jnp.linalg.norm((weights * test).ravel())
        ones = jnp.linalg.norm(_product(self._loss_of, z, jnp.ones_like(z)).ravel())
        # What a small regulariser adds shows best where a cross-entropy has no curvature.
        flat = ones <= 16 * eps * jnp.linalg.norm(jnp.broadcast_to(weights, z.shape).ravel())
        off = self._relative(_product(self._loss_of, z, test), expected, rounding)
        bad = _softmax_weights(z, self._loss_of, self._axis)[1]
        return jnp.where(flat & (bad <= eps**0.5) & jnp.any(weights > 0), off, jnp.inf)

    @property
    def terms(self) -> Array:
        # A term of weight ω enters Σ_i l_i ω times: its outer product ω times, not ω².
        root = jax.lax.rsqrt(jnp.where(self._weights > 0, self._weights, 1))
        rows = jnp.moveaxis(self.gradient, self._axis, -1) * root
        return rows.reshape(len(rows), -1, rows.shape[-1])

    def _back(self, rows: Array) -> Array:
        return jnp.moveaxis(rows, -1, self._axis)

    def _like_outputs(self, terms: Array) -> Array:
        return self._back(terms.reshape(self._logits.shape))


class _Elementwise(Root):
    """A diagonal Hessian: one root vector per element."""

    def __init__(self, outputs: Array, loss_of: LossOf, logistic: bool) -> None:
        super().__init__(outputs, loss_of)
        self._logistic = logistic
        self.diagonal = _product(loss_of, outputs, jnp.ones_like(outputs))
        self._root = jnp.sqrt(jnp.maximum(self.diagonal, 0))

    @property
    def n_columns(self) -> int:
        return prod(self.outputs.shape[1:])

    def column(self, index: Any) -> Array:
        chosen = (jnp.arange(self.n_columns) == index).reshape(self.outputs.shape[1:])
        return jnp.where(chosen, self._root, 0)

    def mixture(self, key: Any) -> Array:
        return self._root * _signs(key, self._root)

    def sampled(self, key: Any) -> Array:
        z = self.outputs
        if not self._logistic:
            return self._root * jax.random.normal(key, z.shape, z.dtype)
        # Bernoulli targets: the variance of σ(z) − ỹ is σ(z)(1 − σ(z))
        p = jax.nn.sigmoid(z)
        variance = jnp.maximum(p * (1 - p), np.finfo(z.dtype).tiny)
        drawn = jax.random.bernoulli(key, p).astype(z.dtype)
        return self._root / jnp.sqrt(variance) * (p - drawn)

    @property
    def misfit(self) -> Array:
        test = _test_vector(self.outputs)
        found = _product(self._loss_of, self.outputs, test)
        return self._relative(found, self.diagonal * test)


class _General(Root):
    """Any convex loss of few outputs: a root of each sample's dense block."""

    def __init__(self, outputs: Array, loss_of: LossOf) -> None:
        super().__init__(outputs, loss_of)
        count, size = len(outputs), prod(outputs.shape[1:])

        def row(unit: Array) -> Array:
            wide = jnp.broadcast_to(unit, (count, size)).reshape(outputs.shape)
            return _product(loss_of, outputs, wide).reshape(count, size)

        found = jax.vmap(row, out_axes=2)(jnp.eye(size, dtype=outputs.dtype))
        self._blocks = (found + jnp.swapaxes(found, 1, 2)) / 2
        self.values, vectors = jnp.linalg.eigh(self._blocks)
        self._roots: Array = vectors * jnp.sqrt(jnp.maximum(self.values, 0))[:, None, :]

    @property
    def n_columns(self) -> int:
        return prod(self.outputs.shape[1:])

    def column(self, index: Any) -> Array:
        return jnp.take(self._roots, index, axis=2).reshape(self.outputs.shape)

    def mixture(self, key: Any) -> Array:
        rows: Array = self._roots @ _signs(key, self._roots[:, 0, :, None])
        return rows.reshape(self.outputs.shape)

    def sampled(self, key: Any) -> Array:
        raise InputError(
            "delta 'fisher-mc' draws targets from the model and needs to know its distribution: a "
            "cross-entropy, a squared error or a logistic loss. Choose 'ggn'."
        )

    @property
    def misfit(self) -> Array:
        test = _test_vector(self.outputs)
        expected = self._blocks @ test.reshape(*self._blocks.shape[:2], 1)
        found = _product(self._loss_of, self.outputs, test)
        return self._relative(found, expected.reshape(test.shape))

    @property
    def terms(self) -> Array:
        return self.gradient.reshape(len(self.gradient), 1, -1)


class _Gradient(_General):
    """A loss of which only the gradients of terms are wanted, each sample's being one."""

    def __init__(self, outputs: Array, loss_of: LossOf) -> None:
        Root.__init__(self, outputs, loss_of)

    @property
    def misfit(self) -> Array:
        return jnp.zeros(())


def make_root(form: Form, outputs: Array, loss_of: LossOf) -> Root:
    """Return the root vectors of a batch; may be traced."""
    if form.kind == "softmax":
        return _Softmax(outputs, loss_of, form.axis)
    if form.kind == "elementwise":
        return _Elementwise(outputs, loss_of, form.logistic)
    return (_General if form.kind == "general" else _Gradient)(outputs, loss_of)


def find_form(outputs: Array, loss_of: LossOf, most: int, *, convex: bool) -> Form:
    """Find the form of the Hessian of ``loss_of`` at the outputs of one batch.

    Parameters
    ----------
    outputs : array
        z, with values.
    loss_of : callable
        The sum of the terms.
    most : int
        Largest number of outputs of a sample for which a dense block is made.
    convex : bool
        Whether the roots will be used, and not only the gradients of terms.

    Raises
    ------
    InputError
        If the loss is linear in z, is not convex in z, compares samples, or has no form known.
    """
    eps = float(np.finfo(outputs.dtype).eps)
    tolerance = max(100 * eps, TOLERANCE)
    axes = [a for a in dict.fromkeys((outputs.ndim - 1, 1)) if 0 < a < outputs.ndim]
    forms = [Form("softmax", axis) for axis in axes if outputs.shape[axis] > 1]

    def look(z: Array) -> Any:
        diagonal = _Elementwise(z, loss_of, False)
        p = jax.nn.sigmoid(z)
        at_zero = _Elementwise(jnp.zeros_like(z), loss_of, False).diagonal
        logistic = jnp.abs(4 * at_zero * p * (1 - p) - diagonal.diagonal).max()
        return (
            [make_root(form, z, loss_of).misfit for form in forms],
            diagonal.misfit, logistic, diagonal.diagonal.min(), jnp.abs(diagonal.diagonal).max(),
            jnp.abs(diagonal.gradient).max(),
        )  # fmt: skip

    softmax, off, logistic, least, largest, slope = jax.jit(look)(outputs)
    for form, misfit in zip(forms, softmax, strict=True):
        if float(misfit) <= tolerance:
            return form
    if float(off) <= tolerance:
        if convex:
            _check_not_linear(float(largest), float(slope))
            _check_convex(float(least), float(largest), eps)
        return Form("elementwise", logistic=float(logistic) <= 1e3 * eps * float(largest))
    if not convex:
        return Form("gradient")
    size = prod(outputs.shape[1:])
    if size > most:
        raise InputError(
            f"loss: its Hessian in the {size} outputs of a sample has no form that is known and "
            f"more than {most} are too many to make it dense; raise max_columns, or use a "
            "cross-entropy or a loss of single elements."
        )

    def dense(z: Array) -> Any:
        root = _General(z, loss_of)
        return root.misfit, root.values.min(), jnp.abs(root.values).max()

    misfit, least, largest = map(float, jax.jit(dense)(outputs))
    if not misfit <= eps**0.5:
        raise InputError(
            "loss: it compares the samples of a batch with each other, so it is no mean over "
            "independent terms and has no Kronecker factors; or the outputs have no axis of "
            "samples in front."
        )
    _check_convex(least, largest, eps)
    return Form("general")


def _product(loss_of: LossOf, z: Array, vector: Array) -> Array:
    """Return the Hessian of the loss at z times a vector."""
    product: Array = jax.jvp(jax.grad(loss_of), (z,), (vector,))[1]
    return product


def _test_vector(z: Array) -> Array:
    return scattered(z.shape, z.dtype, 0)


def _softmax_weights(z: Array, loss_of: LossOf, axis: int) -> tuple[Array, Array]:
    """Return the weight ω of each term, were this a cross-entropy, and how far it is from one.

    It is read off at logits of zero, where no probability is saturated.
    """
    test, zero = _test_vector(z), jnp.zeros_like(z)
    found = _product(loss_of, zero, test)
    expected = _softmax_product(zero, test, axis)
    squares = (expected * expected).sum(axis, keepdims=True)
    weights = (found * expected).sum(axis, keepdims=True) / squares
    size = jnp.linalg.norm(found.ravel())
    off = jnp.linalg.norm((found - weights * expected).ravel())
    return jnp.maximum(weights, 0), off / jnp.maximum(size, np.finfo(z.dtype).tiny)


def _softmax_product(logits: Array, vector: Array, axis: int) -> Array:
    p = jax.nn.softmax(logits, axis)
    return p * (vector - (p * vector).sum(axis, keepdims=True))


def _signs(key: Any, like: Array) -> Array:
    return jax.random.rademacher(key, like.shape, like.dtype)


def _ratio(part: Array, whole: Array) -> Array:
    """Return part / whole of probabilities, and zero of nothing."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _check_not_linear(largest: float, slope: float) -> None:
    if largest == 0 and slope > 0:
        raise InputError(
            "loss: it is linear in the outputs, as a negative log-likelihood of log-probabilities "
            "is, so its Gauss-Newton curvature there is zero; return logits and use a loss of "
            "logits, such as a softmax cross-entropy."
        )


def _check_convex(smallest: float, largest: float, eps: float) -> None:
    if smallest < -(eps**0.5) * largest:
        raise InputError(
            f"loss: it is not convex in the outputs (curvature {smallest:.3g}), so its "
            "Gauss-Newton part is no sum of outer products; choose delta='empirical'."
        )
