"""How often samples count, read off the loss: in every library, and where nothing tells."""

import array_api_compat
import numpy as np
import pytest

from spectral_core.output_curvature import output_curvature
from spectral_core.output_form import OutputForm

WEIGHTS = np.array([1.0, 2.0, 0.0, 3.0, 0.5])
METRIC = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 1.5]])
RNG = np.random.default_rng(0)
Z, T = RNG.standard_normal((5, 3)), RNG.standard_normal((5, 3))


class Loss:
    """``Σ_i l_i`` by its gradient, slope(z), and products with its Hessian, bend(z, vector)."""

    def __init__(self, outputs, slope, bend, probe):
        self.outputs, self.probe, self._slope, self._bend = outputs, probe, slope, bend

    @property
    def gradient(self):
        return self._slope(self.outputs)

    def products(self, vectors):
        xp = array_api_compat.array_namespace(vectors)
        return xp.stack(
            [self._bend(self.outputs, vectors[i, ...]) for i in range(vectors.shape[0])]
        )

    def at(self, outputs):
        return Loss(outputs, self._slope, self._bend, self.probe)


def squared(a, w):
    """``½ w (z − t)²`` of each output."""
    return lambda z: w * (z - a(T)), lambda z, d: w * d


def quadratic(a, w):
    metric = a(METRIC)
    return lambda z: w * ((z - a(T)) @ metric), lambda z, d: w * (d @ metric)


def logistic(a, w):
    def p(z):
        xp = array_api_compat.array_namespace(z)
        return 1 / (1 + xp.exp(-z))

    return lambda z: w * (p(z) - a(T > 0)), lambda z, d: w * p(z) * (1 - p(z)) * d


def pseudo_huber(a, w):
    """Its curvature depends on the targets: nothing says what is a weight."""
    return (
        lambda z: w * (z - a(T)) / (1 + (z - a(T)) ** 2) ** 0.5,
        lambda z, d: w * d / (1 + (z - a(T)) ** 2) ** 1.5,
    )


KINDS = {
    "squared": ("elementwise", squared),
    "quadratic": ("dense", quadratic),
    "gradient": ("gradient", quadratic),
    "logistic": ("logistic", logistic),
}


def curvature(xp, kind, derivatives, weights, count):
    slope, bend = derivatives(xp.array, xp.array(np.broadcast_to(weights, (5, 3))))
    probe = xp.array(np.random.default_rng(1).standard_normal((5, 3)))
    return output_curvature(OutputForm(kind), Loss(xp.array(Z), slope, bend, probe), count)


def close(xp, found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e3 * xp.eps, atol=10 * xp.eps)


def outer_products(xp, root):
    """Return ``Σ δ δᵀ`` over the terms of every sample, (B, C, C)."""
    terms = xp.numpy(root.terms)
    return np.einsum("bti,btj->bij", terms, terms)


@pytest.mark.parametrize("name", KINDS)
def test_a_sample_of_weight_w_is_w_terms(xp, name):
    kind, derivatives = KINDS[name]
    root = curvature(xp, kind, derivatives, WEIGHTS[:, None], float(WEIGHTS.sum()))
    plain = curvature(xp, kind, derivatives, 1.0, 5.0)
    found = xp.numpy(root.sample_weights)
    close(xp, found / found.sum(), WEIGHTS / WEIGHTS.sum())
    close(xp, outer_products(xp, root), WEIGHTS[:, None, None] * outer_products(xp, plain))
    gradient = xp.numpy(plain.gradient)
    close(xp, outer_products(xp, plain), gradient[:, :, None] * gradient[:, None, :])


@pytest.mark.parametrize("name", KINDS)
def test_a_loss_that_divides_by_a_number_of_its_own(xp, name):
    """Nobody knows that it is a mean over five: it is one term, and each sample a fifth of it."""
    kind, derivatives = KINDS[name]
    root = curvature(xp, kind, derivatives, 1 / 5, 1.0)
    plain = curvature(xp, kind, derivatives, 1.0, 5.0)
    close(xp, outer_products(xp, root), outer_products(xp, plain) / 5)


@pytest.mark.parametrize("name", ["squared", "logistic"])
def test_elements_that_are_left_out(xp, name):
    """A mean over elements: a sample counts as often as elements of it do."""
    kind, derivatives = KINDS[name]
    mask = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]], float)
    root = curvature(xp, kind, derivatives, mask, float(mask.sum()))
    found = xp.numpy(root.sample_weights)
    close(xp, found / found.sum(), mask.sum(1) / mask.sum())
    gradient = xp.numpy(root.gradient)
    close(xp, outer_products(xp, root), gradient[:, :, None] * gradient[:, None, :])


@pytest.mark.parametrize("count", [5.0, 15.0])
def test_means_over_samples_and_over_elements_have_no_weights(xp, count):
    """Each term enters as it is: the normalisation is that of KFAC in the literature."""
    for kind, derivatives in (KINDS["squared"], KINDS["logistic"]):
        root = curvature(xp, kind, derivatives, 1.0, count)
        gradient = xp.numpy(root.gradient)
        close(xp, outer_products(xp, root), gradient[:, :, None] * gradient[:, None, :])


def test_samples_are_alike_where_nothing_tells(xp):
    for kind in ("elementwise", "gradient"):
        root = curvature(xp, kind, pseudo_huber, WEIGHTS[:, None] + 1, 5.0)
        found = xp.numpy(root.sample_weights)
        close(xp, found / found[0], np.ones(5))
        gradient = xp.numpy(root.gradient)
        close(xp, outer_products(xp, root), gradient[:, :, None] * gradient[:, None, :])


def test_weights_of_classes_are_no_terms(xp):
    """Of a logistic loss whose mean runs over the elements, whatever they weigh."""
    weights = np.where(T > 0, 3.0, 1.0)
    root = curvature(xp, "logistic", logistic, weights, 15.0)
    found = xp.numpy(root.sample_weights)
    close(xp, found / found[0], np.ones(5))
