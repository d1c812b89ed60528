"""Every backend finds the layers of a network, and measures the same numbers."""

import importlib

import numpy as np
import pytest
from network_registry import BACKENDS, NETWORKS, can_build, problem_of

import spectral_core as sc

HERE = {backend: backend if backend != "arrays" else "numpy" for backend in BACKENDS}


@pytest.fixture(params=BACKENDS)
def backend(request):
    pytest.importorskip(HERE[request.param])
    if request.param != "jax":
        yield request.param
        return
    jax = importlib.import_module("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield "jax"
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_those_of_the_registry(backend, name):
    net = NETWORKS[name]
    if not can_build(backend, net):
        pytest.skip("DenseNetwork has dense layers on one position")
    found = problem_of(backend, net).layers()
    expected = net.expected
    assert [layer.shape for layer in found] == [shape for _, shape in expected.values()]
    if backend != "arrays":  # where arrays have no operations, each matrix is of the same kind
        assert [layer.kind for layer in found] == [kind for kind, _ in expected.values()]


def test_a_small_measurement_is_that_of_arrays(backend):
    net = NETWORKS["piecewise linear"]
    expected = sc.measure(problem_of("arrays", net), top_k=4, progress=False)
    found = sc.measure(problem_of(backend, net), top_k=4, progress=False)
    for one, other in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_allclose(one.sigma, other.sigma, rtol=1e-10)
        np.testing.assert_allclose(one.curvature, other.curvature, rtol=1e-6)
        assert one.alpha.exponent == pytest.approx(other.alpha.exponent, rel=1e-6)
