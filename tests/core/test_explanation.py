"""The sentence about a layer: right where the data decide, silent where they do not."""

import numpy as np
import pytest
from decomposed import K, layer
from scipy import stats

import spectral_core as sc
from spectral_core.measurement import spectrum_from_values


@pytest.mark.parametrize(
    ("slopes", "name", "symbol"),
    [
        ({"phi": -1.0}, "phi", "φ"),
        ({"beta": 1.2}, "beta", "β − 2"),
        ({"kappa": 0.8, "phi": 0.1}, "kappa", "κ"),
        ({"nu": -0.7, "beta": 2.2}, "nu", "ν"),
    ],
)
def test_the_dominating_term_is_named(slopes, name, symbol):
    found = sc.explain(layer(**slopes))
    assert found.dominating == name
    side = "below" if sum(slopes.values()) - 2 * ("beta" in slopes) < 0 else "above"
    assert f"lies {side} 2 mostly by {symbol}" in str(found)
    assert sum(term.share for term in found.terms.values()) == pytest.approx(1)
    values = [term.value for term in found.terms.values()]
    assert sum(values) == pytest.approx(found.alpha - 2, abs=1e-9)
    for term in found.terms.values():
        assert term.interval[0] <= term.value <= term.interval[1]
        assert 0 <= term.share_interval[0] <= term.share <= term.share_interval[1] <= 1


def test_intervals_are_those_of_the_fits():
    spectrum = layer(noise=0.3, phi=-0.5)
    terms, fits = sc.explain(spectrum).terms, spectrum.decomposition
    for name, offset in (("beta", 2), ("phi", 0), ("kappa", 0), ("nu", 0)):
        fit = getattr(fits, name)
        np.testing.assert_allclose(terms[name].interval, np.asarray(fit.interval) - offset)


def test_equal_terms_are_not_told_apart():
    found = sc.explain(layer(noise=0.2, phi=-0.5, kappa=-0.5))
    assert found.dominating is None and "no single term is shown" in str(found)


def test_a_term_against_the_deviation_is_no_explanation():
    """α − 2 = −0.4 from β − 2 = +0.6 and two terms of −0.5: the largest one does not carry it."""
    found = sc.explain(layer(beta=2.6, phi=-0.5, kappa=-0.5))
    assert found.alpha < 2 and found.dominating is None


def test_alpha_of_two_is_left_alone_but_cancellation_is_said():
    assert "compatible with 2" in str(sc.explain(layer(noise=0.1)))
    cancelling = str(sc.explain(layer(beta=2.5, phi=-0.5, noise=0.05)))
    assert "compatible with 2" in cancelling and "cancel" in cancelling
    assert "β − 2 (+0." in cancelling and "φ (-0." in cancelling


@pytest.mark.parametrize("against", [False, True])
def test_claims_are_seldom_wrong(against):
    """Where two terms are equal, a dominating one may be named in 5 % of data sets at most."""
    wrong = sum(
        sc.explain(
            layer(seed, noise=0.2, phi=-0.5, kappa=-0.5, against=against)
        ).dominating is not None
        for seed in range(400)
    )  # fmt: skip
    assert wrong <= stats.binom.ppf(0.999, 400, 0.05)


def test_share_intervals_cover():
    truth = 0.9 / 1.3
    covered = 0
    for seed in range(300):
        low, high = sc.explain(layer(seed, 0.1, phi=-0.9, kappa=-0.4)).terms["phi"].share_interval
        covered += low <= truth <= high
    assert covered >= stats.binom.ppf(0.001, 300, 0.90)


def test_without_a_decomposition():
    plain = spectrum_from_values(sc.LayerInfo("x", "linear", (3, 3)), np.ones(3), np.ones(3))
    with pytest.raises(sc.InputError, match="'x': has no decomposition; measure it with"):
        sc.explain(plain)
    few = layer()
    h = np.where(np.arange(K) < 2, few.curvature, -1)
    fits = sc.decompose_exponent(few.sigma, h, few.ggn, few.alignment).to_floats()
    found = sc.explain(sc.LayerSpectrum(**{**vars(few), "curvature": h, "decomposition": fits}))
    assert found.dominating is None and "fewer than 3 usable points" in str(found)
