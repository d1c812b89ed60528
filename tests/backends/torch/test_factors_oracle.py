"""Kronecker factors against what is known without them: gradients, dense Hessians, exact cases."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from layer_cases import CASES, random
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_backends.torch.factor_capture import FactorCapture
from spectral_core.errors import InputError, LayerError

FUSED = ("lstm", "gru", "cells")
"""Cases whose operations hide their positions."""


def problem_of(case):
    return CurvatureProblem(
        case.model, case.loss, [(*case.inputs, case.target)], params=case.params
    )


@pytest.mark.parametrize("name", [n for n in CASES if n not in FUSED and n != "tied"])
def test_passages_make_the_gradient(name):
    """``Σ δ aᵀ`` over the positions is the gradient, for every operation that takes a weight."""
    torch.manual_seed(0)
    case = CASES[name]()
    check_passages(problem_of(case), list(case.matrices))


def check_passages(problem, names):
    layers = [problem._layers[name] for name in names]
    objective = problem._objective
    with objective.one_pass(0) as batches:
        leaves = objective.matrix_leaves()
        capture = FactorCapture(layers, leaves)

        def run(batch):
            with capture:
                loss, _ = objective.loss(leaves, batch)
            edges = [p.edge for found in capture.passages.values() for p in found]
            return torch.autograd.grad(loss, edges)

        found = iter(objective.model.hold(leaves, partial(run, next(batches))))
    gradients = problem.gradients(names)
    for name in names:
        total = 0
        for passage in capture.passages[name]:
            a, delta = passage.inputs(), passage.outputs(next(found))
            total = total + torch.einsum("bsm,bsn->mn", delta, a)
        torch.testing.assert_close(total, gradients[name], rtol=1e-10, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_passages_of_unusual_operations():
    """Rows of a matrix used whole as well, a scaled product, an uneven padding, a padding entry."""
    torch.manual_seed(0)
    params = {"whole": random(6, 5), "scaled": random(6, 4), "kernel": random(3, 2, 4),
              "table": random(7, 5)}  # fmt: skip

    def model(p, x, tokens):
        x = x + F.embedding(tokens, p["table"], padding_idx=2).mean(1)
        x = torch.tanh(F.linear(x, p["whole"]) + F.pad(F.linear(x, p["whole"][:2]), (0, 4)))
        x = torch.addmm(x[:, :4], x, p["scaled"], alpha=3)
        return F.conv1d(x.unsqueeze(1).expand(-1, 2, -1), p["kernel"], padding="same").mean(2)

    tokens = torch.tensor([[0, 2, 1], [2, 2, 3], [6, 5, 4], [0, 0, 2]])
    problem = CurvatureProblem(
        model, F.cross_entropy, [(random(4, 5), tokens, torch.tensor([0, 1, 2, 0]))], params=params
    )
    names = [layer.name for layer in problem.layers()]
    assert {"whole.part0", "whole.part1", "scaled", "kernel", "table"} <= set(names)
    check_passages(problem, names)


@pytest.mark.parametrize("name", [n for n in CASES if n not in FUSED])
def test_5_4_the_pass_for_the_factors_gives_the_gauss_newton_curvature(name):
    """Against the library's Jacobian products, which have the dense Gauss-Newton matrix as oracle."""
    torch.manual_seed(0)
    case = CASES[name]()
    problem = problem_of(case)
    given = {layer: along(problem, layer, 2) for layer in case.matrices}
    factors = problem.kronecker_factors(list(case.matrices), directions=given)
    known = 0
    for layer, (u, v) in given.items():
        if factors[layer].ggn is None:
            continue
        known += 1
        expected = problem.curvatures(layer, u, v, "ggn")
        torch.testing.assert_close(factors[layer].ggn, expected, rtol=1e-9, atol=1e-14)
    # A tied use the other way around, and samples that are not in front, leave it open.
    assert known == len(given) - {"tied": 1, "spelled out": 1}.get(name, 0)


@pytest.mark.parametrize("length", [6, 4])
def test_samples_behind_are_noticed_whatever_the_sizes(length):
    """Sequences first, as many positions as samples: nothing in the shapes tells."""
    torch.manual_seed(0)

    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Shared(False)

        def forward(self, x):
            return self.inner(x.transpose(0, 1)).tanh().mean(0)

    x, y = random(4, length, 4), random(4, 3)
    problem = CurvatureProblem(SequenceFirst().double(), F.mse_loss, [(x, y)])
    u, v = along(problem, "inner.first", 3)
    found = problem.kronecker_factors(["inner.first"], directions={"inner.first": (u, v)})
    assert found["inner.first"].ggn is None
    with pytest.raises(LayerError, match="keep the samples in front"):
        problem.kronecker_factors(["inner.first"], sharing="reduce")


@pytest.mark.parametrize("name", FUSED)
def test_fused_operations_say_why_they_have_no_factors(name):
    torch.manual_seed(0)
    case = CASES[name]()
    with pytest.raises(LayerError, match="hides inputs and outputs"):
        problem_of(case).kronecker_factors([next(iter(case.matrices))])


def close(found, expected, rtol=1e-9):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


def mlp(*widths, activation=nn.Tanh):
    layers = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), activation()]
    return nn.Sequential(*layers[:-1]).double()


def split(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def along(problem, layer, count=4):
    """Return directions of the gradient, and some that have nothing to do with it."""
    u, _, vh = torch.linalg.svd(problem.gradients([layer])[layer], full_matrices=False)
    u, v = u[:, :count], vh.T[:, :count]
    noise = [F.normalize(torch.randn_like(d), dim=0) for d in (u, v)]
    return torch.cat([u, noise[0]], 1), torch.cat([v, noise[1]], 1)


def kron(factors, u, v):
    c_delta, c_a = factors.output_covariance, factors.input_covariance
    return (u * (c_delta @ u)).sum(0) * (v * (c_a @ v)).sum(0)


LOSSES = {
    "classes": (F.cross_entropy, lambda: torch.randint(4, (9,))),
    "ignored": (F.cross_entropy, lambda: torch.tensor([0, -100, 2, 1, -100, 3, 3, 0, 1])),
    "smoothed": (partial(F.cross_entropy, label_smoothing=0.2), lambda: torch.randint(4, (9,))),
    "weighted": (
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0, 3.0]).double()),
        lambda: torch.randint(4, (9,)),
    ),
    "soft": (F.cross_entropy, lambda: torch.softmax(random(9, 4), 1)),
    "summed": (partial(F.cross_entropy, reduction="sum"), lambda: torch.randint(4, (9,))),
    "by hand": (
        lambda z, y: (torch.logsumexp(z, 1) - z[torch.arange(len(z)), y]).mean(),
        lambda: torch.randint(4, (9,)),
    ),
    "squared": (F.mse_loss, lambda: random(9, 4)),
    "huber": (F.smooth_l1_loss, lambda: random(9, 4)),
    "logistic": (F.binary_cross_entropy_with_logits, lambda: torch.rand(9, 4).double().round()),
    "positive weight": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 0.5, 4.0]).double()),
        lambda: torch.rand(9, 4).double().round(),
    ),
    "coupled outputs": (
        lambda z, y: ((z - y).square().sum(1) + 1).sqrt().mean(),
        lambda: random(9, 4),
    ),
}


@pytest.mark.parametrize("size", [9, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_output_factor_of_a_head_is_the_mean_hessian_in_its_outputs(name, size):
    torch.manual_seed(0)
    loss, make = LOSSES[name]
    model, x, y = mlp(5, 6, 4), 3 * random(9, 5), make()
    problem = CurvatureProblem(model, loss, split(x, y, size))
    factors = problem.kronecker_factors(["2"])["2"]
    z = model(x).detach()
    dense = torch.autograd.functional.hessian(lambda z: loss(z, y), z)
    blocks = torch.stack([dense[i, :, i] for i in range(9)]).sum(0)
    close(factors.output_covariance, blocks / {"summed": 9}.get(name, 1))
    assert factors.output_noise is None
    hidden = model[:2](x).detach()
    weight = torch.ones(9).double()
    if name == "ignored":
        weight = (y != -100).double()
    if name == "weighted":
        weight = loss.weight[y]
    close(factors.input_covariance, (hidden.T * weight) @ hidden / weight.sum())


@pytest.mark.parametrize("size", [12, 5])
@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize("name", ["classes", "squared", "logistic"])
def test_5_4_without_sharing_from_raw_per_sample_gradients(layer, name, size):
    """NumPy recomputes C_δ, C_A and h^GGN from one backward pass per sample and output."""
    torch.manual_seed(1)
    x = random(12, 5)
    y = {"classes": torch.randint(4, (12,)), "squared": random(12, 4),
         "logistic": torch.rand(12, 4).double().round()}[name]  # fmt: skip
    loss, model = LOSSES[name][0], mlp(5, 6, 4, activation=nn.GELU)
    problem = CurvatureProblem(model, loss, split(x, y, size))
    u, v = along(problem, layer)
    deltas, inputs, terms = [], [], 0
    for i in range(12):
        before = model[: int(layer)](x[i : i + 1])
        after = model[int(layer)](before)
        z = model[int(layer) + 1 :](after)
        count = 1 if name == "classes" else 4  # the mean runs over elements
        inner = torch.autograd.functional.hessian(
            lambda z, i=i, c=count: c * loss(z, y[i : i + 1]), z.detach()
        ).reshape(4, 4)
        values, vectors = np.linalg.eigh(inner.numpy())
        roots = vectors * np.sqrt(np.maximum(values, 0))
        jacobian = np.stack([
            torch.autograd.grad(z[0, c], after, retain_graph=True)[0][0].numpy() for c in range(4)
        ])  # fmt: skip
        deltas.append(roots.T @ jacobian)
        inputs.append(before[0].detach().numpy())
        terms += count
    deltas, inputs = np.stack(deltas), np.stack(inputs)
    c_delta = np.einsum("icm,icl->ml", deltas, deltas) / terms
    ggn = np.einsum("icm,mk,in,nk->ick", deltas, u.numpy(), inputs, v.numpy())
    factors = problem.kronecker_factors([layer])[layer]
    close(factors.output_covariance, torch.from_numpy(c_delta))
    close(factors.input_covariance, torch.from_numpy(inputs.T @ inputs / 12))
    close(problem.curvatures(layer, u, v, "ggn"), torch.from_numpy((ggn**2).sum((0, 1)) / terms))


def test_one_sample_without_sharing_is_exact():
    torch.manual_seed(0)
    problem = CurvatureProblem(
        mlp(5, 6, 7, 4), F.cross_entropy, [(random(1, 5), torch.tensor([2]))]
    )
    for layer in ("0", "2", "4"):
        u, v = along(problem, layer)
        factors = problem.kronecker_factors([layer])[layer]
        close(kron(factors, u, v), problem.curvatures(layer, u, v, "ggn"))


def test_linear_network_with_squared_error_has_no_residual():
    torch.manual_seed(0)
    problem = CurvatureProblem(
        mlp(5, 6, 4, activation=nn.Identity), F.mse_loss, split(random(9, 5), random(9, 4), 4)
    )
    for spectrum in sc.measure(problem, decompose=True).values():
        np.testing.assert_allclose(spectrum.ggn, spectrum.curvature, rtol=1e-10)
        assert abs(spectrum.decomposition.nu.exponent) < 1e-9
        assert abs(spectrum.decomposition.closure) < 1e-12


class Shared(nn.Module):
    """Linear maps on every position; their mean or every position is an output."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.pooled = pooled

    def forward(self, x):
        y = self.second(self.first(x))
        return y.mean(1) if self.pooled else y


@pytest.mark.parametrize(("sharing", "pooled"), [("expand", False), ("reduce", True)])
def test_sharing_is_exact_where_it_must_be(sharing, pooled):
    """Deep linear networks (Eschenhagen et al. 2023): a loss per position, or one of their mean."""
    torch.manual_seed(0)
    x, y = random(8, 6, 4), random(8, 3) if pooled else random(8, 6, 3)
    problem = CurvatureProblem(Shared(pooled).double(), F.mse_loss, split(x, y, 3))
    for layer in ("first", "second"):
        u, v = along(problem, layer, 3)
        for other in ("expand", "reduce"):
            factors = problem.kronecker_factors([layer], sharing=other)[layer]
            ratio = kron(factors, u, v) / problem.curvatures(layer, u, v, "ggn")
            exact = float((ratio - 1).abs().max()) < 1e-9
            assert exact == (other == sharing), (layer, other, ratio)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("delta", ["ggn", "empirical"])
def test_4_5_repeated_samples_change_nothing(delta, sharing):
    torch.manual_seed(0)
    case = CASES["block"]()
    x, y = case.inputs[0], case.target
    results = []
    for r in (1, 3):
        problem = CurvatureProblem(case.model, case.loss, split(x.repeat(r, 1, 1), y.repeat(r), 2))
        names = [layer.name for layer in problem.layers()]
        factors = problem.kronecker_factors(names, delta=delta, sharing=sharing)
        report = sc.measure(problem, decompose=True, delta=delta, sharing=sharing)
        results.append((factors, report))
    (factors, report), (more, again) = results
    for name in factors:
        close(more[name].output_covariance, factors[name].output_covariance)
        close(more[name].input_covariance, factors[name].input_covariance)
        chi, chi_again = (r[name].decomposition.chi for r in (report, again))
        np.testing.assert_allclose(chi_again, chi, rtol=1e-6)


def test_sums_that_cancel_are_zero():
    """Keys that all move together change no attention: reduced, their factor is zero, not noise."""
    torch.manual_seed(0)
    case = CASES["block"]()
    for dtype in (torch.float32, torch.float64):
        problem = CurvatureProblem(
            case.model, case.loss, split(case.inputs[0], case.target, 2), dtype=dtype
        )
        found = problem.kronecker_factors(["qkv.part0", "qkv.part1"], sharing="reduce")
        assert found["qkv.part0"].output_covariance.norm() > 0
        assert found["qkv.part1"].output_covariance.norm() == 0
        spectrum = sc.measure(
            problem, "qkv.part1", curvature="ggn", decompose=True, sharing="reduce"
        )["qkv.part1"]
        assert not any("tied" in note for note in spectrum.notes)
        assert spectrum.decomposition.alpha.n == 0 and spectrum.decomposition.alpha.reason
        assert any("more directions dropped from the decomposition" in n for n in spectrum.notes)


def test_4_6_softmax_head_has_rank_classes_less_one():
    torch.manual_seed(0)
    problem = CurvatureProblem(
        mlp(5, 9, 6), F.cross_entropy, split(random(40, 5), torch.randint(6, (40,)), 7)
    )
    for delta in ("ggn", "empirical", "fisher-mc"):
        c_delta = problem.kronecker_factors(["2"], delta=delta)["2"].output_covariance
        values = torch.linalg.eigvalsh(c_delta)
        assert values[0].abs() < 1e-14 * values[-1] and values[1] > 1e-6 * values[-1]
        assert int((values > 1e-12 * values[-1]).sum()) == sc.softmax_head_rank(6)


def test_changes_in_place_come_after_the_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).double()
    plain = nn.Sequential(model[0], nn.ReLU(), model[2])
    x, y = random(9, 5), torch.randint(3, (9,))
    found, expected = (
        CurvatureProblem(m, F.cross_entropy, [(x, y)]).kronecker_factors(["0"])["0"]
        for m in (model, plain)
    )
    close(found.output_covariance, expected.output_covariance)


def test_ignored_images_are_in_no_factor():
    torch.manual_seed(0)
    case = CASES["conv2d grouped"]()
    x, y = random(6, *case.inputs[0].shape[1:]), torch.tensor([0, -100, 2, 1, -100, 0])
    names = list(case.matrices)
    every, kept = (
        CurvatureProblem(case.model, F.cross_entropy, batches).kronecker_factors(names)
        for batches in ([(x, y)], split(x[y >= 0], y[y >= 0], 3))
    )
    for name in names:
        close(every[name].input_covariance, kept[name].input_covariance)
        close(every[name].output_covariance, kept[name].output_covariance)


class Tokens(nn.Module):
    """One causal attention on tokens; `flat` gives every token as a sample of its own."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.flat = flat

    def forward(self, tokens):
        x = self.table(tokens)
        x = x + F.scaled_dot_product_attention(x, x, self.mix(x), is_causal=True)
        z = self.head(torch.tanh(x))
        return z.flatten(0, 1) if self.flat else z.transpose(1, 2)


def tokens_problem(flat, **options):
    torch.manual_seed(0)
    model, tokens = Tokens(flat).double(), torch.randint(7, (6, 5))
    targets = torch.randint(7, (6, 5))
    targets[0, 3:] = -100
    return CurvatureProblem(
        model, lambda z, y: F.cross_entropy(z, y.flatten() if flat else y),
        split(tokens, targets, 4), **options,
    )  # fmt: skip


def test_token_losses_are_exact_where_columns_are_few():
    """(1/N) Σ over terms, classes and positions, from one backward pass per term and class."""
    problem = tokens_problem(False)
    found = problem.kronecker_factors(["mix"])["mix"]
    assert found.output_noise is None
    model, batches = problem._model._model, problem._objective._batches
    total, count = torch.zeros(4, 4, dtype=torch.float64), 0
    for tokens, targets in batches:
        kept = {}
        handle = model.mix.register_forward_hook(lambda m, i, o, kept=kept: kept.update(y=o))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            z = model(tokens)
        handle.remove()
        p = torch.softmax(z, 1).detach()
        for b, t in (targets != -100).nonzero().tolist():
            for c in range(7):
                unit = -p[b, :, t] * p[b, c, t].sqrt()
                unit[c] += p[b, c, t].sqrt()
                (d,) = torch.autograd.grad(z[b, :, t] @ unit, kept["y"], retain_graph=True)
                total += torch.einsum("btm,btl->ml", d, d)
            count += 1
    close(found.output_covariance, total / count)


@pytest.mark.parametrize("delta", ["ggn", "fisher-mc", "empirical"])
@pytest.mark.parametrize("flat", [False, True])
def test_monte_carlo_is_unbiased_and_states_its_error(flat, delta):
    exact_delta = "ggn" if delta == "fisher-mc" else delta
    exact = tokens_problem(False).kronecker_factors(["mix", "head"], delta=exact_delta)
    problem = tokens_problem(flat)
    most = 0 if not flat else 128  # flattened tokens meet in the attention: never exact
    found = problem.kronecker_factors(["mix", "head"], delta=delta, draws=600, max_columns=most)
    for name in ("mix", "head"):
        estimate, truth = found[name].output_covariance, exact[name].output_covariance
        assert (estimate - truth).norm() < 0.1 * truth.norm()
        assert found[name].output_noise is not None
        if name == "head" and delta == "empirical":  # one position a term: a sign changes nothing
            close(estimate, truth)
            continue
        assert 0.2 < found[name].output_noise.norm() / (estimate - truth).norm() < 5
        close(found[name].input_covariance, exact[name].input_covariance)


def test_stated_standard_error_is_calibrated():
    """Over many seeds the error is the stated one, and its mean is zero."""
    truth = tokens_problem(False).kronecker_factors(["mix"])["mix"].output_covariance
    errors, stated = [], []
    for seed in range(60):
        problem = tokens_problem(False, seed=seed)
        found = problem.kronecker_factors(["mix"], draws=4, max_columns=0)["mix"]
        errors.append(torch.diag(found.output_covariance - truth))
        stated.append(torch.diag(found.output_noise))
    ratio = torch.stack(errors).square().mean() / torch.stack(stated).square().mean()
    assert 0.7 < ratio < 1.4
    bias = torch.stack(errors).mean(0) / (torch.stack(stated).square().mean(0) / 60).sqrt()
    assert bias.abs().max() < 4


def test_samples_that_meet_are_noticed():
    notes = tokens_problem(True).kronecker_factors(["mix"])["mix"].notes
    assert any("Monte-Carlo" in note for note in notes)
    assert not tokens_problem(False).kronecker_factors(["mix"])["mix"].notes
    with pytest.raises(LayerError, match="keep the samples in front"):
        tokens_problem(True).kronecker_factors(["mix"], sharing="reduce")


def test_tied_weights_say_which_use_is_in_the_factors():
    torch.manual_seed(0)
    problem = problem_of(CASES["tied"]())
    (name,) = [layer.name for layer in problem.layers() if "+" in layer.kind]
    found = problem.kronecker_factors([name])[name]
    assert any("the other way around" in note for note in found.notes)
    spectrum = sc.measure(problem, name, decompose=True)[name]
    assert abs(spectrum.decomposition.closure) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": "gn"}, "delta: 'gn'"),
        ({"sharing": "both"}, "sharing: 'both'"),
        ({"draws": 3}, "draws: 3"),
        ({"max_columns": -1}, "max_columns: -1"),
    ],
)
def test_unknown_options(options, message):
    problem = problem_of(CASES["linear"]())
    with pytest.raises(InputError, match=message):
        problem.kronecker_factors(["0"], **options)


def test_losses_without_factors_say_why():
    torch.manual_seed(0)
    x, y = random(8, 5), random(8, 4)

    def factors(loss, targets=y):
        problem = CurvatureProblem(mlp(5, 6, 4), loss, [(x, targets)], check_deterministic=False)
        return problem.kronecker_factors(["0"], max_columns=3)

    with pytest.raises(InputError, match="linear in the outputs"):
        factors(lambda z, y: F.nll_loss(z, y), torch.randint(4, (8,)))
    with pytest.raises(InputError, match="not convex"):
        factors(lambda z, y: torch.cos(z - y).mean())
    with pytest.raises(InputError, match="raise max_columns"):
        factors(lambda z, y: ((z - y).square().sum(1) + 1).sqrt().mean())
    with pytest.raises(InputError, match="cannot differentiate it twice in the outputs"):
        factors(F.multi_margin_loss, torch.randint(4, (8,)))
    problem = CurvatureProblem(
        mlp(5, 6, 4), None, [(x, y)], forward=lambda m, b: F.mse_loss(m(b[0]), b[1])
    )
    with pytest.raises(InputError, match="'ggn' needs to know"):
        problem.kronecker_factors(["0"])


def test_state_is_as_before_and_factors_repeat():
    torch.manual_seed(0)
    case = CASES["attention"]()
    state = torch.get_rng_state()
    problem = problem_of(case)
    first = problem.kronecker_factors(list(case.matrices), delta="fisher-mc")
    second = problem.kronecker_factors(list(case.matrices), delta="fisher-mc")
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in case.model.parameters())
    for name in first:
        assert torch.equal(first[name].output_covariance, second[name].output_covariance)


class SquareWithoutBatching(torch.autograd.Function):
    """Differentiable twice, but not under vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        assert float(gradient.sum()) == float(gradient.sum())  # data-dependent: not under vmap
        return 2 * x * gradient


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_columns_sent_back_together_or_one_by_one(chunk_size):
    class Square(nn.Module):
        def forward(self, x):
            return SquareWithoutBatching.apply(x)

    torch.manual_seed(0)
    model = mlp(5, 6, 4, activation=Square)
    x, y = random(9, 5), torch.randint(4, (9,))
    problem = CurvatureProblem(model, F.cross_entropy, [(x, y)], chunk_size=chunk_size)
    found = problem.kronecker_factors(["0"])["0"].output_covariance
    plain = nn.Sequential(model[0], PlainSquare(), model[2])
    expected = CurvatureProblem(plain, F.cross_entropy, [(x, y)]).kronecker_factors(["0"])["0"]
    close(found, expected.output_covariance)


class PlainSquare(nn.Module):
    def forward(self, x):
        return x * x


class Routed(nn.Module):
    """Two experts; each sample goes to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            (where,) = ((x[:, 0] > 0) == bool(index)).nonzero(as_tuple=True)
            out = out.index_copy(0, where, torch.tanh(expert(x[where])))
        return self.head(out)


def test_routed_samples():
    """An expert's factors are those of the samples that it saw; C_δ counts every term."""
    torch.manual_seed(0)
    model, x, y = Routed().double(), random(20, 5), torch.randint(4, (20,))
    x[:3, 0] = x[:3, 0].abs()  # the whole first batch goes one way: only later ones tell
    y[10] = -100
    problem = CurvatureProblem(model, F.cross_entropy, split(x, y, 3))
    found = problem.kronecker_factors(["experts.1"])["experts.1"]
    seen = x[(x[:, 0] > 0) & (y >= 0)]
    alone = nn.Sequential(model.experts[1], nn.Tanh(), model.head)
    expected = CurvatureProblem(
        alone, F.cross_entropy, [(seen, y[(x[:, 0] > 0) & (y >= 0)])]
    ).kronecker_factors(["0"])["0"]
    close(found.output_covariance, expected.output_covariance * len(seen) / 19)
    assert found.ggn is None


def test_saturated_probabilities_in_float32():
    """p is one-hot to rounding: the Hessian is all cancellation, and still a cross-entropy's."""
    torch.manual_seed(0)
    model = mlp(5, 6, 4)
    with torch.no_grad():
        model[2].weight *= 300
    x, y = random(30, 5), torch.randint(4, (30,))
    exact, coarse = (
        CurvatureProblem(model, F.cross_entropy, [(x, y)], dtype=dtype)
        .kronecker_factors(["0"])["0"].output_covariance
        for dtype in (torch.float64, torch.float32)
    )  # fmt: skip
    close(coarse, exact, rtol=1e-2)
    # recognised for what it is, as it must be where classes are too many to make it dense
    CurvatureProblem(model, F.cross_entropy, [(x, y)], dtype=torch.float32).kronecker_factors(
        ["0"], max_columns=3
    )


def test_recomputed_activations():
    torch.manual_seed(0)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = mlp(5, 6, 6), nn.Linear(6, 4).double()

        def forward(self, x):
            return self.head(checkpoint(self.inner, x, use_reentrant=False))

    model = Checkpointed()
    x, y = random(9, 5), torch.randint(4, (9,))
    found = CurvatureProblem(model, F.cross_entropy, [(x, y)]).kronecker_factors(["inner.0"])
    plain = nn.Sequential(model.inner, model.head)
    expected = CurvatureProblem(plain, F.cross_entropy, [(x, y)]).kronecker_factors(["0.0"])
    close(found["inner.0"].output_covariance, expected["0.0"].output_covariance)


@pytest.mark.parametrize("delta", ["fisher-mc", "empirical"])
def test_a_term_of_weight_two_counts_twice(delta):
    """Class weights: ω enters outer products once, as if the sample were there ω times."""
    torch.manual_seed(0)
    model, x, y = mlp(5, 6, 4), random(12, 5), torch.arange(12) % 4
    weight = torch.tensor([1.0, 2.0, 3.0, 1.0]).double()
    repeats = weight[y].long()
    weighted = CurvatureProblem(model, nn.CrossEntropyLoss(weight=weight), split(x, y, 5))
    repeated = CurvatureProblem(
        model, F.cross_entropy, [(x.repeat_interleave(repeats, 0), y.repeat_interleave(repeats))]
    )
    exact = "ggn" if delta == "fisher-mc" else delta
    found = weighted.kronecker_factors(["0"], delta=delta, draws=4000)["0"]
    expected = repeated.kronecker_factors(["0"], delta=exact)["0"]
    rtol = 0.05 if delta == "fisher-mc" else 1e-9
    close(found.output_covariance, expected.output_covariance, rtol=rtol)
    close(found.input_covariance, expected.input_covariance)


def test_logistic_targets_are_drawn_as_zeros_and_ones():
    torch.manual_seed(0)
    model = mlp(5, 6, 1)
    x = random(1, 5)
    p = float(torch.sigmoid(model(x).detach()))
    seen = set()
    for seed in range(20):
        problem = CurvatureProblem(
            model, F.binary_cross_entropy_with_logits, [(x, torch.ones(1, 1).double())], seed=seed
        )
        found = problem.kronecker_factors(["2"], delta="fisher-mc", draws=2)["2"]
        seen.add(round(float(found.output_covariance[0, 0]), 12))
    one, zero = (1 - p) ** 2, p**2
    assert seen <= {round(value, 12) for value in (one, zero, (one + zero) / 2)} and len(seen) > 1


def test_batches_weigh_by_their_terms():
    torch.manual_seed(0)
    model, x, y = mlp(5, 6, 4), random(8, 5), random(8, 4)
    mask = torch.zeros(8, 4).double()
    mask[:4, :2], mask[4:, 0] = 1, 1  # 8 elements of the first batch count, 4 of the second
    problem = CurvatureProblem(
        model,
        lambda z, target: ((z - target[0]).square() * target[1]).sum() / target[1].sum(),
        [(x[:4], y[:4], mask[:4]), (x[4:], y[4:], mask[4:])],
        forward=lambda m, batch: (m(batch[0]), batch[1:]),
        weight=lambda batch: float(batch[2].sum()),
    )
    found = problem.kronecker_factors(["0"])["0"].input_covariance
    close(found, (8 * x[:4].T @ x[:4] / 4 + 4 * x[4:].T @ x[4:] / 4) / 12)
