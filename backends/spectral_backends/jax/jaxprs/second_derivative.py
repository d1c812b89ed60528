"""The second derivative of a function along a line, forward over forward."""

from collections.abc import Callable
from typing import Any

import jax

__all__ = ["Scalar", "second_derivative"]

Scalar = Callable[[Any], Any]


def second_derivative(function: Scalar, at: Any, along: Any) -> Any:
    """Return ``d²/dt² f(x + t d)`` at t = 0; x is not copied for each d under ``vmap``."""

    def slope(x: Any) -> Any:
        return jax.jvp(function, (x,), (along,))[1]

    return jax.jvp(slope, (at,), (along,))[1]
