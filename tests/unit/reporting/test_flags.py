"""Marks of a layer, and what is said of its sampling errors."""

from dataclasses import replace

import numpy as np
import pytest
from written_layers import decomposition, layer, report

import spectral_core as sc

SIGMA = np.geomspace(1, 0.01, 12)
WOBBLE = np.exp(0.3 * np.sin(3 * np.arange(12)))


def straight(**changes):
    """A layer of which nothing is to be marked."""
    return layer(**{"sigma": SIGMA, "curvature": SIGMA**2 * WOBBLE} | changes)


def number(value, half, drift=0.0):
    return sc.SampledNumber(half / 2.5, (value - half, value + half), drift, value + 2 * drift)


def sampling(shares=0.9, **changes):
    numbers = dict.fromkeys(("alpha", "gamma", "s", "participation"), number(2.0, 0.5))
    return sc.LayerSampling(8, "own", 0.7, np.full(12, shares), **(numbers | changes))


def test_a_straight_line_of_signal_has_no_mark():
    assert straight().flags == straight(sampling=sampling()).flags == ()


@pytest.mark.parametrize(
    ("changes", "flag", "said"),
    [
        (
            {"sampling": sampling(shares=0.3)},
            "noise",
            "median signal share of the directions is 0.30",
        ),
        (
            {"sampling": sampling(gamma=number(0.8, 0.1, drift=-0.3))},
            "moving",
            "half of the data would change γ by -0.30 (standard error 0.04)",
        ),
        (
            {"sigma": np.append(SIGMA[:-1], 1e-9), "curvature": np.append(SIGMA[:-1] ** 2, 1e-4)},
            "one point",
            "would be 2.00 without direction 12",
        ),
        (
            {"curvature": np.exp(-(np.log(SIGMA) ** 2)) * WOBBLE},
            "curved",
            "α depends on the window",
        ),
    ],
)
def test_each_mark_says_why(changes, flag, said):
    marked = straight(**{"sampling": sampling()} | changes)
    assert flag in marked.flags and said in marked.flag_reasons[flag]
    shown = report(marked).summary()
    assert f"  body: {marked.flag_reasons[flag]}\n" in shown + "\n"
    assert flag in next(line for line in shown.splitlines() if line.startswith("body"))


def test_the_table_tells_both_intervals_and_the_rows_have_errors_and_drift():
    marked = straight(sampling=sampling(alpha=number(1.9, 0.7, drift=0.2)))
    found = report(marked, replace(straight(), name="bare"))
    header, (with_errors, bare) = found.table()
    place = header.index("± sample")
    assert (with_errors[place], bare[place]) == ("0.700", "")
    assert "± sample" not in report(straight()).table()[0]
    first, second = found.rows()
    assert first["alpha_sampling_stderr"] == 0.7 / 2.5 and first["alpha_drift"] == 0.2
    assert first["signal_share_median"] == 0.9 and np.isnan(second["signal_share"])
    assert "± sample: how far α moves with another sample" in found.summary()
    assert found.sampling_table()[1][0][3] == "0.70, drift +0.20"


def test_sampling_errors_survive_a_file():
    found = report(straight(sampling=sampling(beta=number(2.0, 0.1))))
    again = sc.SpectralReport.from_dict(found.to_dict())
    assert again["body"].sampling.beta == number(2.0, 0.1)
    assert again["body"].sampling.kappa is None and again.to_dict() == found.to_dict()


def explained(**terms):
    """The explanation of a layer whose φ carries α = 1.5 as far as residuals tell."""
    x = np.log(SIGMA)
    lam, phi = 2 * x + 0.01 * np.sin(5 * x), -0.5 * x + 0.01 * np.cos(5 * x)
    rho = np.exp(phi)
    factor = sc.FactorSpectrum(
        np.exp(lam), np.exp(lam + phi), rho, np.zeros(12, bool), 12, 3.0, 9.0
    )
    flat = replace(factor, eigenvalues=np.ones(12), quadratic=np.ones(12), rho=np.ones(12))
    alignment = sc.SpectralAlignment(factor, flat, np.exp(lam + phi))
    h = np.exp(lam + phi)
    found = layer(
        sigma=SIGMA, curvature=h, ggn=h, alignment=alignment,
        decomposition=sc.decompose_exponent(SIGMA, h, h, alignment).to_floats(),
        sampling=sampling(**terms) if terms else None,
    )  # fmt: skip
    return sc.explain(found)


def test_a_term_is_named_only_if_it_stands_against_sampling():
    assert decomposition().phi.exponent == -0.6  # the helper of the other file is another layer
    assert explained().dominating == "phi"
    certain = explained(alpha=number(1.5, 0.1), phi=number(-0.5, 0.2))
    assert certain.dominating == "phi"
    assert certain.terms["phi"].interval == pytest.approx((-0.7, -0.3), abs=0.02)
    doubtful = explained(alpha=number(1.5, 0.1), phi=number(-0.5, 0.6))
    assert doubtful.dominating is None and "no single term is shown" in doubtful.sentence
    unknown = explained(alpha=number(1.5, 0.6), phi=number(-0.5, 0.2))
    assert "is compatible with 2" in unknown.sentence
