"""Groups of the samples of PyTorch's batches, and sampling errors from each engine."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

B = 4


def images(count=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 2, 5, 5, generator=generator),
        torch.randint(0, 4, (count,), generator=generator),
    )


def network(activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), activation(), nn.Flatten(), nn.Linear(54, 12), activation(),
        nn.Linear(12, 4),
    )  # fmt: skip


def cut(data, size):
    return list(zip(*(side.split(size) for side in data), strict=True))


def problem(model, data, **options):
    return CurvatureProblem(model, F.cross_entropy, data, dtype=torch.float64, **options)


def check(whole, count=B):
    """Hold gradients of the groups against that of all; return the groups."""
    groups = whole.sample_groups(count)
    assert sum(group.share for group in groups) == pytest.approx(1)
    names = [layer.name for layer in whole.layers()]
    of_all = whole.gradients(names)
    for name in names:
        mean = sum(g.share * g.problem.gradients([name])[name] for g in groups)
        torch.testing.assert_close(mean, of_all[name], rtol=1e-8, atol=1e-12)
    return groups


def sizes(group):
    return [len(batch[0]) for batch in group.problem._objective.batches]


def test_batches_of_a_group_are_as_large_as_the_users():
    groups = check(problem(network(), cut(images(), 16)))
    assert [sizes(group) for group in groups] == [[13], [13], [12], [12]]
    groups = check(problem(network(), cut(images(), 4)))
    assert all(max(sizes(group)) <= 4 and sum(sizes(group)) in (12, 13) for group in groups)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("size", [7, 50])
def test_neither_batches_nor_their_order_matter(activation, size):
    model, (x, y) = network(activation), images()
    one = sc.measure(problem(model, cut((x, y), 16)), top_k=4, sampling=B, progress=False)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    shuffled = problem(model, cut((x[order], y[order]), size))
    other = sc.measure(shuffled, top_k=4, sampling=B, progress=False)
    for name, layer in one.items():
        for key in ("alpha", "gamma", "s", "participation"):
            a, b = getattr(layer.sampling, key), getattr(other[name].sampling, key)
            assert (a.stderr, a.drift) == pytest.approx((b.stderr, b.drift), rel=1e-6, nan_ok=True)


def test_directions_of_their_own_where_they_cost_little():
    flat = sc.measure(problem(network(), cut(images(), 16)), top_k=4, sampling=B, progress=False)
    assert {s.certificate.engine for s in flat.values()} == {"columns"}
    assert {s.sampling.directions for s in flat.values()} == {"own"}
    bent = problem(network(nn.Tanh), cut(images(), 16))
    found = sc.measure(bent, top_k=4, sampling=B, progress=False)
    assert found["0"].certificate.engine != "columns" and found["0"].sampling.directions == "fixed"
    asked = sc.measure(bent, top_k=4, sampling=B, sampling_directions="own", progress=False)
    assert asked["0"].sampling.directions == "own"
    np.testing.assert_allclose(asked["0"].curvature, found["0"].curvature, rtol=1e-9)


@pytest.mark.parametrize("engine", ["columns", "tangents", "double-backward"])
def test_every_engine_gives_the_same_errors(engine):
    model = network()
    options = {"top_k": 4, "sampling": B, "progress": False, "decompose": True}
    of_all = problem(model, cut(images(), 16))
    reference = sc.measure(of_all, engine="double-backward", sampling_directions="own", **options)
    found = sc.measure(of_all, engine=engine, sampling_directions="own", **options)
    for name, layer in found.items():
        for key in ("alpha", "s", "beta", "kappa"):
            expected = getattr(reference[name].sampling, key)
            assert getattr(layer.sampling, key).stderr == pytest.approx(
                expected.stderr, rel=1e-5, abs=1e-9
            )


def test_samples_count_by_their_terms():
    """Sentences of unequal length: a group's share is that of its tokens that count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    tokens = torch.randint(0, 9, (24, 6))
    targets = torch.where(torch.arange(6) < torch.randint(1, 7, (24, 1)), tokens.roll(1), -100)

    def loss(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    whole = CurvatureProblem(model, loss, cut((tokens, targets), 7), dtype=torch.float64)
    groups = check(whole)
    counted = [
        sum(int((batch[1] != -100).sum()) for batch in g.problem._objective.batches) for g in groups
    ]
    assert sum(counted) == int((targets != -100).sum())
    assert [g.share for g in groups] == pytest.approx([c / sum(counted) for c in counted])
    assert {len(batch[0]) for g in groups for batch in g.problem._objective.batches} <= {6, 7}


def test_samples_lie_along_the_first_axis_where_shapes_leave_a_choice():
    torch.manual_seed(0)
    data = [(torch.randn(9, n, 3), torch.randn(9, n, 2)) for n in (8, 5)]
    groups = check(CurvatureProblem(nn.Linear(3, 2), F.mse_loss, data, dtype=torch.float64))
    assert sorted(sum(sizes(group)) for group in groups) == [4, 4, 5, 5]


def test_padding_may_differ_between_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    data = [
        {"tokens": torch.randint(0, 9, (8, n)), "labels": torch.randint(0, 9, (8, n))}
        for n in (4, 7, 4)
    ]

    def forward(model, batch):
        return model(batch["tokens"]).flatten(0, 1), batch["labels"].flatten()

    check(CurvatureProblem(model, F.cross_entropy, data, forward=forward, dtype=torch.float64))


def test_a_loader_that_shuffles_by_a_generator_is_followed():
    x, y = images()
    loader = DataLoader(
        TensorDataset(x, y), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3)
    )
    model = network()
    groups = check(problem(model, loader, check_deterministic=False))
    in_order = problem(model, cut((x, y), 16)).sample_groups(B)
    for one, other in zip(groups, in_order, strict=True):
        name = ["0"]
        torch.testing.assert_close(
            one.problem.gradients(["0"])["0"], other.problem.gradients(name)["0"]
        )


def test_a_sum_of_terms_is_divided_as_well():
    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="sum")

    check(CurvatureProblem(network(), loss, cut(images(), 16), dtype=torch.float64))


def test_terms_that_are_not_known_are_counted_as_samples():
    """The loss of the only batch is taken as it is: nothing tells how many terms it averages."""

    def loss(outputs, targets):
        return torch.logsumexp(outputs, 1).mean() * 2 - (outputs[:, 0].mean() + 0.0)

    groups = check(CurvatureProblem(network(), loss, [images()], dtype=torch.float64))
    assert [round(50 * g.share) for g in groups] == [13, 13, 12, 12]


def contrastive(outputs, targets):
    logits = outputs @ outputs.T
    return F.cross_entropy(logits, torch.arange(len(outputs)))


def test_samples_that_are_compared_stay_together():
    data = cut(images(80), 8)
    whole = CurvatureProblem(
        network(), contrastive, data, dtype=torch.float64, check_deterministic=False,
        weight=lambda batch: len(batch[0]),
    )  # fmt: skip
    groups = check(whole)
    assert sorted(len(sizes(g)) for g in groups) == [2, 2, 3, 3] and sizes(groups[0])[0] == 8
    one_batch = CurvatureProblem(network(), contrastive, [images(80)], check_deterministic=False)
    with pytest.raises(sc.InputError, match=r"^sampling: the samples cannot be divided"):
        one_batch.sample_groups(B)


def test_a_model_of_one_batch_size_deals_whole_batches():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = network()

        def forward(self, x):
            return self.inside(x.view(5, 2, 5, 5))

    data = cut(images(60), 5)
    whole = problem(Fixed(), data, weight=len, check_deterministic=False)
    assert all(sizes(group) == [5, 5, 5] for group in check(whole))


def test_the_model_is_left_as_it_is():
    model = network()
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    sc.measure(problem(model, cut(images(), 16)), top_k=3, sampling=B, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters()
    )


def test_pure_noise_has_no_signal_and_a_planted_one_has():
    """Labels drawn from the model itself: the population's gradient is zero (Theory 11.3)."""
    model = network()
    x, _ = images(2000, seed=5)
    with torch.no_grad():
        drawn = torch.distributions.Categorical(logits=model(x)).sample()
    noise = sc.measure(problem(model, [(x, drawn)]), "3", top_k=8, sampling=8, progress=False)["3"]
    assert abs(noise.sampling.signal_share) < 0.5 and "noise" in noise.flags
    fixed = torch.full_like(drawn, 2)
    signal = sc.measure(problem(model, [(x, fixed)]), "3", top_k=3, sampling=8, progress=False)["3"]
    assert signal.sampling.signal_share > 0.95 and signal.sampling.signal_shares[0] > 0.95


def test_more_directions_than_inputs_give_the_same_products():
    """Of a layer of two inputs and eight groups: forty directions in place of two."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(150, 4))
    of_all = problem(model, cut(images(), 16))
    options = {"top_k": 2, "sampling": 8, "progress": False}
    found = sc.measure(of_all, "0", engine="columns", **options)["0"]
    slow = sc.measure(of_all, "0", engine="double-backward", sampling_directions="own", **options)[
        "0"
    ]
    assert found.sampling.directions == "own"
    for key in ("gamma", "participation"):
        a, b = getattr(found.sampling, key), getattr(slow.sampling, key)
        assert (a.stderr, a.drift) == pytest.approx((b.stderr, b.drift), rel=1e-6, nan_ok=True)


def test_the_error_of_random_estimates_is_not_taken_for_independent():
    """The groups draw the same signs, so their errors may go together."""
    of_all = problem(network(), cut(images(), 16))
    options = {"top_k": 4, "sampling": B, "engine": "monte-carlo", "progress": False}
    found = sc.measure(of_all, "3", **options)["3"]
    u, _, vh = torch.linalg.svd(of_all.gradients(["3"])["3"], full_matrices=False)
    directions, bound = {"3": (u[:, :4], vh[:4].T)}, 0.0
    for group in of_all.sample_groups(B):
        (part,) = group.problem.layer_curvatures(directions, engine="monte-carlo")
        bound = bound + group.share * part.certificate.standard_error
    np.testing.assert_allclose(found.certificate.standard_error, bound, rtol=1e-6)
