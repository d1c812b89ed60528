"""A loss as a function of the network's outputs, for the core; and random numbers for it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.jaxprs.compilation import compile_exactly
from spectral_backends.jax.jaxprs.scattered import scattered
from spectral_core.losses.base import OutputCurvature
from spectral_core.losses.form import OutputForm, output_curvature
from spectral_core.losses.protocols import Fit
from spectral_core.losses.recognition import find_form

__all__ = ["JaxDraws", "find_loss_form", "loss_curvature"]

Array = jax.Array
LossOf = Callable[[Any], Any]


class _OutputLoss:
    """Implements `spectral_core.losses.protocols.OutputLoss` by automatic differentiation."""

    def __init__(self, outputs: Array, loss_of: LossOf) -> None:
        self.outputs, self._slope = outputs, jax.grad(loss_of)
        self._loss_of = loss_of
        self.gradient: Array = self._slope(outputs)

    def at(self, outputs: Array) -> "_OutputLoss":
        """Return the same loss at another point."""
        return _OutputLoss(outputs, self._loss_of)

    def products(self, vectors: Array) -> Array:
        """Return the Hessian at z times each of ``(n, *z.shape)``."""

        def product(vector: Array) -> Array:
            found: Array = jax.jvp(self._slope, (self.outputs,), (vector,))[1]
            return found

        return jax.vmap(product)(vectors)

    @property
    def probe(self) -> Array:
        """Return an array like z whose entries have no structure, always the same."""
        return scattered(self.outputs.shape, self.outputs.dtype, 0)


class JaxDraws:
    """Implements `spectral_core.losses.protocols.Draws` with a key, for one draw."""

    def __init__(self, key: Any) -> None:
        self._key = key

    def signs(self, like: Array) -> Array:
        """Return −1 and 1 with equal chances."""
        return jax.random.rademacher(self._key, like.shape, like.dtype)

    def normal(self, like: Array) -> Array:
        """Return standard normal numbers."""
        return jax.random.normal(self._key, like.shape, like.dtype)

    def bernoulli(self, p: Array) -> Array:
        """Return 1 with probability p, else 0."""
        return jax.random.bernoulli(self._key, p).astype(p.dtype)

    def one_hot(self, p: Array) -> Array:
        """Return, along the last axis, 1 for a class drawn with probabilities p and 0 else."""
        drawn = jax.random.categorical(self._key, jnp.log(p), axis=-1)
        return jax.nn.one_hot(drawn, p.shape[-1], dtype=p.dtype)


def loss_curvature(
    form: OutputForm, outputs: Array, loss_of: LossOf, count: Any = 1.0
) -> OutputCurvature:
    """Return the curvature of a loss of a form at the outputs; may be traced.

    Parameters
    ----------
    form : OutputForm
        The form of the loss's second derivative.
    outputs : array
        The outputs z, with samples along the first axis.
    loss_of : callable
        The sum of the terms, of an array like z.
    count : float or array
        The number of terms, for the gradients of single terms.
    """
    return output_curvature(form, _OutputLoss(outputs, loss_of), count)


def find_loss_form(outputs: Array, loss_of: LossOf, most: int, *, convex: bool) -> OutputForm:
    """Find the form of ``loss_of``, the sum of the terms, at the outputs of one batch.

    `most`, `convex` and what is raised are as in `find_form` of the core.
    """

    def fits(forms: Sequence[OutputForm]) -> list[Fit]:
        # All forms are compiled together, as compiling takes longer than running.
        def run(z: Array) -> list[Fit]:
            return [loss_curvature(form, z, loss_of).fit() for form in forms]

        found: list[Fit] = jax.device_get(compile_exactly(run)(outputs))
        return found

    eps = float(np.finfo(outputs.dtype).eps)
    return find_form(outputs.shape, eps, fits, most, convex=convex)
