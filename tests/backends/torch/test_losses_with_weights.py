"""Losses that use a weight past the outputs: weight decay, an anchor of old weights, norms."""

import pytest
import torch
from engine_helpers import KINDS, check, expected_of, findings, given_by, module_case, wrong_values
from factor_helpers import problem_of, split
from layer_cases import classes, identity, random
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_core.errors import LayerError


class Net(nn.Module):
    def __init__(self, activation=F.relu):
        super().__init__()
        self.inner, self.head, self.activation = nn.Linear(5, 6), nn.Linear(6, 3), activation

    def forward(self, x):
        return self.head(self.activation(self.inner(x)))


ANCHOR = torch.linspace(-0.5, 0.4, 30, dtype=torch.float64).reshape(6, 5)
FISHER = torch.linspace(0.1, 3, 30, dtype=torch.float64).reshape(6, 5)
PENALTIES = {
    "weight decay": lambda w: 0.1 * (w**2).sum(),
    "elastic weight consolidation": lambda w: 0.5 * (FISHER * (w - ANCHOR) ** 2).sum(),
    "norm": lambda w: 0.3 * w.norm(),
    "nuclear norm": lambda w: 0.1 * torch.linalg.svdvals(w).sum(),
    "without curvature": lambda w: 0.1 * (ANCHOR * w).sum(),
}


class Total(nn.Module):
    """Outputs and penalty as one tensor: a function of the weights for the dense derivatives."""

    def __init__(self, net, penalty):
        super().__init__()
        self.net, self.penalty = net, penalty

    def forward(self, x):
        penalty = self.penalty(self.net.inner.weight)
        return torch.cat([self.net(x).flatten(), penalty.reshape(1)])


def total_loss(z, targets):
    return F.cross_entropy(z[:-1].reshape(len(targets), -1), targets) + z[-1]


class TotalWithSlope(nn.Module):
    """The same, with the squared slope of the outputs in the inputs as the penalty."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x = x.detach().requires_grad_()
        outputs = self.net(x)
        return torch.cat([outputs.flatten(), squared_slope(outputs, x).reshape(1)])


def squared_slope(outputs, x):
    (slope,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
    return (slope**2).sum(1).mean()


def expected_with(total, x, y):
    layers = {name: (f"net.{name}.weight", identity) for name in ("inner", "head")}
    case = module_case(total, x, y, layers, loss=total_loss)
    return expected_of(case, ("hessian",))


def in_the_loss_function(net, penalty):
    """The loss function knows the model."""
    return {"loss_fn": lambda o, t: F.cross_entropy(o, t) + penalty(net.inner.weight)}


def through_the_forward(net, penalty):
    """It comes with the targets."""

    def forward(model, batch):
        return model(batch[0]), (batch[1], penalty(model.inner.weight))

    return {"loss_fn": lambda o, t: F.cross_entropy(o, t[0]) + t[1], "forward": forward}


def per_batch(batch):
    return len(batch[-1])


@pytest.mark.parametrize("way", [in_the_loss_function, through_the_forward])
@pytest.mark.parametrize("name", PENALTIES)
def test_each_engine(name, way):
    torch.manual_seed(0)
    net, x, y = Net().double(), random(9, 5), classes(9)
    expected = expected_with(Total(net, PENALTIES[name]), x, y)
    problem = CurvatureProblem(net, batches=[(x, y)], weight=per_batch, **way(net, PENALTIES[name]))
    for engine in ("auto", "tangents"):
        found = findings(problem, given_by(expected), engine=engine)
        assert not (wrong := wrong_values(found, expected)), wrong
        assert found["inner"].certificate.engine == "tangents"
        assert not found["inner"].certificate.piecewise_linear
        assert (found["head"].certificate.engine == "columns") == (engine == "auto")
    found = findings(problem, given_by(expected), engine="columns")
    assert isinstance(found["inner"], LayerError)
    assert "uses its weight directly" in found["inner"].reason
    assert not (wrong := wrong_values({"head": found["head"]}, {"head": expected["head"]})), wrong


@pytest.mark.parametrize("way", [in_the_loss_function, through_the_forward])
@pytest.mark.parametrize("name", PENALTIES)
def test_reports(name, way):
    torch.manual_seed(0)
    net, x, y = Net().double(), random(9, 5), classes(9)
    expected = expected_with(Total(net, PENALTIES[name]), x, y)
    problem = CurvatureProblem(
        net, batches=split(x, y, 3), weight=per_batch, **way(net, PENALTIES[name])
    )
    report = sc.measure(problem, top_k=3)
    for layer, e in expected.items():
        found, k = report[layer], len(report[layer].sigma)
        assert found.certificate.engine != "double-backward"
        assert found.certificate.derivative_error < 1e-8
        curvature = torch.from_numpy(found.curvature)
        largest = float(e.hessian.abs().max())
        torch.testing.assert_close(curvature, e.hessian[:k], rtol=1e-9, atol=1e-9 * largest)


def test_the_gauss_newton_part_is_that_of_the_outputs():
    """A penalty adds to the Hessian, and nothing to ``Jᵀ H J``."""
    torch.manual_seed(0)
    net, x, y = Net().double(), random(9, 5), classes(9)
    plain = module_case(net, x, y, {n: (f"{n}.weight", identity) for n in ("inner", "head")})
    expected = expected_of(plain)
    penalty = PENALTIES["weight decay"]
    problem = CurvatureProblem(
        net, batches=[(x, y)], weight=per_batch, **through_the_forward(net, penalty)
    )
    found = findings(problem, given_by(expected), "ggn")
    for layer, e in expected.items():
        torch.testing.assert_close(found[layer].values, e.ggn, rtol=1e-9, atol=1e-12)
    without = findings(problem_of(plain), given_by(expected))
    full = findings(problem, given_by(expected))
    added = full["inner"].values - without["inner"].values
    torch.testing.assert_close(added, torch.full_like(added, 0.2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch", [0, 2])
def test_in_one_batch_only(batch):
    torch.manual_seed(0)
    net, x, y = Net().double(), random(18, 5), classes(18)
    x[6 * batch + 3, 0] = 6

    def forward(model, batch):
        rare = 0.1 * (model.inner.weight**2).sum() if (batch[0][:, 0] > 5).any() else 0.0
        return model(batch[0]), (batch[1], rare)

    problem = CurvatureProblem(
        net, lambda o, t: F.cross_entropy(o, t[0]) + t[1], split(x, y, 6), forward=forward,
        weight=per_batch,
    )  # fmt: skip
    for kind in KINDS:
        found = check(problem, "auto", kind=kind)
        assert found["inner"].certificate.engine != "columns"
        assert found["head"].certificate.engine == "columns"


@pytest.mark.parametrize("activation", [F.relu, torch.tanh])
def test_a_penalty_on_the_slope_of_the_outputs(activation):
    """The loss differentiates the outputs: it cannot be told from them, nor be cut into pieces."""
    torch.manual_seed(0)
    net, x, y = Net(activation).double(), random(9, 5), classes(9)
    expected = expected_with(TotalWithSlope(net), x, y)

    def forward(model, batch):
        inputs = batch[0].detach().requires_grad_()
        return model(inputs), (batch[1], inputs)

    problem = CurvatureProblem(
        net, lambda o, t: F.cross_entropy(o, t[0]) + squared_slope(o, t[1]), [(x, y)],
        forward=forward, weight=per_batch,
    )  # fmt: skip
    found = findings(problem, given_by(expected))
    assert not (wrong := wrong_values(found, expected)), wrong
    assert not any(f.certificate.piecewise_linear for f in found.values())
