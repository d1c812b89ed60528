"""`precondition` against a float64 SVD, method by method, and the statements of Theory 9."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import (
    SHAPES,
    TOLERANCE,
    oracle,
    spectral_error,
    spectrum,
    stated_error,
    with_spectrum,
)  # fmt: skip

import spectral_core as sc
from spectral_core.preconditioning.damped_power import gram_rounding
from spectral_core.preconditioning.gram import Gram, ScaledMatrix, smallest_shift
from spectral_core.preconditioning.methods.closed import by_factor
from spectral_core.preconditioning.methods.shifts import relative_floor

settings.register_profile("project", deadline=None, max_examples=150)
settings.load_profile("project")

# (method, alpha, damping); "svd" is the oracle of the others and gets the harshest cases.
CASES = [
    ("closed", 0.0, 0.1), ("closed", 2.0, 0.1), ("closed", 2.0, 1e-3), ("closed", 4.0, 0.1),
    ("shifts", 0.25, 0.3), ("shifts", 0.5, 0.1), ("shifts", 1.0, 0.1), ("shifts", 1.5, 0.01),
    ("shifts", 1.9, 0.1), ("eigh", 0.5, 0.1), ("eigh", 1.0, 0.1), ("eigh", 2.0, 0.1),
    ("eigh", 3.0, 0.1), ("eigh", 3.7, 0.01), ("svd", 0.5, 0.0), ("svd", 1.0, 1e-4),
    ("svd", 2.5, 1e-4), ("svd", 4.0, 0.1),
]  # fmt: skip


@pytest.mark.parametrize(("method", "alpha", "damping"), CASES)
@pytest.mark.parametrize("kind", ["gaussian", "graded", "deficient"])
def test_9_6_each_method_keeps_its_stated_error(xp, method, alpha, damping, kind):
    shapes = SHAPES if kind == "gaussian" else {"square": (24, 24)}
    for name, shape in shapes.items():
        if kind == "gaussian":
            g = np.random.default_rng(len(name)).normal(size=shape)
        else:
            g = with_spectrum(spectrum(kind, 24), shape)
        g = xp.precise(g)
        if method == "svd" and damping == 0 and kind == "graded":
            g = xp.precise(with_spectrum(np.geomspace(1, 1e-3, 24), shape))
        gradient = xp.array(g)
        found = xp.run(
            lambda x: sc.precondition(x, alpha, damping, method=method, tolerance=TOLERANCE),
            gradient,
        )
        xp.check_kind(found, gradient)
        expected, u, sigma, vh = oracle(g, alpha, damping, zero=1e2 * xp.eps)
        values = np.asarray(xp.numpy(found), dtype=np.float64)
        bound = stated_error(method, alpha, damping, g, xp.eps)
        assert bound < 0.2, "the statement would say nothing"
        assert spectral_error(values, expected) <= bound
        if kind == "gaussian" and method != "svd":
            floor = relative_floor(xp.eps)
            each = np.einsum("ik,ij,kj->k", u, values, vh)
            above = np.maximum(sigma, floor * sigma[0])
            d = damping * sigma[0] ** alpha
            relative = (each - sigma / (sigma**alpha + d)) / (above / (above**alpha + d))
            assert np.max(np.abs(relative)) <= stated_error(
                method, alpha, damping, g, xp.eps, floor
            )


@pytest.mark.parametrize("method", ["eigh", "closed", "svd"])
def test_equal_rows_which_some_eigensolvers_do_not_survive(xp, method):
    """MKL's routine in float32 returns NaN for 12 equal rows; T of one direction is known."""
    found = xp.run(
        lambda x: sc.precondition(x, 2.0, 0.1, method=method), xp.array(np.ones((12, 30)))
    )
    top = np.sqrt(360.0)
    expected = top / (1.1 * top**2) / top  # of every entry: u vᵀ has entries 1 / σ
    np.testing.assert_allclose(xp.numpy(found), expected, rtol=1e3 * xp.eps)


@pytest.mark.parametrize(("method", "alpha"), [("closed", 2.0), ("closed", 4.0), ("shifts", 1.0)])
def test_9_6_where_the_largest_singular_value_is_estimated(xp, method, alpha):
    g = xp.precise(np.random.default_rng(7).normal(size=(170, 350)))
    found = xp.run(
        lambda x: sc.precondition(x, alpha, method=method, tolerance=TOLERANCE), xp.array(g)
    )
    error = spectral_error(np.asarray(xp.numpy(found), dtype=float), oracle(g, alpha)[0])
    assert error <= stated_error(method, alpha, 0.1, g, xp.eps)
    noisy = g.copy()
    noisy[0, 0] = np.nan
    pair = xp.run(
        lambda x: sc.precondition(x, alpha, method=method, tolerance=TOLERANCE),
        xp.array(np.stack([g, noisy])),
    )
    pair = xp.numpy(pair)
    assert np.all(np.isnan(pair[1])) and np.all(np.isfinite(pair[0]))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 3.0, 4.0])
def test_9_4_tiny_and_huge_gradients(xp, scale, alpha):
    if alpha == 4 and scale > 1:
        scale = 1e11  # beyond, T of 1e-36 is divided among entries that float32 flushes to zero
    g = xp.precise(scale * np.random.default_rng(3).normal(size=(9, 14)))
    for normalize in ("none", "spectral", "rms"):
        found = xp.run(lambda x, n=normalize: sc.precondition(x, alpha, normalize=n), xp.array(g))
        expected = oracle(g, alpha)[0]
        if normalize == "spectral":
            sigma = np.linalg.norm(g, 2)
            expected = expected / sc.transfer_bound(alpha, sigma_max=sigma)
        elif normalize == "rms":
            expected = expected * 0.2 / np.sqrt(np.mean(expected**2))
        error = spectral_error(np.asarray(xp.numpy(found), dtype=np.float64), expected)
        assert error <= 1e-2 + gram_rounding(alpha, 0.1, smallest_shift(9, xp.eps)) + 1e3 * xp.eps


@pytest.mark.parametrize("method", ["closed", "shifts", "eigh", "svd", "polar", "auto"])
def test_9_3_zero_is_exactly_zero_and_what_is_not_finite_stays_alone(xp, method):
    alpha, damping = {"closed": (2.0, 0.1), "polar": (1.0, 0.0)}.get(method, (1.0, 0.1))
    g = np.random.default_rng(0).normal(size=(5, 4, 6))
    g[1] = 0
    g[2, 1, 3] = np.nan
    g[3, 0, 0] = np.inf
    for normalize in ("none", "spectral", "rms"):
        found = xp.numpy(
            xp.run(
                lambda x, n=normalize: sc.precondition(
                    x, alpha, damping, method=method, normalize=n
                ),
                xp.array(g),
            )
        )
        alone = xp.numpy(
            sc.precondition(xp.array(g[4]), alpha, damping, method=method, normalize=normalize)
        )
        assert np.all(found[1] == 0)
        assert np.all(np.isnan(found[2])) and np.all(np.isnan(found[3]))
        assert np.all(np.isfinite(found[[0, 4]]))
        assert np.max(np.abs(found[4] - alone)) <= 1e3 * xp.eps * np.max(np.abs(alone))


def test_batches_are_independent_matrices(xp):
    g = np.random.default_rng(1).normal(size=(2, 3, 7, 5)) * 10.0 ** np.arange(6).reshape(
        2, 3, 1, 1
    )
    for alpha in (0.7, 2.0, 3.0):
        found = xp.numpy(
            xp.run(lambda x, a=alpha: sc.precondition(x, a, matrices="stack"), xp.array(g))
        )
        for i in range(2):
            for j in range(3):
                one = xp.numpy(sc.precondition(xp.array(g[i, j]), alpha))
                assert np.max(np.abs(found[i, j] - one)) <= 1e3 * xp.eps * np.max(np.abs(one))


@pytest.mark.parametrize("method", ["closed", "shifts", "eigh", "svd"])
def test_an_empty_batch_stays_empty(xp, method):
    alpha = 2.0 if method == "closed" else 1.0
    empty = xp.array(np.zeros((0, 3, 4)))
    assert tuple(sc.precondition(empty, alpha, method=method).shape) == (0, 3, 4)


@pytest.mark.parametrize("method", ["eigh", "svd", "auto"])
def test_alpha_and_damping_may_be_arrays(xp, method):
    g = xp.array(np.random.default_rng(4).normal(size=(6, 8)))

    def run(g, alpha, damping):
        return sc.precondition(g, alpha, damping, method=method, normalize="spectral")

    found = xp.numpy(xp.run(run, g, xp.array(1.3), xp.array(0.05)))
    number = xp.numpy(sc.precondition(g, 1.3, 0.05, method="svd", normalize="spectral"))
    limit = gram_rounding(1.3, 0.05, smallest_shift(6, xp.eps)) + 100 * xp.eps
    assert spectral_error(found, number) <= limit


@pytest.mark.parametrize("mode", ["spectral", "absolute"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_absolute_damping_on_any_scale(xp, mode, alpha):
    for scale in (1e-6, 1e-2, 1.0, 1e3):
        g = xp.precise(scale * np.random.default_rng(5).normal(size=(6, 9)))
        for normalize in ("none", "spectral"):
            found = xp.run(
                lambda x, n=normalize: sc.precondition(
                    x, alpha, damping_mode=mode, method="svd", normalize=n
                ),
                xp.array(g),
            )
            expected, _, sigma, _ = oracle(g, alpha, mode=mode)
            if normalize == "spectral":
                expected = expected / sc.transfer_bound(
                    alpha, damping_mode=mode, sigma_max=sigma[0]
                )
            assert spectral_error(xp.numpy(found), expected) < 1e4 * xp.eps


@pytest.mark.parametrize("alpha", [2.0, 4.0])
def test_closed_forms_with_absolute_damping(xp, alpha):
    for scale in (1e-6, 1e-2, 1.0):
        g = xp.precise(scale * np.random.default_rng(5).normal(size=(6, 9)))
        delta = 0.1 / np.linalg.norm(g, 2) ** alpha
        found = xp.run(
            lambda x: sc.precondition(x, alpha, damping_mode="absolute", method="closed"),
            xp.array(g),
        )
        error = spectral_error(xp.numpy(found), oracle(g, alpha, mode="absolute")[0])
        assert error <= gram_rounding(alpha, delta, smallest_shift(6, xp.eps)) + 1e3 * xp.eps


def test_absolute_damping_below_rounding_counts_as_rounding():
    g = (1e3 * np.random.default_rng(6).normal(size=(8, 8))).astype(np.float32)
    g[-1] = g[0]  # singular: without the floor there is nothing to factor
    found = sc.precondition(g, 4.0, 1e-9, damping_mode="absolute", method="closed")
    raised = sc.precondition(
        g, 4.0, smallest_shift(8, float(np.finfo(np.float32).eps)), method="closed"
    )
    assert np.allclose(found, raised, rtol=1e-3, atol=1e-3 * np.max(np.abs(raised)))


@pytest.mark.parametrize("method", ["eigh", "svd"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_without_damping_what_is_rounding_has_no_direction(xp, method, alpha):
    sigma = np.asarray([4.0, 1.0, 0.5, 0.0, 0.0])
    g = xp.precise(with_spectrum(sigma, (5, 8)))
    found = xp.run(lambda x: sc.precondition(x, alpha, 0.0, method=method), xp.array(g))
    expected = oracle(g, alpha, 0.0, zero=1e-3)[0]
    assert spectral_error(np.asarray(xp.numpy(found), dtype=float), expected) < 2e3 * xp.eps


@pytest.mark.parametrize("method", ["eigh", "svd"])
def test_with_damping_nothing_is_too_small(xp, method):
    tiny = xp.array(np.diag([1.0, 1e-17]))
    found = xp.numpy(xp.run(lambda x: sc.precondition(x, 2.0, method=method), tiny))
    assert found[1, 1] == pytest.approx(1e-16, rel=10 * xp.eps, abs=0)


@pytest.mark.parametrize("alpha", [0.5, 2.0, 3.0])
def test_eigenvalues_with_absolute_damping(xp, alpha):
    for scale in (1e-2, 1.0, 1e3):
        g = xp.precise(scale * np.random.default_rng(5).normal(size=(6, 9)))
        found = xp.run(
            lambda x: sc.precondition(x, alpha, damping_mode="absolute", method="eigh"),
            xp.array(g),
        )
        expected = oracle(g, alpha, mode="absolute")[0]
        assert spectral_error(np.asarray(xp.numpy(found), dtype=float), expected) < 1e4 * xp.eps


@pytest.mark.parametrize("batch", [(), (2,), (2, 7)])
@pytest.mark.parametrize("alpha", [2.0, 4.0])
def test_from_twice_as_many_columns_as_rows_on_one_product_replaces_the_solves(batch, alpha):
    for columns in (3, 5, 6, 8, 9):
        wide = np.random.default_rng(columns).normal(size=(*batch, 3, columns))
        gram = Gram.of(np, ScaledMatrix.of(np, wide, solved=True))
        product = by_factor(np, gram, wide, alpha, 1.0, 0.1)
        assert (product.left is not None) == (columns >= 6)
        for index in np.ndindex(batch):
            b = gram.matrix[index] / np.linalg.eigvalsh(gram.matrix[index])[-1]
            power = b if alpha == 2 else b @ b
            expected = np.linalg.solve(power + 0.1 * np.eye(3), wide[index])
            np.testing.assert_allclose(product.times(1.0)[index], expected, rtol=1e-10)


alphas = st.floats(0, 4)
dampings = st.floats(-3, 0).map(lambda x: 10.0**x)
seeds = st.integers(0, 10**6)


@given(alphas, dampings, seeds)
def test_rms_is_that_of_adamw(alpha, damping, seed):
    g = np.random.default_rng(seed).normal(size=(6, 9))
    found = sc.precondition(g, alpha, damping, normalize="rms")
    assert np.sqrt(np.mean(found**2)) == pytest.approx(0.2, rel=1e-10)


@pytest.mark.long
@given(st.floats(0.05, 1.95), dampings, seeds, st.sampled_from([3e-2, 1e-2, 1e-3]))
def test_9_6_shifts_reach_their_tolerance(alpha, damping, seed, tolerance):
    g = np.random.default_rng(seed).normal(size=(7, 5))
    try:
        found = sc.precondition(g, alpha, damping, method="shifts", tolerance=tolerance)
    except sc.InputError as error:
        assert "not the tolerance" in str(error)
        return
    assert spectral_error(found, oracle(g, alpha, damping)[0]) <= tolerance + 1e-9


@given(alphas, st.floats(-7, 0).map(lambda x: 10.0**x), seeds)
def test_9_6_auto_reaches_its_tolerance_in_float32(alpha, damping, seed):
    g = with_spectrum(np.geomspace(1, 1e-6, 12), (12, 15), seed).astype(np.float32)
    found = sc.precondition(g, alpha, damping)
    # "svd" answers where squaring would lose too much; what it rounds is σ by ε σ_max.
    rounding = 50 * float(np.finfo(np.float32).eps) * max(1, alpha) / damping
    assert spectral_error(found, oracle(g, alpha, damping)[0]) <= 2e-2 + rounding


def test_inputs_are_left_alone():
    g = np.random.default_rng(0).normal(size=(4, 5))
    before = g.copy()
    for method, alpha in (("closed", 2), ("shifts", 1), ("eigh", 3), ("svd", 1)):
        sc.precondition(g, alpha, method=method)
    np.testing.assert_array_equal(g, before)


def test_torch_half_precisions():
    torch = pytest.importorskip("torch")
    g = np.random.default_rng(0).normal(size=(12, 20))
    for dtype in (torch.bfloat16, torch.float16):
        gradient = torch.asarray(g, dtype=dtype)
        for alpha in (0.0, 0.5, 1.0, 2.0, 3.0):
            found = sc.precondition(gradient, alpha)
            assert found.dtype == dtype
            expected = oracle(gradient.double().numpy(), alpha)[0]
            limit = 1e-2 + 2 * torch.finfo(dtype).eps  # the result is rounded once more
            assert spectral_error(found.double().numpy(), expected) <= limit


def test_torch_layouts_agree():
    torch = pytest.importorskip("torch")
    g = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    strided = torch.zeros(12, 18, dtype=torch.float64)[::2, ::2].copy_(g)
    for alpha in (1.0, 2.0, 3.0):
        found = sc.precondition(strided, alpha)
        assert torch.allclose(found, sc.precondition(g, alpha), rtol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Dynamo's, on caches of array-api-compat
@pytest.mark.parametrize(
    ("method", "alpha", "damping"),
    [
        ("closed", 2.0, 0.1), ("shifts", 1.0, 0.1), ("eigh", 1.0, 0.1), ("svd", 1.0, 0.1),
        ("polynomial", 2.0, 0.1), ("polar", 1.0, 0.0), ("auto", 2.0, 0.1), ("auto", 1.5, 0.01),
    ],
)  # fmt: skip
def test_torch_compiles_every_method_as_one_graph(method, alpha, damping):
    torch = pytest.importorskip("torch")
    g = torch.randn(170, 200, generator=torch.Generator().manual_seed(0))

    def run(x):
        return sc.precondition(x, alpha, damping, method=method)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    # Dynamo of PyTorch 2.9 writes add(alpha=) as two operations, each of which rounds.
    error = 16 * torch.finfo(g.dtype).eps if method == "polynomial" else 0.0
    assert (compiled(g) - run(g)).abs().max() <= error * run(g).abs().max()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torch_compiles_matrices_as_told():
    torch = pytest.importorskip("torch")
    g = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def run(x):
        return sc.precondition(x, 2.0, matrices="conv")

    torch._dynamo.reset()
    assert torch.equal(torch.compile(run, fullgraph=True, backend="eager")(g), run(g))


@pytest.mark.parametrize(
    ("method", "alpha"),
    [("closed", 2.0), ("shifts", 1.0), ("eigh", 1.0), ("svd", 1.0), ("polynomial", 2.0)],
)
def test_batches_have_any_number_of_axes(method, alpha):
    g = np.random.default_rng(0).normal(size=(2, 3, 7, 9))
    found = sc.precondition(g, alpha, method=method, tolerance=TOLERANCE, matrices="stack")
    for place in np.ndindex(2, 3):
        alone = sc.precondition(g[place], alpha, method=method, tolerance=TOLERANCE)
        np.testing.assert_allclose(found[place], alone, atol=1e-13)


@pytest.mark.parametrize("normalize", ["none", "spectral", "rms"])
@pytest.mark.parametrize(
    ("shape", "spec", "to_matrices"),
    [
        ((8, 3, 3, 3), "conv", lambda a: [a.reshape(8, 27)]),
        ((3, 3, 4, 8), "conv-last", lambda a: [a.reshape(36, 8).T]),
        ((6, 5, 2, 2), "conv groups=3", lambda a: list(a.reshape(3, 2, 20))),
        ((8, 3, 5), "conv", lambda a: [a.reshape(8, 15)]),  # in one dimension; else a batch
        ((5, 4, 2, 2), "conv-transpose", lambda a: [np.moveaxis(a, 1, 0).reshape(4, 20)]),
        ((2, 3, 4, 5), "stack", lambda a: list(a.reshape(6, 4, 5))),
        ((2, 3, 4, 2, 2), "conv stack=2", lambda a: list(a.reshape(6, 4, 4))),
        ((2, 3, 4, 3, 3), "conv stack=1", lambda a: list(a.reshape(2, 3, 36))),
        ((12, 5), "qkv", lambda a: list(a.reshape(3, 4, 5))),
        ((3, 4, 5), "stack", list),
    ],
)  # fmt: skip
def test_matrices_are_taken_as_told(xp, shape, spec, to_matrices, normalize):
    g = xp.precise(np.random.default_rng(6).normal(size=shape))
    found = xp.run(
        lambda x: sc.precondition(x, 2.0, normalize=normalize, matrices=spec), xp.array(g)
    )
    xp.check_kind(found, xp.array(g))
    assert tuple(found.shape) == shape
    found = to_matrices(np.asarray(xp.numpy(found), dtype=np.float64))
    for own, matrix in zip(found, to_matrices(g), strict=True):
        assert spectral_error(own, sc.precondition(matrix, 2.0, normalize=normalize)) < 500 * xp.eps


def test_blocks_of_several_shapes_are_told_too(xp):
    g = xp.precise(np.random.default_rng(7).normal(size=(12, 5)))
    spec = sc.MatrixSpec(rows=(6, 3, 3))
    found = xp.run(lambda x: sc.precondition(x, 2.0, matrices=spec), xp.array(g))
    expected = np.concatenate([sc.precondition(g[rows], 2.0) for rows in (
        slice(0, 6), slice(6, 9), slice(9, 12))])  # fmt: skip
    assert np.max(np.abs(xp.numpy(found) - expected)) <= 500 * xp.eps * np.max(np.abs(expected))


@pytest.mark.parametrize("method", ["closed", "svd"])
def test_sizes_are_of_both_signs(method):
    """The scale is that of the largest magnitude: nothing overflows."""
    g = -np.abs(with_spectrum([1.0, 0.5, 0.1], (3, 5)))
    expected = sc.precondition(g, 2.0, method=method)
    found = sc.precondition(1e200 * g, 2.0, method=method)
    np.testing.assert_allclose(found * 1e200, expected, rtol=1e-12)


def test_jax_vmap_equals_the_batch():
    jax = pytest.importorskip("jax")
    g = jax.numpy.asarray(np.random.default_rng(0).normal(size=(3, 5, 7)))
    for alpha in (1.0, 2.0, 3.0):
        mapped = jax.vmap(lambda x, a=alpha: sc.precondition(x, a))(g)
        batch = sc.precondition(g, alpha)
        assert np.max(np.abs(mapped - batch)) <= 1e-4 * np.max(np.abs(batch))


G = np.ones((3, 4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sc.precondition(G, 5.0), r"alpha: 5.0 is outside \[0, 4\]"),
        (lambda: sc.precondition(G, -0.1), r"alpha: -0.1 is outside"),
        (lambda: sc.precondition(G, float("nan")), "alpha: nan is outside"),
        (lambda: sc.precondition(G, 1.0, -1.0), "damping: -1.0 is not a number of 0 or more"),
        (lambda: sc.precondition(G, 2.0, 0), "damping: 0 with alpha = 2.0 leaves"),
        (lambda: sc.precondition(G, 2.0, method="qr"), "method: 'qr' is none of auto"),
        (lambda: sc.precondition(G, 1.0, method="closed"), "is for alpha = 0, 2 or 4, not 1.0"),
        (lambda: sc.precondition(G, 3.0, method="shifts"), "is for alpha between 0 and 2"),
        (lambda: sc.precondition(G, 2.0, method="polar"), "is for alpha = 1 and damping = 0"),
        (
            lambda: sc.precondition(G, 1.0, method="shifts", damping_mode="absolute"),
            "is for spectral damping",
        ),
        (
            lambda: sc.precondition(G.astype(np.float32), 2.0, 1e-9, method="closed"),
            "above the rounding of the Gram matrix",
        ),
        (
            lambda: sc.precondition(G, 0.5, 1e-3, method="shifts", tolerance=1e-9),
            r"^method: 'shifts' reaches \S+ for alpha = 0.5 and damping = 0.001, not the "
            r"tolerance 1e-09; use 'eigh' or 'svd'\.$",
        ),
        (
            lambda: sc.precondition(G.astype(np.float32), 0.5, 1e-3, method="eigh", tolerance=1e-6),
            "above the tolerance 1e-06; use 'svd' or float64",
        ),
        (
            lambda: sc.precondition(G.astype(np.float32), 0.5, method="svd", tolerance=1e-9),
            "use float64",
        ),
        (lambda: sc.precondition(G, np.asarray(1.0), method="shifts"), "as numbers, not arrays"),
        (lambda: sc.precondition(G, 1.0, damping_mode="relative"), "damping_mode: 'relative'"),
        (lambda: sc.precondition(G, 1.0, normalize="l2"), "normalize: 'l2' is none of"),
        (lambda: sc.precondition(G, 1.0, tolerance=0.0), "tolerance: 0.0 is not between"),
        (lambda: sc.precondition(np.ones(3), 1.0), r"gradient: has shape \(3,\); pass a matrix"),
        (
            lambda: sc.precondition(np.ones((8, 3, 3, 3)), 2.0),
            r"gradient: has shape \(8, 3, 3, 3\).*by matrices=: 'conv' .* 'stack'",
        ),
        (
            lambda: sc.precondition(np.ones((8, 3, 3, 3)), 2.0, matrices="matrix"),
            r"matrices: shape \(8, 3, 3, 3\) does not fit the spec 'matrix'",
        ),
        (lambda: sc.precondition(G, 2.0, matrices="kernel"), "matrices: spec: 'kernel' is not"),
        (lambda: sc.precondition(G, 2.0, matrices=2), "matrices: spec: 2 is neither"),
        (lambda: sc.precondition(np.ones((2, 0)), 1.0), r"gradient: has shape \(2, 0\)"),
        (lambda: sc.precondition(G.astype(int), 1.0), "gradient: has dtype int64"),
        (lambda: sc.precondition(G.astype(complex), 1.0), "gradient: has dtype complex128"),
    ],
)
def test_errors_name_the_argument_the_value_and_the_remedy(call, words):
    with pytest.raises(sc.InputError, match=words):
        call()
