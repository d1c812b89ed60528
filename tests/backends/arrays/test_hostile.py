"""What would give a wrong number is refused, with a sentence that says what to change."""

import numpy as np
import pytest

import spectral_core as sc
from spectral_backends.arrays import CurvatureProblem as AnyProblem
from spectral_backends.arrays import DenseNetwork, RecordedProblem, Rows
from spectral_backends.numpy import CurvatureProblem

RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((20, 4)), RNG.standard_normal((20, 3))
LABELS = np.arange(20) % 3
W = {"a": RNG.standard_normal((5, 4)), "b": RNG.standard_normal((3, 5))}


def network(params, x, t, sends_back=None, activate=np.tanh, slope=None):
    """½ Σ (b·φ(a x) − t)² / N, with one step of it exchanged."""
    z = x @ params["a"].T
    h = activate(z)
    delta = (h @ params["b"].T - t) / len(x)
    if sends_back:
        delta = sends_back(delta)
    back = (delta @ params["b"]) * (1 - h * h if slope is None else slope(z))
    return {"a": back.T @ x, "b": delta.T @ h}


def by_sorting(params):
    # Loss on sorted outputs: the strict library sorts no complex numbers, NumPy does it well.
    import array_api_strict as xp

    z = xp.asarray(X) @ params["a"].T
    s = xp.sort(z, axis=1)
    order = xp.argsort(xp.argsort(z, axis=1), axis=1)
    delta = xp.take_along_axis(s * s * s, order, axis=1)
    return {"a": delta.T @ xp.asarray(X)}


def by_maximum(params):
    import array_api_strict as xp

    z = xp.asarray(X) @ params["a"].T
    h = xp.maximum(z, xp.zeros_like(z))
    return {"a": (h * h).T @ xp.asarray(X)}


def filled(z):
    out = np.zeros(z.shape)  # float64, whatever z is
    out[...] = np.tanh(z)
    return out


UNSAFE = {
    "abs": lambda p: network(p, X, T, activate=np.abs, slope=np.sign),
    "conj": lambda p: network(p, X, T, sends_back=np.conj),
    "real": lambda p: network(p, X, T, activate=lambda z: np.tanh(z.real)),
    "real of the answer": lambda p: {k: g.real for k, g in network(p, X, T).items()},
    "cast": lambda p: network(p, X, T, activate=lambda z: np.tanh(z.astype(np.float64))),
    "array without dtype": lambda p: network(p, X, T, activate=filled),
    "norm": lambda p: network({"a": p["a"] / np.linalg.norm(p["a"]), "b": p["b"]}, X, T),
    "vdot": lambda p: {
        "a": network(p, X, T)["a"] * np.vdot(p["a"], p["a"]), "b": network(p, X, T)["b"]
    },
    "function of math": lambda p: network(
        p, X, T, activate=np.vectorize(lambda z: __import__("math").tanh(z))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_what_is_not_analytic_is_refused_by_the_complex_step(name):
    problem = CurvatureProblem(UNSAFE[name], W, method="complex-step")
    with pytest.raises(sc.SpectralError, match="complex") as caught:
        sc.measure(problem, "a", top_k=3)
    for word in ("abs", "conj", ".real", "sorting", "max", "casts"):
        assert word in str(caught.value)


@pytest.mark.parametrize("function", [by_sorting, by_maximum])
def test_ordering_complex_numbers_is_refused(function):
    xp = pytest.importorskip("array_api_strict")
    params = {"a": xp.asarray(W["a"])}
    with pytest.raises(sc.SpectralError, match="does not take complex parameters"):
        sc.measure(AnyProblem(function, params, method="complex-step"), top_k=3)


@pytest.mark.parametrize("name", ["conj", "array without dtype", "vdot"])
def test_auto_falls_back_on_differences_and_says_so(name):
    report = sc.measure(CurvatureProblem(UNSAFE[name], W), "a", top_k=3)
    certificate = report["a"].certificate
    assert certificate.engine == "differences" and "conj" in certificate.reason
    safe = {
        "conj": lambda p: network(p, X, T),
        "array without dtype": lambda p: network(p, X, T),
        "vdot": lambda p: {
            "a": network(p, X, T)["a"] * np.sum(p["a"] * p["a"]), "b": network(p, X, T)["b"]
        },
    }[name]  # fmt: skip
    wanted = sc.measure(CurvatureProblem(safe, W, method="complex-step"), "a", top_k=3)["a"]
    np.testing.assert_allclose(report["a"].curvature, wanted.curvature, rtol=1e-9)
    error = np.abs(report["a"].curvature - wanted.curvature)
    assert np.all(error <= certificate.standard_error + 1e-13)


def test_safe_code_passes_in_spite_of_kinks():
    def relu(params):
        return network(
            params, X, T, activate=lambda z: np.where(z.real > 0, z, 0),
            slope=lambda z: (z.real > 0).astype(z.dtype),
        )  # fmt: skip

    report = sc.measure(CurvatureProblem(relu, W), top_k=3)
    assert {s.certificate.engine for s in report.values()} == {"complex-step"}


def test_safe_code_passes_where_the_network_fits_its_data():
    # Gradients of 1e-11 are left over from 1 − p: their rounding is that of 1.
    net = DenseNetwork((4, 5, 3), "tanh")
    params = net.init(0)
    params["head.weight"] = 40 * params["head.weight"]
    y = np.argmax(net.outputs(params, X), axis=1)
    margins = np.sort(net.outputs(params, X), axis=1)
    sure = margins[:, -1] - margins[:, -2] > 25
    batch = X[sure], y[sure]
    gradient = net.gradient(params, batch)
    assert 0 < np.linalg.norm(gradient["0.weight"]) < 1e-9 and sure.sum() > 2
    problem = CurvatureProblem(net.gradient, params, [batch], method="complex-step")
    found, wanted = (
        sc.measure(p, "0", top_k=3)["0"] for p in (problem, net.problem(params, [batch]))
    )
    # Both are made of the same 1 − p, which has lost eleven of its sixteen digits.
    np.testing.assert_allclose(found.curvature, wanted.curvature, rtol=1e-2)


def test_differences_across_kinks_are_refused():
    net = DenseNetwork((6, 40, 4), "relu")
    x, y = RNG.standard_normal((300, 6)), RNG.integers(0, 4, 300)
    problem = CurvatureProblem(net.gradient, net.init(0), [(x, y)], method="differences")
    report = sc.measure(problem, top_k=4)
    assert "beyond the tolerance" in report.skipped["0"] and "kinks" in report.skipped["0"]
    assert report["head"].certificate.engine == "differences"  # it is linear in the last weight


@pytest.mark.parametrize("method", ["auto", "differences"])
def test_differences_in_float32_are_refused(method):
    single = {name: array.astype(np.float32) for name, array in W.items()}

    def gradient(params):
        x, t = X.astype(np.float32), T.astype(np.float32)
        return network(params, x, t, sends_back=np.conj)

    with pytest.raises(sc.SpectralError, match="float32 say nothing of curvature.*float64"):
        sc.measure(CurvatureProblem(gradient, single, method=method), top_k=3)


def test_the_complex_step_works_in_float32():
    single = {name: array.astype(np.float32) for name, array in W.items()}
    found = sc.measure(
        CurvatureProblem(lambda p: network(p, X.astype(np.float32), T.astype(np.float32)), single),
        top_k=3,
    )
    wanted = sc.measure(CurvatureProblem(lambda p: network(p, X, T), W), top_k=3)
    for name in ("a", "b"):
        assert found[name].certificate.engine == "complex-step"
        size = np.max(np.abs(wanted[name].curvature))
        np.testing.assert_allclose(found[name].curvature, wanted[name].curvature, atol=1e-5 * size)


def test_a_function_that_writes_to_its_arguments_is_refused():
    def to_params(params, batch):
        params["a"] += 0.1
        return network(params, *batch)

    def to_batch(params, batch):
        x, t = batch
        x -= x.mean()
        return network(params, x, t)

    x = X.copy()
    with pytest.raises(sc.InputError, match="writes to parameter 'a'"):
        CurvatureProblem(to_params, W, [(x, T)])
    with pytest.raises(sc.InputError, match="writes to array 0 of the batch"):
        CurvatureProblem(to_batch, W, [(x, T)])
    before = W["a"].copy()
    CurvatureProblem(lambda p, b: network(p, *b), W, [(X, T)])
    assert np.array_equal(before, W["a"])


def test_parameters_are_copied():
    weights = {name: array.copy() for name, array in W.items()}
    problem = CurvatureProblem(lambda p: network(p, X, T), weights)
    u, v = np.eye(5)[:, :2], np.eye(4)[:, :2]
    before = problem.curvatures("a", u, v)
    weights["a"][...] = 0
    assert np.array_equal(problem.curvatures("a", u, v), before)


def good(params, *batch):
    return network(params, X, T)


REFUSED = {
    "params: a list": (lambda: CurvatureProblem(good, [W["a"]]), "params: a list"),
    "no parameter": (lambda: CurvatureProblem(good, {}), "nothing in it"),
    "integers": (lambda: CurvatureProblem(good, {"a": np.ones((2, 2), int)}), "dtype int"),
    "two types": (
        lambda: CurvatureProblem(good, {"a": W["a"], "b": W["b"].astype(np.float32)}), "several types"
    ),
    "half precision": (
        lambda: CurvatureProblem(good, {"a": W["a"].astype(np.float16)}), "float16 is too coarse"
    ),
    "NaN in params": (
        lambda: CurvatureProblem(good, {"a": W["a"] * np.nan, "b": W["b"]}), "'a' of shape.*NaN"
    ),
    "masked parameters": (
        lambda: CurvatureProblem(good, W | {"a": np.ma.masked_less(W["a"], 0)}),
        "a: a numpy.MaskedArray has masked values",
    ),
    "a masked gradient": (
        lambda: CurvatureProblem(
            lambda p: {k: np.ma.masked_less(g, 0) for k, g in good(p).items()}, W
        ), "gradient: that of 'a': .*masked values",
    ),
    "masked rows": (lambda: Rows(np.ma.masked_less(X, 0)), "inputs: .*masked values"),
    "a masked recorded gradient": (
        lambda: RecordedProblem({"w": Rows(X)}, {"w": np.ma.masked_less(W["a"], 0)}),
        "gradients: .*masked values",
    ),
    "masked data of a network": (
        lambda: DenseNetwork((4, 3)).problem(
            DenseNetwork((4, 3)).init(), [(np.ma.masked_less(X, 0), LABELS)]
        ), "batch: the array of its inputs: .*masked values",
    ),
    "masked labels of a network": (
        lambda: DenseNetwork((4, 3)).problem(
            DenseNetwork((4, 3)).init(), [(X, np.ma.masked_equal(LABELS, 0))]
        ), "batch: the array of its targets: .*masked values",
    ),
    "NaN in data": (
        lambda: CurvatureProblem(good, W, [(X * np.nan, T)]), "array of batch 0, of shape.*NaN"
    ),
    "no layer": (lambda: CurvatureProblem(good, {"a": np.ones(3)}), "none of"),
    "glob": (lambda: CurvatureProblem(good, W, matrices={"c*": "conv"}), "matches none"),
    "spec": (lambda: CurvatureProblem(good, W, matrices={"a": "conv"}), "does not fit"),
    "no function": (lambda: CurvatureProblem(None, W), "cannot be called"),
    "method": (lambda: CurvatureProblem(good, W, method="adjoint"), "method"),
    "tolerance": (lambda: CurvatureProblem(good, W, tolerance=0), "tolerance"),
    "a generator": (lambda: CurvatureProblem(good, W, iter([1])), "exhausted"),
    "an array of batches": (lambda: CurvatureProblem(good, W, X), "an array was passed"),
    "no batch": (lambda: CurvatureProblem(good, W, []), "none with a term"),
    "two batches, no weight": (
        lambda: CurvatureProblem(good, W, [(X, T), (X, T)]), "several batches"
    ),
    "a weight below 0": (
        lambda: CurvatureProblem(good, W, [(X, T)], weight=lambda b: -1), "number of loss terms"
    ),
    "no dict": (lambda: CurvatureProblem(lambda p: 0.0, W), "returned a float"),
    "a list of numbers": (
        lambda: CurvatureProblem(lambda p: {"a": [0.0], "b": p["b"]}, W), "is a list; return arrays"
    ),
    "a missing gradient": (
        lambda: CurvatureProblem(lambda p: {"a": p["a"]}, W), r"nothing for \['b'\]"
    ),
    "a gradient of another shape": (
        lambda: CurvatureProblem(lambda p: {"a": p["a"].T, "b": p["b"]}, W), r"shape \(4, 5\)"
    ),
    "a gradient of another type": (
        lambda: CurvatureProblem(
            lambda p: {k: v.astype(np.float32) for k, v in p.items()}, W
        ), "compute in one type",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(sc.InputError, match=message):
        make()


def test_a_sum_taken_for_a_mean_is_refused():
    def summed(params, batch):
        return {k: len(batch[0]) * g for k, g in network(params, *batch).items()}

    batches = [(X[:12], T[:12]), (X[12:], T[12:])]
    with pytest.raises(sc.InputError, match="do not add up"):
        CurvatureProblem(summed, W, batches, weight=lambda b: len(b[0]))


def test_half_a_batch_that_raises_says_so():
    def fixed(params, batch):
        return network(params, batch[0], batch[1].reshape(12, -1))

    batches = [(X[:12], T[:12]), (X[:12], T[:12])]
    weighted = {"weight": lambda b: len(b[0])}
    with pytest.raises(
        sc.InputError, match=r"weight: .* half of the first batch raises ValueError"
    ):
        CurvatureProblem(fixed, W, batches, **weighted)
    assert CurvatureProblem(fixed, W, batches, check=False, **weighted).layers()


def test_randomness_is_refused():
    generator = np.random.default_rng(0)

    def dropout(params):
        return network(params, X * (generator.random(X.shape) > 0.5), T)

    with pytest.raises(sc.NonDeterministicError, match="changes between two passes"):
        CurvatureProblem(dropout, W)


def test_shuffled_batches_are_refused():
    class Shuffled:
        def __iter__(self):
            order = generator.permutation(20)
            return iter([(X[order[:8]], T[order[:8]]), (X[order[8:]], T[order[8:]])])

    generator = np.random.default_rng(0)
    with pytest.raises(sc.NonDeterministicError, match="shuffled"):
        CurvatureProblem(lambda p, b: network(p, *b), W, Shuffled(), weight=lambda b: len(b[0]))


def test_a_product_that_is_not_that_of_the_gradient_is_refused():
    net = DenseNetwork((4, 5, 3), "tanh", "squared")
    params = net.init(0)

    def summed(layer, direction):
        name = f"{layer}.weight"
        return 20 * net.hessian_product(params, (X, T), {name: direction})[name]

    wrong = CurvatureProblem(lambda p: net.gradient(p, (X, T)), params, hvp=summed)
    with pytest.raises(sc.SpectralError, match="hvp along a random direction is off by"):
        sc.measure(wrong, top_k=3)
    right = CurvatureProblem(
        lambda p: net.gradient(p, (X, T)), params, hvp=lambda *a: summed(*a) / 20
    )
    assert sc.measure(right, top_k=3)["0"].certificate.engine == "hvp"
    shapes = CurvatureProblem(lambda p: net.gradient(p, (X, T)), params, hvp=lambda layer, d: d.T)
    with pytest.raises(sc.InputError, match="hvp: returned shape"):
        sc.measure(shapes, top_k=3)


def test_curvatures_that_are_not_finite_are_skipped():
    net = DenseNetwork((4, 5, 3), "tanh", "squared")
    params = net.init(0)
    right = net.problem(params, [(X, T)])

    def curvature(layer, u, v):
        return right.curvatures(layer, u, v) * (np.nan if layer == "0" else 1.0)

    problem = CurvatureProblem(
        lambda p: net.gradient(p, (X, T)), params, curvature=curvature, check=False
    )
    report = sc.measure(problem, top_k=3)
    assert "NaN or infinite" in report.skipped["0"] and "head" in report


def test_a_curvature_that_is_not_that_of_the_gradient_is_refused():
    weight, a, b = np.ones((3, 4)), np.diag([1.0, 2, 3, 4]), np.diag([1.0, 5, 2])

    def curvature(factor):
        def along(layer, u, v):
            return factor * np.sum(u * (b @ u), axis=0) * np.sum(v * (a @ v), axis=0)

        return along

    def gradient(params):
        return {"w": b @ params["w"] @ a}

    u, v = np.eye(3), np.eye(4)[:, :3]
    right = CurvatureProblem(gradient, {"w": weight}, curvature=curvature(1))
    np.testing.assert_allclose(right.curvatures("w", u, v), [1, 10, 6])
    wrong = CurvatureProblem(gradient, {"w": weight}, curvature=curvature(20))
    with pytest.raises(sc.LayerError, match="curvature along a random direction is off by 0.95"):
        wrong.curvatures("w", u, v)
    trusted = CurvatureProblem(gradient, {"w": weight}, curvature=curvature(20), check=False)
    np.testing.assert_allclose(trusted.curvatures("w", u, v), [20, 200, 120])


def test_a_gradient_that_is_not_finite_is_skipped():
    problem = CurvatureProblem(lambda p: {"a": p["a"] * np.inf, "b": p["b"]}, W, check=False)
    report = sc.measure(problem, top_k=3)
    assert "NaN or infinite" in report.skipped["a"] and report["b"].alpha.exponent is not None


def test_what_there_is_not_is_named():
    problem = CurvatureProblem(good, W)
    with pytest.raises(sc.LayerError, match="without ggn= or rows="):
        problem.curvatures("a", np.eye(5)[:, :1], np.eye(4)[:, :1], "ggn")
    with pytest.raises(sc.LayerError, match="without rows="):
        problem.kronecker_factors(["a"])
    with pytest.raises(sc.InputError, match="there is none of that name"):
        problem.gradients(["c"])
    with pytest.raises(sc.InputError, match=r"pass \(5, K\) and \(4, K\)"):
        problem.curvatures("a", np.eye(4), np.eye(5))
    with pytest.raises(sc.InputError, match="u: .*masked values"):
        problem.curvatures("a", np.ma.masked_equal(np.eye(5), 1), np.eye(4))
    with pytest.raises(sc.InputError, match="automatic differentiation"):
        sc.measure(problem, engine="columns")
    noted = sc.measure(problem, top_k=3, decompose=True)
    assert any("no decomposition" in note for note in noted["a"].notes)


def test_each_library_has_its_own_door():
    torch = pytest.importorskip("torch")
    with pytest.raises(sc.InputError, match="this is the problem for numpy"):
        CurvatureProblem(good, {"a": torch.ones(2, 2)})


def test_directions_of_unequal_number_are_refused_of_recorded_arrays():
    """One v for several u broadcast, and gave numbers for directions that nobody asked for."""
    inputs = np.ones((5, 4))
    rows = Rows(inputs, root_gradients=np.ones((2, 5, 3)))
    problem = RecordedProblem({"w": [rows]}, gradients={"w": np.ones((3, 4))})
    with pytest.raises(sc.InputError, match="u and v have shapes"):
        problem.curvatures("w", np.ones((3, 2)), np.ones((4, 1)), "ggn")
