"""PyTorch's solves; those on a GPU with its CPU routines in their place: batches are cut for cuBLAS."""

import array_api_compat
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spectral_core.arrays import eigen, factorize  # noqa: E402


@pytest.mark.parametrize("batch", [(), (3,), (8,), (17,), (2, 5), (0,)])
@pytest.mark.parametrize("rows", [4, 5, 9])
def test_triangular_solves_agree_with_numpy(monkeypatch, batch, rows):
    monkeypatch.setattr(factorize, "CUBLAS_ROWS", 5)
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
    found = factorize._torch_triangular_solves(xp, factor, torch.asarray(right)).numpy()
    assert found.shape == right.shape
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-9, atol=1e-9)
    count = int(np.prod(batch))
    if rows <= 5 or count <= factorize.CUBLAS_BATCH:
        assert sizes == [count, count]  # nothing is cut that need not be
    else:
        assert max(sizes) == factorize.CUBLAS_BATCH and sum(sizes) == 2 * count


@pytest.fixture(params=[torch.float32, torch.float64])
def default(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_that_is_not_positive_definite_spoils_itself_alone(dtype):
    xp = array_api_compat.array_namespace(torch.ones(1))
    good = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=dtype)
    matrices = torch.stack([good, -good, torch.diag(torch.tensor([1.0, -1.0], dtype=dtype))])
    for found, spoiled in (
        factorize.solve(xp, matrices, matrices),
        factorize.inverse(xp, matrices),
    ):
        assert found.dtype == spoiled.dtype == dtype
        assert spoiled[0] == 0 and torch.isnan(spoiled[1:]).all()
        assert spoiled.shape == (3, 1, 1)


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("batch", [(), (3,), (2, 1)])
def test_ties_are_moved_apart_by_less_than_rounding(batch):
    xp = array_api_compat.array_namespace(torch.ones(1))
    tied = 3 * (torch.ones(12, 12, dtype=torch.float32) - torch.eye(12, dtype=torch.float32))
    scales = torch.arange(1.0, 7)[: int(np.prod(batch))].reshape(*batch, 1, 1).to(torch.float32)
    found = eigen._untied(xp, tied * scales)
    assert found.dtype == torch.float32
    moved = torch.diagonal(found, dim1=-2, dim2=-1).double()
    norm = 3 * np.sqrt(12 * 11) * scales[..., 0].double()
    apart = torch.arange(12, dtype=torch.float64) / 12
    expected = norm * apart * torch.finfo(torch.float32).eps / 4
    assert torch.allclose(moved, expected, rtol=1e-5, atol=0)
    assert torch.equal(found - torch.diag_embed(moved.float()), tied * scales)


def test_what_has_no_such_routine_is_left_alone():
    torch_xp = array_api_compat.array_namespace(torch.ones(1))
    wide = torch.ones(3, 3, dtype=torch.float64)
    assert eigen._untied(torch_xp, wide) is wide
    for dtype in (np.float32, np.float64):
        matrix = np.ones((3, 3), dtype)
        assert eigen._untied(array_api_compat.array_namespace(matrix), matrix) is matrix
