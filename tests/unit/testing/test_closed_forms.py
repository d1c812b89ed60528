"""The closed forms of the conformance suite against textbook formulas and differences of the loss."""

from dataclasses import replace

import numpy as np
import pytest

from spectral_core import testing

FORMS = testing.closed_forms()
CASES = [(name, layer) for name, form in FORMS.items() for layer in range(len(form.matrices))]


def unit_matrices(shape):
    """Return all matrices with one entry of 1, and indices of all pairs of them."""
    size = int(np.prod(shape))
    i, j = np.divmod(np.arange(size**2), size)
    units = np.eye(size).reshape(size, *shape)
    return units[i], units[j], size


def dense(form, layer, kind="hessian"):
    one, other, size = unit_matrices(form.matrices[layer].shape)
    return form.second_derivative(layer, one, other, kind).reshape(size, size)


def moved(form, layer, step):
    matrices = list(form.matrices)
    matrices[layer] = matrices[layer] + step
    return replace(form, matrices=tuple(matrices))


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_gradients_and_hessians_are_differences(name, layer):
    form, generator = FORMS[name], np.random.default_rng(0)
    for _ in range(3):
        d = generator.standard_normal(form.matrices[layer].shape)
        e, step = generator.standard_normal(d.shape), 1e-5
        up, down = (moved(form, layer, t * d) for t in (step, -step))
        slope = (up.mean_loss() - down.mean_loss()) / (2 * step)
        assert np.vdot(form.gradient(layer), d) == pytest.approx(slope, rel=1e-7, abs=1e-8)
        change = (up.gradient(layer) - down.gradient(layer)) / (2 * step)
        product = form.second_derivative(layer, d[None], e[None])[0]
        assert product == pytest.approx(np.vdot(change, e), rel=1e-7, abs=1e-7)


def test_a_quadratic_has_a_kronecker_product_for_hessian():
    form = FORMS["quadratic"]
    x = form.batches[0].inputs
    np.testing.assert_allclose(dense(form, 0), np.kron(form.metric, x.T @ x / len(x)), atol=1e-14)


def test_softmax_regression_by_its_probabilities():
    form = FORMS["softmax regression"]
    x, (matrix,) = form.batches[0].inputs, form.matrices
    powers = np.exp(x @ matrix.T)
    p = powers / powers.sum(1, keepdims=True)
    expected = sum(
        np.kron(np.diag(row) - np.outer(row, row), np.outer(a, a))
        for row, a in zip(p, x, strict=True)
    )
    np.testing.assert_allclose(dense(form, 0), expected / len(x), atol=1e-14)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_linear_network_by_the_products_around_a_layer(layer):
    """``z = P W Q x``, so that ``H = PᵀP ⊗ Q C_x Qᵀ``, which is Gauss-Newton's."""
    form = FORMS["linear network"]
    x, p, q = form.batches[0].inputs, np.eye(3), np.eye(5)
    for matrix in form.matrices[:layer]:
        q = matrix @ q
    for matrix in reversed(form.matrices[layer + 1 :]):
        p = p @ matrix
    expected = np.kron(p.T @ p, q @ x.T @ x @ q.T / len(x))
    for kind in ("hessian", "ggn"):
        np.testing.assert_allclose(dense(form, layer, kind), expected, atol=1e-14)
    c_delta, c_a = form.factors(layer)
    np.testing.assert_allclose(np.kron(c_delta, c_a), expected, atol=1e-14)


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_ggn_from_roots_of_single_samples(name, layer):
    """Theory 5.4 and 4.3, over single samples; one sample without positions is a product of factors."""
    form = FORMS[name]
    samples = [form.with_weights(np.eye(testing.forms.SAMPLES)[i]) for i in range(7)]
    np.testing.assert_allclose(
        dense(form, layer, "ggn"),
        np.mean([dense(one, layer, "ggn") for one in samples], axis=0),
        atol=1e-13,
    )
    for delta in ("ggn", "empirical"):
        for sharing in ("expand", "reduce"):
            whole = form.factors(layer, delta, sharing)
            single = [one.factors(layer, delta, sharing) for one in samples]
            for index in range(2):
                mean = np.mean([factors[index] for factors in single], axis=0)
                np.testing.assert_allclose(whole[index], mean, atol=1e-13)
    if not form.has_positions:
        c_delta, c_a = samples[0].factors(layer)
        np.testing.assert_allclose(
            dense(samples[0], layer, "ggn"), np.kron(c_delta, c_a), atol=1e-13
        )
        c_delta, c_a = samples[0].factors(layer, "empirical")
        gradient = samples[0].gradient(layer).ravel()
        np.testing.assert_allclose(np.outer(gradient, gradient), np.kron(c_delta, c_a), atol=1e-13)


def test_factors_of_positions_written_out():
    """The outputs are the mean over positions: a sample's gradient is Σ_t δ_t a_tᵀ."""
    form, layer = FORMS["positions"].with_weights(np.eye(7)[2]), 1
    x, head = form.batches[0].inputs[2], form.matrices[1]
    a = (x @ form.matrices[0].T) ** 2
    delta = (a @ head.T).mean(0) - form.batches[0].targets[2]
    np.testing.assert_allclose(form.gradient(layer), np.outer(delta, a.mean(0)), atol=1e-14)
    c_delta, c_a = form.factors(layer, "empirical", "expand")
    np.testing.assert_allclose(c_delta, np.outer(delta, delta) / 3, atol=1e-14)
    np.testing.assert_allclose(c_a, a.T @ a / 3, atol=1e-14)
    c_delta, c_a = form.factors(layer, "empirical", "reduce")
    np.testing.assert_allclose(c_delta, np.outer(delta, delta), atol=1e-14)
    np.testing.assert_allclose(c_a, np.outer(a.mean(0), a.mean(0)), atol=1e-14)


def test_the_hessian_of_squares_is_not_gauss_newtons():
    for name in ("curved network", "positions"):
        off = dense(FORMS[name], 0) - dense(FORMS[name], 0, "ggn")
        assert np.linalg.norm(off) > 0.1 * np.linalg.norm(dense(FORMS[name], 0))


@pytest.mark.parametrize("name", FORMS)
def test_whole_weights_are_repetitions(name):
    form, weights = FORMS[name], np.array([1, 2, 0, 1, 3, 1, 1])
    weighted, whole = form.with_weights(weights), form.batches[0]
    order = np.repeat(np.arange(7), weights)
    repeated = replace(
        form,
        batches=(
            testing.Batch(whole.inputs[order], whole.targets[order], np.ones(len(order))),
        ),
    )  # fmt: skip
    assert weighted.n_terms == repeated.n_terms == 9 and weighted.weighted
    assert weighted.mean_loss() == pytest.approx(repeated.mean_loss(), rel=1e-14)
    for one, other in ((weighted, repeated), (form, form.repeated(3)), (form, form.cut([4, 3]))):
        assert one.mean_loss() == pytest.approx(other.mean_loss(), rel=1e-14)
        for found, expected in zip(one.factors(0), other.factors(0), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-14)
        np.testing.assert_allclose(one.gradient(0), other.gradient(0), atol=1e-14)
        np.testing.assert_allclose(dense(one, 0), dense(other, 0), atol=1e-13)


def test_shapes_tell_layers_and_sides_apart():
    for form in FORMS.values():
        shapes = [matrix.shape for matrix in form.matrices]
        assert len(set(shapes)) == len(shapes) and all(m != n for m, n in shapes)
