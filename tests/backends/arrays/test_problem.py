"""Curvatures of arrays: closed forms, PyTorch's reports, high precision, every library."""

from itertools import pairwise

import array_api_compat
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import spectral_core as sc
from spectral_backends.arrays import CurvatureProblem, DenseNetwork
from spectral_backends.numpy import CurvatureProblem as NumpyProblem

EPS = np.finfo(float).eps
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((60, 8)), RNG.integers(0, 6, 60)
BATCHES = [(X[:40], Y[:40]), (X[40:], Y[40:])]


def orthonormal(m, k, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((m, k)))[0]


def length(batch):
    return batch[0].shape[0]


def quadratic(m=5, n=7, seed=0):
    """½ <W, B W A> with symmetric A and B: G = B W A and h = (uᵀBu)(vᵀAv)."""
    generator = np.random.default_rng(seed)
    a, b = (generator.standard_normal((k, k)) for k in (n, m))
    a, b = a @ a.T / n, b @ b.T / m
    return generator.standard_normal((m, n)), a, b


WAYS = {
    "complex-step": lambda a, b: {"method": "complex-step"},
    "differences": lambda a, b: {"method": "differences"},
    "hvp": lambda a, b: {"hvp": lambda layer, d: b @ d @ a},
    "curvature": lambda a, b: {
        "curvature": lambda layer, u, v: np.sum(u * (b @ u), axis=0) * np.sum(v * (a @ v), axis=0)
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_quadratic_has_its_closed_form_by_every_way(way):
    weight, a, b = quadratic()
    problem = NumpyProblem(lambda p: {"w": b @ p["w"] @ a}, {"w": weight}, **WAYS[way](a, b))
    whole = sc.measure(problem, top_k=4)
    assert "loss unknown over an unknown number of terms" in str(
        whole
    )  # no loss function was given
    report = whole["w"]
    u, sigma, vh = np.linalg.svd(b @ weight @ a)
    u, v = u[:, :4], vh[:4].T
    wanted = np.sum(u * (b @ u), axis=0) * np.sum(v * (a @ v), axis=0)
    np.testing.assert_allclose(report.sigma, sigma[:4], rtol=1e-13)
    # Differences of a linear gradient: rounding alone, over the smallest step that they use.
    np.testing.assert_allclose(
        report.curvature, wanted, rtol=1e-9 if way == "differences" else 1e-12
    )
    assert report.certificate.engine == way
    assert (report.certificate.standard_error is not None) == (way == "differences")


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu-tanh"])
def test_reports_are_those_of_the_torch_backend(activation, loss):
    torch = pytest.importorskip("torch")
    from spectral_backends.torch import CurvatureProblem as TorchProblem

    network = DenseNetwork((8, 12, 9, 6), activation, loss)
    params = network.init(1)
    acts = {"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh(),
            "gelu-tanh": torch.nn.GELU(approximate="tanh")}  # fmt: skip
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 12), acts[activation], torch.nn.Linear(12, 9), acts[activation],
        torch.nn.Linear(9, 6),
    ).double()  # fmt: skip
    for index, name in ((0, "0"), (2, "1"), (4, "head")):
        model[index].weight.data = torch.as_tensor(params[f"{name}.weight"])
        model[index].bias.data = torch.as_tensor(params[f"{name}.bias"])
    targets = Y if loss == "cross-entropy" else RNG.standard_normal((60, 6))
    batches = [(X[:40], targets[:40]), (X[40:], targets[40:])]
    loss_fn = (
        torch.nn.functional.cross_entropy
        if loss == "cross-entropy"
        else lambda y, t: 0.5 * ((y - t) ** 2).sum(1).mean()
    )
    tensors = [(torch.as_tensor(x), torch.as_tensor(t)) for x, t in batches]
    theirs = sc.measure(
        TorchProblem(model, loss_fn, tensors, weight=length), top_k=5, decompose=True
    )
    problems = {
        "by hand": network.problem(params, batches),
        "complex step": CurvatureProblem(network.gradient, params, batches, weight=length),
    }
    for way, problem in problems.items():
        ours = sc.measure(problem, top_k=5, decompose=way == "by hand")
        for name, other in zip(("0", "1", "head"), ("0", "2", "4"), strict=True):
            one, two = ours[name], theirs[other]
            np.testing.assert_allclose(one.sigma, two.sigma, rtol=1e-11)
            size = np.max(np.abs(two.curvature))
            np.testing.assert_allclose(one.curvature, two.curvature, atol=1e-11 * size)
            for exponent in ("alpha", "gamma", "s"):
                found = getattr(one, exponent).exponent
                np.testing.assert_allclose(found, getattr(two, exponent).exponent, atol=1e-8)
            if way == "by hand":
                for term in ("alpha", "beta", "phi", "kappa", "nu", "phi_delta", "phi_a"):
                    found = getattr(one.decomposition, term).exponent
                    wanted = getattr(two.decomposition, term).exponent
                    np.testing.assert_allclose(found, wanted, atol=1e-8)
                assert name != "head" or np.isfinite(two.decomposition.alpha.exponent)


@pytest.mark.parametrize("method", ["complex-step", "differences"])
def test_a_curvature_in_high_precision(method):
    # Σ_i exp(tanh(w·x_i)) / N, its second derivative along D by mpmath in 50 digits.
    mpmath = pytest.importorskip("mpmath")
    x = np.random.default_rng(3).standard_normal((4, 3))
    weight = np.random.default_rng(4).standard_normal((2, 3))

    def gradient(params):
        z = x @ params["w"].T
        t = np.tanh(z)
        return {"w": (np.exp(t) * (1 - t * t)).T @ x / 4}

    u, v = orthonormal(2, 2, 5), orthonormal(3, 2, 6)
    found = NumpyProblem(gradient, {"w": weight}, method=method).curvatures("w", u, v)
    with mpmath.workdps(50):
        for k in range(2):

            def along(t, k=k):
                total = mpmath.mpf(0)
                for i in range(4):
                    for r in range(2):
                        z = sum(
                            (
                                mpmath.mpf(weight[r, j])
                                + t * mpmath.mpf(u[r, k]) * mpmath.mpf(v[j, k])
                            )
                            * mpmath.mpf(x[i, j])
                            for j in range(3)
                        )
                        total += mpmath.exp(mpmath.tanh(z))
                return total / 4

            wanted = float(mpmath.diff(along, 0, 2))
            assert abs(found[k] - wanted) <= (50 * EPS if method == "complex-step" else 1e-10)


@settings(max_examples=20, deadline=None)
@example(seed=1244, activation="tanh", scale=30.0)  # saturated: the gradient is a cancellation
@given(
    seed=st.integers(0, 10_000),
    activation=st.sampled_from(["tanh", "gelu-tanh"]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_errors_of_differences_hold(seed, activation, scale):
    network = DenseNetwork((4, 6, 3), activation)
    params = {name: scale * p for name, p in network.init(seed).items()}
    generator = np.random.default_rng(seed)
    batch = (generator.standard_normal((9, 4)), generator.integers(0, 3, 9))
    problem = NumpyProblem(network.gradient, params, [batch], method="differences", tolerance=0.5)
    exact = NumpyProblem(network.gradient, params, [batch], method="complex-step")
    directions = {"0": (orthonormal(6, 3, seed), orthonormal(4, 3, seed + 1))}
    (one,), (two,) = (list(p.layer_curvatures(directions)) for p in (problem, exact))
    if isinstance(one, sc.LayerError):
        assert "beyond the tolerance" in one.reason
        return
    error = np.abs(one.values - two.values)
    # p − y rounds to ε however small it is, goes back through the head, and is divided by a step.
    step = 2.0**-11 * np.linalg.norm(params["0.weight"])
    rounding = 2 * EPS * np.linalg.norm(params["head.weight"]) / step
    assert np.all(error <= one.certificate.standard_error + rounding)


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 59), max_size=4, unique=True).map(sorted),
    way=st.sampled_from(["by hand", "complex-step", "differences"]),
)
def test_totals_do_not_depend_on_the_batches(cuts, way):
    network = DenseNetwork((8, 6, 6), "tanh")
    params = network.init(2)
    edges = [0, *cuts, 60]
    batches = [(X[i:j], Y[i:j]) for i, j in pairwise(edges)]

    def values(batches):
        if way == "by hand":
            problem = network.problem(params, batches)
            factors = problem.kronecker_factors(["0"], fisher_type="ggn")["0"]
            extra = [factors.output_covariance.ravel(), factors.input_covariance.ravel()]
            extra.append(problem.curvatures("0", u, v, "ggn"))
        else:
            problem = NumpyProblem(network.gradient, params, batches, weight=length, method=way)
            extra = []
        assert problem.describe()["n_terms"] == 60
        gradient = problem.gradients(["0"])["0"]
        return np.concatenate([gradient.ravel(), problem.curvatures("0", u, v), *extra])

    u, v = orthonormal(6, 2, 1), orthonormal(8, 2, 2)
    wanted = values([(X, Y)])
    atol = (1e-9 if way == "differences" else 1e-13) * np.max(np.abs(wanted))
    np.testing.assert_allclose(values(batches), wanted, atol=atol)


def test_terms_and_not_samples_are_weighed():
    # A mask leaves samples out: the mean runs over those that count.
    network = DenseNetwork((8, 5, 6), "tanh")
    params, mask = network.init(0), np.arange(60) % 3 > 0

    def gradient(params, batch):
        x, y, m = batch
        return network.gradient(params, (x[m], y[m])) if m.any() else {
            name: 0 * p for name, p in params.items()
        }  # fmt: skip

    batches = [(X[i:j], Y[i:j], mask[i:j]) for i, j in ((0, 1), (1, 20), (20, 60))]
    problem = NumpyProblem(gradient, params, batches, weight=lambda b: b[2].sum())
    whole = network.problem(params, [(X[mask], Y[mask])])
    assert problem.describe()["n_terms"] == 40 and problem.describe()["n_batches"] == 2
    u, v = orthonormal(5, 3, 1), orthonormal(8, 3, 2)
    np.testing.assert_allclose(
        problem.curvatures("0", u, v), whole.curvatures("0", u, v), rtol=1e-11
    )


def test_stored_the_other_way_round_and_convolution_kernels():
    generator = np.random.default_rng(0)
    weight, a, b = quadratic(5, 12)
    kernel = weight.reshape(5, 3, 2, 2)
    kinds = {
        "plain": (weight, {}, lambda g: g, lambda w: w),
        "w.weight": (weight.T, {"w.*": "transposed"}, lambda g: g.T, lambda w: w.T),
        "conv": (
            kernel,
            {"*": "conv"},
            lambda g: g.reshape(5, 3, 2, 2),
            lambda w: w.reshape(5, 12),
        ),
    }
    u, v = orthonormal(5, 3, 1), orthonormal(12, 3, 2)
    wanted = np.sum(u * (b @ u), axis=0) * np.sum(v * (a @ v), axis=0)
    for name, (stored, matrices, back, read) in kinds.items():
        problem = NumpyProblem(
            lambda p, name=name, back=back, read=read: {name: back(b @ read(p[name]) @ a)},
            {name: stored}, matrices=matrices,
        )  # fmt: skip
        (info,) = problem.layers()
        assert info.shape == (5, 12) and info.name == name.removesuffix(".weight")
        np.testing.assert_allclose(problem.gradients([info.name])[info.name], b @ weight @ a)
        np.testing.assert_allclose(problem.curvatures(info.name, u, v), wanted, rtol=1e-12)
    stack = generator.standard_normal((2, 5, 12))
    problem = NumpyProblem(
        lambda p: {"experts": b @ p["experts"] @ a}, {"experts": stack}, matrices={"*": "stack"}
    )
    assert [layer.name for layer in problem.layers()] == ["experts.part0", "experts.part1"]
    for index in range(2):
        name = f"experts.part{index}"
        np.testing.assert_allclose(problem.gradients([name])[name], b @ stack[index] @ a)
        np.testing.assert_allclose(problem.curvatures(name, u, v), wanted, rtol=1e-12)


@pytest.mark.not_in("jit", "device")  # as in test_conformance.py
@pytest.mark.parametrize("activation", ["relu", "gelu-tanh"])
def test_every_library_measures(xp, activation):
    network = DenseNetwork((5, 7, 4), activation)
    x, y = X[:12, :5], Y[:12] % 4
    like = xp.array([0.0])
    module = array_api_compat.array_namespace(like)
    targets = module.asarray(y, device=array_api_compat.device(like))
    batch = (xp.array(x), targets)
    params = network.init(0, like=like)
    wanted = sc.measure(network.problem(network.init(0), [(x, y)]), top_k=3, decompose=True)
    ours = [
        network.problem(params, [batch]),
        CurvatureProblem(network.gradient, params, [batch], method="complex-step"),
    ]
    for problem in ours:
        report = sc.measure(problem, top_k=3, decompose=problem is ours[0])
        for name in ("0", "head"):
            size = np.max(np.abs(wanted[name].curvature))
            np.testing.assert_allclose(
                report[name].curvature, wanted[name].curvature, atol=3000 * xp.eps * size
            )
    factors = ours[0].kronecker_factors(["0"])["0"]
    xp.check_kind(factors.output_covariance, like)
    assert ours[0].describe()["backend"] == xp.library.replace("-", "_")
    assert xp.dtype.__name__ == ours[0].describe()["dtype"]


@pytest.mark.parametrize("method", ["complex-step", "differences"])
def test_a_measurement_resumes(tmp_path, method):
    network = DenseNetwork((8, 6, 6), "tanh")
    params = network.init(0)
    reports = [
        sc.measure(
            CurvatureProblem(network.gradient, params, BATCHES, weight=length, method=method),
            top_k=4,
            resume=tmp_path / "run.journal",
        )
        for _ in range(2)
    ]  # fmt: skip
    assert reports[0].to_dict() == reports[1].to_dict()
    assert sc.SpectralReport.from_dict(reports[0].to_dict()).to_dict() == reports[0].to_dict()
    with pytest.raises(sc.ReportError):
        other = CurvatureProblem(network.gradient, network.init(1), BATCHES, weight=length)
        sc.measure(other, top_k=4, resume=tmp_path / "run.journal")


def test_layers_of_names_that_agree_are_not_lost():
    params = {"a": np.ones((3, 4)), "a.weight": np.ones((4, 5)), "e.weight": np.ones((2, 3, 4)),
              "e.part1": np.ones((3, 3))}  # fmt: skip
    problem = NumpyProblem(lambda p, batch: p, params, [X], matrices={"e.weight": "stack"},
                           weight=len)  # fmt: skip
    found = {layer.name: (layer.parameter, layer.index) for layer in problem.layers()}
    assert found == {
        "a": ("a", 0), "a.weight": ("a.weight", 0), "e.part0": ("e.weight", 0),
        "e.part1_": ("e.weight", 1), "e.part1": ("e.part1", 0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({}, "own"),
        ({"method": "differences"}, "differences"),
        ({"method": "complex-step"}, "complex-step"),
    ],
)
def test_what_certificates_call_the_way_to_one_layer(options, way):
    """Where it is chosen layer by layer, no one name is right."""
    problem = CurvatureProblem(lambda params: dict(params), {"w": np.eye(3)}, **options)
    assert problem.curvature_engine == way
