"""The options of a step as a pytree of JAX: numbers are its leaves, choices its structure."""

from typing import TYPE_CHECKING

from spectral_core._extras import require
from spectral_core.newton import StepOptions

if TYPE_CHECKING:
    import jax
else:
    jax = require("jax", "optax", "Spectral Newton for JAX")

__all__ = ["StepOptions"]

_NUMBERS = ["lr", "damping", "beta", "weight_decay"]
_CHOICES = ["damping_mode", "nesterov", "scale", "method", "tolerance", "precision"]

jax.tree_util.register_dataclass(StepOptions, data_fields=_NUMBERS, meta_fields=_CHOICES)
