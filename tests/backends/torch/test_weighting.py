"""Totals do not depend on how the data are cut into batches."""

import inspect

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

ELEMENT_WEIGHTS = torch.rand(23, 4, dtype=torch.float64) + 0.01

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
    "mean of a mean": (lambda y, t: F.cross_entropy(y, t).mean(), CLASSES),
    "by sample, then over samples": (lambda y, t: ((y - t) ** 2).mean(1).mean(0), REAL),
    "smooth l1": (F.smooth_l1_loss, REAL),
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


TERMS = {
    "cross-entropy": 23, "ignored": 15, "soft targets": 23, "squared": 92, "kl batchmean": 23,
    "class weights": CLASS_WEIGHTS[CLASSES].sum().item(), "own mean": 23, "mean of a mean": 23,
}  # fmt: skip


@pytest.mark.parametrize("name", TERMS)
def test_terms_are_counted(name):
    loss, y = LOSSES[name]
    problem = CurvatureProblem(NET, loss, cut(X, y, [10, 13]))
    assert problem.describe()["n_terms"] == pytest.approx(TERMS[name], rel=1e-14)


@pytest.mark.parametrize("mean", [F.mse_loss, F.l1_loss])
def test_a_weighted_mean_counts_its_weights(mean):
    """``weight=`` of these losses divides by the sum of the weights."""
    if "weight" not in inspect.signature(mean).parameters:
        pytest.skip(f"this torch has no weight in {mean.__name__}")

    def loss(y, t):
        return mean(y, t[:, :4], weight=t[:, 4:])

    y = torch.cat([REAL, ELEMENT_WEIGHTS], 1)
    expected = values(CurvatureProblem(NET, loss, [(X, y)]))
    found = CurvatureProblem(NET, loss, cut(X, y, [10, 10, 3]))
    torch.testing.assert_close(values(found), expected, rtol=1e-10, atol=1e-13)


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
    "penalised in place": lambda y, t: F.mse_loss(y, t).add_(0.1 * y.square().mean()),
    "mean of means": lambda y, t: torch.stack([F.mse_loss(y, t), y.square().mean()]).mean(),
    "scalar scaled, then mean": lambda y, t: (2 * F.mse_loss(y, t)).mean(),
    "legacy": lambda y, t: F.mse_loss(y, t, size_average=True),
}


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_losses_are_refused_until_weighted(name):
    loss = AMBIGUOUS[name]
    with pytest.raises(sc.InputError, match=r"weight=lambda batch"):
        CurvatureProblem(NET, loss, cut(X, REAL, [10, 13]))
    expected = values(CurvatureProblem(NET, loss, [(X, REAL)]))
    weighted = CurvatureProblem(NET, loss, cut(X, REAL, [10, 13]), weight=lambda b: len(b[0]))
    torch.testing.assert_close(values(weighted), expected, rtol=1e-10, atol=1e-13)


def test_a_sum_with_a_weight_must_say_what_it_is():
    def penalised(y, t):
        return torch.stack([F.mse_loss(y, t), y.square().mean()]).sum()

    def two_sums(y, t):  # adds up over halves, but over how many terms?
        return torch.stack([F.mse_loss(y, t, reduction="sum"), y.square().sum()]).sum()

    with pytest.raises(sc.InputError, match="2 terms .* its two halves 4"):
        CurvatureProblem(NET, two_sums, [(X, REAL)])

    def written_out(y, t):
        return F.mse_loss(y, t) + y.square().mean()

    for batches in (cut(X, REAL, [10, 13]), [(X, REAL)]):
        with pytest.raises(sc.InputError, match="weight=lambda batch"):
            CurvatureProblem(NET, penalised, batches)
        with pytest.raises(sc.InputError, match="ends in a sum; pass reduction='sum'.*'mean'"):
            CurvatureProblem(NET, penalised, batches, weight=lambda b: len(b[0]))
        mean = {"weight": lambda b: len(b[0]), "reduction": "mean"}
        found = values(CurvatureProblem(NET, penalised, batches, **mean))
        expected = values(CurvatureProblem(NET, written_out, [(X, REAL)]))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


COUPLED = {
    "difference of means": lambda y, t: (y.mean(0) - t.mean(0)).pow(2).mean(),
    "contrastive": lambda y, t: F.cross_entropy(y @ t.T, torch.arange(len(y))),
    "centred": lambda y, t: F.mse_loss(y - y.mean(0), t),
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("inside", [False, True])
def test_losses_that_couple_samples_are_refused_until_weighted(name, inside):
    """They look like means over samples; the halves of a batch tell that they are not."""
    loss, batches = COUPLED[name], cut(X, REAL, [10, 13])

    def build(**options):
        if not inside:
            return CurvatureProblem(NET, loss, batches, **options)
        return CurvatureProblem(
            NET, None, batches, forward=lambda m, b: loss(m(b[0]), b[1]), **options
        )

    with pytest.raises(sc.InputError, match=r"weight: the loss is not a mean.*weight=lambda batch"):
        build()
    problem = build(weight=lambda b: len(b[0]))
    parts = [CurvatureProblem(NET, loss, [batch]) for batch in batches]
    expected = (10 * values(parts[0]) + 13 * values(parts[1])) / 23
    torch.testing.assert_close(values(problem), expected, rtol=1e-10, atol=1e-13)


def test_what_cannot_be_halved_is_let_pass():
    """Batches of one, and losses that take one size only."""
    one = CurvatureProblem(NET, F.cross_entropy, cut(X, CLASSES, 1))
    torch.testing.assert_close(
        values(one), values(CurvatureProblem(NET, F.cross_entropy, [(X, CLASSES)])),
        rtol=1e-10, atol=1e-13,
    )  # fmt: skip

    def fixed(y, t):
        return F.cross_entropy(y.view(10, 4), t)

    assert CurvatureProblem(NET, fixed, cut(X[:20], CLASSES[:20], 10)).describe()["n_terms"] == 20

    def counted(model, batch):
        assert batch["n"] == 10
        return F.cross_entropy(model(batch["x"]), batch["y"])

    batches = [{"x": x, "y": y, "n": 10} for x, y in cut(X[:20], CLASSES[:20], 10)]
    assert CurvatureProblem(NET, None, batches, forward=counted).describe()["n_terms"] == 20


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
