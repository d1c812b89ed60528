"""`converge` of a network in PyTorch, in whatever batches its data come."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

torch.manual_seed(2)
IMAGES, LABELS = torch.randn(96, 1, 6, 6), torch.arange(96) % 5


def problem_of(activation, batch=40, images=IMAGES, labels=LABELS):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), activation, nn.Flatten(), nn.Linear(96, 7), activation, nn.Linear(7, 5)
    )
    batches = list(zip(images.split(batch), labels.split(batch), strict=True))
    return CurvatureProblem(model.double(), F.cross_entropy, [(x.double(), y) for x, y in batches])


@pytest.mark.parametrize(
    ("activation", "engine"), [(nn.ReLU(), "auto"), (nn.Tanh(), "tangents")], ids=str
)
def test_sizes_are_measured_as_all_data_are(activation, engine):
    options = {"top_k": 5, "curvature": "ggn", "engine": engine, "progress": False}
    found = sc.converge(problem_of(activation), sizes=[24, 48], sampling=4, **options)
    report = sc.measure(
        problem_of(activation, 96), sampling=4, sampling_directions="own", **options
    )
    groups = [  # the quarters, as the problem of all data divides itself
        torch.cat(parts)
        for group in problem_of(activation).sample_groups(4)
        for parts in [[batch[0] for batch in group.problem._objective.batches]]
    ]
    where = [[int((x == IMAGES).all((1, 2, 3)).nonzero()) for x in group] for group in groups]
    quarters = [
        sc.measure(problem_of(activation, 10, IMAGES[i], LABELS[i]), **options) for i in where
    ]
    assert sorted(i for each in where for i in each) == list(range(96))
    for name, layer in found.items():
        assert layer.sizes.tolist() == [24, 48, 96] and layer.parts == (4, 2, 1)
        alpha = [quarter[name].alpha.exponent for quarter in quarters]
        assert layer.alpha[0] == pytest.approx(np.mean(alpha), rel=1e-8)
        assert layer.alpha[-1] == pytest.approx(report[name].alpha.exponent, rel=1e-8)
        sampled = report[name].sampling.alpha
        assert layer.stderr["alpha"][-1] == pytest.approx(sampled.stderr, rel=1e-6)
    assert found.skipped == {}


def test_batches_and_their_order_change_nothing():
    order = torch.randperm(96)
    options = {"top_k": 4, "sampling": 4, "progress": False}
    one = sc.converge(problem_of(nn.Tanh()), **options)
    other = sc.converge(problem_of(nn.Tanh(), 7, IMAGES[order], LABELS[order]), **options)
    for name, layer in one.items():
        np.testing.assert_allclose(layer.alpha, other[name].alpha, rtol=1e-8)
        np.testing.assert_allclose(np.stack(layer.sigma), np.stack(other[name].sigma), rtol=1e-8)
