"""Dense double-precision Hessians of the small networks, and problems that all tests share."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
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


def quadratic_forms(name, layer, u, v, kind):
    """Return what the dense matrix says, and the size of its entries."""
    case, _, hessian, ggn = dense(name)
    d = flat_directions(case, layer, u, v)
    matrix = hessian if kind == "hessian" else ggn
    return np.einsum("kp,pq,kq->k", d, matrix, d), np.abs(matrix).max()
