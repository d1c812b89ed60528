"""A loss that depends on how the data are cut is refused: batch norm in training mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_networks import Numbers, cross_entropy

from spectral_backends.jax import CurvatureProblem
from spectral_core.errors import NonDeterministicError

X, IMAGES, TOKENS = Numbers(0)(16, 6), Numbers(0)(16, 4, 4, 6), Numbers(0)(16, 5, 6)
Y, LABELS = Numbers(1).labels(3, 16), Numbers(1).labels(3, 16, 5)
PARAMS = {"a": Numbers(2)(6, 8), "b": Numbers(3)(8, 3), "r": Numbers(4)(8, 8)}


def halves(*arrays):
    return [tuple(a[:8] for a in arrays), tuple(a[8:] for a in arrays)]


def refused(function, params, batches, **options):
    """Say whether it is refused for its statistics; any other error is none of these tests'."""
    try:
        CurvatureProblem(function, params, batches, **options)
    except NonDeterministicError as error:
        assert "statistics of each batch" in str(error)
        assert "evaluation mode" in str(error) and "check_deterministic=False" in str(error)
        return True
    return False


def linen(training):
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        use_average: bool

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=self.use_average)(x))
            return nn.Dense(3)(x.reshape(len(x), -1))

    state = Model(True).init(jax.random.key(0), IMAGES)

    def forward(params, x):
        held = {**state, "params": params}
        if training:
            return Model(False).apply(held, x, mutable=["batch_stats"])[0]
        return Model(True).apply(held, x)

    return forward, state["params"], IMAGES


def nnx(training):
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.norm = nnx.Linear(6, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.first(x))))

    model = Model(nnx.Rngs(0))
    (model.train if training else model.eval)()
    graph, state = nnx.split(model)
    return lambda state, x: nnx.merge(graph, state)(x), state, X


def equinox(training):
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        first: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        head: eqx.nn.Linear

        def __init__(self):
            self.first = eqx.nn.Linear(6, 8, key=jax.random.key(0))
            self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch", dtype=jnp.float64)
            self.head = eqx.nn.Linear(8, 3, key=jax.random.key(1))

        def __call__(self, x, state):
            x, state = self.norm(self.first(x), state)
            return self.head(jax.nn.relu(x)), state

    model, state = eqx.nn.make_with_state(Model)()
    model = model if training else eqx.nn.inference_mode(model)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def forward(params, x):
        whole = eqx.combine(params, static)
        run = jax.vmap(whole, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return run(x, state)[0]

    return forward, params, X


def haiku(training):
    hk = pytest.importorskip("haiku")

    def built(is_training):
        def network(x):
            x = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training)
            return hk.Linear(3)(jax.nn.relu(x))

        return hk.without_apply_rng(hk.transform_with_state(network))

    params, state = built(True).init(jax.random.key(0), X)
    return lambda p, x: built(training).apply(p, state, x)[0], params, X


FRAMEWORKS = {"linen": linen, "nnx": nnx, "equinox": equinox, "haiku": haiku}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_batch_norm_in_training_mode_is_refused(name):
    forward, params, x = FRAMEWORKS[name](training=True)
    params = jax.tree.map(
        lambda p: p.astype(float) if jnp.issubdtype(p.dtype, jnp.floating) else p, params
    )

    def whole(p, batch):
        return cross_entropy(forward(p, batch[0]), batch[1])

    for batches in ([(x, Y)], halves(x, Y)):
        assert refused((forward, cross_entropy), params, batches)
    assert refused(whole, params, [(x, Y)])
    assert refused(whole, params, halves(x, Y), weight=lambda batch: len(batch[0]))
    assert not refused((forward, cross_entropy), params, [(x, Y)], check_deterministic=False)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_batch_norm_in_evaluation_mode_passes(name):
    forward, params, x = FRAMEWORKS[name](training=False)
    assert not refused((forward, cross_entropy), params, halves(x, Y))


def normalised(axis, epsilon=0.0):
    def norm(x):
        centred = x - x.mean(axis, keepdims=True)
        return centred / jnp.sqrt(x.var(axis, keepdims=True) + epsilon)

    return norm


def network(norm, at_the_input=False):
    def forward(params, x):
        h = (norm(x) if at_the_input else x) @ params["a"]
        return jnp.tanh(h if at_the_input else norm(h)) @ params["b"]

    return forward


@jax.custom_jvp
def with_a_rule(x):
    return normalised(0)(x)


with_a_rule.defjvp(lambda primals, tangents: jax.jvp(normalised(0), primals, tangents))


def whitened(x):
    centred = x - x.mean(0)
    root = jnp.linalg.cholesky(centred.T @ centred / len(x) + jnp.eye(x.shape[1]))
    return jax.scipy.linalg.solve_triangular(root, centred.T, lower=True).T


def scanned(norm):
    """A recurrent network over time, which is the first axis."""

    def forward(params, x):
        def step(state, now):
            state = jnp.tanh(norm(state @ params["r"] + now @ params["a"]))
            return state, state

        return jax.lax.scan(step, jnp.zeros((x.shape[1], 8)), x)[1] @ params["b"]

    return forward


def attention(params, x):
    """One sequence, whose tokens all meet: it has no axis of samples."""
    q = x @ params["a"]
    mixed = jax.nn.softmax(q @ q.T / 8**0.5) @ q
    return normalised(-1)(mixed) @ params["b"]


TIME_FIRST = np.swapaxes(TOKENS, 0, 1), LABELS.T
MEETING = {
    "written by hand": (network(normalised(0)), (X, Y)),
    "at the input": (network(normalised(0), at_the_input=True), (X, Y)),
    "by a power": (network(lambda x: (x - x.mean(0)) * (x.var(0) + 1e-5) ** -0.5), (X, Y)),
    "by std": (network(lambda x: (x - x.mean(0)) / x.std(0)), (X, Y)),
    "by the norm": (network(lambda x: x / jnp.linalg.norm(x, axis=0)), (X, Y)),
    "whitened": (network(whitened), (X, Y)),
    "in jit": (jax.jit(network(normalised(0))), (X, Y)),
    "in remat": (jax.checkpoint(network(normalised(0))), (X, Y)),
    "with a rule": (network(with_a_rule), (X, Y)),
    "over positions": (network(normalised((0, 1))), (TOKENS, LABELS)),
    "flattened": (
        lambda p, x: network(normalised(0))(p, x.reshape(-1, 6)), (TOKENS, LABELS.reshape(-1))
    ),
    "time first": (network(normalised((0, 1))), TIME_FIRST),
    "in a scan": (scanned(normalised(0)), TIME_FIRST),
}  # fmt: skip
APART = {
    "layer norm": (network(normalised(-1)), (X, Y)),
    "of an instance": (network(normalised(1)), (TOKENS, LABELS)),
    "of an instance, time first": (network(normalised(0)), TIME_FIRST),
    "of its input, time first": (network(normalised(0), at_the_input=True), TIME_FIRST),
    "recurrent": (scanned(normalised(-1)), TIME_FIRST),
    "one sequence": (attention, (X, Y)),
    "vmapped": (
        lambda p, x: jax.vmap(lambda row: network(normalised(-1))(p, row))(x), (X, Y)
    ),
    "one after the other": (
        lambda p, x: jax.lax.map(lambda row: network(normalised(-1))(p, row), x), (X, Y)
    ),
    "for one size": (
        lambda p, x: network(normalised(-1))(p, jnp.asarray(x).reshape(16, 6)), (X, Y)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEETING)
def test_statistics_of_the_batch_are_seen_however_they_are_written(name):
    forward, batch = MEETING[name]
    assert refused((forward, cross_entropy), PARAMS, [batch])


@pytest.mark.parametrize("name", APART)
def test_samples_that_keep_apart_pass(name):
    forward, batch = APART[name]
    assert not refused((forward, cross_entropy), PARAMS, [batch])


def test_a_loss_may_normalise():
    """A correlation, or advantages: with one batch it is a function like any other."""

    def correlation(z, t):
        z, t = (each / jnp.linalg.norm(each, axis=0) for each in (z - z.mean(0), t - t.mean(0)))
        return -jnp.mean(z * t)

    def whole(params, batch):
        x, t = batch
        return correlation(network(normalised(-1))(params, x), t)

    assert not refused(whole, PARAMS, [(X, Numbers(5)(16, 3))])
    assert not refused((network(jnp.tanh), correlation), PARAMS, [(X, Numbers(5)(16, 3))])
