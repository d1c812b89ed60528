"""The rule by which tangents pass any piece of a tape: differentiating its pull-back.

For a piece ``y = φ(x)`` whose outputs have the adjoint λ (the gradient of the loss in y), each
tangent ẋ becomes ``ẏ = Dφ[ẋ]``, and the piece adds ``<λ, D²φ[ẋ, ẋ]>`` to the second derivative of
the loss. Both come out of one derivative of the pull-back ``p(λ, x) = Dφᵀ[λ]``: ``∂<p, ẋ>/∂λ = ẏ``
and ``<∂<p, ẋ>/∂x, ẋ> = <λ, D²φ[ẋ, ẋ]>``.
"""

from collections.abc import Sequence
from enum import Enum, auto

import torch
from torch import Tensor

from spectral_backends.torch.capture.tape import Segment
from spectral_backends.torch.engines.gradient_graph import gradient_with_graph

__all__ = ["Nonlinearity", "PullBack", "Tangents"]

Tangents = Sequence[Tensor | None]
"""One tangent for each input (or output), shape ``(P, *shape)``; None if it is zero."""


class Nonlinearity(Enum):
    """Says how a piece is nonlinear in its inputs, as far as that is known."""

    ANY = auto()
    PRODUCT = auto()
    """Linear in each of two inputs."""
    NONE = auto()


class PullBack:
    """The rule of any operation with two derivatives.

    Parameters
    ----------
    segment : Segment
        The piece.
    inputs : sequence of Tensor
        The inputs of the piece that may have tangents.
    adjoints : sequence of Tensor or None
        The adjoint λ of each output.

    Attributes
    ----------
    nonlinearity : Nonlinearity
        The way in which the piece is nonlinear. A caller that knows more may set it.
    outputs, adjoints : list of Tensor
        The outputs that have an adjoint, and their adjoints.
    pulled : sequence of Tensor or None
        The adjoints of the inputs, with the graph that leads back to `adjoints`.

    Raises
    ------
    RuntimeError
        If the piece cannot be differentiated twice.
    """

    def __init__(
        self, segment: Segment, inputs: Sequence[Tensor], adjoints: Sequence[Tensor | None]
    ) -> None:
        self.nonlinearity = Nonlinearity.ANY
        self._n_outputs = len(segment.outputs)
        self._live = [index for index, adjoint in enumerate(adjoints) if adjoint is not None]
        self.outputs = [segment.outputs[index] for index in self._live]
        self.adjoints = [
            adjoint.detach().requires_grad_() for adjoint in adjoints if adjoint is not None
        ]
        self.inputs = list(inputs)
        self.pulled = gradient_with_graph(self.outputs, self.inputs, self.adjoints)

    @property
    def input_adjoints(self) -> list[Tensor | None]:
        """Return the adjoints of the inputs."""
        return [None if p is None else _dense(p.detach()) for p in self.pulled]

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        """Send P tangents through the piece."""
        pairs = [
            (pulled, leaf, tangent)
            for pulled, leaf, tangent in zip(self.pulled, self.inputs, tangents, strict=True)
            if pulled is not None and pulled.requires_grad and tangent is not None
        ]
        outputs: list[Tensor | None] = [None] * self._n_outputs
        if not pairs:
            return outputs, None
        moving = [tangent for _, _, tangent in pairs]
        nonlinear = self._nonlinear_inputs([leaf for _, leaf, _ in pairs])
        found = _batched_gradient(
            [pulled for pulled, _, _ in pairs], [*self.adjoints, *nonlinear], moving
        )
        for index, tangent in zip(self._live, found, strict=False):
            outputs[index] = tangent
        products = found[len(self.adjoints) :]  # <λ, D²φ[ẋ, ·]>
        terms = [
            _dots(_dense(product), tangent)
            for product, tangent in zip(products, moving, strict=False)
            if product is not None
        ]
        second = torch.stack(terms).sum(0) if terms else None
        if second is not None and self.nonlinearity is Nonlinearity.PRODUCT:
            second = 2 * second  # both mixed derivatives are equal
        return outputs, second

    def _nonlinear_inputs(self, leaves: list[Tensor]) -> list[Tensor]:
        """Return the inputs in which the second derivative is computed."""
        if self.nonlinearity is Nonlinearity.NONE or (
            self.nonlinearity is Nonlinearity.PRODUCT and len(leaves) < 2
        ):
            return []
        return leaves[:1] if self.nonlinearity is Nonlinearity.PRODUCT else leaves


def _batched_gradient(
    values: list[Tensor], of: list[Tensor], tangents: list[Tensor]
) -> list[Tensor | None]:
    """Return ``∂ Σ <value, tangent>/∂of`` for each of the P tangents."""

    def gradient(cotangents: list[Tensor], *, batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            values, of, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )

    count = len(tangents[0])
    if count > 1:
        try:
            return list(gradient(tangents, batched=True))
        except RuntimeError:  # no batching rule: run one at a time
            pass
    if count == 1:
        found = gradient([t[0] for t in tangents], batched=False)
        return [None if g is None else _dense(g).unsqueeze(0) for g in found]
    each = [gradient([t[index] for t in tangents], batched=False) for index in range(count)]
    return [
        None if any(g is None for g in found) else torch.stack([_dense(g) for g in found])
        for found in zip(*each, strict=True)
    ]


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _dots(a: Tensor, b: Tensor) -> Tensor:
    dots: Tensor = torch.linalg.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1))
    return dots
