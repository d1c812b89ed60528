"""Curvatures of many layers together, by every engine, against the dense float64 derivatives."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from engine_helpers import (
    KINDS,
    by_engine,
    check,
    check_case,
    expected_of,
    given_by,
    some_directions,
    wrong_values,
)
from factor_helpers import mlp, problem_of, split
from layer_cases import CASES, random
from piecewise_cases import PIECEWISE, cnn, token_mlp
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem


@pytest.mark.parametrize("name", CASES)
def test_5_9_tangents_against_dense_second_derivatives(name):
    torch.manual_seed(0)
    case = CASES[name]()
    expected = expected_of(case)
    problem = problem_of(case)
    wrong = []
    for engine, chunk in (("auto", None), ("tangents", None), ("tangents", 1), ("tangents", 3)):
        problem._budget.chunk_size = chunk
        for kind in KINDS:
            found = by_engine(problem, given_by(expected), kind, engine=engine)
            assert all(f.ggn is not None and f.derivative is not None for f in found.values())
            wrong += wrong_values(found, expected, kind)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", PIECEWISE)
def test_5_8_columns_are_the_hessian_of_a_piecewise_linear_network(name):
    torch.manual_seed(1)
    problem, expected = check_case(PIECEWISE[name](), ("columns", "auto"))
    for found in by_engine(problem, given_by(expected), engine="columns").values():
        certificate = found.certificate
        assert certificate.engine == "columns" and certificate.piecewise_linear
        assert certificate.second_order <= certificate.tolerance


def test_flattened_tokens():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True).double().eval()
    problem = CurvatureProblem(
        model, F.cross_entropy, [(random(3, 5, 8), torch.randint(8, (15,)))],
        forward=lambda m, b: (m(b[0]).flatten(0, 1), b[1]),
    )  # fmt: skip
    check(problem, "auto")
    check(problem, "auto", kind="ggn")


@pytest.mark.parametrize("make", [cnn, token_mlp, CASES["block"], CASES["attention"]])
def test_float32_is_near_float64(make):
    torch.manual_seed(0)
    case = make()
    given = given_by(expected_of(case, ()))
    exact, coarse = (problem_of(case, dtype=dtype) for dtype in (torch.float64, torch.float32))
    for engine in ("auto", "tangents", "columns") if make in (cnn, token_mlp) else ("auto",):
        for kind in KINDS:
            one, two = (by_engine(p, given, kind, engine=engine) for p in (exact, coarse))
            for name in given:
                h, low = one[name].values, two[name].values.double()
                assert (h - low).abs().max() < 1e-4 * h.abs().max(), (engine, kind, name)


@pytest.mark.parametrize(("engine", "chunk"), [("tangents", 2), ("columns", None), ("auto", None)])
def test_done_layers_do_not_change_a_bit_of_the_others(engine, chunk):
    """Also where the layers are so many that they are measured in groups."""
    torch.manual_seed(0)
    widths = [5] + [8] * 23 + [4]
    layers = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), nn.ReLU() if engine == "columns" else nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    problem = CurvatureProblem(
        model, F.cross_entropy, split(random(9, 5), torch.randint(4, (9,)), 5), chunk_size=chunk
    )
    given = some_directions({layer.name: layer.shape for layer in problem.layers()}, 8)
    told = []
    full, names = (
        by_engine(problem, given, engine=engine, progress_callback=told.append),
        list(given),
    )
    passes = {message.split(", batch")[0] for message in told}
    assert len(passes) == (1 if engine == "columns" else 2), passes
    for done in (names[::2], names[:6], names[1:]):
        rest = by_engine(problem, given, engine=engine, done=done)
        assert rest.keys() == set(names) - set(done)
        for name, found in rest.items():
            assert torch.equal(found.values, full[name].values), name
            assert torch.equal(found.ggn, full[name].ggn), name


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


def test_reports_of_all_engines_agree():
    torch.manual_seed(0)
    problem = problem_of(cnn(), 3)
    exact = sc.measure(problem, top_k=4, engine="double-backward")
    for engine in ("auto", "columns", "tangents"):
        report = sc.measure(problem, top_k=4, engine=engine)
        for layer, spectrum in exact.items():
            h = spectrum.curvature
            np.testing.assert_allclose(
                report[layer].curvature, h, rtol=1e-9, atol=1e-9 * np.abs(h).max()
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "fast"}, "engine: 'fast' is unknown"),
        ({"mc_samples": 1}, "mc_samples: 1 is no number"),
        ({"kind": "fisher"}, "kind: 'fisher' is unknown"),
    ],
)
def test_options(options, message):
    problem = problem_of(CASES["linear"]())
    with pytest.raises(sc.InputError, match=message):
        problem.layer_curvatures({}, **options)
