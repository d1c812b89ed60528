"""Against curvlinops' Hessian and Gauss-Newton operators on a mid-sized network."""

import pytest
import torch
from torch import nn

from spectral_backends.torch import CurvatureProblem

curvlinops = pytest.importorskip("curvlinops")


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.GELU(), nn.Conv2d(12, 16, 3, stride=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(16 * 16, 32), nn.Tanh(), nn.Linear(32, 7),
    ).double()  # fmt: skip
    x, y = torch.randn(50, 3, 10, 10, dtype=torch.float64), torch.randint(7, (50,))
    return model, list(zip(x.split(16), y.split(16), strict=True))


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("layer", ["0", "2", "5", "7"])
@pytest.mark.filterwarnings("ignore")
def test_same_quadratic_forms(setting, layer, kind):
    model, batches = setting
    loss_fn = nn.CrossEntropyLoss()
    problem = CurvatureProblem(model, loss_fn, batches)
    u, _, vh = torch.linalg.svd(problem.gradients([layer])[layer], full_matrices=False)
    u, v = u[:, :6], vh.T[:, :6]
    weight = model.get_parameter(f"{layer}.weight")
    operators = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}
    operator = getattr(curvlinops, operators[kind])(model, loss_fn, [weight], batches)
    d = torch.einsum("mk,nk->kmn", u, v).flatten(1)
    expected = torch.stack([row @ (operator @ row) for row in d])
    h = problem.curvatures(layer, u, v, kind)
    torch.testing.assert_close(h, expected.detach(), rtol=1e-9, atol=1e-12)
