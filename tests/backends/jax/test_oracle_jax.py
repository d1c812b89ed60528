"""Gradients and curvatures against dense double-precision Hessians of small networks."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax_networks import CASES, Case

from spectral_backends.jax import CurvatureProblem


@cache
def dense(name: str) -> tuple[Case, np.ndarray, np.ndarray, np.ndarray]:
    """Return the case, gradient, Hessian and Gauss-Newton matrix in all parameters."""
    case = CASES[name]()
    flat, unravel = ravel_pytree(case.params)
    *inputs, targets = case.joined()

    def total(theta):
        return case.total(unravel(theta))

    def outputs(theta):
        return case.forward(unravel(theta), *inputs).ravel()

    def of_outputs(z):
        return case.loss(z.reshape(shape), targets)

    shape = jax.eval_shape(lambda: case.forward(case.params, *inputs)).shape
    jacobian = jax.jit(jax.jacrev(outputs))(flat)
    inner = jax.jit(jax.hessian(of_outputs))(outputs(flat))
    gradient = jax.jit(jax.grad(total))(flat)
    hessian = jax.jit(jax.hessian(total))(flat)
    return case, *map(np.asarray, (gradient, hessian, jacobian.T @ inner @ jacobian))


@cache
def problem(name: str) -> CurvatureProblem:
    case = dense(name)[0]
    return CurvatureProblem((case.forward, case.loss), case.params, case.batches)


def directions(shape, count=3, seed=0):
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(shape[0], count)), rng.normal(size=(shape[1], count))
    return u / np.linalg.norm(u, axis=0), v / np.linalg.norm(v, axis=0)


def flat_directions(case, layer, u, v):
    rows = [
        ravel_pytree(case.direction(layer, jnp.outer(u[:, k], v[:, k])))[0]
        for k in range(u.shape[1])
    ]
    return np.stack([np.asarray(row) for row in rows])


PAIRS = [(name, layer) for name in CASES for layer in CASES[name]().layers]


@pytest.mark.parametrize("name", CASES)
def test_layers_are_those_told_by_hand(name):
    case, made = dense(name)[0], problem(name)
    found = {layer.name: (layer.kind, layer.shape) for layer in made.layers()}
    assert found == {layer: told[:2] for layer, told in case.layers.items()}
    assert tuple(sorted(made.skipped())) == tuple(sorted(case.skipped))


@pytest.mark.parametrize(("name", "layer"), PAIRS)
def test_gradients_are_those_of_the_whole_data(name, layer):
    case, gradient, _, _ = dense(name)
    found = np.asarray(problem(name).gradients([layer])[layer])
    m, n = case.layers[layer][1]
    assert found.shape == (m, n)
    expected = np.empty((m, n))
    for i in range(m):
        for j in range(n):
            unit = jnp.zeros((m, n)).at[i, j].set(1)
            expected[i, j] = gradient @ np.asarray(ravel_pytree(case.direction(layer, unit))[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * max(1, abs(gradient).max()))


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize(("name", "layer"), PAIRS)
def test_curvatures_are_quadratic_forms_of_dense_matrices(name, layer, kind):
    case, _, hessian, ggn = dense(name)
    u, v = directions(case.layers[layer][1])
    d = flat_directions(case, layer, u, v)
    matrix = hessian if kind == "hessian" else ggn
    expected = np.einsum("kp,pq,kq->k", d, matrix, d)
    found = np.asarray(problem(name).curvatures(layer, u, v, kind))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * abs(matrix).max())
