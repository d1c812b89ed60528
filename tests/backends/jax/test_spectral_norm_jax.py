"""A matrix under spectral norm: its use is the product with data, not the power iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_networks import Numbers, cross_entropy

import spectral_core as sc
from spectral_backends.jax import CurvatureProblem

X, Y = Numbers(0)(20, 6), Numbers(1).labels(5, 20)
PARAMS = {"w": Numbers(2)(6, 8), "head": Numbers(3)(8, 5), "r": Numbers(4)(8, 8)}


def divided(norm):
    def forward(params, x):
        w = params["w"]
        return jnp.tanh(x @ (w / norm(w))) @ params["head"]

    return forward


def power_iteration(w):
    u = jnp.ones((1, 8)) / 8**0.5
    for _ in range(2):
        v = u @ w.T
        v = v / jnp.linalg.norm(v)
        u = v @ w
        u = u / jnp.linalg.norm(u)
    return (jax.lax.stop_gradient(v) @ w @ jax.lax.stop_gradient(u).T)[0, 0]


def in_a_loop(w):
    def step(_, v):
        v = w @ (w.T @ v)
        return v / jnp.linalg.norm(v)

    v = jax.lax.fori_loop(0, 2, step, jnp.ones(6))
    return jnp.linalg.norm(jax.lax.stop_gradient(v) @ w)


def scaled_afterwards(params, x):
    return jnp.tanh(x @ params["w"] / power_iteration(params["w"])) @ params["head"]


NETWORKS = {
    "power iteration": divided(power_iteration),
    "in jit": divided(jax.jit(power_iteration)),
    "in a loop": divided(in_a_loop),
    "Frobenius norm": divided(jnp.linalg.norm),
    "the output is scaled": scaled_afterwards,
}


def oracle(forward, params, name, u, v):
    """``<D, H[D]>`` along ``D = (u vᵀ)ᵀ``, by forward over reverse in the parameter itself."""

    def loss(w):
        return cross_entropy(forward(params | {name: w}, X), Y)

    directions = jnp.einsum("mk,nk->knm", u, v)
    return jax.vmap(
        lambda d: jnp.vdot(d, jax.jvp(jax.grad(loss), (params[name],), (d,))[1])
    )(directions)  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_orientation_and_curvature(name):
    forward = NETWORKS[name]
    params = {key: jnp.asarray(p, float) for key, p in PARAMS.items() if key != "r"}
    problem = CurvatureProblem((forward, cross_entropy), params, [(X, Y)])
    assert {layer.name: layer.shape for layer in problem.layers()} == {"w": (8, 6), "head": (5, 8)}
    u, v = np.linalg.qr(Numbers(5)(8, 3))[0], np.linalg.qr(Numbers(6)(6, 3))[0]
    expected = oracle(forward, params, "w", jnp.asarray(u), jnp.asarray(v))
    (found,) = problem.layer_curvatures({"w": (u, v)})
    np.testing.assert_allclose(found.values, expected, rtol=1e-8)
    np.testing.assert_allclose(problem.curvatures("w", u, v), expected, rtol=1e-8)


def test_the_decomposition_is_of_the_networks_product():
    forward = NETWORKS["power iteration"]
    params = {key: jnp.asarray(p, float) for key, p in PARAMS.items() if key != "r"}
    problem = CurvatureProblem((forward, cross_entropy), params, [(X, Y)])
    factors = problem.kronecker_factors(["w"])["w"]
    np.testing.assert_allclose(factors.input_covariance, X.T @ X / len(X), rtol=1e-5)
    assert any("factors leave out" in note for note in factors.notes)
    found = sc.measure(problem, "w", top_k=4, decompose=True, progress=False)["w"].decomposition
    terms = [getattr(found, name).exponent for name in ("beta", "phi", "kappa", "nu")]
    assert np.isfinite(terms).all() and abs(sum(terms) - found.alpha.exponent) < 1e-10


def modules():
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.SpectralNorm(nn.Conv(4, (3, 3), name="conv"), n_steps=2)(x, update_stats=False)
            x = nn.tanh(x).reshape(len(x), -1)
            return nn.SpectralNorm(nn.Dense(5, name="head"))(x, update_stats=False)

    model, x = Model(), Numbers(0)(20, 3, 3, 2)
    held = model.init(jax.random.key(0), x)
    yield (lambda p, x: model.apply({**held, "params": p}, x)), held["params"], x, {
        "conv": (4, 18), "head": (5, 36)
    }  # fmt: skip
    nnx = pytest.importorskip("flax.nnx")

    class Other(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.SpectralNorm(nnx.Linear(6, 8, rngs=rngs), rngs=rngs)
            self.head = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.tanh(self.first(x, update_stats=False)))

    graph, params, rest = nnx.split(Other(nnx.Rngs(0)), nnx.Param, ...)
    yield (lambda p, x: nnx.merge(graph, p, rest, copy=True)(x)), params, X, {
        "first.layer_instance": (8, 6), "head": (5, 8)
    }  # fmt: skip


def test_modules_of_flax():
    for forward, params, x, shapes in modules():
        problem = CurvatureProblem((forward, cross_entropy), params, [(x, Y)])
        assert {layer.name: layer.shape for layer in problem.layers()} == shapes


def unrolled(params, x):
    """Its first state is a constant."""
    h = jnp.ones(8)
    for t in range(2):
        h = jnp.tanh(h @ params["r"] + x[:, 3 * t : 3 * t + 3] @ params["w"][:3])
    return h @ params["head"]


def learned_input(params, x):
    """What the matrix multiplies is a parameter: queries, positions."""
    return (x @ params["w"] + params["r"][:1] @ params["r"]) @ params["head"]


def without_data(params, x):
    return jnp.asarray(X) @ params["w"] @ params["head"]


@pytest.mark.parametrize(
    ("forward", "layer", "uses"),
    [(unrolled, "r", 2), (learned_input, "r", 1), (without_data, "w", 1)],
)
def test_a_product_without_data_may_well_be_a_use(forward, layer, uses):
    problem = CurvatureProblem((forward, cross_entropy), PARAMS, [(X, Y)])
    (family,) = {
        id(found.family): found.family
        for name, found in problem._layers.items()
        if name.split(".")[0] == layer and found.family.view.shape != (1, 8)
    }.values()
    assert len(family.uses) == uses
