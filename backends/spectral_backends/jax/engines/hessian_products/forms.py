"""Exact second derivatives of one batch's loss along rank-one directions of one matrix.

``h = d²/dt² L(W + t D)`` is taken forward over forward: a tangent of the tangent. Measured once on
a shared core (20 directions under ``vmap``, float32; `bench_curvature_jax` repeats a part), forward
over forward took 0.2-0.4 of the time of forward over reverse (``jvp`` of ``grad``) in convolutions,
whose weight gradients become grouped convolutions there, and 0.5-2.2 of it in attention and
perceptrons. ``jax.experimental.jet`` of order 2 took 0.9-1.6 times as long as forward over forward
in these two, and failed in the convolutional network. Reverse over reverse remains for functions
with a ``custom_vjp``, which JAX cannot push forward, not even in a forward rule that calls itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spectral_backends.jax.jaxprs.chunks import in_chunks
from spectral_backends.jax.jaxprs.inner_product import inner_product
from spectral_backends.jax.jaxprs.second_derivative import Scalar, second_derivative
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.objective.program import Program
from spectral_core.curvature.problem import CurvatureKind

__all__ = ["curvatures_along"]


def curvatures_along(
    program: Program, layer: Layer, kind: CurvatureKind, chunk: int, *, reverse: bool
) -> Callable[..., Any]:
    """Return a function that evaluates the quadratic form of one batch.

    Parameters
    ----------
    program : Program
        The program for batches of one shape.
    layer : Layer
        Any member of a family. The member is an argument of the function.
    kind : {"hessian", "ggn"}
        The second derivative of the loss, or its Gauss-Newton part ``<J D, ∂²loss/∂y² [J D]>``.
    chunk : int
        The number of directions that go together.
    reverse : bool
        Whether to differentiate backwards.

    Returns
    -------
    callable
        ``(parameters, batch, starts, u, v)`` with u ``(m, K)`` and v ``(n, K)`` returns the values
        ``(K,)`` of the batch's loss.
    """
    parameter, view = layer.parameter, layer.family.view

    def run(values: Sequence[Any], batch: Sequence[Any], starts: Any, u: Any, v: Any) -> Any:
        def with_weight(w: Any) -> list[Any]:
            return [*values[:parameter], w, *values[parameter + 1 :]]

        def loss(w: Any) -> Any:
            return program.total(with_weight(w), batch)

        def outputs(w: Any) -> Any:
            return program.outputs(with_weight(w), batch)

        weight = values[parameter]
        hessian = _hessian_reversed(loss, weight) if reverse else _hessian(loss, weight)
        if kind == "ggn":
            push = _push_reversed(outputs, weight) if reverse else _push(outputs, weight)
            z = outputs(weight)
            form = _gauss_newton(lambda y: program.loss_of(y, batch), z, push, reverse=reverse)
        else:
            form = hessian

        def along(pair: tuple[Any, Any]) -> Any:
            return form(view.embed(jnp.outer(*pair), starts))

        return in_chunks(along, (u.T, v.T), chunk)

    return run


def _hessian(loss: Scalar, weight: Any) -> Scalar:
    return lambda direction: second_derivative(loss, weight, direction)


def _hessian_reversed(loss: Scalar, weight: Any) -> Scalar:
    """Return the form by two derivatives backwards, for which every rule serves."""
    _, back = jax.vjp(jax.grad(loss), weight)
    return lambda direction: inner_product(direction, back(direction)[0])


def _push(outputs: Scalar, weight: Any) -> Scalar:
    return lambda direction: jax.jvp(outputs, (weight,), (direction,))[1]


def _push_reversed(outputs: Scalar, weight: Any) -> Scalar:
    """Return J by two derivatives backwards: that of ``z ↦ Jᵀ z``, which is linear in z."""
    z, back = jax.vjp(outputs, weight)
    zeros = jax.tree_util.tree_map(jnp.zeros_like, z)
    _, forth = jax.vjp(lambda cotangent: back(cotangent)[0], zeros)
    return lambda direction: forth(direction)[0]


def _gauss_newton(loss_of: Scalar, z: Any, push: Scalar, *, reverse: bool) -> Scalar:
    if not reverse:
        return lambda direction: second_derivative(loss_of, z, push(direction))
    _, back = jax.vjp(jax.grad(loss_of), z)

    def form(direction: Any) -> Any:
        tangent = push(direction)
        products = jax.tree_util.tree_map(inner_product, tangent, back(tangent)[0])
        return sum(jax.tree_util.tree_leaves(products))

    return form
