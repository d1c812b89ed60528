"""The engines of the PyTorch backend, in the order in which the planner asks them."""

from spectral_backends.torch.engines.forward_mode.engine import ForwardMode
from spectral_backends.torch.engines.ggn_columns.engine import GGNColumns, MonteCarlo
from spectral_backends.torch.engines.hessian_products.engine import HessianProducts

__all__ = ["ENGINES"]

ENGINES = (
    GGNColumns,
    MonteCarlo,
    ForwardMode,
    HessianProducts,  # serves any layer, and the method `curvatures`
)
