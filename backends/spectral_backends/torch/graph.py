"""Looking at the graph that autograd has recorded behind a tensor."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["leaves_behind", "node_names"]


def node_names(tensor: Tensor) -> Iterator[str]:
    """Yield the name of every node of the tensor's graph, once per node."""
    return (node.name() for node in _nodes([tensor]))


def leaves_behind(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the leaves that tensors were computed from, as far as autograd recorded it."""
    return [node.variable for node in _nodes(tensors) if hasattr(node, "variable")]


def _nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    todo: list[Any] = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    todo = list(dict.fromkeys(todo))
    seen: set[Any] = {*todo, None}
    while todo:
        node = todo.pop()
        yield node
        new = {following for following, _ in node.next_functions} - seen
        seen |= new
        todo.extend(new)
