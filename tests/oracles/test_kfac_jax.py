"""Curvatures and Kronecker factors against kfac-jax, where it runs: `nox -s oracles`.

Its factors of a convolution are means over samples and positions, and their product is scaled by
the number of positions; here the input factor is such a mean and the output factor a sum.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax_networks import Numbers, cross_entropy, squared_error

from spectral_backends.jax import CurvatureProblem

kfac_jax = pytest.importorskip("kfac_jax", reason="needs kfac-jax: nox -s oracles")

SAMPLES = 13
pytestmark = pytest.mark.usefixtures("double_jax")


def perceptron(new):
    def forward(p, x):
        return jnp.tanh(jax.nn.gelu(x @ p["first"]) @ p["second"]) @ p["head"]

    return forward, {"first": new(5, 7), "second": new(7, 6), "head": new(6, 4)}, new(SAMPLES, 5)


def convolution(new):
    def forward(p, x):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jnp.tanh(lax.conv_general_dilated(x, p["first"], (1, 1), "SAME", None, None, layout))
        x = jnp.tanh(lax.conv_general_dilated(x, p["second"], (2, 2), "VALID", None, None, layout))
        return x.reshape(x.shape[0], -1) @ p["head"]

    params = {"first": new(3, 3, 2, 5), "second": new(2, 2, 5, 3), "head": new(18, 4)}
    return forward, params, new(SAMPLES, 5, 6, 2)


NETWORKS = {"perceptron": perceptron, "convolution": convolution}


def classes(z, y):
    kfac_jax.register_softmax_cross_entropy_loss(z, y)
    return cross_entropy(z, y)


def numbers(z, y):
    kfac_jax.register_squared_error_loss(z, y, weight=0.5)
    return squared_error(z, y)


LOSSES = {"classes": (cross_entropy, classes), "numbers": (squared_error, numbers)}


@pytest.fixture(params=LOSSES)
def loss(request):
    return request.param


@pytest.fixture(params=NETWORKS)
def setting(request, loss):
    """Ours, measured in two batches; the same function with its loss registered; its arguments."""
    new = Numbers(0)
    forward, params, x = NETWORKS[request.param](new)
    y = new.labels(4, SAMPLES) if loss == "classes" else new(SAMPLES, 4)
    own, registered = LOSSES[loss]
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    problem = CurvatureProblem((forward, own), params, batches)
    return problem, lambda p, batch: registered(forward(p, batch[0]), batch[1]), params, (x, y)


def close(found, expected, rtol=1e-11):
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_curvatures(setting, kind):
    problem, registered, params, batch = setting
    product = kfac_jax.ImplicitExactCurvature(registered)
    multiply = product.multiply_hessian if kind == "hessian" else product.multiply_ggn
    rng = np.random.default_rng(1)
    for layer in problem.layers():
        (m, n), zeros = layer.shape, jax.tree_util.tree_map(jnp.zeros_like, params)
        u, v = np.linalg.qr(rng.normal(size=(m, 3)))[0], np.linalg.qr(rng.normal(size=(n, 3)))[0]
        expected = []
        for k in range(3):
            along = zeros | {layer.name: as_weight(u[:, k, None] * v[:, k], params[layer.name])}
            image = multiply((params, batch), along)
            expected.append(jnp.sum(image[layer.name] * along[layer.name]))
        close(problem.curvatures(layer.name, jnp.asarray(u), jnp.asarray(v), kind), expected)


def as_weight(matrix, like):
    """Write (outputs, inputs) as the weight: a convolution's inputs run over channels first."""
    if like.ndim == 2:
        return jnp.asarray(matrix.T)
    height, width, inputs, outputs = like.shape
    kernel = matrix.reshape(outputs, inputs, height, width)
    return jnp.asarray(kernel.transpose(2, 3, 1, 0))


def as_kernel_first(covariance, like):
    """Reorder an input factor of channels and positions in the kernel as kfac-jax has it."""
    if like.ndim == 2:
        return covariance
    height, width, inputs, _ = like.shape
    grid = np.asarray(covariance).reshape(inputs, height, width, inputs, height, width)
    size = height * width * inputs
    return grid.transpose(1, 2, 0, 4, 5, 3).reshape(size, size)


@pytest.mark.parametrize("mode", ["ggn_exact", "fisher_exact"])
def test_factors(setting, mode):
    problem, registered, params, batch = setting
    estimator = kfac_jax.BlockDiagonalCurvature(registered)
    arguments, key = (params, batch), jax.random.PRNGKey(0)
    state = estimator.init(
        key, arguments, exact_powers_to_cache=None, approx_powers_to_cache=None,
        cache_eigenvalues=False,
    )  # fmt: skip
    state = estimator.update_curvature_matrix_estimate(
        state, 0.0, 1.0, 0.0, SAMPLES, key, arguments, mode
    )
    found = problem.kronecker_factors(list(params))
    sizes = {m * n: name for name, (m, n) in ((i.name, i.shape) for i in problem.layers())}
    assert len(sizes) == len(params)  # so blocks can be told by them
    for block, its in zip(estimator.blocks, state.blocks_states, strict=True):
        name = sizes[block.dim]
        inputs, outputs = (factor.value for factor in its.factors)
        close(as_kernel_first(found[name].input_covariance, params[name]), inputs)
        close(found[name].output_covariance, block.fixed_scale() * outputs)
