"""The columns engine against one layer at a time, its certificates, and how often JAX compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax_networks import CASES, Numbers, cross_entropy, squared_error
from jax_oracle import dense, directions, problem, quadratic_forms

import spectral_core as sc
from spectral_backends.jax import CurvatureProblem
from spectral_backends.jax.engines import setting
from spectral_backends.jax.engines.forward_mode import engine as forward_mode
from spectral_backends.jax.jaxprs.linearity import find_curvature
from spectral_core.curvature.certificate import LayerCurvature
from spectral_core.errors import InputError, LayerError


def smooth(x):
    """Smooth and close to a ReLU."""
    return jnp.where(x > 0, x + 1e-2 * x**2, 0)


def made(name):
    case = dense(name)[0]
    given = {layer: directions(told[1], 2) for layer, told in case.layers.items()}
    return case, problem(name), given


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("name", CASES)
def test_columns_are_exact_or_say_why_not(name, kind):
    case, made_problem, given = made(name)
    gradients = made_problem.gradients(list(given))
    found = list(made_problem.layer_curvatures(given, kind, engine="columns"))
    refused = {f.layer: f.reason for f in found if isinstance(f, LayerError)}
    nonlinear = set(case.layers) - set(case.flat) if kind == "hessian" else set()
    assert set(refused) == nonlinear | set(case.unprobed)
    assert all(word in refused[layer] for layer, word in case.unprobed.items())
    for finding in found:
        if isinstance(finding, LayerCurvature):
            u, v = given[finding.name]
            expected, size = quadratic_forms(name, finding.name, u, v, kind)
            np.testing.assert_allclose(finding.values, expected, rtol=0, atol=1e-12 * size)
            slopes = np.einsum("mk,mn,nk->k", u, gradients[finding.name], v)
            np.testing.assert_allclose(finding.derivative, slopes, rtol=0, atol=1e-11)
            assert finding.certificate.piecewise_linear is (kind == "hessian")


def test_what_is_done_does_not_change_the_others():
    _, cnn, given = made("cnn")
    whole = {f.name: f for f in cnn.layer_curvatures(given)}
    rest = {f.name: f for f in cnn.layer_curvatures(given, done=["0", "2"])}
    assert set(rest) == {"1.group0", "1.group1"}
    for name, finding in rest.items():
        np.testing.assert_array_equal(finding.values, whole[name].values)
        assert finding.certificate == whole[name].certificate


def test_what_is_done_does_not_change_the_probe_of_the_others(monkeypatch):
    """A measurement that is resumed writes the certificates of one that was not stopped."""
    new = Numbers(6)
    params = [new(4, 6), new(6, 5), new(5, 3)]
    batch = (new(8, 4), new(8, 3))

    def forward(p, x):
        for w in p[:2]:
            x = x @ w
            x = x + 1e-16 * x**2  # a second-order part within rounding
        return x @ p[2]

    monkeypatch.setattr(setting, "find_curvature", lambda *_: {})
    linear = CurvatureProblem((forward, squared_error), params, [batch])
    given = {"0": directions((6, 4)), "1": directions((5, 6)), "2": directions((3, 5))}
    whole = {f.name: f.certificate for f in linear.layer_curvatures(given, engine="columns")}
    assert 0 < whole["1"].second_order < whole["1"].tolerance
    rest = list(linear.layer_curvatures(given, engine="columns", done=["0"]))
    assert {f.name: f.certificate for f in rest} == {name: whole[name] for name in "12"}


@pytest.mark.parametrize("engine", ["monte-carlo"])
def test_engines_of_other_backends_are_refused_by_name(engine):
    _, mlp, given = made("mlp")
    with pytest.raises(InputError, match=f"{engine}.*'columns'"):
        mlp.layer_curvatures(given, engine=engine)


def test_measure_takes_the_columns_for_a_piecewise_linear_network():
    report = sc.measure(problem("cnn"), top_k=8, decompose=True, progress=False)
    assert not report.skipped
    for spectrum in report.values():
        assert spectrum.certificate.engine == "columns"
        assert spectrum.certificate.derivative_error < 1e-12
        np.testing.assert_allclose(spectrum.ggn, spectrum.curvature)
    assert abs(report["0"].decomposition.closure) < 1e-10


@pytest.mark.parametrize(("activation", "engine"), [(jax.nn.relu, "columns"), (smooth, "tangents")])
def test_samples_fitted_to_rounding_do_not_hide_what_the_network_is(
    activation, engine, monkeypatch
):
    """Their loss has neither slope nor curvature, and 0/0 tells nothing of the network."""
    new = Numbers(5)
    params = [new(4, 6), new(6, 3)]
    x, y = new(16, 4), new.labels(3, 16)

    def forward(p, x):
        z = activation(x @ p[0]) @ p[1]
        fitted = jnp.arange(len(z))[:, None] < 2
        return jnp.where(fitted, z + 1e4 * jax.nn.one_hot(y[: len(z)], 3), z)

    # As if the reading of the jaxpr had missed it.
    monkeypatch.setattr(setting, "find_curvature", lambda *_: {})
    monkeypatch.setattr(forward_mode, "COMPILING", {"cpu": 0.0})
    made_problem = CurvatureProblem((forward, cross_entropy), params, [(x, y)])
    given = {"0": directions((6, 4), 4)}
    (finding,) = made_problem.layer_curvatures(given)
    assert finding.certificate.engine == engine
    alone = made_problem.curvatures("0", *given["0"])
    np.testing.assert_allclose(finding.values, alone, rtol=1e-9)


@pytest.mark.parametrize(
    ("function", "nonlinear"),
    [
        (lambda w, x: jax.nn.relu(x @ w), False),
        (lambda w, x: jnp.where(x @ w > 0, x @ w, 0.1 * (x @ w)), False),
        (lambda w, x: jnp.sort(jnp.abs(x @ w), axis=-1)[:, :2], False),
        (lambda w, x: jnp.clip(x @ w, -1, 1) * (x @ w > 0), False),
        (lambda w, x: x @ w * lax.stop_gradient(x @ w), False),
        (lambda w, x: jnp.sign(x @ w) + x @ w / 3, False),
        (lambda w, x: jnp.linalg.norm(x @ w, axis=-1), True),
        (lambda w, x: (x @ w) * (x @ w), True),
        (lambda w, x: 1 / (x @ w), True),
        (lambda w, x: jax.nn.gelu(x @ w), True),
        (lambda w, x: x @ w @ w, True),
        (lambda w, x: jax.nn.softmax(x @ w), True),
        (lambda w, x: lax.scan(lambda c, _: (jax.nn.relu(c @ w), None), x, None, 2)[0], True),
        (lambda w, x: lax.cond(x.sum() > 0, lambda a: a, jnp.sin, x @ w), True),
        (lambda w, x: lax.cond(x.sum() > 0, lambda a: a, jnp.abs, x @ w), False),
        (lambda w, x: lax.scan(lambda c, a: (c + a, c), 0 * x[0] @ w, x @ w)[1], False),
        (lambda w, x: lax.scan(lambda c, a: (c * a, c), 1 + 0 * x[0] @ w, x @ w)[1], True),
    ],
)
def test_linearity_is_read_off_the_jaxpr(function, nonlinear):
    w, x = jnp.ones((3, 3)), jnp.ones((4, 3))
    found = find_curvature(jax.make_jaxpr(function)(w, x), 1)
    assert bool(found) is nonlinear


def test_a_scan_that_uses_a_block_twice_is_nonlinear_in_it():
    """x → W x twice within one iteration; once in each is linear in every block."""
    w, x = jnp.ones((2, 3, 3)), jnp.ones((4, 3))

    def scan(times):
        def body(x, w):
            for _ in range(times):
                x = jax.nn.relu(x @ w)
            return x, None

        return jax.make_jaxpr(lambda w, x: lax.scan(body, x, w)[0])(w, x)

    assert not find_curvature(scan(1), 1)
    assert find_curvature(scan(2), 1) == {0: "dot_general"}


def test_samples_that_meet_are_seen():
    """Batch statistics let each sample's outputs depend on every sample."""
    new = Numbers(7)
    params, x, y = {"w": new(4, 5), "head": new(5, 3)}, new(6, 4), new.labels(3, 6)

    def forward(p, x):
        hidden = x @ p["w"]
        return (hidden - hidden.mean(0)) @ p["head"]

    problem = CurvatureProblem((forward, cross_entropy), params, [(x, y)])
    given = {"w": (new(5, 9), new(4, 9))}
    (finding,) = problem.layer_curvatures(given, engine="columns")
    assert "meet" in finding.reason
    (finding,) = problem.layer_curvatures(given)
    assert finding.certificate.engine == "double-backward" and "meet" in finding.certificate.reason


@pytest.mark.parametrize("axes", ["flattened", "flattened, time first"])
def test_samples_are_found_on_any_axis(axes):
    new = Numbers(8)
    params, x, y = {"w": new(4, 5), "head": new(5, 3)}, new(6, 2, 4), new(6, 3)

    def forward(p, x):
        if axes == "flattened":
            hidden = (x.reshape(-1, 4) @ p["w"]).reshape(len(x), 2, 5)
        else:
            moved = jnp.swapaxes(x, 0, 1).reshape(-1, 4)
            hidden = (moved @ p["w"]).reshape(2, -1, 5).swapaxes(0, 1)
        return (jax.nn.relu(hidden).sum(1)) @ p["head"]

    problem = CurvatureProblem((forward, squared_error), params, [(x, y)])
    u, v = new(5, 2), new(4, 2)
    (finding,) = problem.layer_curvatures({"w": (u, v)}, engine="columns")
    np.testing.assert_allclose(finding.values, problem.curvatures("w", u, v), rtol=1e-11)
    reduced = problem.kronecker_factors(["w"], kfac_approx="reduce")["w"]
    rows = np.asarray(x).mean(1)
    np.testing.assert_allclose(reduced.input_covariance, rows.T @ rows / 6, rtol=1e-11)


def test_everything_works_in_single_precision_alone():
    """As JAX comes, without float64: the numbers are those of float64 to single rounding."""
    _, cnn, given = made("cnn")
    expected = {name: quadratic_forms("cnn", name, *d, "hessian") for name, d in given.items()}
    factor = np.asarray(cnn.kronecker_factors(["0"])["0"].output_covariance)
    jax.config.update("jax_enable_x64", False)
    single = CASES["cnn"]()
    alone = CurvatureProblem((single.forward, single.loss), single.params, single.batches)
    for finding in alone.layer_curvatures(given, engine="columns"):
        assert finding.values.dtype == jnp.float32
        values, size = expected[finding.name]
        np.testing.assert_allclose(finding.values, values, rtol=0, atol=1e-5 * size)
    found = alone.kronecker_factors(["0"])["0"].output_covariance
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, factor, rtol=0, atol=1e-5 * factor.max())


class Compilations:
    """Counts what JAX compiles and traces."""

    def __init__(self):
        self.count = self.calls = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, duration, **_):
        self.count += event.endswith("backend_compile_duration")


def test_nothing_is_compiled_or_traced_again():
    """Neither for another batch of the same shape, nor for another block, nor in a second pass."""
    new = Numbers(9)
    calls = []
    params = {"blocks": new(4, 3, 3), "head": new(3, 2)}

    def forward(p, x):
        calls.append(x.shape)
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["blocks"])
        return x @ p["head"]

    def batches(count):
        return [(new(4, 3), new(4, 2)) for _ in range(count)]

    u, v = new(3, 2), new(3, 2)

    def everything(problem, blocks):
        problem.gradients(["head"])
        for block in range(blocks):
            problem.curvatures(f"blocks.{block}", u, v)
            problem.curvatures(f"blocks.{block}", u, v, "ggn")
        problem.kronecker_factors(["blocks.0", "head"])

    few = CurvatureProblem((forward, squared_error), params, batches(2))
    traced = len(calls)
    everything(few, 1)  # warms up the small operations that JAX keeps compiled
    listener = Compilations()
    first = CurvatureProblem((forward, squared_error), params, batches(2))
    everything(first, 1)
    once = listener.count
    listener.count = 0
    second = CurvatureProblem((forward, squared_error), params, batches(5))
    everything(second, 4)
    assert listener.count == once > 0
    listener.count = 0
    everything(second, 4)
    assert listener.count == 0
    assert traced == 1 and len(calls) == 3
