"""`spectral_newton_step` against the same step written out in NumPy float64 with its SVD."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spectral_core as sc

settings.register_profile("project", deadline=None, max_examples=150)
settings.load_profile("project")


def textbook(weight, gradient, momentum, lr, alpha, damping, beta, nesterov, weight_decay, scale):
    """One matrix, one step; nothing of the library but the closed form of max T."""
    momentum = beta * momentum + (1 - beta) * gradient
    direction = beta * momentum + (1 - beta) * gradient if nesterov else momentum
    u, sigma, vh = np.linalg.svd(direction, full_matrices=False)
    update = u @ np.diag(sigma / (sigma**alpha + damping * sigma[0] ** alpha)) @ vh
    if scale == "rms":
        update = 0.2 * update / np.sqrt(np.mean(update**2))
    elif scale == "spectral":
        update = update / sc.transfer_bound(alpha, damping, sigma_max=sigma[0])
    return -lr * (update + weight_decay * weight), momentum


def quadratic(shape, seed):
    """A matrix problem: the gradient of ``½ ‖A (W − W*)‖²``, well conditioned."""
    rng = np.random.default_rng(seed)
    a = np.eye(shape[0]) + 0.1 * rng.normal(size=(shape[0], shape[0]))
    start, target = rng.normal(size=(2, *shape))
    return start, lambda w: a.T @ a @ (w - target)


@pytest.mark.parametrize(
    ("alpha", "damping", "nesterov", "weight_decay", "scale"),
    [(2.0, 0.1, True, 0.1, "rms"), (1.0, 0.1, False, 0.0, "spectral"), (0.8, 0.3, True, 0.01, "none"),
     (1.5, 0.05, True, 0.0, "spectral"), (4.0, 0.2, False, 0.1, "rms")],
)  # fmt: skip
def test_fifty_steps_of_the_textbook(xp, alpha, damping, nesterov, weight_decay, scale):
    options = {
        "damping": damping,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "scale": scale,
    }

    def step(w, g, m):
        return sc.spectral_newton_step(
            w, g, m, lr=0.05, alpha=alpha, beta=0.9, method="eigh", **options
        )

    start, gradient_of = quadratic((5, 8), 0)
    expected, held = start.astype(xp.dtype).astype(float), np.zeros_like(start)
    weight, momentum = xp.array(expected), xp.array(held)
    for _ in range(50):
        gradient = gradient_of(expected).astype(xp.dtype).astype(float)
        moved, momentum = xp.run(step, weight, xp.array(gradient), momentum)
        assert np.shape(xp.numpy(moved)) == (5, 8)
        weight = weight + moved
        change, held = textbook(expected, gradient, held, 0.05, alpha, beta=0.9, **options)
        expected = expected + change
    # Gradients are shared, so errors add up: 50 steps, each off by the rounding of its Gram matrix
    # (a few hundred ε at these dampings) times lr and the size of the update.
    size = 50 * np.max(np.abs(change)) + np.max(np.abs(expected))
    assert np.max(np.abs(xp.numpy(weight) - expected)) <= 2000 * xp.eps * size
    assert np.max(np.abs(xp.numpy(momentum) - held)) <= 200 * xp.eps * np.max(np.abs(held))
    xp.check_kind(momentum, xp.array(held))


def test_a_batch_is_its_matrices(xp):
    rng = np.random.default_rng(1)
    w, g, m = (rng.normal(size=(2, 3, 4, 6)) for _ in range(3))

    def step(*arrays):
        return sc.spectral_newton_step(
            *arrays, lr=0.1, alpha=1.2, weight_decay=0.1, matrices="stack"
        )

    together = [xp.numpy(a) for a in xp.run(step, *map(xp.array, (w, g, m)))]
    for i in range(2):
        for j in range(3):
            alone = xp.run(step, *(xp.array(a[i, j]) for a in (w, g, m)))
            for one, many in zip(alone, together, strict=True):
                assert np.allclose(xp.numpy(one), many[i, j], rtol=0, atol=200 * xp.eps)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((12, 5), "qkv"), ((12, 5), "matrix rows=6,3,3"), ((4, 3, 2, 3), "conv groups=2"),
     ((3, 4, 5), "stack"), ((5, 12), "matrix columns=4"), ((6, 4, 3), "conv-transpose groups=2")],
)  # fmt: skip
def test_split_equals_each_block_by_itself(xp, shape, spec):
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=shape) for _ in range(3)]
    layout = sc.as_matrices(shape, spec)

    def whole(*given_arrays):
        parts = zip(*(layout.split(array) for array in given_arrays), strict=True)
        results = [
            sc.spectral_newton_step(*part, lr=0.1, alpha=1.4, method="eigh") for part in parts
        ]
        return tuple(layout.merge([r[i] for r in results]) for i in range(2))

    def told(*given_arrays):
        return sc.spectral_newton_step(
            *given_arrays, lr=0.1, alpha=1.4, method="eigh", matrices=spec
        )

    step, momentum = xp.run(whole, *map(xp.array, arrays))
    same = xp.run(told, *map(xp.array, arrays))
    split = [layout.split(a) for a in arrays]
    blocks = [[], []]
    for part in zip(*split, strict=True):
        results = [
            textbook(w, g, m, 0.1, 1.4, 0.1, 0.95, True, 0.0, "rms")
            for w, g, m in zip(*part, strict=True)
        ]
        for i in range(2):
            blocks[i].append(np.stack([r[i] for r in results]))
    for found, told_so, blocks_of_it in zip((step, momentum), same, blocks, strict=True):
        expected = layout.merge(blocks_of_it)
        assert np.allclose(xp.numpy(found), expected, rtol=0, atol=1e3 * xp.eps)
        assert np.allclose(xp.numpy(told_so), expected, rtol=0, atol=1e3 * xp.eps)


def test_what_is_not_finite_is_skipped_and_stays_alone(xp):
    rng = np.random.default_rng(3)
    w, g, m = (rng.normal(size=(4, 3, 5)) for _ in range(3))
    g[1, 0, 0], g[2, 1, 2] = np.nan, -np.inf

    def step(*arrays):
        return sc.spectral_newton_step(*arrays, lr=0.1, alpha=2.0, weight_decay=0.1)

    moved, momentum = (xp.numpy(a) for a in xp.run(step, *map(xp.array, (w, g, m))))
    kept = xp.numpy(xp.array(m))
    assert np.all(moved[1:3] == 0) and np.array_equal(momentum[1:3], kept[1:3])
    for i in (0, 3):
        change, held = textbook(w[i], g[i], m[i], 0.1, 2.0, 0.1, 0.95, True, 0.1, "rms")
        assert np.allclose(moved[i], change, atol=1e3 * xp.eps)
        assert np.allclose(momentum[i], held, atol=1e3 * xp.eps)


@pytest.mark.parametrize("scale", ["rms", "spectral", "none"])
def test_9_9_without_a_gradient_there_is_no_step(xp, scale):
    rng = np.random.default_rng(9)
    w, m = rng.normal(size=(2, 4, 3, 5))
    g = np.zeros_like(w)
    g[2], g[3] = rng.normal(size=(2, 3, 5)) * [[[1.0]], [[1e-30]]]
    for decay in (0.0, 0.1):

        def step(*arrays, decay=decay):
            return sc.spectral_newton_step(
                *arrays, lr=0.1, alpha=2.0, weight_decay=decay, scale=scale
            )

        moved, momentum = (xp.numpy(a) for a in xp.run(step, *map(xp.array, (w, g, m))))
        assert np.allclose(moved[:2], -0.1 * decay * w[:2], rtol=4 * xp.eps, atol=0)
        assert np.allclose(momentum[:2], 0.95 * m[:2], rtol=4 * xp.eps, atol=0)
        for i in (2, 3):  # a gradient that is there counts, however small
            change, held = textbook(w[i], g[i], m[i], 0.1, 2.0, 0.1, 0.95, True, decay, scale)
            assert np.allclose(moved[i], change, rtol=0, atol=1e3 * xp.eps)
            assert np.allclose(momentum[i], held, rtol=0, atol=1e3 * xp.eps)


def test_9_9_a_matrix_whose_gradients_end_stays(xp):
    """Momentum becomes ever smaller, in float32 to numbers that are no more normal: no matter."""
    rng = np.random.default_rng(10)
    weight, gradient = (xp.array(rng.normal(size=(3, 4))) for _ in range(2))
    zero, momentum = xp.array(np.zeros((3, 4))), xp.array(np.zeros((3, 4)))

    def step(*arrays):
        return sc.spectral_newton_step(*arrays, lr=0.1, alpha=2.0, damping=1e-3)

    with np.errstate(over="raise", invalid="raise"):
        _, momentum = xp.run(step, weight, gradient, momentum)
        for size in (1.0, 1e-10, 1e-30, 1e-42 if xp.eps > 1e-10 else 1e-310):
            moved, _ = xp.run(step, weight, zero, size * momentum)
            assert np.all(xp.numpy(moved) == 0)
    again, _ = xp.run(step, weight, gradient, size * momentum)
    first, _ = xp.run(step, weight, gradient, zero)
    assert np.array_equal(xp.numpy(again), xp.numpy(first))


@given(
    st.lists(st.sampled_from([0.0, 0.0, 1.0, 1e-9, 1e-60]), min_size=1, max_size=12),
    st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 2.0]), st.floats(0, 0.99),
)  # fmt: skip
def test_9_9_a_way_has_one_step_for_each_gradient(sizes, seed, alpha, beta):
    rng = np.random.default_rng(seed)
    weight, momentum = rng.normal(size=(4, 5)), np.zeros((4, 5))
    for scale, norm, most in (
        ("rms", lambda s: np.sqrt(np.mean(s**2)), 0.2),
        ("spectral", lambda s: np.linalg.norm(s, 2), 1.0),
    ):
        way = 0.0
        for size in sizes:
            step, momentum = sc.spectral_newton_step(
                weight, size * rng.normal(size=(4, 5)), momentum,
                lr=0.1, alpha=alpha, beta=beta, scale=scale, method="svd",
            )  # fmt: skip
            way += norm(step)
        there = np.count_nonzero(sizes)
        assert way <= 0.1 * most * there * (1 + 1e-12)


@pytest.mark.parametrize("spec", ["qkv", "matrix rows=6,3,3"])
def test_a_block_without_a_gradient_stays_alone(xp, spec):
    rng = np.random.default_rng(11)
    w, g, m = rng.normal(size=(3, 12, 5))
    zero, bad = (slice(0, 4), slice(4, 8)) if spec == "qkv" else (slice(0, 6), slice(6, 9))
    g[zero], g[bad, 1] = 0.0, np.nan

    def step(*arrays):
        return sc.spectral_newton_step(*arrays, lr=0.1, alpha=2.0, matrices=spec)

    moved, momentum = (xp.numpy(a) for a in xp.run(step, *map(xp.array, (w, g, m))))
    assert np.all(moved[zero] == 0) and np.all(moved[bad] == 0) and np.all(moved[bad.stop :])
    kept = xp.numpy(xp.array(m))
    assert np.array_equal(momentum[bad], kept[bad])
    assert np.allclose(momentum[zero], 0.95 * m[zero], rtol=4 * xp.eps, atol=0)


@pytest.mark.parametrize("scale", ["rms", "spectral", "none"])
def test_zero_is_zero(xp, scale):
    zero, weight = xp.array(np.zeros((2, 3, 4))), xp.array(np.ones((2, 3, 4)))
    for decay in (0.0, 0.5):
        moved, momentum = xp.run(
            lambda w, g, m, d=decay: sc.spectral_newton_step(
                w, g, m, lr=0.1, alpha=1.0, weight_decay=d, scale=scale
            ),
            weight, zero, zero,
        )  # fmt: skip
        assert np.all(xp.numpy(momentum) == 0)
        assert np.allclose(xp.numpy(moved), -0.1 * decay, rtol=2 * xp.eps, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_9_9_the_scale_of_gradients_does_not_matter(xp, alpha):
    rng = np.random.default_rng(4)
    w, g, m = (rng.normal(size=(4, 7)) for _ in range(3))
    for scale in ("rms", "spectral"):

        def step(*arrays, s=scale):
            return sc.spectral_newton_step(*arrays, lr=0.1, alpha=alpha, scale=s)[0]

        one = xp.numpy(xp.run(step, *map(xp.array, (w, g, m))))
        for k in (2.0**-30, 2.0**30):
            other = xp.numpy(xp.run(step, *map(xp.array, (w, k * g, k * m))))
            assert np.allclose(one, other, rtol=0, atol=1e3 * xp.eps * np.max(np.abs(one)))


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31),
    st.floats(0, 4), st.floats(0.01, 1), st.floats(1e-4, 10),
)  # fmt: skip
def test_9_9_bounds_of_a_step(m, n, seed, alpha, damping, lr):
    w, g, held = np.random.default_rng(seed).normal(size=(3, m, n))
    for scale in ("spectral", "rms"):
        step, _ = sc.spectral_newton_step(
            w, g, held, lr=lr, alpha=alpha, damping=damping, scale=scale, method="svd"
        )
        if scale == "rms":
            assert abs(np.sqrt(np.mean(step**2)) - 0.2 * lr) <= 1e-13 * lr
        else:
            assert np.linalg.norm(step, 2) <= lr * (1 + 1e-12)


def test_traced_options(xp):
    rng = np.random.default_rng(5)
    w, g, m = (rng.normal(size=(3, 4)) for _ in range(3))

    def step(lr, decay, beta, alpha, *arrays):
        return sc.spectral_newton_step(*arrays, lr=lr, weight_decay=decay, beta=beta, alpha=alpha)

    options = [xp.array(value) for value in (0.1, 0.2, 0.9, 1.3)]
    moved, momentum = xp.run(step, *options, *map(xp.array, (w, g, m)))
    change, held = textbook(w, g, m, 0.1, 1.3, 0.1, 0.9, True, 0.2, "rms")
    assert np.allclose(xp.numpy(moved), change, atol=1e3 * xp.eps)
    assert np.allclose(xp.numpy(momentum), held, atol=1e3 * xp.eps)
    xp.check_kind(moved, xp.array(w))


def test_dtypes_are_kept_apart():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    w, g = torch.randn(2, 6, 4).bfloat16()
    step, momentum = sc.spectral_newton_step(w, g, torch.zeros(6, 4), lr=0.1, alpha=2.0)
    assert step.dtype == torch.bfloat16 and momentum.dtype == torch.float32
    wide = textbook(
        w.double().numpy(), g.double().numpy(), np.zeros((6, 4)),
        0.1, 2.0, 0.1, 0.95, True, 0.0, "rms",
    )[0]  # fmt: skip
    assert np.max(np.abs(step.double().numpy() - wide)) <= 2.0**-8 * np.max(np.abs(wide))


def test_options_of_another_dtype_do_not_widen_the_step(xp):
    rng = np.random.default_rng(7)
    w, g, m = (xp.array(rng.normal(size=(3, 4))) for _ in range(3))
    wide = [np.asarray(value) for value in (0.1, 0.9, 0.2)]
    if xp.library != "numpy":
        wide = [xp.array(value) for value in wide]
    lr, beta, decay = wide
    options = {"alpha": 1.5, "damping": 0.2, "method": "svd"}
    step, momentum = sc.spectral_newton_step(
        w, g, m, lr=lr, beta=beta, weight_decay=decay, **options
    )
    xp.check_kind(step, w)
    xp.check_kind(momentum, w)
    plain = sc.spectral_newton_step(w, g, m, lr=0.1, beta=0.9, weight_decay=0.2, **options)
    for one, other in zip((step, momentum), plain, strict=True):
        assert np.allclose(xp.numpy(one), xp.numpy(other), rtol=0, atol=20 * xp.eps)


def test_options_as_arrays_beside_matrices():
    """They broadcast against the parameter, not against its matrices."""
    rng = np.random.default_rng(12)
    w, g, m = rng.normal(size=(3, 2, 3, 2, 2))
    rate = np.asarray([0.1, 0.2])[:, None, None, None]
    step, _ = sc.spectral_newton_step(w, g, m, lr=rate, alpha=2.0, matrices="conv")
    one, _ = sc.spectral_newton_step(w, g, m, lr=1.0, alpha=2.0, matrices="conv")
    assert np.allclose(step, rate * one, rtol=1e-14, atol=0)


def test_no_learning_rate_and_no_momentum_are_numbers_too():
    w, g, m = np.random.default_rng(8).normal(size=(3, 3, 4))
    step, momentum = sc.spectral_newton_step(w, g, m, lr=0, beta=0, alpha=2.0)
    assert np.all(step == 0) and np.array_equal(momentum, g)


def test_arguments_are_not_written_to():
    arrays = [np.random.default_rng(6).normal(size=(3, 4)) for _ in range(3)]
    copies = [a.copy() for a in arrays]
    sc.spectral_newton_step(*arrays, lr=0.1, alpha=1.0, weight_decay=0.1)
    assert all(np.array_equal(a, c) for a, c in zip(arrays, copies, strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"lr": -1.0}, "lr: -1.0"), ({"lr": float("nan")}, "lr: nan"), ({"beta": 1.0}, "beta: 1.0"),
     ({"weight_decay": -0.1}, "weight_decay: -0.1"), ({"alpha": 5.0}, "alpha: 5.0"),
     ({"scale": "rmss"}, "scale: 'rmss'"), ({"damping_mode": "relative"}, "relative")],
)  # fmt: skip
def test_what_is_out_of_range_is_named(change, said):
    w = np.ones((2, 3))
    with pytest.raises(sc.InputError, match=said):
        sc.spectral_newton_step(w, w, w, **({"lr": 0.1, "alpha": 1.0} | change))
    for shape, remedy in (((3,), "pass a matrix"), ((2, 3, 2, 2), "by matrices=: 'conv'")):
        with pytest.raises(sc.InputError, match=f"weight: has shape .*{remedy}"):
            sc.spectral_newton_step(*[np.ones(shape)] * 3, lr=0.1, alpha=1.0)
    with pytest.raises(sc.InputError, match=r"\(2, 3\), \(3, 2\) and \(2, 2\)"):
        sc.spectral_newton_step(w, w.T, w @ w.T, lr=0.1, alpha=1.0)
