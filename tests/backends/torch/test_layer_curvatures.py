"""Curvatures of many layers together, by every engine, against the dense float64 derivatives."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from factor_helpers import along, mlp, problem_of, split
from layer_cases import CASES, random
from test_curvature_oracle import dense_ggn, dense_hessian, directions
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_backends.torch.allocation import AllocationPeak
from spectral_backends.torch.tangent_pass import TangentPass
from spectral_core.errors import LayerError

TOLERANCE = 1e-10


def by_engine(problem, given, kind="hessian", **options):
    found = list(problem.layer_curvatures(given, kind, **options))
    assert not any(isinstance(f, LayerError) for f in found), found
    return {f.name: f for f in found}


def check(problem, engine, rtol=1e-9, kind="hessian", layers=None, **options):
    """Compare an engine with the graph differentiated layer by layer; return the findings."""
    names = layers or [layer.name for layer in problem.layers()]
    given = {name: along(problem, name, 3) for name in names}
    found = by_engine(problem, given, kind, engine=engine, **options)
    for name, (u, v) in given.items():
        expected = problem.curvatures(name, u, v, kind)
        scale = float(expected.abs().max())
        torch.testing.assert_close(found[name].values, expected, rtol=rtol, atol=rtol * scale)
    return found


@pytest.mark.parametrize("name", CASES)
def test_tangents_against_dense_second_derivatives(name):
    torch.manual_seed(0)
    case = CASES[name]()
    problem = problem_of(case)
    given = {layer: along(problem, layer) for layer in case.matrices}
    slopes = problem.gradients(list(given))
    for chunk in (None, 1, 3):
        problem._chunk_size = chunk
        for kind, dense in (("hessian", dense_hessian), ("ggn", dense_ggn)):
            found = by_engine(problem, given, kind, engine="tangents")
            for layer, (u, v) in given.items():
                parameter, rule = case.matrices[layer]
                b = dense(case, parameter)
                d = directions(rule, case.parameters()[parameter].shape, u, v)
                expected = torch.einsum("ki,ij,kj->k", d, b, d)
                scale = torch.linalg.matrix_norm(b, 2)
                error = (found[layer].values - expected).abs() / (expected.abs() + 1e-3 * scale)
                assert error.max() <= TOLERANCE, (layer, kind, chunk)
                slope = ((u.T @ slopes[layer]) * v.T).sum(1)
                torch.testing.assert_close(found[layer].derivative, slope, rtol=1e-9, atol=1e-12)


class ResidualCNN(nn.Module):
    """Piecewise linear in every layer: batch norm by running statistics, max-pool, a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.Conv2d(6, 6, 1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.leaky_relu(x + self.two(F.relu(self.one(x), inplace=True)))
        return self.head(F.max_pool2d(x, 2).flatten(1))


def cnn(samples=11, view=False):
    torch.manual_seed(0)
    model = ResidualCNN().double()
    model(random(20, 3, 8, 8))
    return model.eval(), random(samples, 3, 8, 8), torch.randint(5, (samples,))


LOSSES = {
    "cross-entropy": (F.cross_entropy, None),
    "class weights, an ignored target": (
        nn.CrossEntropyLoss(weight=torch.tensor([1, 2, 0.5, 3, 1]).double(), ignore_index=2), None),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), None),
    "soft targets": (F.cross_entropy, lambda n: torch.softmax(random(n, 5), 1)),
    "squared error": (F.mse_loss, lambda n: random(n, 5)),
    "logistic": (F.binary_cross_entropy_with_logits, lambda n: torch.rand(n, 5).double()),
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_columns_are_the_hessian_of_a_piecewise_linear_network(loss):
    model, x, y = cnn()
    loss_fn, targets = LOSSES[loss]
    y = y if targets is None else targets(len(x))
    problem = CurvatureProblem(model, loss_fn, split(x, y, 4))
    found = check(problem, "columns")
    assert all(f.certificate.piecewise_linear for f in found.values())
    whole = CurvatureProblem(model, loss_fn, [(x, y)])
    for name, f in found.items():
        u, v = along(problem, name, 3)
        again = by_engine(whole, {name: (u, v)}, engine="columns")[name].values
        expected = whole.curvatures(name, u, v)
        torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-14)
        assert f.certificate.engine == "columns"


def test_outputs_at_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 3, 1)).double()
    problem = CurvatureProblem(
        model, F.cross_entropy, [(random(5, 4, 7), torch.randint(3, (5, 7)))]
    )
    check(problem, "columns")
    check(problem, "auto")


def test_samples_that_are_not_in_front_or_meet():
    """Columns do not do for them; what is chosen by itself is exact."""
    torch.manual_seed(0)

    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.inner(x.transpose(0, 1)).relu().mean(0))

    class Centred(SequenceFirst):
        def forward(self, x):
            x = self.inner(x).relu().mean(1)
            return self.head(x - x.mean(0))

    for model in (SequenceFirst(), Centred()):
        data = [(random(6, 6, 4), torch.randint(3, (6,)))]
        problem = CurvatureProblem(model.double(), F.cross_entropy, data, weight=lambda b: 6)
        given = {"inner": along(problem, "inner", 3)}
        (refused,) = problem.layer_curvatures(given, engine="columns")
        assert isinstance(refused, LayerError) and "samples" in refused.reason
        check(problem, "auto")


def test_flattened_tokens():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True).double().eval()
    problem = CurvatureProblem(
        model, F.cross_entropy, [(random(3, 5, 8), torch.randint(8, (15,)))],
        forward=lambda m, b: (m(b[0]).flatten(0, 1), b[1]),
    )  # fmt: skip
    check(problem, "auto")
    check(problem, "auto", kind="ggn")


def test_float32_is_near_float64():
    model, x, y = cnn()
    exact = CurvatureProblem(model, F.cross_entropy, [(x, y)])
    coarse = CurvatureProblem(model, F.cross_entropy, [(x, y)], dtype=torch.float32)
    given = {layer.name: along(exact, layer.name, 3) for layer in exact.layers()}
    for engine in ("columns", "tangents"):
        one, two = (by_engine(p, given, engine=engine) for p in (exact, coarse))
        for name in given:
            h, low = one[name].values, two[name].values.double()
            assert low.dtype == torch.float64 and ((h - low).abs() / h.abs().max()).max() < 1e-4


def test_done_layers_do_not_change_a_bit_of_the_others():
    problem = problem_of(CASES["block"]())
    given = {layer.name: along(problem, layer.name, 3) for layer in problem.layers()}
    whole = by_engine(problem, given)
    done = list(given)[1::2]
    rest = by_engine(problem, given, done=done)
    assert set(rest) == set(given) - set(done)
    assert all(torch.equal(rest[name].values, whole[name].values) for name in rest)


def test_unusual_uses_of_a_weight():
    """In a norm, twice in a chain, in place, in part: the exact number or another engine."""
    torch.manual_seed(0)
    params = {"normed": random(6, 5), "chain": random(6, 6), "placed": random(6, 4)}

    def model(p, x):
        x = F.relu(F.linear(x, p["normed"]) / p["normed"].norm())
        x = F.relu(F.linear(F.relu(F.linear(x, p["chain"])), p["chain"]))
        y = torch.zeros(len(x), 4, dtype=x.dtype)
        y.addmm_(x, p["placed"])
        return y + F.linear(x[:, :3], p["chain"][:4, :3])

    x, y = random(9, 5), torch.randint(4, (9,))
    problem = CurvatureProblem(model, F.cross_entropy, split(x, y, 5), params=params)
    found = check(problem, "auto")
    assert not found["normed"].certificate.piecewise_linear
    assert not any(f.certificate.piecewise_linear for n, f in found.items() if "chain" in n)
    report = sc.measure(problem, top_k=4)
    assert all(s.certificate.derivative_error < 1e-8 for s in report.values() if
               s.certificate.engine != "double-backward")  # fmt: skip


def test_a_use_in_a_custom_function():
    """Torch does not show it; autograd does."""
    torch.manual_seed(0)

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w.T

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g @ w, g.T @ x

    params = {"a": random(6, 5), "b": random(3, 6)}

    def model(p, x):
        return F.linear(F.relu(F.linear(x, p["a"]) + Hidden.apply(x, p["a"])), p["b"])

    data = [(random(9, 5), torch.randint(3, (9,)))]
    found = check(CurvatureProblem(model, F.cross_entropy, data, params=params), "auto")
    assert not found["a"].certificate.piecewise_linear


def test_recomputed_activations_and_losses_of_a_forward():
    torch.manual_seed(0)
    inner, head = mlp(5, 6, 6), nn.Linear(6, 4).double()

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = inner, head

        def forward(self, x):
            return self.head(checkpoint(self.inner, x, use_reentrant=False))

    x, y = random(9, 5), torch.randint(4, (9,))
    check(CurvatureProblem(Checkpointed(), F.cross_entropy, [(x, y)]), "auto")
    alone = CurvatureProblem(
        nn.Sequential(inner, head), None, [(x, y)],
        forward=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
    )  # fmt: skip
    found = check(alone, "auto")
    assert all(f.ggn is None for f in found.values())


def test_a_view_that_only_the_usual_layout_has():
    torch.manual_seed(0)

    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, 5)

        def forward(self, x):
            return self.head(F.relu(self.conv(x)).view(len(x), -1))

    problem = CurvatureProblem(
        Viewed().double(), F.cross_entropy, [(random(6, 3, 6, 6), torch.randint(5, (6,)))]
    )
    found = check(problem, "auto")
    assert {f.certificate.engine for f in found.values()} <= {"columns", "tangents"}


class TestMonteCarlo:
    def test_standard_error(self):
        """Unbiased over seeds, with the spread that is stated."""
        model, x, y = cnn()
        problem = CurvatureProblem(model, F.cross_entropy, split(x, y, 6))
        given = {"one.group1": along(problem, "one.group1", 3)}
        found = []
        for seed in range(60):
            problem = CurvatureProblem(model, F.cross_entropy, split(x, y, 6), seed=seed)
            found.append(by_engine(problem, given, engine="monte-carlo", draws=8)["one.group1"])
        exact = problem.curvatures("one.group1", *given["one.group1"])
        values = torch.stack([f.values for f in found])
        stated = np.stack([f.certificate.standard_error for f in found])
        stated = torch.from_numpy((stated**2).mean(0) ** 0.5)
        assert ((values.mean(0) - exact).abs() <= 4 * stated / 60**0.5).all()
        ratio = (values.std(0) / stated)[exact > 0]
        assert len(ratio) > 3 and ((ratio > 0.7) & (ratio < 1.4)).all()

    def test_curved_layers(self):
        torch.manual_seed(0)
        data = [(random(9, 5), torch.randint(4, (9,)))]
        problem = CurvatureProblem(mlp(5, 6, 4), F.cross_entropy, data)
        given = {name: along(problem, name, 2) for name in ("0", "2")}
        refused, head = problem.layer_curvatures(given, engine="monte-carlo")
        assert isinstance(refused, LayerError) and "TanhBackward0" in refused.reason
        assert head.certificate.piecewise_linear
        by_engine(problem, given, "ggn", engine="monte-carlo")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "fast"}, "engine: 'fast' is unknown"),
        ({"draws": 1}, "draws: 1 is no number"),
        ({"kind": "fisher"}, "kind: 'fisher' is unknown"),
    ],
)
def test_options(options, message):
    problem = problem_of(CASES["linear"]())
    with pytest.raises(sc.InputError, match=message):
        problem.layer_curvatures({}, **options)


@pytest.mark.parametrize("budget", [2**16, 2**20, 2**22])
def test_a_sweep_keeps_the_budget(budget, monkeypatch):
    """What tensors hold at one time, measured; one direction goes in any case."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True)
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(32 * 16, 10)).eval()
    data = [(torch.randn(8, 16, 32), torch.randint(10, (8,)))]
    problem = CurvatureProblem(model, F.cross_entropy, data, memory_budget=budget)
    seen = []
    sweep = TangentPass._sweep

    def measured(self, made, chunk):
        with AllocationPeak() as peak:
            sweep(self, made, chunk)
        seen.append((sum(part.stop - part.start for _, part in chunk), peak.bytes))

    monkeypatch.setattr(TangentPass, "_sweep", measured)
    names = [layer.name for layer in problem.layers()]
    found = by_engine(problem, {n: along(problem, n, 9) for n in names}, engine="tangents")
    assert len(found) == len(names)
    assert all(held <= budget for count, held in seen if count > 1)
    assert (max(count for count, _ in seen) == 1) == (budget == 2**16)
    if budget == 2**22:  # and it is used
        assert max(held for _, held in seen) > budget / 4


def test_memory_of_the_process():
    """Kernels and the allocator take their part too: within twice the budget, and with it small."""
    script = """
import resource, sys
import torch
from torch import nn
from torch.nn import functional as F
from spectral_backends.torch import CurvatureProblem

torch.manual_seed(0)
block = nn.TransformerEncoderLayer(128, 4, 512, 0.0, "gelu", batch_first=True)
model = nn.Sequential(block, nn.Flatten(), nn.Linear(128 * 64, 10)).eval()
data = [(torch.randn(32, 64, 128), torch.randint(10, (32,)))]
budget = int(sys.argv[1]) * 2**20
problem = CurvatureProblem(model, F.cross_entropy, data, memory_budget=budget)
u, v = (torch.linalg.qr(torch.randn(128, 60))[0] for _ in range(2))


def measure(count):
    given = {"0.self_attn.in_proj.q": (u[:, :count], v[:, :count])}
    list(problem.layer_curvatures(given, engine="tangents"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**20


print(-measure(1) + measure(60))
"""
    grown = {}
    for budget in (1, 256):
        command = [sys.executable, "-c", script, str(budget)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown[budget] = float(done.stdout)
    assert grown[1] < 64 < grown[256] < 2 * 256
