"""Convolutions and transposed convolutions, in groups or not."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectral_backends.torch.layers.readers.base import (
    Consumed,
    Found,
    Reader,
    Rows,
    ViewOf,
    bind,
)

__all__ = ["READERS"]


def _read_convolution(kind: str) -> Reader:
    def read(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
        bound = bind("input weight bias stride padding dilation groups", args, kwargs)
        if (tracked := view_of(bound["weight"])) is not None:
            groups, kernel = bound.get("groups", 1), tuple(tracked.shape[2:])
            grouped = tracked.view(groups, -1, *tracked.shape[1:])
            stride, dilation = (_each(bound.get(k, 1), kernel) for k in ("stride", "dilation"))
            padding = _both_sides(bound.get("padding", 0), kernel, dilation)
            rows = _convolution_rows(bound["input"], kernel, stride, padding, dilation, groups)
            yield bound["weight"], Consumed(grouped, kind, group_axes=1, rows=rows)

    return read


def _read_transposed_convolution(kind: str) -> Reader:
    """Read kernels (inputs, outputs / groups, *k): one position's output takes (inputs, *k)."""

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
        names = "input weight bias stride padding output_padding groups dilation"
        bound = bind(names, args, kwargs)
        if (tracked := view_of(bound["weight"])) is not None:
            groups, kernel = bound.get("groups", 1), tuple(tracked.shape[2:])
            grouped = tracked.view(groups, -1, *tracked.shape[1:]).transpose(1, 2)
            stride, padding, extra, dilation = (
                _each(bound.get(key, default), kernel)
                for key, default in (
                    ("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1)
                )
            )  # fmt: skip
            rows = _transposed_convolution_rows(
                bound["input"], kernel, stride, padding, extra, dilation, groups
            )
            yield bound["weight"], Consumed(grouped, kind, group_axes=1, rows=rows)

    return read


def _each(value: Any, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return one number per axis of the kernel."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * len(kernel) if len(values) == 1 else values


def _both_sides(
    padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Return the padding before and after each axis; "same" puts the odd one behind."""
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(p, p) for p in _each(0 if padding == "valid" else padding, kernel)]


def _convolution_rows(
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Rows:
    """Return the rows of a convolution: the patch that each output position sees."""
    dims = len(kernel)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]

    def padded() -> Tensor:
        x = _batched(inputs, dims)
        return functional.pad(x, [side for pair in reversed(list(padding)) for side in pair])

    def patches() -> Tensor:
        return _channel_groups(_windows(padded(), kernel, stride, dilation), groups, dims)

    def project(v: Tensor) -> Tensor:
        kernels = v.T.reshape(v.shape[1], -1, *kernel).repeat(groups, *[1] * (dims + 1))
        y = convolve(padded(), kernels, None, tuple(stride), 0, tuple(dilation), groups)
        return _channel_groups(y, groups, dims)

    return Rows(patches, lambda y: _channel_groups(_batched(y, dims), groups, dims), project)


def _transposed_convolution_rows(
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Rows:
    """Return the rows of a transposed convolution: stretched inputs and a reversed kernel."""
    dims = len(kernel)

    def patches() -> Tensor:
        x = _batched(inputs, dims)
        sides = []
        for axis, (size, step) in enumerate(zip(x.shape[2:], stride, strict=True)):
            stretched = x.new_zeros([*x.shape[: axis + 2], size, step, *x.shape[axis + 3 :]])
            stretched.select(axis + 3, 0).copy_(x)
            x = stretched.flatten(axis + 2, axis + 3).narrow(axis + 2, 0, (size - 1) * step + 1)
            reach = dilation[axis] * (kernel[axis] - 1) - padding[axis]
            sides.append((reach, reach + output_padding[axis]))
        x = functional.pad(x, [side for pair in reversed(sides) for side in pair])
        x = _windows(x, kernel, [1] * dims, dilation).flip(list(range(-dims, 0)))
        return _channel_groups(x, groups, dims)

    return Rows.of(patches, lambda y: _channel_groups(_batched(y, dims), groups, dims))


def _batched(tensor: Tensor, dims: int) -> Tensor:
    return tensor if tensor.ndim == dims + 2 else tensor[None]


def _windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return the window of each position: ``(B, channels, *positions, *kernel)``."""
    for axis, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(axis + 2, spread * (size - 1) + 1, step)[..., ::spread]
    return x


def _channel_groups(x: Tensor, groups: int, dims: int) -> Tensor:
    """Turn ``(B, channels, *positions, *kernel)`` into ``(groups, B, S, features)``."""
    x = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    positions = list(range(3, 3 + dims))
    kernel = list(range(3 + dims, x.ndim))
    x = x.permute(1, 0, *positions, 2, *kernel)
    return torch.flatten(torch.flatten(x, 2, 1 + dims), 3)


READERS: dict[str, Reader] = {
    **{f"conv{d}d": _read_convolution(f"conv{d}d") for d in (1, 2, 3)},
    **{
        f"conv_transpose{d}d": _read_transposed_convolution(f"conv_transpose{d}d")
        for d in (1, 2, 3)
    },
}
