"""Small problems for the tests of Kronecker factors and of engines."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem

FUSED = ("lstm", "gru", "cells")
"""Cases whose operations hide their positions."""


def problem_of(case, size=None, **options):
    """Return the problem of a case, in batches of a size or of the sizes given."""
    data = [(*case.inputs, case.target)]
    if size is not None:
        data = list(zip(*(t.split(size) for t in data[0]), strict=True))
    return CurvatureProblem(case.model, case.loss, data, params=case.params, **options)


def close(found, expected, rtol=1e-9):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


def mlp(*widths, activation=nn.Tanh):
    layers = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), activation()]
    return nn.Sequential(*layers[:-1]).double()


def split(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def along(problem, layer, count=4):
    """Return directions of the gradient, and some that have nothing to do with it."""
    u, _, vh = torch.linalg.svd(problem.gradients([layer])[layer], full_matrices=False)
    u, v = u[:, :count], vh.T[:, :count]
    noise = [F.normalize(torch.randn_like(d), dim=0) for d in (u, v)]
    return torch.cat([u, noise[0]], 1), torch.cat([v, noise[1]], 1)


def kron(factors, u, v):
    c_delta, c_a = factors.output_covariance, factors.input_covariance
    return (u * (c_delta @ u)).sum(0) * (v * (c_a @ v)).sum(0)


class Shared(nn.Module):
    """Linear maps on every position; their mean or every position is an output."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.pooled = pooled

    def forward(self, x):
        y = self.second(self.first(x))
        return y.mean(1) if self.pooled else y
