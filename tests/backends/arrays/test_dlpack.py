"""A problem of PyTorch driven by code of NumPy, on one memory."""

import numpy as np
import pytest
from watched_problem import WatchedProblem

import spectral_core as sc
from spectral_backends.arrays import DenseNetwork
from spectral_backends.numpy import through_dlpack

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def problem():
    from spectral_backends.torch import CurvatureProblem

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    batch = (torch.randn(30, 6), torch.randint(5, (30,)))
    return CurvatureProblem(model, torch.nn.functional.cross_entropy, [batch], dtype=torch.float64)


def test_reports_are_equal_to_the_bit(problem):
    seen = through_dlpack(problem, np.empty(0))
    assert isinstance(seen, sc.CurvatureProblem)
    ours = sc.measure(seen, top_k=4, decompose=True)
    wanted = sc.measure(problem, top_k=4, decompose=True)
    for name in ("0", "2"):
        # Gradients are the same; their SVD is another library's.
        np.testing.assert_allclose(ours[name].sigma, wanted[name].sigma, rtol=1e-13)
        size = np.max(np.abs(wanted[name].curvature))
        np.testing.assert_allclose(ours[name].curvature, wanted[name].curvature, atol=1e-11 * size)
        assert ours[name].certificate.engine == wanted[name].certificate.engine
        np.testing.assert_allclose(ours[name].diagonal, wanted[name].diagonal, rtol=1e-9)
    assert ours.provenance.problem["through"] == "numpy"
    engine = sc.measure(seen, "0", top_k=3, engine="double-backward")
    assert engine["0"].certificate.engine == "double-backward"


def test_nothing_is_copied(problem):
    spy = WatchedProblem(problem)
    seen = through_dlpack(spy, np.empty(0))
    gradient = seen.gradients(["0"])["0"]
    assert isinstance(gradient, np.ndarray)
    assert gradient.__array_interface__["data"][0] == spy.gradient["0"].data_ptr()
    u, v = np.linalg.qr(np.ones((8, 1)))[0], np.linalg.qr(np.ones((6, 1)))[0]
    value = seen.curvatures("0", u, v)
    assert isinstance(value, np.ndarray) and isinstance(spy.taken, torch.Tensor)
    assert spy.taken.data_ptr() == u.__array_interface__["data"][0]
    u.flags.writeable = False
    assert seen.curvatures("0", u, v) == value
    factors = seen.kronecker_factors(["0"])["0"]
    assert isinstance(factors.output_covariance, np.ndarray) and factors.output_noise is None


def test_numpy_seen_from_torch_and_a_problem_without_engines():
    network = DenseNetwork((6, 5, 4), "tanh")
    x, y = np.random.default_rng(0).standard_normal((20, 6)), np.arange(20) % 4
    inner = network.problem(network.init(0), [(x, y)])

    class One:
        """The protocol and nothing more."""

        def __init__(self):
            for name in (
                "layers", "skipped", "gradients", "curvatures", "kronecker_factors", "describe"
            ):  # fmt: skip
                setattr(self, name, getattr(inner, name))

    for problem in (inner, One()):
        seen = through_dlpack(problem, torch.empty(0))
        assert isinstance(seen.gradients(["0"])["0"], torch.Tensor)
        found = sc.measure(seen, top_k=3)["0"]
        wanted = sc.measure(problem, top_k=3)["0"]
        np.testing.assert_allclose(found.curvature, wanted.curvature, rtol=1e-9)
        assert found.certificate.engine == wanted.certificate.engine


def test_jax_seen_from_numpy():
    jnp = pytest.importorskip("jax.numpy")
    network = DenseNetwork((6, 5, 4), "tanh")
    x = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    like = jnp.zeros(1, dtype=jnp.float32)
    batch = (jnp.asarray(x), jnp.arange(20) % 4)
    seen = through_dlpack(network.problem(network.init(0, like=like), [batch]), np.empty(0))
    wanted = network.problem(
        network.init(0, like=np.empty(1, np.float32)), [(x, np.arange(20) % 4)]
    )
    u, v = np.eye(5, dtype=np.float32)[:, :3], np.eye(6, dtype=np.float32)[:, :3]
    found = seen.curvatures("0", u, v)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, wanted.curvatures("0", u, v), rtol=1e-4, atol=1e-6)


def test_devices_must_meet(problem):
    with pytest.raises(sc.InputError, match="device"):
        through_dlpack(problem, torch.empty(0, device="meta"))
