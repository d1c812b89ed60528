"""Multiply-adds of what runs, counted by hand."""

import torch
from torch.nn import functional as F

from spectral_backends.torch.instruments.work_counter import WorkCounter


def test_products_forward_and_back():
    x, w = torch.randn(7, 5), torch.randn(5, 3, requires_grad=True)
    with WorkCounter() as counter:
        y = x @ w
        assert counter.work == 7 * 5 * 3
        torch.tanh(y) * 2  # single elements are not counted
        assert counter.work == 7 * 5 * 3
        y.sum().backward()
    assert counter.work == 2 * 7 * 5 * 3  # only w has a gradient


def test_convolutions_and_batched_products():
    with WorkCounter() as counter:
        F.conv2d(torch.randn(2, 4, 8, 8), torch.randn(6, 2, 3, 3), groups=2)
        torch.bmm(torch.randn(2, 3, 4), torch.randn(2, 4, 5))
    assert counter.work == 2 * 6 * 36 * (2 * 9) + 2 * 3 * 4 * 5
