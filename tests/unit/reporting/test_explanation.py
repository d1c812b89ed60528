"""The sentence about a layer: right where the data decide, silent where they do not."""

from dataclasses import replace

import numpy as np
import pytest
from decomposed import K, decomposed, layer, split
from scipy import stats

import spectral_core as sc
from spectral_core.measuring.layer_spectrum import spectrum_from_values
from spectral_core.reporting.rows import half_width


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
    for field in ("decomposition", "alignment", "ggn"):
        with pytest.raises(sc.InputError, match="'body': has no decomposition; measure it with"):
            sc.explain(replace(layer(), **{field: None}))
    few = layer()
    h = np.where(np.arange(K) < 2, few.curvature, -1)
    found = sc.explain(decomposed(few, few.sigma, h, few.ggn, few.alignment))
    assert str(found) == (
        "body: nothing can be said of α: fewer than 3 usable points; widen the window or use more "
        "data."
    )
    assert found.dominating is None and np.isnan(found.alpha) and found.terms == {}


def shares(values):
    return abs(values) / abs(values).sum()


class Textbook:
    """Regression of all terms on log σ at once, with the delta method by differences."""

    def __init__(self, spectrum):
        window = np.isfinite(spectrum.decomposition.chi)
        lam, phi, kron = (getattr(spectrum.alignment, n)[window] for n in ("lam", "phi", "kron"))
        sigma, h, ggn = (
            getattr(spectrum, n)[window].astype(float) for n in ("sigma", "curvature", "ggn")
        )
        x, y = np.log(sigma), np.log(np.stack([lam, phi, ggn / kron, h / ggn], 1))
        design = np.stack([np.ones_like(x), x], 1)
        fitted, *_ = np.linalg.lstsq(design, y, rcond=None)
        residuals = y - design @ fitted
        self.dof = len(x) - 2
        self.values = fitted[1] - [2, 0, 0, 0]
        variance = np.linalg.inv(design.T @ design)[1, 1]
        self.covariance = residuals.T @ residuals / self.dof * variance
        self.quantile = stats.t.ppf(0.975, self.dof)
        self.halves = self.quantile * np.diag(self.covariance) ** 0.5
        step = 1e-6 * np.eye(4)
        slopes = [(shares(self.values + d) - shares(self.values - d)) / 2e-6 for d in step]
        spread = self.quantile * np.diag(np.transpose(slopes) @ self.covariance @ slopes) ** 0.5
        self.share = shares(self.values)
        self.low, self.high = np.maximum(self.share - spread, 0), np.minimum(self.share + spread, 1)

    def amount(self, name):
        k = ("beta", "phi", "kappa", "nu").index(name)
        return (
            f"({self.values[k]:+.2f} ± {self.halves[k]:.2f}, {self.share[k]:.0%} of the terms' "
            f"absolute sum, {self.low[k]:.0%} to {self.high[k]:.0%})"
        )

    def leads(self):
        """Whether one term leads, with 5 % of error shared among its three leads (Bonferroni)."""
        quantile = stats.t.ppf(1 - 0.05 / 6, self.dof)
        towards = self.values * np.sign(self.values.sum())
        first = np.argmax(abs(towards))
        contrasts = [np.sign(self.values) * (np.eye(4)[first] - np.eye(4)[o]) for o in range(4)]
        contrasts[first] = np.sign(self.values) * np.eye(4)[first]
        spread = [np.sqrt(c @ self.covariance @ c) for c in contrasts]
        leads = [c @ self.values for c in contrasts]
        return towards[first] > 0 and all(np.array(leads) > quantile * np.array(spread))


@pytest.mark.parametrize(
    "slopes",
    [
        {"noise": 0.3, "phi": -0.5, "kappa": 0.2},
        {"noise": (0.1, 0.5, 0.2, 0.0), "beta": 2.3, "phi": 0.5, "nu": -0.1},
        {"noise": 1.5, "phi": -0.1},
    ],
)
def test_shares_by_the_delta_method(slopes):
    spectrum = layer(3, **slopes)
    book, terms = Textbook(spectrum), list(sc.explain(spectrum).terms.values())
    for k, term in enumerate(terms):
        assert term.value == pytest.approx(book.values[k], abs=1e-12)
        assert term.share == pytest.approx(book.share[k])
        assert term.share_interval == pytest.approx((book.low[k], book.high[k]), abs=1e-6)


def test_a_dominating_term_leads_each_other_beyond_its_uncertainty():
    """At many distances from the others, some of them near the border."""
    named = [0, 0]
    for k, phi in enumerate(np.linspace(-0.45, -0.85, 100)):
        spectrum = layer(k % 4, noise=0.2, phi=phi, kappa=-0.4)
        found = sc.explain(spectrum).dominating is not None
        assert found == Textbook(spectrum).leads()
        named[found] += 1
    assert min(named) > 15


BETA = "β − 2, the eigenvalues of the Kronecker factors"
PHI = "φ, the alignment of the gradient's directions with the factors"


def head(spectrum):
    fit = spectrum.decomposition.alpha
    return f"body: α = {fit.exponent:.2f} ± {(fit.interval[1] - fit.interval[0]) / 2:.2f}"


def test_sentences_word_by_word():
    """With the numbers of the textbook."""
    for slopes, side, name, text in (
        ({"phi": -1.0}, "below", "phi", PHI),
        ({"beta": 3.5}, "above", "beta", BETA),
    ):
        spectrum = layer(noise=0.2, **slopes)
        assert str(sc.explain(spectrum)) == (
            f"{head(spectrum)} lies {side} 2 mostly by {text} {Textbook(spectrum).amount(name)}."
        )
    spectrum = layer(noise=0.2, beta=1.2, phi=-0.6)
    found = sc.explain(spectrum)
    assert list(found.terms) == ["beta", "phi", "kappa", "nu"]
    assert str(found) == (
        f"{head(spectrum)} lies below 2, and no single term is shown "
        f"to carry it; the largest is {BETA} {Textbook(spectrum).amount('beta')}."
    )


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({}, ""),
        ({"noise": (0.02, 0.02, 0.02, 0.5), "phi": 0.1}, ", though φ ({1:+.2f}) is not zero"),
        (
            {"noise": (0.02, 0.02, 0.02, 0.5), "phi": 0.1, "kappa": 0.1},
            ", though φ ({1:+.2f}) and κ ({2:+.2f}) are not zero",
        ),
        (
            {"noise": (0.02, 0.02, 0.02, 0.5), "phi": 0.1, "kappa": -0.1},
            ", as φ ({1:+.2f}) and κ ({2:+.2f}) cancel within the uncertainty",
        ),
    ],
)
def test_what_is_said_of_an_alpha_of_two(options, end):
    spectrum = layer(**{"noise": 0.1} | options)
    found = sc.explain(spectrum)
    assert str(found) == (
        f"{head(spectrum)} is compatible with 2{end.format(*Textbook(spectrum).values)}."
    )
    assert found.alpha == spectrum.decomposition.alpha.exponent and len(found.terms) == 4


def test_alpha_of_exactly_two_has_no_terms():
    """Powers of two have logarithms whose double is that of their square."""
    spectrum = layer(noise=0.0, sigma=2.0 ** -np.arange(K))
    found = sc.explain(spectrum)
    assert str(found) == "body: α = 2.00 ± 0.00 is compatible with 2."
    for term in found.terms.values():
        assert term.value == 0 and term.interval == (0, 0) and np.isnan(term.share)


def test_directions_off_the_window_say_nothing():
    """Negative or zero curvature is dropped, in silence."""
    whole = layer(noise=0.2, phi=-0.8)
    h, ggn = whole.curvature.copy(), whole.ggn.copy()
    h[3], h[5], ggn[5], ggn[6], ggn[7] = -1.0, 0.0, 0.0, 0.0, -1.0
    spectrum = decomposed(whole, whole.sigma, h, ggn, whole.alignment)
    terms, book = sc.explain(spectrum).terms, Textbook(spectrum)
    assert book.dof == K - 6
    np.testing.assert_allclose([term.value for term in terms.values()], book.values)


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        (0.8, "the positions of a sample acting together carry most of it"),
        (0.0, "the dependence of δ and a carries most of it"),
        (0.4, "none of its parts is shown to carry it"),
        (-0.5, "the dependence of δ and a carries most of it"),  # 1.3 of 0.8
    ],
)
def test_kappa_that_dominates_is_one_of_positions_or_of_dependence(positions, said):
    whole = layer(kappa=0.8)
    parted = split(whole, positions)
    sentence, more = str(sc.explain(parted)).split(" Of κ, ")
    assert sentence == str(sc.explain(whole))
    fits = parted.decomposition
    halves = [half_width(fit) for fit in (fits.kappa_positions, fits.kappa_dependence)]
    assert more == (
        f"{said}: κ^pos {fits.kappa_positions.exponent:+.2f} ± {halves[0]:.2f}, "
        f"κ^dep {fits.kappa_dependence.exponent:+.2f} ± {halves[1]:.2f}."
    )


def test_nothing_is_said_of_the_parts_where_another_term_dominates():
    assert "Of κ" not in str(sc.explain(split(layer(phi=-1.0), 0.5)))
    assert "Of κ" not in str(sc.explain(replace(split(layer(kappa=0.8), 0.5), diagonal=None)))
