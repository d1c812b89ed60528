"""A loss that is no function of the weights is refused, or measured as its seed fixes it."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

torch.manual_seed(0)
X, Y = torch.randn(40, 5), torch.randint(3, (40,))
DATA = TensorDataset(X, Y)


def plain():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


class Augmented(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.randn(5), Y[index]


class Noisy(Dataset):
    def __init__(self, noise):
        self.noise = noise

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return X[index] + 0.1 * self.noise(), Y[index]


class Shrinking:
    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([(X, Y)] * (3 if self.passes == 1 else 2))


CASES = {
    "dropout": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
        lambda: [(X, Y)], "dropout.*training mode: call model.eval",
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
        lambda: [(X, Y)], "buffers.*running_mean.*model.eval",
    ),
    "batch norm without statistics": (
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)
        ).eval(),
        lambda: [(X, Y)], "statistics of each batch.*no running statistics",
    ),
    "shuffled": (
        lambda: plain().eval(), lambda: DataLoader(DATA, 16, shuffle=True), "shuffle=False",
    ),
    "shuffled and cut": (
        lambda: plain().eval(), lambda: DataLoader(DATA, 16, shuffle=True, drop_last=True),
        "fixed set of samples",
    ),
    "shuffled by a generator of its own": (
        lambda: plain().eval(),
        lambda: DataLoader(DATA, 16, shuffle=True, generator=torch.Generator()), "shuffle=False",
    ),
    "noise of numpy": (
        lambda: plain().eval(), lambda: DataLoader(Noisy(np.random.normal), 16), "augments",
    ),
    "noise of python": (
        lambda: plain().eval(), lambda: DataLoader(Noisy(random.random), 16), "augments",
    ),
    "augmented": (lambda: plain().eval(), lambda: DataLoader(Augmented(), 16), "augments"),
    "shrinking": (lambda: plain().eval(), Shrinking, "had 3 batches, the second 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused_with_the_remedy(name):
    torch.manual_seed(1)
    model, batches, words = CASES[name]
    with pytest.raises(sc.NonDeterministicError, match=words) as caught:
        CurvatureProblem(model(), F.cross_entropy, batches())
    assert "check_deterministic=False" in str(caught.value) or name == "shrinking"


@pytest.mark.parametrize(
    "name",
    ["dropout", "batch norm", "shuffled", "augmented", "noise of numpy", "noise of python"],
)
def test_allowed_explicitly_it_repeats_itself(name):
    model, batches, _ = CASES[name]
    model, batches = model(), batches()
    values = []
    for _ in range(2):
        problem = CurvatureProblem(model, F.cross_entropy, batches, check_deterministic=False)
        report = sc.measure(problem, top_k=3)
        values.append([*report["0"].sigma, *report["0"].curvature])
        torch.randn(3), np.random.rand(), random.random()  # their states must not matter
    assert values[0] == values[1]


def test_every_generator_of_a_loader_is_seeded():
    generator = torch.Generator().manual_seed(3)
    sampler = BatchSampler(RandomSampler(DATA, generator=generator), 8, drop_last=True)
    loader = DataLoader(DATA, batch_sampler=sampler)
    state, model = generator.get_state(), plain()
    values = []
    for _ in range(2):
        problem = CurvatureProblem(model, F.cross_entropy, loader, check_deterministic=False)
        values.append(list(sc.measure(problem, top_k=3)["0"].curvature))
        assert torch.equal(generator.get_state(), state)
        torch.manual_seed(len(values))
    assert values[0] == values[1]


def test_every_pass_starts_from_the_same_buffers():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 3)
            self.register_buffer("passes", torch.ones(()))

        def forward(self, x):
            self.passes.mul_(2)
            return self.a(x) * self.passes

    problem = CurvatureProblem(Counting(), F.cross_entropy, [(X, Y)], check_deterministic=False)
    first, second = (problem.gradients(["a"])["a"] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(sc.NonDeterministicError, match="'passes'"):
        CurvatureProblem(Counting(), F.cross_entropy, [(X, Y)])


def test_nan_in_an_unused_buffer_is_no_change():
    model = plain().eval()
    model.register_buffer("unused", torch.tensor([float("nan"), 1.0]))
    model.register_buffer("flags", torch.tensor([True, False]))
    assert len(CurvatureProblem(model, F.cross_entropy, [(X, Y)]).layers()) == 2


def test_dropout_in_eval_mode_is_fine():
    model = CASES["dropout"][0]().eval()
    assert (
        CurvatureProblem(model, F.cross_entropy, DataLoader(DATA, 16)).describe()["n_terms"] == 40
    )


def test_sums_do_not_follow_addresses_in_memory():
    """A tied weight's adjoints come from two uses; in which order they are added is the graph's."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mid = nn.Embedding(9, 6), nn.Linear(6, 6)

        def forward(self, x):
            return torch.tanh(self.mid(self.embed(x))) @ self.embed.weight.T

    torch.manual_seed(0)
    model, inputs = Tied(), torch.randint(9, (17,))
    u, v = torch.eye(9, 4), torch.linalg.qr(torch.randn(6, 4))[0]
    found, elsewhere = set(), []
    for attempt in range(12):
        elsewhere.append([torch.ones(n) for n in range(attempt)])  # other addresses
        problem = CurvatureProblem(model, nn.CrossEntropyLoss(), [(inputs, inputs.flip(0))])
        (tied,) = problem.layer_curvatures({"embed": (u, v)}, engine="tangents")
        found.add(tied.values.numpy().tobytes())
    assert len(found) == 1
