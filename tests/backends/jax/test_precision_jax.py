"""Float32 is multiplied in float32, though JAX has fewer bits for it on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax import CurvatureProblem
from spectral_backends.jax.jaxprs.compilation import compile_exactly


def test_the_users_products_are_traced_as_exact_ones():
    found = []

    def loss(params, batch):
        found.append(jax.config.jax_default_matmul_precision)
        x, y = batch
        return ((x @ params["w"] @ params["v"] - y) ** 2).mean()

    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=(3, 3))) for name in "wv"}
    batch = tuple(jnp.asarray(rng.normal(size=(5, 3))) for _ in range(2))
    problem = CurvatureProblem(loss, params, [batch])
    gradients = problem.gradients([layer.name for layer in problem.layers()])
    for name, gradient in gradients.items():
        u, _, vh = np.linalg.svd(gradient)
        problem.curvatures(name, jnp.asarray(u[:, :2]), jnp.asarray(vh.T[:, :2]))
    assert set(found) == {"highest"}
    assert jax.config.jax_default_matmul_precision is None


def test_compiled_products_are_exact_unless_they_say_otherwise():
    def run(a):
        return a @ a, jnp.dot(a, a, precision="default")

    ones = jnp.ones((3, 3))
    compiled = compile_exactly(run)
    text = jax.jit(lambda a: compiled(a)).lower(ones).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in text and "precision = [DEFAULT, DEFAULT]" in text
    assert "HIGHEST" not in jax.jit(run).lower(ones).as_text()
    np.testing.assert_array_equal(compiled(ones)[0], 3 * ones)
