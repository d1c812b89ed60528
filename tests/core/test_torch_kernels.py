"""PyTorch's solves on a GPU, with its CPU routines in their place: batches are cut for cuBLAS."""

import array_api_compat
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spectral_core import _factorize  # noqa: E402


@pytest.mark.parametrize("batch", [(), (3,), (8,), (17,), (2, 5), (0,)])
@pytest.mark.parametrize("rows", [4, 9])
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
    assert rows <= 5 or max(sizes) <= _factorize.CUBLAS_BATCH
