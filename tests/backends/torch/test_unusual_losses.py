"""What a loss function may do, and what the engines make of it."""

import pytest
import torch
from factor_helpers import along, mlp
from layer_cases import random
from test_layer_curvatures import by_engine, check
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_core.errors import InputError, LayerError

REGULARISERS = {
    "z-loss": lambda z: 1e-4 * z.logsumexp(-1).square().mean(),
    "squared logits": lambda z: 1e-5 * z.square().sum(-1).mean(),
}


@pytest.mark.parametrize("name", REGULARISERS)
def test_a_small_regulariser_of_a_cross_entropy(name):
    """It is all the curvature that there is where all logits move together."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    data = [(random(20, 6), torch.randint(5, (20,)))]

    def loss(z, y):
        return F.cross_entropy(z, y) + REGULARISERS[name](z)

    exact = CurvatureProblem(model, loss, data)
    coarse = CurvatureProblem(model, loss, data, dtype=torch.float32)
    u, v = along(exact, "2", 2)
    u[:, 0] = 5**-0.5  # all logits together
    expected = exact.curvatures("2", u, v)
    for problem, tolerance in ((exact, 1e-9), (coarse, 2e-3)):
        found = by_engine(problem, {"2": (u, v)}, engine="columns")["2"].values.double()
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("where", ["in the loss", "in the forward"])
def test_a_penalty_on_a_weight(where):
    """It is part of h, and none of h^GGN: that goes through the outputs."""
    torch.manual_seed(0)
    model = mlp(6, 8, 4).double()
    data = [(random(20, 6), torch.randint(4, (20,)))]
    anchor = model[0].weight.detach().clone()

    def penalty():
        return 3 * (model[0].weight - anchor).square().sum()

    options = {"loss_fn": lambda z, y: F.cross_entropy(z, y) + penalty()}
    if where == "in the forward":
        options = {
            "loss_fn": lambda z, t: F.cross_entropy(z, t[0]) + t[1],
            "forward": lambda m, batch: (m(batch[0]), (batch[1], penalty())),
        }
    problem = CurvatureProblem(model, batches=data, **options)
    plain = CurvatureProblem(model, F.cross_entropy, data)
    given = {name: along(plain, name, 3) for name in ("0", "2")}
    for engine in ("auto", "tangents"):
        check(problem, engine)
        found = by_engine(problem, given, "ggn", engine=engine)
        for name, (u, v) in given.items():
            expected = plain.curvatures(name, u, v, "ggn")
            torch.testing.assert_close(found[name].values, expected, rtol=1e-9, atol=0)
    report = sc.measure(problem, top_k=3, engine="tangents", decompose=True)
    separate = sc.measure(problem, top_k=3, curvature="ggn")
    torch.testing.assert_close(
        torch.as_tensor(report["0"].ggn), torch.as_tensor(separate["0"].curvature), rtol=1e-9, atol=0
    )  # fmt: skip


def test_a_weight_used_both_ways_around():
    torch.manual_seed(0)
    params = {"w": random(5, 5)}

    def model(p, x):
        return F.linear(x, p["w"]) + x.relu() @ p["w"]

    data = [(random(9, 5), torch.randint(5, (9,)))]
    problem = CurvatureProblem(model, F.cross_entropy, data, params=params)
    check(problem, "auto")
    (refused,) = problem.layer_curvatures({"w": along(problem, "w", 2)}, engine="columns")
    assert isinstance(refused, LayerError) and "in other ways" in refused.reason


@pytest.mark.parametrize("kind", ["boolean", "added"])
def test_attention_of_queries_without_keys(kind):
    """Torch gives them zeros; so does every engine, without another try."""
    torch.manual_seed(0)
    mask = torch.ones(4, 4, dtype=torch.bool).tril(-1)  # the first query sees nothing
    given = mask if kind == "boolean" else random(4, 4).masked_fill(~mask, float("-inf"))
    params = {name: random(6, 6) for name in ("q", "k", "v", "out")}

    def model(p, x):
        q, k, v = (F.linear(x, p[name]).unsqueeze(1) for name in "qkv")
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=given)
        return F.linear(x + seen.squeeze(1), p["out"]).mean(1)

    data = [(random(5, 4, 6), torch.randint(6, (5,)))]
    problem = CurvatureProblem(model, F.cross_entropy, data, params=params)
    found = check(problem, "auto")
    assert {f.certificate.engine for f in found.values()} == {"tangents", "columns"}
    report = sc.measure(problem, top_k=4, decompose=True)
    assert len(report.decomposed()) == len(report) == 4


def test_a_first_batch_without_terms():
    """What is certified is looked at where there is something to see."""
    torch.manual_seed(0)
    model = mlp(6, 8, 4, activation=nn.ReLU).double()
    data = [(random(5, 6), torch.full((5,), -100)), (random(9, 6), torch.randint(4, (9,)))]
    found = check(CurvatureProblem(model, F.cross_entropy, data), "columns")
    assert all(f.certificate.piecewise_linear for f in found.values())


def test_outputs_without_an_axis():
    torch.manual_seed(0)
    model = mlp(6, 8, 4).double()
    problem = CurvatureProblem(
        model, lambda z, y: (z - 1).square(), [(random(5, 6),)],
        forward=lambda m, b: (m(b[0]).mean(), None),
    )  # fmt: skip
    check(problem, "auto")
    with pytest.raises(InputError, match="axis of samples"):
        by_engine(problem, {"0": along(problem, "0", 2)}, engine="columns")


def test_a_loss_that_differentiates_the_model():
    torch.manual_seed(0)
    model = mlp(5, 6, 3).double()

    def forward(m, batch):
        x = batch[0].detach().requires_grad_()
        return m(x), (batch[1], x)

    def loss(z, given):
        (slope,) = torch.autograd.grad(z.sum(), given[1], create_graph=True)
        return F.cross_entropy(z, given[0]) + slope.square().sum(1).mean()

    data = [(random(9, 5), torch.randint(3, (9,)))]
    problem = CurvatureProblem(model, loss, data, forward=forward, weight=lambda b: len(b[0]))
    check(problem, "auto")
    with pytest.raises(InputError, match="function of the outputs alone"):
        by_engine(problem, {"0": along(problem, "0", 2)}, engine="columns")
