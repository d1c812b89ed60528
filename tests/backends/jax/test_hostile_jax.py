"""What cannot be measured is refused with the argument, the value and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax_networks import cross_entropy, squared_error

import spectral_core as sc
from spectral_backends.jax import CurvatureProblem
from spectral_core.errors import InputError, LayerError, NonDeterministicError

RNG = np.random.default_rng(20)
W, X, Y = RNG.normal(size=(4, 3)), RNG.normal(size=(6, 4)), RNG.normal(size=(6, 3))
LABELS = RNG.integers(0, 3, size=6)


def new(*shape):
    return RNG.normal(size=shape)


def forward(p, x):
    return x @ p["w"]


PAIR, PARAMS, BATCHES = (forward, squared_error), {"w": W}, [(X, Y)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"params": {}}, "params: .*no floating array.*empty"),
        ({"params": {"w": np.ones((4, 3), int)}}, "params: .*no floating.*int64"),
        ({"params": {"w": np.ones(3)}}, "params: .*two or more axes"),
        ({"params": {"w": W + 1j}}, "params: 'w' is complex"),
        ({"params": {"w": np.ma.masked_less(W, 0)}}, "params: 'w': a numpy.Masked.*masked values"),
        ({"params": {"w": np.where(W > 0, np.nan, W)}}, "params: 'w' holds .* NaN or infinite"),
        ({"batches": []}, "batches: it is empty"),
        ({"batches": iter(BATCHES)}, "exhausted.*list\\(batches\\)"),
        ({"batches": X}, "batches: an array was passed"),
        ({"batches": 3}, "batches: a int cannot be iterated"),
        ({"batches": [X]}, r"batches: a batch is a.*\(\*inputs, targets\)"),
        ({"batches": [(X, Y), ("text", Y)]}, "batches: batch 1 holds .*"),
        ({"batches": [(X, np.where(Y > 0, np.nan, Y))]}, "batches: batch 0 holds .* NaN"),
        ({"batches": [(np.ma.masked_less(X, 0), Y)]}, "in batch 0: .*masked values.*x.filled"),
        ({"batches": [(X + 1j, Y)]}, "batch 0 holds complex"),
        ({"batches": [(X, np.where(Y > 0, np.inf, Y))]}, "the loss of batch 0 is"),
        ({"loss_fn": 3}, "loss_fn: 3 cannot be called"),
        ({"loss_fn": (forward, lambda z, y: (z - y) ** 2)}, r"loss: .*shape \(6, 3\).*mean"),
        ({"loss_fn": (forward, lambda z, y: "one")}, "loss: it returned a str"),
        ({"loss_fn": (forward, lambda z, y: jnp.argmax(z.sum(0)))}, "loss: .*int"),
        ({"loss_fn": (lambda p, x: ("no", x @ p["w"]), squared_error)}, "forward: .*a str"),
        ({"loss_fn": (lambda p, x: (), squared_error)}, "forward: it returned no array"),
        ({"loss_fn": lambda p, b: (squared_error(forward(p, b[0]), b[1]), 0)}, "tuple of 2"),
        ({"loss_fn": lambda p, b: 0.0 if (p["w"] > 0).all() else p["w"].sum()}, "jnp.where"),
        ({"reduction": "max"}, "reduction: 'max'"),
        ({"weight": 3}, "weight: a int cannot be called"),
        ({"weight": lambda b: "many"}, "weight: it returned 'many'"),
        ({"weight": lambda b: 0}, "batches: no term counts"),
        ({"chunk_size": 0}, "chunk_size: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"dtype": "float16"}, "dtype: float16"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_used(changed, words):
    arguments = {"loss_fn": PAIR, "params": PARAMS, "batches": BATCHES} | changed
    with pytest.raises(InputError, match=words):
        CurvatureProblem(**arguments)


def test_traced_arrays_are_refused():
    with pytest.raises(InputError, match="outside of jit"):
        jax.jit(lambda w: CurvatureProblem(PAIR, {"w": w}, BATCHES).gradients(["w"]))(W)
    with pytest.raises(InputError, match="outside of jit"):
        jax.jit(lambda x: CurvatureProblem(PAIR, PARAMS, [(x, Y)]).gradients(["w"]))(X)


def test_a_while_loop_has_no_gradient():
    def looping(p, x):
        return lax.while_loop(lambda s: s.sum() < 9, lambda s: s + 1, x @ p["w"])

    with pytest.raises(InputError, match=r"no gradient.*lax\.scan"):
        CurvatureProblem((looping, squared_error), PARAMS, BATCHES)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda w, x: lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: x @ w, w), "lax.cond.*where"),
        (lambda w, x: x @ jnp.sin(w), "sin"),
        (lambda w, x: x @ lax.stop_gradient(w), "stop_gradient"),
        (lambda w, x: lax.scan(lambda w, x: (2 * w, x @ w), w, x)[1], "carried by lax.scan"),
    ],
)  # fmt: skip
def test_a_matrix_out_of_sight_is_skipped_with_the_reason(function, words):
    params = {"w": W, "other": new(3, 3)}
    problem = CurvatureProblem(
        (lambda p, x: function(p["w"], x) @ p["other"], squared_error), params, BATCHES
    )
    assert [layer.name for layer in problem.layers()] == ["other"]
    assert __import__("re").search(words, problem.skipped()["w"])
    with pytest.raises(InputError, match=words):
        problem.gradients(["w"])


def test_a_bare_loss_has_a_hessian_and_no_gauss_newton_part():
    def loss_fn(p, batch):
        return squared_error(forward(p, batch["x"]), batch["y"]) + 0.1 * (p["w"] ** 2).sum()

    problem = CurvatureProblem(
        loss_fn, PARAMS, [{"x": X[:2], "y": Y[:2]}, {"x": X[2:], "y": Y[2:]}]
    )
    u, v = np.eye(3)[:, :2], np.eye(4)[:, :2]
    expected = np.diag(X.T @ X / 6)[:2] + 0.2
    np.testing.assert_allclose(problem.curvatures("w", u, v), expected, rtol=1e-12)
    for ask in (
        lambda: problem.curvatures("w", u, v, "ggn"),
        lambda: list(problem.layer_curvatures({"w": (u, v)}, "ggn")),
        lambda: problem.kronecker_factors(["w"]),
        lambda: list(problem.layer_curvatures({"w": (u, v)}, engine="columns")),
    ):
        with pytest.raises(InputError, match=r"pair \(forward, loss\)"):
            ask()
    report = sc.measure(problem, top_k=3, progress=False)
    assert report["w"].certificate.engine == "double-backward"


def test_unknown_layers_kinds_and_shapes():
    problem = CurvatureProblem(PAIR, PARAMS, BATCHES)
    u, v = np.ones((3, 1)), np.ones((4, 1))
    with pytest.raises(InputError, match="'v'.*layers are: w"):
        problem.gradients(["v"])
    with pytest.raises(InputError, match="kind: 'fisher'"):
        problem.curvatures("w", u, v, "fisher")
    with pytest.raises(InputError, match=r"pass \(3, K\) and \(4, K\)"):
        problem.curvatures("w", v, u)
    with pytest.raises(InputError, match=r"layer 'w': a direction: .*masked values"):
        problem.curvatures("w", np.ma.masked_equal(u, 1), v)


def test_terms_are_those_of_the_loss():
    """Ragged batches, masks that differ and sums: all give what one batch gives."""

    def masked(z, targets):
        y, mask = targets
        return (((z - y) ** 2).sum(1) * mask).sum() / mask.sum()

    mask = np.array([1.0, 0, 1, 1, 1, 0])
    u, v = np.eye(3), np.eye(4)[:, :3]
    losses = {
        "mask": (masked, (Y, mask), {}, 4),
        "sum": (lambda z, t: ((z - t[0]) ** 2).sum(), (Y, mask), {}, 18),
        "half": (lambda z, t: 0.5 * ((z - t[0]) ** 2).sum(1).mean(), (Y, mask), {}, 6),
        "halved": (lambda z, t: ((z - t[0]) ** 2).sum(1).mean() / 2, (Y, mask), {}, 6),
        "vector": (lambda z, t: ((z - t[0]) ** 2).mean(0).sum() + 0, (Y, mask), {}, 6),
        "told": (
            lambda z, t: ((z - t[0]) ** 2).sum() / 7, (Y, mask),
            {"weight": lambda b: len(b[0]), "reduction": "sum"}, 6,
        ),
    }  # fmt: skip
    for name, (loss, targets, options, count) in losses.items():

        def cut(part, targets=targets):
            return (X[part], tuple(t[part] for t in targets))

        whole = CurvatureProblem((forward, loss), PARAMS, [cut(slice(None))], **options)
        parts = [cut(slice(a, b)) for a, b in ((0, 3), (3, 6))]
        split = CurvatureProblem((forward, loss), PARAMS, parts, **options)
        assert split.describe()["n_terms"] == count, name
        assert split.describe()["loss"] == pytest.approx(whole.describe()["loss"]), name
        np.testing.assert_allclose(
            split.curvatures("w", u, v), whole.curvatures("w", u, v), rtol=1e-12, err_msg=name
        )


def test_a_loss_that_does_not_add_up_is_refused_unless_told():
    def ratio(z, y):
        return ((z - y) ** 2).sum() / (y**2).sum() ** 0.5

    batches = [(X[:3], Y[:3]), (X[3:], Y[3:])]
    with pytest.raises(InputError, match=r"weight: .*halves.*Pass weight="):
        CurvatureProblem((forward, ratio), PARAMS, batches)
    CurvatureProblem((forward, ratio), PARAMS, batches, weight=lambda batch: len(batch[0]))


def test_a_loader_that_shuffles_is_refused():
    class Shuffled:
        turn = 0

        def __iter__(self):
            self.turn += 1
            order = np.random.default_rng(self.turn).permutation(6)
            return iter([(X[order[:3]], Y[order[:3]]), (X[order[3:]], Y[order[3:]])])

    with pytest.raises(NonDeterministicError, match="change between two passes"):
        CurvatureProblem(PAIR, PARAMS, Shuffled())


def test_functions_with_their_own_derivative_keep_it_in_both_orders():
    """A custom_vjp cannot be pushed forward; its curvature is found backwards first."""

    @jax.custom_vjp
    def softplus(x):
        return jnp.logaddexp(x, 0)

    softplus.defvjp(lambda x: (softplus(x), x), lambda x, g: (g * jax.nn.sigmoid(x),))
    params = {"w": W, "head": new(3, 3)}

    def custom(p, x):
        return softplus(x @ p["w"]) @ p["head"]

    def plain(p, x):
        return jnp.logaddexp(x @ p["w"], 0) @ p["head"]

    u, v = new(3, 2), new(4, 2)
    one, other = (
        CurvatureProblem((f, cross_entropy), params, [(X, LABELS)]) for f in (custom, plain)
    )
    for kind in ("hessian", "ggn"):
        np.testing.assert_allclose(
            one.curvatures("w", u, v, kind), other.curvatures("w", u, v, kind), rtol=1e-11
        )


def test_a_straight_through_estimator_does_not_pass_for_linear():
    """Its derivative rule is not the function's derivative: the probe sees what the jaxpr hides."""

    @jax.custom_jvp
    def hidden(x):
        return jax.nn.relu(x)

    hidden.defjvp(lambda primals, tangents: (hidden(*primals), jnp.cos(primals[0]) * tangents[0]))
    params = {"w": W, "head": new(3, 2)}
    problem = CurvatureProblem(
        (lambda p, x: hidden(x @ p["w"]) @ p["head"], cross_entropy), params, [(X, LABELS % 2)]
    )
    u, v = new(3, 9), new(4, 9)
    (finding,) = problem.layer_curvatures({"w": (u, v)})
    assert finding.certificate.engine == "double-backward"
    assert "second-order part" in finding.certificate.reason
    (refused,) = problem.layer_curvatures({"w": (u, v)}, engine="columns")
    assert isinstance(refused, LayerError) and "second-order part" in refused.reason


def test_single_precision_and_half_precision_parameters():
    single = CurvatureProblem(PAIR, {"w": W.astype(np.float32)}, BATCHES)
    double = CurvatureProblem(PAIR, PARAMS, BATCHES)
    half = CurvatureProblem(PAIR, {"w": jnp.asarray(W, jnp.bfloat16)}, BATCHES)
    u, v = np.eye(3)[:, :2], np.eye(4)[:, :2]
    found = single.curvatures("w", u, v)
    assert found.dtype == jnp.float32 and single.gradients(["w"])["w"].dtype == jnp.float32
    np.testing.assert_allclose(found, double.curvatures("w", u, v), rtol=1e-5)
    assert half.describe()["dtype"] == "float32" and half.describe()["model_dtype"] == "bfloat16"
    wide = CurvatureProblem(PAIR, {"w": W.astype(np.float32)}, BATCHES, dtype="float64")
    np.testing.assert_allclose(wide.curvatures("w", u, v), double.curvatures("w", u, v), rtol=1e-6)


def test_double_precision_needs_x64():
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(InputError, match="jax_enable_x64"):
        CurvatureProblem(PAIR, PARAMS, BATCHES, dtype="float64")
    assert CurvatureProblem(PAIR, PARAMS, BATCHES).describe()["dtype"] == "float32"


def test_a_layer_whose_second_derivative_is_not_finite_is_skipped():
    """A row of zeros, whose norm has no derivative there but one that is taken to be finite."""

    def penalised(p, batch):
        safe = jnp.where(p["w"] ** 2 > 0, p["w"] ** 2, 0.0)
        norms = jnp.sum(safe, axis=0) ** 0.75
        return squared_error(jnp.tanh(batch[0] @ p["w"]) @ p["head"], batch[1]) + norms.sum()

    params = {"w": np.where(np.arange(3) == 1, 0.0, W), "head": new(3, 3)}
    report = sc.measure(CurvatureProblem(penalised, params, BATCHES), top_k=3)
    assert list(report) == ["head"]
    assert "a norm, a square root or a power below two at zero" in report.skipped["w"]
    assert "of its 3 curvatures 3 NaN" in report.skipped["w"]
