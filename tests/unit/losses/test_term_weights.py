"""How often samples count, read off the loss: in every library, and where nothing tells."""

import array_api_compat
import numpy as np
import pytest

from spectral_core.losses.form import OutputForm, output_curvature
from spectral_core.losses.term_weights import counted_weights

WEIGHTS = np.array([1.0, 2.0, 0.0, 3.0, 0.5])
MASK = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]], float)
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


def away(z):
    """One where z is not zero."""
    return abs(array_api_compat.array_namespace(z).sign(z))


def beside_the_origin(a, w):
    """The targets show in the curvature everywhere but at z = 0."""
    return lambda z: w * (z - a(T)), lambda z, d: w * (1 + (z * a(T)) ** 2) * d


def at_the_origin(a, w):
    """Samples differ at z = 0, by a pattern that is neither in a sample's sum nor in an output's."""
    pattern = np.outer([1, -1, 0, 0, 0], [0.5, -0.5, 0])
    return lambda z: w * (z - a(T)), lambda z, d: (w + a(pattern) * (1 - away(z))) * d


def steeper_outside(a, w):
    """Three times the curvature away from z = 0, for all elements."""
    return lambda z: w * (z - a(T)), lambda z, d: w * (0.01 + 0.02 * away(z)) * d


def centred(a, w):
    """``½ w Σ (z − mean z)²``: moving all outputs of a sample together changes nothing."""
    metric = a(np.eye(3) - 1 / 3)
    return lambda z: w * ((z - a(T)) @ metric), lambda z, d: w * (d @ metric)


KINDS = {
    "squared": ("elementwise", squared),
    "quadratic": ("dense", quadratic),
    "gradient": ("gradient", quadratic),
    "centred": ("dense", centred),
    "logistic": ("logistic", logistic),
}


def curvature(xp, kind, derivatives, weights, *count):
    slope, bend = derivatives(xp.array, xp.array(np.broadcast_to(weights, (5, 3))))
    probe = xp.array(np.random.default_rng(1).standard_normal((5, 3)))
    return output_curvature(OutputForm(kind), Loss(xp.array(Z), slope, bend, probe), *count)


def close(xp, found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e3 * xp.eps, atol=10 * xp.eps)


def shares(xp, root):
    """Return what each sample counts of all."""
    found = xp.numpy(root.sample_weights)
    return found / found.sum()


def outer_products(xp, root):
    """Return ``Σ δ δᵀ`` over the terms of every sample, (B, C, C)."""
    terms = xp.numpy(root.terms)
    return np.einsum("bti,btj->bij", terms, terms)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("weights", [WEIGHTS, np.array([0.5, 1.5, 1.0, 1.0, 1.0])], ids=str)
def test_a_sample_of_weight_w_is_w_terms(xp, name, weights):
    """Also where they add up to the number of samples."""
    kind, derivatives = KINDS[name]
    root = curvature(xp, kind, derivatives, weights[:, None], float(weights.sum()))
    plain = curvature(xp, kind, derivatives, 1.0, 5.0)
    close(xp, shares(xp, root), weights / weights.sum())
    close(xp, outer_products(xp, root), weights[:, None, None] * outer_products(xp, plain))
    gradient = xp.numpy(plain.gradient)
    close(xp, outer_products(xp, plain), gradient[:, :, None] * gradient[:, None, :])


@pytest.mark.parametrize("name", KINDS)
def test_a_loss_that_divides_by_a_number_of_its_own(xp, name):
    """Nobody knows that it is a mean over five: it is one term, and each sample a fifth of it."""
    kind, derivatives = KINDS[name]
    root = curvature(xp, kind, derivatives, 1 / 5)
    plain = curvature(xp, kind, derivatives, 1.0, 5.0)
    close(xp, outer_products(xp, root), outer_products(xp, plain) / 5)


@pytest.mark.parametrize("size", [1e-3, 1e3])
@pytest.mark.parametrize("weights", [WEIGHTS[:, None], MASK], ids=["samples", "elements"])
def test_a_loss_of_any_size_has_as_many_terms_as_are_counted(xp, weights, size):
    """One that is s Σ w l, of N terms, is the sum of N terms of s Σ w / N times l."""
    plain = xp.precise(xp.numpy(curvature(xp, "elementwise", squared, 1.0, 5.0).gradient))
    root = curvature(xp, "elementwise", squared, size * weights, 7.0)
    rows = plain * np.sqrt(weights * weights.sum() / 7) * size
    close(xp, outer_products(xp, root), rows[:, :, None] * rows[:, None, :])


@pytest.mark.parametrize("kind", ["elementwise", "logistic"])
@pytest.mark.parametrize("spread", ["large", "small"])
def test_elements_of_other_weights(xp, kind, spread):
    """Small but no rounding: they are not taken for weights of samples."""
    spread = 0.9 if spread == "large" else 100 * xp.eps**0.5
    weights = 1 + spread * np.random.default_rng(2).uniform(-1, 1, (5, 3))
    derivatives = logistic if kind == "logistic" else squared
    root = curvature(xp, kind, derivatives, weights, float(weights.sum()))
    plain = xp.precise(xp.numpy(curvature(xp, kind, derivatives, 1.0, 5.0).gradient))
    rows = plain * np.sqrt(weights)
    close(xp, outer_products(xp, root), rows[:, :, None] * rows[:, None, :])
    close(xp, shares(xp, root), weights.sum(1) / weights.sum())


@pytest.mark.parametrize("name", KINDS)
def test_weights_and_counts_are_known_to_half_of_the_digits(xp, name):
    kind, derivatives = KINDS[name]
    small = xp.eps**0.5 / 10
    off = small * np.random.default_rng(3).uniform(-1, 1, (5, 3))
    for weights, count in ((WEIGHTS, 6.5), (WEIGHTS > 0, 4.0), (WEIGHTS > 0, 12.0)):
        exact = curvature(xp, kind, derivatives, 1.0 * weights[:, None], count)
        rough = curvature(xp, kind, derivatives, weights[:, None] + off, count * (1 + small))
        found, expected = outer_products(xp, rough), outer_products(xp, exact)
        np.testing.assert_allclose(found, expected, rtol=100 * small, atol=100 * small)


def test_samples_left_out_of_a_mean_over_elements(xp):
    """Elements are terms: each enters as it is."""
    left = np.array([1.0, 0.0, 1.0, 1.0, 0.0])[:, None]
    for kind, derivatives in (KINDS["squared"], KINDS["logistic"]):
        root = curvature(xp, kind, derivatives, left, 9.0)
        gradient = xp.numpy(root.gradient)
        close(xp, outer_products(xp, root), gradient[:, :, None] * gradient[:, None, :])


def test_known_weights_of_elements_at_positions(xp):
    weights = np.random.default_rng(4).uniform(size=(5, 2, 3))
    array = xp.array(weights)
    namespace = array_api_compat.array_namespace(array)
    for count in (weights.sum(), weights.sum() / 3):  # elements, or positions with three of them
        found = counted_weights(namespace, array, 2, float(count))
        close(xp, xp.numpy(found.samples), weights.sum((1, 2)))
        close(xp, xp.numpy(found.elements), weights)


@pytest.mark.parametrize(
    ("kind", "derivatives"),
    [("elementwise", squared), ("logistic", logistic), ("elementwise", steeper_outside)],
)
def test_elements_that_are_left_out(xp, kind, derivatives):
    """A mean over elements: a sample counts as often as elements of it do."""
    root = curvature(xp, kind, derivatives, MASK, float(MASK.sum()))
    close(xp, shares(xp, root), MASK.sum(1) / MASK.sum())
    gradient = xp.numpy(root.gradient)
    close(xp, outer_products(xp, root), gradient[:, :, None] * gradient[:, None, :])


@pytest.mark.parametrize("count", [5.0, 15.0])
def test_means_over_samples_and_over_elements_have_no_weights(xp, count):
    """Each term enters as it is: the normalisation is that of KFAC in the literature."""
    for kind, derivatives in (KINDS["squared"], KINDS["logistic"]):
        root = curvature(xp, kind, derivatives, 1.0, count)
        gradient = xp.numpy(root.gradient)
        close(xp, outer_products(xp, root), gradient[:, :, None] * gradient[:, None, :])


@pytest.mark.parametrize("derivatives", [pseudo_huber, beside_the_origin, at_the_origin])
def test_samples_are_alike_where_nothing_tells(xp, derivatives):
    for kind in ("elementwise", "gradient"):
        root = curvature(xp, kind, derivatives, WEIGHTS[:, None] + 1, 5.0)
        close(xp, shares(xp, root), np.full(5, 1 / 5))
        gradient = xp.numpy(root.gradient)
        close(xp, outer_products(xp, root), gradient[:, :, None] * gradient[:, None, :])


def test_weights_of_classes_are_no_terms(xp):
    """Of a logistic loss whose mean runs over the elements, whatever they weigh."""
    weights = np.where(T > 0, 3.0, 1.0)
    root = curvature(xp, "logistic", logistic, weights, 15.0)
    close(xp, shares(xp, root), np.full(5, 1 / 5))
