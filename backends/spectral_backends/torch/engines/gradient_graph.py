"""First derivatives with a graph of their own, complete enough to be differentiated again."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from spectral_backends.torch.instruments.graph import custom_functions, node_names
from spectral_backends.torch.instruments.linearity import is_identity

__all__ = ["gradient_with_graph"]

Gradients = tuple[Tensor | None, ...]


def gradient_with_graph(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None = None
) -> Gradients:
    """Return the gradients, with the graph that leads back to all that they depend on.

    Raises
    ------
    RuntimeError
        If a function on the way has no second derivative: it is marked `once_differentiable`, or
        its backward returns something that does not depend on what arrives there. The gradient has
        lost its graph then, as when a part of the forward pass is run again on detached inputs, and
        autograd would take it for a constant.
    """
    detached: list[str] = []
    handles = []
    for node in custom_functions(outputs):
        if not is_identity(node):
            handles.append(node.register_prehook(_with_graphs))
            handles.append(node.register_hook(partial(_note_detached, detached, node.name())))
    try:
        found: Gradients = torch.autograd.grad(
            outputs, inputs, cotangents, create_graph=True, allow_unused=True
        )
    finally:
        for handle in handles:
            handle.remove()
    if detached:
        raise RuntimeError(
            f"the backward of a function on the way, {detached[0]}, returns a gradient that does "
            "not depend on the one it is given"
        )
    # For a marked function torch inserts a node that raises when it is reached. The node leads
    # nowhere, so a second derivative would not reach it and would be silently wrong.
    for gradient in found:
        if gradient is not None and "torch::autograd::Error" in node_names(gradient):
            raise RuntimeError("a function on the way is marked once_differentiable")
    return found


def _with_graphs(arriving: Gradients) -> Gradients:
    """Give a graph to what arrives at a function, so that what it returns must have one, too.

    It is no leaf, as the function may change it in place.
    """
    return tuple(
        g.detach().requires_grad_().clone() if g is not None and not g.requires_grad else g
        for g in arriving
    )


def _note_detached(
    detached: list[str], name: str, returned: Gradients, arriving: Gradients
) -> None:
    """Note a function that returns a gradient, not all zero, without a graph."""
    if any(g is not None and not g.requires_grad and bool(g.to_dense().any()) for g in returned):
        detached.append(name)
