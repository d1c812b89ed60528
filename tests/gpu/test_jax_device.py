"""JAX on a device: jitted steps and fits move nothing, the CPU's numbers, its default precision."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

import spectral_core as sc  # noqa: E402
from spectral_backends.jax import CurvatureProblem  # noqa: E402
from spectral_core.preconditioning.damped_power import gram_rounding  # noqa: E402
from spectral_core.preconditioning.gram import smallest_shift  # noqa: E402

pytestmark = pytest.mark.framework("jax")


@pytest.fixture(autouse=True)
def double_precision(on_gpu):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    assert (jax.default_backend() != "cpu") == on_gpu
    yield
    jax.config.update("jax_enable_x64", before)


def weights(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"one": (200, 180), "two": (30, 200), "bias": (30,)}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("options", [{}, {"alpha": 1.5, "damping": 0.1}], ids=str)
def test_a_step_moves_nothing(options):
    optax_adapter = pytest.importorskip("spectral_adapters.optax", exc_type=ImportError)
    pytest.importorskip("optax")
    params, gradients = weights(), weights()
    optimizer = optax_adapter.spectral_newton(1e-3, **options)
    step, state = jax.jit(optimizer.update), optimizer.init(params)
    jax.block_until_ready(step(gradients, state, params))
    with jax.transfer_guard("disallow_explicit"):
        updates, _ = step(gradients, state, params)
        jax.block_until_ready(updates)
    assert all(bool(jnp.all(jnp.isfinite(u))) for u in updates.values())


def test_the_guard_sees_what_moves():
    double = jax.jit(lambda x: 2 * x)
    double(jnp.ones(3))
    with jax.transfer_guard("disallow_explicit"), pytest.raises(RuntimeError, match="[Dd]isallow"):
        double(np.ones(3))


@pytest.mark.parametrize(
    "fit",
    [
        lambda s: sc.fit_power_law(s, s).exponent,
        lambda s: sc.exponent_triangle(s, s).defect,
        sc.participation_ratio,
        lambda s: sc.transfer(s, 1.5, 0.1),
        lambda s: sc.precondition(s @ s.T, 2.0, 0.1),
    ],
)
def test_a_fit_moves_nothing(fit):
    sigma = jnp.asarray(np.random.default_rng(1).random((4, 20)) + 0.1)
    run = jax.jit(fit)
    run(sigma).block_until_ready()
    with jax.transfer_guard("disallow_explicit"):
        found = run(sigma).block_until_ready()
    assert found.devices() == {jax.devices()[0]}


def test_curvatures_are_those_of_the_cpu():
    rng = np.random.default_rng(2)
    params = {"a": rng.normal(size=(6, 8)) / 3, "b": rng.normal(size=(8, 5)) / 3}
    x, y = rng.normal(size=(20, 6)), rng.integers(0, 5, 20)

    def loss(params, batch):
        logits = jnp.tanh(batch[0] @ params["a"]) @ params["b"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], 1))

    u, v = np.linalg.qr(rng.normal(size=(8, 3)))[0], np.linalg.qr(rng.normal(size=(6, 3)))[0]
    found = []
    with jax.default_matmul_precision("highest"):
        for where in (jax.devices("cpu")[0], jax.devices()[0]):
            with jax.default_device(where):
                moved = {name: jnp.asarray(array) for name, array in params.items()}
                problem = CurvatureProblem(loss, moved, [(jnp.asarray(x), jnp.asarray(y))])
                values = problem.curvatures("a", jnp.asarray(u), jnp.asarray(v))
                assert values.devices() == {where}
                found.append(np.asarray(values))
    # Sums of some hundred products in float64, and what Hessian products cancel.
    assert np.max(np.abs(found[1] - found[0])) <= 1e6 * 2.3e-16 * np.max(np.abs(found[0]))


@pytest.mark.parametrize("precision", ["highest", None, "bfloat16"])
@pytest.mark.parametrize("rows", [48, 200])
def test_products_are_in_float32_whatever_the_default(precision, rows):
    """By default JAX multiplies float32 in TF32 on a GPU, which T's damping would not bear."""
    rng = np.random.default_rng(3)
    u, v = (np.linalg.qr(rng.normal(size=(n, rows)))[0] for n in (rows, rows + 16))
    sigma = np.arange(1, rows + 1) ** -0.5
    g = jnp.asarray((u * sigma) @ v.T, jnp.float32)
    with jax.default_matmul_precision(precision):
        found = jax.jit(lambda g: sc.precondition(g, 2.0, 0.1, method="closed"))(g)
    u, sigma, vh = np.linalg.svd(np.asarray(g, np.float64), full_matrices=False)
    exact = (u * sc.transfer(sigma, 2.0, 0.1)) @ vh
    error = np.linalg.norm(np.asarray(found, np.float64) - exact, 2) / np.linalg.norm(exact, 2)
    epsilon = float(np.finfo(np.float32).eps)
    bound = gram_rounding(2.0, 0.1, smallest_shift(rows, epsilon)) + 20 * rows * epsilon
    assert error <= bound
