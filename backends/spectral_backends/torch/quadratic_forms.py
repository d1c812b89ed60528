"""Second derivatives along directions by differentiating a kept graph once more: exact.

A quadratic form ``D ↦ <D, B[D]>`` of one batch is prepared once (forward pass, first derivative
with its graph) and then evaluated for any number of directions, each at the price of one more
backward pass through what lies after the layer.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from spectral_backends.torch.graph import node_names
from spectral_backends.torch.matrix_view import MatrixView

__all__ = ["GaussNewtonForm", "GraphSize", "HessianForm", "QuadraticForm", "along_directions"]


class QuadraticForm(Protocol):
    """``D ↦ <D, B[D]>`` for directions of shape ``(K, *weight.shape)``; returns shape ``(K,)``."""

    def __call__(self, directions: Tensor) -> Tensor:
        """Evaluate the form for each direction."""
        ...


class HessianForm:
    """``<D, ∂²loss/∂W² [D]> = <D, ∂<G, D>/∂W>`` with G the gradient and its graph.

    Parameters
    ----------
    loss : Tensor
        Scalar with its graph.
    weight : Tensor
        The leaf W.
    """

    def __init__(self, loss: Tensor, weight: Tensor) -> None:
        self._weight = weight
        self._gradient = _gradient(loss, weight, create_graph=True)
        _check_twice_differentiable(self._gradient)

    def __call__(self, directions: Tensor) -> Tensor:
        """Evaluate the form for each direction."""
        products = _pull_back(self._gradient, self._weight, directions)
        return (products * directions).flatten(1).sum(1)


class GaussNewtonForm:
    """``<J D, ∂²loss/∂y² [J D]>`` with J the Jacobian of the outputs y in W.

    The forward derivative J D is the derivative of ``z ↦ Jᵀ z``, which is linear in z, so that
    every operation with two reverse derivatives serves.

    Parameters
    ----------
    outputs : Tensor
        y with its graph.
    loss_of : callable
        The scalar loss of a tensor like `outputs`.
    weight : Tensor
        The leaf W.
    """

    def __init__(
        self, outputs: Tensor, loss_of: Callable[[Tensor], Tensor], weight: Tensor
    ) -> None:
        self._cotangent = torch.zeros_like(outputs, requires_grad=True)
        (self._pulled,) = torch.autograd.grad(
            outputs, weight, self._cotangent, create_graph=True, materialize_grads=True
        )
        _check_twice_differentiable(self._pulled)
        self._outputs = outputs.detach().requires_grad_()
        self._output_gradient = _gradient(loss_of(self._outputs), self._outputs, create_graph=True)

    def __call__(self, directions: Tensor) -> Tensor:
        """Evaluate the form for each direction."""
        tangents = _pull_back(self._pulled, self._cotangent, directions)
        products = _pull_back(self._output_gradient, self._outputs, tangents)
        return (products * tangents).flatten(1).sum(1)


class GraphSize:
    """Bytes that autograd keeps for its backward passes, measured while graphs are built."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Return the bytes of all storages kept, each counted once."""
        return sum(self._storages.values())

    def measuring(self) -> AbstractContextManager[object]:
        """Return a context in which graphs are measured."""

        def pack(tensor: Tensor) -> tuple[Tensor, int]:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                self._storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach(), tensor._version

        def unpack(saved: tuple[Tensor, int]) -> Tensor:
            tensor, version = saved
            if tensor._version != version:  # autograd's own check, which hooks switch off
                raise RuntimeError(
                    "a variable needed for it has been modified by an inplace operation"
                )
            return tensor

        hooks: AbstractContextManager[object] = torch.autograd.graph.saved_tensors_hooks(
            pack, unpack
        )
        return hooks


def along_directions(
    form: QuadraticForm,
    view: MatrixView,
    shape: torch.Size,
    u: Tensor,
    v: Tensor,
    chunk_size: int,
) -> Tensor:
    """Evaluate `form` along ``D_k = u_k v_kᵀ``, `chunk_size` directions at a time.

    Parameters
    ----------
    form : QuadraticForm
        Of one batch.
    view : MatrixView
        Where the layer's matrix lies in a parameter of shape `shape`.
    u, v : Tensor
        Shapes ``(m, K)`` and ``(n, K)``.
    chunk_size : int
        Directions that go backward together, through ``vmap``; 1 uses no vmap.

    Returns
    -------
    Tensor
        Shape ``(K,)``.
    """
    parts = [u.new_zeros(0)]
    for chunk in _chunks(u.shape[1], chunk_size):
        matrices = torch.einsum("mk,nk->kmn", u[:, chunk], v[:, chunk])
        parts.append(form(view.embed(matrices, shape)).detach())
    return torch.cat(parts)


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _gradient(value: Tensor, of: Tensor, *, create_graph: bool) -> Tensor:
    (gradient,) = torch.autograd.grad(value, of, create_graph=create_graph, materialize_grads=True)
    return _dense(gradient)


def _dense(gradient: Tensor) -> Tensor:
    """Return a gradient that an embedding may have made sparse as a plain tensor."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _check_twice_differentiable(gradient: Tensor) -> None:
    """Raise `RuntimeError` if part of the gradient's own graph is cut off.

    Behind a function that is differentiable once only, torch puts a node that raises when it is
    reached; but it leads nowhere, so a second derivative passes it by and is silently wrong.
    """
    if "torch::autograd::Error" in node_names(gradient):
        raise RuntimeError("a function on the way is marked once_differentiable")


def _pull_back(outputs: Tensor, inputs: Tensor, cotangents: Tensor) -> Tensor:
    """Return ``(∂outputs/∂inputs)ᵀ`` of each cotangent; zeros where there is no dependence."""
    zeros = cotangents.new_zeros((len(cotangents), *inputs.shape))
    if not outputs.requires_grad:
        return zeros
    batched = len(cotangents) > 1  # vmap over one would only cost
    (products,) = torch.autograd.grad(
        outputs,
        inputs,
        cotangents if batched else cotangents[0],
        retain_graph=True,
        is_grads_batched=batched,
        allow_unused=True,
    )
    # None: the dependence is through steps only, such as a sign.
    return zeros if products is None else _dense(products).reshape(zeros.shape)
