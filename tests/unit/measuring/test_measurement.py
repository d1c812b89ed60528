"""`measure` over a problem with a known Hessian: who is told what, what is noted, what is kept."""

import platform

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.measuring.layer_spectrum import spectrum_from_values

LAYERS = {"body": (7, 6), "flat": (5, 4), "head": (6, 7)}


class Quadratics:
    """``L = Σ ½ <W, A W B>``, of which one layer has no gradient and one no second derivative."""

    def __init__(self, refused=()):
        rng = np.random.default_rng(1)
        self.factors, self.weights, self.refused = {}, {}, refused
        for name, (m, n) in LAYERS.items():
            roots = rng.standard_normal((m, 2 * m)), rng.standard_normal((n, 2 * n))
            self.factors[name] = [root @ root.T / root.shape[1] for root in roots]
            self.weights[name] = (name != "flat") * rng.standard_normal((m, n))

    def layers(self):
        return [sc.LayerInfo(name, "linear", shape) for name, shape in LAYERS.items()]

    def skipped(self):
        return {"embedding": "has three axes"}

    def describe(self):
        return {"backend": "test", "seed": 3}

    def gradients(self, layers):
        return {n: self.factors[n][0] @ self.weights[n] @ self.factors[n][1] for n in layers}

    def curvatures(self, layer, u, v, kind="hessian"):
        if layer in self.refused:
            raise sc.LayerError(layer, "a step function has no derivative.")
        a, b = self.factors[layer]
        return np.sum(u * (a @ u), 0) * np.sum(v * (b @ v), 0)

    def kronecker_factors(self, layers, *, fisher_type="ggn", kfac_approx="expand"):
        return {name: sc.KroneckerFactors(*self.factors[name]) for name in layers}


def told_by(problem, **options):
    told = []
    report = sc.measure(problem, progress=lambda *what: told.append(what), **options)
    return report, told


def test_progress_counts_layers_that_are_finished_or_skipped():
    report, told = told_by(Quadratics(), top_k=3)
    assert list(report) == ["body", "head"]
    assert list(dict.fromkeys(told)) == [
        (0, 3, "gradients"), (1, 3, "body"), (2, 3, "head"), (3, 3, ""),
    ]  # fmt: skip


def test_a_finished_measurement_asks_for_nothing(tmp_path):
    journal, problem = tmp_path / "run.journal", Quadratics()
    chosen = {"layers": ["body", "head"], "top_k": 3, "resume": journal}
    first, _ = told_by(problem, **chosen)
    problem.gradients = problem.curvatures = None
    again, told = told_by(problem, **chosen)
    assert told == [(2, 2, "")] and again.to_dict() == first.to_dict()


def test_layers_that_cannot_be_measured_are_skipped_with_the_reason():
    report, _ = told_by(Quadratics(refused=["head"]), top_k=3)
    assert list(report) == ["body"] and dict(report.skipped) == {
        "embedding": "has three axes",
        "flat": "its gradient is zero on these data; no direction can be measured.",
        "head": "a step function has no derivative.",
    }
    with pytest.raises(sc.SpectralError) as caught:
        sc.measure(Quadratics(refused=["body", "head"]), ["body", "head"])
    assert type(caught.value) is sc.SpectralError and str(caught.value) == (
        "none of the 2 selected layers could be measured; 'body': a step function has no "
        "derivative."
    )
    with pytest.raises(sc.SpectralError) as caught:
        sc.measure(Quadratics(refused=["body", "head"]), ["head", "flat", "body"])
    assert str(caught.value) == (
        "none of the 3 selected layers could be measured; 'flat': its gradient is zero on these "
        "data; no direction can be measured. 'body': a step function has no derivative."
    )


@pytest.mark.parametrize(
    ("values", "counted"),
    [
        ([np.nan] * 3, "of its 3 curvatures 3 NaN: "),
        ([2.0, np.nan, 1.0], "of its 3 curvatures 1 NaN: "),
        ([2.0, 3.0, -np.inf], "of its 3 curvatures 1 infinite: "),
        ([np.inf, np.nan, np.inf], "of its 3 curvatures 1 NaN and 2 infinite: "),
    ],
)
def test_a_layer_without_a_finite_second_derivative_is_skipped(values, counted):
    problem = Quadratics()
    curvatures = problem.curvatures
    problem.curvatures = lambda layer, u, v, kind: (
        np.asarray(values) if layer == "head" else curvatures(layer, u, v, kind)
    )
    report = sc.measure(problem, top_k=3)
    assert list(report) == ["body"] and report.skipped["head"].startswith(counted)
    assert "a norm, a square root or a power below two at zero" in report.skipped["head"]


def test_without_a_finite_gauss_newton_curvature_there_is_no_decomposition():
    problem = Quadratics()
    curvatures = problem.curvatures
    problem.curvatures = lambda layer, u, v, kind: curvatures(layer, u, v, kind) / (kind != "ggn")
    with np.errstate(divide="ignore"):
        found = sc.measure(problem, "body", top_k=3, decompose=True)["body"]
    assert found.decomposition is None and np.isfinite(found.curvature).all()
    (note,) = found.notes
    assert note.startswith("no decomposition: of its 3 curvatures 3 infinite: ")


def test_a_problem_whose_parameters_are_all_skipped_says_why():
    problem = Quadratics()
    problem.layers = list
    with pytest.raises(sc.InputError, match=r"skipped: 'embedding' \(has three axes\)\.$"):
        sc.measure(problem)


def test_where_the_numbers_come_from():
    report = sc.measure(Quadratics(), "head", top_k=np.int64(2), confidence=0.9, svd="randomized")
    provenance = report.provenance
    assert provenance.problem == {"backend": "test", "seed": 3}
    assert provenance.versions == {
        "spectral_core": sc.__version__, "numpy": np.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
    assert (provenance.top_k, type(provenance.top_k)) == (2, int)
    assert (provenance.curvature, provenance.confidence) == ("hessian", 0.9)
    assert (provenance.factors, provenance.engine, provenance.svd) == (None, "auto", "randomized")
    assert report["head"].alpha.confidence == 0.9


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_smallest_windows(top_k):
    spectrum = sc.measure(Quadratics(), "body", top_k=top_k)["body"]
    assert spectrum.sigma.shape == spectrum.curvature.shape == (top_k,)
    assert spectrum.notes == ("α: fewer than 3 usable points; widen the window or use more data",)


def test_a_decomposition_of_kronecker_curvatures():
    """``H = A ⊗ B`` is its own factors: neither κ nor ν is left."""
    problem = Quadratics()
    report = sc.measure(
        problem, top_k=6, decompose=True, fisher_type="empirical", kfac_approx="reduce"
    )
    assert report.provenance.factors == {"delta": "empirical", "sharing": "reduce"}
    for spectrum in report.values():
        u, _, vh = np.linalg.svd(problem.gradients([spectrum.name])[spectrum.name])
        expected = problem.curvatures(spectrum.name, u[:, :6], vh.T[:, :6])
        for found in (spectrum.curvature, spectrum.ggn, spectrum.alignment.kron):
            np.testing.assert_allclose(found, expected, rtol=1e-10)
        fits = spectrum.decomposition
        np.testing.assert_allclose(fits.chi, np.ones(6), rtol=1e-10)
        assert abs(fits.kappa.exponent) < 1e-10 and abs(fits.nu.exponent) < 1e-10
        assert fits.alpha.exponent == pytest.approx(spectrum.alpha.exponent, abs=1e-12)
        assert spectrum.certificate.engine == "own"


def test_the_confidence_is_that_of_every_fit():
    spectrum = sc.measure(Quadratics(), "body", top_k=6, decompose=True, confidence=0.9)["body"]
    fits = spectrum.decomposition
    asked = (spectrum.alpha, spectrum.gamma, spectrum.s, fits.alpha, fits.beta, fits.nu)
    assert {fit.confidence for fit in asked} == {0.9}


def test_directions_lost_to_a_factor_of_low_rank_are_counted():
    problem = Quadratics()
    narrow = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 4)))[0]

    def factors(layers, *, fisher_type, kfac_approx):
        c_delta, c_a = narrow @ narrow.T, problem.factors["body"][1]
        return {"body": sc.KroneckerFactors(c_delta, c_a, notes=("of low rank",))}

    problem.kronecker_factors = factors
    spectrum = sc.measure(problem, "body", top_k=6, decompose=True)["body"]
    assert spectrum.alpha.n_dropped == 0 and spectrum.decomposition.alpha.n_dropped == 2
    assert spectrum.notes[-1] == (
        "2 more directions dropped from the decomposition (eigenvalues of a factor at rounding "
        "level, or a Gauss-Newton curvature <= 0)"
    )
    assert "of low rank" in spectrum.notes


def test_directions_that_both_fits_drop_are_counted_once():
    class Indefinite(Quadratics):
        def curvatures(self, layer, u, v, kind="hessian"):
            found = super().curvatures(layer, u, v)
            return np.where(np.arange(len(found)) == 1, -found, found) if kind != "ggn" else found

    spectrum = sc.measure(Indefinite(), "body", top_k=6, decompose=True)["body"]
    assert spectrum.alpha.n_dropped == spectrum.decomposition.alpha.n_dropped == 1
    assert not any("more directions dropped" in note for note in spectrum.notes)


@pytest.mark.parametrize("where", ["factors", "ggn"])
def test_a_layer_without_factors_or_ggn_keeps_its_spectrum(where):
    problem, plain = Quadratics(), sc.measure(Quadratics(), "body", top_k=5)["body"]
    curvatures = problem.curvatures

    def missing(*arguments, **options):
        raise sc.LayerError("body", f"there is no {where}.")

    if where == "factors":
        problem.kronecker_factors = missing
    else:
        problem.curvatures = lambda layer, u, v, kind="hessian": (
            missing() if kind == "ggn" else curvatures(layer, u, v)
        )
    found = sc.measure(problem, "body", top_k=5, decompose=True)["body"]
    assert found.notes == (*plain.notes, f"no decomposition: there is no {where}.")
    assert found.decomposition is found.alignment is found.ggn is None
    assert found.triangle == plain.triangle and found.certificate == plain.certificate


def test_dropped_directions_are_noted():
    sigma, layer = np.asarray([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]), sc.LayerInfo("a", "x", (9, 8))
    h = np.asarray([0.9, -1.0, 0.0, np.nan, np.inf, 4.0, 2.0])
    found = spectrum_from_values(layer, sigma, h, notes=("before",))
    assert found.notes == (
        "before",
        "5 of 7 directions dropped from the fits of α and s (4 with h <= 0 or not finite)",
        "α: fewer than 3 usable points; widen the window or use more data",
    )
    assert (found.name, found.kind, found.shape) == ("a", "x", (9, 8))
    whole = spectrum_from_values(layer, sigma[:6], sigma[:6] ** 2)
    assert whole.notes == () and whole.alpha.exponent == pytest.approx(2)


def test_participation_of_the_positive_curvatures():
    sigma = np.arange(8.0, 0, -1)
    h = np.asarray([9.0, 7.0, 4.0, 0.0, 3.0, 2.0, -1.0, 1.5])
    positive = np.sort(h[h > 0])[::-1]
    found = spectrum_from_values(sc.LayerInfo("a", "linear", (9, 8)), sigma, h)
    p, ranks = positive / positive.sum(), np.arange(1.0, 7)
    slopes = np.log(positive[:-1] / positive[1:]) / np.log(ranks[1:] / ranks[:-1])
    certified, s = slopes.min(), found.s.exponent

    def window_bound(exponent):
        return np.sum(ranks**-exponent) ** 2 / np.sum(ranks ** (-2 * exponent))

    summary = found.participation
    assert summary.count == 6 and summary.ratio == pytest.approx(1 / np.sum(p**2))
    assert summary.entropy_rank == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    assert summary.certified_exponent == pytest.approx(certified)
    assert summary.certified_bound == pytest.approx(window_bound(certified))
    assert summary.window_bound == pytest.approx(window_bound(s))
    assert summary.zeta_bound == pytest.approx(float(sc.zeta_bound(np.asarray(s))))
    assert all(type(value) in (int, float) for value in vars(summary).values())


def test_no_positive_curvature_is_no_participation():
    sigma = np.arange(4.0, 0, -1)
    found = spectrum_from_values(sc.LayerInfo("a", "linear", (9, 8)), sigma, -sigma).participation
    assert found.count == 0 and np.isnan([found.ratio, found.entropy_rank]).all()
    assert np.isnan([found.certified_exponent, found.certified_bound, found.window_bound]).all()
