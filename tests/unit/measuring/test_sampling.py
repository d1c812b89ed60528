"""Sampling errors of a measurement, against measurements of the parts by themselves."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.linalg import hadamard
from scipy.stats import t as student

import spectral_core as sc
from spectral_backends.numpy import CurvatureProblem, DenseNetwork

NETWORK = DenseNetwork((7, 9, 6), activation="tanh")
PARAMS = NETWORK.init(seed=1)
B, K = 4, 5


def batches(sizes=(30, 30, 13), seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(73, 7)), rng.integers(0, 6, 73)
    ends = np.cumsum((0, *sizes))
    return [(x[a:b], y[a:b]) for a, b in pairwise(ends)]


def measured(data, **options):
    problem = NETWORK.problem(PARAMS, data)
    return sc.measure(problem, top_k=K, progress=False, **options)


def parts_of(data):
    """The samples of each group, as one batch."""
    groups = NETWORK.problem(PARAMS, data).sample_groups(B)
    held = [list(group.problem._data.batches) for group in groups]
    return [tuple(np.concatenate(side) for side in zip(*each, strict=True)) for each in held]


def joined(parts):
    return [tuple(np.concatenate(side) for side in zip(*parts, strict=True))]


def test_groups_are_whole_samples_each_once_and_equal():
    data = batches()
    parts = parts_of(data)
    assert sorted(len(labels) for _, labels in parts) == [18, 18, 18, 19]
    rows = np.concatenate([x for x, _ in parts])
    whole = np.concatenate([x for x, _ in data])
    assert np.array_equal(np.sort(rows, axis=0), np.sort(whole, axis=0))


def test_a_group_does_not_depend_on_batches_and_their_order():
    one, other = parts_of(batches()), parts_of(batches((13, 60))[::-1])
    for (x, _), (z, _) in zip(one, other, strict=True):
        assert {row.tobytes() for row in x} == {row.tobytes() for row in z}


def test_sampling_changes_nothing_else():
    plain, sampled = measured(batches()), measured(batches(), sampling=B)
    for name, layer in sampled.items():
        np.testing.assert_allclose(layer.curvature, plain[name].curvature, rtol=1e-9)
        assert np.array_equal(layer.sigma, plain[name].sigma)
        assert layer.notes == plain[name].notes
        assert layer.certificate.engine == plain[name].certificate.engine


@pytest.mark.parametrize("decompose", [False, True])
def test_errors_are_those_of_the_parts_measured_by_themselves(decompose):
    options = {"decompose": decompose, "sampling_directions": "own", "sampling": B}
    found = measured(batches(), **options)
    parts = parts_of(batches())
    shares = np.array([len(labels) for _, labels in parts]) / 73
    without = [
        measured(joined([p for i, p in enumerate(parts) if i != out]), decompose=decompose)
        for out in range(B)
    ]
    halves = [
        measured(joined([parts[i] for i in np.flatnonzero(signs == side)]), decompose=decompose)
        for signs in hadamard(B)[:, 1:].T
        for side in (1, -1)
    ]
    quarters = [measured([part], decompose=decompose) for part in parts]
    numbers = {
        "alpha": lambda s: s.alpha.exponent,
        "gamma": lambda s: s.gamma.exponent,
        "s": lambda s: s.s.exponent,
        "participation": lambda s: s.participation.ratio,
    }
    if decompose:
        for term in ("beta", "phi", "kappa", "nu"):
            numbers[term] = lambda s, t=term: getattr(s.decomposition, t).exponent
    for name, layer in found.items():
        assert layer.sampling.groups == B and layer.sampling.directions == "own"
        for key, read in numbers.items():
            each = np.array([read(report[name]) for report in without])
            mean = ((1 - shares) * each).sum() / (B - 1)
            left_out = ((1 - shares) ** 2 / shares * (each - mean) ** 2).sum() / (B - 1)
            pairs = np.array([read(report[name]) for report in halves]).reshape(-1, 2)
            stderr = np.sqrt(min(left_out, np.mean((pairs[:, 0] - pairs[:, 1]) ** 2) / 2))
            number = getattr(layer.sampling, key)
            assert number.stderr == pytest.approx(stderr, rel=1e-6, abs=1e-9)
            half = student.ppf(0.975, B - 1) * stderr
            assert number.half_width == pytest.approx(half, rel=1e-6, abs=1e-9)
            assert np.mean(number.interval) == pytest.approx(read(layer), abs=1e-9)
            drift = np.mean(pairs) - read(layer)
            assert number.drift == pytest.approx(drift, rel=1e-5, abs=1e-8)
            expected = np.mean([read(report[name]) for report in quarters])
            assert number.quarters == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_signal_shares_from_the_parts():
    found = measured(batches(), sampling=B)
    parts = parts_of(batches())
    shares = np.array([len(labels) for _, labels in parts]) / 73
    for name, layer in found.items():
        g = [NETWORK.problem(PARAMS, [p]).gradients([name])[name] for p in parts]
        whole = sum(w * each for w, each in zip(shares, g, strict=True))
        noise = sum(w * ((e - whole) ** 2).sum() for w, e in zip(shares, g, strict=True)) / (B - 1)
        assert layer.sampling.signal_share == pytest.approx(1 - noise / (whole**2).sum())
        c = np.zeros(K)
        for w, each in zip(shares, g, strict=True):
            u, _, vh = np.linalg.svd((whole - w * each) / (1 - w), full_matrices=False)
            c += w * np.einsum("mk,mn,kn->k", u[:, :K], each, vh[:K])
        np.testing.assert_allclose(layer.sampling.signal_shares, c / layer.sigma, rtol=1e-8)


def test_fixed_directions_leave_out_that_directions_move():
    found = measured(batches(), sampling=B, sampling_directions="fixed")
    for name, layer in found.items():
        assert layer.sampling.directions == "fixed" and np.isnan(layer.sampling.alpha.drift)
        assert not layer.sampling.alpha.is_moving
        u, _, vh = np.linalg.svd(NETWORK.problem(PARAMS, batches()).gradients([name])[name])
        each = []
        parts = parts_of(batches())
        for out in range(B):
            rest = NETWORK.problem(PARAMS, joined([p for i, p in enumerate(parts) if i != out]))
            sigma = np.einsum("mk,mn,kn->k", u[:, :K], rest.gradients([name])[name], vh[:K])
            h = rest.curvatures(name, u[:, :K], vh[:K].T)
            each.append(sc.exponent_triangle(sigma, h).alpha.exponent)
        spread = np.std(each) * np.sqrt(B - 1)
        assert layer.sampling.alpha.stderr == pytest.approx(spread, rel=0.1)  # unequal groups


def test_a_measurement_resumes_with_its_sampling_errors(tmp_path):
    path = tmp_path / "journal"
    options = {"sampling": B, "decompose": True, "resume": path}
    whole = measured(batches(), **options)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert measured(batches(), **options).to_dict() == whole.to_dict()
    with pytest.raises(sc.ReportError, match="another measurement; what differs: .*sampling"):
        measured(batches(), sampling=8, decompose=True, resume=path)


def unsampled(problem, **options):
    report = sc.measure(problem, top_k=K, progress=False, **({"sampling": B} | options))
    assert all(layer.sampling is None for layer in report.values())
    (note,) = {n for layer in report.values() for n in layer.notes if n.startswith("no sampling")}
    return note


def test_a_problem_that_knows_no_samples_is_measured_without():
    class Bare:
        def __init__(self, problem):
            self._problem = problem

        def __getattr__(self, name):
            if name in ("sample_groups", "layer_curvatures", "gradient_errors"):
                raise AttributeError(name)
            return getattr(self._problem, name)

    note = unsampled(Bare(NETWORK.problem(PARAMS, batches())))
    assert note.startswith("no sampling errors: a Bare does not divide its samples into groups")


def test_functions_that_hold_their_data_are_measured_without():
    ((x, y),) = batches((73,))
    problem = CurvatureProblem(lambda params: NETWORK.gradient(params, (x, y)), PARAMS)
    assert "the functions hold the data themselves" in unsampled(problem)


def test_too_few_samples_are_told():
    problem = NETWORK.problem(PARAMS, [(x[:7], y[:7]) for x, y in batches((73,))])
    assert "7 samples are too few for 4 groups of at least two" in unsampled(problem)


def test_samples_that_share_a_term_are_not_divided():
    """A gradient that depends on the mean of its batch is no mean over samples."""

    def gradient(params, batch):
        x, y = batch
        return NETWORK.gradient(params, (x - x.mean(0), y))

    problem = CurvatureProblem(gradient, PARAMS, batches((73,)), check=False)
    assert "is not that of all" in unsampled(problem)


def test_batches_that_cannot_be_cut_are_dealt_whole():
    """A function of whole batches: samples that it compares belong together."""

    def gradient(params, batch):
        (x, y) = batch["pair"]
        return NETWORK.gradient(params, (x - x.mean(0), y))

    data = [
        {"pair": (x[i : i + 7], y[i : i + 7])} for x, y in batches((73,)) for i in range(0, 70, 7)
    ]
    problem = CurvatureProblem(
        gradient, PARAMS, data, weight=lambda batch: len(batch["pair"][1]), check=False
    )
    groups = problem.sample_groups(4)
    assert sorted(round(group.share, 6) for group in groups) == [0.2, 0.2, 0.3, 0.3]
    found = sc.measure(problem, top_k=K, sampling=4, progress=False)
    assert found["0"].sampling is not None


@pytest.mark.parametrize("count", [0, 3, True, 2.5, "8"])
def test_a_number_of_groups_that_is_none_is_refused(count):
    with pytest.raises(sc.InputError, match=r"^sampling: .* is no number of groups; pass a whole"):
        measured(batches(), sampling=count)


def test_a_layer_without_gradient_in_a_part_keeps_its_numbers():
    """Only one sample of all reaches the first layer: parts without it have no directions."""
    ((x, y),) = batches((73,))
    x = np.where(np.arange(73)[:, None] == 5, x, 0.0)
    found = measured([(x, y)], sampling=B)["0"]
    assert found.sampling is None and np.isfinite(found.sigma).all()
    assert "no sampling errors: on a part of the data its gradient is zero" in found.notes[-1]


def test_a_number_of_groups_is_kept_with_the_report():
    found = measured(batches(), sampling=B)
    again = sc.SpectralReport.from_dict(found.to_dict())
    assert again.provenance.sampling == B and again.provenance.sampling_directions == "auto"
    assert again.to_dict() == found.to_dict()
    former = replace(found.provenance, sampling=None, sampling_directions=None)
    assert sc.Provenance(former.problem, former.versions, K, "hessian", 0.95).sampling is None
