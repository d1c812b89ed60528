"""The options of a step of Spectral Newton: what all matrices of a call share."""

from dataclasses import dataclass

import numpy as np

from spectral_core.arrays.namespace import Array
from spectral_core.errors import InputError
from spectral_core.preconditioning.choice import choose, with_precision
from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.function import check_number_or_array, is_number
from spectral_core.preconditioning.methods.base import NORMALIZATIONS
from spectral_core.preconditioning.preconditioner import check_arguments
from spectral_core.preconditioning.request import Request

__all__ = ["StepOptions"]


@dataclass(frozen=True)
class StepOptions:
    """The options of `spectral_newton_step` except α and the layout, which each matrix has itself.

    Parameters
    ----------
    lr, damping, damping_mode, beta, nesterov, weight_decay, scale, method, tolerance, precision
        The arguments of the same names of `spectral_newton_step`. `lr`, `damping`, `beta` and
        `weight_decay` may be arrays, traced ones too.
    """

    lr: float | Array
    damping: float | Array = 0.1
    damping_mode: str = "spectral"
    beta: float | Array = 0.95
    nesterov: bool = True
    weight_decay: float | Array = 0.0
    scale: str = "rms"
    method: str = "auto"
    tolerance: float | None = None
    precision: str = "working"

    def function(self, alpha: float | Array) -> DampedPower:
        """Return T for matrices of an α."""
        return DampedPower(alpha, self.damping, self.damping_mode)

    def check(self, shape: tuple[int, ...] | None = None) -> None:
        """Check the options that `precondition` does not check, against a shape if one is given.

        Raises
        ------
        InputError
            If an option is out of range or no number, or does not broadcast against the weight.
        """
        for name in ("lr", "beta", "weight_decay"):
            value = getattr(self, name)
            check_number_or_array(name, value)
            if shape is not None:
                _check_fits(name, tuple(getattr(value, "shape", ())), shape)
        if self.scale not in NORMALIZATIONS:
            raise InputError(f"scale: {self.scale!r} is none of {', '.join(NORMALIZATIONS)}.")
        if is_number(self.lr) and not 0 <= self.lr < float("inf"):
            raise InputError(f"lr: {self.lr} is not a learning rate of 0 or more; 1e-3 is usual.")
        if is_number(self.beta) and not 0 <= self.beta < 1:
            raise InputError(f"beta: {self.beta} is outside [0, 1); 0.95 is the default.")
        if is_number(self.weight_decay) and not 0 <= self.weight_decay < float("inf"):
            raise InputError(
                f"weight_decay: {self.weight_decay} is not a number of 0 or more; 0.01 is usual."
            )

    def check_all(self, alpha: float | Array, epsilon: float) -> None:
        """Check everything that a step would check; an optimizer calls this when it is made.

        Parameters
        ----------
        alpha : float or 0-d array
            The exponent of the matrices.
        epsilon : float
            The machine precision of the dtype in which the step will likely be computed.

        Raises
        ------
        InputError
            If `spectral_newton_step` raises it for the smallest matrix, 2 × 2.
        """
        self.check()
        function = self.function(alpha)
        check_arguments(function, self.method, self.tolerance, self.scale, self.precision)
        request = Request(
            function, self.method, self.tolerance, 2, 2, epsilon, precision=self.precision
        )
        choose(with_precision(request, fast_half=False))


def _check_fits(name: str, given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise `InputError` unless an option broadcasts against the weight."""
    try:
        fits = np.broadcast_shapes(given, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise InputError(
            f"{name}: has shape {given}, the weight {shape}; pass a number, or an array that "
            "broadcasts against it."
        )
