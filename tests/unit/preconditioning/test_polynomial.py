"""Method "polynomial", in working precision and in bfloat16, against a float64 SVD."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import SHAPES, oracle, spectral_error, spectrum, with_spectrum
from numpy.polynomial import chebyshev

import spectral_core as sc
from spectral_core.preconditioning.extreme_value import largest_eigenvalue
from spectral_core.preconditioning.methods.polynomial import by_polynomial
from spectral_core.preconditioning.tables.polynomials import (
    REACH,
    SCHEMES,
    _table,
    polynomial_table,
)

settings.register_profile("project", deadline=None, max_examples=150)
settings.load_profile("project")

ALPHAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
UNIT = 2.0**-8  # of rounding to bfloat16


def low(xp):
    """The keyword for bfloat16, where the library has it."""
    if xp.library not in ("torch", "jax"):
        pytest.skip("the library has no bfloat16")
    return {"precision": "bfloat16"}


def hard_matrices():
    rng = np.random.default_rng(0)
    for name in ("wide", "tall", "column"):
        yield rng.normal(size=SHAPES[name])
    for kind in ("graded", "deficient", "power"):
        yield with_spectrum(spectrum(kind, 16), (16, 40))
    yield np.pad(np.diag(spectrum("power", 16)), ((0, 0), (0, 24)))  # rounded on the diagonal
    yield np.ones((12, 30))  # some eigenvalue routines give NaN in float32
    yield rng.normal(size=(170, 350))  # σ_max from Lanczos steps


def stated(g, alpha, damping, tolerance, u, steps):
    """The bound in the docstring of `precondition`, over ‖T‖₂ rather than max T."""
    table = polynomial_table(alpha, damping, tolerance)
    assert table.error <= tolerance
    wide = g if g.shape[0] <= g.shape[1] else g.T
    gram = wide @ wide.T / np.max(np.abs(g)) ** 2
    e = max(0.0, 1 - float(largest_eigenvalue(np, gram, steps)[0, 0] / np.linalg.norm(gram, 2)))
    assert e < 1 - 1 / REACH
    sigma = np.linalg.svd(g, compute_uv=False)
    top = sc.transfer_bound(alpha, damping, sigma_max=sigma[0])
    reached = np.max(sigma / (sigma**alpha + damping * sigma[0] ** alpha)) / top
    # λ to second order: δ moves by (1 − e)^(−α/2), and T by no more than that.
    lam = (1 - e) ** (-alpha / 2) - 1
    return (table.error + table.gain * u + lam) / reached


def check(xp, found, g, alpha, damping, bound):
    values = np.asarray(xp.numpy(found), dtype=np.float64)
    assert spectral_error(values, oracle(g, alpha, damping)[0]) <= bound


@pytest.mark.parametrize("alpha", ALPHAS)
def test_9_6_working_precision_keeps_the_stated_error(xp, alpha):

    def run(x):
        return sc.precondition(x, alpha, method="polynomial", tolerance=0.03)

    for g in hard_matrices():
        g = np.asarray(g, dtype=xp.dtype).astype(np.float64)
        gradient = xp.array(g)
        found = xp.run(run, gradient)
        xp.check_kind(found, gradient)
        # Gram matrices err by (4 + √k) ε rather than by ε.
        u = (4 + np.sqrt(min(g.shape))) * xp.eps
        check(xp, found, g, alpha, 0.1, stated(g, alpha, 0.1, 0.03, u, 16))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_9_6_bfloat16_keeps_the_stated_error(xp, alpha):
    keyword = low(xp)

    def run(x):
        return sc.precondition(x, alpha, **keyword)

    for g in hard_matrices():
        g = np.asarray(g, dtype=xp.dtype).astype(np.float64)
        gradient = xp.array(g)
        found = xp.run(run, gradient)
        xp.check_kind(found, gradient)
        check(xp, found, g, alpha, 0.1, stated(g, alpha, 0.1, 0.05, UNIT, 8))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", ["gaussian", "power"])
def test_what_is_seen_in_bfloat16_is_several_per_cent(xp, alpha, kind):
    keyword = low(xp)
    if kind == "gaussian":
        g = np.random.default_rng(0).normal(size=(128, 256))
    else:
        g = with_spectrum(np.arange(1.0, 129) ** -0.5, (128, 256))
    found = xp.run(lambda x: sc.precondition(x, alpha, **keyword), xp.array(g))
    check(xp, found, g, alpha, 0.1, 0.09 if kind == "gaussian" else 0.06)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_9_4_tiny_and_huge_gradients_in_bfloat16(xp, scale, alpha):
    keyword = low(xp)
    g = np.asarray(scale * np.random.default_rng(3).normal(size=(9, 14)), dtype=xp.dtype)
    g = g.astype(np.float64)
    sigma = np.linalg.norm(g, 2)
    exact = oracle(g, alpha)[0]
    expected = {
        "none": exact,
        "spectral": exact / sc.transfer_bound(alpha, sigma_max=sigma),
        "rms": exact * 0.2 / np.sqrt(np.mean(exact**2)),
    }
    bound = stated(g, alpha, 0.1, 0.05, UNIT, 8)
    for normalize, values in expected.items():
        found = xp.run(
            lambda x, n=normalize: sc.precondition(x, alpha, normalize=n, **keyword), xp.array(g)
        )
        found = np.asarray(xp.numpy(found), dtype=np.float64)
        assert spectral_error(found, values) <= bound * (2 if normalize == "rms" else 1)


def test_9_3_zero_is_exactly_zero_and_what_is_not_finite_stays_alone(xp):
    keyword = low(xp)
    g = np.random.default_rng(0).normal(size=(5, 4, 6))
    g[1] = 0
    g[2, 1, 3] = np.nan
    g[3, 0, 0] = np.inf
    for normalize in ("none", "spectral", "rms"):
        found = xp.numpy(
            xp.run(
                lambda x, n=normalize: sc.precondition(x, 1.0, normalize=n, **keyword), xp.array(g)
            )
        )
        assert np.all(found[1] == 0)
        assert np.all(np.isnan(found[2])) and np.all(np.isnan(found[3]))
        alone = xp.numpy(sc.precondition(xp.array(g[4]), 1.0, normalize=normalize, **keyword))
        # One matrix and a batch are multiplied by different routines: both keep the stated bound.
        bound = 2 * (2 if normalize == "rms" else 1) * stated(g[4], 1.0, 0.1, 0.05, UNIT, 8)
        difference = np.linalg.norm(np.asarray(found[4] - alone, dtype=np.float64), 2)
        assert difference <= bound * np.linalg.norm(np.asarray(alone, dtype=np.float64), 2)


def test_batches_of_any_depth(xp):
    keyword = low(xp)
    g = np.random.default_rng(1).normal(size=(2, 3, 7, 5))
    stack = keyword | {"matrices": "stack"}
    found = xp.numpy(xp.run(lambda x: sc.precondition(x, 2.0, **stack), xp.array(g)))
    for i in range(2):
        for j in range(3):
            check(xp, found[i, j], g[i, j], 2.0, 0.1, 0.15)
    assert sc.precondition(xp.array(g[0, :0]), 2.0, **keyword).shape == (0, 7, 5)


def test_alpha_0_needs_no_products(xp):
    keyword = low(xp)
    g = np.random.default_rng(2).normal(size=(6, 9))
    found = xp.numpy(sc.precondition(xp.array(g), 0.0, **keyword))
    np.testing.assert_allclose(found, g / 1.1, rtol=10 * xp.eps)


def test_the_step_takes_the_precision(xp):
    keyword = low(xp)
    g = np.random.default_rng(2).normal(size=(6, 9))
    zero = np.zeros_like(g)
    step, _ = sc.spectral_newton_step(
        *(xp.array(a) for a in (zero, g, zero)), lr=1.0, alpha=2.0, scale="spectral", **keyword
    )
    momentum = (0.95 * 0.05 + 0.05) * g
    direct = sc.precondition(xp.array(momentum), 2.0, normalize="spectral", **keyword)
    difference = np.abs(xp.numpy(step) + xp.numpy(direct))
    assert np.max(difference) <= 0.05


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_low_rank_that_bfloat16_holds_exactly_is_no_worse(xp, rank):
    # Fewer singular values than Lanczos steps, over 160 rows, and no rounding that would add more.
    keyword = low(xp)
    rng = np.random.default_rng(rank)
    for shape in ((200, 300), (300, 500)):
        left, right = (rng.choice([-1.0, 1.0], size=(n, rank)) for n in shape)
        g = left @ right.T
        g = np.where(np.abs(g) == 3, 4 * np.sign(g), g)
        found = xp.run(lambda x: sc.precondition(x, 2.0, 0.1, **keyword), xp.array(g))
        check(xp, found, g, 2.0, 0.1, 0.09)


def test_torch_inputs_are_left_alone_and_gradients_flow():
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(8, 12, generator=generator)
    before = g.clone()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert sc.precondition(g.to(dtype), 1.0, precision="bfloat16").dtype == dtype
    assert torch.equal(g, before)
    leaf = g.double().requires_grad_()
    sc.precondition(leaf, 2.0, method="polynomial").sum().backward()
    assert torch.all(torch.isfinite(leaf.grad))


@settings(max_examples=25)
@given(
    st.floats(0.1, 4),
    st.floats(-2, 0).map(lambda x: 10.0**x),
    st.lists(st.floats(-4, 0), min_size=20, max_size=20),
)
def test_9_6_the_certificate_holds_between_its_points(alpha, damping, logs):
    table = polynomial_table(alpha, damping, 0.05)
    sigma = np.asarray([0.0, *(10.0**x for x in logs)])
    exact = sigma / (sigma**alpha + damping)
    error = np.abs(sigma * table(sigma**2) - exact) / sc.transfer_bound(alpha, damping)
    assert np.max(error) <= 1.01 * table.error
    assert 1 <= table.products <= len(SCHEMES)
    if table.products > 1 and table.error <= 0.05:  # the scheme before does not reach it
        degree, step = SCHEMES[table.products - 2]
        assert _table(alpha, damping, degree, step).error > 0.05


def least_maximum(alpha, damping, degree):
    """The error of the best polynomial in σ², as a linear program on a grid."""
    linprog = pytest.importorskip("scipy.optimize").linprog
    sigma = np.sqrt(REACH) * np.sin(np.linspace(0, np.pi / 2, 1000))
    top = sc.transfer_bound(alpha, damping)
    basis = chebyshev.chebvander(2 * sigma**2 / REACH - 1, degree) * sigma[:, None] / top
    wanted = sigma / (sigma**alpha + damping) / top
    bound = np.ones((len(sigma), 1))
    found = linprog(
        np.append(np.zeros(degree + 1), 1.0),
        A_ub=np.block([[basis, -bound], [-basis, -bound]]),
        b_ub=np.concatenate([wanted, -wanted]),
        bounds=(None, None),
    )
    return found.fun


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("degree", "step"), SCHEMES[:5])
def test_9_6_a_table_is_close_to_the_best_polynomial_and_states_its_error(alpha, degree, step):
    table = _table(alpha, 0.1, degree, step)
    sigma = np.sqrt(REACH) * np.sin(np.linspace(0, np.pi / 2, 20001))
    error = np.abs(sigma * table(sigma**2) - sigma / (sigma**alpha + 0.1))
    reached = np.max(error) / sc.transfer_bound(alpha, 0.1)
    assert reached == pytest.approx(table.error, rel=1e-4)
    assert table.error <= 1.02 * least_maximum(alpha, 0.1, degree)
    assert {len(row) for row in table.rows} == {step + 1}
    assert table.products == SCHEMES.index((degree, step)) + 1


@pytest.mark.parametrize(("alpha", "gain"), [(2.0, 58), (1.0, 153), (4.0, 24)])
def test_9_6_the_gains_that_are_documented(alpha, gain):
    assert round(polynomial_table(alpha, 0.1, 0.05).gain) == gain


def test_9_6_the_gain_adds_up_what_each_matrix_rounded_by_its_norm_does_to_t():
    # One product, p = c₀ − c₁ + c₂ + R with R = c₁ U₁ + c₂ U₂, U₁ = 2 x / h and U₂ = 2 U₁² − 4 U₁.
    table = _table(2.0, 0.1, 2, 2)
    ((c_0, c_1, c_2),) = table.rows
    sigma = np.linspace(0, 1, 2001)[1:]
    u_1 = 2 * sigma**2 / REACH
    u_2 = 2 * u_1**2 - 4 * u_1
    rest = c_1 * u_1 + c_2 * u_2
    slope = c_1 + c_2 * (4 * u_1 - 4)  # of R in U₁

    def largest(values):
        return np.max(np.abs(values))

    gram = largest(sigma * slope) * largest(u_1)  # as a product, and as it is stored
    stored = gram + c_2 * largest(u_2) + largest(rest)
    # G is a factor of p(G Gᵀ) G, and two of the Gram matrix: x moves by 2 σ.
    gradient = largest(c_0 - c_1 + c_2 + rest + 2 * np.abs(slope * 2 * sigma / REACH))
    top = sc.transfer_bound(2.0, 0.1)
    assert table.gain == pytest.approx((gradient + gram + stored) / top + 1, rel=2e-3)


def test_errors_name_the_argument_and_the_remedy():
    g = np.ones((3, 4))
    cases = [
        ({"precision": "half"}, "precision: 'half' is none of working, bfloat16"),
        ({"precision": "bfloat16"}, "has no bfloat16; use 'working', or arrays of PyTorch or JAX"),
        ({"method": "polynomial", "damping_mode": "absolute"}, "spectral damping above 0"),
        ({"method": "polynomial", "damping": 1e-4}, "not the tolerance 0.01; raise the tolerance"),
        ({"method": "polynomial", "damping": np.asarray(0.1)}, "as numbers, not arrays"),
    ]
    for keywords, words in cases:
        with pytest.raises(sc.InputError, match=words):
            sc.precondition(g, 1.0, **keywords)
    torch = pytest.importorskip("torch")
    with pytest.raises(sc.InputError, match="is for methods 'polynomial' and 'auto', not 'eigh'"):
        sc.precondition(torch.ones(3, 4), 1.0, method="eigh", precision="bfloat16")
    with pytest.raises(sc.InputError, match="is for alpha above 0"):
        sc.precondition(torch.ones(3, 4), 0.0, method="polynomial")


@pytest.mark.parametrize("alpha", ALPHAS)
def test_9_6_an_underestimate_of_the_largest_singular_value_stays_in_the_interval(alpha):
    """Eight Lanczos steps on noise missed 7 %; polynomials explode where they were not fitted."""
    g = np.random.default_rng(4).normal(size=(12, 30))
    gram = g @ g.T
    for missed in (0.07, 0.16):
        top = np.linalg.norm(gram, 2) * (1 - missed)
        table = polynomial_table(alpha, 0.1, 0.05)
        found = by_polynomial(np, gram, np.full((1, 1), top), g, table)
        expected = oracle(g / np.sqrt(top), alpha, 0.1, "absolute")[0] * np.sqrt(top)
        error = np.linalg.norm(found - expected, 2) / np.sqrt(top)
        assert (
            error <= table.error * sc.transfer_bound(alpha, 0.1, sigma_max=1.0) * 1.001
        )  # of a grid
