"""The engines of the JAX backend, in the order in which the planner asks them."""

from spectral_backends.jax.engines.forward_mode.engine import ForwardMode
from spectral_backends.jax.engines.ggn_columns.engine import GGNColumns
from spectral_backends.jax.engines.hessian_products.engine import HessianProducts

__all__ = ["ENGINES"]

ENGINES = (
    GGNColumns,
    ForwardMode,
    HessianProducts,  # serves any layer, and the method `curvatures`
)
