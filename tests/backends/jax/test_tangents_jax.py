"""Directions sent forward: exact for every network, or left to one layer at a time with the reason."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax_networks import CASES, Numbers, squared_error
from jax_oracle import dense, directions, problem, quadratic_forms

from spectral_backends.jax import CurvatureProblem
from spectral_backends.jax.engines.forward_mode import engine as forward_mode
from spectral_backends.jax.jaxprs.linearity import find_curvature
from spectral_backends.jax.jaxprs.nonlinear_equations import NonlinearEquations
from spectral_core.errors import LayerError


def sent(made_problem, given, kind="hessian", engine="tangents", **options):
    found = made_problem.layer_curvatures(given, kind, engine=engine, **options)
    return {f.layer if isinstance(f, LayerError) else f.name: f for f in found}


@pytest.mark.parametrize("name", CASES)
def test_against_dense_second_derivatives(name):
    """Through jit, remat, scans both ways, vmap, cond and custom_jvp; h, h^GGN and slopes."""
    case, made = dense(name)[0], problem(name)
    given = {layer: directions(told[1], 2) for layer, told in case.layers.items()}
    gradients = made.gradients(list(given))
    found = sent(made, given)
    assert found.keys() == given.keys()
    for layer, (u, v) in given.items():
        finding = found[layer]
        assert not isinstance(finding, LayerError), finding
        assert finding.certificate.engine == "tangents"
        for kind, values in (("hessian", finding.values), ("ggn", finding.ggn)):
            expected, size = quadratic_forms(name, layer, u, v, kind)
            np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-12 * size)
        slopes = np.einsum("mk,mn,nk->k", u, gradients[layer], v)
        np.testing.assert_allclose(finding.derivative, slopes, rtol=1e-10, atol=1e-12)
        share = np.max(np.abs(finding.values / finding.ggn - 1))
        assert finding.certificate.second_order == pytest.approx(share, rel=1e-6, abs=1e-13)
        assert layer not in case.flat or share < 1e-10


def test_gauss_newton_alone_and_what_is_done():
    case, made = dense("mlp")[0], problem("mlp")
    given = {layer: directions(told[1], 3) for layer, told in case.layers.items()}
    first, *rest = given
    whole = {kind: sent(made, given, kind) for kind in ("hessian", "ggn")}
    for layer, finding in whole["ggn"].items():
        np.testing.assert_allclose(finding.values, whole["hessian"][layer].ggn, rtol=1e-12)
        np.testing.assert_array_equal(finding.values, finding.ggn)
    again = sent(made, given, done=[first])
    assert list(again) == rest
    for layer in rest:
        np.testing.assert_array_equal(again[layer].values, whole["hessian"][layer].values)


def test_chunks_change_nothing_but_rounding():
    case = dense("mlp")[0]
    layer, told = next(iter(case.layers.items()))
    given = {layer: directions(told[1], 5)}
    values = [
        sent(
            CurvatureProblem((case.forward, case.loss), case.params, case.batches, chunk_size=size),
            given,
        )[layer].values
        for size in (1, 2, 5)
    ]
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], rtol=1e-12)


def small(forward):
    new = Numbers(9)
    params = {"w": new(4, 5), "head": new(5, 3)}
    return CurvatureProblem((forward, squared_error), params, [(new(6, 4), new(6, 3))])


def test_a_loss_that_does_not_tell_its_outputs():
    new = Numbers(9)
    params, batch = {"w": new(4, 5), "head": new(5, 3)}, (new(6, 4), new(6, 3))

    def forward(p, x):
        return jnp.tanh(x @ p["w"]) @ p["head"]

    def whole(p, batch):
        return squared_error(forward(p, batch[0]), batch[1])

    given = {"w": directions((5, 4))}
    (expected,) = sent(CurvatureProblem((forward, squared_error), params, [batch]), given).values()
    (found,) = sent(CurvatureProblem(whole, params, [batch]), given).values()
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)
    np.testing.assert_allclose(found.derivative, expected.derivative, rtol=1e-12)
    assert found.ggn is None and np.isnan(found.certificate.second_order)


def test_what_cannot_be_sent_forward_is_measured_alone(monkeypatch):
    """A ``custom_vjp`` has no forward derivative."""

    @jax.custom_vjp
    def squared(x):
        return x**2

    squared.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
    made = small(lambda p, x: squared(x @ p["w"]) @ p["head"])
    plain = small(lambda p, x: (x @ p["w"]) ** 2 @ p["head"])
    given = {"w": directions((5, 4))}
    (finding,) = sent(made, given).values()
    assert "forward" in finding.reason and "engine='auto'" in finding.reason
    monkeypatch.setattr(forward_mode, "COMPILING", {})
    monkeypatch.setattr(forward_mode, "COMPILING_ELSEWHERE", 0)
    (finding,) = sent(made, given, engine="auto").values()
    assert finding.certificate.engine == "double-backward"
    assert "forward" in finding.certificate.reason
    (expected,) = sent(plain, given, engine="auto").values()
    assert expected.certificate.engine == "tangents"
    np.testing.assert_allclose(finding.values, expected.values, rtol=1e-10)


def test_short_work_is_not_worth_compiling():
    made = small(lambda p, x: jnp.tanh(x @ p["w"]) @ p["head"])
    (finding,) = sent(made, {"w": directions((5, 4))}, engine="auto").values()
    assert finding.certificate.engine == "double-backward"


FUNCTIONS = [
    lambda w, x: jax.nn.relu(x @ w),
    lambda w, x: jnp.where(x @ w > 0, x @ w, 0.1 * (x @ w)),
    lambda w, x: jnp.sort(jnp.abs(x @ w), axis=-1)[:, :2],
    lambda w, x: jnp.clip(x @ w, -1, 1) * (x @ w > 0),
    lambda w, x: x @ w * lax.stop_gradient(x @ w),
    lambda w, x: jnp.sign(x @ w) + x @ w / 3,
    lambda w, x: jnp.linalg.norm(x @ w, axis=-1),
    lambda w, x: (x @ w) * (x @ w),
    lambda w, x: 1 / (x @ w),
    lambda w, x: jax.nn.gelu(x @ w),
    lambda w, x: x @ w @ w,
    lambda w, x: jax.nn.softmax(x @ w),
    lambda w, x: lax.scan(lambda c, _: (jax.nn.relu(c @ w), None), x, None, 2)[0],
    lambda w, x: lax.scan(lambda c, a: (c + a, c), 0 * x[0] @ w, x @ w)[1],
    lambda w, x: lax.scan(lambda c, a: (c * a, c), 1 + 0 * x[0] @ w, x @ w)[1],
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nonlinear_equations_are_those_with_curvature(function):
    """Two ways to see it that share no code: rules by name, and second derivatives as traced."""
    jaxpr = jax.make_jaxpr(function)(jnp.ones((3, 3)), jnp.ones((4, 3)))
    assert bool(NonlinearEquations(jaxpr).of(0)) == bool(find_curvature(jaxpr, 1))
    assert not NonlinearEquations(jax.make_jaxpr(lambda w, x: jnp.sin(x))(1.0, 2.0)).of(0)
