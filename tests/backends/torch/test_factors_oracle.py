"""Kronecker factors against what is known without them: dense Hessians and exact cases."""

from functools import partial

import numpy as np
import pytest
import torch
from factor_helpers import Shared, along, close, kron, mlp, problem_of, split
from layer_cases import CASES, random
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_core.errors import InputError

LOSSES = {
    "classes": (F.cross_entropy, lambda: torch.randint(4, (9,))),
    "ignored": (F.cross_entropy, lambda: torch.tensor([0, -100, 2, 1, -100, 3, 3, 0, 1])),
    "smoothed": (partial(F.cross_entropy, label_smoothing=0.2), lambda: torch.randint(4, (9,))),
    "weighted": (
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0, 3.0]).double()),
        lambda: torch.randint(4, (9,)),
    ),
    "soft": (F.cross_entropy, lambda: torch.softmax(random(9, 4), 1)),
    "summed": (partial(F.cross_entropy, reduction="sum"), lambda: torch.randint(4, (9,))),
    "by hand": (
        lambda z, y: (torch.logsumexp(z, 1) - z[torch.arange(len(z)), y]).mean(),
        lambda: torch.randint(4, (9,)),
    ),
    "squared": (F.mse_loss, lambda: random(9, 4)),
    "huber": (F.smooth_l1_loss, lambda: random(9, 4)),
    "logistic": (F.binary_cross_entropy_with_logits, lambda: torch.rand(9, 4).double().round()),
    "positive weight": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 0.5, 4.0]).double()),
        lambda: torch.rand(9, 4).double().round(),
    ),
    "coupled outputs": (
        lambda z, y: ((z - y).square().sum(1) + 1).sqrt().mean(),
        lambda: random(9, 4),
    ),
}


@pytest.mark.parametrize("size", [9, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_4_4_output_factor_of_a_head_is_the_mean_hessian_in_its_outputs(name, size):
    torch.manual_seed(0)
    loss, make = LOSSES[name]
    model, x, y = mlp(5, 6, 4), 3 * random(9, 5), make()
    problem = CurvatureProblem(model, loss, split(x, y, size))
    factors = problem.kronecker_factors(["2"])["2"]
    z = model(x).detach()
    dense = torch.autograd.functional.hessian(lambda z: loss(z, y), z)
    blocks = torch.stack([dense[i, :, i] for i in range(9)]).sum(0)
    close(factors.output_covariance, blocks / {"summed": 9}.get(name, 1))
    assert factors.output_noise is None
    hidden = model[:2](x).detach()
    weight = torch.ones(9).double()
    if name == "ignored":
        weight = (y != -100).double()
    if name == "weighted":
        weight = loss.weight[y]
    close(factors.input_covariance, (hidden.T * weight) @ hidden / weight.sum())


@pytest.mark.parametrize("size", [12, 5])
@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize("name", ["classes", "squared", "logistic"])
def test_5_4_without_sharing_from_raw_per_sample_gradients(layer, name, size):
    """NumPy recomputes C_δ, C_A and h^GGN from one backward pass per sample and output."""
    torch.manual_seed(1)
    x = random(12, 5)
    y = {"classes": torch.randint(4, (12,)), "squared": random(12, 4),
         "logistic": torch.rand(12, 4).double().round()}[name]  # fmt: skip
    loss, model = LOSSES[name][0], mlp(5, 6, 4, activation=nn.GELU)
    problem = CurvatureProblem(model, loss, split(x, y, size))
    u, v = along(problem, layer)
    deltas, inputs, terms = [], [], 0
    for i in range(12):
        before = model[: int(layer)](x[i : i + 1])
        after = model[int(layer)](before)
        z = model[int(layer) + 1 :](after)
        count = 1 if name == "classes" else 4  # the mean runs over elements
        inner = torch.autograd.functional.hessian(
            lambda z, i=i, c=count: c * loss(z, y[i : i + 1]), z.detach()
        ).reshape(4, 4)
        values, vectors = np.linalg.eigh(inner.numpy())
        roots = vectors * np.sqrt(np.maximum(values, 0))
        jacobian = np.stack([
            torch.autograd.grad(z[0, c], after, retain_graph=True)[0][0].numpy() for c in range(4)
        ])  # fmt: skip
        deltas.append(roots.T @ jacobian)
        inputs.append(before[0].detach().numpy())
        terms += count
    deltas, inputs = np.stack(deltas), np.stack(inputs)
    c_delta = np.einsum("icm,icl->ml", deltas, deltas) / terms
    ggn = np.einsum("icm,mk,in,nk->ick", deltas, u.numpy(), inputs, v.numpy())
    factors = problem.kronecker_factors([layer])[layer]
    close(factors.output_covariance, torch.from_numpy(c_delta))
    close(factors.input_covariance, torch.from_numpy(inputs.T @ inputs / 12))
    close(problem.curvatures(layer, u, v, "ggn"), torch.from_numpy((ggn**2).sum((0, 1)) / terms))


def test_4_5_one_sample_without_sharing_is_exact():
    torch.manual_seed(0)
    problem = CurvatureProblem(
        mlp(5, 6, 7, 4), F.cross_entropy, [(random(1, 5), torch.tensor([2]))]
    )
    for layer in ("0", "2", "4"):
        u, v = along(problem, layer)
        factors = problem.kronecker_factors([layer])[layer]
        close(kron(factors, u, v), problem.curvatures(layer, u, v, "ggn"))


def test_linear_network_with_squared_error_has_no_residual():
    torch.manual_seed(0)
    problem = CurvatureProblem(
        mlp(5, 6, 4, activation=nn.Identity), F.mse_loss, split(random(9, 5), random(9, 4), 4)
    )
    for spectrum in sc.measure(problem, decompose=True).values():
        np.testing.assert_allclose(spectrum.ggn, spectrum.curvature, rtol=1e-10)
        assert abs(spectrum.decomposition.nu.exponent) < 1e-9
        assert abs(spectrum.decomposition.closure) < 1e-12


@pytest.mark.parametrize(("sharing", "pooled"), [("expand", False), ("reduce", True)])
def test_4_3_sharing_is_exact_where_it_must_be(sharing, pooled):
    """Deep linear networks (Eschenhagen et al. 2023): a loss per position, or one of their mean."""
    torch.manual_seed(0)
    x, y = random(8, 6, 4), random(8, 3) if pooled else random(8, 6, 3)
    problem = CurvatureProblem(Shared(pooled).double(), F.mse_loss, split(x, y, 3))
    for layer in ("first", "second"):
        u, v = along(problem, layer, 3)
        for other in ("expand", "reduce"):
            factors = problem.kronecker_factors([layer], kfac_approx=other)[layer]
            ratio = kron(factors, u, v) / problem.curvatures(layer, u, v, "ggn")
            exact = float((ratio - 1).abs().max()) < 1e-9
            assert exact == (other == sharing), (layer, other, ratio)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("delta", ["ggn", "empirical"])
def test_4_5_repeated_samples_change_nothing(delta, sharing):
    torch.manual_seed(0)
    case = CASES["block"]()
    x, y = case.inputs[0], case.target
    results = []
    for r in (1, 3):
        problem = CurvatureProblem(case.model, case.loss, split(x.repeat(r, 1, 1), y.repeat(r), 2))
        names = [layer.name for layer in problem.layers()]
        factors = problem.kronecker_factors(names, fisher_type=delta, kfac_approx=sharing)
        report = sc.measure(problem, decompose=True, fisher_type=delta, kfac_approx=sharing)
        results.append((factors, report))
    (factors, report), (more, again) = results
    for name in factors:
        close(more[name].output_covariance, factors[name].output_covariance)
        close(more[name].input_covariance, factors[name].input_covariance)
        chi, chi_again = (r[name].decomposition.chi for r in (report, again))
        np.testing.assert_allclose(chi_again, chi, rtol=1e-6)


def test_sums_that_cancel_are_zero():
    """Keys that all move together change no attention: reduced, their factor is zero, not noise."""
    torch.manual_seed(0)
    case = CASES["block"]()
    for dtype in (torch.float32, torch.float64):
        problem = CurvatureProblem(
            case.model, case.loss, split(case.inputs[0], case.target, 2), dtype=dtype
        )
        found = problem.kronecker_factors(["qkv.part0", "qkv.part1"], kfac_approx="reduce")
        assert found["qkv.part0"].output_covariance.norm() > 0
        assert found["qkv.part1"].output_covariance.norm() == 0
        spectrum = sc.measure(
            problem, "qkv.part1", curvature="ggn", decompose=True, kfac_approx="reduce"
        )["qkv.part1"]
        assert not any("tied" in note for note in spectrum.notes)
        assert spectrum.decomposition.alpha.n == 0 and spectrum.decomposition.alpha.reason
        assert any("more directions dropped from the decomposition" in n for n in spectrum.notes)


def test_4_6_softmax_head_has_rank_classes_less_one():
    torch.manual_seed(0)
    problem = CurvatureProblem(
        mlp(5, 9, 6), F.cross_entropy, split(random(40, 5), torch.randint(6, (40,)), 7)
    )
    for delta in ("ggn", "empirical", "fisher-mc"):
        c_delta = problem.kronecker_factors(["2"], fisher_type=delta)["2"].output_covariance
        values = torch.linalg.eigvalsh(c_delta)
        assert values[0].abs() < 1e-14 * values[-1] and values[1] > 1e-6 * values[-1]
        assert int((values > 1e-12 * values[-1]).sum()) == sc.softmax_head_rank(6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fisher_type": "gn"}, "fisher_type: 'gn'"),
        ({"kfac_approx": "both"}, "kfac_approx: 'both'"),
        ({"mc_samples": 3}, "mc_samples: 3"),
        ({"max_columns": -1}, "max_columns: -1"),
    ],
)
def test_unknown_options(options, message):
    problem = problem_of(CASES["linear"]())
    with pytest.raises(InputError, match=message):
        problem.kronecker_factors(["0"], **options)


def test_losses_without_factors_say_why():
    torch.manual_seed(0)
    x, y = random(8, 5), random(8, 4)

    def factors(loss, targets=y):
        problem = CurvatureProblem(mlp(5, 6, 4), loss, [(x, targets)], check_deterministic=False)
        return problem.kronecker_factors(["0"], max_columns=3)

    with pytest.raises(InputError, match="linear in the outputs"):
        factors(lambda z, y: F.nll_loss(z, y), torch.randint(4, (8,)))
    with pytest.raises(InputError, match="not convex"):
        factors(lambda z, y: torch.cos(z - y).mean())
    with pytest.raises(InputError, match="raise max_columns"):
        factors(lambda z, y: ((z - y).square().sum(1) + 1).sqrt().mean())
    with pytest.raises(InputError, match="cannot differentiate it twice in the outputs"):
        factors(F.multi_margin_loss, torch.randint(4, (8,)))
    problem = CurvatureProblem(
        mlp(5, 6, 4), None, [(x, y)], forward=lambda m, b: F.mse_loss(m(b[0]), b[1])
    )
    with pytest.raises(InputError, match="'ggn' needs to know"):
        problem.kronecker_factors(["0"])


def test_state_is_as_before_and_factors_repeat():
    torch.manual_seed(0)
    case = CASES["attention"]()
    state = torch.get_rng_state()
    problem = problem_of(case)
    first = problem.kronecker_factors(list(case.matrices), fisher_type="fisher-mc")
    second = problem.kronecker_factors(list(case.matrices), fisher_type="fisher-mc")
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in case.model.parameters())
    for name in first:
        assert torch.equal(first[name].output_covariance, second[name].output_covariance)


def test_saturated_probabilities_in_float32():
    """p is one-hot to rounding: the Hessian is all cancellation, and still a cross-entropy's."""
    torch.manual_seed(0)
    model = mlp(5, 6, 4)
    with torch.no_grad():
        model[2].weight *= 300
    x, y = random(30, 5), torch.randint(4, (30,))
    exact, coarse = (
        CurvatureProblem(model, F.cross_entropy, [(x, y)], dtype=dtype)
        .kronecker_factors(["0"])["0"].output_covariance
        for dtype in (torch.float64, torch.float32)
    )  # fmt: skip
    close(coarse, exact, rtol=1e-2)
    # recognised for what it is, as it must be where classes are too many to make it dense
    CurvatureProblem(model, F.cross_entropy, [(x, y)], dtype=torch.float32).kronecker_factors(
        ["0"], max_columns=3
    )


def test_probabilities_of_zero_and_one():
    """Saturated to the last bit, right and wrong: no curvature is left, and none is invented."""
    torch.manual_seed(0)
    model = mlp(5, 6, 4)
    with torch.no_grad():
        model[2].weight *= 1e6
    problem = CurvatureProblem(
        model, F.cross_entropy, [(random(9, 5), torch.arange(9) % 4)], dtype=torch.float32
    )
    assert float(problem.kronecker_factors(["0"])["0"].output_covariance.norm()) == 0


def test_log_probabilities_have_an_empirical_factor():
    torch.manual_seed(0)
    x, y = random(9, 5), torch.randint(4, (9,))
    model = mlp(5, 6, 4)
    log_model = nn.Sequential(model, nn.LogSoftmax(1))
    found = CurvatureProblem(log_model, F.nll_loss, [(x, y)])
    expected = CurvatureProblem(model, F.cross_entropy, [(x, y)])
    a, b = (
        problem.kronecker_factors([name], fisher_type="empirical")[name]
        for problem, name in ((found, "0.0"), (expected, "0"))
    )
    close(a.output_covariance, b.output_covariance)
    close(a.input_covariance, b.input_covariance)


def test_batches_weigh_by_their_terms():
    torch.manual_seed(0)
    model, x, y = mlp(5, 6, 4), random(8, 5), random(8, 4)
    mask = torch.zeros(8, 4).double()
    mask[:4, :2], mask[4:, 0] = 1, 1  # 8 elements of the first batch count, 4 of the second
    problem = CurvatureProblem(
        model,
        lambda z, target: ((z - target[0]).square() * target[1]).sum() / target[1].sum(),
        [(x[:4], y[:4], mask[:4]), (x[4:], y[4:], mask[4:])],
        forward=lambda m, batch: (m(batch[0]), batch[1:]),
        weight=lambda batch: float(batch[2].sum()),
    )
    found = problem.kronecker_factors(["0"])["0"].input_covariance
    close(found, (8 * x[:4].T @ x[:4] / 4 + 4 * x[4:].T @ x[4:] / 4) / 12)
