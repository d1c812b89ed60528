"""The columns whose outer products are the Hessian of a loss in the outputs, in every namespace."""

import importlib
from itertools import product

import array_api_compat
import numpy as np
import pytest
from scipy.linalg import hadamard

from spectral_core.errors import InputError
from spectral_core.losses.form import FORMS, OutputForm, output_curvature
from spectral_core.losses.protocols import Fit
from spectral_core.losses.recognition import find_form


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
    """Given numbers in place of random ones."""

    def __init__(self, xp, values):
        self._xp, self._values = xp, values

    def signs(self, like):
        return self._xp.array(np.reshape(self._values, like.shape))

    normal = bernoulli = one_hot = signs


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
        # Near a probability of one a difference of near equals, each rounded in its own way, as
        # automatic differentiation has it.
        own = p * v - p * xp.sum(xp.flip(p * v, axis=axis), axis=axis, keepdims=True)
        return weight(xp, z) * own + extra * v

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


def coupled(size=1.0):
    """``½ (Σ_c z_c)² + ½ |z|²`` of each sample, times a size."""

    def hessian(xp, z, v):
        return size * (v + xp.sum(v, axis=-1, keepdims=True))

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
    "far apart": [[0, 1, 0, -1, 2], [1000, 1001, 999, 1002, 1000]],
    "last wins": [[0, 0, 0, 0, 40], [-90, -80, -70, -60, 60]],
    "first wins": [[40, 0, 0, 0, 0], [60, -80, -70, -60, -90]],
    "nearly one in float64": [[0, 1, 0, 2, 36], [36, 0, 1, 0, 2]],
    "nearly one in float32": [[0, 1, 0, 2, 17], [17, 0, 1, 0, 2]],
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
    others = np.ones((p.shape[1],) * 2) - np.eye(p.shape[1])  # 1 − p, where p is near one
    exact = np.stack([np.diag(row * (others @ row)) - np.outer(row, row) * others for row in p])
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


# Two samples with twelve outputs in all: classes before positions, behind them, and no classes.
OF_TWO_SAMPLES = {
    "softmax, classes first": (
        OutputForm("softmax", 1), cross_entropy(1, [[[1.0, 0.5, 2.0]], [[1.0, 3.0, 0.0]]]),
    ),
    "softmax, classes last": (
        OutputForm("softmax", 2), cross_entropy(2, [[[1.0], [0.5]], [[2.0], [3.0]]]),
    ),
    "dense": (OutputForm("dense"), coupled(0.1)),
}  # fmt: skip


def of_two_samples(xp, name):
    form, derivatives = OF_TWO_SAMPLES[name]
    logits = np.random.default_rng(8).normal(size=(2, 2, 3))
    hessian = [
        derivatives[1](np, logits, unit.reshape(logits.shape)).ravel() for unit in np.eye(12)
    ]
    return output_curvature(form, loss(xp, logits, derivatives), 4.0), np.stack(hessian)


def second_moments(xp, values, size):
    """Return the mean of ``r rᵀ`` over signs that are uncorrelated: columns of a Hadamard matrix."""
    drawn = [values(Draws(xp, signs[:size])) for signs in hadamard(16).astype(float)]
    rows = np.stack([xp.numpy(array).ravel() for array in drawn]).astype(float)
    return rows.T @ rows / len(rows), drawn


@pytest.mark.parametrize("name", OF_TWO_SAMPLES)
def test_4_4_mixtures_keep_samples_and_terms_apart(xp, name):
    """The mean of ``r rᵀ`` is the whole Hessian: zero between samples, and between terms."""
    root, hessian = of_two_samples(xp, name)
    found, drawn = second_moments(xp, root.mixture, 12)
    np.testing.assert_allclose(found, hessian, atol=50 * xp.eps)
    columns = [root.column(index) for index in range(root.n_columns)]
    for array in (*drawn, *columns):
        xp.check_kind(array, root.outputs)
    one = np.stack([xp.numpy(column) for column in columns]).astype(float)
    for i in range(2):
        rows = one[:, i].reshape(len(one), 6)
        own = hessian[6 * i : 6 * i + 6, 6 * i : 6 * i + 6]
        np.testing.assert_allclose(rows.T @ rows, own, atol=50 * xp.eps)


@pytest.mark.parametrize(
    ("kind", "axis", "terms"),
    [("softmax", 1, 6), ("softmax", 2, 4), ("elementwise", 2, 4), ("gradient", None, 2)],
)
def test_mixtures_of_terms_have_their_outer_products_as_mean_square(xp, kind, axis, terms):
    form = OutputForm(kind) if axis is None else OutputForm(kind, axis)
    derivatives = elementwise("squared") if kind != "softmax" else cross_entropy(axis, 1.0)
    logits = np.random.default_rng(8).normal(size=(2, 2, 3))
    root = output_curvature(form, loss(xp, logits, derivatives), 2.0)  # a term a sample: no weights
    gradient = xp.precise(xp.numpy(root.gradient)).ravel()
    place = np.arange(12).reshape(2, 2, 3)
    rows = place.reshape(2, 6) if axis is None else np.moveaxis(place, axis, -1)
    rows = rows.reshape(terms, -1)
    expected = np.zeros((12, 12))
    for own in rows:
        expected[np.ix_(own, own)] = np.outer(gradient[own], gradient[own])
    found, _ = second_moments(xp, root.term_mixture, terms)
    np.testing.assert_allclose(found, expected, atol=20 * xp.eps)


@pytest.mark.parametrize("kind", ["softmax", "logistic", "quartic"])
def test_4_4_targets_drawn_from_the_model_make_the_hessian(xp, kind):
    """The mean of ``δ δᵀ`` over all that may be drawn, each as often as the model says."""
    derivatives = cross_entropy(2, [[[1.5], [0.5]]]) if kind == "softmax" else elementwise(kind)
    # A probability of one, too: nothing else is drawn then.
    logits = np.array([[-1.5, 0.3, 40.0]] if kind == "logistic" else [[[0.5, -1.0, 0.0]] * 2])
    if kind == "softmax":
        p = softmax(np, logits[0, 0], 0)
        draws = [(np.eye(3)[[i, j]], p[i] * p[j]) for i, j in product(range(3), repeat=2)]
    elif kind == "logistic":
        p = 1 / (1 + np.exp(-logits[0]))
        coins = np.array(list(product((0.0, 1.0), repeat=3)))
        draws = [(c, np.prod(np.where(c > 0, p, 1 - p))) for c in coins]
    else:  # numbers with the mean and the variance of a standard normal one
        chances = {2.0: 0.2, -0.5: 0.8}
        draws = [
            (np.array(s), np.prod([chances[x] for x in s])) for s in product(chances, repeat=6)
        ]
    form = {"softmax": OutputForm("softmax", 2), "logistic": OutputForm("logistic")}.get(
        kind, OutputForm("elementwise")
    )
    root = output_curvature(form, loss(xp, logits, derivatives))
    found = 0.0
    for drawn, chance in draws:
        delta = xp.numpy(root.sampled(Draws(xp, drawn))).ravel().astype(float)
        assert np.isfinite(delta).all()
        found += chance * np.outer(delta, delta)
    units = np.eye(logits.size)
    hessian = [derivatives[1](np, logits, unit.reshape(logits.shape)).ravel() for unit in units]
    np.testing.assert_allclose(found, np.stack(hessian), atol=50 * xp.eps)


def test_a_dense_block_of_one_output(xp):
    root = output_curvature(OutputForm("dense"), loss(xp, np.ones((3, 1)), coupled(0.1)))
    for rows in (root.column(0), root.mixture(Draws(xp, [1.0, -1.0, 1.0]))):
        np.testing.assert_allclose(xp.numpy(rows) ** 2, 0.2, rtol=20 * xp.eps)


def test_no_target_is_drawn_of_a_distribution_that_is_not_known(xp):
    root = output_curvature(OutputForm("dense"), loss(xp, np.ones((3, 2)), coupled()))
    with pytest.raises(InputError) as caught:
        root.sampled(Draws(xp, []))
    assert str(caught.value) == (
        "fisher_type 'fisher-mc' draws targets from the model and needs to know its distribution: a "
        "cross-entropy, a squared error or a logistic loss. Choose 'ggn'."
    )


def test_any_loss_has_gradients(xp):
    given = loss(xp, np.array([[1.0, -3.0], [2.0, 0.5]]), elementwise("concave"))
    root = output_curvature(OutputForm("gradient"), given)
    fit = root.fit()
    assert float(fit.misfit) == 0 and float(fit.slope) == 3
    assert fit.misfit.dtype == given.outputs.dtype
    for refused, argument in ((root.column, 0), (root.mixture, None), (root.sampled, None)):
        with pytest.raises(
            InputError, match=r"loss_fn: its Hessian .* choose fisher_type='empirical'"
        ):
            refused(argument)


def test_a_form_is_looked_for_along_its_axes_and_those_without_any_are_not():
    looked_for = {kind: list(form.axes((8, 3, 2))) for kind, form in FORMS.items()}
    assert looked_for == {
        "softmax": [2, 1], "logistic": [-1], "elementwise": [-1], "dense": [], "gradient": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("form", "shape", "terms", "columns"),
    [
        (OutputForm("softmax", 1), (7, 5), 1, 4),
        (OutputForm("softmax", 1), (7, 5, 2, 3), 6, 24),
        (OutputForm("softmax", -1), (7, 2, 3, 5), 6, 24),
        (OutputForm("elementwise"), (7, 5), 1, 5),
        (OutputForm("logistic"), (7, 2, 3, 5), 6, 30),
        (OutputForm("elementwise"), (7,), 1, 1),
        (OutputForm("dense"), (7, 2, 3), 1, 6),
        (OutputForm("gradient"), (7, 2, 3), 1, 0),
    ],
)
def test_terms_and_root_vectors_of_a_sample(form, shape, terms, columns):
    assert (form.n_terms(shape), form.n_columns(shape)) == (terms, columns)


@pytest.mark.parametrize(
    ("kind", "eps", "largest"),
    [
        ("softmax", 2.0**-52, 1e-8),
        ("elementwise", 2.0**-23, 100 * 2.0**-23),
        ("dense", 2.0**-52, 2.0**-26),
        ("dense", 2.0**-24, 2.0**-12),
    ],
)
def test_a_form_fits_within_a_tolerance(kind, eps, largest):
    form = OutputForm(kind)
    assert form.fits(0.0, eps) and form.fits(largest, eps)
    assert not form.fits(1.005 * largest, eps) and not form.fits(float("nan"), eps)


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ((8,), OutputForm("logistic")),
        ((8, 1), OutputForm("logistic")),
        ((8, 2), OutputForm("softmax", 1)),
        ((8, 1, 2), OutputForm("softmax", 2)),
        ((8, 2, 1), OutputForm("softmax", 1)),
    ],
)
def test_classes_are_two_or_more_and_no_samples(shape, form):
    assert found_form(shape) == form


def found_form(shape=(8, 1), most=64, **fit):
    """The form found where each that is tried has this fit."""
    values = Fit(**{"misfit": 0.0, "least": 1.0, "largest": 1.0, "slope": 1.0} | fit)
    return find_form(shape, 2.0**-52, lambda forms: [values] * len(forms), most)


def test_a_loss_that_is_constant_in_a_batch_is_not_linear():
    """All its targets may be ignored."""
    assert found_form(least=0.0, largest=0.0, slope=0.0) == OutputForm("logistic")


@pytest.mark.parametrize("largest", [1e-6, 1.0, 1e6])
def test_curvature_is_negative_beyond_rounding(largest):
    """Relative to the largest, by half of the digits."""
    found_form(least=-0.9 * 2.0**-26 * largest, largest=largest)
    with pytest.raises(InputError, match="not convex"):
        found_form(least=-1.1 * 2.0**-26 * largest, largest=largest)


def test_a_dense_block_may_have_as_many_outputs_as_are_allowed(xp):
    given = loss(xp, np.random.default_rng(3).normal(size=(3, 4)), coupled())
    assert form_of(given, xp, most=4) == OutputForm("dense")


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


@pytest.mark.parametrize("extra", ["rounding", 1e-5, 1e-2])
def test_a_regulariser_is_no_cross_entropy(xp, extra):
    """Not even one that is near rounding: a cross-entropy has no curvature at all along ones."""
    logits = np.random.default_rng(4).normal(size=(3, 4))
    extra = 40 * xp.eps if extra == "rounding" else extra
    given = loss(xp, logits, cross_entropy(1, [[1.0]] * 3, extra))
    assert form_of(given, xp).kind == "dense"


def test_what_is_a_cross_entropy_at_zero_alone_is_none(xp):
    """Plus ``(z_0 − z_1)⁴ / 12``, whose curvature is zero there, and along ones."""
    gradient, own = cross_entropy(1, [[1.0]] * 3)

    def hessian(xp, z, v):
        across = xp.asarray([1.0, -1.0, 0.0], dtype=z.dtype, device=array_api_compat.device(z))
        bend = (z @ across) ** 2 * (v @ across)
        return own(xp, z, v) + bend[:, None] * across

    given = loss(xp, np.random.default_rng(4).normal(size=(3, 3)), (gradient, hessian))
    assert form_of(given, xp).kind == "dense"


@pytest.mark.parametrize("size", [1e-9, 1e9])
@pytest.mark.parametrize("kind", ["softmax", "logistic", "quartic", "dense"])
def test_a_loss_of_any_size_has_the_same_form(xp, size, kind):
    own = {"softmax": cross_entropy(1, 1.0), "dense": coupled()}.get(kind) or elementwise(kind)
    scaled = (
        lambda xp, z: size * own[0](xp, z),
        lambda xp, z, v: size * own[1](xp, z, v),
    )
    given = loss(xp, np.random.default_rng(2).normal(size=(3, 4)), scaled)
    assert form_of(given, xp).kind == {"quartic": "elementwise"}.get(kind, kind)


@pytest.mark.only_in("jit")
def test_traced_index(xp):
    jax = importlib.import_module("jax")
    logits = np.random.default_rng(5).normal(size=(3, 4))
    given = loss(xp, logits, cross_entropy(1, [[1.0]] * 3))
    root = output_curvature(OutputForm("softmax", 1), given)
    for index in range(root.n_columns):
        np.testing.assert_allclose(
            jax.jit(root.column)(index), root.column(index), rtol=1e-14, atol=1e-15
        )
