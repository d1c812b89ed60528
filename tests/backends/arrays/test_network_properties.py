"""Theory 4, 5.4 and 5.8 on drawn networks: the reference network in every namespace."""

from functools import cache

import array_api_compat
import networks_in_arrays
import numpy as np
import pytest
from hypothesis import strategies as st
from network_registry import PIECEWISE_LINEAR, Network
from networks_in_numpy import Flow
from properties import holds
from strategies import networks, seeds

from spectral_backends.arrays import Rows
from spectral_backends.arrays.rows import RowSums


def repeats(few=False):
    return st.just(2) if few else st.sampled_from([2, 3])


class Built:
    """A drawn network in a namespace, and its factors, gradients and curvatures in NumPy."""

    def __init__(self, xp, net, take=slice(None)):
        self.xp, self.net = xp, net
        self.flow = Flow(net, xp.precise, xp.eps)
        self.network = networks_in_arrays.network(net)
        held = networks_in_arrays.parameters(net)
        self.params = {name: xp.array(value) for name, value in held.items()}
        self.x, self.targets = net.inputs[take, 0], net.targets[take]

    def batch(self, take=slice(None)):
        return self.xp.array(self.x[take]), self.converted(self.targets[take])

    def converted(self, targets):
        own = self.xp.integers if self.net.loss == "cross-entropy" else self.xp.array
        return own(targets)

    def problem(self, cut=None):
        whole = slice(None)
        parts = [whole] if cut is None else [slice(None, cut), slice(cut, None)]
        return self.network.problem(self.params, [self.batch(part) for part in parts])

    def factors(self, layer, delta="ggn", cut=None):
        found = self.problem(cut).kronecker_factors([layer], fisher_type=delta)[layer]
        return [self.numpy(c) for c in (found.output_covariance, found.input_covariance)]

    def gradient(self, layer, take=slice(None)):
        found = self.network.gradient(self.params, self.batch(take))
        return self.numpy(found[f"{layer}.weight"]), self.numpy(found[f"{layer}.bias"])

    def deltas(self, layer):
        """Un-reduced output gradients: those of a batch of one, in the layer's bias."""
        return np.stack([self.gradient(layer, [i])[1] for i in range(len(self.x))])

    def curvatures(self, layer, u, v, kind="hessian"):
        names = tuple(self.params)
        run = along(self.network, names, layer, kind)
        arrays = [*self.params.values(), *self.batch(), self.xp.array(u), self.xp.array(v)]
        return self.numpy(self.xp.run(run, *arrays))

    def numpy(self, array):
        return np.asarray(self.xp.numpy(array), dtype=np.float64)


@cache
def along(network, names, layer, kind):
    """Return a function of arrays alone, as `jit` takes them; one for each kind of network."""
    product = network.hessian_product if kind == "hessian" else network.ggn_product
    name = f"{layer}.weight"

    def run(*arrays):
        *values, x, targets, u, v = arrays
        outer = u.T[:, :, None] * v.T[:, None, :]
        params = dict(zip(names, values, strict=True))
        image = product(params, (x, targets), {name: outer})[name]
        return array_api_compat.array_namespace(image).sum(outer * image, axis=(1, 2))

    return run


def units(rng, *shape):
    columns = rng.normal(size=shape)
    return columns / np.linalg.norm(columns, axis=0)


@st.composite
def layers(draw, few=False, **options):
    """A network and one of its layers."""
    net = draw(networks(few, **options))
    return net, draw(st.sampled_from(net.layers))


@holds(case=layers, cut=lambda few: st.just(2) if few else st.integers(1, 3), share=0.5)
def test_4_1_terms_are_not_reduced(xp, case, cut):
    """Autograd of a mean loss gives g = δ/N, and C_δ is N Σ g gᵀ, however the data are cut."""
    net, layer = case
    built, n = Built(xp, net), net.samples
    g = built.deltas(layer) / n
    c_delta, _ = built.factors(layer, "empirical", cut=min(cut, n - 1))
    assert np.all(np.abs(c_delta - n * g.T @ g) <= built.flow.error_of_output_factor(layer))


@holds(case=layers)
def test_4_2_without_sharing(xp, case):
    net, layer = case
    built = Built(xp, net)
    a, delta, n = built.flow.rows[layer][:, 0], built.deltas(layer), net.samples
    _, c_a = built.factors(layer)
    assert np.all(np.abs(c_a - a.T @ a / n) <= built.flow.error_of_input_factor(layer))
    error = built.flow.error_of_gradient(layer)
    assert np.all(np.abs(built.gradient(layer)[0] - delta.T @ a / n) <= error)
    assert np.all(np.abs(built.gradient(layer)[0] - built.flow.gradient(layer)) <= error)


def shapes_of_rows(few=False):
    """Samples, positions, outputs and inputs."""
    if few:
        return st.just((3, 4, 2, 5))
    return st.tuples(*(st.integers(1, most) for most in (4, 4, 5, 5)))


@holds(shape=shapes_of_rows, seed=seeds, sharing=st.sampled_from(["expand", "reduce"]), share=0.5)
def test_4_3_with_sharing(xp, shape, seed, sharing):
    (b, s, m, n), rng = shape, np.random.default_rng(seed)
    a, delta = xp.precise(rng.normal(size=(b, s, n))), xp.precise(rng.normal(size=(b, s, m)))
    sums = RowSums("layer", "empirical", sharing)
    cut = b // 2
    for part in (slice(None, cut), slice(cut, None)):
        if len(a[part]):
            sums.add(Rows(xp.array(a[part]), xp.array(delta[part])))
    found = sums.factors()
    if sharing == "expand":
        c_a, c_delta = np.einsum("bsi,bsj->ij", a, a) / s, np.einsum("bsi,bsj->ij", delta, delta)
    else:
        a_, delta_ = a.mean(1), delta.sum(1)
        c_a, c_delta = a_.T @ a_, delta_.T @ delta_
    # Sums of b s products, of the sums of s terms where they are reduced.
    rounding = 2 * (b * s + 2 * s + 4) * xp.eps
    sizes = np.abs(a).sum(1), np.abs(delta).sum(1)
    for array, expected, size in (
        (found.input_covariance, c_a, sizes[0]), (found.output_covariance, c_delta, sizes[1])
    ):  # fmt: skip
        difference = np.abs(xp.numpy(array).astype(float) - expected / b)
        assert np.all(difference <= rounding * (size.T @ size) / b)


@holds(case=layers, share=0.5)
def test_4_4_ggn_is_the_mean_over_targets_of_the_model(xp, case):
    """Labels with the model's probabilities; for a squared error, residuals that are unit vectors.

    The Fisher matrix is the Gauss-Newton matrix there, and no root of a Hessian is taken.
    """
    net, layer = case
    built = Built(xp, net)
    found, _ = built.factors(layer)
    z, expected = built.flow.outputs, 0.0
    for c in range(net.widths[-1]):
        if net.loss == "cross-entropy":
            built.targets = np.full(net.samples, c)
            chance = built.flow.probabilities[:, c]
        else:
            built.targets = z - np.eye(net.widths[-1])[c]
            chance = np.ones(net.samples)
        delta = built.deltas(layer)
        expected = expected + (delta.T * chance) @ delta / net.samples
    error = 2 * net.widths[-1] * built.flow.error_of_output_factor(layer)
    assert np.all(np.abs(found - expected) <= error)


@holds(case=layers, times=repeats, seed=seeds, share=0.4)
def test_4_5_repeated_samples_change_nothing(xp, case, times, seed):
    net, layer = case
    once, often = Built(xp, net), Built(xp, net, np.tile(np.arange(net.samples), times))
    rng, (m, n) = np.random.default_rng(seed), net.weights[layer].shape
    u, v = units(rng, m, 2), units(rng, n, 2)
    flow = once.flow
    # Sums of more terms: as many times the rounding.
    difference = np.abs(once.gradient(layer)[0] - often.gradient(layer)[0])
    assert np.all(difference <= times * flow.error_of_gradient(layer))
    errors = flow.error_of_output_factor(layer), flow.error_of_input_factor(layer)
    for one, other, error in zip(once.factors(layer), often.factors(layer), errors, strict=True):
        assert np.all(np.abs(one - other) <= times * error)
    difference = once.curvatures(layer, u, v) - often.curvatures(layer, u, v)
    assert np.all(np.abs(difference) <= times * flow.error_of_curvatures(layer, u, v))


@holds(
    case=lambda few: layers(few, activations=PIECEWISE_LINEAR, samples=(1, 1)), seed=seeds,
    share=0.4,
)  # fmt: skip
def test_4_5_chi_is_1_for_one_sample_of_a_piecewise_linear_network(xp, case, seed):
    net, layer = case
    built, (m, n) = Built(xp, net), net.weights[layer].shape
    rng = np.random.default_rng(seed)
    u, v = xp.precise(units(rng, m, 2)), xp.precise(units(rng, n, 2))
    c_delta, c_a = built.factors(layer)
    kron = np.sum(u * (c_delta @ u), 0) * np.sum(v * (c_a @ v), 0)
    error = built.flow.error_of_curvatures(layer, u, v)
    assert np.all(np.abs(built.curvatures(layer, u, v) - kron) <= 2 * error)


@holds(
    net=lambda few: networks(few, losses=("cross-entropy",)),
    delta=st.sampled_from(["ggn", "empirical"]),
)  # fmt: skip
def test_4_6_softmax_head_has_rank_classes_less_one(xp, net, delta):
    built = Built(xp, net)
    c_delta, _ = built.factors("head", delta)
    gradient, _ = built.gradient("head")
    flow = built.flow
    assert np.all(np.abs(c_delta.sum(1)) <= flow.error_of_output_factor("head").sum(1))
    assert np.all(np.abs(gradient.sum(0)) <= flow.error_of_gradient("head").sum(0))
    least = np.linalg.eigvalsh((c_delta + c_delta.T) / 2)[0]
    assert abs(least) <= np.linalg.norm(flow.error_of_output_factor("head"))


@holds(case=layers, seed=seeds, share=0.4)
def test_5_4_ggn_is_a_sum_of_squares_without_sharing(xp, case, seed):
    """By output gradients that NumPy sends back, column by column."""
    net, layer = case
    built, (m, n) = Built(xp, net), net.weights[layer].shape
    rng = np.random.default_rng(seed)
    u, v = xp.precise(units(rng, m, 3)), xp.precise(units(rng, n, 3))
    expected = built.flow.ggn_curvatures(layer, u, v)
    found = built.curvatures(layer, u, v, "ggn")
    assert np.all(np.abs(found - expected) <= built.flow.error_of_curvatures(layer, u, v))


@holds(case=lambda few: layers(few, activations=PIECEWISE_LINEAR), seed=seeds, share=0.4)
def test_5_8_nu_is_1_where_the_network_is_piecewise_linear(xp, case, seed):
    net, layer = case
    built, (m, n) = Built(xp, net), net.weights[layer].shape
    rng = np.random.default_rng(seed)
    u, v = units(rng, m, 3), units(rng, n, 3)
    hessian, ggn = (built.curvatures(layer, u, v, kind) for kind in ("hessian", "ggn"))
    assert np.all(np.abs(hessian - ggn) <= built.flow.error_of_curvatures(layer, u, v))


@pytest.mark.parametrize("activation", ["tanh", "gelu-tanh"])
def test_5_8_does_not_hold_of_curved_activations(xp, activation):
    net = Network(("dense",), (4, 5, 3), activation, "cross-entropy", 4, 1, 0)
    built, rng = Built(xp, net), np.random.default_rng(0)
    u, v = units(rng, 5, 3), units(rng, 4, 3)
    hessian, ggn = (built.curvatures("0", u, v, kind) for kind in ("hessian", "ggn"))
    assert np.all(np.abs(hessian - ggn) > built.flow.error_of_curvatures("0", u, v))
