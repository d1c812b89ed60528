"""The columns whose outer products are the Hessian of a cross-entropy."""

import pytest
import torch
from layer_cases import random
from torch.nn import functional as F

from spectral_backends.torch.output_curvature import output_curvature


def root_of(logits, target, weight=None):
    count = float(len(target) if weight is None else weight[target].sum())
    return output_curvature(
        logits, lambda z: F.cross_entropy(z, target, weight), count, 64, logistic=False
    )


LOGITS = {
    "ordinary": torch.linspace(-2, 2, 20).reshape(4, 5), "equal": torch.zeros(3, 5),
    "spread": torch.tensor([[0.0, 200, 100, -100, 50], [200, 199, -200, 198, 0], [0, 0, 0, 0, 200.0]]),
    "last wins": torch.tensor([[0.0, 0, 0, 0, 40], [-90, -80, -70, -60, 60]]),
    "first wins": torch.tensor([[40.0, 0, 0, 0, 0], [60, -80, -70, -60, -90]]),
    "two left": torch.tensor([[-200.0, 3, -200, 2, -200], [1, -200, -200, -200, 0]]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOGITS)
def test_columns_make_the_hessian(name, dtype):
    logits = LOGITS[name].to(dtype)
    root = root_of(logits, torch.zeros(len(logits), dtype=torch.int64))
    columns = torch.stack(list(root.columns()), 2).double()
    assert columns.shape[2] == root.n_columns == logits.shape[1] - 1
    p = logits.double().softmax(1)
    exact = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    error = (columns @ columns.mT - exact).abs()
    eps = torch.finfo(dtype).eps
    # Logits of 200 are known to 200 eps, and with them the probabilities.
    assert (error <= 4 * eps * max(1.0, float(logits.abs().max()))).all()
    assert (columns.sum(1).abs() <= 8 * eps).all()
    # On the diagonal also relatively, where p itself is not rounded to zero.
    diagonal, own = (part.diagonal(dim1=1, dim2=2) for part in (columns @ columns.mT, exact))
    normal = own > 1e4 * torch.finfo(dtype).tiny
    assert ((diagonal - own).abs()[normal] <= 500 * eps * own[normal]).all()


def test_columns_at_positions_and_with_class_weights():
    torch.manual_seed(0)
    logits, target = random(3, 4, 2), torch.randint(4, (3, 2))
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5]).double()
    root = root_of(logits, target, weights)
    columns = torch.stack(list(root.columns())).flatten(2)
    assert len(columns) == root.n_columns == 3 * 2
    hessian = torch.autograd.functional.hessian(
        lambda z: F.cross_entropy(z, target, weights, reduction="sum"), logits
    ).reshape(3, 8, 3, 8)
    for i in range(3):
        found = columns[:, i].T @ columns[:, i]
        torch.testing.assert_close(found, hessian[i, :, i], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2)])
def test_mixtures_have_the_hessian_as_their_mean_square(shape):
    """Over all signs of the coefficients, which is every vertex of a cube."""
    torch.manual_seed(0)
    logits = random(*shape)[:1]
    root = root_of(logits, torch.randint(4, (1, *shape[2:])))
    vertices = torch.cartesian_prod(*[torch.tensor([-1.0, 1]).double()] * logits.numel())
    mixed = torch.stack([root.mixture(lambda p, s=s: s.reshape(p.shape)) for s in vertices])
    mixed = mixed.reshape(len(vertices), -1)
    columns = torch.stack(list(root.columns())).flatten(1)
    torch.testing.assert_close(
        mixed.T @ mixed / len(mixed), columns.T @ columns, rtol=1e-10, atol=1e-12
    )
