"""Curvatures from random combinations of columns: unbiased, with the error that is stated."""

from dataclasses import replace

import pytest
import torch
from engine_helpers import by_engine, some_directions
from factor_helpers import along, mlp, problem_of
from layer_cases import classes, random
from piecewise_cases import relu_mlp
from test_samples_that_meet import Flattened, Neighbours, per_batch
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem
from spectral_core.errors import LayerError


def estimates(problem, given, kind, seeds, draws):
    """Return the estimates of one layer and their stated standard errors, each ``(seeds, K)``."""
    (layer,) = given
    found = []
    for seed in range(seeds):
        for engine in problem._engines:
            engine._setting = replace(engine._setting, seed=seed)
        found.append(by_engine(problem, given, kind, engine="monte-carlo", mc_samples=draws)[layer])
        assert found[-1].certificate.engine == "monte-carlo"
    stated = torch.stack([torch.from_numpy(f.certificate.standard_error) for f in found])
    return torch.stack([f.values for f in found]), stated


def check_error(values, stated, exact):
    """The mean is within 4.5 of its standard errors; the spread is that which is stated.

    Of n normal numbers the spread is known to 1/√(2n), which is four times within these bounds for
    the 80 or more that are drawn here.
    """
    rms = stated.square().mean(0).sqrt()
    assert (rms > 0).all()
    assert ((values.mean(0) - exact).abs() <= 4.5 * rms / len(values) ** 0.5).all()
    ratio = (values - exact).square().mean(0).sqrt() / rms
    assert ((ratio > 0.7) & (ratio < 1.4)).all(), ratio


def test_over_several_batches():
    torch.manual_seed(0)
    problem = problem_of(relu_mlp(), 3)
    given = {"0": along(problem, "0", 3)}
    exact = problem.curvatures("0", *given["0"])
    check_error(*estimates(problem, given, "hessian", 80, 8), exact)


def meeting(model):
    torch.manual_seed(0)
    count = 15 if model is Flattened else 5
    problem = CurvatureProblem(
        model().double(), F.cross_entropy, [(random(5, 3, 4), classes(count))], weight=per_batch
    )
    return problem, some_directions({"inner": (5, 4)}, 6)


@pytest.mark.parametrize("model", [Flattened, Neighbours])
def test_samples_may_meet(model):
    problem, given = meeting(model)
    exact = by_engine(problem, given, "ggn", engine="tangents")["inner"].values
    check_error(*estimates(problem, given, "ggn", 100, 6), exact)


def test_more_draws_are_closer():
    problem, given = meeting(Flattened)
    few, many = (estimates(problem, given, "hessian", 20, draws)[1].mean() for draws in (4, 64))
    assert 2.5 < few / many < 6  # four times


def test_nonlinear_layers():
    torch.manual_seed(0)
    data = [(random(9, 5), torch.randint(4, (9,)))]
    problem = CurvatureProblem(mlp(5, 6, 4), F.cross_entropy, data)
    given = {name: along(problem, name, 2) for name in ("0", "2")}
    refused, head = problem.layer_curvatures(given, engine="monte-carlo")
    assert isinstance(refused, LayerError) and "TanhBackward0" in refused.reason
    assert head.certificate.piecewise_linear
    by_engine(problem, given, "ggn", engine="monte-carlo")
