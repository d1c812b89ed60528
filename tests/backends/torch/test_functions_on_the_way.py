"""Functions between two layers, and losses out of the ordinary, against dense derivatives."""

import pytest
import torch
from engine_helpers import (
    check_case,
    expected_of,
    findings,
    function_case,
    given_by,
    module_case,
    whole,
    wrong_values,
)
from factor_helpers import problem_of
from layer_cases import classes, random, third
from torch import nn
from torch.nn import functional as F

from spectral_core.errors import LayerError


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class OnceCube(Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


def between(function):
    return lambda p, x: F.linear(function(F.linear(x, p["a"])), p["b"])


def two_layers(scale=2):
    return {"a": random(6, 5) * scale, "b": random(4, 6) * scale}


ONES = torch.ones(6, 6, 6, dtype=torch.float64)
FUNCTIONS = {
    "custom": Cube.apply,
    "custom beside": lambda h: h + Cube.apply(h) * h,
    "relu in place": lambda h: F.relu_(h) ** 2,
    "relu in place, saved": lambda h: torch.tanh(F.relu(h * 1, inplace=True)) * h,
    "softmax": lambda h: F.softmax(h * 3, 1),
    "log softmax of columns": lambda h: F.log_softmax(h * 3, 0).mul(0.3),
    "softmax of columns": lambda h: F.softmax(h * 3, 0),
    "layer norm": lambda h: F.layer_norm(h, (6,), torch.linspace(-1, 2, 6).double()),
    "group norm": lambda h: F.group_norm(h, 2),
    "rms norm": lambda h: F.rms_norm(h, (6,)),
    "scripted": torch.jit.script(nn.Sequential(nn.SiLU(), nn.Tanh())),
    "sorted": lambda h: h.sort(1).values.cumsum(1) * h,
    "complex pair": lambda h: torch.view_as_complex(h.reshape(-1, 3, 2)).abs().repeat(1, 2),
    "bilinear with itself": lambda h: F.bilinear(h, h, ONES.tril()),
    "bilinear with another": lambda h: F.bilinear(h, torch.tanh(h), ONES),
    "scan": lambda h: torch.stack([row.cumprod(0) for row in h.unbind(0)]),
    "logsumexp": lambda h: h + h.logsumexp(1, keepdim=True),
    "determinant": lambda h: h * torch.linalg.det(h[:, :4].reshape(-1, 2, 2))[:, None],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    torch.manual_seed(0)
    case = function_case(between(FUNCTIONS[name]), two_layers(), random(6, 5), classes(6, 4))
    whole_batch = "columns" in name  # else the function depends on the batches
    check_case(case, size=None if whole_batch else 4, check_deterministic=False)


def test_a_function_with_one_derivative():
    """No Hessian in front of it; behind it, and the Gauss-Newton part by columns, are as ever."""
    torch.manual_seed(0)
    params, x, y = two_layers(1), random(8, 5), classes(8, 4)
    expected = expected_of(function_case(between(Cube.apply), params, x, y))
    problem = problem_of(function_case(between(OnceCube.apply), params, x, y))
    for engine in ("tangents", "auto"):
        found = findings(problem, given_by(expected), engine=engine)
        assert isinstance(found["a"], LayerError)
        assert not (wrong := wrong_values({"b": found["b"]}, {"b": expected["b"]})), wrong
    found = findings(problem, given_by(expected), engine="columns")
    assert isinstance(found["a"], LayerError)
    found = findings(problem, given_by(expected), "ggn", engine="columns")
    assert not (wrong := wrong_values(found, expected, "ggn")), wrong


class RunAgain(torch.autograd.Function):
    """Keeps its input only, and runs `cube` again for its backward pass, without a graph behind."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = x**3
        return torch.autograd.grad(y, x, grad)


class RunAgainIntoGrad(RunAgain):
    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = x**3
        y.backward(grad)
        return x.grad


class RunAgainWithGraph(RunAgain):
    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0]
        with torch.enable_grad():
            y = x.view_as(x) ** 3
        return torch.autograd.grad(y, x, grad, create_graph=torch.is_grad_enabled())


class Inverted(RunAgain):
    """Reversible: keeps its output only."""

    @staticmethod
    def forward(ctx, x):
        y = 2 * x + x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        y = ctx.saved_tensors[0].detach()
        x = y / 2
        for _ in range(50):
            x = (y - x.tanh()) / 2
        x.requires_grad_()
        with torch.enable_grad():
            (2 * x + x.tanh()).backward(grad)
        return x.grad


def mean_of_outputs(outputs, targets):
    return outputs.mean()


@pytest.mark.parametrize("loss", [F.cross_entropy, mean_of_outputs])
@pytest.mark.parametrize("function", [RunAgain, RunAgainIntoGrad, Inverted])
@pytest.mark.parametrize("beside", [0, 1])
def test_a_backward_that_loses_its_graph(function, beside, loss):
    """No number in front of it, also where a sum hides the missing part; behind it, as ever."""
    torch.manual_seed(0)
    params, x, y = two_layers(1), random(8, 5), classes(8, 4)

    def network(f):
        return between(lambda h: f(h) + beside * h)

    exact = (lambda h: 2 * h + h.tanh()) if function is Inverted else Cube.apply
    expected = expected_of(function_case(network(exact), params, x, y, loss=loss))
    problem = problem_of(function_case(network(function.apply), params, x, y, loss=loss))
    for kind in ("hessian", "ggn"):
        for engine in ("tangents", "double-backward"):
            found = findings(problem, given_by(expected), kind, engine=engine)
            assert f"{function.__name__}Backward" in found["a"].reason
            if loss is mean_of_outputs:
                assert not found["b"].values.any()
                continue
            wrong = wrong_values({"b": found["b"]}, {"b": expected["b"]}, kind)
            assert not wrong, wrong
    if loss is F.cross_entropy:
        found = findings(problem, given_by(expected), "ggn", engine="columns")
        assert not (wrong := wrong_values(found, expected, "ggn")), wrong


def test_a_backward_that_keeps_its_graph():
    torch.manual_seed(0)
    params, x, y = two_layers(1), random(8, 5), classes(8, 4)
    expected = expected_of(function_case(between(Cube.apply), params, x, y))
    problem = problem_of(function_case(between(RunAgainWithGraph.apply), params, x, y), 3)
    for kind in ("hessian", "ggn"):
        for engine in ("auto", "tangents", "double-backward"):
            found = findings(problem, given_by(expected), kind, engine=engine)
            assert not (wrong := wrong_values(found, expected, kind)), (engine, wrong)


class InPlace(Cube):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad.mul_(3 * x**2)


def test_a_backward_in_place_under_a_linear_loss():
    torch.manual_seed(0)
    params, x, y = two_layers(1), random(8, 5), classes(8, 4)
    found, expected = (
        problem_of(
            function_case(between(function.apply), params, x, y, loss=mean_of_outputs)
        ).curvatures("a", torch.eye(6).double()[:, :4], torch.eye(5).double()[:, :4])
        for function in (InPlace, Cube)
    )
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


class Beside(torch.autograd.Function):
    """The first input; gives the second a gradient of one, as some routers of experts do."""

    @staticmethod
    def forward(ctx, x, penalty):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, torch.ones((), dtype=grad.dtype)


def test_a_backward_with_a_gradient_of_its_own():
    """Every further backward pass through it would add that gradient once more."""
    torch.manual_seed(0)
    params, x, y = two_layers(1), random(8, 5), classes(8, 4)

    def with_penalty(h):
        return Beside.apply(h, (h**4).mean())

    expected = expected_of(function_case(between(lambda h: h), params, x, y))
    problem = problem_of(function_case(between(with_penalty), params, x, y))
    for kind in ("hessian", "ggn"):
        for engine in ("auto", "tangents", "double-backward"):
            found = findings(problem, given_by(expected), kind, engine=engine)
            assert "BesideBackward" in found["a"].reason
            wrong = wrong_values({"b": found["b"]}, {"b": expected["b"]}, kind)
            assert not wrong, wrong


class Zero(torch.autograd.Function):
    """A step, whose backward says so."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


def test_a_backward_of_zeros():
    torch.manual_seed(0)

    def network(sign):
        return between(lambda h: h**2 * sign(h))

    params, x, y = two_layers(1), random(8, 5), classes(8, 4)
    expected = expected_of(function_case(network(torch.sign), params, x, y))
    problem = problem_of(function_case(network(Zero.apply), params, x, y))
    for kind in ("hessian", "ggn"):
        for engine in ("auto", "tangents", "double-backward"):
            found = findings(problem, given_by(expected), kind, engine=engine)
            assert not (wrong := wrong_values(found, expected, kind)), (engine, wrong)


class Packed(nn.Module):
    """Attention of one matrix, whose product is cut."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12, bias=False), nn.Linear(4, 3)

    def projected(self, x):
        return self.qkv(x).chunk(3, -1)

    def forward(self, x):
        return self.head(F.scaled_dot_product_attention(*self.projected(x)).mean(1))


class Cut(Packed):
    """Of one matrix that is itself cut."""

    def projected(self, x):
        return [F.linear(x, w) for w in self.qkv.weight.chunk(3)]


def test_packed_projections():
    torch.manual_seed(0)
    check_case(module_case(Packed(), random(5, 3, 4), classes(5), whole("qkv", "head")))
    layers = {f"qkv.part{i}": ("qkv.weight", third(i)) for i in range(3)} | whole("head")
    check_case(module_case(Cut(), random(5, 3, 4), classes(5), layers))


@pytest.mark.parametrize("kind", ["tuple", "dict", "twice"])
def test_outputs_that_are_no_tensor(kind):
    torch.manual_seed(0)

    def model(p, x):
        h = torch.tanh(F.linear(x, p["a"]))
        z = F.linear(h, p["b"])
        return {"tuple": (z, h), "dict": {"z": z, "h": h}, "twice": (z, z)}[kind]

    def loss(outputs, targets):
        z, h = outputs.values() if kind == "dict" else outputs
        return F.cross_entropy(z, targets) + (h**2).mean() * (h**2).mean()

    case = function_case(model, two_layers(1), random(8, 5), classes(8, 4), loss=loss)
    expected = expected_of(case, ("hessian",))
    problem = problem_of(case, weight=lambda batch: len(batch[0]))
    for engine in ("auto", "tangents"):
        found = findings(problem, given_by(expected), engine=engine)
        assert not (wrong := wrong_values(found, expected)), (engine, wrong)


def test_a_loss_that_changes_the_outputs():
    torch.manual_seed(0)

    def loss(outputs, targets):
        return F.cross_entropy((outputs * 1).mul_(2), targets)

    check_case(
        function_case(between(torch.tanh), two_layers(1), random(8, 5), classes(8, 4), loss=loss)
    )
