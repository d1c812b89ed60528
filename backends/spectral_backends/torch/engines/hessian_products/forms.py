"""Exact Hessian-vector products, by differentiating a kept graph once more.

A quadratic form ``D ↦ <D, B[D]>`` of one batch is prepared once (forward pass, first derivative
with its graph) and then evaluated for any number of directions, each at the price of one more
backward pass through what lies after the layer.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from spectral_backends.torch.engines.gradient_graph import gradient_with_graph
from spectral_backends.torch.instruments.graph import saved_bytes
from spectral_backends.torch.layers.matrix_view import MatrixView

__all__ = ["GaussNewtonForm", "HessianForm", "QuadraticForm", "along_directions"]


class QuadraticForm(Protocol):
    """``D ↦ <D, B[D]>`` for directions of shape ``(K, *weight.shape)``; returns shape ``(K,)``."""

    @property
    def graph_bytes(self) -> int:
        """Return the bytes that its graph keeps."""
        ...

    def __call__(self, directions: Tensor) -> Tensor:
        """Evaluate the form for each direction."""
        ...


class HessianForm:
    """``<D, ∂²loss/∂W² [D]> = <D, ∂<G, D>/∂W>`` with G the gradient and its graph.

    Parameters
    ----------
    loss : Tensor
        The scalar loss with its graph.
    weight : Tensor
        The leaf W.
    """

    def __init__(self, loss: Tensor, weight: Tensor) -> None:
        self._weight = weight
        self._gradient = _gradient(loss, weight)
        self.graph_bytes = saved_bytes([loss, self._gradient])

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
        The outputs y with their graph.
    loss_of : callable
        The scalar loss of a tensor like `outputs`.
    weight : Tensor
        The leaf W.
    """

    def __init__(
        self, outputs: Tensor, loss_of: Callable[[Tensor], Tensor], weight: Tensor
    ) -> None:
        # Any z but zero will do: at zero every gradient vanishes, and a lost graph goes unnoticed.
        self._cotangent = torch.ones_like(outputs, requires_grad=True)
        self._pulled = _gradient(outputs, weight, self._cotangent)
        self._outputs = outputs.detach().requires_grad_()
        self._output_gradient = _gradient(loss_of(self._outputs), self._outputs)
        self.graph_bytes = saved_bytes([outputs, self._pulled, self._output_gradient])

    def __call__(self, directions: Tensor) -> Tensor:
        """Evaluate the form for each direction."""
        tangents = _pull_back(self._pulled, self._cotangent, directions)
        products = _pull_back(self._output_gradient, self._outputs, tangents)
        return (products * tangents).flatten(1).sum(1)


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
        The quadratic form of one batch.
    view : MatrixView
        The parameter slice that holds the layer's matrix, in a parameter of shape `shape`.
    u, v : Tensor
        The directions, of shapes ``(m, K)`` and ``(n, K)``.
    chunk_size : int
        The number of directions that go backward together, through ``vmap``. With 1 no vmap is
        used.

    Returns
    -------
    Tensor
        The values, of shape ``(K,)``.
    """
    parts = [u.new_zeros(0)]
    for chunk in _chunks(u.shape[1], chunk_size):
        matrices = torch.einsum("mk,nk->kmn", u[:, chunk], v[:, chunk])
        parts.append(form(view.embed(matrices, shape)).detach())
    return torch.cat(parts)


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _gradient(value: Tensor, of: Tensor, cotangent: Tensor | None = None) -> Tensor:
    cotangents = None if cotangent is None else [cotangent]
    (gradient,) = gradient_with_graph([value], [of], cotangents)
    return torch.zeros_like(of) if gradient is None else _dense(gradient)


def _dense(gradient: Tensor) -> Tensor:
    """Return a gradient that an embedding may have made sparse as a plain tensor."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _pull_back(outputs: Tensor, inputs: Tensor, cotangents: Tensor) -> Tensor:
    """Return ``(∂outputs/∂inputs)ᵀ`` of each cotangent; zeros where there is no dependence."""
    zeros = cotangents.new_zeros((len(cotangents), *inputs.shape))
    if not outputs.requires_grad:
        return zeros
    batched = len(cotangents) > 1  # vmap over a single one only costs time
    (products,) = torch.autograd.grad(
        outputs,
        inputs,
        cotangents if batched else cotangents[0],
        retain_graph=True,
        is_grads_batched=batched,
        allow_unused=True,
    )
    # None: the outputs depend on the inputs through steps only, such as a sign.
    return zeros if products is None else _dense(products).reshape(zeros.shape)
