"""The certificate: never of a network that is curved, whatever hides the curvature."""

import math

import numpy as np
import pytest
import torch
from engine_helpers import (
    KINDS,
    by_engine,
    expected_of,
    function_case,
    given_by,
    problem_from,
    wrong_values,
)  # fmt: skip
from layer_cases import classes, random
from torch.nn import functional as F

import spectral_core as sc
from spectral_core.certificate import Certificate
from spectral_core.errors import LayerError

SHAPES = {"a": (6, 5), "b": (6, 6), "c": (6, 6), "d": (4, 6)}
WEIGHTS = torch.linspace(-1, 2, 6, dtype=torch.float64)


class Relu(torch.autograd.Function):
    """Named like what it is not."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * (s + x * s * (1 - s))


def in_place_on_a_view(h):
    h = h * 1
    h[:, :2].mul_(h[:, 2:4].clone())
    return h


def in_place_power(h):
    h = h.clone()
    h[:, 1].sigmoid_()
    return h


def in_parts(h):
    return torch.cat([F.relu(h[:, :5]), torch.tanh(h[:, 5:])], 1)


@torch.jit.script
def scripted(h: torch.Tensor) -> torch.Tensor:
    return torch.where(h > 0, h, torch.expm1(h) * 0.5)


def beyond(limit):
    """Curved for what lies beyond a limit only, and hardly there."""
    return lambda h: h + 1e-3 * F.relu(h - limit) ** 2


CURVED = {
    "gelu": F.gelu, "softplus": F.softplus, "tiny": lambda h: F.relu(h) + 1e-6 * torch.tanh(h),
    "softmax gate": lambda h: F.relu(h) * torch.softmax(h[:, :2], 1)[:, :1],
    "product of branches": lambda h: F.relu(h) * F.leaky_relu(h.flip(1)),
    "square": lambda h: h * h, "norm": lambda h: F.relu(h) / h.norm(dim=1, keepdim=True),
    "hidden in a function": Relu.apply, "scripted": scripted, "in place": in_place_on_a_view,
    "one column in place": in_place_power, "one column": in_parts,
    "behind where": lambda h: torch.where(h > 0.1, torch.sin(h), h),
    "layer norm": lambda h: F.layer_norm(h, (6,)),
    "hardswish": F.hardswish, "elu": F.elu, "gate by itself": lambda h: h * F.hardtanh(h),
    "outer product": lambda h: torch.einsum("bi,bj->bij", h, F.relu(h)).sum(2),
    "bilinear with itself": lambda h: F.bilinear(h, h, torch.ones(6, 6, 6).double()),
    "modulus": lambda h: (h.to(torch.complex128) * (1 + 2j) + 1j).abs(),
    "spectrum": lambda h: torch.fft.fft(h).abs(),
    "power": lambda h: h.abs() ** 1.5, "vmap": lambda h: torch.vmap(torch.tanh)(h),
    "inner gradient": lambda h: torch.func.grad(lambda z: (F.relu(z) ** 3).sum() / 9)(h),
}  # fmt: skip


def chain(middle, first=F.relu, last=F.relu):
    def model(p, x):
        h = first(F.linear(x, p["a"]))
        h = middle(F.linear(h, p["b"]))
        h = last(F.linear(h, p["c"]))
        return F.linear(h, p["d"])

    return model


def case_of(model, x=None, shapes=SHAPES):
    params = {name: random(*shape) * 2 for name, shape in shapes.items()}
    x = random(9, 5) * 3 if x is None else x
    return function_case(model, params, x, classes(len(x), 4))


def check_certificates(case, curved, flat, size=None, **options):
    """Nothing in `curved` is certified by any engine, and `flat` is by columns; numbers are right."""
    expected = expected_of(case)
    problem = problem_from(case, size, **options)
    for engine in ("auto", "tangents", "columns"):
        found = by_engine(problem, given_by(expected), engine=engine)
        for name in curved:
            if engine == "columns":
                assert isinstance(found[name], LayerError), f"{name} was certified"
                continue
            assert not found[name].certificate.piecewise_linear, (engine, name)
        right = {n: e for n, e in expected.items() if engine != "columns" or n in flat}
        assert not (wrong := wrong_values({n: found[n] for n in right}, right)), "\n".join(wrong)
        for name in flat:
            certificate = found[name].certificate
            if certificate.engine == "columns":
                assert certificate.piecewise_linear and not certificate.reason
                assert certificate.second_order <= certificate.tolerance
            assert engine != "columns" or certificate.engine == "columns"
    return problem, expected


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("name", CURVED)
def test_curvature_between_two_layers(name):
    """Layers in front of it are not certified, those behind are."""
    torch.manual_seed(0)
    case = case_of(chain(CURVED[name]))
    check_certificates(case, ["a", "b"], ["c", "d"], size=5)


@pytest.mark.parametrize("place", range(3))
def test_one_curved_layer_far_up(place):
    torch.manual_seed(0)
    functions = [F.gelu if i == place else F.relu for i in range(3)]
    case = case_of(chain(functions[1], functions[0], functions[2]))
    names = list(SHAPES)
    check_certificates(case, names[: place + 1], names[place + 1 :])


@pytest.mark.parametrize("sample", [0, 3, 4, 7, 8])
@pytest.mark.parametrize("size", [None, 5, 2])
def test_curvature_on_one_sample_only(sample, size):
    """In a late batch, or late in the first: the probe does not meet it, and the graph shows it."""
    torch.manual_seed(0)
    x = random(9, 5)
    x[sample] *= 30
    case = case_of(chain(beyond(20.0)), x)
    with torch.no_grad():
        h = F.linear(F.relu(F.linear(x, case.params["a"])), case.params["b"])
    assert ((h > 20).any(1) == (torch.arange(9) == sample)).all()
    check_certificates(case, ["a", "b"], ["c", "d"], size=size)


@pytest.mark.parametrize("late", [1, 5, 8])
def test_a_branch_that_one_batch_takes(late):
    torch.manual_seed(0)

    def model(p, x):
        bend = torch.tanh if x[:, 0].max() > 5 else F.relu
        return chain(bend)(p, x)

    x = random(9, 5)
    x[late, 0] = 6
    case = case_of(model, x)
    problem = problem_from(case, 3)
    given = {name: tuple(F.normalize(random(s, 3), dim=0) for s in shape)
             for name, shape in SHAPES.items()}  # fmt: skip
    for kind in KINDS:
        found = by_engine(problem, given, kind)
        for name in SHAPES:
            exact = problem.curvatures(name, *given[name], kind)
            torch.testing.assert_close(found[name].values, exact, rtol=1e-9, atol=1e-12)
    refused = by_engine(problem, given, engine="columns")
    assert all(isinstance(refused[name], LayerError) for name in "ab")
    assert all(refused[name].certificate.piecewise_linear for name in "cd")


def normed(p, x):
    h = F.relu(F.linear(x, p["a"]))
    h = F.relu(F.linear(h, p["b"]) / p["b"].norm())
    return F.linear(F.relu(F.linear(h, p["c"])), p["d"])


def tied(p, x):
    h = F.relu(F.linear(x, p["a"]))
    for _ in range(2):
        h = F.relu(F.linear(h, p["b"]))
    return F.linear(F.relu(F.linear(h, p["c"])), p["d"])


def bilinear_in_weights(p, x):
    """The outputs are linear in each layer, and curved in the one that comes twice."""
    h = F.relu(F.linear(x, p["a"]))
    return F.linear(F.relu(F.linear(h, p["c"])) + 0.02 * F.linear(h, p["b"] @ p["b"].T), p["d"])


@pytest.mark.parametrize("model", [normed, tied, bilinear_in_weights])
def test_a_weight_that_bends_by_its_use(model):
    torch.manual_seed(0)
    check_certificates(case_of(model), ["b"], ["a", "c", "d"])


def test_a_square_that_vanishes_with_its_slope():
    """No first derivative on these data, and a second one."""
    torch.manual_seed(0)

    def model(p, x):
        h = F.linear(x, p["a"])
        h = h + (h - h.detach()) ** 2
        return F.linear(F.relu(F.linear(F.relu(F.linear(F.relu(h), p["b"])), p["c"])), p["d"])

    case = case_of(model)
    problem = problem_from(case)
    given = {name: tuple(F.normalize(random(s, 3), dim=0) for s in shape)
             for name, shape in SHAPES.items()}  # fmt: skip
    found = by_engine(problem, given)
    assert not found["a"].certificate.piecewise_linear
    exact = problem.curvatures("a", *given["a"])
    torch.testing.assert_close(found["a"].values, exact, rtol=1e-9, atol=1e-12)


def affine_norm(h):
    ones = torch.ones(6, dtype=h.dtype)
    return F.batch_norm(h, 0.1 * ones, 2 * ones, WEIGHTS.to(h.dtype), ones)


FLAT = {
    "relu": F.relu, "relu in place": lambda h: F.relu(h, inplace=True),
    "leaky relu": lambda h: F.leaky_relu(h, 0.2), "hardtanh": F.hardtanh, "relu6": F.relu6,
    "prelu": lambda h: F.prelu(h, WEIGHTS), "batch norm": lambda h: F.relu(affine_norm(h)),
    "max pool": lambda h: F.max_pool1d(h[:, None], 2).repeat(1, 1, 2)[:, 0],
    "maxout": lambda h: h.unflatten(1, (3, 2)).amax(2).repeat(1, 2),
    "absolute value": torch.abs, "residual": lambda h: h + F.relu(h), "clamp": lambda h: h.clamp(-1, 1),
    "sorted": lambda h: h.sort(1).values, "mean removed": lambda h: h - h.mean(1, keepdim=True),
    "where": lambda h: torch.where(h > 0, 2 * h, 0.1 * h), "hardshrink": F.hardshrink,
    "top": lambda h: h.topk(3).values.repeat(1, 2), "upsampled": lambda h: F.interpolate(h[:, None, :3], scale_factor=2)[:, 0],
}  # fmt: skip


@pytest.mark.parametrize("name", FLAT)
def test_piecewise_linear_networks_are_certified(name):
    torch.manual_seed(0)
    check_certificates(case_of(chain(FLAT[name])), [], list(SHAPES), size=4)


def test_columns_are_taken_where_they_are_cheaper():
    """Few classes, many directions: columns. Many classes, few directions: tangents."""
    torch.manual_seed(0)
    case = case_of(chain(F.relu))
    problem = problem_from(case, 4)
    for count, engine in ((20, "columns"), (1, "tangents")):
        given = {name: tuple(F.normalize(random(s, count), dim=0) for s in shape)
                 for name, shape in SHAPES.items() if count > 1 or name == "c"}  # fmt: skip
        found = by_engine(problem, given)
        assert {f.certificate.engine for f in found.values()} == {engine}
    assert all(f.certificate.predicted_cost > 0 for f in found.values())


def test_float32_certificates():
    """Rounding is no curvature, and curvature no rounding."""
    torch.manual_seed(0)
    for bend, flat in (
        (F.relu, True),
        (affine_norm, True),
        (lambda h: F.relu(h) + 1e-3 * h * h, False),
    ):
        problem = problem_from(case_of(chain(bend)), dtype=torch.float32)
        given = {"a": (F.normalize(random(6, 3), dim=0), F.normalize(random(5, 3), dim=0))}
        found = by_engine(problem, given, engine="columns")["a"]
        assert isinstance(found, LayerError) != flat


def test_certificates_in_saved_reports(tmp_path):
    torch.manual_seed(0)
    case = case_of(chain(F.gelu))
    for engine in ("auto", "monte-carlo", "double-backward"):
        kind = "ggn" if engine == "monte-carlo" else "hessian"
        report = sc.measure(problem_from(case), top_k=4, engine=engine, curvature=kind, draws=16)
        report.save(tmp_path / "report.json")
        loaded = sc.SpectralReport.load(tmp_path / "report.json")
        for name, spectrum in report.items():
            one, two = spectrum.certificate, loaded[name].certificate
            assert isinstance(two, Certificate)
            for field in Certificate.__dataclass_fields__:
                a, b = getattr(one, field), getattr(two, field)
                assert type(a) is type(b), field
                np.testing.assert_array_equal(a, b, err_msg=field)  # NaN is NaN
        kinds = {spectrum.certificate.engine for spectrum in loaded.values()}
        assert kinds <= {"columns", "tangents"} if engine == "auto" else kinds == {engine}
        if engine == "double-backward":
            assert all(math.isnan(s.certificate.second_order) for s in loaded.values())
            assert all(math.isnan(s.certificate.cost) for s in loaded.values())
        if engine == "monte-carlo":
            errors = [s.certificate.standard_error for s in loaded.values()]
            assert all(e.dtype == np.float64 and (e > 0).any() for e in errors)
            assert [len(e) for e in errors] == [len(s.sigma) for s in loaded.values()]
