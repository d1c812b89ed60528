"""Operations that XLA does not split by samples: here each device computes those of its own.

jit splits most of what is computed of samples as they are split. Some operations it gathers
instead, seen in compiled programs of JAX 0.10 and 0.11: convolutions under ``vmap``, whose rule
joins directions and samples to one axis; the derivatives of a maximum over windows; ``fft``;
``top_k``. Each of them runs inside a ``jax.shard_map`` over the samples, which derivatives and
``vmap`` go into. They are left as they are inside of ``custom_jvp``, ``cond`` and ``while``, which
no equation path leads into.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import JaxprEqn
from jax.sharding import PartitionSpec

from spectral_backends.jax.devices.placement import Placement, ambient

__all__ = ["in_shares", "is_in_shares", "on_own_samples"]

Run = Callable[..., Any]

_spec: Any = PartitionSpec  # has no types


def is_in_shares(equation: JaxprEqn) -> bool:
    """Say whether an equation is computed by each device for its own samples."""
    placement = ambient()
    return placement is not None and _axes(equation, placement) is not None


def in_shares(equation: JaxprEqn, run: Run) -> Run:
    """Return the computation of an equation: `run`, by each device for its samples if need be."""
    placement = ambient()
    axes = None if placement is None else _axes(equation, placement)
    return run if axes is None else on_own_samples(run, *axes)


def on_own_samples(run: Run, taken: int = 0, given: int = 0) -> Run:
    """Let each device compute a function of its own samples, if they are split.

    Parameters
    ----------
    run : callable
        A function of arrays. The first holds samples along its axis `taken`, the others belong to
        all samples. The results hold samples along their axis `given`.
    taken, given : int
        The axes of samples in the first argument and in the results.
    """
    placement = ambient()

    def split(axis: int) -> Any:
        assert placement is not None
        return _spec(*[None] * axis, placement.samples)

    def run_split(first: Any, *others: Any) -> Any:
        if placement is None or not placement.divides(first.shape[taken]):
            return run(first, *others)
        return jax.shard_map(
            run,
            mesh=placement.mesh,
            in_specs=(split(taken), *[_spec()] * len(others)),
            out_specs=split(given),
            axis_names=set(placement.samples),
            check_vma=False,
        )(first, *others)

    return run_split


def _axes(equation: JaxprEqn, placement: Placement) -> tuple[int, int] | None:
    """Return the axes of samples in first operand and results; None if jit does by itself."""
    find = _FIND.get(equation.primitive.name)
    axes = find and find(equation)
    aval: Any = equation.invars[0].aval
    return axes if axes and placement.divides(aval.shape[axes[0]]) else None


def _of_convolution(equation: JaxprEqn) -> tuple[int, int] | None:
    numbers = equation.params["dimension_numbers"]
    alone = equation.params["batch_group_count"] == 1
    return (numbers.lhs_spec[0], numbers.out_spec[0]) if alone else None


def _of_window(equation: JaxprEqn) -> tuple[int, int] | None:
    whole = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    alone = all(equation.params[name][0] == 1 for name in whole)
    return (0, 0) if alone and tuple(equation.params["padding"][0]) == (0, 0) else None


def _of_last_axes(equation: JaxprEqn) -> tuple[int, int] | None:
    aval: Any = equation.invars[0].aval
    return (0, 0) if aval.ndim > len(equation.params.get("fft_lengths", (1,))) else None


_FIND: dict[str, Callable[[JaxprEqn], tuple[int, int] | None]] = {
    "conv_general_dilated": _of_convolution,
    "reduce_window_max": _of_window,
    "reduce_window_min": _of_window,
    "fft": _of_last_axes,
    "top_k": _of_last_axes,
}
