"""Totals do not depend on how the data are cut into batches."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

torch.manual_seed(0)
X = torch.randn(23, 5, dtype=torch.float64)
NET = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
CLASSES = torch.randint(4, (23,))
CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
IGNORED = torch.where(torch.arange(23) % 5 < 3, CLASSES, -100)
REAL = torch.randn(23, 4, dtype=torch.float64)

LOSSES = {
    "cross-entropy": (F.cross_entropy, CLASSES),
    "module": (nn.CrossEntropyLoss(), CLASSES),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES),
    "class weights": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), CLASSES),
    "ignored": (F.cross_entropy, IGNORED),
    "ignored and weighted": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=2), CLASSES),
    "soft targets": (F.cross_entropy, REAL.softmax(1)),
    "nll": (lambda y, t: F.nll_loss(y.log_softmax(1), t), CLASSES),
    "squared": (F.mse_loss, REAL),
    "bce": (F.binary_cross_entropy_with_logits, REAL.sigmoid()),
    "kl batchmean": (
        lambda y, t: F.kl_div(y.log_softmax(1), t, reduction="batchmean"), REAL.softmax(1),
    ),
    "huber": (F.huber_loss, REAL),
    "own mean": (lambda y, t: ((y - t) ** 2).sum(1).mean(), REAL),
    "unreduced": (lambda y, t: F.cross_entropy(y, t, reduction="none").mean(), CLASSES),
}  # fmt: skip


def cut(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def values(problem, layer="0"):
    gradient = problem.gradients([layer])[layer]
    torch.manual_seed(1)
    u = F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=0)
    v = F.normalize(torch.randn(5, 4, dtype=torch.float64), dim=0)
    return torch.cat([gradient.flatten(), problem.curvatures(layer, u, v)])


@pytest.mark.parametrize("name", LOSSES)
def test_batching_changes_nothing(name):
    loss, y = LOSSES[name]
    whole = CurvatureProblem(NET, loss, [(X, y)])
    ragged = CurvatureProblem(NET, loss, cut(X, y, [10, 10, 3]))
    uneven = CurvatureProblem(NET, loss, cut(X, y, [1, 15, 7])[::-1])
    expected = values(whole)
    for other in (ragged, uneven):
        torch.testing.assert_close(values(other), expected, rtol=1e-10, atol=1e-13)
        assert other.describe()["n_terms"] == pytest.approx(whole.describe()["n_terms"])
    # and the loss of all data at once, by plain autograd
    w = NET[0].weight.detach().clone().requires_grad_()
    direct = loss(torch.func.functional_call(NET, {"0.weight": w}, (X,)), y)
    (gradient,) = torch.autograd.grad(direct, w)
    torch.testing.assert_close(expected[:30], gradient.flatten(), rtol=1e-11, atol=1e-14)
    assert whole.describe()["loss"] == pytest.approx(direct.item(), rel=1e-12)


@pytest.mark.parametrize("mean", [nn.CrossEntropyLoss, nn.MSELoss])
def test_sums_are_means_of_the_same_terms(mean):
    y = CLASSES if mean is nn.CrossEntropyLoss else REAL
    expected = values(CurvatureProblem(NET, mean(), [(X, y)]))
    summed = CurvatureProblem(NET, mean(reduction="sum"), cut(X, y, [10, 13]))
    torch.testing.assert_close(values(summed), expected, rtol=1e-10, atol=1e-13)


def test_unequal_numbers_of_tokens():
    """Counting sequences where the loss counts valid tokens would be far off."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 7)).double()
    tokens, targets = torch.randint(7, (6, 9)), torch.randint(7, (6, 9))
    targets[0, 1:] = -100
    targets[3] = -100  # a batch without any valid token

    def loss(y, t):
        return F.cross_entropy(y.flatten(0, 1), t.flatten())

    expected = CurvatureProblem(model, loss, [(tokens, targets)]).gradients(["1"])["1"]
    single = CurvatureProblem(model, loss, cut(tokens, targets, 1))
    torch.testing.assert_close(single.gradients(["1"])["1"], expected, rtol=1e-10, atol=1e-14)
    assert single.describe()["n_terms"] == int((targets != -100).sum())


AMBIGUOUS = {
    "scaled": lambda y, t: 2 * F.mse_loss(y, t),
    "divided": lambda y, t: F.mse_loss(y, t, reduction="sum") / len(y),
    "penalised": lambda y, t: F.mse_loss(y, t) + 0.1 * y.square().mean(),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_losses_are_refused_until_weighted(name):
    loss = AMBIGUOUS[name]
    with pytest.raises(sc.InputError, match=r"weight=lambda batch"):
        CurvatureProblem(NET, loss, cut(X, REAL, [10, 13]))
    expected = values(CurvatureProblem(NET, loss, [(X, REAL)]))
    weighted = CurvatureProblem(NET, loss, cut(X, REAL, [10, 13]), weight=lambda b: len(b[0]))
    torch.testing.assert_close(values(weighted), expected, rtol=1e-10, atol=1e-13)


def test_a_loss_inside_the_model():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = NET

        def forward(self, inputs, labels):
            logits = self.net(inputs)
            return {"logits": logits, "loss": F.cross_entropy(logits, labels)}

    batches = [{"inputs": x, "labels": y} for x, y in cut(X, CLASSES, [10, 13])]
    inside = CurvatureProblem(WithLoss(), None, batches, forward=lambda m, b: m(**b)["loss"])
    split = CurvatureProblem(
        WithLoss(), F.cross_entropy, batches, forward=lambda m, b: (m(**b)["logits"], b["labels"])
    )
    expected = values(CurvatureProblem(NET, F.cross_entropy, [(X, CLASSES)]))
    for problem in (inside, split):
        torch.testing.assert_close(values(problem, "net.0"), expected, rtol=1e-10, atol=1e-13)


def test_forward_may_call_parts_of_the_model():
    problem = CurvatureProblem(
        NET, F.cross_entropy, [(X, CLASSES)],
        forward=lambda model, batch: (model[2](model[1](model[0](batch[0]))), batch[1]),
    )  # fmt: skip
    expected = values(CurvatureProblem(NET, F.cross_entropy, [(X, CLASSES)]))
    torch.testing.assert_close(values(problem), expected, rtol=1e-12, atol=1e-14)
