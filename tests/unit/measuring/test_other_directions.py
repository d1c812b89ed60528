"""Directions that other data chose: everything else is of the data that did not."""

import numpy as np
import pytest

import spectral_core as sc
from spectral_backends.numpy import DenseNetwork

NETWORK = DenseNetwork((7, 9, 6), activation="tanh")
PARAMS = NETWORK.init(seed=1)


def problem(seed, count=60):
    rng = np.random.default_rng(seed)
    return NETWORK.problem(PARAMS, [(rng.normal(size=(count, 7)), rng.integers(0, 6, count))])


def measured(chosen_by, **options):
    return sc.measure(
        problem(0), top_k=5, directions_from=chosen_by, progress=False, decompose=True, **options
    )


def test_11_9_values_are_those_of_the_data_that_did_not_choose():
    one, other = problem(0), problem(1)
    for name, layer in measured(other).items():
        u, sigma, vh = np.linalg.svd(other.gradients([name])[name], full_matrices=False)
        u, v = u[:, :5], vh[:5].T
        np.testing.assert_allclose(layer.sigma, sigma[:5], rtol=1e-12)
        np.testing.assert_allclose(layer.curvature, one.curvatures(name, u, v), rtol=1e-9)
        along = np.einsum("mk,mn,nk->k", u, one.gradients([name])[name], v)
        np.testing.assert_allclose(layer.derivative, along, rtol=1e-9)
        cross = sc.fit_power_law(along, layer.curvature)
        assert layer.cross_fitted.exponent == pytest.approx(float(cross.exponent), nan_ok=True)
        assert abs(layer.decomposition.closure) < 1e-12
        factors = one.kronecker_factors([name])[name]
        kron = np.einsum("mk,mp,pk->k", u, factors.output_covariance, u) * np.einsum(
            "nk,np,pk->k", v, factors.input_covariance, v
        )
        np.testing.assert_allclose(layer.alignment.kron, kron, rtol=1e-8)


def test_11_9_its_own_directions_change_nothing():
    own = sc.measure(problem(0), top_k=5, decompose=True, progress=False)
    for name, layer in measured(problem(0)).items():
        np.testing.assert_allclose(layer.derivative, layer.sigma, rtol=1e-12)
        np.testing.assert_allclose(layer.curvature, own[name].curvature, rtol=1e-12)
        assert layer.cross_fitted.exponent == pytest.approx(layer.alpha.exponent)
        assert own[name].derivative is None
        assert own[name].cross_fitted.exponent == own[name].alpha.exponent


def test_the_report_says_who_chose_the_directions(tmp_path):
    found = measured(problem(1, count=80))
    assert found.provenance.directions_from["n_terms"] == 80
    again = sc.SpectralReport.from_dict(found.to_dict())
    assert again.to_dict() == found.to_dict() and again["0"].derivative.shape == (5,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"directions_from": 3}, "^directions_from: a int has no layers, "),
        ({"directions_from": problem(1), "sampling": 4}, "^directions_from: it does not go with"),
    ],
)
def test_what_cannot_choose_is_refused(options, said):
    with pytest.raises(sc.InputError, match=said):
        sc.measure(problem(0), top_k=5, progress=False, **options)


def test_another_model_is_refused():
    rng = np.random.default_rng(0)
    wide = DenseNetwork((7, 10, 6))
    other = wide.problem(wide.init(), [(rng.normal(size=(9, 7)), rng.integers(0, 6, 9))])
    with pytest.raises(sc.InputError, match=r"^directions_from: its layer '0' has shape \(10, 7\)"):
        sc.measure(problem(0), top_k=5, directions_from=other, progress=False)
