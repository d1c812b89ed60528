"""Kronecker factors against dense Hessians, textbook sums and other ways to write a network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax_networks import CASES, Numbers, cross_entropy, layer_norm, squared_error

from spectral_backends.jax import CurvatureProblem
from spectral_core.errors import InputError


def close(found, expected, rtol=1e-11):
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


def perceptron(p, x):
    return jnp.tanh(x @ p["hidden"]) @ p["head"]


def perceptron_params(new):
    return {"hidden": new(5, 6), "head": new(6, 4)}


def masked(z, targets):
    labels, mask = targets
    each = -jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], 1)[:, 0]
    return (each * mask).sum() / mask.sum()


def logistic(z, y):
    return (jnp.logaddexp(0, z) - y * z).mean()


def coupled(z, y):
    return jnp.sqrt(((z - y) ** 2).sum(1) + 1).mean()


def by_hand(z, y):
    return (jax.scipy.special.logsumexp(z, axis=1) - z[jnp.arange(len(z)), y]).mean()


MASK = np.array([1, 0, 2, 1, 0, 0.5, 1, 1])
LOSSES = {
    "classes": (cross_entropy, "labels", 8),
    "by hand": (by_hand, "labels", 8),
    "soft": (lambda z, y: -(y * jax.nn.log_softmax(z)).sum(1).mean(), "probabilities", 8),
    "summed": (lambda z, y: 8 * cross_entropy(z, y), "labels", 8),
    "masked": (masked, "masked", MASK.sum()),
    "squared": (squared_error, "numbers", 8),
    "elements": (lambda z, y: jnp.mean((z - y) ** 2), "numbers", 32),
    "logistic": (logistic, "bits", 32),
    "coupled": (coupled, "numbers", 8),
}


def targets_of(kind):
    new = Numbers(11)
    return {
        "labels": lambda: new.labels(4, 8),
        "probabilities": lambda: jax.nn.softmax(new(8, 4)),
        "masked": lambda: (new.labels(4, 8), MASK),
        "numbers": lambda: new(8, 4),
        "bits": lambda: jnp.round(jax.nn.sigmoid(new(8, 4))),
    }[kind]()


@pytest.mark.parametrize("name", LOSSES)
def test_4_4_output_factor_of_a_head_is_the_mean_hessian_in_its_outputs(name):
    loss, kind, count = LOSSES[name]
    new, y = Numbers(1), targets_of(kind)
    params, x = perceptron_params(new), 3 * new(8, 5)
    options = {"reduction": "sum", "weight": lambda batch: 8} if name == "summed" else {}
    problem = CurvatureProblem((perceptron, loss), params, [(x, y)], **options)
    factors = problem.kronecker_factors(["head"])["head"]
    z = perceptron(params, x)
    dense = jax.hessian(lambda z: loss(z, y))(z)
    scale = 1 / count if name == "summed" else 1
    close(factors.output_covariance, scale * sum(dense[i, :, i] for i in range(8)))
    assert factors.output_noise is None and not factors.notes
    weights = MASK if name == "masked" else np.ones(8)
    hidden = np.asarray(jnp.tanh(x @ params["hidden"]))
    close(factors.input_covariance, (hidden.T * weights) @ hidden / weights.sum())
    assert problem.describe()["n_terms"] == count


def test_5_4_without_sharing_from_per_sample_derivatives():
    """NumPy recomputes C_δ, C_A and h^GGN from the Jacobian of each sample (Theory 5.4)."""
    new = Numbers(2)
    params, x, y = perceptron_params(new), new(10, 5), new.labels(4, 10)
    batches = [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]
    problem = CurvatureProblem((perceptron, cross_entropy), params, batches)
    deltas = []
    for i in range(10):
        before = x[i] @ params["hidden"]
        after = partial(lambda s: jnp.tanh(s) @ params["head"])
        jacobian = np.asarray(jax.jacobian(after)(before))
        p = np.asarray(jax.nn.softmax(after(before)))
        root = np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p))
        deltas.append(root.T @ jacobian)
    deltas, a = np.stack(deltas), np.asarray(x)
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(6, 3)), rng.normal(size=(5, 3))
    ggn = np.einsum("icm,mk,in,nk->ick", deltas, u, a, v)
    factors = problem.kronecker_factors(["hidden"])["hidden"]
    close(factors.output_covariance, np.einsum("icm,icl->ml", deltas, deltas) / 10)
    close(factors.input_covariance, a.T @ a / 10)
    close(problem.curvatures("hidden", u, v, "ggn"), (ggn**2).sum((0, 1)) / 10)
    g = np.stack([
        np.asarray(jax.grad(lambda s, i=i: cross_entropy(jnp.tanh(s) @ params["head"], y[i]))(x[i] @ params["hidden"]))
        for i in range(10)
    ])  # fmt: skip
    empirical = problem.kronecker_factors(["hidden"], fisher_type="empirical")["hidden"]
    close(empirical.output_covariance, g.T @ g / 10)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("loss", ["tokens", "sequences"])
def test_shared_positions_from_jacobians(sharing, loss):
    """A mixing network with probes written by hand; one sequence is a sample (Theory 4.3)."""
    new = Numbers(3)
    samples, tokens = 3, 4
    params, x = {"w": new(5, 6), "head": new(6, 3)}, new(samples, tokens, 5)

    def behind(s, head):
        mixed = s + jnp.tanh(layer_norm(s)).mean(-2, keepdims=True)
        return (mixed if loss == "tokens" else mixed.mean(-2)) @ head

    def forward(p, x):
        return behind(x @ p["w"], p["head"])

    y = new.labels(3, *((samples, tokens) if loss == "tokens" else (samples,)))
    problem = CurvatureProblem((forward, cross_entropy), params, [(x, y)])
    factors = problem.kronecker_factors(["w"], kfac_approx=sharing)["w"]
    terms = y.size
    c_delta = np.zeros((6, 6))
    for i in range(samples):
        s = x[i] @ params["w"]
        z = behind(s, params["head"]).reshape(-1, 3)
        jacobian = np.asarray(jax.jacobian(lambda s: behind(s, params["head"]))(s))
        jacobian = jacobian.reshape(len(z), 3, tokens, 6)
        for t in range(len(z)):
            p = np.asarray(jax.nn.softmax(z[t]))
            root = np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p))
            delta = np.einsum("cr,csm->rsm", root, jacobian[t])
            if sharing == "reduce":
                delta = delta.sum(1, keepdims=True)
            c_delta += np.einsum("rsm,rsl->ml", delta, delta) / terms
    rows = np.asarray(x) if sharing == "expand" else np.asarray(x).mean(1, keepdims=True)
    close(factors.output_covariance, c_delta)
    close(factors.input_covariance, np.einsum("bsn,bsl->nl", rows, rows) / rows[..., 0].size)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_a_convolution_has_the_factors_of_a_product_with_its_patches(sharing):
    case = CASES["cnn"]()

    def written_out(p, x):
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = jnp.stack([
            jnp.stack([padded[:, i : i + 6, j : j + 5] for j in range(3)], -1) for i in range(3)
        ], -2)  # fmt: skip
        flat = patches.reshape(*x.shape[:3], 18)
        made = [jnp.einsum("bhwn,mn->bhwm", flat, p[0])]
        hidden = jax.nn.relu(made[0])
        hidden = lax.reduce_window(hidden, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return hidden.mean((1, 2)) @ p[1]

    def convolved(p, x):
        hidden = lax.conv_general_dilated(
            x, p[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = lax.reduce_window(
            jax.nn.relu(hidden), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        return hidden.mean((1, 2)) @ p[1]

    kernel, head = case.params[0], case.params[2]
    flat = kernel.transpose(3, 2, 0, 1).reshape(6, 18)
    batches = case.batches[:1]
    one = CurvatureProblem((convolved, cross_entropy), [kernel, head], batches)
    other = CurvatureProblem((written_out, cross_entropy), [flat, head], batches)
    for name in ("0", "1"):
        a, b = (p.kronecker_factors([name], kfac_approx=sharing)[name] for p in (one, other))
        close(a.output_covariance, b.output_covariance)
        close(a.input_covariance, b.input_covariance)


def test_scanned_blocks_have_the_factors_of_written_out_ones():
    case = CASES["scanned"]()
    stacked = case.params["blocks"]
    params = {
        "blocks": [jax.tree_util.tree_map(lambda w, i=i: w[i], stacked) for i in range(3)],
        "head": case.params["head"],
    }

    def forward(p, x):
        for w in p["blocks"]:
            hidden = jax.nn.relu(x @ w["up"]["kernel"])
            x = x + hidden @ w["down"]["kernel"] + w["down"]["bias"]
        return x @ p["head"]["kernel"]

    one = CurvatureProblem((case.forward, case.loss), case.params, case.batches)
    other = CurvatureProblem((forward, case.loss), params, case.batches)
    names = list(case.layers)
    assert names == [layer.name for layer in one.layers()] or set(names) == {
        layer.name for layer in other.layers()
    }
    found, expected = one.kronecker_factors(names), other.kronecker_factors(names)
    for name in names:
        close(found[name].output_covariance, expected[name].output_covariance)
        close(found[name].input_covariance, expected[name].input_covariance)


def test_repeated_samples_change_nothing():
    """Theory 4.5."""
    new = Numbers(4)
    params, x, y = perceptron_params(new), new(4, 5), new.labels(4, 4)
    once = CurvatureProblem((perceptron, cross_entropy), params, [(x, y)])
    thrice = CurvatureProblem(
        (perceptron, cross_entropy), params, [(jnp.tile(x, (3, 1)), jnp.tile(y, 3))]
    )
    for name in ("hidden", "head"):
        a, b = (p.kronecker_factors([name])[name] for p in (once, thrice))
        close(a.output_covariance, b.output_covariance)
        close(a.input_covariance, b.input_covariance)


@pytest.mark.parametrize("delta", ["ggn", "fisher-mc", "empirical"])
def test_draws_are_unbiased_and_say_their_error(delta):
    new = Numbers(5)
    params, x, y = perceptron_params(new), new(6, 5), new.labels(4, 6)
    problem = CurvatureProblem((perceptron, cross_entropy), params, [(x, y)])
    exact = problem.kronecker_factors(
        ["hidden"], fisher_type="ggn" if delta == "fisher-mc" else delta
    )
    drawn = problem.kronecker_factors(
        ["hidden"], fisher_type=delta, mc_samples=4000, max_columns=0
    )["hidden"]
    c, noise = (np.asarray(a) for a in (exact["hidden"].output_covariance, drawn.output_noise))
    off = np.asarray(drawn.output_covariance) - c
    assert "4000 draws" in drawn.notes[0]
    if delta == "empirical":  # one term a sample, whose sign does not matter
        return close(drawn.output_covariance, c)
    # Errors and noise have one distribution: their norms over 36 entries differ by little.
    assert 0.2 < np.linalg.norm(off) / np.linalg.norm(noise) < 5
    assert np.linalg.norm(off) < 0.2 * np.linalg.norm(c)


def test_samples_that_meet_are_drawn_and_a_tied_matrix_says_what_is_left_out():
    case = CASES["transformer"]()
    problem = CurvatureProblem((case.forward, case.loss), case.params, case.batches)
    factors = problem.kronecker_factors(["embed", "up"])
    assert any("other way" in note for note in factors["embed"].notes)
    assert not factors["up"].notes

    def flattened(p, tokens):
        return case.forward(p, tokens).reshape(-1, 7)

    batches = [(x, y.ravel()) for x, y in case.batches]
    flat = CurvatureProblem(
        (flattened, case.loss), case.params, batches, weight=lambda batch: batch[1].size
    )
    drawn = flat.kronecker_factors(["up"], mc_samples=2000)["up"]
    assert "Monte-Carlo" in drawn.notes[0]
    off = np.asarray(drawn.output_covariance - factors["up"].output_covariance)
    assert np.linalg.norm(off) < 0.2 * np.linalg.norm(factors["up"].output_covariance)
    close(drawn.input_covariance, factors["up"].input_covariance)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda z, y: -jnp.cos(z - y).sum(1).mean(), "not convex"),
        (lambda z, y: (z * y).sum(1).mean(), "linear in the outputs"),
        (lambda z, y: jnp.mean((z - z[::-1]) ** 2 * (1 + z**2)), "compares the samples"),
    ],
)
def test_losses_without_a_root_are_refused(loss, words):
    new = Numbers(6)
    params, x, y = perceptron_params(new), new(4, 5), 3 + new(4, 4)
    problem = CurvatureProblem((perceptron, loss), params, [(x, y)])
    with pytest.raises(InputError, match=words):
        problem.kronecker_factors(["head"])
