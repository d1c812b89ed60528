"""Rows of inputs and output gradients, of every operation and every order of samples."""

from functools import partial

import pytest
import torch
from factor_helpers import FUSED, Shared, along, close, mlp, problem_of, split
from layer_cases import CASES, random
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_backends.torch.capture.layer_io import ActivationCapture
from spectral_core.errors import LayerError


@pytest.mark.parametrize("name", [n for n in CASES if n not in FUSED and n != "tied"])
def test_layer_calls_make_the_gradient(name):
    """``Σ δ aᵀ`` over the positions is the gradient, for every operation that takes a weight.

    And ``a v`` comes out the same without making the rows a.
    """
    torch.manual_seed(0)
    case = CASES[name]()
    check_layer_calls(problem_of(case), list(case.matrices))


def check_layer_calls(problem, names):
    layers = [problem._layers[name] for name in names]
    objective = problem._objective
    with objective.one_pass(0) as batches:
        leaves = objective.matrix_leaves()
        capture = ActivationCapture(layers, leaves)

        def run(batch):
            with capture:
                loss, _ = objective.loss(leaves, batch)
            edges = [p.edge for found in capture.calls.values() for p in found]
            return torch.autograd.grad(loss, edges)

        found = iter(objective.model.hold(leaves, partial(run, next(batches))))
    gradients = problem.gradients(names)
    for name in names:
        total = 0
        for call in capture.calls[name]:
            a, delta = call.inputs(), call.outputs(next(found))
            v = random(a.shape[-1], 3)
            torch.testing.assert_close(call.project(v), a @ v, rtol=1e-11, atol=1e-13)
            total = total + torch.einsum("bsm,bsn->mn", delta, a)
        torch.testing.assert_close(total, gradients[name], rtol=1e-10, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_layer_calls_of_unusual_operations():
    """Rows of a matrix used whole as well, a scaled product, an uneven padding, a padding entry."""
    torch.manual_seed(0)
    params = {"whole": random(6, 5), "scaled": random(6, 4), "kernel": random(3, 2, 4),
              "table": random(7, 5)}  # fmt: skip

    def model(p, x, tokens):
        x = x + F.embedding(tokens, p["table"], padding_idx=2).mean(1)
        x = torch.tanh(F.linear(x, p["whole"]) + F.pad(F.linear(x, p["whole"][1:3]), (0, 4)))
        x = torch.addmm(x[:, :4], x, p["scaled"], alpha=3)
        return F.conv1d(x.unsqueeze(1).expand(-1, 2, -1), p["kernel"], padding="same").mean(2)

    tokens = torch.tensor([[0, 2, 1], [2, 2, 3], [6, 5, 4], [0, 0, 2]])
    problem = CurvatureProblem(
        model, F.cross_entropy, [(random(4, 5), tokens, torch.tensor([0, 1, 2, 0]))], params=params
    )
    names = [layer.name for layer in problem.layers()]
    assert {"whole.part0", "whole.part1", "scaled", "kernel", "table"} <= set(names)
    check_layer_calls(problem, names)


@pytest.mark.parametrize("name", CASES)
def test_5_4_columns_give_the_gauss_newton_curvature(name):
    """Against the library's Jacobian products, which have the dense Gauss-Newton matrix as oracle.

    Where a use was overlooked, the derivative along the direction shows it.
    """
    torch.manual_seed(0)
    case = CASES[name]()
    problem = problem_of(case)
    given = {layer: along(problem, layer, 2) for layer in case.matrices}
    gradients = problem.gradients(list(given))
    known = 0
    for found in problem.layer_curvatures(given, "ggn", engine="columns"):
        if isinstance(found, LayerError):
            continue
        u, v = given[found.name]
        slope = ((u.T @ gradients[found.name]) * v.T).sum(1)
        if torch.allclose(found.derivative, slope, rtol=1e-9, atol=1e-12):
            known += 1
            expected = problem.curvatures(found.name, u, v, "ggn")
            torch.testing.assert_close(found.ggn, expected, rtol=1e-9, atol=1e-14)
    # Fused cells, a tied use the other way around, and samples that are not in front do not do.
    missing = {"tied": 1, "spelled out": 1} | dict.fromkeys(FUSED, 2) | {"cells": 6}
    assert known == len(given) - missing.get(name, 0)


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
    (found,) = problem.layer_curvatures({"inner.first": (u, v)}, "ggn", engine="columns")
    assert isinstance(found, LayerError) and "samples" in found.reason
    with pytest.raises(LayerError, match="keep the samples in front"):
        problem.kronecker_factors(["inner.first"], kfac_approx="reduce")


@pytest.mark.parametrize("name", FUSED)
def test_fused_operations_say_why_they_have_no_factors(name):
    torch.manual_seed(0)
    case = CASES[name]()
    with pytest.raises(LayerError, match="hides inputs and outputs"):
        problem_of(case).kronecker_factors([next(iter(case.matrices))])


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


def test_tied_weights_say_which_use_is_in_the_factors():
    torch.manual_seed(0)
    problem = problem_of(CASES["tied"]())
    (name,) = [layer.name for layer in problem.layers() if "+" in layer.kind]
    found = problem.kronecker_factors([name])[name]
    assert any("the other way around" in note for note in found.notes)
    spectrum = sc.measure(problem, name, decompose=True)[name]
    assert abs(spectrum.decomposition.closure) < 1e-12


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
    x[9:12, 0] = x[9:12, 0].abs() * torch.tensor([1, 1, -1])
    y[10] = -100
    problem = CurvatureProblem(model, F.cross_entropy, split(x, y, 3))
    found = problem.kronecker_factors(["experts.1"])["experts.1"]
    seen = x[(x[:, 0] > 0) & (y >= 0)]
    alone = nn.Sequential(model.experts[1], nn.Tanh(), model.head)
    expected = CurvatureProblem(
        alone, F.cross_entropy, [(seen, y[(x[:, 0] > 0) & (y >= 0)])]
    ).kronecker_factors(["0"])["0"]
    close(found.output_covariance, expected.output_covariance * len(seen) / 19)


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


def test_uses_out_of_sight_are_noticed():
    """A norm of the weight, some of its columns: Σ δ aᵀ is not the gradient."""
    torch.manual_seed(0)
    params = {"normed": random(6, 5), "sliced": random(4, 6), "plain": random(4, 4)}

    def model(p, x):
        x = torch.tanh(F.linear(x, p["normed"]) / p["normed"].norm())
        x = torch.tanh(F.linear(x, p["sliced"]) + F.linear(x[:, :2], p["sliced"][:, :2]))
        return F.linear(x, p["plain"])

    x, y = random(9, 5), torch.randint(4, (9,))
    problem = CurvatureProblem(model, F.cross_entropy, [(x, y)], params=params)
    names = [layer.name for layer in problem.layers()]
    found = problem.kronecker_factors(names)
    partial_uses = {n for n in names if n.startswith(("normed", "sliced.part0"))}
    assert partial_uses and "plain" in names
    for name in names:
        noted = any("used in ways" in note for note in found[name].notes)
        assert noted or name not in partial_uses
    assert not found["plain"].notes
