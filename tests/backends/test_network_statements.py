"""Theory 4, 5.4 and 5.8 on drawn networks in PyTorch and JAX, against NumPy without autograd.

Hidden layers may share their weights over positions, as dense layers on tokens or as convolutions.
"""

import numpy as np
import pytest
from hypothesis import strategies as st
from network_registry import PIECEWISE_LINEAR, problem_of
from networks_in_numpy import Flow
from properties import holds
from strategies import networks, seeds

SHARINGS = ("expand", "reduce")
pytestmark = pytest.mark.not_in("jit", "jit-x32")  # the backends compile by themselves


class Measured:
    """A backend's problem of a drawn network, its results in NumPy."""

    def __init__(self, xp, net, batches=None):
        if xp.library not in ("torch", "jax"):
            pytest.skip("a test of the backends of PyTorch and JAX")
        self.xp, self.net = xp, net
        self.flow = Flow(net, xp.precise, xp.eps)
        self.problem = problem_of(xp.library, net, xp.dtype, batches)
        # Names as the backend gives them; they follow the forward pass.
        self.names = dict(
            zip(net.layers, (layer.name for layer in self.problem.layers()), strict=True)
        )

    def factors(self, layer, **options):
        name = self.names[layer]
        found = self.problem.kronecker_factors([name], **options)[name]
        return [self.numpy(c) for c in (found.output_covariance, found.input_covariance)]

    def gradient(self, layer):
        name = self.names[layer]
        return self.numpy(self.problem.gradients([name])[name])

    def curvatures(self, layer, u, v, kind):
        u, v = (self.xp.array(d) for d in (u, v))
        return self.numpy(self.problem.curvatures(self.names[layer], u, v, kind))

    def numpy(self, array):
        return np.asarray(array.cpu() if hasattr(array, "cpu") else array, dtype=np.float64)


@st.composite
def layers(draw, few=False, **options):
    """A network and one of its layers."""
    net = draw(networks(few, **options))
    return net, draw(st.sampled_from(net.layers))


def repeats(few=False):
    return st.just(2) if few else st.sampled_from([2, 3])


def shared_layers(few=False):
    return layers(few, shared=True)


@st.composite
def directions(draw, case):
    """Unit vectors, three of each, for a network and a layer."""
    net, layer = draw(case)
    rng, shape = np.random.default_rng(draw(seeds)), net.weights[layer].shape
    u, v = (rng.normal(size=(size, 3)) for size in (shape[0], int(np.prod(shape[1:]))))
    return net, layer, u / np.linalg.norm(u, axis=0), v / np.linalg.norm(v, axis=0)


def close(found, expected, error):
    assert found.shape == expected.shape
    assert np.all(np.abs(found - expected) <= error)


@holds(case=layers, cut=lambda few: st.just(2) if few else st.integers(1, 3), share=0.2)
def test_4_1_terms_are_not_reduced(xp, case, cut):
    """C_δ is (1/N) Σ δ δᵀ of un-reduced δ, however the data are cut into means."""
    net, layer = case
    cut = min(cut, net.samples - 1)
    (data,) = net.batches(xp.dtype)
    parts = [tuple(d[p] for d in data) for p in (slice(None, cut), slice(cut, None))]
    m = Measured(xp, net, parts)
    c_delta, _ = m.factors(layer, fisher_type="empirical")
    expected = m.flow.output_factor(layer, [m.flow.residuals], "expand")
    close(c_delta, expected, m.flow.error_of_output_factor(layer))


@holds(case=layers, share=0.2)
def test_4_2_without_sharing(xp, case):
    net, layer = case
    m = Measured(xp, net)
    _, c_a = m.factors(layer)
    close(c_a, m.flow.input_factor(layer, "expand"), m.flow.error_of_input_factor(layer))
    close(m.gradient(layer), m.flow.gradient(layer), m.flow.error_of_gradient(layer))


@holds(case=shared_layers, sharing=st.sampled_from(SHARINGS), share=0.3)
def test_4_3_with_sharing(xp, case, sharing):
    net, layer = case
    m = Measured(xp, net)
    c_delta, c_a = m.factors(layer, kfac_approx=sharing)
    close(c_a, m.flow.input_factor(layer, sharing), m.flow.error_of_input_factor(layer))
    expected = m.flow.output_factor(layer, m.flow.columns, sharing)
    close(c_delta, expected, m.flow.error_of_output_factor(layer))
    close(m.gradient(layer), m.flow.gradient(layer), m.flow.error_of_gradient(layer))


@holds(case=shared_layers, share=0.2)
def test_4_4_ggn_is_the_mean_over_targets_of_the_model(xp, case):
    """Labels with the model's probabilities; for a squared error, residuals that are unit vectors."""
    net, layer = case
    m = Measured(xp, net)
    eye = np.eye(net.widths[-1])
    if net.loss == "cross-entropy":
        p = m.flow.probabilities
        targets = [np.sqrt(p[:, [c]]) * (p - e) for c, e in enumerate(eye)]
    else:
        targets = [np.broadcast_to(e, m.flow.outputs.shape) for e in eye]
    expected = m.flow.output_factor(layer, targets, "expand")
    close(m.factors(layer)[0], expected, m.flow.error_of_output_factor(layer))


@holds(case=lambda few: directions(shared_layers(few)), times=repeats, share=0.1)
def test_4_5_repeated_samples_change_nothing(xp, case, times):
    net, layer, u, v = case
    (data,) = net.batches(xp.dtype)
    once, often = Measured(xp, net), Measured(xp, net, [data] * times)
    flow = once.flow
    close(often.gradient(layer), once.gradient(layer), 2 * flow.error_of_gradient(layer))
    errors = flow.error_of_output_factor(layer), flow.error_of_input_factor(layer)
    for one, other, error in zip(often.factors(layer), once.factors(layer), errors, strict=True):
        close(other, one, 2 * error)
    for kind in ("hessian", "ggn"):
        values = (m.curvatures(layer, u, v, kind) for m in (once, often))
        close(*values, 2 * flow.error_of_curvatures(layer, u, v))


@holds(
    case=lambda few: directions(layers(few, activations=PIECEWISE_LINEAR, samples=(1, 1))),
    share=0.2,
)  # fmt: skip
def test_4_5_chi_is_1_for_one_sample_of_a_piecewise_linear_network(xp, case):
    net, layer, u, v = case
    m = Measured(xp, net)
    u, v = xp.precise(u), xp.precise(v)
    c_delta, c_a = m.factors(layer)
    kron = np.sum(u * (c_delta @ u), 0) * np.sum(v * (c_a @ v), 0)
    error = 2 * m.flow.error_of_curvatures(layer, u, v)
    close(m.curvatures(layer, u, v, "hessian"), kron, error)


@holds(
    net=lambda few: networks(few, losses=("cross-entropy",), shared=True),
    delta=st.sampled_from(["ggn", "empirical"]), share=0.2,
)  # fmt: skip
def test_4_6_softmax_head_has_rank_classes_less_one(xp, net, delta):
    m = Measured(xp, net)
    c_delta, _ = m.factors("head", fisher_type=delta)
    error = m.flow.error_of_output_factor("head")
    assert np.all(np.abs(c_delta.sum(1)) <= error.sum(1))
    assert np.all(np.abs(m.gradient("head").sum(0)) <= m.flow.error_of_gradient("head").sum(0))


@holds(case=lambda few: directions(shared_layers(few)), share=0.2)
def test_5_4_ggn_is_a_sum_of_squares(xp, case):
    """With sharing the sum over positions comes before the square."""
    net, layer, u, v = case
    m = Measured(xp, net)
    u, v = xp.precise(u), xp.precise(v)
    error = m.flow.error_of_curvatures(layer, u, v)
    close(m.curvatures(layer, u, v, "ggn"), m.flow.ggn_curvatures(layer, u, v), error)


@holds(
    case=lambda few: directions(layers(few, activations=PIECEWISE_LINEAR, shared=True)), share=0.2
)  # fmt: skip
def test_5_8_nu_is_1_where_the_network_is_piecewise_linear(xp, case):
    net, layer, u, v = case
    m = Measured(xp, net)
    hessian, ggn = (m.curvatures(layer, u, v, kind) for kind in ("hessian", "ggn"))
    close(hessian, ggn, m.flow.error_of_curvatures(layer, u, v))
