"""Weights used in unusual ways: the right number, or a derivative that gives the mistake away."""

import pytest
import torch
from engine_helpers import (
    KINDS,
    expected_of,
    findings,
    function_case,
    given_by,
    is_near,
    wrong_values,
)
from factor_helpers import problem_of
from layer_cases import classes, random
from torch.nn import functional as F

import spectral_core as sc
from spectral_core.errors import LayerError

linear = F.linear


class Hidden(torch.autograd.Function):
    """A product that torch does not show; autograd does."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x


def in_place_sum(p, x):
    y = torch.zeros(len(x), 6, dtype=x.dtype)
    y.addmm_(x, p["a"].T)
    return linear(torch.tanh(y), p["b"])


def written_into_parts(p, x):
    y = torch.zeros(len(x), 6, dtype=x.dtype)
    y[:, :3] = linear(x, p["a"][:3]).tanh()
    y[:, 3:] = linear(x, p["a"][3:]).sigmoid()
    return linear(y * y.sum(1, keepdim=True), p["b"])


def on_views(p, x):
    h = linear(x, p["a"])
    h[:, :3].mul_(2)
    h[:, 3:].sub_(h[:, :3].clone())
    return linear(torch.tanh(h), p["b"])


def inner_gradient(p, x):
    h = linear(x, p["a"])
    h = h if h.requires_grad else h.detach().requires_grad_()
    (g,) = torch.autograd.grad((linear(h, p["b"]) ** 3).sum(), h, create_graph=True)
    return linear(h - 0.1 * g, p["b"])


def spectrum(p, x):
    return linear(torch.fft.rfft(linear(x, p["a"])).abs(), p["b"][:, :4])


def phases(p, x):
    z = torch.fft.rfft(linear(x, p["a"]))
    return linear(torch.view_as_real(z.sgn()).flatten(1)[:, :6], p["b"])


def complex_tanh(p, x):
    z = torch.tanh(torch.fft.rfft(linear(x, p["a"])))
    return linear(torch.view_as_real(z).flatten(1)[:, :6], p["b"])


def complex_product(p, x):
    z = torch.fft.rfft(linear(x, p["a"]))
    return linear(torch.fft.irfft(z * torch.conj(z) * z), p["b"])


def sliced_thrice(p, x):
    h = linear(x, p["a"][:3]) + linear(x, 2 * p["a"][:3]) + linear(x, p["a"][3:])
    return linear(F.relu(h), p["b"][:, :3])


def row_by_row(function):
    return lambda p, x: torch.vmap(lambda r: linear(function(linear(r, p["a"])), p["b"]))(x)


TWO = {"a": (6, 5), "b": (4, 6)}
SQUARE = {"s": (5, 5), "b": (4, 5)}
USES = {
    "normalised": (lambda p, x: linear(F.relu(linear(x, p["a"] / p["a"].norm())), p["b"]), TWO),
    "rows normalised": (
        lambda p, x: linear(F.relu(linear(x, F.normalize(p["a"], dim=1))), p["b"]), TWO),
    "used and normed": (lambda p, x: linear(F.relu(linear(x, p["a"]) / p["a"].norm()), p["b"]), TWO),
    "tied twice": (
        lambda p, x: linear(F.relu(linear(F.relu(linear(x, p["s"])), p["s"])), p["b"]), SQUARE),
    "tied and transposed": (
        lambda p, x: linear(torch.tanh(linear(x, p["s"])) @ p["s"], p["b"]), SQUARE),
    "times itself": (lambda p, x: linear(linear(x, p["s"] @ p["s"]), p["b"]), SQUARE),
    "times its transpose": (lambda p, x: linear(linear(x, p["s"] @ p["s"].T), p["b"]), SQUARE),
    "twice in an einsum": (
        lambda p, x: linear(torch.einsum("ij,jk,bk->bi", p["s"], p["s"], x), p["b"]), SQUARE),
    "in place": (in_place_sum, TWO),
    "written into parts": (written_into_parts, TWO),
    "on views": (on_views, TWO),
    "a part only": (
        lambda p, x: linear(torch.tanh(linear(x[:, :3], p["a"][1:5, 1:4])), p["b"][:, :4]), TWO),
    "a slice twice": (
        lambda p, x: linear(F.relu(linear(x, p["a"][:3]) + linear(x * x, p["a"][:3])), p["b"][:, :3]),
        TWO),
    "slices that overlap": (
        lambda p, x: linear(F.relu(linear(x, p["a"][:4]) + linear(x, p["a"][2:])), p["b"][:, :4]), TWO),
    "a slice and twice itself": (sliced_thrice, TWO),
    "masked": (lambda p, x: linear(F.relu(linear(x, p["a"] * (p["a"] > 0))), p["b"]), TWO),
    "permuted": (
        lambda p, x: linear(torch.tanh(linear(x, p["a"][:, [2, 1, 0, 4, 3]])), p["b"]), TWO),
    "exponentiated": (lambda p, x: linear(linear(x, p["a"].exp()), p["b"]), TWO),
    "orthogonal": (
        lambda p, x: linear(F.relu(linear(x, torch.matrix_exp(p["s"] - p["s"].T))), p["b"]), SQUARE),
    "hidden": (
        lambda p, x: linear(torch.tanh(Hidden.apply(x, p["a"]) + linear(x, p["a"])), p["b"]), TWO),
    "hidden, piecewise linear": (
        lambda p, x: linear(F.relu(Hidden.apply(x, p["a"]) + linear(x, p["a"])), p["b"]), TWO),
    "vmap": (row_by_row(torch.tanh), TWO), "vmap, piecewise linear": (row_by_row(torch.relu), TWO),
    "a gradient inside": (inner_gradient, TWO), "spectrum": (spectrum, TWO), "phases": (phases, TWO),
    "complex tanh": (complex_tanh, TWO), "complex product": (complex_product, TWO),
}  # fmt: skip
PARTS = {key: {} for key in USES} | {
    "a part only": {"a": lambda w: w[1:5, 1:4], "b": lambda w: w[:, :4]},
    "a slice twice": {"a": lambda w: w[:3], "b": lambda w: w[:, :3]},
    "slices that overlap": {
        "a.part0": lambda w: w[:4], "a.part1": lambda w: w[2:], "b": lambda w: w[:, :4]},
    "a slice and twice itself": {
        "a.part0": lambda w: w[:3], "a.part1": lambda w: w[3:], "b": lambda w: w[:, :3]},
    "written into parts": {"a.part0": lambda w: w[:3], "a.part1": lambda w: w[3:]},
    "spectrum": {"b": lambda w: w[:, :4]},
}  # fmt: skip


def unusual(name):
    """Return the case with the layers that were found, and its problem."""
    torch.manual_seed(0)
    model, shapes = USES[name]
    params = {key: random(*shape) * 2 for key, shape in shapes.items()}
    case = function_case(model, params, random(8, 5), classes(8, 4))
    problem = problem_of(case)
    rules = case.matrices | {key: (key.split(".")[0], rule) for key, rule in PARTS[name].items()}
    shapes = {layer.name: layer.shape for layer in problem.layers()}
    case.matrices = {
        key: (parameter, rule)
        for key, (parameter, rule) in rules.items()
        if shapes.get(key) == tuple(rule(params[parameter]).shape)
    }
    assert case.matrices.keys() == shapes.keys()
    return case, problem


@pytest.mark.parametrize("name", USES)
def test_reports(name):
    """Whatever engine is taken: the numbers are those of the dense Hessian."""
    case, problem = unusual(name)
    report = sc.measure(problem, top_k=3)
    for layer, e in expected_of(case, top=3).items():
        certificate, k = report[layer].certificate, len(report[layer].sigma)
        found = torch.from_numpy(report[layer].curvature)
        assert is_near(found, e.hessian[:k], e.scale["hessian"], 1e-8), certificate
        assert is_near(e.ggn, e.hessian, e.scale["hessian"]) or not certificate.piecewise_linear


@pytest.mark.parametrize("name", [name for name in USES if name != "twice in an einsum"])
def test_tangents(name):
    """Without the derivative as a second look, which the einsum needs."""
    case, problem = unusual(name)
    expected = expected_of(case)
    for kind in KINDS:
        found = findings(problem, given_by(expected), kind, engine="tangents")
        assert not (wrong := wrong_values(found, expected, kind)), "\n".join(wrong)


def is_right_or_given_away(found, e, kind):
    """Say whether a value is right, or the derivative shows that it is not, as `measure` looks."""
    if is_near(found.values, getattr(e, kind), e.scale[kind]):
        return True
    seen = found.derivative
    return seen is not None and bool((seen - e.slope).abs().max() > 1e-6 * e.slope.abs().max())


@pytest.mark.parametrize("name", USES)
def test_overlooked_uses_show_in_the_derivative(name):
    case, problem = unusual(name)
    expected = expected_of(case)
    for kind in KINDS:
        for engine in ("columns", "tangents"):
            found = findings(problem, given_by(expected), kind, engine=engine)
            for layer, e in expected.items():
                refused = isinstance(found[layer], LayerError) and engine == "columns"
                assert refused or is_right_or_given_away(found[layer], e, kind), (layer, engine)


def test_an_input_changed_after_its_use_is_no_number():
    """Double backward refuses it; another engine may not return a wrong one that looks right."""
    torch.manual_seed(0)
    params = {"a": random(6, 5), "b": random(4, 6)}

    def model(p, x, spoil=True):
        z = x * 1.0
        h = linear(z, p["a"])
        if spoil:
            z.mul_(0)
        return linear(torch.tanh(h), p["b"])

    x, y = random(8, 5), classes(8, 4)
    expected = expected_of(function_case(lambda p, x: model(p, x, False), params, x, y))
    problem = problem_of(function_case(model, params, x, y))
    for engine in ("tangents", "auto", "columns"):
        for kind in KINDS:
            found = findings(problem, given_by(expected), kind, engine=engine)["a"]
            right = isinstance(found, LayerError) or is_right_or_given_away(
                found, expected["a"], kind
            )
            assert right, (engine, kind)
