"""A layer beside noise alone: draws from its own factors, its exponents among theirs."""

import numpy as np
import pytest

import spectral_core as sc
from spectral_backends.numpy import DenseNetwork

NETWORK = DenseNetwork((7, 9, 6), activation="tanh")
PARAMS = NETWORK.init(seed=1)


def problem():
    rng = np.random.default_rng(0)
    return NETWORK.problem(PARAMS, [(rng.normal(size=(60, 7)), rng.integers(0, 6, 60))])


def measured(**options):
    options = {"decompose": True, "noise_draws": 60, "progress": False} | options
    return sc.measure(problem(), top_k=5, **options)


def test_the_null_is_that_of_the_layers_own_factors():
    for name, layer in measured().items():
        ggn, empirical = (
            problem().kronecker_factors([name], fisher_type=kind)[name]
            for kind in ("ggn", "empirical")
        )
        null = sc.noise_null(empirical, ggn, 60, c_delta=ggn, top_k=5, n_draws=60)
        triangle = sc.exponent_triangle(layer.sigma, layer.alignment.kron)
        for key in ("alpha", "gamma", "s"):
            found, value = getattr(layer.noise, key), float(getattr(triangle, key).exponent)
            assert found.value == pytest.approx(value, rel=1e-9)
            assert found.interval == pytest.approx(null.interval(key), rel=1e-6)
            assert found.p_value == pytest.approx(null.p_value(key, value))
            assert found.inside == null.contains(key, value)
        assert layer.noise.n_draws == 60
        both = layer.decomposition.beta.exponent + layer.decomposition.phi.exponent
        assert layer.noise.alpha.value == pytest.approx(both)  # no direction was dropped here


def test_factors_of_gradients_are_their_own_null():
    layer = measured(fisher_type="empirical")["head"]
    empirical = problem().kronecker_factors(["head"], fisher_type="empirical")["head"]
    null = sc.noise_null(empirical, empirical, 60, top_k=5, n_draws=60)
    assert layer.noise.alpha.interval == pytest.approx(null.interval("alpha"), rel=1e-6)


def test_sampling_changes_no_comparison():
    one, other = measured(), measured(sampling=4)
    for name, layer in one.items():
        again = other[name].noise.alpha.interval
        assert layer.noise.alpha.interval == pytest.approx(again, rel=1e-6)


def test_it_is_shown_and_kept():
    found = measured()
    text, (row, _) = found.summary(), found.rows()
    assert "beside those of noise alone (60 draws from each layer's factors)" in text
    noise = found["0"].noise.alpha
    side = "inside" if noise.inside else "outside"
    assert f"{noise.value:.2f} {side} {noise.interval[0]:.2f}–" in text
    assert (row["noise_alpha_low"], row["noise_alpha_p"]) == (noise.interval[0], noise.p_value)
    again = sc.SpectralReport.from_dict(found.to_dict())
    assert again["0"].noise == found["0"].noise and again.provenance.noise_draws == 60
    plain = sc.measure(problem(), top_k=5, decompose=True, progress=False)
    assert plain["0"].noise is None and "noise alone" not in plain.summary()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"noise_draws": -1}, "noise_draws: -1 is no number of draws"),
        ({"noise_draws": 2.0}, "noise_draws: 2.0 is no number"),
        ({"noise_draws": True}, "noise_draws: True is no number"),
        ({"decompose": False}, "made of Kronecker factors; pass decompose=True"),
    ],
)
def test_what_makes_no_draws_is_refused(options, said):
    with pytest.raises(sc.InputError, match=said):
        measured(**options)


def test_a_problem_without_factors_of_gradients_keeps_its_terms():
    class OnlyGgn:
        def __init__(self):
            self._problem = problem()

        def __getattr__(self, name):
            if name == "factors_along":
                raise AttributeError(name)
            return getattr(self._problem, name)

        def kronecker_factors(self, layers, *, fisher_type="ggn", kfac_approx="expand"):
            if fisher_type == "empirical":
                raise sc.LayerError(layers[0], "its labels are gone.")
            return self._problem.kronecker_factors(layers)

    options = {"decompose": True, "noise_draws": 9, "progress": False}
    layer = sc.measure(OnlyGgn(), "head", top_k=5, **options)["head"]
    assert layer.noise is None and layer.decomposition is not None
    assert "not compared with noise: its labels are gone." in layer.notes
