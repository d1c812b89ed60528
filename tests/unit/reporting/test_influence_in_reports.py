"""What a layer tells of its α: the line's check, α over the window, the points that carry it."""

import json
from dataclasses import asdict

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.curvature.problem import LayerInfo
from spectral_core.measuring.layer_spectrum import spectrum_from_values

RNG = np.random.default_rng(0)
SIGMA = np.arange(1.0, 13) ** -0.8
CURVATURE = SIGMA**1.7 * np.exp(0.2 * RNG.normal(size=12))
CURVATURE[4] = -1.0


def spectrum(sigma=SIGMA, curvature=CURVATURE, confidence=0.9):
    info = LayerInfo("body", "linear", (12, 12))
    return spectrum_from_values(info, sigma, curvature, confidence=confidence)


def test_a_layer_tells_what_carries_its_alpha():
    layer = spectrum()
    check = layer.line_check
    assert check == sc.check_line(SIGMA, CURVATURE, confidence=0.9).to_floats()
    assert type(check.quadratic) is float and type(check.rejected) is bool
    curve = layer.alpha_over_k
    assert curve.exponent.shape == (12,) and curve.confidence == 0.9
    assert curve.exponent[-1] == pytest.approx(layer.alpha.exponent, rel=1e-12)
    np.testing.assert_array_equal(curve.n, np.cumsum(CURVATURE > 0))
    far = np.append(100.0, SIGMA[:-1])
    assert spectrum(far, far**2 * (1 + 0.1 * np.cos(np.arange(12)))).carried_by == (1,)
    assert spectrum(1.5 ** -np.arange(12.0), 1.5 ** -np.arange(12.0)).carried_by == ()


def test_a_layer_without_alpha_tells_nothing():
    layer = spectrum(curvature=-np.ones(12))
    assert layer.carried_by == () and layer.line_check.rejected is False
    assert np.isnan(layer.alpha_over_k.exponent).all()


def test_leverages_come_back_from_json():
    layer = spectrum()
    again = sc.LayerSpectrum.from_dict(json.loads(json.dumps(layer.to_dict(), allow_nan=False)))
    np.testing.assert_equal(asdict(again), asdict(layer))
    for fit in (again.alpha, again.gamma, again.s):
        assert fit.leverage.shape == fit.without_each.shape == (12,)
    assert np.isnan(again.alpha.without_each[4]) and again.alpha.leverage[4] == 0


def test_a_report_of_version_1_has_it_too():
    """Its fits have no leverage; σ and h are all that is needed."""
    data = spectrum().to_dict()
    for name in ("alpha", "gamma", "s"):
        for new in ("leverage", "without_each"):
            del data["triangle"][name][new]
    old = sc.LayerSpectrum.from_dict(data)
    assert old.alpha.leverage is None and old.alpha.without_each is None
    assert old.carried_by == spectrum().carried_by and old.line_check == spectrum().line_check
    again = sc.LayerSpectrum.from_dict(json.loads(json.dumps(old.to_dict())))
    assert again.alpha == old.alpha and again.alpha.leverage is None


@pytest.mark.parametrize("name", ["leverage", "without_each"])
@pytest.mark.parametrize("value", [[1.0], 1.0, "many"])
def test_leverages_of_another_number_are_no_spectrum(name, value):
    data = spectrum().to_dict()
    data["triangle"]["alpha"][name] = value
    with pytest.raises((ValueError, TypeError)):
        sc.LayerSpectrum.from_dict(data)
