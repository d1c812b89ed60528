"""CuPy's kernels behind the seam, with NumPy and SciPy in its place: the same calls, its limits.

The stand-in behaves as CuPy does where that differs from NumPy: a Cholesky factorisation that fails
returns what it has, and triangular solves take what the version takes.
"""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import array_api_compat
import numpy as np
import pytest
from scipy import linalg

from spectral_core.arrays import eigen, factorize


def cholesky(matrix):
    """As LAPACK leaves it: up to the pivot that is not positive."""
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    (potrf,) = linalg.get_lapack_funcs(("potrf",), (flat,))
    factors = [potrf(one, lower=True, clean=True)[0] for one in flat]
    return np.stack(factors).reshape(matrix.shape)


def solver(batches, calls):
    def solve_triangular(a, b, trans=0, lower=False, unit_diagonal=False, overwrite_b=False,
                         check_finite=False):  # fmt: skip
        calls.append(a.shape)
        if a.ndim > 2 and not batches:
            raise ValueError("expected square matrix")
        if a.shape[:-2] != b.shape[: a.ndim - 2] or a.shape[-1] != b.shape[a.ndim - 2]:
            raise ValueError("incompatible dimensions")
        flat_a, flat_b = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
        (trsm,) = linalg.get_blas_funcs(("trsm",), (flat_a, flat_b))  # divides by zero in silence
        pairs = zip(flat_a, flat_b, strict=True)
        solved = [trsm(1.0, p, q, lower=lower, trans_a=trans) for p, q in pairs]
        return np.stack(solved).reshape(b.shape)

    if batches:
        solve_triangular.__doc__ = "The CuPy implementation supports batches of matrices."
    return solve_triangular


@pytest.fixture(params=[13, 14])
def cupy(request, monkeypatch):
    """NumPy, taken for CuPy by the seam alone."""
    numpy = array_api_compat.array_namespace(np.ones(1))
    own = SimpleNamespace(**{name: getattr(numpy.linalg, name) for name in numpy.linalg.__all__})
    own.cholesky = cholesky
    names = {name: getattr(numpy, name) for name in dir(numpy) if not name.startswith("__")}
    space = SimpleNamespace(**(names | {"linalg": own}))
    space.batched, space.calls = request.param >= 14, []
    triangular = SimpleNamespace(solve_triangular=solver(space.batched, space.calls))
    monkeypatch.setitem(sys.modules, "cupyx.scipy.linalg", triangular)
    taken = SimpleNamespace(
        is_cupy_namespace=lambda other: other is space,
        is_torch_namespace=lambda other: False,
        is_jax_namespace=lambda other: False,
    )
    for module in (factorize, eigen):
        monkeypatch.setattr(module, "array_api_compat", taken)
    return space


@pytest.mark.parametrize("columns", [0, 1, 4])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_solve_and_inverse_agree_with_numpy(cupy, batch, dtype, columns):
    rng = np.random.default_rng(0)
    g = rng.normal(size=(*batch, 7, 9))
    matrix = (g @ np.swapaxes(g, -1, -2) + np.eye(7)).astype(dtype)
    right = rng.normal(size=(*batch, 7, columns)).astype(dtype)
    bound = 50 * 7 * np.max(np.linalg.cond(matrix)) * np.finfo(dtype).eps
    for (found, spoiled), expected in (
        (factorize.solve(cupy, matrix, right), np.linalg.solve(matrix.astype(float), right)),
        (factorize.inverse(cupy, matrix), np.linalg.inv(matrix.astype(float))),
    ):
        assert found.dtype == spoiled.dtype == dtype
        assert spoiled.shape == (*batch, 1, 1) and np.all(spoiled == 0)
        assert found.shape == expected.shape
        largest = np.max(np.abs(expected), initial=0)
        assert np.max(np.abs(found - expected), initial=0) <= bound * largest


def test_batches_are_solved_in_two_calls_where_cupy_can(cupy):
    matrices = np.stack([np.eye(3) * (i + 2.0) for i in range(5)])
    factorize.solve(cupy, matrices, matrices)
    assert cupy.calls == ([(5, 3, 3)] * 2 if cupy.batched else [(3, 3)] * 10)


def test_a_matrix_that_is_not_positive_definite_spoils_itself_alone(cupy):
    rng = np.random.default_rng(1)
    g = rng.normal(size=(6, 30, 30))
    gram = g @ np.swapaxes(g, -1, -2) + np.eye(30)
    negative = np.diag([-1.0] + [0.0] * 29)
    bad = [
        gram[0],
        gram[1] + 100 * np.max(gram) * negative,  # the first pivot fails
        gram[2] + 2 * np.max(gram) * np.roll(negative, 29, axis=(0, 1)),  # the last one
        np.where(np.eye(30, dtype=bool), np.nan, gram[3]),
        np.zeros((30, 30)),
        gram[5],
    ]
    _, spoiled = factorize.solve(cupy, np.stack(bad), g)
    assert np.isnan(spoiled[:, 0, 0]).tolist() == [False, True, True, True, True, False]


def test_a_factor_that_was_left_unfinished_is_seen_by_its_rows(cupy, monkeypatch):
    # Nothing says what a GPU's routine leaves behind the pivot at which it stopped.
    rng = np.random.default_rng(4)
    g = rng.normal(size=(2, 20, 20))
    gram = g @ np.swapaxes(g, -1, -2) + np.eye(20)

    def stopped(matrix):
        factors = cholesky(matrix)
        factors[1, 12:, :] = np.tril(matrix[1])[12:, :]
        return factors

    monkeypatch.setattr(cupy.linalg, "cholesky", stopped)
    spoiled = factorize.solve(cupy, gram, g)[1]
    assert np.isnan(spoiled[:, 0, 0]).tolist() == [False, True]


def test_a_finished_factor_of_an_ill_conditioned_matrix_stands(cupy):
    # The largest shift-to-norm ratio that "closed" admits is about (4 + √k) ε.
    rng = np.random.default_rng(2)
    for dtype in (np.float32, np.float64):
        assert factorize.solve(cupy, dtype([[2.0]]), dtype([[1.0]]))[1] == 0
        for rows in (5, 60, 300):
            u = np.linalg.qr(rng.normal(size=(rows, rows)))[0]
            values = np.geomspace(1, (4 + np.sqrt(rows)) * np.finfo(dtype).eps * 8, rows)
            matrix = ((u * values) @ u.T).astype(dtype)
            assert factorize.solve(cupy, matrix, matrix)[1] == 0
            deep = matrix[None, None]
            assert factorize.solve(cupy, deep, deep)[1] == 0


def test_eigenvalues_go_one_by_one_beyond_jacobis_size(cupy, monkeypatch):
    seen = []
    own = np.linalg.eigh
    monkeypatch.setattr(cupy.linalg, "eigh", lambda a: seen.append(a.shape) or tuple(own(a)))
    for rows, shapes in ((32, [(2, 2, 32, 32)]), (33, [(33, 33)] * 4)):
        seen.clear()
        g = np.random.default_rng(3).normal(size=(2, 2, rows, rows))
        matrix = g + np.swapaxes(g, -1, -2)
        values, vectors = eigen.eigh(cupy, matrix)
        assert seen == shapes
        assert values.shape == (2, 2, rows) and vectors.shape == matrix.shape
        rebuilt = (vectors * values[..., None, :]) @ np.swapaxes(vectors, -1, -2)
        assert np.max(np.abs(rebuilt - matrix)) < 1e-12 * rows
        assert np.allclose(eigen.eigvalsh(cupy, matrix), values, atol=1e-12 * rows)


@pytest.mark.parametrize("batch", [(1,), (3,), (2, 2)])
def test_one_by_one_keeps_the_batch(batch):
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(*batch, 3, 4)), rng.normal(size=(*batch, 4, 2))
    product = factorize.one_by_one(np, np.matmul, first, second)
    np.testing.assert_allclose(product, first @ second, rtol=1e-14)
    total, row = factorize.one_by_one(np, lambda a: (a.sum(), a[0]), first)
    np.testing.assert_allclose(total, first.sum((-2, -1)), rtol=1e-14)
    np.testing.assert_array_equal(row, first[..., 0, :])


def test_one_by_one_leaves_single_matrices_and_empty_batches_to_the_function():
    for shape in ((4, 4), (0, 4, 4)):
        matrix = np.zeros(shape)
        assert factorize.one_by_one(np, lambda a: a, matrix) is matrix


def arguments_of(path, name):
    """The names that a function takes, read off its source: without a GPU it may not import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    return [argument.arg for argument in found.args.args]


def test_the_calls_fit_the_installed_cupy():
    spec = importlib.util.find_spec("cupy")
    if spec is None:
        pytest.skip("cupy is not installed")
    root = Path(spec.origin).parent
    solve = root.parent / "cupyx" / "scipy" / "linalg" / "_solve_triangular.py"
    assert arguments_of(solve, "solve_triangular")[:4] == ["a", "b", "trans", "lower"]
    own = inspect.signature(solver(True, [])).parameters
    assert arguments_of(solve, "solve_triangular") == list(own)
    source = solve.read_text(encoding="utf-8")
    assert ("batch_count" in source) == ("supports batches" in source)  # what the seam goes by
    assert arguments_of(root / "linalg" / "_decomposition.py", "cholesky") == ["a"]
    for name in ("eigh", "eigvalsh"):
        assert arguments_of(root / "linalg" / "_eigenvalue.py", name) == ["a", "UPLO"]
