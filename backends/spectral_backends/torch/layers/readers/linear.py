"""Products with a matrix: linear layers, matrix products of all makes, bilinear layers."""

from math import prod
from typing import Any

from torch import Tensor

from spectral_backends.torch.layers.readers.base import (
    Consumed,
    Found,
    Reader,
    Rows,
    ViewOf,
    bind,
    positions,
)

__all__ = ["READERS"]


def _read_linear(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
    bound = bind("input weight bias", args, kwargs)
    if (tracked := view_of(bound["weight"])) is not None:
        yield bound["weight"], Consumed(tracked, "linear", rows=_linear_rows(bound["input"]))


def _read_product(names: str, *, by_position: bool = True) -> Reader:
    """Read ``left @ right``, the last two names: a right operand's outputs are its last axis.

    `by_position` is False where the result is summed over the batch of products.
    """

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
        bound = bind(names, args, kwargs)
        left, right = (bound[key] for key in names.split()[-2:])
        scale = float(bound.get("alpha", 1))

        def rows(other: Tensor, groups: int, *, left: bool) -> Rows | None:
            return _product_rows(other, groups, left=left, scale=scale) if by_position else None

        if (tracked := view_of(left)) is not None and tracked.ndim >= 2:
            groups = tracked.ndim - 2
            yield left, Consumed(tracked, "linear", groups, rows=rows(right, groups, left=True))
        if (tracked := view_of(right)) is not None and tracked.ndim >= 2:
            groups = tracked.ndim - 2
            yield right, Consumed(tracked.mT, "linear", groups, rows=rows(left, groups, left=False))

    return read


def _read_reversed_product(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
    return _read_product("input other")(args[1::-1], kwargs, view_of)


def _read_bilinear(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
    bound = bind("input1 input2 weight bias", args, kwargs)
    if (tracked := view_of(bound["weight"])) is not None:
        pairs = bound["input1"].unsqueeze(-1) * bound["input2"].unsqueeze(-2)
        rows = _linear_rows(pairs.flatten(-2))
        yield bound["weight"], Consumed(tracked, "bilinear", rows=rows)


def _linear_rows(inputs: Tensor) -> Rows:
    """Return the rows of ``F.linear``: features last, samples first."""
    return Rows.of(lambda: positions(inputs), positions)


def _product_rows(inputs: Tensor, group_axes: int, *, left: bool, scale: float = 1.0) -> Rows:
    """Return the rows of ``inputs @ W``, or of ``W @ inputs`` if W is the left operand.

    Parameters
    ----------
    inputs : Tensor
        The other operand; the leading axes of W align with those before its last two.
    group_axes : int
        The number of leading axes of W.
    """
    vector = inputs.ndim == 1

    def arrange(tensor: Tensor) -> Tensor:
        rows = tensor.unsqueeze(-1 if left else -2) if vector else tensor
        rows = rows.mT if left else rows
        if missing := group_axes + 2 - rows.ndim:
            rows = rows[(None,) * missing]
        first = rows.ndim - 2 - group_axes
        groups = list(range(first, first + group_axes))
        extra = list(range(first))
        rows = rows.permute(*groups, *extra, rows.ndim - 2, rows.ndim - 1)
        shape = rows.shape[:group_axes]
        rest = rows.shape[group_axes:-1]
        return rows.reshape(*shape, rest[0], prod(rest[1:]), rows.shape[-1])

    return Rows.of(lambda: arrange(inputs) * scale, arrange)


READERS: dict[str, Reader] = {
    "linear": _read_linear,
    "matmul": _read_product("input other"),
    **dict.fromkeys(("mm", "bmm"), _read_product("input mat2")),
    "mv": _read_product("input vec"),
    **dict.fromkeys(("addmm", "addmm_"), _read_product("input mat1 mat2")),
    **dict.fromkeys(("baddbmm", "baddbmm_"), _read_product("input batch1 batch2")),
    **dict.fromkeys(("addbmm", "addbmm_"), _read_product("input batch1 batch2", by_position=False)),
    **dict.fromkeys(("addmv", "addmv_"), _read_product("input mat vec")),
    "rmatmul": _read_reversed_product,
    "bilinear": _read_bilinear,
}
