"""How many matrix products a method takes, counted by PyTorch, which has only these on a GPU."""

import pytest

import spectral_core as sc
from spectral_core.preconditioning.methods.polar import POLAR_FLOOR, POLAR_MARGIN
from spectral_core.preconditioning.tables.polar import polar_schedule
from spectral_core.preconditioning.tables.polynomials import polynomial_table

torch = pytest.importorskip("torch")
dispatch = pytest.importorskip("torch.utils._python_dispatch")


class Products(dispatch.TorchDispatchMode):
    """Notes the dtypes of the products of matrices."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.__name__.split(".")[0] in ("mm", "bmm", "addmm", "baddbmm"):
            self.dtypes.append(result.dtype)
        return result


def products(rows, *arguments, **options):
    gradient = torch.randn(rows, 200, generator=torch.Generator().manual_seed(0))
    with Products() as counted:
        sc.precondition(gradient, *arguments, **options)
    return counted.dtypes


def lanczos(steps):
    """A product with the Gram matrix and two orthogonalisations a step, and the projection."""
    return 5 * (steps - 1) + 2


@pytest.mark.parametrize("tolerance", [1e-1, 2e-3])
def test_9_6_polar_takes_three_products_a_step(tolerance):
    found = products(20, 1.0, 0.0, method="polar", tolerance=tolerance)
    assert len(found) == 3 * len(polar_schedule(POLAR_FLOOR / POLAR_MARGIN, tolerance).steps)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
def test_9_6_a_polynomial_takes_the_products_of_its_table_and_two_of_the_wide_matrix(alpha):
    options = {"method": "polynomial", "tolerance": 0.05}
    expected = polynomial_table(alpha, 0.1, 0.05).products + 2
    assert products(20, alpha, **options) == [torch.float32] * expected
    assert products(170, alpha, **options) == [torch.float32] * (expected + lanczos(16))
    low = products(170, alpha, precision="bfloat16")
    assert low.count(torch.bfloat16) == expected
    assert low.count(torch.float32) == lanczos(8) == len(low) - expected
