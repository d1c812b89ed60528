"""Which layers of a network are certified by each engine, with dense derivatives beside them."""

import pytest
import torch
from engine_helpers import (
    by_engine,
    expected_of,
    findings,
    function_case,
    given_by,
    some_directions,
    wrong_values,
)
from factor_helpers import problem_of
from layer_cases import classes, random
from torch.nn import functional as F

from spectral_core.errors import LayerError

SHAPES = {"a": (6, 5), "b": (6, 6), "c": (6, 6), "d": (4, 6)}
WEIGHTS = torch.linspace(-1, 2, 6, dtype=torch.float64)


def chain(middle, first=F.relu, last=F.relu):
    """Four linear maps with functions between them."""

    def model(p, x):
        h = first(F.linear(x, p["a"]))
        h = middle(F.linear(h, p["b"]))
        h = last(F.linear(h, p["c"]))
        return F.linear(h, p["d"])

    return model


def case_of(model):
    params = {name: random(*shape) * 2 for name, shape in SHAPES.items()}
    return function_case(model, params, random(9, 5) * 3, classes(9, 4))


def check_certificates(case, nonlinear, flat, size=None):
    """Nothing in `nonlinear` is certified by any engine, `flat` is by columns; numbers are right."""
    expected = expected_of(case)
    problem = problem_of(case, size)
    for engine in ("auto", "tangents", "columns"):
        found = findings(problem, given_by(expected), engine=engine)
        for name in nonlinear:
            if engine == "columns":
                assert isinstance(found[name], LayerError), f"{name} was certified"
            else:
                assert not found[name].certificate.piecewise_linear, (engine, name)
        right = {n: e for n, e in expected.items() if engine != "columns" or n in flat}
        assert not (wrong := wrong_values({n: found[n] for n in right}, right)), "\n".join(wrong)
        for name in flat:
            certificate = found[name].certificate
            assert engine != "columns" or certificate.engine == "columns"
            if certificate.engine == "columns":
                assert certificate.piecewise_linear and not certificate.reason
                assert certificate.second_order <= certificate.tolerance


def changed_in_place(h):
    h = h * 1
    h[:, :2].mul_(h[:, 2:4].clone())
    return h


def inner_gradient(h):
    return torch.func.grad(lambda z: (F.relu(z) ** 3).sum() / 9)(h)


NONLINEAR = {
    "softplus": F.softplus, "hardswish": F.hardswish, "elu": F.elu,
    "power": lambda h: h.abs() ** 1.5, "gate by itself": lambda h: h * F.hardtanh(h),
    "one column": lambda h: torch.cat([F.relu(h[:, :5]), torch.tanh(h[:, 5:])], 1),
    "outer product": lambda h: torch.einsum("bi,bj->bij", h, F.relu(h)).sum(2),
    "bilinear": lambda h: F.bilinear(h, h, torch.ones(6, 6, 6).double()),
    "modulus": lambda h: (h.to(torch.complex128) * (1 + 2j) + 1j).abs(),
    "spectrum": lambda h: torch.fft.fft(h).abs(), "vmap": lambda h: torch.vmap(torch.tanh)(h),
    "product of views": changed_in_place, "inner gradient": inner_gradient,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("name", NONLINEAR)
def test_curvature_between_two_layers(name):
    """Layers in front of it are not certified, those behind are."""
    torch.manual_seed(0)
    check_certificates(case_of(chain(NONLINEAR[name])), ["a", "b"], ["c", "d"], size=5)


@pytest.mark.parametrize("place", range(3))
def test_one_nonlinear_layer_far_up(place):
    torch.manual_seed(0)
    functions = [F.gelu if i == place else F.relu for i in range(3)]
    names = list(SHAPES)
    case = case_of(chain(functions[1], functions[0], functions[2]))
    check_certificates(case, names[: place + 1], names[place + 1 :])


def normed(p, x):
    h = F.relu(F.linear(x, p["a"]))
    h = F.relu(F.linear(h, p["b"]) / p["b"].norm())
    return F.linear(F.relu(F.linear(h, p["c"])), p["d"])


def tied(p, x):
    h = F.relu(F.linear(x, p["a"]))
    for _ in range(2):
        h = F.relu(F.linear(h, p["b"]))
    return F.linear(F.relu(F.linear(h, p["c"])), p["d"])


def gram(p, x):
    """The outputs are linear in each layer, and nonlinear in the one that comes twice."""
    h = F.relu(F.linear(x, p["a"]))
    return F.linear(F.relu(F.linear(h, p["c"])) + 0.02 * F.linear(h, p["b"] @ p["b"].T), p["d"])


@pytest.mark.parametrize("model", [normed, tied, gram])
def test_a_weight_that_its_use_makes_nonlinear(model):
    torch.manual_seed(0)
    check_certificates(case_of(model), ["b"], ["a", "c", "d"])


def test_a_square_that_vanishes_with_its_slope():
    """No first derivative on these data, and a second one."""
    torch.manual_seed(0)

    def first(h):
        h = h + (h - h.detach()) ** 2
        return F.relu(h)

    problem = problem_of(case_of(chain(F.relu, first)))
    given = some_directions(SHAPES)
    found = by_engine(problem, given)
    assert not found["a"].certificate.piecewise_linear
    exact = problem.curvatures("a", *given["a"])
    torch.testing.assert_close(found["a"].values, exact, rtol=1e-9, atol=1e-12)
    refused = findings(problem, given, engine="columns")
    assert isinstance(refused["a"], LayerError) and not isinstance(refused["b"], LayerError)


def affine_norm(h):
    ones = torch.ones(6, dtype=h.dtype)
    return F.batch_norm(h, 0.1 * ones, 2 * ones, WEIGHTS.to(h.dtype), ones)


FLAT = {
    "relu in place": lambda h: F.relu(h, inplace=True), "relu6": F.relu6,
    "prelu": lambda h: F.prelu(h, WEIGHTS), "batch norm": lambda h: F.relu(affine_norm(h)),
    "max pool": lambda h: F.max_pool1d(h[:, None], 2).repeat(1, 1, 2)[:, 0],
    "maxout": lambda h: h.unflatten(1, (3, 2)).amax(2).repeat(1, 2),
    "residual": lambda h: h + F.relu(h), "hardshrink": F.hardshrink,
    "mean removed": lambda h: h - h.mean(1, keepdim=True),
    "top": lambda h: h.topk(3).values.repeat(1, 2),
    "upsampled": lambda h: F.interpolate(h[:, None, :3], scale_factor=2)[:, 0],
}  # fmt: skip


@pytest.mark.parametrize("name", FLAT)
def test_piecewise_linear_networks_are_certified(name):
    torch.manual_seed(0)
    check_certificates(case_of(chain(FLAT[name])), [], list(SHAPES), size=4)


def test_columns_are_taken_where_they_are_cheaper():
    """Few classes, many directions: columns. Few directions: tangents."""
    torch.manual_seed(0)
    problem = problem_of(case_of(chain(F.relu)), 4)
    for given, engine in (
        (some_directions(SHAPES, 20), "columns"),
        (some_directions({"c": SHAPES["c"]}, 1), "tangents"),
    ):
        found = by_engine(problem, given)
        assert {f.certificate.engine for f in found.values()} == {engine}
        assert all(f.certificate.predicted_cost > 0 for f in found.values())


@pytest.mark.parametrize(
    ("middle", "flat"),
    [(F.relu, True), (affine_norm, True), (lambda h: F.relu(h) + 1e-3 * h * h, False)],
)
def test_float32(middle, flat):
    """Rounding is no curvature, and curvature no rounding."""
    torch.manual_seed(0)
    problem = problem_of(case_of(chain(middle)), dtype=torch.float32)
    given = some_directions({"a": SHAPES["a"]})
    found = findings(problem, given, engine="columns")["a"]
    assert isinstance(found, LayerError) != flat
