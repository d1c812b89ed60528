"""The findings of a reader in one call: the argument that is a weight, and its activations.

A reader looks at the arguments of one operation and yields the followed tensors among them that
serve as weight matrices, with their axes put in the order groups, outputs, inputs. The operation
maps rows of inputs to rows of outputs, ``y = W a``, at each position of each sample; the reader
says how the tensors that go in and come out are brought into that form: axes are groups, then
samples, positions and features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

__all__ = ["Consumed", "Found", "Reader", "Rows", "ViewOf", "bind", "positions"]


@dataclass(frozen=True)
class Rows:
    """Unfolded activations of one operation, and the arrangement of its result in the same form.

    Parameters
    ----------
    inputs : callable
        ``inputs()`` returns the inputs, shape ``(*groups, B, S, n)``. They are made when asked for,
        as they may be larger than the operation's argument.
    outputs : callable
        ``outputs(tensor)`` brings a tensor of the shape of the operation's result into the shape
        ``(*groups, B, S, m)``.
    project : callable
        ``project(v)`` returns the inputs' products with the columns of v ``(n, K)``, shape
        ``(*groups, B, S, K)``. It does not make the inputs if they are larger than the operation's
        argument.
    """

    inputs: Callable[[], Tensor]
    outputs: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, inputs: Callable[[], Tensor], outputs: Callable[[Tensor], Tensor]) -> "Rows":
        """Return rows whose products are taken of the inputs as they are."""
        return cls(inputs, outputs, lambda v: inputs() @ v)


@dataclass(frozen=True)
class Consumed:
    """The use of a parameter by an operation: axes are groups, then outputs, then inputs.

    `tracked` is the tracked view of the weight; its strides say where the elements lie in the
    parameter. `usable` is False where the operation's gradient is not the derivative of what it
    computes. `rows` makes inputs and outputs of the operation, position by position; None where the
    operation hides them.
    """

    tracked: Tensor
    kind: str
    group_axes: int = 0
    out_axes: int = 1
    label: str = ""
    usable: bool = True
    rows: Rows | None = None


ViewOf = Callable[[Any], Tensor | None]
"""A function that returns the tracked view of a tensor; None if the tensor is not followed."""

Found = Iterator[tuple[Tensor, Consumed]]
Reader = Callable[[tuple[Any, ...], dict[str, Any], ViewOf], Found]
"""A function of the arguments of a call and of a `ViewOf`; it yields the weights among them."""


def bind(names: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments by the names of the parameters, which are given in one string."""
    return dict(zip(names.split(), args, strict=False)) | kwargs


def positions(tensor: Tensor) -> Tensor:
    """Return ``(B, S, features)`` of a tensor with samples first and features last."""
    if tensor.ndim < 2:
        return tensor.reshape(1, 1, -1)
    return tensor.reshape(tensor.shape[0], prod(tensor.shape[1:-1]), tensor.shape[-1])
