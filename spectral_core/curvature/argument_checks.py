"""Checks of the arguments of every backend, with the same messages."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeVar, get_args

from spectral_core.curvature.problem import CurvatureKind, LayerInfo
from spectral_core.errors import InputError

__all__ = [
    "check_chunk_size",
    "check_direction_shapes",
    "check_kind",
    "check_mc_samples",
    "check_reduction",
    "check_reiterable",
    "check_seed",
    "checked_count",
    "find_layer",
    "narrowed",
]

Layer = TypeVar("Layer")


def find_layer(name: str, layers: Mapping[str, Layer], skipped: Mapping[str, str]) -> Layer:
    """Return a layer by name.

    Raises
    ------
    InputError
        If there is no such layer. The message gives the reason if it was skipped.
    """
    if name in layers:
        return layers[name]
    known = ", ".join(list(layers)[:8])
    raise InputError(
        f"layer {name!r}: {skipped.get(name, 'there is none of that name')}; "
        f"layers are: {known}{', …' if len(layers) > 8 else ''}."
    )


def narrowed(dtype: str, precision: str, operations: Sequence[str] = ()) -> str:
    """Return the warning of a model that casts to a narrower type than it is measured in."""
    shown = ", ".join(operations[:3]) + (", …" if len(operations) > 3 else "")
    return (
        f"model: it casts what depends on its parameters to {precision} on the way"
        f"{f' ({shown})' if shown else ''}, so that its numbers have that precision and not the "
        f"{dtype} in which the rest is measured; cast to the dtype of the input or of a weight, "
        "for instance x.to(weight.dtype) or x.astype(w.dtype), in place of a fixed one."
    )


def check_direction_shapes(layer: LayerInfo, u: Sequence[int], v: Sequence[int]) -> None:
    """Raise `InputError` unless shapes are ``(m, K)`` and ``(n, K)``."""
    (m, n), u, v = layer.shape, tuple(u), tuple(v)
    if len(u) != 2 or len(v) != 2 or (u[0], v[0]) != (m, n) or u[1] != v[1]:
        raise InputError(
            f"layer {layer.name!r}: u and v have shapes {u} and {v}; for its {m}×{n} matrix pass "
            f"({m}, K) and ({n}, K)."
        )


def check_mc_samples(mc_samples: Any) -> None:
    """Raise `InputError` unless a spread can be estimated from `mc_samples` draws."""
    if isinstance(mc_samples, bool) or not isinstance(mc_samples, Integral) or mc_samples < 2:
        raise InputError(
            f"mc_samples: {mc_samples!r} is no number of 2 or more; pass for instance 64."
        )


def check_kind(kind: Any) -> None:
    """Raise `InputError` for an unknown kind of curvature."""
    if kind not in get_args(CurvatureKind):
        raise InputError(f"kind: {kind!r} is unknown; choose 'hessian' or 'ggn'.")


def check_reduction(reduction: Any) -> None:
    """Raise `InputError` for an unknown reduction; None means that the loss tells it."""
    if reduction not in (None, "mean", "sum"):
        raise InputError(f"reduction: {reduction!r} is unknown; choose 'mean' or 'sum'.")


def check_chunk_size(chunk_size: Any) -> None:
    """Raise `InputError` unless it is None or a positive whole number."""
    if chunk_size is not None and not (_is_whole(chunk_size) and chunk_size > 0):
        raise InputError(f"chunk_size: {chunk_size!r} is not a positive number of directions.")


def check_seed(seed: Any) -> None:
    """Raise `InputError` unless any random generator takes it, and the next one."""
    if not (_is_whole(seed) and 0 <= seed < 2**32 - 1):
        raise InputError(f"seed: {seed!r} is not a whole number from 0 to 2**32 - 2.")


def check_reiterable(batches: Any) -> None:
    """Raise `InputError` unless `batches` can be traversed more than once."""
    kind = type(batches).__name__
    if hasattr(batches, "shape"):
        raise InputError(
            f"batches: an array was passed, a {kind}; pass a list of batches, [(inputs, targets)]."
        )
    if not isinstance(batches, Iterable):
        raise InputError(
            f"batches: a {kind} cannot be iterated; pass a list of batches or a loader."
        )
    if isinstance(batches, Iterator):
        raise InputError(
            f"batches: a {kind} is exhausted after one pass and the measurement needs several; "
            "pass list(batches), or a loader."
        )


def checked_count(count: Any) -> float:
    """Return the number of terms that the user's `weight` says a batch has.

    Raises
    ------
    InputError
        If `count` is no number of 0 or more.
    """
    try:
        value = float(count)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"weight: it returned {count!r}; return the batch's number of loss terms.")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
