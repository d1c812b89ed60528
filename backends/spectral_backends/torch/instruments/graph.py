"""Looking at the graph that autograd has recorded behind a tensor."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from spectral_backends.torch.instruments.nested import tensors_in

__all__ = ["custom_functions", "leaves_behind", "node_names", "saved_bytes"]


def node_names(tensor: Tensor) -> Iterator[str]:
    """Yield the name of every node of the tensor's graph, once per node."""
    return (node.name() for node in _nodes([tensor]))


def leaves_behind(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the leaves that tensors were computed from, as far as autograd recorded it."""
    return [node.variable for node in _nodes(tensors) if hasattr(node, "variable")]


def custom_functions(tensors: Iterable[Tensor]) -> list[Any]:
    """Return the nodes of functions whose backward is written in Python."""
    return [node for node in _nodes(tensors) if isinstance(node, BackwardCFunction)]


def saved_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes that the graph keeps for its backward passes, each storage counted once."""
    storages = {}
    for node in _nodes(tensors):
        for tensor in _saved(node):
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _saved(node: Any) -> Iterator[Tensor]:
    """Yield the tensors that a node keeps, apart from those that were freed."""
    for name in _names_of_saved(node.__class__):
        try:
            yield from tensors_in(getattr(node, name))
        except RuntimeError:  # released, or changed in place
            continue


@cache
def _names_of_saved(kind: type) -> list[str]:
    if issubclass(kind, BackwardCFunction):
        return ["saved_tensors"]
    return [name for name in dir(kind) if name.startswith("_saved_")]


def _nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    todo: list[Any] = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    todo = list(dict.fromkeys(todo))
    seen: set[Any] = {*todo, None}
    while todo:
        node = todo.pop()
        yield node
        # In a fixed order, so that sums along the way do not depend on addresses.
        following = dict.fromkeys(each for each, _ in node.next_functions)
        new = [each for each in following if each not in seen]
        seen.update(new)
        todo.extend(new)
