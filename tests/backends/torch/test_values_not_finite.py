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
