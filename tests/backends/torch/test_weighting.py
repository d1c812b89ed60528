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
    "mean of unequal means": lambda y, t: torch.stack([F.mse_loss(y, t), y[0].mean()]).mean(),
    "scalar scaled, then mean": lambda y, t: (2 * F.mse_loss(y, t)).mean(),
    "legacy": lambda y, t: F.mse_loss(y, t, size_average=True),
}


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_losses_are_refused_until_weighted(name):
    loss = AMBIGUOUS[name]
    with pytest.raises(sc.InputError, match=r"weight=lambda batch"):
        CurvatureProblem(NET, loss, cut(X, REAL, [10, 13]))
    if name == "mean of unequal means":  # depends on which sample comes first
        return
    expected = values(CurvatureProblem(NET, loss, [(X, REAL)]))
    weighted = CurvatureProblem(NET, loss, cut(X, REAL, [10, 13]), weight=lambda b: len(b[0]))
    torch.testing.assert_close(values(weighted), expected, rtol=1e-10, atol=1e-13)


def test_a_sum_with_a_weight_must_say_what_it_is():
    def two_sums(y, t):  # adds up over halves, but over how many terms?
        return torch.stack([F.mse_loss(y, t, reduction="sum"), y.square().sum()]).sum()

    for batches in (cut(X, REAL, [10, 13]), [(X, REAL)]):
        with pytest.raises(sc.InputError, match="2 terms .* its two halves 4"):
            CurvatureProblem(NET, two_sums, batches)
        with pytest.raises(sc.InputError, match="ends in a sum; pass reduction='sum'.*'mean'"):
            CurvatureProblem(NET, two_sums, batches, weight=lambda b: len(b[0]))
        total = {"weight": lambda b: 2 * b[1].numel(), "reduction": "sum"}
        found = values(CurvatureProblem(NET, two_sums, batches, **total))
        expected = values(CurvatureProblem(NET, mean_of_two, [(X, REAL)]))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def mean_of_two(y, t):
    return (F.mse_loss(y, t) + y.square().mean()) / 2


@pytest.mark.parametrize("options", [{}, {"weight": lambda b: len(b[0])}, {"reduction": "mean"}])
def test_a_sum_or_mean_of_means_over_as_many_terms_is_a_mean_over_these(options):
    def parts(y, t):
        return torch.stack([F.mse_loss(y, t), y.square().mean()])

    expected = values(CurvatureProblem(NET, mean_of_two, [(X, REAL)]))
    for batches in (cut(X, REAL, [10, 13]), [(X, REAL)]):
        summed = CurvatureProblem(NET, lambda y, t: parts(y, t).sum(), batches, **options)
        torch.testing.assert_close(values(summed), 2 * expected, rtol=1e-10, atol=1e-13)
        averaged = CurvatureProblem(NET, lambda y, t: parts(y, t).mean(), batches, **options)
        torch.testing.assert_close(values(averaged), expected, rtol=1e-10, atol=1e-13)


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


def test_batches_of_one_are_put_together():
    one = CurvatureProblem(NET, F.cross_entropy, cut(X, CLASSES, 1))
    torch.testing.assert_close(
        values(one), values(CurvatureProblem(NET, F.cross_entropy, [(X, CLASSES)])),
        rtol=1e-10, atol=1e-13,
    )  # fmt: skip
    with pytest.raises(sc.InputError, match="8 terms .* its two halves 8 "):
        CurvatureProblem(NET, COUPLED["centred"], cut(X, REAL, 1))


def pairwise(y, t):
    return ((y - y[torch.arange(10) ^ 1]) ** 2).mean()


def simclr(y, t):
    y = F.normalize(y, dim=1)
    similar = (y @ y.T / 0.5).masked_fill(torch.eye(len(y), dtype=torch.bool), -1e9)
    return F.cross_entropy(similar, t)


FIXED = {
    "view": (lambda y, t: F.cross_entropy(y.view(10, 4), t), CLASSES[:20], 10, "RuntimeError"),
    "partners": (pairwise, REAL[:20], 10, "IndexError"),
    "SimCLR": (simclr, torch.cat([torch.arange(n) ^ 1 for n in (12, 8)]), [12, 8], "IndexError"),
}


@pytest.mark.parametrize("name", FIXED)
def test_half_a_batch_that_raises_is_no_evidence(name):
    """It was let pass, also where the loss compares the samples of a batch with each other."""
    loss, y, sizes, error = FIXED[name]
    batches = cut(X[:20], y, sizes)
    with pytest.raises(sc.InputError, match=f"weight: .* part of a batch raises {error}: .*weight"):
        CurvatureProblem(NET, loss, batches)
    problem = CurvatureProblem(NET, loss, batches, weight=lambda b: len(b[0]))
    assert problem.describe()["n_terms"] == 20
    assert CurvatureProblem(NET, loss, batches[:1]).describe()["n_batches"] == 1


def test_a_count_in_the_batch_that_only_the_whole_has():
    def counted(model, batch):
        assert batch["n"] == len(batch["x"]), "n is off"
        return F.cross_entropy(model(batch["x"]), batch["y"])

    batches = [{"x": x, "y": y, "n": len(x)} for x, y in cut(X, CLASSES, 10)]
    with pytest.raises(sc.InputError, match="part of a batch raises AssertionError: n is off"):
        CurvatureProblem(NET, None, batches, forward=counted)
    weighted = {"forward": counted, "weight": lambda batch: batch["n"]}
    assert CurvatureProblem(NET, None, batches, **weighted).describe()["n_terms"] == 23


def test_pairs_are_cut_between_pairs():
    def paired(y, t):
        one, other = y.view(-1, 2, 4).unbind(1)
        return (1 - F.cosine_similarity(one, other)).mean()

    expected = values(CurvatureProblem(NET, paired, [(X[:22], REAL[:22])]))
    found = CurvatureProblem(NET, paired, cut(X[:22], REAL[:22], [6, 10, 6]))
    torch.testing.assert_close(values(found), expected, rtol=1e-10, atol=1e-13)


def test_time_first_and_attention_and_what_is_no_tensor():
    """Axes of samples differ, and what has none belongs whole to each half."""
    torch.manual_seed(3)
    net = nn.Linear(5, 7).double()

    def ctc_batch(n, time):
        x = torch.randn(time, n, 5, dtype=torch.float64)
        return x, (torch.randint(1, 7, (n, 3)), torch.full((n,), time), torch.full((n,), 3))

    def ctc(o, y):
        return F.ctc_loss(o.log_softmax(-1), *y)

    batches = [ctc_batch(6, 9), ctc_batch(4, 9)]
    joined = (
        torch.cat([x for x, _ in batches], 1),
        tuple(map(torch.cat, zip(*(y for _, y in batches), strict=True))),
    )
    found = CurvatureProblem(net, ctc, batches).gradients(["weight"])["weight"]
    expected = CurvatureProblem(net, ctc, [joined]).gradients(["weight"])["weight"]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)

    def forward(model, batch):
        x = batch["mask"] @ batch["x"]
        return F.cross_entropy(model(x).flatten(0, 1), batch["y"].flatten())

    mask = torch.ones(4, 4, dtype=torch.float64).tril()
    extras = {"mask": mask, "name": ["a"], "epoch": 3, "scale": torch.tensor(2.0), "none": None}
    tokens = [(torch.randn(n, 4, 5).double(), torch.randint(7, (n, 4))) for n in (5, 3)]
    dicts = [{"x": x, "y": y, **extras} for x, y in tokens]
    problem = CurvatureProblem(net, None, dicts, forward=forward)
    assert problem.describe()["n_terms"] == 32


@pytest.mark.parametrize("sizes", [[(4, 7), (4, 9)], [(4, 7), (2, 9)], [(1, 7), (1, 9)]])
def test_padded_tokens(sizes):
    """The next token is predicted, behind attention: only samples can be told apart."""
    torch.manual_seed(4)

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)

        def forward(self, tokens):
            x = self.table(tokens)
            return self.head(x + F.scaled_dot_product_attention(x, x, x, is_causal=True))

    def shifted(z, tokens):
        return F.cross_entropy(z[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    model = Language().double()
    batches = [torch.randint(9, size) for size in sizes]
    count = sum(n * (time - 1) for n, time in sizes)
    for inside in (True, False):
        loss = None if inside else shifted

        def forward(m, b, inside=inside):
            return shifted(m(b), b) if inside else (m(b), b)

        problem = CurvatureProblem(model, loss, batches, forward=forward)
        assert problem.describe()["n_terms"] == count
        flat = CurvatureProblem(
            model, lambda z, t: F.cross_entropy(z, t.flatten()), batches,
            forward=lambda m, b: (m(b).flatten(0, 1), b),
        ) if min(sizes)[0] > 1 else None  # fmt: skip
        assert flat is None or flat.describe()["n_terms"] == sum(n * time for n, time in sizes)


def test_weights_are_held_against_the_loss():
    """``len(batch)`` beside a third of labels that are ignored weighs batches wrongly."""
    batches = cut(X, IGNORED, [4, 12, 7])
    counts = [int((y != -100).sum()) for _, y in batches]
    with pytest.raises(sc.InputError, match=r"weight: it returned .* for batch . .*in proportion"):
        CurvatureProblem(NET, F.cross_entropy, batches, weight=lambda b: len(b[0]))
    with pytest.raises(sc.InputError, match=rf"12 for batch 1 and 0 for batch 2, .* {counts[1]} "):
        CurvatureProblem(
            NET, F.cross_entropy, cut(X, CLASSES, [4, 12, 7]),
            weight=lambda b: 0 if len(b[0]) == 7 else len(b[0]),
        )  # fmt: skip
    expected = values(CurvatureProblem(NET, F.cross_entropy, batches))
    for factor in (1, 2.5):
        found = CurvatureProblem(
            NET, F.cross_entropy, batches, weight=lambda b, f=factor: f * (b[1] != -100).sum()
        )
        torch.testing.assert_close(values(found), expected, rtol=1e-12, atol=1e-15)
    tokens = CurvatureProblem(NET, F.mse_loss, cut(X, REAL, [4, 19]), weight=lambda b: len(b[0]))
    assert tokens.describe()["n_terms"] == 23  # a quarter of the elements
    assert CurvatureProblem(NET, F.cross_entropy, batches[:1], weight=lambda b: 5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("told", ["mean", "sum"])
def test_a_reduction_is_held_against_the_loss(told, weighted):
    options = {"weight": lambda b: len(b[0])} if weighted else {}
    batches = cut(X, CLASSES, [10, 13])
    other = nn.CrossEntropyLoss(reduction="sum" if told == "mean" else "mean")
    with pytest.raises(sc.InputError, match=f"reduction: it is '{told}', but .* leave reduction"):
        CurvatureProblem(NET, other, batches, reduction=told, **options)
    right = CurvatureProblem(
        NET, nn.CrossEntropyLoss(reduction=told), batches, reduction=told, **options
    )
    expected = values(CurvatureProblem(NET, F.cross_entropy, [(X, CLASSES)]))
    torch.testing.assert_close(values(right), expected, rtol=1e-10, atol=1e-13)


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
