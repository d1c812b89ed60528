"""What an operation does at each position: inputs and outputs as rows.

Every operation that consumes a weight maps rows of inputs to rows of outputs, ``y = W a``, at each
position of each sample. Here the tensors that go in and come out are brought into that form: axes
are groups, then samples, positions and features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Rows",
    "convolution_rows",
    "embedding_rows",
    "linear_rows",
    "product_rows",
    "transposed_convolution_rows",
]


@dataclass(frozen=True)
class Rows:
    """Inputs of one operation as rows, and the arrangement of its result that belongs to them.

    Parameters
    ----------
    inputs : callable
        Returns the inputs, shape ``(*groups, B, S, n)``; made when asked for, as they may be
        larger than what the operation was given.
    outputs : callable
        Turns a tensor of the shape of the operation's result into ``(*groups, B, S, m)``.
    project : callable
        Returns the inputs' products with the columns of v ``(n, K)``, shape ``(*groups, B, S, K)``,
        without making the inputs where they are larger than what was given.
    """

    inputs: Callable[[], Tensor]
    outputs: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, inputs: Callable[[], Tensor], outputs: Callable[[Tensor], Tensor]) -> "Rows":
        """Return rows whose products are taken of the inputs as they are."""
        return cls(inputs, outputs, lambda v: inputs() @ v)


def linear_rows(inputs: Tensor) -> Rows:
    """Rows of ``F.linear``: features last, samples first."""
    return Rows.of(lambda: _positions(inputs), _positions)


def product_rows(inputs: Tensor, group_axes: int, *, left: bool, scale: float = 1.0) -> Rows:
    """Rows of ``inputs @ W``, or of ``W @ inputs`` if W is the left operand.

    Parameters
    ----------
    inputs : Tensor
        The other operand; the leading axes of W align with those before its last two.
    group_axes : int
        Number of leading axes of W.
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


def embedding_rows(tokens: Tensor, entries: int, padding_idx: int | None, like: Tensor) -> Rows:
    """Rows of a table lookup: one-hot inputs; zero where the padding entry has no derivative."""

    def without_padding(rows: Tensor) -> Tensor:
        if padding_idx is not None:
            rows = rows * (tokens != padding_idx % entries).unsqueeze(-1)
        return _positions(rows)

    def inputs() -> Tensor:
        one_hot = functional.one_hot(tokens.long() % entries, entries)
        return without_padding(one_hot.to(like.dtype))

    def project(v: Tensor) -> Tensor:
        return without_padding(v[tokens.long() % entries])

    return Rows(inputs, _positions, project)


def convolution_rows(
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Rows:
    """Rows of a convolution: the patch that each output position sees, channel by channel."""
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


def transposed_convolution_rows(
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Rows:
    """Rows of a transposed convolution: one of stretched inputs by a reversed kernel."""
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


def _positions(tensor: Tensor) -> Tensor:
    """Return ``(B, S, features)`` of a tensor with samples first and features last."""
    if tensor.ndim < 2:
        return tensor.reshape(1, 1, -1)
    return tensor.reshape(tensor.shape[0], prod(tensor.shape[1:-1]), tensor.shape[-1])


def _batched(tensor: Tensor, dims: int) -> Tensor:
    return tensor if tensor.ndim == dims + 2 else tensor[None]


def _windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return what each position of a kernel sees: ``(B, channels, *positions, *kernel)``."""
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
