"""The size of the second-order part on random directions, differentiated without shortcuts."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.jaxprs.inner_product import inner_product
from spectral_backends.jax.jaxprs.scattered import scattered
from spectral_backends.jax.jaxprs.second_derivative import second_derivative
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.objective.compiled import Batch
from spectral_backends.jax.objective.objective import Objective

__all__ = ["N_DIRECTIONS", "probe_second_order"]

N_DIRECTIONS = 2
"""The number of random directions of each layer."""

N_SAMPLES = 2
"""The number of samples of the first batch, if it can be cut."""


def probe_second_order(objective: Objective, names: Sequence[str]) -> dict[str, float]:
    """Return ``max |h − h^GGN| / |h^GGN|`` over random directions of each layer.

    Samples that are fitted to rounding have neither, and would show nothing. So the ratio is also
    taken with ``½ |z|²`` and a cotangent without structure in place of the loss, and the larger one
    counts.

    The directions of all layers are one linear function of as many numbers, so that one compiled
    function serves for all of them.
    """
    batch = objective.few_samples(N_SAMPLES)
    layers = [batch.program.layers[name] for name in names]
    run = objective.cache.compiled(batch, ("probe", *names), lambda: _shares(batch, layers))
    rng = np.random.default_rng(objective.seed)
    found = []
    for _ in range(N_DIRECTIONS):
        directions = [[_unit(rng, size) for size in layer.info.shape] for layer in layers]
        found.append(np.asarray(run(batch.values, batch.leaves, directions)))
    return dict(zip(names, np.max(found, axis=0).tolist(), strict=True))


def _shares(batch: Batch, layers: Sequence[Layer]) -> Callable[..., Any]:
    program = batch.program

    def run(values: Any, leaves: Any, directions: Any) -> Any:
        moves = [
            layer.family.view.embed(jnp.outer(u, v).astype(values[0].dtype), layer.starts)
            for layer, (u, v) in zip(layers, directions, strict=True)
        ]

        def outputs(steps: Any) -> Any:
            moved = list(values)
            for step, layer, move in zip(steps, layers, moves, strict=True):
                moved[layer.parameter] = moved[layer.parameter] + step * move
            return program.outputs(moved, leaves)[0]

        def share(steps: Any) -> Any:
            at = jnp.zeros_like(steps)
            z, tangent = jax.jvp(outputs, (at,), (steps,))
            second = second_derivative(outputs, at, steps)
            slope = jax.grad(lambda y: program.loss_of([y], leaves))(z)
            ggn = second_derivative(lambda y: program.loss_of([y], leaves), z, tangent)
            bare = jnp.abs(inner_product(scattered(z.shape, z.dtype, 0), second))
            own = jnp.abs(inner_product(slope, second))
            return jnp.maximum(
                _share(own, jnp.abs(ggn)), _share(bare, inner_product(tangent, tangent))
            )

        return jax.lax.map(share, jnp.eye(len(layers), dtype=values[0].dtype))

    return run


def _share(part: Any, whole: Any) -> Any:
    return jnp.where(part == 0, 0, part / whole)


def _unit(rng: np.random.Generator, size: int) -> Any:
    vector = rng.normal(size=size)
    return vector / np.linalg.norm(vector)
