"""Gradients that are rounding, and types that a function casts to: held against float64."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_networks import cross_entropy, squared_error

import spectral_core as sc
from spectral_backends.jax import CurvatureProblem

RNG = np.random.default_rng(4)
X, LABELS = RNG.normal(size=(40, 6)), RNG.integers(0, 5, size=40)
PARAMS = {"w": RNG.normal(size=(6, 8)), "head": RNG.normal(size=(8, 5))}


def forward(p, x):
    return jnp.tanh(x @ p["w"]) @ p["head"]


def fitted(margin):
    """A head on one-hot features: ``p − y`` is the gradient, of terms with a given margin."""
    x = np.eye(5)[LABELS] + 0.05 * X[:, :5]
    return {"head": margin * np.eye(5)}, x


def linear(p, x):
    return x @ p["head"]


def in_single(function):
    """Run without 64 bits, as JAX does by default."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        return function()
    finally:
        jax.config.update("jax_enable_x64", before)


def errors(dtype, margin, **options):
    params, x = fitted(margin)
    problem = CurvatureProblem((linear, cross_entropy), params, [(x, LABELS)], dtype=dtype)
    return problem.gradients(["head"])["head"], problem.gradient_errors(["head"], **options)["head"]


@pytest.mark.parametrize("part", [None, 8])
def test_the_errors_are_those_of_the_gradients_also_without_64_bits(part):
    params, x = fitted(14.0)
    params, x = ({"head": np.float32(params["head"])}, np.float32(x))

    def found():
        problem = CurvatureProblem((linear, cross_entropy), params, [(x, LABELS)])
        gradient = problem.gradients(["head"])["head"]
        assert gradient.dtype == jnp.float32
        return np.asarray(gradient), np.asarray(
            problem.gradient_errors(["head"], samples=part)["head"]
        )

    gradient, error = in_single(found)
    exact = CurvatureProblem(
        (linear, cross_entropy), params, [(x, LABELS)], dtype="float64"
    ).gradients(["head"])["head"]
    expected = gradient.astype(np.float64) - np.asarray(exact)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(error, expected, rtol=1e-3, atol=1e-15)
    assert jnp.zeros(()).dtype == jnp.float64  # and the setting is as it was


def test_a_gradient_of_rounding_alone_is_skipped():
    params, x = fitted(24.0)
    params = {"head": np.float32(params["head"])}

    def measured():
        return sc.measure(
            CurvatureProblem((linear, cross_entropy), params, [(np.float32(x), LABELS)])
        )

    with pytest.raises(sc.SpectralError, match=r"own rounding; measure in float64 \(dtype=torch"):
        in_single(measured)


def test_rounding_in_double_precision_is_that_of_single_scaled():
    _, single = errors("float32", 8.0)
    _, double = errors("float64", 8.0)
    ratio = np.linalg.norm(double) / np.linalg.norm(single)
    assert 0.5 < ratio / 2.0**-29 < 2


def test_sums_and_several_batches():
    params, x = fitted(12.0)
    params, x = {"head": np.float32(params["head"])}, np.float32(x)

    def total(z, y):
        return cross_entropy(z, y) * len(z)

    batches = [(x[:25], LABELS[:25]), (x[25:], LABELS[25:])]
    whole = CurvatureProblem((linear, cross_entropy), params, [(x, LABELS)])
    cut = CurvatureProblem(
        (linear, total), params, batches, reduction="sum", weight=lambda b: len(b[1])
    )
    (expected,), (found,) = (p.gradient_errors(["head"]).values() for p in (whole, cut))
    assert np.linalg.norm(found - expected) < 0.5 * np.linalg.norm(expected)
    (part,) = cut.gradient_errors(["head"], samples=8).values()
    assert 0.2 < np.linalg.norm(part) / np.linalg.norm(expected) < 5


def test_random_numbers_and_fixed_types_tell_nothing():
    key = jax.random.key(0)

    def noisy(p, x):
        return forward(p, x * jax.random.uniform(key, x.shape, x.dtype))

    def fixed(p, x):
        return jax.lax.mul(forward(p, x), jnp.ones((40, 5), jnp.float32))

    single = {name: np.float32(value) for name, value in PARAMS.items()}
    for function in (noisy, fixed):
        problem = CurvatureProblem((function, cross_entropy), single, [(np.float32(X), LABELS)])
        assert problem.gradient_errors(["w"]) == {}


CASTS = {
    "features": lambda p, x: jnp.tanh((x @ p["w"]).astype(jnp.float32)).astype(x.dtype) @ p["head"],
    "inside jit": jax.jit(lambda p, x: jnp.tanh(x @ p["w"]).astype(jnp.float32) @ p["head"]),
    "outputs": lambda p, x: forward(p, x).astype(jnp.float32),
    "weights": lambda p, x: jnp.tanh(x @ p["w"].astype(jnp.float32)) @ p["head"],
    "in a branch": lambda p, x: jax.lax.cond(
        x.sum() > 1e9, lambda z: z, lambda z: z.astype(jnp.float32).astype(z.dtype), forward(p, x)
    ),
    "in a scan": lambda p, x: jax.lax.scan(
        lambda z, _: (jnp.sin(z).astype(jnp.float32).astype(z.dtype), None), forward(p, x), None, 2
    )[0],
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_are_told(name):
    with pytest.warns(
        RuntimeWarning, match="casts what depends on its parameters to float32"
    ) as told:
        problem = CurvatureProblem((CASTS[name], cross_entropy), PARAMS, [(X, LABELS)])
    assert len(told) == 1 and told[0].filename == __file__
    assert problem.describe()["precision"] == "float32"
    assert problem.describe()["dtype"] == "float64"


def test_a_layer_behind_a_cast_is_measured_once():
    with pytest.warns(RuntimeWarning, match="float32"):
        problem = CurvatureProblem((CASTS["features"], squared_error), PARAMS, [(X, X[:, :5])])
    (found,) = problem.layer_curvatures({"head": (np.eye(5), np.eye(8)[:, :5])}, engine="columns")
    assert found.certificate.tolerance == pytest.approx(100 * 2.0**-23)


CONSTANTS = {
    "a constant in float32": lambda p, x: (
        forward(p, x) * jnp.linspace(0.5, 1.5, 5, dtype=jnp.float32)
    ),
    "input": lambda p, x: forward(p, x.astype(jnp.float32)),
    "mask": lambda p, x: jnp.where(forward(p, x) > 0, forward(p, x), 0.0),
    "whole numbers": lambda p, x: (
        forward(p, x) * forward(p, x).argmax(1)[:, None].astype(jnp.float32)
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_lose_nothing(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem = CurvatureProblem((CONSTANTS[name], cross_entropy), PARAMS, [(X, LABELS)])
    assert "precision" not in problem.describe()
