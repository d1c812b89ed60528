"""PyTorch's solves; those on a GPU with its CPU routines in their place: batches are cut for cuBLAS."""

import array_api_compat
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spectral_core import _factorize  # noqa: E402


@pytest.mark.parametrize("batch", [(), (3,), (8,), (17,), (2, 5), (0,)])
@pytest.mark.parametrize("rows", [4, 5, 9])
def test_triangular_solves_agree_with_numpy(monkeypatch, batch, rows):
    monkeypatch.setattr(_factorize, "CUBLAS_ROWS", 5)
    sizes = []
    xp = array_api_compat.array_namespace(torch.ones(1))
    solve = xp.linalg.solve_triangular

    def noting(factor, right, **options):
        sizes.append(factor.shape[:-2].numel())
        return solve(factor, right, **options)

    monkeypatch.setattr(xp.linalg, "solve_triangular", noting)
    rng = np.random.default_rng(0)
    g = rng.normal(size=(*batch, rows, 2 * rows))
    matrix, right = g @ np.swapaxes(g, -1, -2), rng.normal(size=(*batch, rows, 3))
    factor = torch.linalg.cholesky(torch.asarray(matrix))
    found = _factorize._torch_triangular_solves(xp, factor, torch.asarray(right)).numpy()
    assert found.shape == right.shape
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-9, atol=1e-9)
    count = int(np.prod(batch))
    if rows <= 5 or count <= _factorize.CUBLAS_BATCH:
        assert sizes == [count, count]  # nothing is cut that need not be
    else:
        assert max(sizes) == _factorize.CUBLAS_BATCH and sum(sizes) == 2 * count


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_that_is_not_positive_definite_spoils_itself_alone(default, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        xp = array_api_compat.array_namespace(torch.ones(1))
        good = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=dtype)
        matrices = torch.stack([good, -good, torch.diag(torch.tensor([1.0, -1.0], dtype=dtype))])
        for found, spoiled in (
            _factorize.solve(xp, matrices, matrices),
            _factorize.inverse(xp, matrices),
        ):
            assert found.dtype == spoiled.dtype == dtype
            assert spoiled[0] == 0 and torch.isnan(spoiled[1:]).all()
            assert spoiled.shape == (3, 1, 1)
    finally:
        torch.set_default_dtype(before)
