"""Gradients and curvatures against dense double-precision Hessians of small networks."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax_networks import CASES
from jax_oracle import dense, directions, problem, quadratic_forms

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
    case = dense(name)[0]
    u, v = directions(case.layers[layer][1])
    expected, size = quadratic_forms(name, layer, u, v, kind)
    found = np.asarray(problem(name).curvatures(layer, u, v, kind))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * size)
