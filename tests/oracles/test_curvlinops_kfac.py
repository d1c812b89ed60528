"""Kronecker factors against curvlinops' KFAC, in its documented normalisation.

For a mean cross-entropy its gradient covariance is ``(1/N) Σ δ δᵀ`` and its input covariance the mean
over samples and positions, as here. A mean of squared errors or of logistic losses runs over all
elements; curvlinops counts samples and puts the 1/C into δ, which comes to the same for ``type-2``
and, scaled by √C, for sampled targets and true ones.
"""

import pytest
import torch
from layer_cases import random
from torch import nn
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem

curvlinops = pytest.importorskip("curvlinops")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = (q @ k.mT / 3**0.5).softmax(-1) @ v
        return self.head(torch.tanh(self.o(a.transpose(1, 2).flatten(2))).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))


def convolution():
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.GELU(), nn.Conv2d(5, 6, 3, stride=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(6 * 4, 4),
    )  # fmt: skip


NETWORKS = {
    "mlp": (mlp, (13, 5)),
    "convolution": (convolution, (13, 2, 5, 6)),
    "attention": (Attention, (13, 5, 6)),
}
TYPES = {"ggn": "type-2", "empirical": "empirical", "fisher-mc": "mc"}


def kfac(model, loss, batches, sharing, **options):
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    weights = [model.get_parameter(f"{name}.weight") for name in names]
    operator = curvlinops.KFACLinearOperator(
        model, loss, weights, batches, kfac_approx=sharing, check_deterministic=False, **options
    )
    operator.compute_kronecker_factors()
    return names, operator._gradient_covariances, operator._input_covariances


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("delta", TYPES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.filterwarnings("ignore")
def test_cross_entropy(network, delta, sharing, monkeypatch):
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    model, x, y = make().double(), random(*shape), torch.randint(4, (13,))
    # Labels are drawn by either side with its own generator: for these, one batch and our labels.
    batches = [(x, y)] if delta == "fisher-mc" else list(zip(x.split(5), y.split(5), strict=True))
    labels = []
    multinomial = torch.multinomial
    with monkeypatch.context() as patch:
        patch.setattr(
            torch, "multinomial",
            lambda *a, **k: labels.append(multinomial(*a, **k)) or labels[-1],
        )  # fmt: skip
        problem = CurvatureProblem(model, F.cross_entropy, batches)
        names = [layer.name for layer in problem.layers()]
        found = problem.kronecker_factors(
            names, fisher_type=delta, kfac_approx=sharing, mc_samples=4
        )
    drawn = iter(labels)
    monkeypatch.setattr(
        curvlinops.KFACLinearOperator, "draw_label", lambda self, output: next(drawn).squeeze(1)
    )
    options = {"mc_samples": 4} if delta == "fisher-mc" else {}
    modules, gradients, inputs = kfac(
        model, nn.CrossEntropyLoss(), batches, sharing, fisher_type=TYPES[delta], **options
    )
    assert sorted(modules) == sorted(names)
    for name in names:
        for ours, theirs in (
            (found[name].output_covariance, gradients[name]),
            (found[name].input_covariance, inputs[name]),
        ):
            error = (ours - theirs).abs().max()
            # A sum of key gradients is zero: theirs holds its rounding.
            assert error <= 1e-9 * theirs.abs().max() + 1e-25, name


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
@pytest.mark.filterwarnings("ignore")
def test_other_losses(loss):
    torch.manual_seed(0)
    model, x, y = mlp().double(), random(13, 5), torch.rand(13, 4).double().round()
    batches = list(zip(x.split(5), y.split(5), strict=True))
    problem = CurvatureProblem(model, loss, batches)
    names = [layer.name for layer in problem.layers()]
    for delta in ("ggn", "empirical"):
        found = problem.kronecker_factors(names, fisher_type=delta)
        _, gradients, _ = kfac(model, loss, batches, "expand", fisher_type=TYPES[delta])
        for name in names:
            torch.testing.assert_close(
                found[name].output_covariance, gradients[name], rtol=1e-9, atol=1e-14
            )
