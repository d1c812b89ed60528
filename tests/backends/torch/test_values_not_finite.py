"""Values of an engine that are not finite: the layer is measured by itself, and that is said."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factor_helpers import problem_of
from layer_cases import random
from piecewise_cases import relu_mlp
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem


class Masked(nn.Module):
    """Queries without a key, of which nothing is kept: torch's attention makes them zero."""

    def __init__(self, fused):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.attn = None if fused else nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x, seen):
        h = torch.tanh(self.inner(x))
        if self.attn is None:
            a = F.scaled_dot_product_attention(h, h, h, seen[:, None, :])
        else:
            a = self.attn(h, h, h, key_padding_mask=~seen, need_weights=False)[0]
        return self.head(torch.where(seen[..., None], h + a, 0).sum(1))


@pytest.mark.parametrize("fused", [True, False])
def test_attention_to_nothing(fused):
    """Whatever an engine makes of it, the report has what double backward gives."""
    torch.manual_seed(0)
    seen = torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 0])[:, None]
    data = [(random(6, 5, 4), seen, torch.randint(3, (6,)))]
    problem = CurvatureProblem(Masked(fused).double(), F.cross_entropy, data)
    exact = sc.measure(problem, top_k=3, engine="double-backward")
    for engine in ("auto", "tangents"):
        report = sc.measure(problem, top_k=3, engine=engine)
        assert report.keys() == exact.keys() and not report.skipped
        for layer, spectrum in exact.items():
            h = spectrum.curvature
            assert np.isfinite(h).all()
            np.testing.assert_allclose(
                report[layer].curvature, h, rtol=1e-9, atol=1e-9 * np.abs(h).max()
            )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("engine", ["auto", "columns", "tangents"])
def test_one_value_that_is_not_finite(engine, value, monkeypatch):
    torch.manual_seed(0)
    problem = problem_of(relu_mlp(), 4)
    exact = sc.measure(problem, top_k=3, engine="double-backward")
    right = sc.measure(problem, top_k=3, engine=engine)
    computed = problem.layer_curvatures

    def spoiled(*args, **options):
        for found in computed(*args, **options):
            if found.name == "2":
                values = found.values.clone()
                values[1] = value
                found = replace(found, values=values)
            yield found

    monkeypatch.setattr(problem, "layer_curvatures", spoiled)
    report = sc.measure(problem, top_k=3, engine=engine)
    certificate = report["2"].certificate
    assert certificate.engine == "double-backward" and not certificate.piecewise_linear
    assert "not finite" in certificate.reason
    assert right["2"].certificate.engine in certificate.reason
    np.testing.assert_array_equal(report["2"].curvature, exact["2"].curvature)
    for layer in ("0", "4"):
        assert report[layer].certificate == right[layer].certificate
        np.testing.assert_array_equal(report[layer].curvature, right[layer].curvature)


def zero_row(model):
    """One neuron without input, whose norm is not differentiable."""
    with torch.no_grad():
        model[0].weight[0] = 0


def zero_head(model):
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()


NOT_SMOOTH = {
    "norm of a row": (zero_row, "0", lambda model, z: model[0].weight.norm(dim=1).sum()),
    "norm of outputs": (zero_head, "2", lambda model, z: z.norm(dim=1).mean()),
    "power below two": (zero_head, "2", lambda model, z: (z.abs() ** 1.5).mean()),
}


@pytest.mark.parametrize("engine", ["auto", "double-backward"])
@pytest.mark.parametrize("name", NOT_SMOOTH)
def test_a_layer_at_a_kink_is_skipped_with_the_reason(name, engine):
    prepare, layer, penalty = NOT_SMOOTH[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    prepare(model)
    data = [(random(9, 5), random(9, 4))]

    def forward(net, batch):
        z = net(batch[0])
        return ((z + 1 - batch[1]) ** 2).mean() + 0.1 * penalty(net, z)

    problem = CurvatureProblem(model, None, data, forward=forward)
    if name == "norm of a row":
        report = sc.measure(problem, top_k=3, engine=engine)
        assert list(report) == ["2"] and np.isfinite(report["2"].alpha.exponent)
        reason = report.skipped[layer]
    else:
        with pytest.raises(sc.SpectralError) as caught:
            sc.measure(problem, layer, top_k=3, engine=engine)
        reason = str(caught.value)
    assert "of its 3 curvatures 3 " in reason and "a norm, a square root" in reason


def test_where_all_is_frozen_the_message_says_so():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    for weight in (model[0].weight, model[2].weight):
        weight.requires_grad_(False)
    data = [(torch.randn(6, 5), torch.randint(3, (6,)))]
    problem = CurvatureProblem(model, F.cross_entropy, data)
    with pytest.raises(sc.InputError, match=r"skipped: '0' \(frozen; call requires_grad_\(True\)"):
        sc.measure(problem)
