"""Models of Flax (linen and nnx), Equinox and Haiku, as they come."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_networks import Numbers, cross_entropy

from spectral_backends.jax import CurvatureProblem


def linen():
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(8, name="mlp")(nn.LayerNorm()(x)), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2, name="conv")(x))
            x = x.reshape(len(x), -1, 8)
            x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
            blocks = nn.scan(
                nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=2
            )
            x, _ = blocks(name="blocks")(x, None)
            return nn.Dense(3, name="head")(x.mean(1))

    model, x = Model(), Numbers(0)(4, 2, 2, 2)
    params = model.init(jax.random.key(0), x)
    return model.apply, params, x, {
        "conv.group0": (4, 9), "conv.group1": (4, 9),
        "attention.query": (8, 8), "attention.key": (8, 8), "attention.value": (8, 8),
        "attention.out": (8, 8), "blocks.0.mlp": (8, 8), "blocks.1.mlp": (8, 8), "head": (3, 8),
    }, "blocks.1.mlp", "['blocks']['mlp']['kernel']", lambda zeros, d: zeros.at[1].set(d.T)  # fmt: skip


def nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(6, 5, dtype=jnp.float64, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(5, 5, rngs=rngs) for _ in range(2)])

        def __call__(self, tokens):
            x = self.embed(tokens)
            for layer in self.layers:
                x = nnx.gelu(layer(x))
            return self.embed.attend(x)

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    return (
        lambda state, x: nnx.merge(graph, state)(x), state, Numbers(0).labels(6, 4, 2),
        {"embed": (6, 5), "layers.0": (5, 5), "layers.1": (5, 5)},
        "layers.1", "['layers'][1]['kernel']", lambda zeros, d: d.T,
    )  # fmt: skip


def equinox():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(5, 3, 4, 2, activation=jax.nn.gelu, key=jax.random.key(0))
    return (
        lambda model, x: jax.vmap(model)(x), model, Numbers(0)(4, 5),
        {"layers.0": (4, 5), "layers.1": (4, 4), "layers.2": (3, 4)},
        "layers.1", ".layers[1].weight", lambda zeros, d: d,
    )  # fmt: skip


def haiku():
    hk = pytest.importorskip("haiku")

    def forward(x):
        x = hk.Conv2D(4, 3, name="conv")(x)
        return hk.nets.MLP([5, 3])(jax.nn.relu(x).reshape(len(x), -1))

    model, x = hk.without_apply_rng(hk.transform(forward)), Numbers(0)(4, 2, 2, 2)
    return (
        model.apply, model.init(jax.random.key(0), x), x,
        {"conv": (4, 18), "mlp.linear_0": (5, 16), "mlp.linear_1": (3, 5)},
        "mlp.linear_1", "linear_1']['w']", lambda zeros, d: d.T,
    )  # fmt: skip


MODELS = {"linen": linen, "nnx": nnx, "equinox": equinox, "haiku": haiku}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_measured_as_they_come(name):
    forward, params, x, layers, chosen, leaf, write = MODELS[name]()
    params = jax.tree_util.tree_map(lambda p: p.astype(float) if _is_weight(p) else p, params)
    shape = forward(params, x).shape
    y = Numbers(1).labels(shape[-1], *shape[:-1])
    problem = CurvatureProblem((forward, cross_entropy), params, [(x, y)])
    assert {layer.name: layer.shape for layer in problem.layers()} == layers
    m, n = layers[chosen]
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(m, 2)), rng.normal(size=(n, 2))
    (found_at, weight), *others = [
        (path, value)
        for path, value in jax.tree_util.tree_leaves_with_path(params)
        if leaf in jax.tree_util.keystr(path)
    ]
    assert not others

    def total(w):
        put = lambda path, old: w if path == found_at else old  # noqa: E731
        return cross_entropy(forward(jax.tree_util.tree_map_with_path(put, params), x), y)

    @jax.jit
    def textbook(d):
        gradient, product = jax.jvp(jax.grad(total), (weight,), (d,))
        return jnp.vdot(gradient, d), jnp.vdot(product, d)

    zeros = jnp.zeros_like(weight)
    expected = [textbook(write(zeros, jnp.outer(u[:, k], v[:, k]))) for k in range(2)]
    slopes, curvatures = np.asarray(expected).T
    gradient = problem.gradients([chosen])[chosen]
    np.testing.assert_allclose(np.einsum("mk,mn,nk->k", u, gradient, v), slopes, rtol=1e-11)
    np.testing.assert_allclose(problem.curvatures(chosen, u, v), curvatures, rtol=1e-10)


def _is_weight(leaf):
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)
