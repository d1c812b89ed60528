"""The paper's frozen measurements, SciPy and mpmath, to their last published digit."""

import json

import mpmath
import numpy as np
import pytest
from scipy import stats

import spectral_core as sc
from spectral_core.exponents.student_t import student_t_quantile


@pytest.fixture
def triangles(shared):
    path = shared / "paper-results" / "results_alpha_triangle.json"
    blocks = json.loads(path.read_text())
    return {(b["experiment"], r["name"]): r for b in blocks for r in b["results"]}


def test_paper_triangles(triangles):
    assert len(triangles) == 24
    for layer in triangles.values():
        found = sc.exponent_triangle(layer["sigma"], layer["h_exact"]).to_floats()
        pairs = {
            "alpha": found.alpha.exponent, "gamma": found.gamma.exponent,
            "s_hessian": found.s.exponent, "r2_alpha": found.alpha.r_squared,
            "r2_gamma": found.gamma.r_squared, "r2_s_hessian": found.s.r_squared,
            "predicted_s": found.predicted_s, "triangle_relative_error": found.relative_error,
        }  # fmt: skip
        for name, value in pairs.items():
            assert value == pytest.approx(layer[name], rel=1e-6), (layer["name"], name)
        assert abs(found.closure) < 1e-12
        assert abs(found.defect) <= found.defect_bound * (1 + 1e-12)


def test_paper_rank_profiles(triangles, shared):
    path = shared / "paper-results" / "results_model_fit_comparison.json"
    layers = json.loads(path.read_text())["layers"]
    assert len(layers) == 24
    for layer in layers:
        sigma = triangles[layer["experiment"], layer["name"]]["sigma"]
        found = sc.fit_rank_profiles(sigma).to_floats()
        assert found.winner.replace("_", "") == layer["best_model_bic"].replace("_", "")
        for name, theirs in layer["fits"].items():
            ours = getattr(found, name.replace("lognormal", "log_normal"))
            for key in ("rss", "aic", "bic"):
                assert getattr(ours, key) == pytest.approx(theirs[key], rel=1e-6)
            named = {"log_c": "log_prefactor", "gamma": "gamma", "beta": "beta"}
            if name == "lognormal":  # the frozen tables call the quadratic coefficient a
                named |= {"a": "b", "b": "a"}
            for key in named.keys() & theirs.keys():
                assert ours.parameters[named[key]] == pytest.approx(theirs[key], rel=1e-6)


def test_data_of_a_form_leave_the_rounding_of_their_logarithms():
    sigma = 5.0 * np.arange(1.0, 13) ** -1.5
    level = 8 * 2.0**-52 * np.max(np.abs(np.log(sigma)))
    found = sc.fit_rank_profiles(sigma).to_floats()
    assert found.winner == "power_law"
    assert found.power_law.rss == pytest.approx(12 * level**2, rel=1e-12)


def test_7_5_zeta_against_mpmath():
    s = np.concatenate([np.linspace(1.0001, 60, 400), 1 + np.logspace(-4, 0, 100)])
    found = sc.zeta(s)
    with mpmath.workdps(40):
        worst = max(
            abs((mpmath.mpf(float(f)) - mpmath.zeta(float(a))) / mpmath.zeta(float(a)))
            for f, a in zip(found, s, strict=True)
        )
    assert worst < 1e-13


def test_zeta_outside():
    found = sc.zeta(np.asarray([1.0, 0.5, -2.0, np.nan, np.inf]))
    assert np.isinf(found[0]) and np.all(np.isnan(found[1:4])) and found[4] == 1


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 8, 18, 19, 57, 1000])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.9995])
def test_student_t(dof, probability):
    expected = stats.t.ppf(probability, dof)
    # The quantile cannot be better than the rounding of 1 - p allows.
    assert student_t_quantile(probability, dof) == pytest.approx(expected, rel=1e-11)
