"""Groups of the samples of JAX's batches, and sampling errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_core as sc
from spectral_backends.jax import CurvatureProblem
from spectral_backends.numpy import DenseNetwork

NETWORK = DenseNetwork((7, 9, 6), activation="tanh")
PARAMS = NETWORK.init(seed=1)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(73, 7)), RNG.integers(0, 6, 73)
B = 4


def forward(params, x):
    hidden = jnp.tanh(x @ params["0.weight"].T + params["0.bias"])
    return hidden @ params["head.weight"].T + params["head.bias"]


def loss(outputs, targets):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], 1))


def cut(*ends):
    return [(x, y) for x, y in zip(np.split(X, ends), np.split(Y, ends), strict=True)]


def problem(batches, **options):
    params = {name: jnp.asarray(value, jnp.float64) for name, value in PARAMS.items()}
    return CurvatureProblem((forward, loss), params, batches, **options)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_groups_and_errors_are_those_of_numpy():
    found = problem(cut(30, 60))
    groups = found.sample_groups(B)
    expected = NETWORK.problem(PARAMS, cut(40)).sample_groups(B)
    assert [g.share for g in groups] == pytest.approx([g.share for g in expected])
    for one, other in zip(groups, expected, strict=True):
        for name in ("0", "head"):
            mine = one.problem.gradients([name])[name]
            np.testing.assert_allclose(mine, other.problem.gradients([name])[name], rtol=1e-9)
    options = {"top_k": 5, "sampling": B, "progress": False, "sampling_directions": "own"}
    report = sc.measure(found, **options)
    reference = sc.measure(NETWORK.problem(PARAMS, cut(40)), **options)
    for name, layer in reference.items():
        mine = report[name].sampling
        np.testing.assert_allclose(mine.signal_shares, layer.sampling.signal_shares, rtol=1e-7)
        for key in ("alpha", "gamma", "s", "participation"):
            a, b = getattr(mine, key), getattr(layer.sampling, key)
            assert (a.stderr, a.drift) == pytest.approx((b.stderr, b.drift), rel=1e-6)


def test_the_columns_take_directions_of_the_groups():
    found = sc.measure(problem(cut(30)), "head", engine="columns", top_k=4, sampling=B,
                       decompose=True, progress=False)["head"]  # fmt: skip
    slow = sc.measure(problem(cut(30)), "head", engine="double-backward", top_k=4,
                      sampling=B, sampling_directions="own", decompose=True,
                      progress=False)["head"]  # fmt: skip
    assert found.sampling.directions == "own"
    for key in ("alpha", "beta", "kappa"):
        a, b = getattr(found.sampling, key), getattr(slow.sampling, key)
        assert (a.stderr, a.drift) == pytest.approx((b.stderr, b.drift), rel=1e-6, abs=1e-9)


def test_random_keys_belong_to_no_sample():
    def noisy(params, batch):
        x, y, key = batch
        return loss(forward(params, x + 0 * jax.random.normal(key, x.shape)), y)

    batch = (jnp.asarray(X), jnp.asarray(Y), jax.random.key(0))
    params = {name: jnp.asarray(value) for name, value in PARAMS.items()}
    with pytest.raises(sc.InputError, match="a random key, which belongs to no sample"):
        CurvatureProblem(noisy, params, [batch]).sample_groups(B)
