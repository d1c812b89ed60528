"""The certificate is never wrong: what is nonlinear anywhere, for any sample, is not certified."""

import numpy as np
import pytest
import torch
from factor_helpers import along, split
from layer_cases import random
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem


class Middle(nn.Module):
    """Three linear maps with something between the second and the third."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.between = between

    def forward(self, x):
        return self.third(self.between(F.relu(self.second(F.relu(self.first(x)))), x))


class Sneaky(torch.autograd.Function):
    """Its node is called like that of a ReLU."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x + x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 + 3 * x**2)


Sneaky.__name__ = "ReluBackward0"


def in_a_view(h, x):
    h = h.clone()
    h[:, 2:4].sigmoid_()
    return h


def norm_of_itself(h, x):
    return h / (1 + h.norm(dim=1, keepdim=True))


@torch.jit.script
def scripted(h):
    return h * torch.sigmoid(h)


NONLINEAR = {
    "gelu": lambda h, x: F.gelu(h),
    "gate of itself": lambda h, x: h * torch.sigmoid(h),
    "product of branches": lambda h, x: h * h.roll(1, 1),
    "softmax": lambda h, x: torch.softmax(h, 1),
    "layer norm": lambda h, x: F.layer_norm(h, (6,)),
    "norm": norm_of_itself,
    "tiny": lambda h, x: h + 1e-7 * h**2,
    "one sample": lambda h, x: h + 1e-3 * F.relu(x[:, :1] - 3) * h**2,
    "behind where": lambda h, x: torch.where(x[:, :1] > 3, torch.tanh(h), h),
    "custom function": lambda h, x: Sneaky.apply(h),
    "in place on a view": in_a_view,
    "scripted": lambda h, x: scripted(h),
    "a branch of the data": lambda h, x: torch.tanh(h) if x.max() > 3 else h,
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_curvature_that_hides(name):
    """In one operation, of one sample of the last batch where it can be."""
    torch.manual_seed(0)
    x, y = random(12, 5).clamp(-2, 2), torch.randint(4, (12,))
    x[10, 0] = 4
    problem = CurvatureProblem(
        Middle(NONLINEAR[name]).double(), F.cross_entropy, split(x, y, 4), check_deterministic=False
    )
    given = {n: along(problem, n, 3) for n in ("first", "second", "third")}
    found = {f.name: f for f in problem.layer_curvatures(given)}
    assert not found["first"].certificate.piecewise_linear
    assert not found["second"].certificate.piecewise_linear
    assert found["first"].certificate.engine != "columns"
    for layer, (u, v) in given.items():
        expected = problem.curvatures(layer, u, v)
        torch.testing.assert_close(found[layer].values, expected, rtol=1e-8, atol=1e-13)
    (asked,) = problem.layer_curvatures({"third": given["third"]}, engine="columns")
    assert asked.certificate.piecewise_linear and asked.certificate.second_order == 0
    refused = list(problem.layer_curvatures({"first": given["first"]}, engine="columns"))
    assert isinstance(refused[0], sc.LayerError)


FLAT = {
    "leaky": lambda h, x: F.leaky_relu(h),
    "hardtanh": lambda h, x: F.hardtanh(h),
    "maximum": lambda h, x: torch.maximum(h, h.flip(1)),
    "gate of the input": lambda h, x: h * torch.sigmoid(x[:, :1]),
    "clamp and where": lambda h, x: torch.where(h > 0.1, 2 * h, h.clamp(-1, 1)),
    "sorted": lambda h, x: h.sort(1).values,
    "pooled": lambda h, x: F.max_pool1d(h.unsqueeze(1), 2).squeeze(1).repeat(1, 2),
}


@pytest.mark.parametrize("name", FLAT)
def test_what_is_piecewise_linear(name):
    torch.manual_seed(0)
    x, y = random(40, 5), torch.randint(4, (40,))
    problem = CurvatureProblem(Middle(FLAT[name]).double(), F.cross_entropy, split(x, y, 25))
    given = {n: along(problem, n, 4) for n in ("first", "second", "third")}
    for found in problem.layer_curvatures(given):
        certificate = found.certificate
        assert certificate.engine == "columns" and certificate.piecewise_linear
        assert certificate.second_order <= certificate.tolerance and not certificate.reason
        assert 0 < certificate.cost < 10 * certificate.predicted_cost
        expected = problem.curvatures(found.name, *given[found.name])
        torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("fitted", [False, True])
def test_the_probe_is_a_second_line(monkeypatch, fitted):
    """Were the graph misread, the second-order part on random directions would tell.

    Also of samples whose loss is fitted to rounding, and has no derivative at all.
    """
    torch.manual_seed(0)
    monkeypatch.setattr(
        "spectral_backends.torch.instruments.linearity._nonlinear_in", lambda node, inputs: 0
    )
    monkeypatch.setattr(
        "spectral_backends.torch.engines.forward_mode.rules.find_curvature",
        lambda *a: {0: "distrusted"},
    )
    model = Middle(NONLINEAR["gelu"]).double()
    x, y = random(12, 5), torch.randint(4, (12,))
    if fitted:
        with torch.no_grad():
            model.third.weight *= 1e5
            y[:6] = model(x).argmax(1)[:6]  # the probe takes the first samples
    problem = CurvatureProblem(model, F.cross_entropy, [(x, y)])
    given = {"first": along(problem, "first", 2)}
    (refused,) = problem.layer_curvatures(given, engine="columns")
    assert isinstance(refused, sc.LayerError) and "random directions" in refused.reason


def test_certificates_are_saved(tmp_path):
    torch.manual_seed(0)
    x, y = random(12, 5), torch.randint(4, (12,))
    problem = CurvatureProblem(Middle(NONLINEAR["gelu"]).double(), F.cross_entropy, [(x, y)])
    for engine in ("auto", "tangents", "double-backward"):
        report = sc.measure(problem, top_k=3, engine=engine)
        report.save(tmp_path / "r.json")
        assert sc.SpectralReport.load(tmp_path / "r.json").to_dict() == report.to_dict()
        assert report.provenance.engine == engine
    sampled = sc.measure(problem, top_k=3, engine="monte-carlo", curvature="ggn", mc_samples=4)
    sampled.save(tmp_path / "r.json")
    loaded = sc.SpectralReport.load(tmp_path / "r.json")["first"].certificate
    np.testing.assert_array_equal(
        loaded.standard_error, sampled["first"].certificate.standard_error
    )
    assert loaded.engine == "monte-carlo" and (loaded.standard_error > 0).all()
