"""Short forms of tangents against the general rule, and both against differences of values."""

from functools import partial

import pytest
import torch
from layer_cases import random
from torch.nn import functional as F

from spectral_backends.torch.capture.tape import Segment, Tape
from spectral_backends.torch.engines.forward_mode.general_rule import Nonlinearity, PullBack
from spectral_backends.torch.engines.forward_mode.rules import tangent_rule
from spectral_backends.torch.engines.forward_mode.short_rules import (
    _ELEMENTWISE,
    _Elementwise,
    _LayerNorm,
    _MatrixProduct,
    _Multiplication,
    _Softmax,
)
from spectral_backends.torch.instruments.linearity import Alias

EPS = torch.finfo(torch.float64).eps
STEP = 1e-3


def piece(function, *values, turned=False, product=False):
    """One operation as the tape cuts it: its inputs are leaves without memory of their own."""
    leaves = [v.new_empty(()).expand(v.shape).requires_grad_() for v in values]
    aliases = [Alias.apply(leaf, (v.clone(),)) for leaf, v in zip(leaves, values, strict=True)]
    output = function(*aliases)
    segment = Segment([output], [output.detach()], leaves[::-1] if turned else leaves)
    segment.factors = tuple(aliases) if product else None
    return segment


def rules_of(function, *values, **options):
    """Return the rule with short forms, the general one, and the adjoint that both were given."""
    made = [piece(function, *values, **options) for _ in range(2)]
    adjoint = random(*made[0].outputs[0].shape)
    (short, pulled), (general, expected) = (
        tangent_rule(segment, segment.inputs, [adjoint], shortcuts=shortcuts)
        for segment, shortcuts in zip(made, (True, False), strict=True)
    )
    for one, two in zip(pulled, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)
    return short, general, adjoint


def second_order(function, values, tangents, adjoint):
    """First and second differences along a tangent, of order h⁴, each with a bound of its error.

    The error of a step twice as long is 16 times as large; so the two differ by more than the error
    of the shorter one. Rounding adds a few units of the last place over the powers of the step.
    """

    def at(t):
        return function(*(v + t * d for v, d in zip(values, tangents, strict=True)))

    def both(h):
        f = [at(k * h) for k in (-2, -1, 0, 1, 2)]
        slope = (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / (12 * h)
        curvature = (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / (12 * h * h)
        return slope, (adjoint * curvature).sum()

    (slope, curvature), (coarse, coarser) = both(STEP), both(2 * STEP)
    size = at(0).abs().max() + 1
    rounding = 16 * EPS * size * adjoint.abs().sum() / STEP**2
    return (
        slope, (slope - coarse).abs().max() + 16 * EPS * size / STEP,
        curvature, (curvature - coarser).abs() + rounding,
    )  # fmt: skip


def check_rules(function, *values, differences=True):
    """Return the short rule, once it gives what the general one and differences give."""
    short, general, adjoint = rules_of(function, *values)
    for count in (1, 3):
        tangents = [random(count, *v.shape) for v in values]
        (moved,), second = short(tangents)
        (expected,), curvature = general(tangents)
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-11)
        assert second.shape == (count,)
        largest = float(curvature.abs().max())
        assert largest > 0
        torch.testing.assert_close(second, curvature, rtol=1e-9, atol=1e-9 * largest)
        for index in range(count * differences):
            slope, slope_error, expected, error = second_order(
                function, values, [t[index] for t in tangents], adjoint
            )
            assert slope_error < 1e-4 * slope.abs().max() and error < 1e-3 * largest
            assert (moved[index] - slope).abs().max() <= slope_error
            assert (second[index] - expected).abs() <= error
    return short


FUNCTIONS = {
    # torch differentiates celu with 1/alpha rounded to float32: a power of two keeps it exact
    "Celu": partial(F.celu, alpha=0.5), "Cos": torch.cos, "Elu": partial(F.elu, alpha=0.7),
    "Erf": torch.erf, "Exp": torch.exp, "Expm1": torch.expm1, "Gelu": F.gelu,
    "Gelu of tanh": partial(F.gelu, approximate="tanh"), "Hardswish": F.hardswish, "Log": torch.log,
    "Log1P": torch.log1p, "LogSigmoid": F.logsigmoid, "Mish": F.mish, "Pow": lambda x: x**3,
    "Pow of a fraction": lambda x: x**2.5, "Reciprocal": torch.reciprocal, "Rsqrt": torch.rsqrt,
    "Selu": F.selu, "Sigmoid": torch.sigmoid, "Silu": F.silu, "Sin": torch.sin,
    "Softplus": partial(F.softplus, beta=2.0, threshold=1.0), "Sqrt": torch.sqrt, "Tanh": torch.tanh,
}  # fmt: skip
POSITIVE = ("Log", "Log1P", "Pow of a fraction", "Reciprocal", "Rsqrt", "Sqrt")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementwise(name):
    torch.manual_seed(0)
    x = 2 * random(3, 4)
    x = x.abs() + 0.3 if name in POSITIVE else x
    assert isinstance(check_rules(FUNCTIONS[name], x), _Elementwise)


def test_every_elementwise_function_is_tested():
    x = torch.full((2,), 0.7, dtype=torch.float64, requires_grad=True)
    assert {function(x).grad_fn.name() for function in FUNCTIONS.values()} == _ELEMENTWISE


@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_softmax(axis, function, spread):
    torch.manual_seed(0)
    x = spread * random(3, 4, 2)
    saturated = spread > 1  # its second differences are lost in rounding
    rule = check_rules(lambda x: function(x, axis), x, differences=not saturated)
    assert isinstance(rule, _Softmax)


@pytest.mark.parametrize("eps", [1e-5, 3.0])
@pytest.mark.parametrize("scaled", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_layer_norm(shape, scaled, eps):
    torch.manual_seed(0)
    weight, bias = (random(6) if given else None for given in scaled)
    x = 2 * random(*shape) + 1
    short = check_rules(lambda x: F.layer_norm(x, (6,), weight, bias, eps), x)
    assert isinstance(short, _LayerNorm)


GENERAL = {
    "changed in place": lambda x: torch.sin(x).mul_(2),
    "of a transpose": lambda x: torch.tanh(x.t()),
    "of a part": lambda x: torch.exp(x[:, :2]),
    "a part of it": lambda x: torch.tanh(x)[:2],
    "two axes normalised": lambda x: F.layer_norm(x, (3, 4)),
    "softmax of a multiple": lambda x: torch.softmax(2 * x, 1),
    "softmax of another shape": lambda x: F.softmax(x.reshape(4, 3), 1),
    "power of itself": lambda x: torch.pow(x.abs() + 1, x),
    "a sum": lambda x: torch.sin(x) + x,
}


@pytest.mark.parametrize("name", GENERAL)
def test_what_looks_like_a_short_form(name):
    """More than one operation on the way, or two axes: the general rule, not a wrong short one."""
    torch.manual_seed(0)
    assert isinstance(check_rules(GENERAL[name], 2 * random(3, 4)), PullBack)


def check_product(function, a, b, kind, **options):
    """Compare the rules of a product, moving either factor and both."""
    short, general, _ = rules_of(function, a, b, **options)
    assert isinstance(short, kind)
    for count in (1, 3):
        one, two = (random(count, *t.shape) for t in (a, b))
        for tangents in ([one, two], [one, None], [None, two]):
            given = tangents[::-1] if options.get("turned") else tangents
            (moved, second), (expected, curvature) = short(given), general(given)
            torch.testing.assert_close(moved[0], expected[0], rtol=1e-11, atol=1e-12)
            if any(t is None for t in tangents):
                assert second is None and (curvature is None or not curvature.any())
            else:
                torch.testing.assert_close(second, curvature, rtol=1e-10, atol=1e-11)
    return short


def test_any_product():
    """Two leaves: half the derivatives give the whole."""
    torch.manual_seed(0)
    a, b = random(3, 4), random(4, 2)
    assert check_product(torch.matmul, a, b, PullBack).nonlinearity is Nonlinearity.PRODUCT
    check_rules(torch.matmul, a, b)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "shapes", [((3, 4), (3, 4)), ((3, 4), (3, 1)), ((4,), (2, 3, 4)), ((3, 1), (1, 4)), ((), (3,))]
)
def test_multiplication(shapes, turned):
    torch.manual_seed(0)
    a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    check_product(torch.mul, a, b, _Multiplication, turned=turned)
    check_rules(torch.mul, a, b)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [((2, 3, 4), (2, 4, 5)), ((2, 5, 4), (2, 4, 3)), ((2, 3, 5, 1), (2, 3, 1, 4)),
     ((1, 3, 4), (1, 4, 3))],
)  # fmt: skip
def test_matrix_products(shapes, turned):
    torch.manual_seed(0)
    a, b = (random(*shape) for shape in shapes)
    for one, two in ((a, b), (a.mT.contiguous().mT, b)):
        check_product(torch.matmul, one, two, _MatrixProduct, turned=turned, product=True)
    short, _, adjoint = rules_of(torch.matmul, a, b, product=True)
    moving = [random(2, *t.shape) for t in (a, b)]
    _, second = short(moving)
    expected = 2 * (adjoint * (moving[0] @ moving[1])).flatten(1).sum(1)
    torch.testing.assert_close(second, expected, rtol=1e-11, atol=1e-12)


def test_which_products_the_tape_knows():
    """Those of as many matrices on either side, views of what is computed among them."""
    torch.manual_seed(0)
    weight = random(6, 6).requires_grad_()
    tape = Tape([], {"w": weight})
    x = random(2, 5, 6)
    with tape:
        q = (x @ weight).view(2, 5, 3, 2).transpose(1, 2)
        scores = q @ q.mT  # twice the same: two pieces lead to it
        torch.matmul(scores, q)
        torch.bmm(x @ weight, (x @ weight).mT)
        q @ random(2, 3, 2, 4)
        q @ (random(3, 2, 4) * weight.sum())  # copied for each sample
    found = [s.outputs[0].shape for s in tape.segments if s.factors is not None]
    assert found == [(2, 3, 5, 5), (2, 3, 5, 2), (2, 5, 5)]
