"""Gradients that are rounding, and types that a model casts to: held against float64."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_backends.torch.objective import mean_gradients
from spectral_backends.torch.objective.functional_model import FunctionalModel


def interpolating(scale):
    """A network fitted to its data in float64, its logits then scaled: the loss vanishes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 6)).double()
    x = torch.randn(60, 10, dtype=torch.float64)
    y = (x[:, :6] + torch.tanh(x[:, 4:])).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        for parameter in model[2].parameters():
            parameter *= scale
    return model.float(), x.float(), y


def both(scale, loss=F.cross_entropy, top_k=20):
    """The problem in float32 and in float64."""
    model, x, y = interpolating(scale)
    return [CurvatureProblem(model, loss, [(x, y)], dtype=d) for d in (None, torch.float64)]


def test_the_errors_are_those_of_the_gradients():
    single, double = both(2.0)
    names = [layer.name for layer in single.layers()]
    mine, exact = single.gradients(names), double.gradients(names)
    for name, error in single.gradient_errors(names).items():
        expected = mine[name].double() - exact[name]
        assert error.dtype == torch.float32 and error.abs().max() > 0
        torch.testing.assert_close(error.double(), expected, rtol=1e-3, atol=1e-16)
    for name, error in single.gradient_errors(names, samples=8).items():
        assert error.norm() > 0.2 * (mine[name].double() - exact[name]).norm()


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0, 4.0])
def test_what_stays_in_the_window_has_its_first_digit(scale):
    single, double = both(scale)
    exact = sc.measure(double)
    assert exact.provenance.problem["loss"] < 2e-3 / scale
    try:
        report = sc.measure(single)
    except sc.SpectralError as error:
        assert scale >= 3 and "the gradient's own rounding; measure in float64" in str(error)
        return
    for name, spectrum in report.items():
        count = len(spectrum.sigma)
        np.testing.assert_allclose(spectrum.sigma, exact[name].sigma[:count], rtol=0.1)
        off = np.abs(spectrum.sigma - exact[name].sigma[:count])
        assert np.all(off <= 1.5 * spectrum.rounding)
        assert "overlooked" not in spectrum.certificate.reason


def test_a_direction_that_is_zero_leaves_the_window_in_both_types():
    """Rows of ``p − y`` add up to zero, so the head has one direction less than rows."""
    single, double = both(2.0)
    for problem, remedy in ((single, "measure in float64"), (double, "float64 holds no more")):
        spectrum = sc.measure(problem, "2")["2"]
        assert len(spectrum.sigma) == 5
        assert remedy in spectrum.notes[-1] or "numerical rank" in spectrum.notes[-1]


def test_an_ordinary_network_keeps_its_window():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 25))
    x, y = torch.randn(90, 40), torch.randint(25, (90,))
    spectra = sc.measure(
        CurvatureProblem(model, F.cross_entropy, [(x[:50], y[:50]), (x[50:], y[50:])])
    )
    for spectrum in spectra.values():
        assert len(spectrum.sigma) == 20 and spectrum.notes == ()
        assert np.all(spectrum.rounding < 1e-4 * spectrum.sigma)


def test_logits_cast_to_float32_do_not_hide_the_rounding():
    model, x, y = interpolating(3.0)
    plain = CurvatureProblem(model, F.cross_entropy, [(x, y)])
    cast = CurvatureProblem(model, lambda z, y: F.cross_entropy(z.float(), y), [(x, y)])
    names = [layer.name for layer in plain.layers()]
    expected, found = plain.gradient_errors(names), cast.gradient_errors(names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-12)


class Noisy(nn.Module):
    """Draws the same numbers each time, which are others in float64."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x):
        generator = torch.Generator().manual_seed(3)
        return self.layer(x * torch.rand(x.shape, generator=generator, dtype=x.dtype))


class Fixed(nn.Module):
    """Takes float32 alone."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(6, 5), torch.randn(6, 6)

    def forward(self, x):
        return self.layer(x @ self.table)


@pytest.mark.parametrize("make", [Noisy, Fixed])
def test_where_float64_tells_nothing_nothing_is_said(make):
    torch.manual_seed(0)
    problem = CurvatureProblem(make(), F.mse_loss, [(torch.randn(20, 6), torch.randn(20, 5))])
    assert problem.gradient_errors(["layer"]) == {}
    spectrum = sc.measure(problem)["layer"]
    assert spectrum.rounding is None and len(spectrum.sigma) == 5


def test_large_models_are_not_copied(monkeypatch):
    single, _ = both(1.0)
    monkeypatch.setattr(mean_gradients, "MOST_PARAMETERS", 24 * 10 + 24 + 6 * 24 + 6)
    assert single.gradient_errors(["0"])
    monkeypatch.setattr(mean_gradients, "MOST_PARAMETERS", 24 * 10 + 24 + 6 * 24 + 5)
    assert single.gradient_errors(["0"]) == {}


def test_a_device_without_float64_tells_nothing(monkeypatch):
    single, _ = both(1.0)

    def refuse(self, dtype):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(FunctionalModel, "in_type", refuse)
    assert sc.measure(single)["0"].rounding is None


def test_dropout_that_the_seed_fixes_is_no_rounding():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 5))
    data = [(torch.randn(20, 6), torch.randn(20, 5))]
    problem = CurvatureProblem(model, F.mse_loss, data, check_deterministic=False)
    assert problem.gradient_errors(["0"]) == {}


def test_unknown_layers_are_refused():
    single, _ = both(1.0)
    with pytest.raises(sc.InputError, match="layer 'x'"):
        single.gradient_errors(["x"])


class Net(nn.Module):
    """Casts in one of the ways in which models do."""

    def __init__(self, cast):
        super().__init__()
        self.first, self.last, self.cast = nn.Linear(8, 10), nn.Linear(10, 4), cast

    def forward(self, x):
        return self.last(self.cast(torch.tanh(self.first(x))))


def rms_norm(x):
    wide = x.to(torch.float32)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


CASTS = {
    "rms norm": (rms_norm, "to()"),
    "float": (lambda x: x.float().sin().type_as(x), "float()"),
    "type": (lambda x: x.type(torch.float32).to(x), "type()"),
    "softmax": (lambda x: F.softmax(x, dim=-1, dtype=torch.float32).to(x.dtype), "softmax()"),
    "keyword": (lambda x: torch.softmax(input=x, dim=-1, dtype=torch.float32).to(x.dtype), "softmax()"),
    "sum": (lambda x: x * x.sum(-1, keepdim=True, dtype=torch.float32), "sum()"),
}  # fmt: skip


def data():
    torch.manual_seed(1)
    return [(torch.randn(30, 8), torch.randint(4, (30,)))]


@pytest.mark.parametrize("name", CASTS)
def test_casts_are_told_and_the_engines_stay(name):
    cast, operation = CASTS[name]
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning, match="casts what depends on its parameters") as told:
        problem = CurvatureProblem(Net(cast), F.cross_entropy, data(), dtype=torch.float64)
    (warning,) = told
    assert f"float32 on the way ({operation} to float32)" in str(warning.message)
    assert warning.filename == __file__
    described = problem.describe()
    assert described["dtype"] == "float64" and described["precision"] == "float32"
    report = sc.measure(problem, top_k=4)
    for spectrum in report.values():
        assert spectrum.certificate.engine == "tangents"
        assert spectrum.certificate.tolerance == pytest.approx(100 * 2.0**-23)
    first = report["first"]
    assert np.all(first.rounding > 1e-10 * first.sigma)  # that of float32


def test_casts_in_the_loss_count():
    with pytest.warns(RuntimeWarning, match=r"float\(\) to float32"):
        problem = CurvatureProblem(
            Net(lambda x: x),
            lambda z, y: F.cross_entropy(z.float(), y),
            data(),
            dtype=torch.float64,
        )
    for spectrum in sc.measure(problem, top_k=3).values():
        assert (
            spectrum.certificate.engine == "tangents"
            and not spectrum.certificate.reason.startswith("engine")
        )


def test_half_precision_inside_a_network_in_float32_is_told():
    with pytest.warns(RuntimeWarning, match=r"bfloat16\(\) to bfloat16\).*not the float32"):
        problem = CurvatureProblem(Net(lambda x: x.bfloat16().to(x.dtype)), F.cross_entropy, data())
    assert problem.describe()["precision"] == "bfloat16"


CONSTANTS = {
    "a constant in float32": lambda x: x * torch.linspace(0.5, 1.5, 10),
    "a mask": lambda x: x * (x > 0),
    "whole numbers": lambda x: x * x.argmax(-1, keepdim=True).float(),
    "detached": lambda x: x * x.detach().float(),
    "to its own type": lambda x: x.to(torch.float64).to(x.dtype).type_as(x),
    "positions": lambda x: x + torch.outer(torch.arange(30).float(), torch.ones(10)).cos(),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_lose_nothing(name):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem = CurvatureProblem(
            Net(CONSTANTS[name]), F.cross_entropy, data(), dtype=torch.float64
        )
    assert "precision" not in problem.describe()
    for spectrum in sc.measure(problem, top_k=3).values():
        assert spectrum.certificate.derivative_error < 1e-12
