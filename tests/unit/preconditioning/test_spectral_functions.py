"""Other functions of singular values than T: a class each, and no line elsewhere."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.methods.table import METHODS
from spectral_core.preconditioning.preconditioner import apply_function
from spectral_core.preconditioning.spectral_function import SpectralFunction


@dataclass(frozen=True)
class SoftThreshold(SpectralFunction):
    """``max(σ − t σ_max, 0)``."""

    formula = "T(σ) = max(σ - t σ_max, 0)"
    threshold: float = 0.25

    def check(self):
        if not 0 <= self.threshold < 1:
            raise sc.InputError(f"threshold: {self.threshold} is outside [0, 1).")

    def at(self, xp, sigma_max):
        return ScaledSoftThreshold(self.threshold, sigma_max)


@dataclass(frozen=True)
class ScaledSoftThreshold:
    threshold: float
    factor: Any

    def values(self, xp, ratios):
        return xp.where(ratios > self.threshold, ratios - self.threshold, xp.zeros_like(ratios))

    def quotients(self, xp, ratios):
        kept = ratios > self.threshold
        one = xp.ones_like(ratios)
        return xp.where(kept, 1 - self.threshold / xp.where(kept, ratios, one), 0 * one)

    def peak(self, xp, like):
        return (1 - self.threshold) * xp.ones_like(like)


@dataclass(frozen=True)
class Sign(SpectralFunction):
    """1 for all σ > 0, as Muon's."""

    formula = "T(σ) = 1"
    undamped = True

    def at(self, xp, sigma_max):
        return ScaledSign(xp.ones_like(sigma_max))


@dataclass(frozen=True)
class ScaledSign:
    factor: Any

    def values(self, xp, ratios):
        return xp.where(ratios > 0, xp.ones_like(ratios), xp.zeros_like(ratios))

    def quotients(self, xp, ratios):
        kept, one = ratios > 0, xp.ones_like(ratios)
        return xp.where(kept, one, 0 * one) / xp.where(kept, ratios, one)

    def peak(self, xp, like):
        return xp.ones_like(like)


def written_out(function, g):
    u, sigma, vh = np.linalg.svd(np.asarray(g, dtype=np.float64), full_matrices=False)
    top = np.max(sigma)
    values = np.maximum(sigma - 0.25 * top, 0) if function is SOFT else (sigma > 1e-9 * top) * 1.0
    return (u * values) @ vh


SOFT, SIGN = SoftThreshold(), Sign()


@pytest.mark.parametrize("function", [SOFT, SIGN], ids=["soft threshold", "sign"])
@pytest.mark.parametrize("method", ["svd", "eigh", "auto"])
@pytest.mark.parametrize("normalize", ["none", "spectral", "rms"])
def test_another_function_is_applied(xp, function, method, normalize):
    g = xp.precise(np.random.default_rng(0).normal(size=(5, 9)))
    found = apply_function(xp.array(g), function, method=method, normalize=normalize)
    expected = written_out(function, g)
    if normalize == "spectral":
        expected /= np.linalg.norm(expected, 2)
    elif normalize == "rms":
        expected *= 0.2 / np.sqrt(np.mean(expected**2))
    xp.check_kind(found, xp.array(g))
    np.testing.assert_allclose(
        xp.numpy(found), expected, rtol=0, atol=300 * xp.eps * abs(expected).max()
    )


def test_rank_that_is_missing_stays_missing(xp):
    g = np.outer(np.arange(1.0, 5), np.ones(6))
    for method in ("svd", "eigh"):
        found = xp.numpy(apply_function(xp.array(g), SIGN, method=method))
        np.testing.assert_allclose(found, g / np.linalg.norm(g, 2), atol=100 * xp.eps)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("svd", "eigh")])
def test_methods_of_one_function_say_so(method):
    said = (
        rf"method: '{method}' is for T\(σ\) = σ / \(σ\^α \+ d\) alone, not T\(σ\) = 1; use 'eigh'"
    )
    with pytest.raises(sc.InputError, match=said):
        apply_function(np.eye(3), SIGN, method=method)


def test_its_parameters_are_checked_and_its_rounding_is_found():
    with pytest.raises(sc.InputError, match="threshold: 2 is outside"):
        apply_function(np.eye(3), SoftThreshold(2))
    # A squared singular value that errs by η moves σ by η / 2σ, at most at the threshold.
    assert SOFT.rounding(1e-6) == pytest.approx(1e-6 / (2 * 0.25 * 0.75), rel=0.02)
    assert SIGN.rounding(1e-6) > 0.5  # and so "auto" takes "svd" for it
    assert SOFT.steepness() == pytest.approx(1 / 0.75, rel=1e-6)


def test_a_square_of_the_gram_matrix_errs_once_more():
    """With α = 4 an error η of B moves σ/(σ⁴ + d) by its slope in B, and one of B² by T/(B² + d)."""
    b, d = np.linspace(0, 1, 20001), 0.1
    below = b**2 + d
    found = np.sqrt(b) * (2 * b + 1) / below**2 / np.max(np.sqrt(b) / below)
    assert DampedPower(4.0, d).rounding(1e-7) == pytest.approx(1e-7 * np.max(found), rel=1e-3)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_what_any_function_gets_is_what_t_says_of_itself(alpha):
    function = DampedPower(alpha, 0.1)
    assert function.rounding(1e-6) == pytest.approx(
        SpectralFunction.rounding(function, 1e-6), rel=1e-12
    )
