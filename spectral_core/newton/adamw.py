"""One step of AdamW, for the parameters that are no matrices."""

from collections.abc import Mapping
from typing import Any

from spectral_core.arrays.namespace import Array, floating
from spectral_core.arrays.numbers import check_mapping
from spectral_core.errors import InputError

__all__ = ["adamw_options", "adamw_step"]

_OPTIONS = ("lr", "betas", "eps", "weight_decay")


def adamw_step(
    weight: Array,
    gradient: Array,
    mean: Array,
    square: Array,
    count: int | Array,
    *,
    lr: float | Array,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Array = 0.0,
) -> tuple[Array, Array, Array]:
    """Return the step to add to a weight, and the new moments (Loshchilov and Hutter, 2019).

    ::

        m' = β₁ m + (1 − β₁) g,  v' = β₂ v + (1 − β₂) g²
        step = −lr (m' / (1 − β₁ᵗ) / (√(v' / (1 − β₂ᵗ)) + eps) + weight_decay · weight)

    Parameters
    ----------
    weight, gradient : array
        The weight and its gradient, of one shape.
    mean, square : array
        The moments m and v of the step before, zeros at first, of that shape. The step is computed
        in their dtype.
    count : int or array
        The number t of the step, 1 in the first; it may be traced.
    lr : float or array
        The learning rate.
    betas : tuple of float
        The coefficients β₁ and β₂, in [0, 1).
    eps : float
        The number that is added to the root, as in PyTorch; positive.
    weight_decay : float or array
        The coefficient of decoupled weight decay.

    Returns
    -------
    step : array
        The step, in the dtype of the weight.
    mean, square : array
        The new moments. A gradient that holds a NaN or an infinity gives a step of exactly 0 and
        leaves them as they are.

    Raises
    ------
    InputError
        If an option is out of range, or shapes differ.
    """
    xp, (weight, gradient, mean, square) = floating(
        weight=weight, gradient=gradient, mean=mean, square=square
    )
    _check(weight, gradient, mean, square, betas, eps)
    gradient = xp.astype(gradient, mean.dtype, copy=False)
    finite = xp.all(xp.isfinite(gradient))
    known = xp.where(finite, gradient, xp.zeros_like(gradient))
    new_mean = mean + (1 - betas[0]) * (known - mean)
    new_square = betas[1] * square + (1 - betas[1]) * known * known
    root = xp.sqrt(new_square) / (1 - betas[1] ** count) ** 0.5 + eps
    update = new_mean / (1 - betas[0] ** count) / root
    step = -lr * (update + weight_decay * xp.astype(weight, mean.dtype, copy=False))
    return (
        xp.astype(xp.where(finite, step, xp.zeros_like(step)), weight.dtype, copy=False),
        xp.where(finite, new_mean, mean),
        xp.where(finite, new_square, square),
    )


def _check(
    weight: Array, gradient: Array, mean: Array, square: Array, betas: Any, eps: float
) -> None:
    shapes = [tuple(array.shape) for array in (weight, gradient, mean, square)]
    if len(set(shapes)) > 1:
        raise InputError(
            f"weight, gradient, mean and square have shapes {', '.join(map(str, shapes))}; pass "
            "four of one shape, zeros as the first moments."
        )
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"betas: {betas!r} are not two numbers in [0, 1); (0.9, 0.999) is usual.")
    if not eps > 0:
        raise InputError(f"eps: {eps!r} is not positive; 1e-8 is usual.")


def adamw_options(given: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Return the options of AdamW beside a Spectral Newton of a scale, as an optimizer takes them.

    Raises
    ------
    InputError
        If an option is none of AdamW's.
    """
    check_mapping("adamw", given)
    if unknown := set(given) - set(_OPTIONS):
        raise InputError(f"adamw: {sorted(unknown)} are none of {', '.join(_OPTIONS)}.")
    return ({} if scale == "rms" else {"lr": 1e-3}) | dict(given)
