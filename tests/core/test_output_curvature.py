"""The columns whose outer products are the Hessian of a loss in the outputs, in every namespace."""

import importlib
from itertools import product

import array_api_compat
import numpy as np
import pytest

from spectral_core.errors import InputError
from spectral_core.output_curvature import output_curvature
from spectral_core.output_form import OutputForm, find_form


class Loss:
    """A loss by its Hessian, written out in NumPy's words, and by its gradient."""

    def __init__(self, outputs, gradient, product, probe):
        self.outputs, self._gradient, self._product = outputs, gradient, product
        self.probe = probe
        self._xp = array_api_compat.array_namespace(outputs)

    @property
    def gradient(self):
        return self._gradient(self._xp, self.outputs)

    def at(self, outputs):
        return Loss(outputs, self._gradient, self._product, self.probe)

    def products(self, vectors):
        found = [
            self._product(self._xp, self.outputs, vectors[i, ...]) for i in range(vectors.shape[0])
        ]
        return self._xp.stack(found)


class Draws:
    """Given signs in place of random ones."""

    def __init__(self, xp, values):
        self._xp, self._values = xp, values

    def signs(self, like):
        return self._xp.array(np.reshape(self._values, like.shape))


def softmax(xp, z, axis):
    powers = xp.exp(z - xp.max(z, axis=axis, keepdims=True))
    return powers / xp.sum(powers, axis=axis, keepdims=True)


def cross_entropy(axis, weights, extra=0.0):
    """With class 0 as the target of every term, the terms weighted."""

    def weight(xp, z):
        return xp.asarray(weights, dtype=z.dtype, device=array_api_compat.device(z))

    def gradient(xp, z):
        shape = [1] * z.ndim
        shape[axis] = z.shape[axis]
        device = array_api_compat.device(z)
        first = xp.reshape(xp.arange(z.shape[axis], device=device) == 0, tuple(shape))
        label = xp.astype(xp.broadcast_to(first, z.shape), z.dtype)
        return weight(xp, z) * (softmax(xp, z, axis) - label) + extra * z

    def hessian(xp, z, v):
        p = softmax(xp, z, axis)
        return weight(xp, z) * p * (v - xp.sum(p * v, axis=axis, keepdims=True)) + extra * v

    return gradient, hessian


def elementwise(kind):
    def p(xp, z):
        return 1 / (1 + xp.exp(-z))

    return {
        "logistic": (lambda xp, z: p(xp, z), lambda xp, z, v: p(xp, z) * (1 - p(xp, z)) * v),
        "squared": (lambda xp, z: z, lambda xp, z, v: v),
        "quartic": (lambda xp, z: z**3 / 3 + z, lambda xp, z, v: (z * z + 1) * v),
        "linear": (lambda xp, z: xp.ones_like(z), lambda xp, z, v: xp.zeros_like(v)),
        "concave": (lambda xp, z: -z, lambda xp, z, v: -v),
    }[kind]


def coupled():
    """``½ (Σ_c z_c)² + ½ |z|²`` of each sample."""

    def hessian(xp, z, v):
        return v + xp.sum(v, axis=-1, keepdims=True)

    return lambda xp, z: hessian(xp, z, z), hessian


def across():
    """Samples are compared: ``½ Σ_i (z_i + z_{B−i})²``."""

    def hessian(xp, z, v):
        return v + xp.flip(v, axis=0) + xp.sum(v, axis=-1, keepdims=True)

    return lambda xp, z: hessian(xp, z, z), hessian


def loss(xp, z, derivatives):
    probe = np.random.default_rng(7).uniform(-1, 1, np.shape(z))
    return Loss(xp.array(z), *derivatives, xp.array(probe))


def form_of(given, xp, most=64, convex=True):
    def fits(forms):
        for form in forms:
            yield output_curvature(form, given).fit()

    return find_form(given.outputs.shape, xp.eps, fits, most, convex=convex)


def columns_of(xp, root):
    found = [xp.numpy(root.column(index)) for index in range(root.n_columns)]
    return np.stack(found).astype(float)


LOGITS = {
    "ordinary": np.linspace(-2, 2, 20).reshape(4, 5), "equal": np.zeros((3, 5)),
    "spread": [[0, 200, 100, -100, 50], [200, 199, -200, 198, 0], [0, 0, 0, 0, 200]],
    "last wins": [[0, 0, 0, 0, 40], [-90, -80, -70, -60, 60]],
    "first wins": [[40, 0, 0, 0, 0], [60, -80, -70, -60, -90]],
    "two left": [[-200, 3, -200, 2, -200], [1, -200, -200, -200, 0]],
}  # fmt: skip


@pytest.mark.parametrize("name", LOGITS)
def test_4_4_columns_make_the_hessian_of_a_cross_entropy(xp, name):
    logits = np.asarray(LOGITS[name], float)
    given = loss(xp, logits, cross_entropy(1, np.ones((len(logits), 1)).tolist()))
    form = form_of(given, xp)
    assert form == OutputForm("softmax", 1)
    root = output_curvature(form, given)
    columns = columns_of(xp, root).transpose(1, 2, 0)
    assert columns.shape[2] == root.n_columns == logits.shape[1] - 1
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    exact = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    made = columns @ columns.transpose(0, 2, 1)
    # Logits of 200 are known to 200 eps, and with them the probabilities.
    assert (abs(made - exact) <= 4 * xp.eps * max(1.0, abs(logits).max())).all()
    assert (abs(columns.sum(1)) <= 8 * xp.eps).all()
    # On the diagonal also relatively, where p itself is not rounded to zero.
    own, found = (np.diagonal(part, axis1=1, axis2=2) for part in (exact, made))
    normal = own > 1e4 * float(np.finfo(xp.dtype).tiny)
    assert (abs(found - own)[normal] <= 500 * xp.eps * own[normal]).all()


@pytest.mark.parametrize("axis", [1, 2])
def test_columns_at_positions_and_with_weights(xp, axis):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 4, 2) if axis == 1 else (3, 2, 4))
    weights = np.array([[1.0, 0.0], [2.0, 0.5], [1.0, 1.0]])
    derivatives = cross_entropy(axis, np.expand_dims(weights, axis).tolist())
    given = loss(xp, logits, derivatives)
    form = form_of(given, xp)
    assert form == OutputForm("softmax", axis)
    root = output_curvature(form, given)
    columns = columns_of(xp, root).reshape(-1, 3, 8)
    assert len(columns) == root.n_columns == 3 * 2
    for unit in range(8):
        v = np.zeros((3, 8))
        v[:, unit] = 1
        exact = derivatives[1](np, logits, v.reshape(logits.shape)).reshape(3, 8)
        made = np.einsum("cbi,cbj,bj->bi", columns, columns, v)
        np.testing.assert_allclose(made, exact, atol=20 * xp.eps)
    np.testing.assert_allclose(xp.numpy(root.sample_weights), weights.sum(1), rtol=200 * xp.eps)
    # Terms add up to ω² of them: each outer product enters ω times (Theory 4.4).
    terms = xp.numpy(root.terms).astype(float)
    one = cross_entropy(axis, np.ones((3, 1, 2) if axis == 1 else (3, 2, 1)).tolist())[0]
    single = np.moveaxis(one(np, logits), axis, -1) * np.sqrt(weights)[..., None]
    np.testing.assert_allclose(terms, single, atol=20 * xp.eps)
    sent = sum(xp.numpy(root.term_column(index)).astype(float) for index in range(root.n_terms))
    np.testing.assert_allclose(np.moveaxis(sent, axis, -1), single, atol=20 * xp.eps)


@pytest.mark.parametrize("kind", ["softmax", "squared", "logistic", "quartic", "dense"])
def test_mixtures_have_the_hessian_as_their_mean_square(xp, kind):
    """Over all signs of the coefficients, which is every vertex of a cube."""
    logits = np.random.default_rng(2).normal(size=(1, 5))
    derivatives = {"softmax": cross_entropy(1, [[1.5]]), "dense": coupled()}.get(kind)
    given = loss(xp, logits, derivatives or elementwise(kind))
    form = form_of(given, xp)
    assert form.kind == {"squared": "elementwise", "quartic": "elementwise"}.get(kind, kind)
    root = output_curvature(form, given)
    mixed = np.stack(
        [xp.numpy(root.mixture(Draws(xp, s)))[0] for s in product((-1.0, 1.0), repeat=5)]
    ).astype(float)
    columns = columns_of(xp, root)[:, 0]
    np.testing.assert_allclose(mixed.T @ mixed / 32, columns.T @ columns, atol=100 * xp.eps)
    exact = (derivatives or elementwise(kind))[1]
    hessian = np.stack([exact(np, logits, unit[None])[0] for unit in np.eye(5)])
    np.testing.assert_allclose(columns.T @ columns, hessian, atol=200 * xp.eps)


def test_zero_outputs_do_not_make_a_squared_error_logistic(xp):
    """At z = 0 both have a constant diagonal; their targets have other distributions."""
    for kind, expected in (("squared", "elementwise"), ("logistic", "logistic")):
        assert form_of(loss(xp, np.zeros((4, 1)), elementwise(kind)), xp).kind == expected


@pytest.mark.parametrize(
    ("derivatives", "most", "message"),
    [
        (elementwise("linear"), 64, "linear in the outputs"),
        (elementwise("concave"), 64, "not convex in the outputs"),
        (across(), 64, "compares the samples"),
        (coupled(), 3, "more than 3 are too many"),
    ],
)
def test_losses_without_root_vectors(xp, derivatives, most, message):
    given = loss(xp, np.random.default_rng(3).normal(size=(3, 4)), derivatives)
    with pytest.raises(InputError, match=message):
        form_of(given, xp, most)
    form = form_of(given, xp, most, convex=False)
    assert form.kind in ("elementwise", "gradient")
    root = output_curvature(form, given, 3)  # as many terms as samples: none has a weight
    sent = sum(xp.numpy(root.term_column(index)) for index in range(root.n_terms))
    np.testing.assert_array_equal(sent, xp.numpy(given.gradient))


@pytest.mark.parametrize("extra", [1e-5, 1e-2])
def test_a_regulariser_is_no_cross_entropy(xp, extra):
    logits = np.random.default_rng(4).normal(size=(3, 4))
    given = loss(xp, logits, cross_entropy(1, [[1.0]] * 3, extra))
    assert form_of(given, xp).kind == "dense"


def test_traced_index(xp):
    if xp.variant != "jit":
        pytest.skip("is about tracing")
    jax = importlib.import_module("jax")
    logits = np.random.default_rng(5).normal(size=(3, 4))
    given = loss(xp, logits, cross_entropy(1, [[1.0]] * 3))
    root = output_curvature(OutputForm("softmax", 1), given)
    for index in range(root.n_columns):
        np.testing.assert_allclose(
            jax.jit(root.column)(index), root.column(index), rtol=1e-14, atol=1e-15
        )
