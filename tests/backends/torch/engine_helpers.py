"""What the engines are held against: dense derivatives, and one layer differentiated at a time."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from factor_helpers import along, problem_of
from layer_cases import Case, identity, random
from test_curvature_oracle import dense_ggn, dense_hessian, directions
from torch import Tensor
from torch.nn import functional as F

from spectral_core.errors import LayerError

TOLERANCE = 1e-10
KINDS = ("hessian", "ggn")


# Problems


def function_case(model: Any, params: dict[str, Tensor], x: Any, y: Tensor, **options: Any) -> Case:
    """A function of params, all of which are layers of the shape they have."""
    layers = options.pop("layers", {name: (name, identity) for name in params})
    inputs = x if isinstance(x, tuple) else (x,)
    return Case(model, inputs, y, layers, params=params, **options)


def module_case(model: Any, x: Any, y: Tensor, layers: dict[str, Any], **options: Any) -> Case:
    inputs = x if isinstance(x, tuple) else (x,)
    return Case(model.double(), inputs, y, layers, **options)


def whole(*names: str) -> dict[str, Any]:
    return {name: (f"{name}.weight", identity) for name in names}


def with_loss(case: Case, loss: Any, target: Tensor) -> Case:
    return replace(case, loss=loss, target=target)


def some_directions(shapes: dict[str, tuple[int, int]], count: int = 3) -> dict[str, Any]:
    """Random unit vectors for layers of some shapes."""
    return {
        name: tuple(F.normalize(random(size, count), dim=0) for size in shape)
        for name, shape in shapes.items()
    }


# Findings


def findings(problem, given, kind="hessian", **options):
    """Findings by layer; errors too."""
    found = list(problem.layer_curvatures(given, kind, **options))
    return {f.layer if isinstance(f, LayerError) else f.name: f for f in found}


def by_engine(problem, given, kind="hessian", **options):
    """Findings by layer, none of which may be an error."""
    found = findings(problem, given, kind, **options)
    assert not any(isinstance(f, LayerError) for f in found.values()), found
    return found


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


# Dense derivatives


@dataclass
class Expected:
    """Directions of one layer, and what must come out along them."""

    u: Tensor
    v: Tensor
    slope: Tensor
    hessian: Tensor
    ggn: Tensor
    scale: dict[str, Tensor]


def expected_of(case: Case, kinds: tuple[str, ...] = KINDS, top: int = 4) -> dict[str, Expected]:
    """Dense derivatives along the singular directions and two random ones."""
    found, dense = {}, {}
    for layer, (parameter, rule) in case.matrices.items():
        weight = case.parameters()[parameter]
        leaf = weight.clone().requires_grad_()
        (full,) = torch.autograd.grad(case.loss(case.outputs(parameter, leaf), case.target), leaf)
        matrix = rule(full)
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        extra = (F.normalize(random(size, 2), dim=0) for size in matrix.shape)
        u, v = (torch.cat([a[:, :top], b], 1) for a, b in zip((u, vh.T), extra, strict=True))
        d = directions(rule, weight.shape, u, v)
        values, scale = dict.fromkeys(KINDS), {}
        for kind in kinds:
            if (kind, parameter) not in dense:
                make = dense_hessian if kind == "hessian" else dense_ggn
                dense[kind, parameter] = make(case, parameter)
            b = dense[kind, parameter]
            values[kind] = torch.einsum("ki,ij,kj->k", d, b, d)
            scale[kind] = torch.linalg.matrix_norm(b, 2)
        slope = torch.einsum("mk,mn,nk->k", u, matrix, v)
        found[layer] = Expected(u, v, slope, scale=scale, **values)
    return found


def given_by(expected: dict[str, Expected]) -> dict[str, tuple[Tensor, Tensor]]:
    return {layer: (e.u, e.v) for layer, e in expected.items()}


def is_near(values: Tensor, expected: Tensor, scale: Tensor, tolerance: float = TOLERANCE) -> bool:
    error = (values - expected).abs() / (expected.abs() + 1e-3 * scale)
    return bool(error.max() <= tolerance)  # NaN is not


def wrong_values(found, expected, kind="hessian", tolerance=TOLERANCE) -> list[str]:
    """Say what differs: values, and h^GGN and slopes where they are returned."""
    wrong = [f"{layer}: not returned" for layer in expected.keys() - found.keys()]
    for layer, e in expected.items():
        f = found.get(layer)
        if f is None:
            continue
        if isinstance(f, LayerError):
            wrong.append(f"{layer}: {f.reason}")
            continue
        pairs = [(kind, f.values, getattr(e, kind), e.scale[kind])]
        if f.ggn is not None and e.ggn is not None:
            pairs.append(("ggn", f.ggn, e.ggn, e.scale["ggn"]))
        if f.derivative is not None:
            pairs.append(("derivative", f.derivative, e.slope, e.slope.abs().max()))
        wrong += [
            f"{layer}: {what} by {f.certificate.engine} is {values}, not {right}"
            for what, values, right, scale in pairs
            if not is_near(values, right, scale, tolerance)
        ]
    return wrong


def check_case(case, engines=("auto", "tangents"), kinds=KINDS, size=None, **options):
    """Hold engines against the dense numbers; return the problem and what was expected."""
    expected = expected_of(case)
    problem = problem_of(case, size, **options)
    wrong = []
    for engine in engines:
        for kind in kinds:
            found = findings(problem, given_by(expected), kind, engine=engine)
            wrong += wrong_values(found, expected, kind)
    assert not wrong, "\n".join(wrong)
    return problem, expected
