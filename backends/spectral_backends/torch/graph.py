"""Looking at the graph that autograd has recorded behind a tensor."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

__all__ = ["node_names"]


def node_names(tensor: Tensor) -> Iterator[str]:
    """Yield the name of every node of the tensor's graph, once per node."""
    seen: set[Any] = {tensor.grad_fn, None}
    todo: list[Any] = [tensor.grad_fn] if tensor.grad_fn is not None else []
    while todo:
        node = todo.pop()
        yield node.name()
        new = {following for following, _ in node.next_functions} - seen
        seen |= new
        todo.extend(new)
