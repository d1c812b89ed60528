"""`converge`: sizes are counted, parts are measured as if they were all the data, drift is judged."""

import json

import numpy as np
import pytest

import spectral_core as sc
from spectral_backends.numpy import DenseNetwork
from spectral_core.measuring.subsampling.sample_sizes import sizes_in_groups

NETWORK = DenseNetwork((7, 12, 6), activation="tanh", loss="squared")
PARAMS = NETWORK.init()
RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(192, 7)), RNG.normal(size=(192, 6))
NUMBERS = ("alpha", "gamma", "s", "participation")


def problem_of(x=X, y=Y, batch=50, network=NETWORK, params=PARAMS):
    return network.problem(
        params, [(x[i : i + batch], y[i : i + batch]) for i in range(0, len(x), batch)]
    )


def converged(problem=None, *layers, **options):
    options = {"top_k": 5, "progress": False} | options
    return sc.converge(problem or problem_of(), *layers, **options)


@pytest.fixture(scope="module")
def found():
    return converged()


def values_of(layer, name):
    return getattr(layer, name)


def test_sizes_are_exact_counts_of_disjoint_parts(found):
    for layer in found.values():
        assert layer.sizes.tolist() == [12, 24, 48, 96, 192]
        assert layer.parts == (16, 8, 4, 2, 1)
        assert all(len(sigma) == 5 for sigma in layer.sigma)
        assert all(np.isfinite(layer.stderr[name]).all() for name in NUMBERS)


@pytest.mark.parametrize(
    ("sizes", "blocks", "groups", "in_groups"),
    [
        (None, 8, 16, (1, 2, 4, 8)),
        ([96], 4, 4, (2,)),
        ([96, 192, 48, 96], 5, 8, (2, 4)),
        (np.array([30, 60]), 4, 8, (1, 2)),  # 6.4 groups of 30 terms: rounded to 8
        ([70], 4, 4, (1,)),
    ],
)
def test_sizes_are_whole_numbers_of_groups(sizes, blocks, groups, in_groups):
    plan = sizes_in_groups(sizes, 192, blocks)
    assert (plan.n_groups, plan.sizes) == (groups, in_groups)
    for size in plan.sizes:
        parts = plan.parts(size)
        together = [group for part in parts for group in part]
        assert len(parts) == groups // size and {len(part) for part in parts} == {size}
        assert len(set(together)) == len(together)
    shares = (1 / groups,) * groups
    without = plan.subsamples(shares).sets[:blocks]
    left_out = [group for each in without for group in set(range(groups)) - set(each)]
    assert sorted(left_out) == list(range(groups))


def test_all_data_are_measured_as_by_measure(found):
    report = sc.measure(
        problem_of(), top_k=5, sampling=8, sampling_directions="own", progress=False
    )
    for name, layer in report.items():
        of_all = found[name]
        np.testing.assert_allclose(of_all.sigma[-1], layer.sigma, rtol=1e-12)
        for number in ("alpha", "gamma", "s"):
            want = getattr(layer, number).exponent
            assert values_of(of_all, number)[-1] == pytest.approx(want, rel=1e-9)
        assert of_all.participation[-1] == pytest.approx(layer.participation.ratio)
        for number in NUMBERS:
            want = getattr(layer.sampling, number).stderr
            assert of_all.stderr[number][-1] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("place", range(4))
def test_a_part_is_measured_as_if_it_were_all_the_data(found, place):
    plan = sizes_in_groups(None, len(X), 8)
    groups = problem_of().sample_groups(16)
    reports = []
    for part in plan.parts(plan.sizes[place]):
        batches = [batch for group in part for batch in groups[group].problem._data.batches]
        reports.append(sc.measure(NETWORK.problem(PARAMS, batches), top_k=5, progress=False))
    assert len(reports) == found["head"].parts[place]
    for name, layer in found.items():
        alpha = [report[name].alpha.exponent for report in reports]
        assert layer.alpha[place] == pytest.approx(np.mean(alpha), rel=1e-9)
        assert layer.stderr["alpha"][place] == pytest.approx(np.std(alpha, ddof=1), rel=1e-7)
        sigma = np.mean([report[name].sigma for report in reports], axis=0)
        np.testing.assert_allclose(layer.sigma[place], sigma, rtol=1e-12)


@pytest.mark.parametrize("batch", [192, 17])
def test_batches_and_their_order_change_nothing(found, batch):
    order = np.random.default_rng(1).permutation(len(X))
    again = converged(problem_of(X[order], Y[order], batch))
    for name, layer in again.items():
        for number in NUMBERS:
            want = values_of(found[name], number)
            np.testing.assert_allclose(values_of(layer, number), want, rtol=1e-8)


def test_noise_falls_with_the_root_of_the_sample_size():
    """A network whose residuals are noise has no gradient but that of the sample."""
    rng = np.random.default_rng(0)
    network = DenseNetwork((8, 6), loss="squared")
    params, x = network.init(), rng.normal(size=(4096, 8))
    y = x @ params["head.weight"].T + params["head.bias"]
    layer = converged(problem_of(x, y + rng.normal(size=y.shape), 512, network, params))["head"]
    sigma = np.stack(layer.sigma)[:, 0]
    slope = np.polyfit(np.log(layer.sizes), np.log(sigma), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.05)


def layer_of(alpha, stderr, sizes=(64.0, 128.0, 256.0, 512.0)):
    alpha, stderr = np.asarray(alpha), np.asarray(stderr)
    errors = dict.fromkeys(NUMBERS, stderr)
    return sc.LayerConvergence(
        "fc", np.asarray(sizes), (8, 4, 2, 1), *[alpha] * 4, errors, (np.ones(2),) * 4, 8
    )


def test_enough_is_the_size_from_which_on_the_drift_is_within_the_standard_error():
    assert layer_of([2.0, 1.8, 1.7, 1.65], [0.2, 0.1, 0.11, 0.1]).enough == 256
    assert layer_of([2.0, 1.9, 1.7, 1.65], [0.2, 0.3, 0.1, 0.1]).enough == 512
    moving = layer_of([2.0, 1.9, 1.8, 1.5], [0.2, 0.3, 0.3, 0.1])  # small sizes tell nothing
    assert moving.enough is None
    assert moving.sentence == (
        "fc: α still moves with the sample size: at 512 terms its drift is +0.300, and its "
        "standard error 0.100."
    )
    for alpha, error in (([2.0] * 4, np.nan), ([2.0, 2.0, np.nan, 2.0], 0.1)):
        unknown = layer_of(alpha, [0.2, 0.1, 0.1, error])
        assert unknown.enough is None and unknown.sentence == (
            "fc: α cannot be fitted on every part of the data, so its drift at 512 terms cannot be "
            "judged."
        )
    np.testing.assert_allclose(moving.drift("s"), [np.nan, 0.1, 0.1, 0.3])


def test_a_drift_is_known_where_the_half_was_measured():
    layer = layer_of([2.0, 1.9, 1.8, 1.8], [0.11] * 4, sizes=(62.5, 125.3, 300.0, 1000.0))
    np.testing.assert_allclose(layer.drift(), [np.nan, 0.1, np.nan, np.nan])
    assert layer.enough == 125
    apart = layer_of([2.0] * 4, [0.1] * 4, sizes=(10.0, 30.0, 90.0, 270.0))
    assert apart.enough is None and "of no size the half was measured" in apart.sentence


def test_a_table_a_line_for_each_size_and_a_sentence_for_each_layer(found):
    header, lines = found.table()
    assert header[:4] == ["layer", "terms", "parts", "α"] and len(lines) == 10
    assert lines[4][:4] == ["0", "192", "1", f"{found['0'].alpha[-1]:.3f}"]
    text = str(found)
    assert all(layer.sentence in text for layer in found.values())
    with pytest.raises(KeyError, match="there are: 0, head"):
        found["fc"]


def test_a_saved_result_is_read(found, tmp_path):
    path = tmp_path / "convergence.json"
    found.save(path)
    again = sc.Convergence.load(path)
    assert again.to_dict() == found.to_dict() and str(again) == str(found)
    damaged = found.to_dict()
    damaged["layers"][0]["alpha"].pop()
    path.write_text(json.dumps(damaged))
    for data in (damaged, {}, 5):
        with pytest.raises(sc.ReportError, match="is not a complete convergence"):
            sc.Convergence.from_dict(data)
    with pytest.raises(sc.ReportError, match=r"convergence\.json: is not a complete"):
        sc.Convergence.load(path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(sc.ReportError, match="was cut short"):
        sc.Convergence.load(path)


def test_a_layer_without_a_gradient_on_a_part_is_skipped_with_the_reason():
    x = np.zeros_like(X)
    x[:20] = X[:20]  # the first layer of most parts has no inputs
    params = PARAMS | {"0.bias": np.arange(1.0, 13)}
    found = converged(problem_of(x, params=params))
    assert list(found) == ["head"]
    assert found.skipped == {
        "0": "on a part of the data its gradient is zero on these data; no direction can be "
        "measured."
    }
    assert "skipped\n  0: on a part" in str(found)


class Undivided:
    """A problem whose samples nobody can tell apart."""

    def __init__(self, n_terms):
        self.problem, self.n_terms = problem_of(), n_terms

    def layers(self):
        return self.problem.layers()

    def skipped(self):
        return {}

    def gradients(self, layers):
        return self.problem.gradients(layers)

    def curvatures(self, layer, u, v, kind="hessian"):
        return self.problem.curvatures(layer, u, v, kind)

    def describe(self):
        return {"n_terms": self.n_terms}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": [400]}, "sizes: 400 is more than all 192 terms"),
        ({"sizes": [100]}, "of 100 terms there is no second part among 192; choose sizes up to 96"),
        ({"sizes": [192]}, r"none is below all 192 terms, .* pass for instance \[48, 96\]"),
        ({"sizes": []}, "none is below all 192 terms"),
        ({"sizes": [1]}, "1 of 192 terms and sampling=8 ask for 256 groups of two samples or more"),
        ({"sizes": [24.5]}, r"\[24.5\] is no list of numbers of terms"),
        ({"sizes": [True]}, "is no list of numbers of terms"),
        ({"sizes": 24}, "24 is no list of numbers of terms"),
        ({"sizes": "24"}, "'24' is no list of numbers of terms"),
        ({"sampling": 2}, "2 is no number of groups"),
        ({"sampling": 200}, "and sampling=200 ask for 256 groups"),
        ({"top_k": 0}, "top_k: 0 is not"),
        ({"engine": "abacus"}, "engine: 'abacus' is unknown"),
        ({"svd": "rough"}, "svd: 'rough' is unknown"),
        ({"curvature": "bend"}, "curvature: 'bend' is unknown"),
        ({"progress": 5}, "progress: a int cannot be called"),
        ({"layers": "fc"}, "matches none of the 2 layers"),
    ],
)
def test_errors_are_sentences(options, words):
    with pytest.raises(sc.InputError, match=words):
        converged(**options)


def test_a_problem_must_divide_its_samples_and_count_its_terms():
    with pytest.raises(sc.InputError) as caught:
        converged(Undivided(192))
    assert str(caught.value) == (
        "sizes: 16 groups are needed, and a Undivided does not divide its samples into groups; "
        "give it a method sample_groups."
    )
    with pytest.raises(sc.InputError, match="does not say how many terms there are; give"):
        converged(Undivided(None))


def test_progress_counts_layers():
    told = []
    converged(progress=lambda *what: told.append(what))
    assert told[0] == (0, 2, "groups of samples") and told[1] == (0, 2, "gradients")
    assert told[-1] == (2, 2, "")
