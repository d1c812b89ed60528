"""h^diag of Theory 5.3 against Jacobians in the pre-activations of every position, written out."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem


def unit(rows, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, count, generator=generator, dtype=torch.float64), dim=0)


def root_of(z):
    """A root of the Hessian of cross-entropy in the logits of one term."""
    p = F.softmax(z, -1)
    return torch.linalg.cholesky(
        torch.diag(p) - torch.outer(p, p) + 1e-14 * torch.eye(len(p), dtype=p.dtype)
    )


def from_jacobians(samples, rest, terms):
    """Return h^diag and h^GGN from samples, each with its ``a`` (S, n) and pre-activations (S, m).

    ``rest(y)`` makes the logits (terms of the sample, classes) out of the pre-activations.
    """

    def along(u, v):
        diagonal = ggn = 0.0
        for a, y in samples:
            jacobian = torch.autograd.functional.jacobian(rest, y)  # (terms, classes, S, m)
            for z, j in zip(rest(y), jacobian, strict=True):
                for column in root_of(z).T:
                    delta = torch.einsum("c,csm->sm", column, j)
                    p = (delta @ u) * (a @ v)  # (S, K)
                    diagonal = diagonal + (p**2).sum(0)
                    ggn = ggn + p.sum(0) ** 2
        return diagonal / terms, ggn / terms

    return along


def convolution():
    torch.manual_seed(0)
    conv, head = nn.Conv2d(2, 4, 3, padding=1).double(), nn.Linear(4, 6).double()
    model = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    x, t = torch.randn(24, 2, 4, 4, dtype=torch.float64), torch.randint(6, (24,))
    problem = CurvatureProblem(model, F.cross_entropy, [(x[:9], t[:9]), (x[9:], t[9:])])
    weight, bias = conv.weight.detach().flatten(1), conv.bias.detach()
    patches = F.unfold(x, 3, padding=1).mT  # (B, S, n)

    def rest(y):  # (S, m)
        return (torch.tanh(y).mean(0) @ head.weight.detach().T + head.bias.detach())[None]

    samples = [(a, a @ weight.T + bias) for a in patches]
    return problem, "0", from_jacobians(samples, rest, len(x))


class Tokens(nn.Module):
    """Every position looks at all others; every position has a loss."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Linear(3, 5, dtype=torch.float64), nn.Softmax(-1)
        self.head = nn.Linear(5, 4, dtype=torch.float64)

    def after(self, y):
        return self.head(self.mix(y @ y.mT) @ torch.tanh(y))

    def forward(self, x):
        return self.after(self.embed(x))


def tokens():
    torch.manual_seed(1)
    model = Tokens()
    x, t = torch.randn(5, 6, 3, dtype=torch.float64), torch.randint(4, (5, 6))
    problem = CurvatureProblem(
        model, lambda z, t: F.cross_entropy(z.flatten(0, 1), t.flatten()), [(x, t)]
    )
    samples = [(a, model.embed(a).detach()) for a in x]

    return problem, "embed", from_jacobians(samples, model.requires_grad_(False).after, t.numel())


@pytest.mark.parametrize("made", [convolution, tokens])
def test_against_jacobians_at_every_position(made):
    problem, name, along = made()
    (m, n) = next(layer.shape for layer in problem.layers() if layer.name == name)
    u, v = unit(m, 5, 0), unit(n, 5, 1)
    diagonal, ggn = along(u, v)
    found = problem.kronecker_factors([name], directions={name: (u, v)})[name]
    torch.testing.assert_close(found.diagonal, diagonal, rtol=1e-7, atol=0)
    torch.testing.assert_close(problem.curvatures(name, u, v, "ggn"), ggn, rtol=1e-7, atol=0)
    assert float((ggn / diagonal - 1).abs().max()) > 0.1  # positions do act together


@pytest.mark.parametrize("made", [convolution, tokens])
@pytest.mark.parametrize("fisher_type", ["ggn", "fisher-mc"])
def test_draws_estimate_it_without_bias(made, fisher_type):
    """Cross terms of a random combination of columns vanish at each position, not only in C_δ."""
    problem, name, along = made()
    (m, n) = next(layer.shape for layer in problem.layers() if layer.name == name)
    u, v = unit(m, 5, 0), unit(n, 5, 1)
    found = problem.kronecker_factors(
        [name], fisher_type=fisher_type, max_columns=0, mc_samples=3000, directions={name: (u, v)}
    )[name]
    torch.testing.assert_close(found.diagonal, along(u, v)[0], rtol=0.05, atol=0)


def test_directions_leave_the_factors_alone():
    problem, name, _ = convolution()
    u, v = unit(4, 3, 0), unit(18, 3, 1)
    alone, along = (
        problem.kronecker_factors([name], directions=directions)[name]
        for directions in (None, {name: (u, v)})
    )
    assert alone.diagonal is None and along.diagonal.shape == (3,)
    assert torch.equal(alone.output_covariance, along.output_covariance)
    assert torch.equal(alone.input_covariance, along.input_covariance)
    for options in ({"fisher_type": "empirical"}, {"kfac_approx": "reduce"}):
        found = problem.kronecker_factors([name], directions={name: (u, v)}, **options)[name]
        assert found.diagonal is None


def test_the_report_splits_kappa():
    problem, name, along = convolution()
    report = sc.measure(problem, top_k=4, curvature="ggn", decompose=True, progress=False)
    for layer in report.values():
        fits = layer.decomposition
        total = fits.kappa_positions.exponent + fits.kappa_dependence.exponent
        assert total == pytest.approx(fits.kappa.exponent, abs=1e-12)
        assert abs(fits.closure) < 1e-12
    body = report[name]
    u, _, vh = torch.linalg.svd(problem.gradients([name])[name], full_matrices=False)
    np.testing.assert_allclose(body.diagonal, along(u[:, :4], vh.T[:, :4])[0], rtol=1e-6)
    head = report["4"]  # no positions share its weight
    np.testing.assert_allclose(head.diagonal, head.ggn, rtol=1e-12)
    assert abs(head.decomposition.kappa_positions.exponent) < 1e-10
    again = sc.SpectralReport.from_dict(report.to_dict())
    assert again.to_dict() == report.to_dict()
    assert "of it κ^pos" in report.decomposition_table()[0]


def test_groups_of_samples_give_that_of_all_data():
    problem, *_ = convolution()
    whole = sc.measure(problem, top_k=3, decompose=True, progress=False)
    grouped = sc.measure(problem, top_k=3, decompose=True, sampling=4, progress=False)
    for layer, of_groups in zip(whole.values(), grouped.values(), strict=True):
        np.testing.assert_allclose(of_groups.diagonal, layer.diagonal, rtol=1e-10)
        assert of_groups.sampling is not None


class Tied(nn.Module):
    """A matrix that is used both ways."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(x @ self.weight.T) @ self.weight


def test_uses_that_are_not_seen_leave_kappa_whole():
    torch.manual_seed(0)
    x, t = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    layer = sc.measure(
        CurvatureProblem(Tied(), F.cross_entropy, [(x, t)]), top_k=3, decompose=True, progress=False
    )["weight"]
    assert layer.decomposition is not None and layer.diagonal is None
    assert layer.decomposition.kappa_positions is layer.decomposition.kappa_dependence is None


class Coarse(nn.Module):
    """A matrix that is used in half precision."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return F.linear(x.bfloat16(), self.weight.bfloat16()).float()


def test_a_model_that_casts_inside_has_its_positions_too():
    torch.manual_seed(0)
    x, t = torch.randn(20, 4), torch.randint(5, (20,))
    with pytest.warns(RuntimeWarning, match="casts"):
        problem = CurvatureProblem(Coarse(), F.cross_entropy, [(x, t)])
    u, v = unit(5, 3, 0).float(), unit(4, 3, 1).float()
    found = problem.kronecker_factors(["weight"], directions={"weight": (u, v)})["weight"]
    p = F.softmax(problem._model._model(x).double(), -1).detach()
    roots = torch.stack([root_of(z) for z in p.log()])  # (B, m, C)
    expected = ((roots.mT @ u.double()) * (x.double() @ v.double())[:, None]) ** 2
    torch.testing.assert_close(found.diagonal, expected.sum((0, 1)) / 20, rtol=0.02, atol=0)
