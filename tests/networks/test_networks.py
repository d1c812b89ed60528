"""Every backend finds the layers of a network, and measures the same numbers."""

import numpy as np
import pytest
from network_registry import BACKENDS, NETWORKS, can_build, problem_of

import spectral_core as sc

NEEDS = {"arrays": "numpy", "torch": "torch", "jax": "jax"}


@pytest.fixture(params=BACKENDS)
def backend(request):
    pytest.importorskip(NEEDS[request.param])
    if request.param == "jax":
        request.getfixturevalue("double_jax")
    return request.param


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
