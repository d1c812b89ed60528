"""The rounding of a gradient, from the same gradient in a wider type."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.devices.batches import common_length, signature
from spectral_backends.jax.jaxprs.compilation import exact_products
from spectral_backends.jax.objective.compiled import Batch
from spectral_backends.jax.objective.narrowing import draws_numbers
from spectral_backends.jax.objective.objective import Objective
from spectral_backends.jax.objective.program import trace
from spectral_core.losses.terms import LossTerms

__all__ = ["gradient_errors"]

MOST = 256
"""The most samples of the first batch, if a part will do: no other shape is compiled for."""


def gradient_errors(objective: Objective, *, part: bool) -> list[jax.Array] | None:
    """Return about how far the gradient in each parameter is from the exact one.

    It is compared with the gradient of the same values in float64, also where that is not enabled.
    Rounding in float64 itself is that of float32, scaled by the spacing of their numbers, unless
    the functions cast to float32 inside.

    Parameters
    ----------
    objective : Objective
        The mean loss, in the type that is looked at.
    part : bool
        Whether to take at most `MOST` samples, of the first batch.

    Returns
    -------
    list of jax.Array, or None
        The differences in the objective's type. None where the functions cannot be run in the
        other type, on several devices, or where they draw random numbers, which would be others.
    """
    own = objective.parameters.dtype
    if objective.placement is not None or draws_numbers(objective.first().program):
        return None
    other = jnp.dtype("float32" if own == jnp.dtype("float64") else "float64")
    share = min(1.0, objective.eps / float(np.finfo(other).eps))
    differences: list[Any] = []
    count = 0.0
    for batch, terms in [_few(objective)] if part else objective.weighted():
        here = objective.gradient(batch, terms.scale)
        try:
            with jax.enable_x64(True), exact_products():
                there = _in_type(objective, batch, other)
        except Exception:  # the functions or the device do not mix types, or memory is short
            return None
        found = [_wide(a) - terms.scale * _wide(b) for a, b in zip(here, there, strict=True)]
        differences = (
            [a + b for a, b in zip(differences, found, strict=True)] if differences else found
        )
        count += terms.count
    return [jnp.asarray(share * each / count, own) for each in differences]


def _few(objective: Objective) -> tuple[Batch, LossTerms]:
    """Return the first batch with terms, or the first samples of a long one."""
    whole, terms = next(objective.weighted())
    batch = objective.few_samples(MOST)
    length, left = common_length(whole.leaves), common_length(batch.leaves)
    share = left / length if length and left else 1.0
    return batch, LossTerms(share * terms.count, terms.reduction)


def _in_type(objective: Objective, batch: Batch, dtype: Any) -> list[Any]:
    """Return the gradient of a batch's loss with all floating arrays in another type."""
    leaves = [_cast(leaf, dtype) for leaf in batch.leaves]
    parameters = objective.parameters.in_type(dtype)

    def make() -> Any:
        program = trace(objective.loss_fn, parameters, leaves, batch.key[0])
        return jax.jit(jax.grad(program.total))

    run = objective.cache.once(("in type", signature(leaves, batch.key[0])), make)
    return list(run(parameters.values, leaves))


def _cast(leaf: jax.Array, dtype: Any) -> jax.Array:
    is_floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.asarray(np.asarray(leaf), dtype) if is_floating else leaf


def _wide(array: jax.Array) -> Any:
    return np.asarray(array, np.float64)
