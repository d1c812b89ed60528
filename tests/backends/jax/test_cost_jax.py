"""What certificates say of cost, against multiply-adds written down by hand."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax_networks import Numbers, cross_entropy
from jax_oracle import directions, problem

from spectral_backends.jax import CurvatureProblem
from spectral_backends.jax.jaxprs.work import multiply_adds

SIZES, COUNT, K = (6, 9, 7, 4), 5, 3


def perceptron(batches=1):
    new = Numbers(3)
    params = {str(i): new(n, m) for i, (n, m) in enumerate(pairwise(SIZES))}
    data = [(new(COUNT, SIZES[0]), new.labels(SIZES[-1], COUNT)) for _ in range(batches)]

    def forward(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["0"]) @ p["1"]) @ p["2"]

    given = {name: directions(w.T.shape, K) for name, w in params.items()}
    return CurvatureProblem((forward, cross_entropy), params, data), given


def works():
    """Return the multiply-adds of each layer for one sample."""
    return [n * m for n, m in pairwise(SIZES)]


@pytest.mark.parametrize("batches", [1, 3])
def test_columns(batches):
    made, given = perceptron(batches)
    first, second, third = works()
    forward = first + second + third
    back = second + third  # no gradient of the images
    columns = SIZES[-1] + 1  # one of which is the check's
    seen_inputs, seen_outputs = K * sum(SIZES[:-1]), K * sum(SIZES[1:])
    # Samples are found by two cotangents; outputs are needed once more for the loss.
    expected = 3 * forward + (2 + columns) * back + seen_inputs + columns * seen_outputs
    for finding in made.layer_curvatures(given, engine="columns"):
        found = finding.certificate.cost * forward * len(given) * K
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("engine", ["tangents", "double-backward"])
def test_what_lies_before_a_layer_is_not_paid_for_each_direction(engine):
    made, given = perceptron()
    found = {f.name: f.certificate for f in made.layer_curvatures(given, engine=engine)}
    assert all(certificate.engine == engine for certificate in found.values())
    costs = [found[name].cost for name in ("0", "1", "2")]
    assert costs == sorted(costs, reverse=True) and costs[2] > 0
    if engine == "tangents":
        # One pass for all directions, and each of them forward from its layer, to its nonlinear equations.
        behind = [sum(works()[i:]) / sum(works()) for i in range(3)]
        np.testing.assert_allclose(costs, [1 / K + part for part in behind], rtol=0.5)


def test_cost_is_of_the_order_that_was_planned():
    made = problem("cnn")
    given = {layer.name: directions(layer.shape, 4) for layer in made.layers()}
    for finding in made.layer_curvatures(given, "ggn", engine="columns"):
        certificate = finding.certificate
        assert 0.2 < certificate.cost / certificate.predicted_cost < 5


def test_what_is_done_does_not_change_the_cost():
    made, given = perceptron()
    for engine in ("columns", "tangents", "double-backward"):
        whole = {f.name: f.certificate.cost for f in made.layer_curvatures(given, engine=engine)}
        (last,) = made.layer_curvatures(given, engine=engine, done=["0", "1"])
        assert last.certificate.cost == whole["2"]


def convolution(stride, groups):
    def convolve(x, w):
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    return convolve


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_and_their_gradients_count_the_same(stride, groups):
    x, w = jnp.ones((3, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 6))
    convolve = convolution(stride, groups)
    expected = 3 * (8 // stride) ** 2 * 6 * (4 // groups) * 9
    assert multiply_adds(jax.make_jaxpr(convolve)(x, w)) == expected
    y = jnp.ones((3, 8 // stride, 8 // stride, 6))
    for argument in (0, 1):
        primal = (x, w)[argument]

        def back(y, argument=argument, primal=primal):
            def linear(a):
                return convolve(*((a, w) if argument == 0 else (x, a)))

            return jax.linear_transpose(linear, primal)(y)

        assert multiply_adds(jax.make_jaxpr(back)(y)) == expected


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (lambda x, w: jax.jit(jnp.matmul)(x, w) @ w, 2),
        (lambda x, w: lax.scan(lambda c, _: (c @ w, None), x, None, 7)[0], 7),
        (lambda x, w: jax.checkpoint(lambda x: x @ w)(x), 1),
        (lambda x, w: lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x), 2),
        (jax.vmap(lambda x, w: x @ w, (0, None)), 1),
        (lambda x, w: lax.while_loop(lambda c: c.sum() > 0, lambda c: c - 1, x) @ w, 1),
        (lambda x, w: lax.while_loop(lambda c: c.sum() > 0, lambda c: c @ w, x), float("nan")),
        (lambda x, w: x + w[0], 0),
    ],
)
def test_products_are_counted_wherever_they_are(function, times):
    x, w = jnp.ones((2, 3)), jnp.ones((3, 3))
    found = multiply_adds(jax.make_jaxpr(function)(x, w))
    np.testing.assert_equal(found, times * 2 * 3 * 3)
