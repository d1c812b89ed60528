"""Factors of token losses, and Monte-Carlo estimates with their stated error."""

import pytest
import torch
from factor_helpers import close, mlp, split
from layer_cases import random
from torch import nn
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem
from spectral_core.errors import LayerError


class Tokens(nn.Module):
    """One causal attention on tokens; `flat` gives every token as a sample of its own."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.flat = flat

    def forward(self, tokens):
        x = self.table(tokens)
        x = x + F.scaled_dot_product_attention(x, x, self.mix(x), is_causal=True)
        z = self.head(torch.tanh(x))
        return z.flatten(0, 1) if self.flat else z.transpose(1, 2)


def tokens_problem(flat, **options):
    torch.manual_seed(0)
    model, tokens = Tokens(flat).double(), torch.randint(7, (6, 5))
    targets = torch.randint(7, (6, 5))
    targets[0, 3:] = -100
    return CurvatureProblem(
        model, lambda z, y: F.cross_entropy(z, y.flatten() if flat else y),
        split(tokens, targets, 4), **options,
    )  # fmt: skip


def test_token_losses_are_exact_where_columns_are_few():
    """(1/N) Σ over terms, classes and positions, from one backward pass per term and class."""
    problem = tokens_problem(False)
    found = problem.kronecker_factors(["mix"])["mix"]
    assert found.output_noise is None
    model, batches = problem._model._model, problem._objective.batches
    total, count = torch.zeros(4, 4, dtype=torch.float64), 0
    for tokens, targets in batches:
        kept = {}
        handle = model.mix.register_forward_hook(lambda m, i, o, kept=kept: kept.update(y=o))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            z = model(tokens)
        handle.remove()
        p = torch.softmax(z, 1).detach()
        for b, t in (targets != -100).nonzero().tolist():
            for c in range(7):
                unit = -p[b, :, t] * p[b, c, t].sqrt()
                unit[c] += p[b, c, t].sqrt()
                (d,) = torch.autograd.grad(z[b, :, t] @ unit, kept["y"], retain_graph=True)
                total += torch.einsum("btm,btl->ml", d, d)
            count += 1
    close(found.output_covariance, total / count)


@pytest.mark.parametrize("delta", ["ggn", "fisher-mc", "empirical"])
@pytest.mark.parametrize("flat", [False, True])
def test_monte_carlo_is_unbiased_and_states_its_error(flat, delta):
    exact_delta = "ggn" if delta == "fisher-mc" else delta
    exact = tokens_problem(False).kronecker_factors(["mix", "head"], fisher_type=exact_delta)
    problem = tokens_problem(flat)
    most = 0 if not flat else 128  # flattened tokens meet in the attention: never exact
    found = problem.kronecker_factors(
        ["mix", "head"], fisher_type=delta, mc_samples=600, max_columns=most
    )
    for name in ("mix", "head"):
        estimate, truth = found[name].output_covariance, exact[name].output_covariance
        assert (estimate - truth).norm() < 0.1 * truth.norm()
        assert found[name].output_noise is not None
        if name == "head" and delta == "empirical":  # one position a term: a sign changes nothing
            close(estimate, truth)
            continue
        assert 0.2 < found[name].output_noise.norm() / (estimate - truth).norm() < 5
        close(found[name].input_covariance, exact[name].input_covariance)


def test_stated_standard_error_is_calibrated():
    """Over many seeds the error is the stated one, and its mean is zero."""
    truth = tokens_problem(False).kronecker_factors(["mix"])["mix"].output_covariance
    errors, stated = [], []
    for seed in range(60):
        problem = tokens_problem(False, seed=seed)
        found = problem.kronecker_factors(["mix"], mc_samples=4, max_columns=0)["mix"]
        errors.append(torch.diag(found.output_covariance - truth))
        stated.append(torch.diag(found.output_noise))
    ratio = torch.stack(errors).square().mean() / torch.stack(stated).square().mean()
    assert 0.7 < ratio < 1.4
    bias = torch.stack(errors).mean(0) / (torch.stack(stated).square().mean(0) / 60).sqrt()
    assert bias.abs().max() < 4


def test_samples_that_meet_are_noticed():
    notes = tokens_problem(True).kronecker_factors(["mix"])["mix"].notes
    assert any("Monte-Carlo" in note for note in notes)
    assert not tokens_problem(False).kronecker_factors(["mix"])["mix"].notes
    with pytest.raises(LayerError, match="keep the samples in front"):
        tokens_problem(True).kronecker_factors(["mix"], kfac_approx="reduce")


@pytest.mark.parametrize("delta", ["fisher-mc", "empirical"])
def test_a_term_of_weight_two_counts_twice(delta):
    """Class weights: ω enters outer products once, as if the sample were there ω times."""
    torch.manual_seed(0)
    model, x, y = mlp(5, 6, 4), random(12, 5), torch.arange(12) % 4
    weight = torch.tensor([1.0, 2.0, 3.0, 1.0]).double()
    repeats = weight[y].long()
    weighted = CurvatureProblem(model, nn.CrossEntropyLoss(weight=weight), split(x, y, 5))
    repeated = CurvatureProblem(
        model, F.cross_entropy, [(x.repeat_interleave(repeats, 0), y.repeat_interleave(repeats))]
    )
    exact = "ggn" if delta == "fisher-mc" else delta
    found = weighted.kronecker_factors(["0"], fisher_type=delta, mc_samples=4000)["0"]
    expected = repeated.kronecker_factors(["0"], fisher_type=exact)["0"]
    rtol = 0.05 if delta == "fisher-mc" else 1e-9
    close(found.output_covariance, expected.output_covariance, rtol=rtol)
    close(found.input_covariance, expected.input_covariance)


def test_logistic_targets_are_drawn_as_zeros_and_ones():
    torch.manual_seed(0)
    model = mlp(5, 6, 1)
    x = random(1, 5)
    p = float(torch.sigmoid(model(x).detach()))
    seen = set()
    for seed in range(20):
        problem = CurvatureProblem(
            model, F.binary_cross_entropy_with_logits, [(x, torch.ones(1, 1).double())], seed=seed
        )
        found = problem.kronecker_factors(["2"], fisher_type="fisher-mc", mc_samples=2)["2"]
        seen.add(round(float(found.output_covariance[0, 0]), 12))
    one, zero = (1 - p) ** 2, p**2
    assert seen <= {round(value, 12) for value in (one, zero, (one + zero) / 2)} and len(seen) > 1
