"""Directions by the two decompositions, and curvatures held against the gradient."""

import tracemalloc
from dataclasses import replace

import array_api_compat
import numpy as np
import pytest

import spectral_core as sc
from spectral_core.curvature.certificate import Certificate, LayerCurvature
from spectral_core.curvature.engine import CurvatureRequest
from spectral_core.curvature.problem import KroneckerFactors, LayerInfo
from spectral_core.measuring.curvature_source import _tolerance, curvatures_of
from spectral_core.measuring.directions import _subspace_iteration, top_directions


def graded(m, n, seed=0):
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((m, min(m, n))))
    v, _ = np.linalg.qr(rng.standard_normal((n, min(m, n))))
    return u * np.arange(1.0, min(m, n) + 1) ** -1.1 @ v.T


NOTES = {
    "rank": (np.diag([3.0, 2, 1, 0, 0]), "window cut to 3 of 4 directions by the gradient's numerical rank"),
    "side": (np.diag([3.0, 2, 1]), "window cut to 3 of 4 directions by the smaller side"),
    "rounding": (
        np.diag([1.0, 1e-16, 0]),
        "window cut to 1 of 4 directions by the gradient's numerical rank",
    ),
    "both": (
        np.diag([2.0, 2, 0, 0, 0]),
        "window cut to 2 of 4 directions by the gradient's numerical rank",
        "singular values tied to rounding after rank 1: directions inside a tie are arbitrary",
    ),
    "tied": (
        np.diag([3.0, 2, 2, 2, 1]),
        "singular values tied to rounding after rank 2, 3: directions inside a tie are arbitrary",
    ),
}  # fmt: skip


def test_a_gradient_of_rank_one_has_one_direction():
    found = top_directions(LayerInfo("w", "linear", (3, 3)), np.diag([2.0, 0, 0]), 1)
    assert found.sigma == [2.0] and not found.notes


def test_how_many_values_are_not_finite_is_said():
    gradient = np.asarray([[np.nan, 1.0], [np.inf, -np.inf]])
    with pytest.raises(sc.LayerError) as caught:
        top_directions(LayerInfo("w", "linear", (2, 2)), gradient, 1)
    assert caught.value.layer == "w" and str(caught.value) == (
        "layer 'w': its gradient holds 3 NaN or infinite values; look for a division by zero, a "
        "square root at zero or an overflow on the way to this layer."
    )


@pytest.mark.parametrize("name", NOTES)
def test_what_a_window_says_of_itself(name):
    gradient, *notes = NOTES[name]
    layer = LayerInfo("w", "linear", gradient.shape)
    assert list(top_directions(layer, gradient, 4).notes) == notes


def test_a_gradient_of_zeros_names_its_layer():
    with pytest.raises(sc.LayerError) as caught:
        top_directions(LayerInfo("w", "linear", (2, 2)), np.zeros((2, 2)), 1)
    assert caught.value.layer == "w" and "its gradient is zero on these data" in str(caught.value)


@pytest.mark.parametrize(("m", "n"), [(300, 200), (150, 400)])
def test_randomized_directions_are_as_good_as_stated(m, n):
    gradient = graded(m, n)
    layer = LayerInfo("w", "linear", (m, n))
    exact, fast = (top_directions(layer, gradient, 20, svd) for svd in ("exact", "randomized"))
    (note,) = fast.notes
    stated = float(note.split("within ")[1].split()[0])
    residual = gradient @ fast.v - fast.u * fast.sigma
    relative = np.max(np.linalg.norm(residual, axis=0) / fast.sigma)
    assert stated == pytest.approx(relative, rel=0.05)  # of two digits
    true = np.linalg.svd(gradient, compute_uv=False)
    nearest = np.abs(fast.sigma[:, None] - true).min(1) / fast.sigma
    assert nearest.max() <= stated < 0.05
    np.testing.assert_allclose(fast.sigma[:10], exact.sigma[:10], rtol=1e-6)
    np.testing.assert_allclose(exact.sigma, true[:20], rtol=1e-13)
    assert np.max(np.abs(fast.sigma - exact.sigma)) > 1e-12  # found in the other way
    default = top_directions(layer, gradient, 20)
    np.testing.assert_array_equal(default.sigma, exact.sigma)
    for side in (fast.u, fast.v):
        np.testing.assert_allclose(side.T @ side, np.eye(20), atol=1e-12)
    assert not exact.notes


@pytest.mark.parametrize("top_k", [13, 20])
def test_small_sides_are_decomposed_exactly(top_k):
    layer = LayerInfo("w", "linear", (40, 25))
    fast = top_directions(layer, graded(40, 25), top_k, "randomized")
    exact = top_directions(layer, graded(40, 25), top_k)
    np.testing.assert_array_equal(fast.sigma, exact.sigma)
    assert not fast.notes


def test_randomized_directions_say_what_else_is_to_be_said():
    gradient = graded(60, 50)[:, :3] @ np.ones((3, 1)) @ np.ones((1, 50))
    cut, randomized = top_directions(
        LayerInfo("w", "linear", (60, 50)), gradient, 5, "randomized"
    ).notes
    assert cut == "window cut to 1 of 5 directions by the gradient's numerical rank"
    assert randomized.startswith("randomized singular vectors")


def test_randomized_directions_are_the_same_each_time():
    layer, gradient = LayerInfo("w", "linear", (90, 70)), graded(90, 70)
    one, other = (top_directions(layer, gradient, 8, "randomized") for _ in range(2))
    for name in ("u", "sigma", "v"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.notes == other.notes


@pytest.mark.not_in("device")  # whose singular values have no way to the host
@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_directions_are_of_the_gradients_kind(xp, svd):
    gradient = xp.array(graded(60, 50))
    found = top_directions(LayerInfo("w", "linear", (60, 50)), gradient, 5, svd)
    for side, length in ((found.u, 60), (found.v, 50)):
        xp.check_kind(side, gradient)
        assert tuple(side.shape) == (length, 5)
    assert type(found.sigma) is np.ndarray and found.sigma.dtype == np.float64
    np.testing.assert_allclose(found.sigma, np.arange(1.0, 6) ** -1.1, rtol=1e-4)


def test_subspaces_are_found_on_the_gradients_device_in_its_precision():
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    gradient = strict.asarray(graded(60, 50).astype(np.float32), device=device)
    for found in _subspace_iteration(strict, gradient, 17):
        assert found.device == device and found.dtype == strict.float32


@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_directions_take_no_square_of_the_wider_side(svd):
    """Layers are thousands wide."""
    gradient = np.random.default_rng(0).standard_normal((60, 4000))
    tracemalloc.start()
    top_directions(LayerInfo("w", "linear", (60, 4000)), gradient, 5, svd)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * gradient.nbytes < 4000**2


class Quadratic:
    """``L = ½ <W − 1, A (W − 1) B>`` with a known Hessian, one layer at a time."""

    def __init__(self):
        rng = np.random.default_rng(1)
        self.a = np.diag(rng.uniform(1, 2, 30))
        self.b = np.diag(rng.uniform(1, 2, 20))

    def layers(self):
        return [LayerInfo("w", "linear", (30, 20))]

    def skipped(self):
        return {}

    def describe(self):
        return {"backend": "test"}

    def gradients(self, layers):
        return {"w": 40 * graded(30, 20)}

    def curvatures(self, layer, u, v, kind="hessian"):
        return np.sum(u * (self.a @ u), 0) * np.sum(v * (self.b @ v), 0)

    def kronecker_factors(self, layers, **options):
        raise AssertionError


def test_directions_are_found_in_the_way_asked_for():
    (note,) = sc.measure(Quadratic(), top_k=5, svd="randomized")["w"].notes
    assert note.startswith("randomized singular vectors")
    assert not sc.measure(Quadratic(), top_k=5)["w"].notes


class Overlooking(Quadratic):
    """Its engine misses a use of the weight: values and derivatives are those of half of it."""

    off = 0.5

    def layer_curvatures(
        self, directions, kind="hessian", *, engine, mc_samples, done, progress_callback
    ):
        progress_callback("w")
        (u, v) = directions["w"]
        xp = array_api_compat.array_namespace(u)
        slopes = xp.sum(u * (self.gradients(["w"])["w"] @ v), axis=0)
        values = self.off * self.curvatures("w", u, v)
        certificate = Certificate("tangents")
        yield LayerCurvature("w", values, certificate, derivative=self.off * slopes)


def test_an_overlooked_use_is_noticed():
    expected = sc.measure(Quadratic(), top_k=5)["w"]
    found = sc.measure(Overlooking(), top_k=5)["w"]
    assert found.certificate.engine == "own"
    assert found.certificate.reason == (
        "engine 'tangents' overlooked a use of the weight: derivatives along D_k are off by 0.5 σ_1"
    )
    np.testing.assert_array_equal(found.curvature, expected.curvature)
    right = Overlooking()
    right.off = 1.0
    assert sc.measure(right, top_k=5)["w"].certificate.engine == "tangents"
    assert sc.measure(right, top_k=5)["w"].certificate.derivative_error < 1e-12


def test_passes_may_differ_by_twice_the_rounding_of_gradients():
    window = top_directions(LayerInfo("w", "linear", (3, 3)), np.diag([4.0, 2.0, 1.0]), 3)
    for rounding, tolerance in (([0.0, 0.1, 0.2], 0.1), ([1e-12] * 3, 2.0**-26), (None, 2.0**-26)):
        given = None if rounding is None else np.asarray(rounding)
        assert _tolerance(replace(window, rounding=given), None) == pytest.approx(tolerance)
    assert _tolerance(window, "float32") == 2.0**-11.5


@pytest.mark.parametrize(
    ("named", "told"), [(None, "own"), ("power series", "power series"), ("", "own"), (5, "own")]
)
def test_a_problem_that_computes_one_layer_at_a_time_names_its_own_way(tmp_path, named, told):
    problem = Quadratic()
    if named is not None:
        problem.curvature_engine = named
    report = sc.measure(problem, top_k=5)
    assert report["w"].certificate == Certificate(told)
    report.save(tmp_path / "r.json")
    assert sc.SpectralReport.load(tmp_path / "r.json")["w"].certificate.engine == told


class Two(Overlooking):
    """Layers alike, of which the engine overlooks a use of the first."""

    def layers(self):
        (layer,) = super().layers()
        return [replace(layer, name=name) for name in ("w", "x")]

    def gradients(self, layers):
        return dict.fromkeys(layers, super().gradients(layers)["w"])

    def layer_curvatures(self, directions, *arguments, **options):
        for name, off in (("w", 0.5), ("x", 1.0)):
            self.off = off
            for found in super().layer_curvatures({"w": directions[name]}, *arguments, **options):
                yield replace(found, name=name)


def test_a_layer_that_is_measured_again_leaves_the_next_as_it_is():
    report = sc.measure(Two(), top_k=5)
    engines = [report[name].certificate.engine for name in ("w", "x")]
    assert engines == ["own", "tangents"]
    np.testing.assert_allclose(report["w"].curvature, report["x"].curvature, rtol=1e-12)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"engine": "monte-carlo", "mc_samples": 2}, "monte-carlo, 2 draws"),
        ({"engine": "monte-carlo"}, "monte-carlo, 64 draws"),
        ({"engine": "tangents", "mc_samples": 8}, "tangents"),
    ],
)
def test_draws_belong_to_the_engine_that_draws(chosen, told):
    report = sc.measure(Overlooking(), top_k=5, **chosen)
    assert report.provenance.engine == told


def test_twenty_directions_are_the_default():
    report = sc.measure(Quadratic())
    assert report.provenance.top_k == len(report["w"].sigma) == 20


class Factored(Quadratic):
    """Its Gauss-Newton part, half of the Hessian, is what its Kronecker factors say."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def curvatures(self, layer, u, v, kind="hessian"):
        self.asked.append(kind)
        return (2 if kind == "hessian" else 1) * super().curvatures(layer, u, v)

    def kronecker_factors(self, layers, **options):
        return {"w": KroneckerFactors(self.a, self.b)}


@pytest.mark.parametrize(
    ("kind", "ratio", "asked"), [("hessian", 2, ["hessian", "ggn"]), ("ggn", 1, ["ggn"])]
)
def test_gauss_newton_curvatures_are_asked_for_once(kind, ratio, asked):
    problem = Factored()
    found = sc.measure(problem, top_k=5, curvature=kind, decompose=True)["w"]
    assert problem.asked == asked
    np.testing.assert_allclose(found.ggn, found.alignment.kron)
    np.testing.assert_allclose(found.curvature, ratio * found.ggn)


def directions_of(windows):
    return {name: (window.u, window.v) for name, window in windows.items()}


def test_what_is_computed_is_told_and_what_is_done_is_left_out():
    problem = Quadratic()
    (layer,) = problem.layers()
    windows = {"w": top_directions(layer, graded(30, 20), 5)}
    heard = []
    request = CurvatureRequest(directions_of(windows), progress_callback=heard.append)
    (found,) = curvatures_of(problem, request, windows)
    assert heard == ["w"] and found.certificate == Certificate("own")
    assert list(curvatures_of(problem, replace(request, done=("w",)), windows)) == []
    assert heard == ["w"]


def test_an_engine_without_derivatives_is_believed():
    class Silent(Overlooking):
        def layer_curvatures(self, *arguments, **options):
            for found in super().layer_curvatures(*arguments, **options):
                yield replace(found, derivative=None)

    certificate = sc.measure(Silent(), top_k=5)["w"].certificate
    assert certificate.engine == "tangents" and np.isnan(certificate.derivative_error)


def test_the_kind_asked_for_is_measured_again():
    class Kinds(Overlooking):
        def curvatures(self, layer, u, v, kind="hessian"):
            self.kind = kind
            return super().curvatures(layer, u, v)

    problem = Kinds()
    sc.measure(problem, top_k=5, curvature="ggn")
    assert problem.kind == "ggn"


def test_values_that_are_not_finite_are_measured_again():
    problem = Overlooking()
    problem.off = np.nan
    certificate = sc.measure(problem, top_k=5)["w"].certificate
    assert certificate.engine == "own"
    assert certificate.reason == "engine 'tangents' met values that are not finite"


class Many(Quadratic):
    """What its engine finds of each layer is given; one by one, all curvatures are 1, or 2."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def layer_curvatures(self, directions, kind="hessian", **options):
        self.asked = (list(directions), kind, options)
        yield from self.found

    def curvatures(self, layer, u, v, kind="hessian"):
        return np.full(2, 2.0 if kind == "ggn" else 1.0)


def test_layers_that_an_engine_fails_on_are_measured_by_themselves():
    layers = [LayerInfo(name, "linear", (30, 20)) for name in "abcd"]
    window = top_directions(layers[0], 3 * graded(30, 20), 2)
    ones, sigma = np.ones(2, dtype=np.float32), window.sigma
    problem = Many([
        sc.LayerError("a", "has none."),
        LayerCurvature("b", np.array([1.0, np.nan]), Certificate("columns"), derivative=sigma),
        LayerCurvature("c", ones, Certificate("tangents"), derivative=sigma / 2),
        LayerCurvature("d", ones, Certificate("tangents"), 3 * ones, sigma + np.array([0, 3e-9])),
    ])  # fmt: skip
    tell, windows = [].append, {layer.name: window for layer in layers}
    request = CurvatureRequest(
        directions_of(windows), "ggn", "tangents", {"mc_samples": 6}, ("e",), tell
    )
    a, b, c, d = curvatures_of(problem, request, windows)
    options = {"engine": "tangents", "mc_samples": 6, "done": ("e",), "progress_callback": tell}
    assert problem.asked == (list("abcd"), "ggn", options)
    assert a is problem.found[0]
    reasons = {
        "b": "engine 'columns' met values that are not finite",
        "c": "engine 'tangents' overlooked a use of the weight: derivatives along D_k are off by "
        "0.5 σ_1",
    }
    for found in (b, c):
        assert found.certificate == Certificate("own", reason=reasons[found.name])
        assert found.values.tolist() == found.ggn.tolist() == [2, 2]
    assert d.certificate.engine == "tangents"
    assert d.certificate.derivative_error == pytest.approx(1e-9, rel=1e-5)
    assert d.values.tolist() == [1, 1] and d.ggn.tolist() == [3, 3]
    assert d.values.dtype == d.ggn.dtype == np.float64


def test_values_of_another_shape_name_the_problem():
    for kind in (Quadratic, Overlooking):
        problem = type("Short", (kind,), {"curvatures": lambda *_: np.ones(4)})()
        with pytest.raises(sc.InputError, match="a Short returned curvatures of float64 and shape"):
            sc.measure(problem, top_k=5)


def test_a_problem_without_engines():
    with pytest.raises(sc.InputError, match="a Quadratic computes one layer at a time"):
        sc.measure(Quadratic(), engine="columns")
    with pytest.raises(sc.InputError, match="engine: 'quick' is unknown"):
        sc.measure(Quadratic(), engine="quick")
    with pytest.raises(sc.InputError, match="svd: 'thin' is unknown"):
        sc.measure(Quadratic(), svd="thin")
