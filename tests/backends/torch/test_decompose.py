"""`measure(decompose=True)` from end to end."""

import json

import numpy as np
import pytest
import torch
from layer_cases import CASES, random
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_core.measuring import factor_source


def network(**options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(96, 12), nn.Tanh(), nn.Linear(12, 7)
    ).double()
    x, y = random(40, 2, 6, 6), torch.randint(7, (40,))
    batches = list(zip(x.split(16), y.split(16), strict=True))
    return CurvatureProblem(model, F.cross_entropy, batches, **options)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("delta", ["ggn", "fisher-mc", "empirical"])
def test_the_terms_add_up_and_are_what_they_are_called(delta, sharing):
    problem = network()
    report = sc.measure(problem, top_k=6, decompose=True, fisher_type=delta, kfac_approx=sharing)
    assert report.provenance.factors == {"delta": delta, "sharing": sharing}
    for name, spectrum in report.items():
        fits = spectrum.decomposition
        assert abs(fits.closure) < 1e-12
        assert fits.alpha.exponent == pytest.approx(spectrum.alpha.exponent, abs=1e-12)
        g = problem.gradients([name])[name]
        u, _, vh = torch.linalg.svd(g, full_matrices=False)
        u, v = u[:, :6], vh.T[:, :6]
        factors = problem.kronecker_factors([name], fisher_type=delta, kfac_approx=sharing)[name]
        c_delta, c_a = factors.output_covariance, factors.input_covariance
        kron = torch.diag(u.T @ c_delta @ u) * torch.diag(v.T @ c_a @ v)
        ggn = problem.curvatures(name, u, v, "ggn")
        h = problem.curvatures(name, u, v)
        np.testing.assert_allclose(spectrum.alignment.kron, kron, rtol=1e-9)
        np.testing.assert_allclose(spectrum.ggn, ggn, rtol=1e-9)
        np.testing.assert_allclose(fits.chi, h / kron, rtol=1e-9)
        lam = torch.linalg.eigvalsh(c_delta).flip(0)[:6] * torch.linalg.eigvalsh(c_a).flip(0)[:6]
        slope = np.polyfit(np.log(spectrum.sigma), np.log(lam.numpy()), 1)[0]
        assert fits.beta.exponent == pytest.approx(slope, abs=1e-8)


def test_a_decomposition_asks_for_curvatures_once(monkeypatch):
    """Both kinds of curvature come from one pass."""
    asked = []
    original = CurvatureProblem.layer_curvatures

    def together(self, directions, kind="hessian", **options):
        asked.append((set(directions), kind))
        return original(self, directions, kind, **options)

    def one(self, layer, u, v, kind="hessian"):
        raise AssertionError("no layer is measured by itself")

    monkeypatch.setattr(CurvatureProblem, "layer_curvatures", together)
    monkeypatch.setattr(CurvatureProblem, "curvatures", one)
    report = sc.measure(network(), top_k=5, decompose=True)
    assert asked == [(set(report), "hessian")] and len(report.decomposed()) == len(report)


def test_float32_is_near_float64():
    exact, coarse = (
        sc.measure(network(dtype=dtype), top_k=5, decompose=True)
        for dtype in (torch.float64, torch.float32)
    )
    for name in exact:
        for term in ("alpha", "beta", "phi", "kappa", "nu"):
            pair = [getattr(r[name].decomposition, term).exponent for r in (exact, coarse)]
            assert pair[0] == pytest.approx(pair[1], abs=2e-4)
        assert exact[name].decomposition.alpha.n == coarse[name].decomposition.alpha.n


def test_float32_keeps_the_small_end_of_a_wide_spectrum():
    """Factors are sums of squares: what is 1e-7 of the largest there is 3e-4 in the gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 9)).double()
    x = random(200, 8) * torch.logspace(0, -3.5, 8).double()
    y = torch.randint(9, (200,))
    exact, coarse = (
        sc.measure(
            CurvatureProblem(model, F.cross_entropy, [(x, y)], dtype=dtype), "0", decompose=True
        )["0"].decomposition
        for dtype in (torch.float64, torch.float32)
    )
    assert exact.alpha.n == coarse.alpha.n >= 7
    assert exact.beta.exponent == pytest.approx(coarse.beta.exponent, abs=1e-3)


def test_a_report_with_decompositions_survives_the_disk(tmp_path):
    report = sc.measure(network(), top_k=5, decompose=True)
    report.save(tmp_path / "run.json")
    loaded = sc.SpectralReport.load(tmp_path / "run.json")
    assert str(loaded) == str(report) and "α = β + φ + κ + ν" in str(report)
    assert loaded.rows() == report.rows()
    for name in report:
        assert str(sc.explain(loaded[name])) == str(sc.explain(report[name]))
        assert loaded[name].alignment.delta.tied.dtype == bool
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "run.json").read_bytes()


def test_a_report_from_before_is_read(tmp_path):
    report = sc.measure(network(), top_k=5)
    data = report.to_dict()
    del data["provenance"]["factors"]
    for spectrum in data["spectra"]:
        for key in ("ggn", "alignment", "decomposition"):
            del spectrum[key]
    (tmp_path / "old.json").write_text(json.dumps(data))
    old = sc.SpectralReport.load(tmp_path / "old.json")
    assert str(old) == str(report) and not old.decomposed() and "beta" not in old.rows()[0]


def test_an_interrupted_decomposition_resumes_to_the_same_bytes(tmp_path):
    sc.measure(network(), top_k=5, decompose=True).save(tmp_path / "whole.json")

    def interrupt(done, total, name):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sc.measure(
            network(), top_k=5, decompose=True, resume=tmp_path / "journal", progress=interrupt
        )
    resumed = sc.measure(network(), top_k=5, decompose=True, resume=tmp_path / "journal")
    resumed.save(tmp_path / "resumed.json")
    assert (tmp_path / "resumed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    with pytest.raises(sc.ReportError, match="provenance.factors"):
        sc.measure(network(), top_k=5, resume=tmp_path / "journal")


def test_a_layer_without_factors_keeps_its_spectrum():
    torch.manual_seed(0)
    case = CASES["lstm"]()
    problem = CurvatureProblem(case.model, case.loss, [(*case.inputs, case.target)])
    report = sc.measure(problem, decompose=True)
    assert report["head"].decomposition is not None
    fused = report["rnn.weight_ih_l0"]
    assert fused.decomposition is None and fused.alpha.n > 0
    assert any("no decomposition: its operation (recurrent)" in note for note in fused.notes)
    assert np.isnan(report.rows()[list(report).index(fused.name)]["beta"])


def test_what_holds_for_no_layer_is_said_before_anything_is_measured(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.LogSoftmax(1)).double()
    problem = CurvatureProblem(model, F.nll_loss, [(random(8, 5), torch.randint(4, (8,)))])
    monkeypatch.setattr(CurvatureProblem, "curvatures", None)
    with pytest.raises(sc.InputError, match="linear in the outputs"):
        sc.measure(problem, decompose=True)


def test_groups_of_layers_give_the_same(monkeypatch):
    whole = sc.measure(network(), top_k=5, decompose=True)
    monkeypatch.setattr(factor_source, "MAX_ELEMENTS", 1)
    calls = []
    original = CurvatureProblem.kronecker_factors

    def watched(self, layers, *, directions, **options):
        calls.append(list(layers))
        return original(self, layers, directions=directions, **options)

    monkeypatch.setattr(CurvatureProblem, "kronecker_factors", watched)
    apart = sc.measure(network(), top_k=5, decompose=True)
    assert calls == [["0"], ["3"], ["5"]]
    assert str(apart) == str(whole)


def test_gauss_newton_curvature_has_no_residual_term():
    report = sc.measure(network(), top_k=5, curvature="ggn", decompose=True)
    for spectrum in report.values():
        assert spectrum.decomposition.nu.exponent == pytest.approx(0, abs=1e-12)


def test_the_monte_carlo_error_is_in_the_notes():
    report = sc.measure(network(), "3", top_k=5, decompose=True, fisher_type="fisher-mc")
    assert any("standard error of uᵀ C_δ u" in note for note in report["3"].notes)


@pytest.mark.parametrize(("option", "value"), [("fisher_type", "x"), ("kfac_approx", "x")])
def test_unknown_options_before_any_work(option, value, monkeypatch):
    problem = network()
    monkeypatch.setattr(CurvatureProblem, "gradients", None)
    with pytest.raises(sc.InputError, match=f"{option}: 'x' is unknown"):
        sc.measure(problem, decompose=True, **{option: value})
