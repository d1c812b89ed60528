"""One step of Spectral Newton on one matrix or a batch: momentum, T, scaling, weight decay."""

from collections.abc import Callable
from typing import Any

from spectral_core.arrays.namespace import Array, as_like, floating
from spectral_core.errors import InputError
from spectral_core.matrices.layout import MatrixLayout, MatrixSpec, matrices_of
from spectral_core.newton.options import StepOptions
from spectral_core.preconditioning.function import is_number
from spectral_core.preconditioning.preconditioner import apply_function

__all__ = ["newton_step", "spectral_newton_step"]


def spectral_newton_step(
    weight: Array,
    gradient: Array,
    momentum: Array,
    *,
    lr: float | Array,
    alpha: float | Array,
    damping: float | Array = 0.1,
    damping_mode: str = "spectral",
    beta: float | Array = 0.95,
    nesterov: bool = True,
    weight_decay: float | Array = 0.0,
    scale: str = "rms",
    method: str = "auto",
    tolerance: float | None = None,
    precision: str = "working",
    matrices: MatrixSpec | str | None = None,
) -> tuple[Array, Array]:
    """Return the step to add to a weight, and the new momentum (Theory 9.9).

    ::

        m' = β m + (1 − β) g
        d = β m' + (1 − β) g  with Nesterov momentum, m' without
        step = −lr (scaled T(d) + weight_decay · weight), T(d) only where g is not zero

    Parameters
    ----------
    weight, gradient : array, shape (m, n) or (B, m, n)
        One matrix, or a batch of independent ones. With `matrices`, any shape is allowed.
    momentum : array, of the same shape
        The momentum m of the step before, zeros at first. The step is computed in its dtype: keep
        it in float32 for weights of half precision.
    lr : float or array
        The learning rate, not negative. Arrays, traced ones too, broadcast against the weight; so
        do those of `beta` and `weight_decay`. Their values are not checked.
    alpha, damping, damping_mode, method, tolerance, precision, matrices
        The arguments of `precondition`.
    beta : float or array
        The coefficient of the exponential moving average, in [0, 1).
    nesterov : bool
        Whether to use Nesterov momentum.
    weight_decay : float or array
        The coefficient of decoupled weight decay, as in AdamW; not negative.
    scale : {"rms", "spectral", "none"}
        The scaling of ``T(d)``. ``"rms"`` makes the root mean square of the entries 0.2, the usual
        size of AdamW's updates, so that its learning rates serve. ``"spectral"`` divides by the
        closed bound of T, so that a step without weight decay has a spectral norm of at most `lr`
        (Theory 9.5). ``"none"`` leaves T as it is.

    Returns
    -------
    step : array, of the same shape
        The step, in the dtype of the weight.
    momentum : array, of the same shape
        The new momentum m', in the dtype of the old one.

        A matrix of the batch whose gradient holds a NaN or an infinity gets a step of exactly 0
        and keeps its momentum. One whose gradient is 0 throughout gets weight decay alone, while
        its momentum decays: T does not see how small momentum has become, and would make a full
        step for ever. No argument is written to. The function runs under `jax.jit`.

    Raises
    ------
    InputError
        If an argument is out of range or no number, shapes do not fit, or more than three axes
        come without `matrices`.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> weight, gradient = np.ones((2, 2)), np.array([[3.0, 0.0], [0.0, 1.0]])
    >>> momentum = np.zeros((2, 2))
    >>> step, momentum = sc.spectral_newton_step(weight, gradient, momentum, lr=0.1, alpha=2.0)
    >>> (weight + step).round(3)
    array([[0.98 , 1.   ],
           [1.   , 0.965]])
    """
    options = StepOptions(
        lr, damping, damping_mode, beta, nesterov, weight_decay, scale, method, tolerance, precision
    )
    return newton_step(weight, gradient, momentum, alpha, options, matrices)


def newton_step(
    weight: Array,
    gradient: Array,
    momentum: Array,
    alpha: float | Array,
    options: StepOptions,
    matrices: MatrixSpec | str | None = None,
) -> tuple[Array, Array]:
    """Return what `spectral_newton_step` returns; the options come as one object."""
    xp, (weight, gradient, momentum) = floating(weight=weight, gradient=gradient, momentum=momentum)
    _check_shapes(weight, gradient, momentum)
    layout = matrices_of("weight", tuple(weight.shape), matrices)
    options.check(tuple(weight.shape))
    lr, beta, weight_decay = (
        value if is_number(value) else as_like(xp, value, momentum)
        for value in (options.lr, options.beta, options.weight_decay)
    )

    gradient = xp.astype(gradient, momentum.dtype, copy=False)
    finite = _for_each(xp, xp.all, xp.isfinite(gradient), layout)
    fresh = (1 - beta) * xp.where(finite, gradient, xp.zeros_like(gradient))
    averaged = beta * momentum + fresh
    direction = beta * averaged + fresh if options.nesterov else averaged
    # T sees no scale: momentum that only decays would make full steps for ever.
    informed = _for_each(xp, xp.any, fresh != 0, layout)
    update = apply_function(
        xp.where(informed, direction, xp.zeros_like(direction)),
        options.function(alpha),
        method=options.method,
        tolerance=options.tolerance,
        normalize=options.scale,
        precision=options.precision,
        matrices=matrices,
    )
    step = -lr * (update + weight_decay * xp.astype(weight, momentum.dtype, copy=False))
    step = xp.where(finite, step, xp.zeros_like(step))
    return xp.astype(step, weight.dtype, copy=False), xp.where(finite, averaged, momentum)


def _for_each(
    xp: Any, quantifier: Callable[..., Array], mask: Array, layout: MatrixLayout | None
) -> Array:
    """Return whether all, or any, entries of each matrix are true; the result broadcasts."""
    if layout is None:
        return quantifier(mask, axis=(-2, -1), keepdims=True)
    parts = layout.split(mask)
    found = [quantifier(part, axis=(-2, -1), keepdims=True) for part in parts]
    pairs = zip(found, parts, strict=True)
    return layout.merge([xp.broadcast_to(one, part.shape) for one, part in pairs])


def _check_shapes(weight: Array, gradient: Array, momentum: Array) -> None:
    shapes = [tuple(array.shape) for array in (weight, gradient, momentum)]
    if len(set(shapes)) > 1:
        raise InputError(
            f"weight, gradient and momentum have shapes {shapes[0]}, {shapes[1]} and {shapes[2]}; "
            "pass three of one shape, zeros as the first momentum."
        )
