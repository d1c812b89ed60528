"""Samples that meet in the network, lie elsewhere or are left out: columns refuse, others do."""

import pytest
import torch
from engine_helpers import (
    KINDS,
    check,
    check_case,
    expected_of,
    findings,
    given_by,
    module_case,
    some_directions,
    whole,
    wrong_values,
)
from factor_helpers import problem_of, split
from layer_cases import classes, random
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_core.errors import LayerError


class Apart(nn.Module):
    """Samples in front that stay apart."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(F.relu(self.inner(x)).mean(1))


class SequenceFirst(Apart):
    def forward(self, x):
        return self.head(F.relu(self.inner(x.transpose(0, 1))).mean(0))


class Centred(Apart):
    def forward(self, x):
        x = F.relu(self.inner(x)).mean(1)
        return self.head(x - x.mean(0))


class Paired(Apart):
    """Samples meet two by two."""

    def forward(self, x):
        x = F.relu(self.inner(x)).mean(1).unflatten(0, (-1, 2))
        return self.head((x + 0.5 * x.flip(1)).flatten(0, 1))


class Neighbours(Apart):
    def forward(self, x):
        x = F.relu(self.inner(x)).mean(1)
        return self.head(x + x.roll(1, 0))


class Flattened(nn.Module):
    """Tokens that meet inside, and are samples of the outputs."""

    def __init__(self):
        super().__init__()
        self.inner, self.across, self.head = nn.Linear(4, 5), nn.Linear(3, 3), nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.inner(x))
        x = x + F.relu(self.across(x.mT)).mT
        return self.head(x).flatten(0, 1)


class BatchStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.inner(x[:, 0]))))


MEETING = {
    "sequence first": SequenceFirst, "centred": Centred, "paired": Paired,
    "neighbours": Neighbours, "flattened": Flattened, "batch statistics": BatchStatistics,
}  # fmt: skip


def per_batch(batch):
    return len(batch[-1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("samples", [4, 6])
@pytest.mark.parametrize("name", MEETING)
def test_in_every_batch(name, samples, seed):
    """As many positions as samples: nothing in the shapes tells."""
    torch.manual_seed(0)
    positions = 3 if name == "flattened" else samples
    count = samples * 3 if name == "flattened" else samples
    model = MEETING[name]()
    case = module_case(model, random(samples, positions, 4), classes(count), whole("inner"))
    case.model.train()
    expected = expected_of(case)
    problem = problem_of(case, seed=seed, check_deterministic=False, weight=per_batch)
    for kind in KINDS:
        found = findings(problem, given_by(expected), kind, engine="columns")["inner"]
        assert isinstance(found, LayerError), f"{kind} by columns: {found.values}"
        found = findings(problem, given_by(expected), kind)
        assert not (wrong := wrong_values(found, expected, kind)), wrong


COUPLINGS = {
    "centred": lambda h: h - h.mean(0),
    "neighbours": lambda h: h + h.roll(1, 0),
    "two of them": lambda h: h.index_add(0, torch.tensor([1]), h[2:3]),
    "weakly": lambda h: h + 1e-6 * h.roll(1, 0),
    "batch statistics": lambda h: F.batch_norm(h, None, None, training=True),
}


class Late(nn.Module):
    """Samples stay apart in every batch but those that a feature marks."""

    def __init__(self, coupling):
        super().__init__()
        self.inner, self.head, self.coupling = nn.Linear(4, 5), nn.Linear(5, 3), coupling

    def forward(self, x):
        h = F.relu(self.inner(x))
        return self.head(self.coupling(h) if (x[:, 0] > 5).any() else h)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", COUPLINGS)
def test_in_a_later_batch_only(name, batch):
    """What the first batch shows need not hold for the others."""
    torch.manual_seed(0)
    x, y = random(18, 4), classes(18)
    x[6 * batch + 3, 0] = 6
    problem = CurvatureProblem(
        Late(COUPLINGS[name]).double(), F.cross_entropy, split(x, y, 6), check_deterministic=False
    )
    given = some_directions({"inner": (5, 4), "head": (3, 5)}, 10)
    for kind in KINDS:
        refused = findings(problem, given, kind, engine="columns")
        assert isinstance(refused["inner"], LayerError), kind
        assert "samples of the outputs meet" in refused["inner"].reason
        found = check(problem, "auto", kind=kind)
        assert found["inner"].certificate.engine != "columns"
        assert not found["inner"].certificate.piecewise_linear
        assert not isinstance(refused["head"], LayerError)
    spectra = sc.measure(problem, top_k=3)
    assert spectra["inner"].certificate.engine != "columns"


def test_apart_in_every_batch():
    """The same network where nothing is marked: it is the meeting that is noticed."""
    torch.manual_seed(0)
    x, y = random(18, 4), classes(18)
    problem = CurvatureProblem(Late(None).double(), F.cross_entropy, split(x, y, 6))
    for kind in KINDS:
        check(problem, "columns", kind=kind)


class Routed(nn.Module):
    """Each sample goes to the expert that its first feature names; others are not seen by it."""

    def __init__(self, twice=False):
        super().__init__()
        self.gate, self.experts = nn.Linear(5, 6), nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head, self.twice = nn.Linear(6, 4), twice

    def forward(self, x):
        h = F.relu(self.gate(x))
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            rows = torch.where((x[:, 0] * 7).long() % 3 == i)[0]
            if self.twice:  # as many rows as samples, but others
                rows = rows.repeat(len(x))[: len(x)] if len(rows) else rows
            out = out.index_add(0, rows, F.relu(expert(h[rows])))
        return self.head(h + out)


@pytest.mark.parametrize(("twice", "size"), [(False, None), (False, 6), (True, None)])
def test_routing_that_leaves_samples_out(twice, size):
    torch.manual_seed(4)
    x = torch.cat([random(9, 5).abs(), random(3, 5).abs()])
    x[:3, 0] = torch.tensor([0.01, 0.15, 0.3])  # every expert is used by the first samples
    layers = whole("gate", "experts.0", "experts.1", "experts.2", "head")
    case = module_case(Routed(twice), x, classes(12, 4), layers)
    problem, expected = check_case(case, size=size)
    found = findings(problem, given_by(expected), engine="columns")
    assert all(isinstance(found[name], LayerError) for name in layers if "experts" in name)
    assert not isinstance(found["head"], LayerError)
